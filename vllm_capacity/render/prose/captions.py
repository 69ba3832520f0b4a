"""Chart captions: what each chart shows, in a sentence. Nothing is computed here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import polars as pl
from msgspec import Struct
from msgspec.structs import replace

from vllm_capacity.answer import Answer
from vllm_capacity.estimate import Estimate
from vllm_capacity.figures.latency import Quantiles
from vllm_capacity.render.numbers import (
    Write,
    count,
    number,
    percent,
    plural,
    reason,
    seconds,
    sure,
    usd,
    usd_per_thousand,
    value,
)
from vllm_capacity.render.prose.verdict import LIMITS, REGIMES, SIGNS, is_extrapolated
from vllm_capacity.verdicts.demand.forecast import DemandAhead
from vllm_capacity.verdicts.hardware.compare import Option
from vllm_capacity.verdicts.hardware.interactivity import Interactivity
from vllm_capacity.verdicts.saturation.regimes import IDLE


def regime_found(answer: Answer) -> str:
    """The first bottleneck, or else the regime that applied most of the time."""
    first, regime = answer.saturation.bottleneck, answer.saturation.regime
    if first in LIMITS:
        return f"First bottleneck: {LIMITS[first]}; {SIGNS[first]}"
    return f"Most of the time: {REGIMES[regime]}"


class EngineTime(Struct, frozen=True):
    """One engine's shares of time at a limit and idle, 0..1."""

    engine: str
    limited_ratio: float
    idle_ratio: float


def engine_times(answer: Answer) -> list[EngineTime]:
    """Each engine's time at a limit and idle; most limited first, then least idle."""
    found: dict[str, EngineTime] = {}
    for each in answer.saturation.regime_times:
        own = found.get(each.engine, EngineTime(each.engine, 0.0, 0.0))
        if each.regime in LIMITS:
            own = replace(own, limited_ratio=own.limited_ratio + each.share_ratio)
        elif each.regime == IDLE:
            own = replace(own, idle_ratio=each.share_ratio)
        found[each.engine] = own
    return sorted(found.values(), key=lambda own: (-own.limited_ratio, own.idle_ratio, own.engine))


def regimes_by_step(step_seconds: float, engines: Sequence[EngineTime], *, is_mixed: bool) -> str:
    """What a step of the strips shows, and which engines were limited and idle most.

    It ends a sentence. `is_mixed`: a step shows the shares of all its regimes, not one color.
    """
    text = f"; a cell is {_step(step_seconds)}, in the color of "
    text += "the limit that applied for at least a tenth of it, or else of the longest state"
    if is_mixed:
        text = f"; each {_step(step_seconds)} shows the share of time in each"
    if len(engines) < 2:
        return text
    worst, idlest = engines[0], max(engines, key=lambda own: own.idle_ratio)
    if worst.limited_ratio:
        text += (
            f". {worst.engine} was at its limit most, {percent(worst.limited_ratio)} of its time"
        )
    if idlest.idle_ratio:
        text += f"; {idlest.engine} was idle most, {percent(idlest.idle_ratio)} of its time"
    return text


def _step(seconds: float) -> str:
    """A round duration: 30 s, 10 min, 2 h."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:g} {unit}"
    return f"{seconds:g} s"


def capacity_found(answer: Answer) -> str:
    """What the saturation curve shows: where output levels off, or that this is unknown."""
    capacity, running = answer.saturation.capacity, answer.saturation.capacity_running_requests.mid
    if capacity.mid is None:
        bound = f" ({value(capacity, number)} tokens/s)" if capacity.is_bound else ""
        return f"Capacity not known{bound}: {reason(capacity)}"
    at = f" at {number(running)} running requests" if running is not None else ""
    level = f"output levels off{at}, at {sure(capacity, number)} tokens/s"
    if is_extrapolated(answer.saturation):
        return f"Not reached in this window; extrapolated from lighter load, {level}"
    return f"O{level[1:]}"


def latency_found(quantiles: Quantiles, attainment: Estimate | None, *, write: Write) -> str:
    """The window's p95 of a latency with its bounds, and the SLO attainment, if any."""
    p95 = quantiles.p95
    if p95.value is not None:
        text = f"p95 {write(p95.value)}"
        if p95.lower is not None and p95.upper is not None:
            low, high = (write(end, like=p95.value) for end in (p95.lower, p95.upper))
            text += f" (its histogram bucket: {low} to {high})"
    elif p95.lower is not None:
        text = f"p95 above {write(p95.lower)}, the last histogram bucket"
    else:
        text = "Nothing was observed in this window"
    if attainment is None or attainment.mid is None:
        return text
    return f"{text}; {sure(attainment, percent)} within the target"


def queue_found(answer: Answer) -> str:
    """Running and waiting requests over the window."""
    running, waiting = answer.running, answer.waiting
    if running.mean is None:
        return "The server did not export how many requests ran"
    text = f"{number(running.mean)} running on average"
    if running.max is not None:
        text += f", {count(running.max)} at most"
    if waiting.max is None:
        return text
    return f"{text}; {f'up to {count(waiting.max)}' if waiting.max else 'none'} waiting"


def kv_found(answer: Answer) -> str:
    """KV-cache usage and preemptions over the window."""
    kv = answer.kv_cache_ratio
    if kv.mean is None or kv.max is None:
        return "The server did not export how full its KV cache was"
    text = f"{percent(kv.mean)} full on average, {percent(kv.max)} at most"
    return f"{text}; {plural(answer.preemptions, 'preemption')}" if answer.preemptions else text


def throughput_found(answer: Answer) -> str:
    """The window's mean output rate."""
    output = answer.throughput.output_tokens_per_second
    if output is None:
        return "No tokens were counted"
    return f"{number(output)} output tokens/s on average"


def requests_found(answer: Answer) -> str:
    """Finished requests of the window and their mean rate."""
    finished, rate = answer.requests.finished, answer.throughput.requests_per_second
    if finished is None:
        return "No finished requests were counted"
    text = f"{count(finished)} finished"
    return text if rate is None else f"{text}, {number(rate)} requests/s on average"


def tokens_found(answer: Answer) -> str:
    """Tokens of the window by kind."""
    tokens, hit = answer.tokens, answer.prefix_cache_hit_ratio
    if tokens.generation is None or tokens.prompt is None:
        return "Tokens were not counted"
    text = f"{count(tokens.prompt)} prompt tokens, {count(tokens.generation)} output tokens"
    return text if hit is None else f"{text}; prefix cache hit rate {percent(hit)}"


def outcomes_found(answer: Answer) -> str:
    """How requests ended."""
    requests = answer.requests
    if requests.finished is None or requests.successful is None:
        return "No finished requests were counted"
    finished, successful = count(requests.finished), count(requests.successful)
    text = f"{successful} of {finished} finished requests succeeded"
    if requests.lost.high is None:
        text += f"; how many more finished unseen is not known, because {requests.lost.reason}"
    elif requests.lost.high:
        unseen = count(requests.lost.high)
        text += f"; up to {unseen} more may have finished unseen before a server restarted or died"
    return text


def cost_per_request_found(answer: Answer) -> str:
    """The whole window's cost per request, in the unit of the chart's axis."""
    each = answer.cost.usd_per_request
    if each.is_unknown:
        return f"Over the whole window not known: {reason(each)}"
    text = f"{value(each, usd_per_thousand)} per 1,000 requests over the whole window"
    return f"{text}; in a quiet hour fewer requests share the bill"


def cost_found(answer: Answer) -> str:
    """The window's position on the curve of cost against utilization."""
    now, used = answer.cost.usd_per_million_output_tokens, answer.cost.utilization
    at_knee = answer.cost.usd_per_million_output_tokens_at_knee.mid
    if now.mid is None:
        return f"Not known: {reason(now)}"
    text = f"{usd(now.mid)} per million output tokens"
    if used.is_unknown:
        return f"{text}; utilization not known: {reason(used)}"
    text += f" at a utilization of {value(used, percent)}"
    return text if at_knee is None else f"{text}; {usd(at_knee)} at full utilization"


def slo_throughput_found(answer: Answer) -> str:
    """The throughput that meets the latency targets, or why it is unknown."""
    throughput = answer.slo.throughput
    if throughput.is_unknown:
        return f"Throughput within the latency targets not known: {reason(throughput)}"
    return f"It can serve {sure(throughput, number)} output tokens/s within the latency targets"


def preemptions_found(answer: Answer) -> str:
    """How many requests were preempted, and how full the KV cache was."""
    preemptions = answer.preemptions
    if preemptions is None:
        return "Preemptions were not counted over the whole window"
    text = "No request was preempted"
    if preemptions:
        text = f"{plural(preemptions, 'preemption')} in all"
    return f"{text}{fullest(answer)}"


def fullest(answer: Answer) -> str:
    """The peak KV-cache usage, to end a sentence; empty if unknown."""
    ratio = answer.kv_cache_ratio.max
    return "" if ratio is None else f"; KV-cache usage peaked at {percent(ratio)}"


def options_found(known: Sequence[Option], *, rejected: int) -> str:
    """The best GPU, how many may be as good, how many cannot be compared; `known` best first."""
    refused = f"{plural(rejected, 'GPU')} rejected, with the reason" if rejected else ""
    if not known:
        return f"None can be compared: {refused}"
    best, *others = known
    parts = [f"{best.gpu}: {sure(best.tokens_per_usd, number)} output tokens per dollar"]
    if others:
        overlapping = count(sum(each.may_equal(best) for each in others))
        parts.append(f"the intervals of {overlapping} of {count(len(others))} others overlap it")
    return "; ".join([*parts, refused] if refused else parts)


def interactivity_found(found: Interactivity) -> str:
    """The cheapest GPU at the target, or over all loads, and the source of its curve."""
    source = "loads calculated from the one that was observed"
    if found.curves[0].is_measured:
        source = "each load of this window, transferred to the other GPUs"
    target = found.itl_target_seconds
    costs = {curve.gpu: cost for curve in found.curves if (cost := curve.cheapest(target))}
    if not costs:
        return f"No GPU meets the ITL target of {seconds(target or 0.0)} at these loads; {source}"
    best = min(costs, key=lambda gpu: costs[gpu].mid or 0.0)
    within = "" if target is None else f" within the ITL target of {seconds(target)}"
    return f"Cheapest{within}: {best}, {sure(costs[best], usd)} per million output tokens; {source}"


def cases_found(known: Mapping[str, Estimate]) -> str:
    """The replicas needed now, and in the case that needs most."""
    now = "now" if "now" in known else next(iter(known))
    most = max(known, key=lambda name: known[name].mid or 0.0)
    text = f"{sure(known[now], count)} in the case “{now}”"
    if known[most].mid == known[now].mid:
        return f"{text}; no case needs more"
    return f"{text}; {sure(known[most], count)} in the case “{most}”"


def forecast_found(ahead: DemandAhead) -> str:
    """The busiest hour in the forecast, or why there is none."""
    if not ahead.forecast:
        return f"No forecast: {ahead.reason.rstrip('.')}"
    peak = max(ahead.forecast, key=lambda hour: hour.mid)
    expected = sure(Estimate.known(peak.low, peak.mid, peak.high), count)
    return f"The busiest hour is expected from {peak.ts:%-d %b %H:%M} UTC: {expected} requests"


def idle_found(seen: pl.DataFrame, *, hours: int) -> str:
    """The hour of the week with the most idle dollars, and the number of hours.

    Columns used: day, hour, idle_usd.
    """
    most = seen.sort("idle_usd", descending=True, maintain_order=True).row(0, named=True)
    text = f"Most on {most['day']} from {most['hour']:02}:00: {usd(most['idle_usd'])} in that hour"
    as_much = sum(usd(each) == usd(most["idle_usd"]) for each in seen["idle_usd"]) - 1
    if as_much:
        text += f", and as much in {plural(as_much, 'other')}"
    if seen.height == hours:
        return text
    return f"{text}; {count(seen.height)} of {count(hours)} hours of the week were observed"
