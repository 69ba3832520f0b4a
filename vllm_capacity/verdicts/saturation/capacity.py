"""Capacities as estimates in words: foreseen ones, a fleet's, what is left, and why one is unknown.

An unknown capacity says, in numbers, how much more load it would take to know it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from vllm_capacity.estimate import Estimate, Kind, total
from vllm_capacity.verdicts.saturation.curve import (
    FARTHEST_LOAD,
    MIN_LOADS,
    MIN_SPAN,
    LoadPoints,
    PeakEstimate,
)
from vllm_capacity.verdicts.saturation.loads import MIN_PLATEAU_SECONDS, BestMinute
from vllm_capacity.verdicts.saturation.regimes import LIMITS, Judged

_KV_LOAD_WIDTH = 0.15
_LEAST_TELLING = 8.0
_FULL_MINUTE = 0.9


def extrapolated(
    peak_estimate: PeakEstimate | None, loads: LoadPoints, kv_limit: float | None
) -> Estimate:
    """The peak foreseen from lighter load as an estimate, or how much more load it would take."""
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
        f"throughput has not bent enough yet: from the loads seen (up to {heaviest}) the peak "
        f"could lie anywhere from {peak_estimate.low:,.0f} to {peak_estimate.high:,.0f} tokens/s. "
        "It would take "
        f"about {need:,.1f} running requests, {need / loads.heaviest:.1f} × the heaviest load seen."
    )


def extrapolated_running(capacity: Estimate, loads: LoadPoints, kv_limit: float | None) -> Estimate:
    """Where the foreseen peak lies: known only where the KV cache ends the curve."""
    if not capacity.is_known:
        return Estimate.unknown(capacity.reason)
    if kv_limit is None or kv_limit > FARTHEST_LOAD * loads.heaviest:
        return Estimate.unknown(
            "the load of the foreseen peak is not known, only that it is no less than "
            f"{loads.heaviest:,.1f} running requests"
        )
    return Estimate.known(
        kv_limit * (1 - _KV_LOAD_WIDTH),
        kv_limit,
        kv_limit * (1 + _KV_LOAD_WIDTH),
        "running requests at which the KV cache would be full, by its use per running request",
        kind=Kind.EXTRAPOLATED,
    )


def steady(judged: Sequence[Judged]) -> Estimate:
    """Unknown, since the load was steady: what it was, and what load would tell."""
    most = max((j.running or 0.0 for j in judged), default=0.0)
    return Estimate.unknown(
        f"the load was steady: requests came at a rate that varied no more than chance, up to "
        f"{most:,.1f} running requests. It takes different loads, one of them until requests wait, "
        "to see where throughput ends"
    )


def bursts(judged: Sequence[Judged]) -> Estimate:
    """Unknown, since no load lasted: it came in bursts."""
    most = max((j.running or 0.0 for j in judged), default=0.0)
    return Estimate.unknown(
        f"the load came in bursts, up to {most:,.1f} running requests, none of which lasted. It "
        "takes loads that last for minutes, one of them until requests wait, to see where "
        "throughput ends"
    )


def unbent(loads: LoadPoints) -> Estimate:
    """Unknown, since tokens came as fast at the heaviest load as at light ones."""
    return Estimate.unknown(
        f"tokens came as fast at the heaviest load seen, {loads.heaviest:,.1f} running requests, "
        "as at light ones: the limit is not near. It takes a load test up to where requests wait, "
        f"past {FARTHEST_LOAD * loads.heaviest:,.0f} running requests perhaps"
    )


def easing(loads: LoadPoints) -> Estimate:
    """Unknown, since throughput bent at light load and straightened again."""
    return Estimate.unknown(
        f"each further request, up to {loads.heaviest:,.1f} running, slowed tokens less than the "
        "ones before, as with a mixture of experts far below its limit. It takes a load test up to "
        "where requests wait"
    )


def uneven(running: float) -> Estimate:
    """Unknown, since the loads seen do not lie on one server's curve."""
    return Estimate.unknown(
        f"at about {running:,.1f} running requests it gave less than lighter and heavier loads let "
        "expect: something else slowed the server for a while, or it was asked for something else"
    )


def too_light(judged: Sequence[Judged]) -> Estimate:
    """Unknown, with why no step of an engine is a point of a curve, and what load would be."""
    seen = [j for j in judged if j.step["running_mean"] is not None]
    most = max((j.step["running_max"] or 0.0 for j in seen), default=0.0)
    output = max((j.step["output_tokens_per_second"] or 0.0 for j in seen), default=0.0)
    if not most and output > 0:
        return Estimate.unknown(
            f"no scrape caught a request running, yet up to {output:,.0f} output tokens/s came "
            "out: the load comes and goes between scrapes. It takes scrapes at shorter intervals, "
            "or steady load for minutes, to see how many run"
        )
    if not most:
        return Estimate.unknown(
            "nothing ran in the steps observed, so there is no load to judge by; it takes three "
            f"steady loads, up to about {_LEAST_TELLING:.0f} running requests"
        )
    mean = sum(j.step["running_mean"] * j.seconds for j in seen) / sum(j.seconds for j in seen)
    return Estimate.unknown(
        f"the load was too light or too uneven for a curve: {mean:,.2f} requests ran on average, "
        f"at most {most:,.0f} at once; it takes minutes of steady load, up to about "
        f"{max(_LEAST_TELLING, 4 * most):,.0f} running requests"
    )


def too_short(unknown: Estimate, judged: Sequence[Judged]) -> Estimate:
    """The unknown estimate, saying too for how long the server was the limit, if it was at all."""
    seconds = sum(j.seconds for j in judged if j.regime in LIMITS)
    if not seconds:
        return unknown
    if seconds >= MIN_PLATEAU_SECONDS:
        return Estimate.unknown(
            f"requests waited for {seconds:,.0f} s in all, but only few, only now and then, after "
            "a restart, or while the server gave far less than in its best minute; "
            f"{unknown.reason}"
        )
    reason = (
        f"the server was the limit for {seconds:,.0f} s, and it takes {MIN_PLATEAU_SECONDS:.0f} s "
        f"without a gap or restart to measure what it holds; {unknown.reason}"
    )
    return Estimate.unknown(reason)


def fleet_sum(
    parts: Mapping[str, Estimate], *, presence: Mapping[str, float] | None = None
) -> Estimate:
    """The sum of engines' estimates, each for the share of the window in which it was there.

    Ends are added for the widest interval. Where an engine has but a lower bound, or nothing (which
    is at least 0), the sum is "at least" too. `presence`: 0..1 by engine; without it each was there
    throughout. Engines that replaced each other were never there together, and do not add up.
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
    named = {
        engine: replace(part, basis=(f"{engine}: {part.sources}",) if part.basis else ())
        for engine, part in scaled.items()
    }
    return total(named, f"sum over {len(parts)} engines, each under its own load{weighed}")


def headroom(rate: float | None, capacity: Estimate) -> Estimate:
    """The share of the capacity that is left: 1 − output rate ÷ capacity; negative above it.

    At least as much where the capacity is a lower bound.
    """
    if rate is None:
        return Estimate.unknown("no output rate was observed in this window")
    if capacity.is_unknown or (capacity.is_bound and not capacity.low):
        return Estimate.unknown(f"the capacity is unknown: {capacity.reason}")
    return capacity.map(lambda most: 1 - rate / most, f"{rate:,.1f} output tokens/s measured")


def no_less(peak: Estimate, best: BestMinute) -> Estimate:
    """An extrapolated peak, no end of it under what the best minute held.

    Unknown where even its high end was: the curve does not describe this server.
    """
    if peak.low is None or peak.mid is None or peak.high is None:
        return peak
    least = min(best.sure, _FULL_MINUTE * best.output)
    if peak.high < least:
        return Estimate.unknown(
            f"the best minute held {best.output:,.0f} output tokens/s, more than the curve through "
            f"all loads allows ({peak.high:,.0f}): something slowed the server at other times"
        )
    low, mid, high = (max(end, least) for end in (peak.low, peak.mid, peak.high))
    return replace(peak, low=low, mid=mid, high=high)


def best_minute_bound(best: BestMinute | None, unknown: Estimate) -> tuple[Estimate, Estimate]:
    """The best minute as lower bounds: of the capacity, and of the running requests it takes.

    Both are `unknown` where there was no whole minute in which tokens came out.
    """
    if best is None or best.output <= 0:
        return unknown, unknown
    basis = f"the best minute seen, up to {best.end:%Y-%m-%d %H:%M:%S} UTC"
    if best.is_limited:
        basis += f", less {best.scatter:.0%} for what a minute at the limit scatters"
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
        return "no load with throughput was given; a bend takes three different loads or more"
    count = len(np.unique(loads.running))
    seen = "only one load was seen, of" if count == 1 else f"only {count} loads were seen, up to"
    if count >= MIN_LOADS:
        span = loads.heaviest / float(loads.running[0])
        seen = f"the {count} loads seen lie only {span:.2f} × apart, up to"
    return (
        f"{seen} {loads.heaviest:,.1f} running requests; a bend takes {MIN_LOADS} loads or more, "
        f"{MIN_SPAN:g} × apart, up to about {max(_LEAST_TELLING, 4 * loads.heaviest):,.0f} running "
        "requests"
    )
