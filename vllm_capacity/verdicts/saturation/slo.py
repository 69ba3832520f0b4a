"""What the server can do within its latency targets, and whether it is falling behind right now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from itertools import pairwise, takewhile

import numpy as np
import polars as pl
from msgspec import Struct
from msgspec.structs import replace

from vllm_capacity.assumptions import TARGETS, Slo
from vllm_capacity.estimate import Estimate
from vllm_capacity.figures.steps import engine_frames
from vllm_capacity.verdicts.saturation.arrays import (
    Floats,
    Indices,
    Mask,
    is_seen,
    or_zero,
    summed,
    total,
)
from vllm_capacity.verdicts.saturation.capacity import (
    blocks,
    fleet_sum,
    is_load_lasting,
    is_load_varied,
)
from vllm_capacity.verdicts.saturation.fit import MEASURED, SaturationFit
from vllm_capacity.verdicts.saturation.loads import load_bands
from vllm_capacity.verdicts.saturation.peers import (
    SPREAD_RATIO,
    Lenders,
    completed,
    unloaded,
)
from vllm_capacity.verdicts.saturation.regimes import EngineSteps

_SIGNIFICANCE = 0.05
_MIN_SLOPE_STEPS = 5
_MIN_STEPS = 3.0
_FALLEN = 1.05
_CLEAR, _ALMOST_ALL = 0.7, 0.9
_MORE, _WIDEST = 1.05, 2.5
_CHANGE = 0.25


class Oversaturation(Struct, frozen=True):
    """Whether queue and TTFT both grow significantly over time, with evidence; None if unknown."""

    is_oversaturating: bool | None
    evidence: str


class _Load(Struct, frozen=True):
    """Steps of similar load: `met` is the share of them that met every target."""

    steps: int
    running: float
    output: float
    ratios: tuple[float, ...]
    met: float

    @property
    def worst(self) -> float:
        """The highest p95 ÷ target: above 1 a target is missed."""
        return max(self.ratios)

    @property
    def is_clearly_met(self) -> bool:
        """Whether most of its steps met the targets: more than the noise of a p95 explains."""
        return self.met >= _CLEAR

    @property
    def is_clearly_missed(self) -> bool:
        """Whether few of its steps met them."""
        return self.met <= 1 - _CLEAR


def slo_throughput(
    fits: Sequence[SaturationFit],
    slo: Slo,
    *,
    presence: Mapping[str, float] | None = None,
    lent_by: Lenders | None = None,
    capacities: Mapping[str, Estimate] | None = None,
    parts: Mapping[str, Estimate] | None = None,
) -> Estimate:
    """The highest throughput, output tokens/s, at which p95 TTFT and p95 ITL meet their targets.

    It lies between the heaviest load below which every load met them and the lightest above which
    none did. It is at least the output of any load that met them (throughput may fall with load),
    and never more than the capacity without targets. Only a lower bound is given if the upper end
    is far away, gives no more output, or was not observed. A load is a band of running requests, or
    all steps with the server at its limit (where load shows in the queue, not in running requests);
    its p95 is the median of its steps'. Steady or bursty traffic counts as one load: a lower or
    upper bound at its mean. Engines are added, each weighted by its `presence` (`fleet_sum`), and
    completed from the peers in `lent_by`. `parts` avoids repeating `throughputs`. Unknown if no
    target is given, or none was met.
    """
    if not slo.targets:
        return Estimate.unknown("no latency target was given")
    if parts is None:
        parts = throughputs(fits, slo, lent_by=lent_by or {}, capacities=capacities or {})
    return fleet_sum(
        parts, presence=presence, lacking="throughput within the targets is not known on {} engines"
    )


def throughputs(
    fits: Sequence[SaturationFit],
    slo: Slo,
    *,
    lent_by: Lenders,
    capacities: Mapping[str, Estimate],
) -> dict[str, Estimate]:
    """What each engine can serve within its targets, by name, completed from its peers (peers.py).

    A replica that is a tenth slower misses a target where its peer would miss one that is a tenth
    stricter, at a tenth less throughput. What is borrowed is capped at the engine's entry in
    `capacities`. At least one target must be given.
    """
    own = _each_within(fits, slo, 1.0)
    lending = frozenset(peer for peers in lent_by.values() for peer in peers)
    if not lending:
        return own
    lenders = [fit for fit in fits if fit.engine in lending]
    found = completed(
        own,
        lent_by,
        idle=unloaded(fits),
        slower=own | _each_within(lenders, slo, 1 / (1 + SPREAD_RATIO)),
        faster=own | _each_within(lenders, slo, 1 + SPREAD_RATIO),
    )
    return {
        name: each if each == own[name] else each.capped(capacities.get(name, each))
        for name, each in found.items()
    }


def _each_within(fits: Sequence[SaturationFit], slo: Slo, factor: float) -> dict[str, Estimate]:
    """What each engine itself showed within `factor` times its targets."""
    wanted = {name: factor * target for name, target in slo.targets.items()}
    return {fit.engine: _engine_throughput(fit, wanted) for fit in fits}


class SloLoad(Struct, frozen=True):
    """One load of an engine: its output, and each p95 over its target (None: no target)."""

    running: float
    output_tokens_per_second: float
    itl_ratio: float | None = None
    ttft_ratio: float | None = None

    @property
    def worst(self) -> float:
        """The larger of the ratios: above 1 a target is missed."""
        ratios = [ratio for ratio in (self.itl_ratio, self.ttft_ratio) if ratio is not None]
        return max(ratios, default=0.0)


def slo_loads(fit: SaturationFit, slo: Slo) -> tuple[SloLoad, ...]:
    """The loads of an engine, lightest first, with their p95 over the targets.

    Empty without targets, or if no load has the latencies that they need.
    """
    wanted = slo.targets
    return _slo_loads(_measured_loads(fit, wanted), slo) if wanted else ()


def _slo_loads(loads: Sequence[_Load], slo: Slo) -> tuple[SloLoad, ...]:
    places = {name: place for place, name in enumerate(slo.targets)}

    def ratio(load: _Load, name: str) -> float | None:
        return load.ratios[places[name]] if name in places else None

    return tuple(
        SloLoad(
            load.running,
            load.output,
            ratio(load, "itl_p95_seconds"),
            ratio(load, "ttft_p95_seconds"),
        )
        for load in sorted(loads, key=lambda load: load.running)
    )


def slo_load_near(fit: SaturationFit, slo: Slo, running: float) -> SloLoad | None:
    """The load of an engine nearest to that many running requests; all steps if they are one load.

    None without targets, or if no step has the latencies that they need.
    """
    loads = slo_loads(fit, slo)
    points = np.flatnonzero(_points(fit, slo.targets))
    if not loads and slo.targets and len(points):
        loads = _slo_loads([_load(fit.steps, points, slo.targets)], slo)
    return min(loads, key=lambda load: abs(load.running - running), default=None)


def load_met(fits: Sequence[SaturationFit]) -> tuple[float, float] | None:
    """The mean concurrency that requests met, at least 1, and an engine's output tokens/s there.

    Σ running² ÷ Σ running over time, and that ÷ the seconds per token of one request, which are
    Σ running ÷ output tokens (Little's law). None if nothing was served.
    """
    squares = busy = tokens = 0.0
    for fit in fits:
        seen = is_seen(fit.steps.running) & is_seen(fit.steps.output_tokens_per_second)
        running, seconds = fit.steps.running[seen], fit.steps.seconds[seen]
        squares += float(np.sum(running**2 * seconds))
        busy += float(np.sum(running * seconds))
        tokens += float(np.sum(fit.steps.output_tokens_per_second[seen] * seconds))
    if not busy or not tokens:
        return None
    met = max(squares / busy, 1.0)
    return met, met * tokens / busy


def running_within(fits: Sequence[SaturationFit], slo: Slo) -> float | None:
    """Running requests of all engines at the throughput within these targets.

    An engine without such a throughput counts as the mean of those that have one; None if none has.
    """
    found = []
    for fit in fits:
        throughput = slo_throughput([fit], slo).mid
        found.append(None if throughput is None else running_at(fit, throughput))
    known = [each for each in found if each is not None]
    return sum(known) / len(known) * len(found) if known else None


def running_at(fit: SaturationFit, output_tokens_per_second: float) -> float | None:
    """Running requests at which one engine gives that output, interpolated between its loads.

    Interpolation is linear, between the loads of `slo_throughput`. If no two enclose the output,
    the nearest one; None without a load.
    """
    loads = _measured_loads(fit, {})
    for lighter, heavier in pairwise(loads):
        less, most = lighter.output, heavier.output
        if less < most and less <= output_tokens_per_second <= most:
            share = (output_tokens_per_second - less) / (most - less)
            return lighter.running + share * (heavier.running - lighter.running)
    nearest = min(loads, key=lambda load: abs(load.output - output_tokens_per_second), default=None)
    return None if nearest is None else nearest.running


def is_oversaturating(steps: pl.DataFrame) -> Oversaturation:
    """The two-slope test over the given steps: queue and TTFT both grow, each with p < 0.05.

    One-sided t-tests of the slopes of waiting requests and of p95 TTFT over time, per engine; the
    fleet is over-saturated if any engine is. A threshold on either alone would misread a burst, or
    a change of prompts. Correlated steps count for fewer: n (1 − r) ÷ (1 + r), with r the
    correlation of neighbors' residuals (Bayley and Hammersley 1946, for one lag). None if every
    engine has fewer than five steps with both.
    """
    found = [_two_slopes(engine, own) for engine, own in engine_frames(steps).items()]
    known = [one for one in found if one.is_oversaturating is not None]
    if not known:
        evidence = " ".join(one.evidence for one in found) or "No engine was observed."
        return Oversaturation(None, evidence)
    guilty = [one for one in known if one.is_oversaturating]
    return Oversaturation(bool(guilty), " ".join(one.evidence for one in guilty or known))


def _measured_loads(fit: SaturationFit, wanted: Mapping[str, float]) -> list[_Load]:
    """The loads of one engine, lightest first, that have every required p95.

    Steps in the wake of a limit (`_wakes`), or in which load changed (`_changes`), are not loads.
    """
    settled = _points(fit, wanted) & ~_wakes(fit.steps) & ~_changes(fit.steps.running)
    return [_load(fit.steps, group, wanted) for group in _groups(fit.steps, settled)]


def _points(fit: SaturationFit, wanted: Mapping[str, float]) -> Mask:
    """The points of the engine's curve that have every required p95."""
    found = fit.curve.copy()
    for name in wanted:
        found &= is_seen(fit.steps.column(name))
    return found


def _load(steps: EngineSteps, group: Indices, wanted: Mapping[str, float]) -> _Load:
    latencies = {name: steps.column(name)[group] for name in wanted}
    met = np.ones(len(group), bool)
    for name, slo in wanted.items():
        met &= latencies[name] <= slo
    return _Load(
        len(group),
        float(np.median(steps.running[group])),
        float(np.median(steps.output_tokens_per_second[group])),
        tuple(float(np.median(latencies[name])) / slo for name, slo in wanted.items()),
        int(met.sum()) / len(group),
    )


def _wakes(steps: EngineSteps) -> Mask:
    """The steps just before a limit began, or less than a request lifetime after it ended.

    The former are not at the limit throughout. The latter run requests that had waited, without
    prefills between their tokens.
    """
    is_limited = steps.is_limited
    seconds = steps.seconds[is_limited]
    finished = total(steps.requests_per_second[is_limited], seconds)
    ran = total(steps.running[is_limited], seconds)
    lifetime = np.timedelta64(timedelta(seconds=ran / finished if finished else 0.0))
    places = np.arange(len(steps))
    limit_before = np.maximum.accumulate(np.where(is_limited, places, -1))
    found = (limit_before >= 0) & (steps.start <= steps.end[limit_before] + lifetime)
    found[:-1] |= is_limited[1:]
    return found & ~is_limited


def _changes(running: Floats) -> Mask:
    """The steps whose load differs from that of a neighbor by more than chance.

    Such a step is light in one part and heavy in another: its p95 is that of the heavy part, its
    throughput that of neither.
    """
    running = or_zero(running)
    change, chance = np.abs(np.diff(running)), _CHANGE * running + 2 * np.sqrt(running)
    found = np.zeros(len(running), bool)
    found[:-1] |= change > chance[:-1]
    found[1:] |= change > chance[1:]
    return found


def _groups(steps: EngineSteps, which: Mask) -> list[Indices]:
    """Steps by load: bands of similar steps, then all with the server at its limit as one."""
    groups = load_bands(steps, which & ~steps.is_limited)
    limited = np.flatnonzero(which & steps.is_limited)
    return [*groups, limited] if len(limited) else groups


def _engine_throughput(fit: SaturationFit, wanted: Mapping[str, float]) -> Estimate:
    loads = _measured_loads(fit, wanted)
    targets = " and ".join(f"p95 {TARGETS[name].label} ≤ {slo:g} s" for name, slo in wanted.items())
    if not loads:
        return Estimate.unknown(f"no observed load has the latencies to check {targets}")
    split = _first_miss(loads)
    if split == len(loads):
        return _never_missed(fit, loads, targets)
    if split == 0:
        return _one_load(fit, wanted, targets) or _always_missed(loads, targets)
    return _one_load(fit, wanted, targets) or _between(fit, loads, split, targets)


def _one_load(fit: SaturationFit, wanted: Mapping[str, float], targets: str) -> Estimate | None:
    """The result for steady or bursty load; None if load really varied and each load lasted.

    In its busy moments many requests happened to arrive at once, which a steady load at that rate
    would not cause. So all of it counts as one load, at its mean.
    """
    found = blocks(fit.steps)
    is_varied = found is not None and is_load_varied(found)
    if found is None or (is_varied and is_load_lasting(found)):
        return None
    points = np.flatnonzero(_points(fit, wanted))
    load = _load(fit.steps, points, wanted)
    seconds = fit.steps.seconds[points]
    mean = total(fit.steps.output_tokens_per_second[points], seconds) / summed(seconds)
    result = (
        f"the load {'came in bursts' if is_varied else 'was steady'}, {_rate(mean)} output "
        f"tokens/s on average, and {load.met * 100:.0f} % of its steps met {targets}; run several "
        "different loads that last to find the limit"
    )
    if load.met >= _ALMOST_ALL:
        return Estimate.at_least(
            _capped(mean, fit), f"{targets} met at the mean load", reason=result
        )
    if load.is_clearly_missed and not is_varied:
        return Estimate.at_most(mean, f"{targets} missed at the mean load", reason=result)
    return Estimate.unknown(result)


def _rate(value: float) -> str:
    """The rate in whole tokens/s; below ten with two digits, as light loads are not 0."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def _always_missed(loads: Sequence[_Load], targets: str) -> Estimate:
    lightest = loads[0]
    return Estimate.unknown(
        f"even the lightest load ({lightest.running:,.1f} running requests and "
        f"{_rate(lightest.output)} output tokens/s) missed {targets}: {lightest.worst:.1f} × the "
        "target"
    )


def _between(fit: SaturationFit, loads: Sequence[_Load], split: int, targets: str) -> Estimate:
    """The interval from the heaviest load below every miss to the lightest one above every hit.

    Loads of which only some steps met the targets are neither. If the upper load gave no more
    output, the upper end is the capacity without targets. Only a lower bound is given if there is
    no upper end, or if the ends are more than 2.5 × apart.
    """
    met, missed = loads[split - 1], loads[split]
    basis = (
        f"{targets}: met with {met.running:,.1f} running requests (at {met.worst * 100:.0f} % of "
        f"the nearest target), missed with {missed.running:,.1f} (at {missed.worst * 100:.0f} %)"
    )
    best = max((load.output for load in _below_every_miss(loads)), default=0.0)
    above = [load.output for load in _above_every_hit(loads) if load.output > _MORE * best]
    if not best:
        return Estimate.unknown(f"{basis}, but the loads in between contradict each other")
    high = above[0] if above else fit.capacity.high
    if high is None or high > _WIDEST * best:
        reason = f"{basis}; test loads in between to narrow this"
        return Estimate.at_least(_capped(best, fit), f"{targets} met", reason=reason)
    crossing = met.output + _crossing_share(met, missed) * (missed.output - met.output)
    high = max(high, best)
    return Estimate.known(best, min(high, max(best, crossing)), high, basis).capped(fit.capacity)


def _below_every_miss(loads: Sequence[_Load]) -> list[_Load]:
    """The loads that met the targets, lighter than the lightest that missed them."""
    lighter = takewhile(lambda load: not load.is_clearly_missed, loads)
    return [load for load in lighter if load.is_clearly_met]


def _above_every_hit(loads: Sequence[_Load]) -> list[_Load]:
    """The loads that missed the targets, heavier than the heaviest that met them."""
    heavier = list(takewhile(lambda load: not load.is_clearly_met, reversed(loads)))
    return [load for load in reversed(heavier) if load.is_clearly_missed]


def _capped(output: float, fit: SaturationFit) -> float:
    """A lower bound within the targets, capped at what the engine can do without any."""
    if fit.capacity.is_bound and fit.capacity.low is not None:
        return min(output, fit.capacity.low)
    return output if fit.capacity.high is None else min(output, fit.capacity.high)


def _crossing_share(met: _Load, missed: _Load) -> float:
    """Where the first target is crossed between the met and the missed load, 0 to 1, linearly."""
    shares = [
        (1 - below) / (above - below)
        for below, above in zip(met.ratios, missed.ratios, strict=True)
        if above > 1 and above > below
    ]
    return min(1.0, max(0.0, min(shares, default=0.0)))


def _never_missed(fit: SaturationFit, loads: Sequence[_Load], targets: str) -> Estimate:
    """The plateau, if the server reached it within its targets; else the best load as a bound."""
    if fit.kind == MEASURED:
        return replace(fit.capacity, basis=(f"{targets} met up to saturation", *fit.capacity.basis))
    best = max(loads, key=lambda load: load.output)
    more = "test a heavier load to find the limit"
    if best.output > _FALLEN * loads[-1].output:
        more = (
            f"past {best.running:,.1f} running requests throughput fell; test loads near there to "
            "find the limit"
        )
    return Estimate.at_least(
        _capped(best.output, fit),
        f"{targets} met at {best.running:,.1f} running requests",
        reason=f"{targets} met at every observed load, up to {loads[-1].running:,.1f} running "
        f"requests; {more}",
    )


def _first_miss(loads: Sequence[_Load]) -> int:
    """The index of the first load that misses: the split that contradicts the fewest steps."""

    def contradictions(split: int) -> int:
        return sum(load.steps for load in loads[:split] if load.worst > 1) + sum(
            load.steps for load in loads[split:] if load.worst <= 1
        )

    return min(range(len(loads) + 1), key=contradictions)


def _two_slopes(engine: str, steps: pl.DataFrame) -> Oversaturation:
    seen = steps.drop_nulls(["waiting_mean", "ttft_p95_seconds"])
    if seen.height < _MIN_SLOPE_STEPS:
        return Oversaturation(
            None,
            f"{engine}: {seen.height} steps with a queue and a TTFT; it takes {_MIN_SLOPE_STEPS}.",
        )
    since = seen["start"].to_numpy()
    seconds = (since - since[0]) / np.timedelta64(1, "s")
    queue, ttft = (
        _slope(seconds, seen[name].to_numpy()) for name in ("waiting_mean", "ttft_p95_seconds")
    )
    evidence = (
        f"{engine}: waiting changed by {60 * queue[0]:+.1f} requests per minute "
        f"(p = {queue[1]:.2g}) and p95 TTFT by {60 * ttft[0]:+.1f} s per minute "
        f"(p = {ttft[1]:.2g})."
    )
    return Oversaturation(queue[1] < _SIGNIFICANCE and ttft[1] < _SIGNIFICANCE, evidence)


def _slope(seconds: Floats, series: Floats) -> tuple[float, float]:
    """Slope per second and the one-sided p-value that it is positive; 0 and 1 for a constant.

    Least squares, with a t-test on the effective number of steps given the residuals' lag-one
    correlation.
    """
    if series.max() == series.min():
        return 0.0, 1.0
    from scipy.special import stdtr  # slow to import; scipy.stats would take half a second more

    since = seconds - seconds.mean()
    slope = float(since @ (series - series.mean()) / (since @ since))
    rest = series - series.mean() - slope * since
    if not rest.any():
        return slope, 0.0 if slope > 0 else 1.0
    alike = max(0.0, float(rest[1:] @ rest[:-1]) / float(rest @ rest))
    steps = max(_MIN_STEPS, len(rest) * (1 - alike) / (1 + alike))
    t = slope * np.sqrt((steps - 2) * (since @ since) / (rest @ rest))
    return slope, float(stdtr(steps - 2, -t))
