"""A server's capacity, its bottleneck, and its headroom.

The algorithm:

1. Every step of every engine gets a regime (`regimes.py`).
2. If the server was at its limit for a minute or more, its capacity is what it sustained then: the
   plateau (`plateau.py`). That is a measurement.
3. Otherwise, if load really varied and throughput bent (`capacity.py`), the loads are points of a
   curve (`curve.py`), and the peak is extrapolated with the interval that the bend allows, cut off
   where the KV cache would be full.
4. Otherwise the capacity is at least what the best minute proves, with a statement of how much more
   load is needed to determine it.
5. A fleet's capacity is the sum over its engines, each weighted by the time it was present; a lower
   bound if any of them is one.

Why not λ/σ of the fitted law: on a recorded sweep it gives 434 to 557 tokens/s, while the server
sustained 297. Why not the highest step: it is luck, and light load has a highest step too.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from functools import partial
from typing import Any, ClassVar

import numpy as np
import polars as pl
from msgspec import Struct
from msgspec.structs import replace

from vllm_capacity.estimate import Estimate, Figures
from vllm_capacity.figures.steps import Schema, engine_frames
from vllm_capacity.record import Record, many_records
from vllm_capacity.verdicts.saturation import regimes
from vllm_capacity.verdicts.saturation.arrays import Mask, time_mean
from vllm_capacity.verdicts.saturation.best_minute import BestMinute, best_minute
from vllm_capacity.verdicts.saturation.capacity import (
    best_minute_bound,
    blocks,
    bursts,
    dipped,
    easing,
    extrapolated,
    extrapolated_running,
    fleet_sum,
    has_bent,
    is_batch_small,
    is_easing,
    is_load_lasting,
    is_load_varied,
    no_less,
    slowed_at_limit,
    small_batch,
    steady,
    too_light,
    too_short,
    unbent,
    uneven,
)
from vllm_capacity.verdicts.saturation.curve import (
    FARTHEST_LOAD,
    WINDOW_PRIOR,
    LoadPoints,
    Prior,
    extrapolated_peak,
    fitted_usls,
    kv_limit_running,
)
from vllm_capacity.verdicts.saturation.loads import (
    LoadLevels,
    StepColumns,
    curve_steps,
    load_bands,
    load_levels,
)
from vllm_capacity.verdicts.saturation.plateau import ceiling, is_denied, plateau, slowed
from vllm_capacity.verdicts.saturation.regimes import EngineSteps
from vllm_capacity.verdicts.saturation.stretches import regime_rows, stretch_frame
from vllm_capacity.verdicts.utilization import headroom, utilization

CURVE_SCHEMA: Schema = {
    "running_requests": pl.Float64,
    "low": pl.Float64,
    "mid": pl.Float64,
    "high": pl.Float64,
}
MEASURED, EXTRAPOLATED, BORROWED = "measured", "extrapolated", "borrowed"
BOUNDED, UNKNOWN = "bounded", "unknown"
KINDS = (MEASURED, EXTRAPOLATED, BORROWED, BOUNDED, UNKNOWN)
"""How a capacity was found; for a fleet, the least certain kind of its engines, or bounded.

Measured: a sustained plateau. Extrapolated: a curve that bends. Borrowed: from peers that serve the
same model (peers.py). Bounded: what was observed is a lower bound. Or unknown.
"""

_CURVE_POINTS, _CURVE_RESAMPLES = 40, 60
_BAND_BLOCK = 3


class _WhenRead:
    """A field that may be set to a function, which is called for its value on the first read."""

    def __init__(self, field: Any) -> None:  # noqa: ANN401  the descriptor of the field
        self._field = field

    def __get__(self, one: object | None, owner: type) -> object:
        if one is None:
            return self
        held: object = self._field.__get__(one, owner)
        if callable(held):
            held = held()
            self._field.__set__(one, held)
        return held


class _Deferring(Record, frozen=True):
    """A result with fields that are computed on the first read, also to compare it."""

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self.as_dict() == other.as_dict()


class Stretch(_Deferring, frozen=True):
    """Consecutive steps of one engine under one regime, with a sentence that gives the numbers."""

    start: datetime
    end: datetime
    engine: str
    regime: str
    evidence: str

    @property
    def seconds(self) -> float:
        """Length in seconds."""
        return (self.end - self.start).total_seconds()


# Set afterwards: in the class, a descriptor would be taken for a default.
Stretch.evidence = _WhenRead(Stretch.evidence)  # type: ignore[assignment]


class RegimeTime(Struct, frozen=True):
    """How long one engine was in one regime, and the evidence of its longest stretch there.

    `share_ratio` is the share of that engine's judged time, 0..1.
    """

    engine: str
    regime: str
    seconds: float
    share_ratio: float
    evidence: str


class Imbalance(Record, frozen=True):
    """Engines at a limit, and engines of the same models that had room at that time."""

    limited: tuple[str, ...]
    free: tuple[str, ...]


class Saturation(_Deferring, Figures, frozen=True):
    """What limits the server, its capacity, and its headroom.

    `regime` is the one with the most busy time, `bottleneck` what limited the server longest in its
    busiest quarter, None if nothing did. `capacity_kind` is one of `KINDS`. `imbalance` names
    engines between which load could be balanced, None if there are none.
    """

    renamed: ClassVar[Mapping[str, str]] = {"first_limit": "bottleneck"}

    regime: str
    bottleneck: str | None
    regimes: tuple[Stretch, ...]
    capacity_kind: str
    capacity_output_tokens_per_second: Estimate
    capacity_running_requests: Estimate
    headroom_ratio: Estimate
    imbalance: Imbalance | None = None

    @property
    def capacity(self) -> Estimate:
        """The most output tokens per second that it can produce."""
        return self.capacity_output_tokens_per_second

    @property
    def regime_times(self) -> tuple[RegimeTime, ...]:
        """The time in each regime, by engine, the longest first; empty if no step was judged."""
        groups: dict[tuple[str, str], list[Stretch]] = {}
        whole: dict[str, float] = {}
        for each in self.regimes:
            groups.setdefault((each.engine, each.regime), []).append(each)
            whole[each.engine] = whole.get(each.engine, 0.0) + each.seconds
        found = []
        for (engine, regime), own in groups.items():
            seconds = sum(each.seconds for each in own)
            share = seconds / whole[engine] if whole[engine] else 0.0
            longest = max(own, key=lambda each: each.seconds)
            found.append(RegimeTime(engine, regime, seconds, share, longest.evidence))
        return tuple(sorted(found, key=lambda each: (each.engine, -each.seconds, each.regime)))


Saturation.regimes = _WhenRead(Saturation.regimes)  # type: ignore[assignment]


class SaturationFit(Struct, frozen=True):
    """One engine: its judged steps, the points and limits of its curve, and its capacity.

    `kind` says how the capacity was found (`KINDS`), `best` is the best minute. `kv_limit_running`
    is the load at which the KV cache would be full, None if unknown. `slowed` are the steps that
    gave far less than they should have: at the limit, less than the best minute; below it, less
    than lighter and heavier loads predict. `curve` are the steps that are points of the curve.
    `left_out` counts the steps with a gap or restart, which the curve does not use.
    """

    engine: str
    steps: EngineSteps
    curve: Mask
    levels: LoadLevels
    kv_limit_running: float | None
    capacity: Estimate
    capacity_running: Estimate
    kind: str
    best: BestMinute | None
    slowed: Mask
    left_out: int

    @property
    def regime(self) -> str:
        """The regime of most non-idle time."""
        return regimes.window_regime(self.steps)

    @property
    def heaviest_running(self) -> float | None:
        """The highest mean of running requests in any step of the curve; None without one."""
        running = self.steps.running_mean[self.curve]
        return float(running.max()) if len(running) else None

    @property
    def bottleneck(self) -> str | None:
        """The longest limit in the busiest quarter of the steps, or None."""
        return regimes.bottleneck(self.steps)

    def curve_frame(self, *, seed: int = 0) -> pl.DataFrame:
        """The fitted law with its 90 % band: running_requests, low, mid, high (output tokens/s).

        From the lightest load to the KV limit, or to the heaviest load if that is more or there is
        no limit. The band is a bootstrap in blocks of consecutive steps. Empty if there is nothing
        to fit.
        """
        if len(self.levels.loads) < 2:
            return pl.DataFrame(schema=CURVE_SCHEMA)
        law, *resampled = fitted_usls([self.levels.loads, *self._resampled(seed)])
        if law is None:
            return pl.DataFrame(schema=CURVE_SCHEMA)
        heaviest = self.levels.loads.heaviest
        end = max(heaviest, min(self.kv_limit_running or 0.0, FARTHEST_LOAD * heaviest))
        grid = np.linspace(float(self.levels.loads.running[0]), end, _CURVE_POINTS)
        mid = law.output(grid)
        curves = [mid, *(other.output(grid) for other in resampled if other is not None)]
        low, high = np.quantile(np.asarray(curves), [0.05, 0.95], axis=0)
        return pl.DataFrame(
            {
                "running_requests": grid,
                "low": np.minimum(low, mid),
                "mid": mid,
                "high": np.maximum(high, mid),
            },
            schema=CURVE_SCHEMA,
        )

    def _resampled(self, seed: int) -> list[LoadPoints]:
        """The loads of each resample, drawn in blocks of consecutive points."""
        curve = StepColumns.of(self.steps, self.curve)
        count = len(curve.running)
        if not count:
            return []
        rng = np.random.default_rng(seed)
        found = []
        for _ in range(_CURVE_RESAMPLES):
            starts = rng.integers(0, count, -(-count // _BAND_BLOCK))
            picks = (starts[:, None] + np.arange(_BAND_BLOCK)).ravel()[:count] % count
            found.append(load_levels(curve.at(picks)).loads)
        return found


def engine_fits(steps: pl.DataFrame, *, seed: int = 0) -> tuple[SaturationFit, ...]:
    """A fit for each engine of `steps` (`STEP_SCHEMA`), ordered by name; empty for no steps."""
    frames = engine_frames(steps)

    def fitted(engine: str) -> SaturationFit:
        return _engine_fit(engine, regimes.judged_steps(frames[engine]), seed)

    if len(frames) < 2:
        return tuple(map(fitted, frames))
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # numpy releases the GIL
        return tuple(pool.map(fitted, frames))


def saturation(
    steps: pl.DataFrame,
    *,
    seed: int = 0,
    used: Estimate | None = None,
    fits: Sequence[SaturationFit] | None = None,
    presence: Mapping[str, float] | None = None,
    capacities: Mapping[str, Estimate] | None = None,
    running: Mapping[str, Estimate] | None = None,
    models: Mapping[str, str] | None = None,
) -> Saturation:
    """The saturation verdict, for steps in the columns of `STEP_SCHEMA`.

    `headroom_ratio` = 1 − utilization, either the given one (`used`, from the bill) or that of the
    mean rate of the steps. `fits` avoids repeating `engine_fits`. `presence` is the share of the
    window in which each engine was present, by name; without it all were present throughout.
    `capacities` and `running` are the engines' capacities and running requests, completed from
    peers (peers.py). `models` is the model that each engine serves, by name; without it all serve
    the same.
    """
    fits = engine_fits(steps, seed=seed) if fits is None else fits
    each = capacities or {f.engine: f.capacity for f in fits}
    capacity = fleet_sum(each, presence=presence)
    used = utilization(_output_rate(fits), capacity) if used is None else used
    limits = [limit for f in fits if (limit := f.bottleneck) is not None]
    loads = running or {f.engine: f.capacity_running for f in fits}
    judged = {f.engine: f.steps for f in fits}
    return Saturation(
        regime=regimes.worst([f.regime for f in fits]) if fits else regimes.UNKNOWN,
        bottleneck=regimes.worst(limits) if limits else None,
        regimes=partial(_stretches, judged),  # type: ignore[arg-type]  # see _WhenRead
        capacity_kind=_fleet_kind(capacity, fits, each),
        capacity_output_tokens_per_second=capacity,
        capacity_running_requests=fleet_sum(loads, presence=presence),
        headroom_ratio=headroom(used),
        imbalance=imbalance(stretch_frame(judged), models),
    )


def _stretches(judged: Mapping[str, EngineSteps]) -> tuple[Stretch, ...]:
    """The stretches of each engine, by name; many engines over weeks have hundreds of thousands."""
    with many_records():
        rows = (row for engine, steps in judged.items() for row in regime_rows(engine, steps))
        return tuple(Stretch(*row) for row in rows)  # type: ignore[arg-type]  # see _WhenRead


def imbalance(stretches: pl.DataFrame, models: Mapping[str, str] | None = None) -> Imbalance | None:
    """The engines between which load could be balanced; None if there are none.

    `stretches` has a row per stretch: start, end, engine, regime (`stretch_frame`). Only engines of
    one model are compared (`models`: the model of each, by name; without it all serve the same),
    because others cannot take its requests. An engine has room if it was idle, or had fewer
    requests than it could take, and was never at a limit.
    """
    serves = models or {}
    at_limit = stretches.filter(pl.col("regime").is_in(regimes.LIMITS))
    limited = set(at_limit.get_column("engine").unique())
    is_with_room = pl.col("regime").is_in([regimes.IDLE, regimes.CLIENT])
    with_room = stretches.filter(is_with_room, ~pl.col("engine").is_in(list(limited)))
    engines = limited.union(with_room.get_column("engine").unique())
    full: set[str] = set()
    free: set[str] = set()
    for model in {serves.get(engine) for engine in limited}:
        alike = [engine for engine in engines if serves.get(engine) == model]
        own, others = (of.filter(pl.col("engine").is_in(alike)) for of in (at_limit, with_room))
        full |= _overlapping(own, others)
        free |= _overlapping(others, own)
    return Imbalance(tuple(sorted(full)), tuple(sorted(free))) if free else None


def _overlapping(some: pl.DataFrame, others: pl.DataFrame) -> set[str]:
    """The engines of `some` that overlap in time with any of the others."""
    if others.is_empty():
        return set()
    ordered = others.sort("start").with_columns(pl.col("end").cum_max())
    begun = ordered.get_column("start").search_sorted(some.get_column("end"), side="left")
    latest_end = ordered.get_column("end").gather((begun.cast(pl.Int64) - 1).clip(0))
    is_at_once = (begun > 0) & (latest_end > some.get_column("start"))
    return set(some.filter(is_at_once).get_column("engine").unique())


def _fleet_kind(
    capacity: Estimate, fits: Sequence[SaturationFit], each: Mapping[str, Estimate]
) -> str:
    """How the sum was found: bounded if it is a bound, even if some idle engine is unknown."""
    if capacity.is_bound:
        return BOUNDED
    kinds = (
        BORROWED if each[f.engine].is_known and not f.capacity.is_known else f.kind for f in fits
    )
    return max(kinds, key=KINDS.index, default=UNKNOWN)


def _engine_fit(engine: str, steps: EngineSteps, seed: int) -> SaturationFit:
    curve = curve_steps(steps)
    levels = load_levels(StepColumns.of(steps, curve))
    loads = levels.loads
    kv_limit = kv_limit_running(loads.running, levels.kv_ratio) if len(loads) else None
    best = best_minute(steps)
    slow = slowed(steps, best)
    measured = plateau(steps, best=best, slow=slow, seed=seed)
    if measured is not None and is_denied(measured, best):
        capacity, running = best_minute_bound(best, slowed_at_limit(measured.output))
        kind = BOUNDED
    elif measured is not None:
        capacity, running, kind = measured.output, measured.running, MEASURED
    else:
        capacity, running, kind = _not_reached(steps, loads, kv_limit, best)
    return SaturationFit(
        engine=engine,
        steps=steps,
        curve=curve,
        levels=levels,
        kv_limit_running=kv_limit,
        capacity=capacity,
        capacity_running=running,
        kind=kind,
        best=best,
        slowed=slow if slow.any() else _dip(steps, curve, loads),
        left_out=int(np.count_nonzero(steps.is_gap | steps.is_restart)),
    )


def _dip(steps: EngineSteps, curve: Mask, loads: LoadPoints) -> Mask:
    """The steps of the load whose output fell below what its neighbors predict."""
    found, dip = np.zeros(len(steps), bool), dipped(loads)
    for band in load_bands(steps, curve) if dip is not None else []:
        if np.median(steps.running[band]) == dip:
            found[band] = True
            break
    return found


def _not_reached(
    steps: EngineSteps, loads: LoadPoints, kv_limit: float | None, best: BestMinute | None
) -> tuple[Estimate, Estimate, str]:
    """Capacity, its running requests and their kind, for an engine without a plateau."""
    capacity = _extrapolated(steps, loads, kv_limit, best)
    if capacity.is_known:
        return capacity, extrapolated_running(capacity, loads, kv_limit), EXTRAPOLATED
    capacity, running = best_minute_bound(best, too_short(capacity, steps))
    return capacity, running, BOUNDED if capacity.is_bound else UNKNOWN


def _extrapolated(
    steps: EngineSteps, loads: LoadPoints, kv_limit: float | None, best: BestMinute | None
) -> Estimate:
    """The peak from the bend of the curve, if the window reveals it; else unknown, and why."""
    if not len(loads):
        return too_light(steps)
    found = blocks(steps)
    if found is None or not is_load_varied(found):
        return steady(steps)
    if not is_load_lasting(found):
        return bursts(steps)
    if not has_bent(found):
        return unbent(loads)
    dip = dipped(loads)
    if dip is not None:
        return uneven(dip)
    if is_easing(loads, kv_limit):
        return easing(loads)
    if is_batch_small(loads, kv_limit):
        return small_batch(loads, kv_limit)
    peak_estimate = extrapolated_peak(loads, kv_limit, prior=_prior(steps, loads))
    peak = extrapolated(peak_estimate, loads, kv_limit)
    return peak if best is None else no_less(peak, best)


def _prior(steps: EngineSteps, loads: LoadPoints) -> Prior:
    """The default prior, with no peak beyond the load at which the server held requests back."""
    most = ceiling(steps)
    if most is None:
        return WINDOW_PRIOR
    farthest = min(WINDOW_PRIOR.farthest, max(1.0, most / loads.heaviest))
    return replace(WINDOW_PRIOR, farthest=farthest)


def _output_rate(fits: Sequence[SaturationFit]) -> float | None:
    """Mean output tokens/s over time, summed over engines; None if no step observed it."""
    rates = [time_mean(fit.steps.output_tokens_per_second, fit.steps.seconds) for fit in fits]
    known = [rate for rate in rates if rate is not None]
    return sum(known) if known else None
