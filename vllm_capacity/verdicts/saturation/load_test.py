"""The saturation of a server known only by a table of loads: a load test, a published benchmark.

No queue and no scrape is in such a table, so no regime can be told but a full KV cache, where
that is given. The capacity is the plateau that the loads reached, or the peak they let foresee
(`curve.py`). A plateau of a few loads may still bend upwards, and a lone peak may stand between two
loads that were tried: there the interval takes in what the curve lets foresee.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl

from vllm_capacity.estimate import Estimate
from vllm_capacity.verdicts.saturation import regimes
from vllm_capacity.verdicts.saturation.arrays import Floats, Mask
from vllm_capacity.verdicts.saturation.capacity import extrapolated, extrapolated_running
from vllm_capacity.verdicts.saturation.curve import (
    PRIOR,
    SAME_LOAD,
    LoadPoints,
    PeakEstimate,
    extrapolated_peak,
    kv_limit_running,
)
from vllm_capacity.verdicts.saturation.fit import EXTRAPOLATED, MEASURED, UNKNOWN, Saturation
from vllm_capacity.verdicts.saturation.loads import on_plateau

_KV_FULL_RATIO = 0.9
_ROWS_A_LOAD = 1.5
"""From so many rows a load on, rows within 8 % are one load; else each row is its own."""
_PLATEAU_LOW, _PLATEAU_HIGH = 0.96, 1.06
_MANY_LOADS = 4
"""So many loads on a plateau show by themselves how far it scatters."""
_NO_NOW = "a table of loads has no present load to compare with its capacity"


def fit_points(points: pl.DataFrame) -> Saturation:
    """The verdict on saturation for a frame of loads.

    Columns used: running_requests, output_tokens_per_second and, if there, kv_cache_ratio. Rows
    without a load or an output are left out, and rows of one load are averaged: rows of the same
    running requests, or within 8 % where the table has several rows for each such load (repeated
    runs, a row a step). The headroom is unknown and `regimes` empty: nothing here happened at a
    time.
    """
    loads, kv_ratio = _loads(points)
    limit = _kv_limit(loads, kv_ratio) if len(loads) else None
    near = on_plateau(loads) if len(loads) else None
    if near is None:
        peak_estimate = extrapolated_peak(loads, limit) if len(loads) else None
        capacity = extrapolated(peak_estimate, loads, limit)
        running = extrapolated_running(capacity, loads, limit)
        is_full = False
    else:
        capacity, running = _held(loads, near, limit)
        is_full = bool((kv_ratio[near] >= _KV_FULL_RATIO).all())
    return Saturation(
        regime=regimes.KV if is_full else regimes.UNKNOWN,
        bottleneck=regimes.KV if is_full else None,
        regimes=(),
        capacity_kind=_kind(capacity, is_held=near is not None),
        capacity_output_tokens_per_second=capacity,
        capacity_running_requests=running,
        headroom_ratio=Estimate.unknown(_NO_NOW),
    )


def _kind(capacity: Estimate, *, is_held: bool) -> str:
    if not capacity.is_known:
        return UNKNOWN
    return MEASURED if is_held else EXTRAPOLATED


def _loads(points: pl.DataFrame) -> tuple[LoadPoints, Floats]:
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
        .sort(running, output)
    )
    scatter = pl.col(output).std() / pl.col(output).mean() / pl.len().sqrt()
    loads = (
        kept.with_columns(load=pl.Series(_load_numbers(kept[running].to_list()), dtype=pl.Int64))
        .group_by("load", maintain_order=True)
        .agg(pl.col(running, output, "kv").mean(), error=scatter.fill_null(0.0).clip(0.0, 0.5))
    )
    columns = (loads[name].to_numpy() for name in (running, output, "error"))
    return LoadPoints.of(*columns), loads["kv"].fill_null(float("nan")).to_numpy()


def _kv_limit(loads: LoadPoints, kv_ratio: Floats) -> float | None:
    """Where the KV cache would be full; no lighter than the heaviest load, which did run."""
    limit = kv_limit_running(loads.running, kv_ratio)
    return None if limit is None else max(limit, loads.heaviest)


def _load_numbers(running: list[float]) -> list[int]:
    """Which load each row belongs to, rows sorted: a load spans its lightest row's, or 8 % more."""
    merged = _numbered(running, SAME_LOAD)
    is_repeated = bool(merged) and len(running) >= _ROWS_A_LOAD * (merged[-1] + 1)
    return merged if is_repeated else _numbered(running, 1.0)


def _numbered(running: list[float], span: float) -> list[int]:
    numbers: list[int] = []
    first = 0.0
    for value in running:
        is_new = not numbers or value > span * first
        first = value if is_new else first
        numbers.append((numbers[-1] if numbers else -1) + is_new)
    return numbers


def _held(loads: LoadPoints, near: Mask, limit: float | None) -> tuple[Estimate, Estimate]:
    """Capacity and its load for loads that reached a plateau, or a lone peak and fell."""
    output, plateau = loads.output[near], loads.running[near]
    low, high = _PLATEAU_LOW * float(output.min()), _PLATEAU_HIGH * float(output.max())
    last = int(np.flatnonzero(near)[-1])
    beyond = float(loads.running[last + 1]) if last + 1 < len(loads) else None
    is_lone = len(plateau) == 1
    basis = _plateau_words(plateau)
    if is_lone or (beyond is None and len(plateau) < _MANY_LOADS):
        peak_estimate = _sight(loads, last, beyond, limit)
        if is_lone and (peak_estimate is None or not peak_estimate.is_answer):
            unknown = Estimate.unknown(_between(loads, last))
            return unknown, unknown
        if peak_estimate is not None:
            low, high = min(low, peak_estimate.low), max(high, peak_estimate.high)
    knee = float(plateau[0])
    below = loads.running[loads.running < knee]
    running = Estimate.known(
        float(below[-1]) if len(below) else knee,
        knee,
        beyond if is_lone and beyond is not None else float(plateau[-1]),
        "the lightest load that reached it; between the next lighter and the heaviest that may",
    )
    return Estimate.known(low, float(output.mean()), high, basis), running


def _sight(
    loads: LoadPoints, last: int, beyond: float | None, limit: float | None
) -> PeakEstimate | None:
    """What the loads up to the last on a plateau let foresee, short of a heavier one that fell."""
    seen = loads.up_to(last)
    if beyond is None:
        return extrapolated_peak(seen, limit)
    farthest = min(PRIOR.farthest, beyond / seen.heaviest)
    return extrapolated_peak(seen, limit, prior=replace(PRIOR, farthest=farthest))


def _plateau_words(plateau: Floats) -> str:
    if len(plateau) == 1:
        return (
            f"the highest load, {plateau[0]:,.1f} running requests: heavier ones gave less; the "
            "interval is what lies between the loads tried"
        )
    return (
        f"mean of the {len(plateau)} loads from {plateau[0]:,.1f} to {plateau[-1]:,.1f} running "
        "requests, over which throughput grew by no more than 5 %"
    )


def _between(loads: LoadPoints, last: int) -> str:
    """Why a lone peak is no answer, and which loads would tell."""
    running, output = loads.running, loads.output
    lighter = running[last - 1] if last else 0.0
    return (
        f"throughput rose to {output[last]:,.0f} output tokens/s at {running[last]:,.1f} running "
        f"requests and was {output[last + 1]:,.0f} at {running[last + 1]:,.1f}: the peak lies "
        f"somewhere between {lighter:,.1f} and {running[last + 1]:,.1f}, and it takes loads there, "
        "or the heavier one again, to tell it"
    )
