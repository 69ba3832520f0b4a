"""Capacities as estimates: extrapolation, sums, headroom, and reasons for unknown ones.

An unknown capacity states, in numbers, how much more load is needed to determine it.

Also the tests of whether a window reveals a capacity that it did not reach: did load vary, and did
throughput bend?

A curve can be drawn through any scatter, and at a steady load the scatter is chance. Six conditions
must hold before a peak is extrapolated:

1. *The load really varied.* Requests that arrive at a constant rate finish in numbers that scatter
   like a Poisson count. Finished requests in blocks of a minute or more must scatter more than that
   (chi-square dispersion test at about 0.1 %), and the rate itself must vary by a fifth or more.
2. *Each load lasted* (`is_load_lasting`); otherwise running requests and output do not match.
3. *Throughput bent.* The time per token was longer at heavy loads than at light ones, by at least a
   seventh and by more than blocks scatter: running requests ÷ output, each summed over blocks. On a
   lightly loaded server that ratio is flat, and the knee may lie at any higher load.
4. *It bends towards a limit*: each further request slows tokens no less than the ones before
   (`is_easing`).
5. *Batches were large enough*, or the memory would not hold far larger ones (`is_batch_small`).
6. *The loads lie on one curve.* Throughput is concave in load: no load gives less than lighter and
   heavier ones predict (`dipped`); otherwise something outside slowed the server for a while.

If any fails, what was observed is a lower bound, and nothing more can be determined. Source: the
index of dispersion, Cox and Lewis 1966, §6.3.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from vllm_capacity.estimate import Estimate, Kind, total
from vllm_capacity.verdicts.saturation.arrays import (
    Floats,
    Mask,
    highest,
    is_seen,
    summed,
    time_mean,
)
from vllm_capacity.verdicts.saturation.best_minute import MINUTE_SECONDS, BestMinute
from vllm_capacity.verdicts.saturation.curve import (
    FARTHEST_LOAD,
    MIN_LOADS,
    MIN_SPAN,
    LoadPoints,
    PeakEstimate,
)
from vllm_capacity.verdicts.saturation.plateau import MIN_PLATEAU_SECONDS
from vllm_capacity.verdicts.saturation.regimes import EngineSteps
from vllm_capacity.verdicts.utilization import NOT_REACHED

_BLOCK_SECONDS = 60.0
_LIFETIMES = 2.0
_MIN_COUNT = 5.0
_MIN_BLOCKS = 3
_SIGNIFICANT = 3.1
_MIN_VARIATION = 0.2
_MIN_CORRELATION = 0.5
_LIGHT, _MIN_LOADS_A_PART = 1 / 3, 2
_EASING_NEAR, _EASING_FAR, _FAR_LIMIT = 0.6, 0.85, 4.0
_MIN_BATCH = 16.0
_MIN_BEND, _BEND_ERRORS = 1.15, 2.5
_MIN_DIP, _DIP_ERRORS = 0.1, 1.5


class Blocks(Struct, frozen=True):
    """Consecutive usable steps summed: seconds, finished requests, running × s, tokens."""

    seconds: Floats
    requests: Floats
    running_seconds: Floats
    tokens: Floats

    def __len__(self) -> int:
        return len(self.seconds)


def blocks(steps: EngineSteps) -> Blocks | None:
    """Blocks of at least a minute, two request lifetimes and five requests; None if too few.

    They consist of the usable steps of one engine; a block may span a hole.
    """
    is_known = is_seen(steps.requests_per_second) & is_seen(steps.running)
    seen = np.flatnonzero(steps.is_usable & is_known)
    seconds = steps.seconds[seen]
    rates = (steps.requests_per_second, steps.running, steps.output_tokens_per_second)
    columns = np.column_stack([seconds, *(rate[seen] * seconds for rate in rates)])
    whole, requests, running, _ = columns.sum(0)
    if not requests:
        return None
    least = max(_BLOCK_SECONDS, _LIFETIMES * running / requests, _MIN_COUNT * whole / requests)
    begun = np.cumsum(seconds) - seconds
    firsts = np.flatnonzero(np.diff(np.floor(begun / least), prepend=-1))
    if len(firsts) < _MIN_BLOCKS:
        return None
    return Blocks(*np.add.reduceat(columns, firsts, axis=0).T)


def is_load_varied(found: Blocks) -> bool:
    """Whether request rates differ by more than chance, and by enough to matter."""
    expected = found.seconds * found.requests.sum() / found.seconds.sum()
    freedom = len(found) - 1
    dispersion = float(((found.requests - expected) ** 2 / expected).sum()) / freedom
    # Wilson and Hilferty's cube root makes a chi-square approximately normal.
    ninth = 2 / (9 * freedom)
    score = (dispersion ** (1 / 3) - (1 - ninth)) / math.sqrt(ninth)
    variation = math.sqrt(max(0.0, dispersion - 1) / float(expected.mean()))
    return score > _SIGNIFICANT and variation >= _MIN_VARIATION


def is_load_lasting(found: Blocks) -> bool:
    """Whether a block's request rate may be correlated with that of the block before.

    Loads no longer than a block are bursts: prompts are read first and answered later, so running
    requests and output at one time do not match. They make the curve of any server look bent.
    """
    rates = found.requests / found.seconds
    off = rates - rates.mean()
    correlation = float(off[1:] @ off[:-1]) / float(off @ off)
    return correlation + 1.64 / math.sqrt(len(rates)) >= _MIN_CORRELATION


def has_bent(found: Blocks) -> bool:
    """Whether a token took clearly longer in the most loaded blocks than in the least loaded."""
    is_busy = found.tokens > 0
    running, tokens = found.running_seconds[is_busy], found.tokens[is_busy]
    load = running / found.seconds[is_busy]
    if len(load) < _MIN_BLOCKS:
        return False
    light, heavy = load <= np.quantile(load, 0.5), load >= np.quantile(load, 0.8)
    growth = _step_time(running[heavy], tokens[heavy]) / _step_time(running[light], tokens[light])
    error = math.hypot(_scatter(running, tokens, heavy), _scatter(running, tokens, light))
    return growth >= _MIN_BEND and growth >= 1 + _BEND_ERRORS * error * growth


def is_limit_far(loads: LoadPoints, kv_limit: float | None) -> bool:
    """Whether the KV cache would hold several times the heaviest load, or its limit is unknown."""
    return kv_limit is None or kv_limit > _FAR_LIMIT * loads.heaviest


def is_batch_small(loads: LoadPoints, kv_limit: float | None) -> bool:
    """Whether too few requests ran at once to show how steps lengthen, while far more would fit.

    A mixture of experts that sends each token to one in sixteen experts reads more experts with
    every request up to the first sixteen, and hardly more after that: up to there it bends like a
    server near its limit.
    """
    return loads.heaviest < _MIN_BATCH and is_limit_far(loads, kv_limit)


def is_easing(loads: LoadPoints, kv_limit: float | None) -> bool:
    """Whether each further request slows tokens less at heavy loads than at light ones.

    Near a limit, each slows them as much or more. A mixture of experts eases until every step reads
    all experts, and the behavior after that cannot be determined from before. The farther the limit
    of the KV cache, the less easing is needed. Loads under one running request are left out: a
    single request is not slowed by others.
    """
    step_times = loads.running / loads.output
    is_light = (loads.running >= 1) & (loads.running <= loads.heaviest * _LIGHT)
    is_heavy = loads.running > loads.heaviest * _LIGHT
    if not is_heavy.any():
        return False
    is_light[is_heavy.argmax()] = True  # the two parts share the load at their boundary
    if is_light.sum() < _MIN_LOADS_A_PART or is_heavy.sum() < _MIN_LOADS_A_PART:
        return False
    light, heavy = (
        float(np.polyfit(loads.running[part], step_times[part], 1)[0])
        for part in (is_light, is_heavy)
    )
    return heavy < (_EASING_FAR if is_limit_far(loads, kv_limit) else _EASING_NEAR) * light


def dipped(loads: LoadPoints) -> float | None:
    """The load whose output falls most below what its neighbors predict; None if none does.

    Throughput is concave in load, so a load gives no less than the straight line between a lighter
    and a heavier one. A shortfall of more than a tenth plus its scatter is not chance: something
    outside slowed the server at that load, and the loads do not lie on one curve.
    """
    if len(loads) < _MIN_BLOCKS:
        return None
    running, output = _upper_hull(np.append(0, loads.running), np.append(0, loads.output))
    ratio = loads.output / np.interp(loads.running, running, output)
    short = ratio - (1 - _MIN_DIP - _DIP_ERRORS * loads.error)
    lowest = int(np.argmin(short))
    return float(loads.running[lowest]) if short[lowest] < 0 else None


def _upper_hull(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """The points on the smallest concave curve above all of them; x ascending."""
    hull: list[tuple[float, float]] = []
    for point in zip(x.tolist(), y.tolist(), strict=True):
        while len(hull) > 1 and _is_under(hull[-2], hull[-1], point):
            hull.pop()
        hull.append(point)
    ends = np.asarray(hull)
    return ends[:, 0], ends[:, 1]


def _is_under(
    left: tuple[float, float], middle: tuple[float, float], right: tuple[float, float]
) -> bool:
    rise = (middle[1] - left[1]) * (right[0] - left[0])
    return rise <= (right[1] - left[1]) * (middle[0] - left[0])


def _step_time(running_seconds: Floats, tokens: Floats) -> float:
    """Seconds per output token of a running request, over all given blocks."""
    return float(running_seconds.sum() / tokens.sum())


def _scatter(running_seconds: Floats, tokens: Floats, which: Mask) -> float:
    """The relative standard error of `_step_time` over the blocks; 0 for a single one."""
    each = running_seconds[which] / tokens[which]
    if len(each) < 2:
        return 0.0
    return float(each.std(ddof=1) / each.mean() / math.sqrt(len(each)))


_KV_LOAD_WIDTH = 0.15
_MIN_TELLING = 8.0
_FULL_MINUTE = 0.9
_MAX_SOURCES = 3


def extrapolated(
    peak_estimate: PeakEstimate | None, loads: LoadPoints, kv_limit: float | None
) -> Estimate:
    """The peak predicted from lighter load as an estimate, or how much more load is needed."""
    if peak_estimate is None:
        return Estimate.unknown(_too_few(loads))
    cut = ""
    if kv_limit is not None and kv_limit < FARTHEST_LOAD * loads.heaviest:
        cut = f", cut where the KV cache would be full, at {kv_limit:,.1f} running requests"
    heaviest = f"{loads.heaviest:,.1f} running requests and {loads.output[-1]:,.0f} output tokens/s"
    if peak_estimate.is_answer:
        return Estimate.known(
            peak_estimate.low,
            peak_estimate.mid,
            peak_estimate.high,
            f"extrapolated from {len(loads)} lighter loads, up to {heaviest}, "
            f"by how the curve bends{cut}",
            kind=Kind.EXTRAPOLATED,
        )
    need = _load_needed(peak_estimate, loads, kv_limit)
    return Estimate.unknown(
        f"throughput has not leveled off enough yet: by the observed loads (up to {heaviest}), the "
        f"peak could be anywhere from {peak_estimate.low:,.0f} to {peak_estimate.high:,.0f} "
        f"tokens/s. Finding it would take about {need:,.1f} running requests, "
        f"{need / loads.heaviest:.1f} × the heaviest observed load."
    )


def extrapolated_running(capacity: Estimate, loads: LoadPoints, kv_limit: float | None) -> Estimate:
    """The load at the predicted peak: known only if the KV cache ends the curve."""
    if not capacity.is_known:
        return Estimate.unknown(capacity.reason)
    if kv_limit is None or kv_limit > FARTHEST_LOAD * loads.heaviest:
        return Estimate.unknown(
            "the load at the extrapolated peak is not known, only that it is at least "
            f"{loads.heaviest:,.1f} running requests"
        )
    return Estimate.known(
        kv_limit * (1 - _KV_LOAD_WIDTH),
        kv_limit,
        kv_limit * (1 + _KV_LOAD_WIDTH),
        "running requests at which the KV cache would be full, by its use per running request",
        kind=Kind.EXTRAPOLATED,
    )


def steady(steps: EngineSteps) -> Estimate:
    """Unknown because the load was steady: states that load, and the load needed."""
    most = highest(steps.running)
    return Estimate.unknown(
        "the load was steady (the request rate varied no more than by chance), with at most "
        f"{most:,.1f} requests running at once. To find the limit, run different loads, one of "
        "them until requests queue"
    )


def bursts(steps: EngineSteps) -> Estimate:
    """Unknown because no load lasted: it came in bursts."""
    most = highest(steps.running)
    return Estimate.unknown(
        f"the load came in bursts of up to {most:,.1f} running requests, none of which lasted. To "
        "find the limit, run loads that last for minutes, one of them until requests queue"
    )


def unbent(loads: LoadPoints) -> Estimate:
    """Unknown because tokens came as fast at the heaviest load as at light ones."""
    return Estimate.unknown(
        f"tokens came as fast at the heaviest load observed ({loads.heaviest:,.1f} running "
        "requests) as at light loads, so the limit is not near. Run a load test until requests "
        f"queue, perhaps above a concurrency of {FARTHEST_LOAD * loads.heaviest:,.0f}"
    )


def easing(loads: LoadPoints) -> Estimate:
    """Unknown because throughput bent at light load and straightened again."""
    return Estimate.unknown(
        f"up to {loads.heaviest:,.1f} running requests, each further request slowed tokens less "
        "than the ones before, as with a mixture of experts far below its limit. Run a load test "
        "until requests queue"
    )


def small_batch(loads: LoadPoints, kv_limit: float | None) -> Estimate:
    """Unknown because few requests ran at once, compared to those that the KV cache would hold."""
    room = "" if kv_limit is None else f" of about {kv_limit:,.0f} that the KV cache would hold"
    return Estimate.unknown(
        f"at most {loads.heaviest:,.1f} requests ran at once{room}; the step time of far larger "
        "batches cannot be estimated from such small ones. Run a load test until requests queue"
    )


def uneven(running: float) -> Estimate:
    """Unknown because the observed loads do not lie on one server's curve."""
    return Estimate.unknown(
        f"at about {running:,.1f} running requests, throughput was lower than lighter and heavier "
        "loads suggest: something else slowed the server for a while, or its requests differed"
    )


def slowed_at_limit(held: Estimate) -> Estimate:
    """Unknown because the server gave far less while requests waited than in its best minute."""
    return Estimate.unknown(
        f"while requests waited, the server produced {held.mid or 0.0:,.0f} output tokens/s, far "
        "less than in its best minute: something else slowed it then, or its requests differed. A "
        "minute at the limit without slowdown is needed"
    )


def too_light(steps: EngineSteps) -> Estimate:
    """Unknown, with the reason why no step is a point of a curve, and what load is needed."""
    seen = is_seen(steps.running_mean)
    most = highest(steps.running_max[seen])
    output = highest(steps.output_tokens_per_second[seen])
    if not most and output > 0:
        return Estimate.unknown(
            f"no scrape caught a running request, although up to {output:,.0f} output tokens/s "
            "were produced: the load comes and goes between scrapes. Scrape at shorter intervals, "
            "or run a steady load for minutes, to see how many requests run"
        )
    if not most:
        return Estimate.unknown(
            "no requests ran in the observed steps, so there is no load to judge by; run three "
            f"steady loads, up to about {_MIN_TELLING:.0f} running requests"
        )
    mean = time_mean(steps.running_mean, steps.seconds)
    return Estimate.unknown(
        f"the load was too light or too uneven for a curve: {mean:,.2f} requests ran on average, "
        f"at most {most:,.0f} at once; run minutes of steady load, up to about "
        f"{max(_MIN_TELLING, 4 * most):,.0f} running requests"
    )


def too_short(unknown: Estimate, steps: EngineSteps) -> Estimate:
    """The unknown estimate, plus how long the server was at its limit, if it was at all."""
    seconds = summed(steps.seconds[steps.is_limited])
    if not seconds:
        return unknown
    if seconds >= MIN_PLATEAU_SECONDS:
        return Estimate.unknown(
            f"requests waited for {seconds:,.0f} s in total, but only a few, only now and then, "
            "after a restart, or while the server produced far less than in its best minute; "
            f"{unknown.reason}"
        )
    reason = (
        f"the server was at its limit for {seconds:,.0f} s, but measuring its capacity takes "
        f"{MIN_PLATEAU_SECONDS:.0f} s without a gap or restart; {unknown.reason}"
    )
    return Estimate.unknown(reason)


def fleet_sum(
    parts: Mapping[str, Estimate],
    *,
    presence: Mapping[str, float] | None = None,
    lacking: str = f"{NOT_REACHED} engines",
) -> Estimate:
    """The sum of engines' estimates, each weighted by its share of the window's time.

    Low and high ends are summed separately, which gives the widest interval. If an engine has only
    a lower bound, or is unknown (at least 0), the sum is a lower bound too. `presence`: the share
    in which each was present, 0..1 by engine; without it, throughout. Engines that replaced each
    other were never present together, and do not add up. `lacking` is the start of the reason for a
    bound (`total`).
    """
    if not parts:
        return Estimate.unknown("no engine was observed in this window")
    shares = {engine: (presence or {}).get(engine, 1.0) for engine in parts}
    scaled = {
        engine: part if shares[engine] == 1 else part.scaled(shares[engine])
        for engine, part in parts.items()
    }
    if len(parts) == 1:
        return next(iter(scaled.values()))
    weighed = ", for as long as it was there" if min(shares.values()) < 1 else ""
    bare = {engine: replace(part, basis=()) for engine, part in scaled.items()}
    basis = f"sum over {len(parts)} engines, each under its own load{weighed}"
    return total(bare, basis, *_sources(scaled), lacking=lacking)


def _sources(parts: Mapping[str, Estimate]) -> list[str]:
    """The basis of each part, after its name; of more than three, only the largest three."""
    known = [engine for engine, part in parts.items() if part.basis]
    largest = sorted(known, key=lambda engine: -(parts[engine].low or 0.0))[:_MAX_SOURCES]
    shown = [f"{engine}: {parts[engine].sources}" for engine in known if engine in largest]
    more = len(known) - len(shown)
    return [*shown, f"and {more} more"] if more else shown


def no_less(peak: Estimate, best: BestMinute) -> Estimate:
    """An extrapolated peak with each end raised to at least what the best minute proves.

    Unknown if even its high end was lower: the curve does not describe this server.
    """
    if peak.low is None or peak.mid is None or peak.high is None:
        return peak
    least = min(best.sure, _FULL_MINUTE * best.output)
    if peak.high < least:
        return Estimate.unknown(
            f"the best minute had {best.output:,.0f} output tokens/s, more than the curve through "
            f"all loads allows ({peak.high:,.0f}): something slowed the server at other times"
        )
    low, mid, high = (max(end, least) for end in (peak.low, peak.mid, peak.high))
    return replace(peak, low=low, mid=mid, high=high)


def best_minute_bound(best: BestMinute | None, unknown: Estimate) -> tuple[Estimate, Estimate]:
    """The best minute as lower bounds: of the capacity, and of the running requests needed for it.

    Both are `unknown` if there was no whole minute with output tokens.
    """
    if best is None or best.output <= 0:
        return unknown, unknown
    held = best.held
    minutes = round(held.seconds / MINUTE_SECONDS)
    time = "minute" if minutes <= 1 else f"{minutes} minutes"
    basis = f"the best {time} observed, up to {held.end:%Y-%m-%d %H:%M:%S} UTC"
    if held.luck:
        basis += f", minus {held.luck * 100:.0f} % that may be chance"
    return (
        Estimate.at_least(best.sure, basis, reason=unknown.reason),
        Estimate.at_least(best.running, basis, reason=unknown.reason),
    )


def _load_needed(peak_estimate: PeakEstimate, loads: LoadPoints, kv_limit: float | None) -> float:
    most = FARTHEST_LOAD * loads.heaviest
    bend = min(most, max(1.5 * loads.heaviest, peak_estimate.bend_running))
    return bend if kv_limit is None else max(1.1 * loads.heaviest, min(bend, kv_limit))


def _too_few(loads: LoadPoints) -> str:
    if not len(loads):
        return "no load with throughput was given; a curve needs at least three different loads"
    count = len(np.unique(loads.running))
    seen = f"only {count} loads were observed, up to"
    if count == 1:
        seen = "only one load was observed, of"
    elif count >= MIN_LOADS:
        span = loads.heaviest / float(loads.running[0])
        seen = f"the {count} observed loads span only a factor of {span:.2f}, up to"
    return (
        f"{seen} {loads.heaviest:,.1f} running requests; a curve needs at least {MIN_LOADS} loads "
        f"over a factor of {MIN_SPAN:g}, up to about "
        f"{max(_MIN_TELLING, 4 * loads.heaviest):,.0f} running requests"
    )
