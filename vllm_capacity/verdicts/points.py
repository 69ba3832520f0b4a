"""The saturation of a server known only by a table of loads: a load test, a published benchmark.

No queue and no scrape is in such a table, so no regime can be told but a full KV cache, where
that is given. The capacity is the plateau that the loads reached, or the peak they let foresee
(`curve.py`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from vllm_capacity.estimate import Estimate
from vllm_capacity.verdicts import regimes
from vllm_capacity.verdicts.capacity import foreseen, foreseen_running
from vllm_capacity.verdicts.curve import Floats, Loads, foreseen_peak, kv_limit_running
from vllm_capacity.verdicts.loads import points_plateau

_KV_FULL_RATIO = 0.9
_OF_PEAK = 0.95
_SAME_LOAD, _LONG_TABLE = 1.08, 32
_PLATEAU_LOW, _PLATEAU_HIGH = 0.96, 1.06
_NO_NOW = "a table of loads has no present load to compare with its capacity"


def fit_points(points: pl.DataFrame) -> dict[str, Any]:
    """The saturation object for a frame of loads.

    Columns used: running_requests, output_tokens_per_second and, if there, kv_cache_ratio. Rows
    without a load or an output are left out, and rows of one load are averaged; in a long table (a
    row a scrape or so) loads within 8 % are one. The headroom is unknown and `regimes` empty:
    nothing here happened at a time.
    """
    loads, kv_ratio = _loads(points)
    limit = kv_limit_running(loads.running, kv_ratio) if len(loads) else None
    held = points_plateau(loads) if len(loads) else None
    if held is None:
        sight = foreseen_peak(loads, limit) if len(loads) else None
        capacity = foreseen(sight, loads, limit)
        running = foreseen_running(capacity, loads, limit)
        is_full = False
    else:
        is_near = loads.output >= _OF_PEAK * loads.output.max()
        capacity, running = _held(loads, held, is_near)
        is_full = bool((kv_ratio[is_near] >= _KV_FULL_RATIO).all())
    return {
        "regime": regimes.KV if is_full else regimes.UNKNOWN,
        "first_limit": regimes.KV if is_full else None,
        "regimes": [],
        "capacity_output_tokens_per_second": capacity.as_dict(),
        "capacity_running_requests": running.as_dict(),
        "headroom_ratio": Estimate.unknown(_NO_NOW).as_dict(),
    }


def _loads(points: pl.DataFrame) -> tuple[Loads, Floats]:
    """The loads of a table, and the KV ratio at each (nan where not given)."""
    running, output = "running_requests", "output_tokens_per_second"
    has_kv = "kv_cache_ratio" in points.columns
    kv = pl.col("kv_cache_ratio") if has_kv else pl.lit(None, dtype=pl.Float64)
    kept = (
        points.select(
            pl.col(running, output).cast(pl.Float64), kv=kv.cast(pl.Float64).fill_nan(None)
        )
        .filter(pl.col(running).is_finite() & pl.col(output).is_finite())
        .filter((pl.col(running) > 0) & (pl.col(output) > 0))
        .sort(running)
    )
    scatter = pl.col(output).std() / pl.col(output).mean() / pl.len().sqrt()
    loads = (
        kept.with_columns(load=pl.Series(_load_numbers(kept[running].to_list()), dtype=pl.Int64))
        .group_by("load", maintain_order=True)
        .agg(pl.col(running, output, "kv").mean(), error=scatter.fill_null(0.0).clip(0.0, 0.5))
    )
    columns = (loads[name].to_numpy() for name in (running, output, "error"))
    return Loads.of(*columns), loads["kv"].fill_null(float("nan")).to_numpy()


def _load_numbers(running: list[float]) -> list[int]:
    """Which load each row belongs to, rows sorted: a load spans its lightest row's, or 8 % more."""
    numbers: list[int] = []
    first = 0.0
    span = _SAME_LOAD if len(set(running)) > _LONG_TABLE else 1.0
    for value in running:
        is_new = not numbers or value > span * first
        first = value if is_new else first
        numbers.append((numbers[-1] if numbers else -1) + is_new)
    return numbers


def _held(
    loads: Loads, held: tuple[float, float, float], is_near: np.ndarray[Any, Any]
) -> tuple[Estimate, Estimate]:
    """Capacity and its load for loads that reached a plateau."""
    low, mean, peak = held
    plateau = loads.running[is_near]
    knee = float(plateau[0])
    below = loads.running[loads.running < knee]
    capacity = Estimate.known(
        _PLATEAU_LOW * low,
        mean,
        _PLATEAU_HIGH * peak,
        f"mean of the {len(plateau)} loads from {knee:,.1f} to {plateau[-1]:,.1f} running "
        "requests, over which throughput grew by no more than 5 %",
    )
    running = Estimate.known(
        float(below[-1]) if len(below) else knee,
        knee,
        float(plateau[-1]),
        "the lightest load that reached the plateau; between the next lighter and its heaviest",
    )
    return capacity, running
