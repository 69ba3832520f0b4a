"""The sentences of the page, written from an answer by rules.

Every rule takes the answer (the object of the machine interface) and gives back whole sentences: a
figure that is unknown makes a sentence that says so and why, never a sentence with a blank. Nothing
is computed here; what is written was in the answer.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from vllm_capacity.render.numbers import (
    Write,
    between,
    count,
    instant,
    number,
    percent,
    usd,
    usd_per_thousand,
)
from vllm_capacity.render.prose.estimates import Told, is_bound, reason, sure, value
from vllm_capacity.render.prose.targets import missed, within_targets
from vllm_capacity.verdicts.saturation import EXTRAPOLATED

Answer = Mapping[str, Any]

SIMULATED = "These figures come from a simulation, not from the telemetry of a server."

REGIMES = {
    "idle": "idle",
    "client-bound": "waiting for clients",
    "scheduler-bound": "scheduler-bound",
    "kv-bound": "KV-cache-bound",
    "prefill-bound": "prefill-bound",
    "unknown": "not known",
}
SHAPES = {"good": "●", "usable": "▲", "poor": "■"}
LIMITS = {
    "scheduler-bound": "the number of requests it lets run at once (max_num_seqs)",
    "kv-bound": "the memory of its KV cache",
    "prefill-bound": "the reading of prompts (prefill)",
}
_SIGNS = {
    "scheduler-bound": "requests waited while running requests stood at their ceiling and the KV "
    "cache had room",
    "kv-bound": "the KV cache was full while requests waited or were preempted",
    "prefill-bound": "requests waited although neither the KV cache nor the running batch was full",
}
_NEXT = {
    "scheduler-bound": "raise max_num_seqs: the KV cache has room for more requests at once",
    "kv-bound": "give the KV cache more room (gpu_memory_utilization, a shorter max_model_len, "
    "an FP8 cache) or add a replica; more requests to this server only wait longer",
    "prefill-bound": "raise max_num_batched_tokens or make prompts share prefixes, so that "
    "prompts are read sooner",
}
_CENT_USD = 0.01
_NAMED = 3
_FULL_RATIO = 0.95
_WIDE = 3.0  # an interval whose ends differ by this factor is called wide


def verdict(answer: Answer, *, is_simulated: bool = False) -> list[str]:
    """Four sentences: what a request costs, what was idle, what limits, what to do next.

    One more, first, where the telemetry was simulated; and one before the last where latency
    targets were missed, or allow less than the server can do.
    """
    sentences = [SIMULATED] if is_simulated else []
    within = within_targets(answer)
    told = [_cost(answer), _idle(answer), _limit(answer), *([within] if within else [])]
    return [*sentences, *told, _next(answer)]


def _cost(answer: Answer) -> str:
    each = answer["cost"]["usd_per_request"]
    if each["mid"] is None:
        return f"What a request cost is not known: {reason(each)}."
    text, write = f"A request cost {usd(each['mid'])}", usd
    if each["mid"] < _CENT_USD:
        text = f"1,000 requests cost {usd_per_thousand(each['mid'])} ({usd(each['mid'])} each)"
        write = usd_per_thousand
    interval = between(each, write)
    lost = answer["requests"]["lost"]["high"]
    if lost:
        missing = (
            f"Up to {plural(lost, 'request')} that finished unseen before a server restarted or "
            "died would make it less"
        )
        return f"{text}{f', {interval}' if interval else ''}. {missing}."
    if not interval:
        return f"{text}. That is counted, not estimated: it is as sure as the price."
    is_wide = each["low"] <= 0 or each["high"] / each["low"] > _WIDE
    return f"{text}, {interval}{': take it as a rough figure' if is_wide else ''}."


def _idle(answer: Answer) -> str:
    cost = answer["cost"]
    used, idle, bill = cost["utilisation"], cost.get("idle_usd"), cost["allocation_usd"]
    if is_bound(used):
        return _idle_at_least(used, idle, bill)
    if used["mid"] is None:
        return (
            f"How much of the bill was idle is not known, for its capacity is not: {reason(used)}."
        )
    dollars = idle is not None and idle["mid"] is not None and bill["mid"] is not None
    if used["high"] == 0:
        paid = f" of {usd(bill['mid'])}" if dollars else ""
        return f"Nothing was generated: the whole bill{paid} was idle."
    share = sure(used, percent)
    aside = ", latency targets left aside" if within_targets(answer) else ""
    if used["mid"] >= _FULL_RATIO:
        return f"The server ran at {share} of its capacity; next to nothing of the bill was idle."
    rest = (
        f"{usd(idle['mid'])} of the {usd(bill['mid'])} bill" if dollars else "the rest of the bill"
    )
    return f"The server was used to {share} of its capacity{aside}; {rest} paid for idle time."


def _idle_at_least(used: Told, idle: Told | None, bill: Told) -> str:
    """What is known of idle time where the capacity is a lower bound, and so the use an upper."""
    text = f"Utilization was {value(used, percent)}"
    if idle is not None and is_bound(idle) and bill["mid"] is not None:
        text += f": {value(idle, usd)} of the {usd(bill['mid'])} bill paid for idle time"
    return f"{text}. How much exactly is not known: {reason(used)}."


def _limit(answer: Answer) -> str:
    saturation = answer["saturation"]
    first, regime = saturation["first_limit"], saturation["regime"]
    if first in LIMITS:
        return (
            f"What limits it first is {LIMITS[first]}: at its busiest, {_SIGNS[first]}"
            f"{_ceiling(saturation)}."
        )
    if regime == "idle":
        return "Nothing limited it: it was idle."
    if regime == "client-bound":
        return f"Nothing in the server limited it: it waited for clients{_ceiling(saturation)}."
    return f"What limits it is not known{_evidence(saturation)}."


def _ceiling(saturation: Mapping[str, Any]) -> str:
    capacity, headroom = (
        saturation["capacity_output_tokens_per_second"],
        saturation["headroom_ratio"],
    )
    if is_bound(capacity):
        return f". It can do {value(capacity, number)} output tokens/s; how much more is not known"
    if capacity["mid"] is None:
        return "; how much it could do is not known"  # the sentence before says why
    running = saturation["capacity_running_requests"]
    at = f" at {number(running['mid'])} running requests" if running["mid"] is not None else ""
    can = "It would probably do" if is_extrapolated(saturation) else "It can do"
    text = f". {can} {sure(capacity, number)} output tokens/s{at}"
    if headroom["mid"] is None:
        return text
    if headroom["mid"] < 1 - _FULL_RATIO:
        return f"{text}, and the window as a whole ran there"
    return f"{text}; over the whole window it ran {percent(headroom['mid'])} below that"


def _next(answer: Answer) -> str:
    saturation, cost = answer["saturation"], answer["cost"]
    first = saturation["first_limit"]
    poor = [row for row in answer["quality"] if row["severity"] in POOR]
    if poor:
        kinds = ", ".join(dict.fromkeys(str(row["check"]) for row in poor))
        return f"Next: mend the telemetry before deciding anything; not to be trusted: {kinds}."
    if first in _NEXT:
        return f"Next: {_balance(saturation)}{_NEXT[first]}.{_gain(answer)}"
    if saturation["regime"] == "idle":
        return "Next: stop it when nobody asks, or let it share its machine."
    if cost["allocation_usd"]["mid"] is None:
        return "Next: give a price (usd_per_hour), so that the figures become dollars."
    if saturation["capacity_output_tokens_per_second"]["mid"] is None:
        return "Next: load it until requests wait, once; until then its capacity stays unknown."
    if missed(answer):
        return "Next: add a replica, or send it less: it misses its targets before it is full."
    return "Next: give it more requests, or run fewer servers; it has room."


def _balance(saturation: Mapping[str, Any]) -> str:
    """Advice to balance the load, where an engine was at its limit while another never was.

    The other must have had room at that time: it was idle, or waited for clients.
    """
    rows = saturation["regimes"]
    limited = [each for each in rows if each["regime"] in LIMITS]
    full = {each["engine"] for each in limited}
    free = {
        each["engine"]
        for each in rows
        if each["engine"] not in full
        and each["regime"] in ("idle", "client-bound")
        and any(_overlap(each, other) for other in limited)
    }
    if not free:
        return ""
    return (
        f"if they serve one model, balance the load first: {_listed(full)} stood at the limit "
        f"while {_listed(free)} had room. Only then "
    )


def _overlap(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    begun = max(instant(one["start"]), instant(other["start"]))
    return begun < min(instant(one["end"]), instant(other["end"]))


def _listed(names: Collection[str]) -> str:
    """Up to three names, sorted; of more, the first two and how many others."""
    ordered = sorted(names)
    if len(ordered) > _NAMED:
        ordered = [*ordered[: _NAMED - 1], f"{len(ordered) - _NAMED + 1} others"]
    return " and ".join([", ".join(ordered[:-1]), ordered[-1]] if ordered[1:] else ordered)


def _gain(answer: Answer) -> str:
    """What the first piece of advice would bring, where that is known."""
    known = [each for each in answer["advice"] if each["effect"]["mid"] is not None]
    if not known:
        return ""
    first = known[0]
    share = sure(first["effect"], percent)
    if first["setting"] == "replicas":
        aside = ", latency targets left aside" if within_targets(answer) else ""
        return f" Running fewer engines would save {share} of the bill{aside}."
    more = "twice the KV memory" if first["setting"] == "KV memory" else "that"
    return f" Foreseen: {more} brings {share} more output."


def quality_word(answer: Answer) -> tuple[str, str]:
    """The quality of the telemetry as (word, why): good, usable or poor, by the worst finding."""
    findings = answer["quality"]
    for word, levels in (("poor", POOR), ("usable", USABLE)):
        rows = [row for row in findings if row["severity"] in levels]
        if rows:
            kinds = ", ".join(dict.fromkeys(str(row["check"]) for row in rows))
            return word, f"{plural(len(rows), 'finding')}: {kinds}"
    return "good", "nothing found that moves a figure"


POOR = frozenset({"error"})
USABLE = frozenset({"warning"})


def regime_found(answer: Answer) -> str:
    """What the regime strip shows, in a sentence."""
    saturation = answer["saturation"]
    if saturation["first_limit"] in LIMITS:
        return (
            f"First limit: {LIMITS[saturation['first_limit']]}; {_SIGNS[saturation['first_limit']]}"
        )
    return f"Most of the time: {REGIMES[saturation['regime']]}"


def capacity_found(answer: Answer) -> str:
    """What the saturation curve shows: where output stopped rising, or that it did not."""
    saturation = answer["saturation"]
    capacity, running = (
        saturation["capacity_output_tokens_per_second"],
        saturation["capacity_running_requests"],
    )
    if capacity["mid"] is None:
        seen = f"; {value(capacity, number)} tokens/s were held" if is_bound(capacity) else ""
        return f"No plateau was seen: {reason(capacity)}{seen}"
    at = f" at {number(running['mid'])} running requests" if running["mid"] is not None else ""
    level = f"{at}, at {sure(capacity, number)} tokens/s"
    if is_extrapolated(saturation):
        return f"Not seen yet; from lighter load it is foreseen to stop rising{level}"
    return f"Output stops rising{level}"


def is_extrapolated(saturation: Mapping[str, Any]) -> bool:
    """Whether a capacity was extrapolated from lighter load rather than seen as a plateau."""
    return bool(saturation["capacity_kind"] == EXTRAPOLATED)


def latency_found(answer: Answer, family: str, *, write: Write) -> str:
    """The whole window's p95 of a latency family, with its bounds, and what was met of the SLO."""
    quantile = answer["latency"][family]["p95"]
    attained = answer["slo"].get(family.replace("_seconds", "_attainment"))
    if quantile["value"] is None:
        text = (
            f"The slowest 5 % took more than {write(quantile['lower'])}"
            if quantile["lower"] is not None
            else "Nothing was observed in this window"
        )
    else:
        text = f"95 % of them within {write(quantile['value'])}"
        if quantile["lower"] is not None and quantile["upper"] is not None:
            low, high = (write(quantile[key], like=quantile["value"]) for key in ("lower", "upper"))
            text += f" (the histogram only says between {low} and {high})"
    if attained and attained["mid"] is not None:
        text += f"; {sure(attained, percent)} met the target"
    return text


def queue_found(answer: Answer) -> str:
    """Running and waiting requests over the window, in a sentence."""
    running, waiting = answer["running"], answer["waiting"]
    if running["max"] is None:
        return "The server did not say how many requests ran"
    text = f"{number(running['mean'])} ran on average, {count(running['max'])} at most"
    if waiting["max"] is None:
        return text
    if waiting["max"] == 0:
        return f"{text}; none ever waited"
    return f"{text}; up to {count(waiting['max'])} waited"


def kv_found(answer: Answer) -> str:
    """KV-cache use and preemptions over the window, in a sentence."""
    kv, preemptions = answer["kv_cache_ratio"], answer["preemptions"]
    if kv["max"] is None:
        return "The server did not say how full its KV cache was"
    text = f"{percent(kv['mean'])} full on average, {percent(kv['max'])} at most"
    if preemptions:
        text += f"; {plural(preemptions, 'preemption')}"
    return text


def throughput_found(answer: Answer) -> str:
    """The window's mean output rate, in a sentence."""
    output = answer["throughput"]["output_tokens_per_second"]
    if output is None:
        return "No tokens were counted"
    return f"{number(output)} output tokens/s on average"


def requests_found(answer: Answer) -> str:
    """Finished requests of the window and their mean rate, in a sentence."""
    finished, rate = answer["requests"]["finished"], answer["throughput"]["requests_per_second"]
    if finished is None:
        return "No finished requests were counted"
    text = f"{count(finished)} in all"
    return text if rate is None else f"{text}, {number(rate)} requests/s on average"


def tokens_found(answer: Answer) -> str:
    """Tokens of the window by kind, in a sentence."""
    tokens, hit = answer["tokens"], answer["prefix_cache_hit_ratio"]
    if tokens["generation"] is None or tokens["prompt"] is None:
        return "Tokens were not counted"
    text = f"{count(tokens['prompt'])} prompt tokens in, {count(tokens['generation'])} out"
    return text if hit is None else f"{text}; {percent(hit)} of prompts came from the prefix cache"


def outcomes_found(answer: Answer) -> str:
    """How requests ended, in a sentence."""
    requests = answer["requests"]
    if requests["finished"] is None:
        return "No finished requests were counted"
    finished, successful = count(requests["finished"]), count(requests["successful"])
    text = f"{successful} of {finished} finished requests succeeded"
    if requests["lost"]["high"]:
        unseen = count(requests["lost"]["high"])
        text += f"; up to {unseen} more may have finished unseen before a server restarted or died"
    return text


def cost_per_request_found(answer: Answer) -> str:
    """The whole window's cost of a request, in a sentence."""
    each = answer["cost"]["usd_per_request"]
    if each["mid"] is None:
        return f"Over the whole window not known: {reason(each)}"
    text = f"{usd_per_thousand(each['mid'])} per 1,000 requests over the whole window"
    return f"{text}; fewer requests share the bill of a quiet hour"


def cost_found(answer: Answer) -> str:
    """Where the window stands on the cost curve, in a sentence."""
    cost = answer["cost"]
    now, used = cost["usd_per_million_output_tokens"], cost["utilisation"]
    knee = cost.get("usd_per_million_output_tokens_at_knee")
    if now["mid"] is None:
        return f"Not known: {reason(now)}"
    text = f"{usd(now['mid'])} per million output tokens"
    if is_bound(used):
        return f"{text} at {value(used, percent).removeprefix('at ')} of capacity"
    if used["mid"] is None:
        return f"{text}; how much of the capacity that used is not known: {reason(used)}"
    text += f" at {percent(used['mid'])} of capacity"
    if knee and knee["mid"] is not None:
        text += f"; {usd(knee['mid'])} if it were full"
    return text


def _evidence(saturation: Mapping[str, Any]) -> str:
    for each in saturation["regimes"]:
        if each["regime"] == saturation["regime"] and each["evidence"]:
            return f" ({str(each['evidence']).rstrip('.')})"
    return ""


def plural(amount: float, noun: str) -> str:
    """A count with its noun: 1 engine, 2 engines."""
    return f"{count(amount)} {noun}{'' if amount == 1 else 's'}"
