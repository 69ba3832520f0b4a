"""The saturation of a server from a table of loads: a load test, a published benchmark.

The algorithm:

1. Rows without a load or an output are left out, and rows of the same load are averaged.
2. A row is at the limit if requests waited, if fewer were served than offered, or if the server ran
   its maximum of requests (`LIMIT_COLUMNS`). One such row proves a plateau: the capacity is what
   the loads near it sustained.
3. Otherwise the capacity is the plateau that the loads reached, or the peak that they predict
   (`curve.py`). A plateau of few loads may still bend upwards, and a single peak may lie between
   two tested loads: then the interval includes what the curve predicts.
4. What was measured can be reached: no end of an extrapolated capacity lies below it.

A test of a few minutes serves slightly less than was offered, because its last requests finish
after it. A light load wrongly taken for the limit is revealed by heavier loads that gave more. So a
row must fall 10 % short, and still give nearly the highest output.
"""

from __future__ import annotations

import numpy as np
import polars as pl
from msgspec import Struct
from msgspec.structs import replace

from vllm_capacity.estimate import Estimate
from vllm_capacity.verdicts.saturation import regimes
from vllm_capacity.verdicts.saturation.arrays import Floats, Mask
from vllm_capacity.verdicts.saturation.capacity import extrapolated, extrapolated_running
from vllm_capacity.verdicts.saturation.curve import (
    PRIOR,
    SAME_LOAD,
    LoadPoints,
    PeakEstimate,
    Prior,
    extrapolated_peak,
    kv_limit_running,
)
from vllm_capacity.verdicts.saturation.fit import EXTRAPOLATED, MEASURED, UNKNOWN, Saturation
from vllm_capacity.verdicts.saturation.loads import on_plateau

LIMIT_COLUMNS = ("waiting_requests", "offered_requests_per_second", "max_num_seqs", "clients")
"""The columns that show whether a row was at the server's limit; each may be absent."""

_KV_FULL_RATIO = 0.9
_ROWS_A_LOAD = 1.5
"""From this number of rows per load on, rows within 8 % are one load; else each row is its own."""
_PLATEAU_HIGH = 1.06
_MANY_LOADS = 4
"""With this many loads on a plateau, their scatter is known without a prediction."""
_MIN_WAITING, _WAITING_OF_RUNNING = 0.5, 0.03
_SERVED_OF_OFFERED = 0.9
_NEARLY_ALL = 0.97
_NEAR_MAX, _OF_LIMIT = 0.9, 0.95
"""Minimum share of the highest output for a row at the limit, and for the loads of its plateau."""
_ONE_ROW_HIGH = 1.1
_NO_NOW = "a table of loads has no present load to compare with its capacity"


class LoadTest(Struct, frozen=True):
    """The loads of a table, lightest first, with the data of each.

    `limits` says how each load is known to be at the server's limit, None if it is not. `kv_ratio`
    is nan if not given. `most_running` is the most requests that the server runs at once
    (`max_num_seqs`), None if unknown.
    """

    loads: LoadPoints
    kv_ratio: Floats
    limits: tuple[str | None, ...]
    most_running: float | None

    @classmethod
    def of(cls, points: pl.DataFrame) -> LoadTest:
        """The loads of a frame, rows of one load averaged: see `fit_points` for its columns."""
        kept = _rows(points)
        scatter = pl.col("output").std() / pl.col("output").mean() / pl.len().sqrt()
        loads = (
            kept.with_columns(
                load=pl.Series(_load_numbers(kept["running"].to_list()), dtype=pl.Int64)
            )
            .group_by("load", maintain_order=True)
            .agg(
                pl.col("running", "output", "kv").mean(),
                pl.col("limit").drop_nulls().first(),
                error=scatter.fill_null(0.0).clip(0.0, 0.5),
            )
        )
        columns = (loads[name].to_numpy() for name in ("running", "output", "error"))
        most: float | None = kept["max_num_seqs"].max()  # type: ignore[assignment]
        kv_ratio = loads["kv"].fill_null(float("nan")).to_numpy()
        return cls(LoadPoints.of(*columns), kv_ratio, tuple(loads["limit"]), most)

    @property
    def is_limited(self) -> Mask:
        """Whether each load is known to be at the server's limit."""
        return np.asarray([limit is not None for limit in self.limits], bool)

    @property
    def kv_limit(self) -> float | None:
        """The load at which the KV cache is full; at least the heaviest load, as that did run."""
        if not len(self.loads):
            return None
        limit = kv_limit_running(self.loads.running, self.kv_ratio)
        return None if limit is None else max(limit, self.loads.heaviest)

    @property
    def prior(self) -> Prior:
        """The prior for the peak: no farther than the server's own limit of requests."""
        if self.most_running is None or not len(self.loads):
            return PRIOR
        reach = max(1.0, self.most_running / self.loads.heaviest)
        return PRIOR if reach > PRIOR.farthest else replace(PRIOR, farthest=reach)

    @property
    def plateau(self) -> Mask | None:
        """The loads on a plateau that a load at the limit proves; None if none does."""
        if not self.is_limited.any():
            return None
        output = self.loads.output
        near = self.is_limited & (output >= _OF_LIMIT * output.max())
        if near.any():
            return np.asarray(near)
        is_proven = (self.is_limited & (output >= _NEAR_MAX * output.max())).any()
        return np.asarray(output >= _OF_LIMIT * output.max()) if is_proven else None


def fit_points(points: pl.DataFrame) -> Saturation:
    """The saturation verdict for a frame of loads.

    Columns used: running_requests (or clients), output_tokens_per_second and, if present,
    kv_cache_ratio, requests_per_second and `LIMIT_COLUMNS`. Rows without a load or an output are
    left out, and rows of one load are averaged: rows with the same running requests, or within 8 %
    if the table has several rows for each such load (repeated runs, one row per step). The headroom
    is unknown and `regimes` empty, because a table has no times.
    """
    return saturation_of(LoadTest.of(points))


def saturation_of(test: LoadTest) -> Saturation:
    """The saturation verdict for the loads of a load test."""
    proven = test.plateau
    near = on_plateau(test.loads) if proven is None and len(test.loads) else proven
    if proven is not None:
        capacity, running = _proven(test, proven)
    elif near is not None:
        capacity, running = _held(test, near)
    else:
        capacity, running = _extrapolated(test)
    is_full = near is not None and bool((test.kv_ratio[near] >= _KV_FULL_RATIO).all())
    limit = _limit(test, is_full=is_full, is_proven=proven is not None)
    return Saturation(
        regime=limit or regimes.UNKNOWN,
        bottleneck=limit,
        regimes=(),
        capacity_kind=_kind(capacity, is_held=near is not None),
        capacity_output_tokens_per_second=capacity,
        capacity_running_requests=running,
        headroom_ratio=Estimate.unknown(_NO_NOW),
    )


def _limit(test: LoadTest, *, is_full: bool, is_proven: bool) -> str | None:
    """The bottleneck, if the table shows it: the KV cache, or the number of sequences."""
    if is_full:
        return regimes.KV
    most = test.most_running
    if is_proven and most is not None and test.loads.heaviest >= _NEARLY_ALL * most:
        return regimes.SCHEDULER
    return None


def _extrapolated(test: LoadTest) -> tuple[Estimate, Estimate]:
    """The peak that the loads predict, and its load; at least what was measured."""
    loads, limit = test.loads, test.kv_limit
    if not len(loads):
        unknown = extrapolated(None, loads, limit)
        return unknown, unknown
    peak, seen = extrapolated_peak(loads, limit, prior=test.prior), float(loads.output.max())
    capacity = extrapolated(None if peak is None else peak.no_less_than(seen), loads, limit)
    running = extrapolated_running(capacity, loads, limit)
    if capacity.is_known:
        bounds = (f"no less than the {seen:,.0f} measured", _horizon(test))
        capacity = replace(capacity, basis=(*capacity.basis, *bounds))
    return capacity, running


def _horizon(test: LoadTest) -> str:
    """How far the peak search extends."""
    if test.most_running is not None and test.prior is not PRIOR:
        return f"the server runs at most {test.most_running:,.0f} requests at once (max_num_seqs)"
    return f"searched up to {PRIOR.farthest:g} × the heaviest load; higher if it still rises there"


def _proven(test: LoadTest, near: Mask) -> tuple[Estimate, Estimate]:
    """Capacity and its load if a load at the limit proves the plateau."""
    output, plateau = test.loads.output[near], test.loads.running[near]
    above = _ONE_ROW_HIGH if len(plateau) == 1 else _PLATEAU_HIGH
    span = f"{plateau[0]:,.1f}"
    if len(plateau) > 1:
        span += f" to {plateau[-1]:,.1f}"
    limits = dict.fromkeys(limit for limit in test.limits if limit is not None)
    capacity = Estimate.known(
        float(output.min()),
        float(output.mean()),
        above * float(output.max()),
        f"measured at {span} running requests, at the limit: {', '.join(limits)}",
    )
    return capacity, _running(test.loads, plateau, float(plateau[-1]))


def _running(loads: LoadPoints, plateau: Floats, most: float) -> Estimate:
    knee = float(plateau[0])
    below = loads.running[loads.running < knee]
    return Estimate.known(
        float(below[-1]) if len(below) else knee,
        knee,
        most,
        "the lightest load that reached it; the interval is from the next lighter load to the "
        "heaviest possible one",
    )


def _kind(capacity: Estimate, *, is_held: bool) -> str:
    if not capacity.is_known:
        return UNKNOWN
    return MEASURED if is_held else EXTRAPOLATED


def _rows(points: pl.DataFrame) -> pl.DataFrame:
    """running, output, kv, max_num_seqs and limit of each row with a load, lightest first."""
    wanted = ("running_requests", "output_tokens_per_second", "requests_per_second")
    names = (*wanted, "kv_cache_ratio", *LIMIT_COLUMNS)
    table = points.select(
        (pl.col(name) if name in points.columns else pl.lit(None)).cast(pl.Float64).alias(name)
        for name in names
    ).with_columns(pl.all().fill_nan(None))
    most = pl.col("max_num_seqs")
    kept = table.select(
        pl.col("clients", "waiting_requests", "offered_requests_per_second", "max_num_seqs"),
        running=pl.coalesce("running_requests", pl.min_horizontal("clients", most)),
        output=pl.col("output_tokens_per_second"),
        served=pl.col("requests_per_second"),
        kv=pl.col("kv_cache_ratio"),
    ).filter(pl.col("running").is_finite() & pl.col("output").is_finite())
    return (
        kept.filter((pl.col("running") > 0) & (pl.col("output") > 0))
        .sort("running", "output")
        .select("running", "output", "kv", "max_num_seqs", limit=_known_limit())
    )


def _known_limit() -> pl.Expr:
    """How a row is known to be at the server's limit; null if nothing shows it."""
    running, offered = pl.col("running"), pl.col("offered_requests_per_second")
    most, clients = pl.col("max_num_seqs"), pl.col("clients")
    waiting = pl.col("waiting_requests")
    is_waiting = (waiting >= _MIN_WAITING) & (waiting >= _WAITING_OF_RUNNING * running)
    # Without the served rate: tokens per offered request, relative to that of a light load.
    each = pl.col("output") / offered
    served_share = pl.coalesce(pl.col("served") / offered, each / each.max())
    is_full = (running >= _NEARLY_ALL * most) | (clients > most)
    return pl.coalesce(
        pl.when(is_waiting).then(pl.lit("requests waited")),
        pl.when(served_share < _SERVED_OF_OFFERED).then(pl.lit("it served less than was offered")),
        pl.when(is_full).then(pl.lit("it ran as many requests as max_num_seqs allows")),
    )


def _load_numbers(running: list[float]) -> list[int]:
    """The load number of each sorted row; a load spans its lightest row's value, or 8 % more."""
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


def _held(test: LoadTest, near: Mask) -> tuple[Estimate, Estimate]:
    """Capacity and its load for loads that reached a plateau, or a single peak and then fell."""
    loads = test.loads
    output, plateau = loads.output[near], loads.running[near]
    low, high = float(output.min()), _PLATEAU_HIGH * float(output.max())
    last = int(np.flatnonzero(near)[-1])
    beyond = float(loads.running[last + 1]) if last + 1 < len(loads) else None
    is_lone = len(plateau) == 1
    if is_lone or (beyond is None and len(plateau) < _MANY_LOADS):
        peak_estimate = _sight(test, last, beyond)
        if is_lone and (peak_estimate is None or not peak_estimate.is_answer):
            unknown = Estimate.unknown(_between(loads, last))
            return unknown, unknown
        if peak_estimate is not None:
            high = max(high, peak_estimate.high)
    most = beyond if is_lone and beyond is not None else float(plateau[-1])
    capacity = Estimate.known(low, float(output.mean()), high, _plateau_words(plateau))
    return capacity, _running(loads, plateau, most)


def _sight(test: LoadTest, last: int, beyond: float | None) -> PeakEstimate | None:
    """The peak predicted from loads up to the plateau's last, below any heavier one that fell."""
    seen = test.loads.up_to(last)
    prior = test.prior
    if beyond is not None:
        prior = replace(prior, farthest=min(prior.farthest, beyond / seen.heaviest))
    return extrapolated_peak(seen, test.kv_limit, prior=prior)


def _plateau_words(plateau: Floats) -> str:
    if len(plateau) == 1:
        return (
            f"the best load, {plateau[0]:,.1f} running requests: heavier ones gave less; the "
            "interval is the range between the neighboring tested loads"
        )
    return (
        f"mean of the {len(plateau)} loads from {plateau[0]:,.1f} to {plateau[-1]:,.1f} running "
        "requests, over which throughput grew by no more than 5 %"
    )


def _between(loads: LoadPoints, last: int) -> str:
    """Why a single peak is not an answer, and which loads would determine it."""
    running, output = loads.running, loads.output
    lighter = running[last - 1] if last else 0.0
    return (
        f"throughput rose to {output[last]:,.0f} output tokens/s at {running[last]:,.1f} running "
        f"requests and was {output[last + 1]:,.0f} at {running[last + 1]:,.1f}: the peak lies "
        f"between {lighter:,.1f} and {running[last + 1]:,.1f}; test loads in between, or the "
        "heavier one again"
    )
