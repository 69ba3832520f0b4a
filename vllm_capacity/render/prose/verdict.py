"""The verdict on a window in a few sentences, written from its answer by rules.

If a figure is unknown, its sentence says so and why; no sentence has a blank. Nothing is computed
here.
"""

from __future__ import annotations

from collections.abc import Sequence

from vllm_capacity.answer import ATTAINMENT_GOAL, Answer
from vllm_capacity.assumptions import TARGETS
from vllm_capacity.estimate import Estimate
from vllm_capacity.render.engines import short_names
from vllm_capacity.render.numbers import (
    Write,
    between,
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
from vllm_capacity.verdicts.fleet import EngineRow
from vllm_capacity.verdicts.hardware.unloaded import ByArithmetic
from vllm_capacity.verdicts.saturation.advice import KV_MEMORY, REPLICAS
from vllm_capacity.verdicts.saturation.fit import BORROWED, EXTRAPOLATED, Saturation
from vllm_capacity.verdicts.saturation.regimes import CLIENT, IDLE, KV, PREFILL, SCHEDULER, UNKNOWN
from vllm_capacity.verdicts.utilization import NOT_REACHED

SIMULATED = "These figures come from a simulation, not from the telemetry of a server."

REGIMES = {
    IDLE: "idle",
    CLIENT: "enough capacity",
    SCHEDULER: "scheduler-bound",
    KV: "KV-cache-bound",
    PREFILL: "prefill-bound",
    UNKNOWN: "unknown",
}
LIMITS = {
    SCHEDULER: "the limit on concurrent requests (max_num_seqs)",
    KV: "KV-cache memory",
    PREFILL: "prefill (processing prompts)",
}
SIGNS = {
    SCHEDULER: "requests waited while running requests were at their limit and the KV cache had "
    "room",
    KV: "the KV cache was full while requests waited or were preempted",
    PREFILL: "requests waited although neither the KV cache nor the running batch was full",
}
_NEXT = {
    SCHEDULER: "raise max_num_seqs: the KV cache has room for more concurrent requests",
    KV: "give the KV cache more memory (a higher gpu_memory_utilization, a shorter max_model_len, "
    "an FP8 KV cache) or add a replica; more requests to this server would only wait longer",
    PREFILL: "raise max_num_batched_tokens, or let prompts share prefixes, so that prompts are "
    "processed sooner",
}
_HOW = {
    EXTRAPOLATED: ", extrapolated from lighter load",
    BORROWED: ", with peers standing in for engines that were never at their limit",
}
SHAPES = {"good": "●", "usable": "▲", "poor": "■"}
POOR = frozenset({"error"})
USABLE = frozenset({"warning"})

_CENT_USD = 0.01
_SOME_ENGINES = NOT_REACHED.partition("{}")[0]
_NAMED = 3
_FULL_RATIO = 0.95
_WIDE = 3.0  # an interval is called rough if its ends differ by more than this factor


def verdict(
    answer: Answer, *, is_simulated: bool = False, engines: Sequence[EngineRow] = ()
) -> list[str]:
    """Four sentences: cost per request, utilization, bottleneck and headroom, what to do next.

    Optional sentences: first, that the telemetry was simulated; the `engines` of a fleet with the
    highest idle cost; arithmetic for a server that was never loaded and whose GPU and model are
    known; and, second to last, latency targets that were missed or allow less than the server's
    capacity.
    """
    sentences = [SIMULATED] if is_simulated else []
    targets = within_targets(answer)
    cost = f"{_whole_bill(answer)}{_cost(answer)}"
    body = [cost, _utilization(answer), *waste(engines), _bottleneck(answer)]
    body += [by_arithmetic(answer)] if by_arithmetic(answer) else []
    return [*sentences, *body, *([targets] if targets else []), _next(answer)]


def waste(engines: Sequence[EngineRow]) -> list[str]:
    """The engines of a fleet with the highest idle cost, by name; none without dollars.

    At most three, ranked by the idle dollars that are certain.
    """
    idle = [row for row in engines if row.idle_usd.low and row.allocation_usd.mid]
    if len(engines) < 2 or not idle:
        return []
    names = short_names(row.engine for row in engines)
    most = sorted(idle, key=lambda row: (-(row.idle_usd.low or 0.0), row.engine))[:_NAMED]
    costs = ", ".join(
        f"{names[row.engine]} {value(row.idle_usd, usd)} of {value(row.allocation_usd, usd)}"
        for row in most
    )
    more = f", and {plural(len(idle) - len(most), 'more engine')}" if len(idle) > len(most) else ""
    return [f"Unused capacity by engine: {costs}{more}."]


def by_arithmetic(answer: Answer) -> str:
    """The estimates by arithmetic for a server that was never loaded; empty if there are none."""
    found = answer.by_arithmetic
    if found.capacity.is_unknown or found.running_requests is None or found.itl_seconds is None:
        return ""
    running = f"{number(found.running_requests)} running requests"
    if round(found.running_requests, 2) == 1:
        running = "1 running request"
    text = (
        f"By arithmetic, corrected by your ITL of {seconds(found.itl_seconds)} at "
        f"{running}, capacity on {found.gpu} is "
        f"{sure(found.capacity, number)} output tokens/s{_admitted(found)}"
    )
    if not found.utilization.is_unknown:
        text += f": utilization was {sure(found.utilization, percent)}"
    idle, bill = found.idle_usd, answer.cost.allocation_usd
    if not idle.is_unknown and bill.mid is not None:
        text += f", and {sure(idle, usd)} of the {usd(bill.mid)} bill bought capacity nobody used"
    return f"{text}.{calculated_within(answer)}{_can_go(answer)}"


def calculated_within(answer: Answer) -> str:
    """The throughput within the latency targets, by arithmetic; empty if it is unknown."""
    found = answer.by_arithmetic.slo_throughput_output_tokens_per_second
    if found.is_unknown:
        return ""
    return f" Within the latency targets it is {sure(found, number)} output tokens/s."


def _admitted(found: ByArithmetic) -> str:
    """The concurrency at a capacity by arithmetic, and its basis; empty for a bound."""
    running = found.capacity_running_requests
    if found.capacity.is_bound or running is None:
        return ""
    return f" at {count(running)} running requests (KV memory, vLLM's default max_num_seqs)"


def _can_go(answer: Answer) -> str:
    """How many replicas can be removed, by arithmetic; empty if none or unknown."""
    found = answer.by_arithmetic
    many, money = found.removable_replicas, found.saved_usd_per_day
    if not many.low or answer.window.engines < 2:
        return ""
    saved = "" if not money.low else f", which saves {_range(money, usd)} per day"
    return f" At that capacity, {_range(many, count)} replicas can be removed{saved}."


def _range(found: Estimate, write: Write) -> str:
    """The low to the high end, or "at least" the low end."""
    low, high = write(found.low or 0.0), write(found.high or 0.0)
    if found.high is None:
        return f"at least {low}"
    return low if low == high else f"{low} to {high}"


def within_targets(answer: Answer) -> str:
    """The throughput within the latency targets, and the SLO attainment; empty if not needed.

    Needed if a target is met by fewer than 95 %, or if the throughput within the targets is below
    the capacity; never without targets.
    """
    missed, served = answer.slo.missed, served_within(answer)
    if not served or not missed:
        return served
    shares = " and ".join(
        f"{sure(share, percent)} of {TARGETS[name].observed}" for name, share in missed.items()
    )
    goal = percent(ATTAINMENT_GOAL)
    return f"{served} SLO attainment: {shares} arrived within the target (goal: {goal})."


def served_within(answer: Answer) -> str:
    """The first sentence of `within_targets`: the throughput."""
    goodput, capacity = answer.slo.throughput, answer.saturation.capacity
    is_less = goodput.mid is not None and capacity.mid is not None and goodput.mid < capacity.mid
    if not is_less and not answer.slo.missed:
        return ""
    if goodput.is_unknown:
        return f"What it can serve within the latency targets is not known: {reason(goodput)}."
    text = f"Within the latency targets it can serve {sure(goodput, number)} output tokens/s"
    served = answer.throughput.output_tokens_per_second
    return f"{text}." if served is None else f"{text}; it served {number(served)} on average."


def quality_word(answer: Answer) -> tuple[str, str]:
    """The telemetry quality as (word, why): good, usable or poor, by the worst finding."""
    for word, levels in (("poor", POOR), ("usable", USABLE)):
        rows = [each for each in answer.quality if each.severity in levels]
        if rows:
            return word, f"{plural(len(rows), 'finding')}: {_named([each.check for each in rows])}"
    return "good", "no problem affects the figures"


def is_extrapolated(saturation: Saturation) -> bool:
    """Whether a capacity was extrapolated from lighter load rather than seen as a plateau."""
    return saturation.capacity_kind == EXTRAPOLATED


def _whole_bill(answer: Answer) -> str:
    """The total cost of a fleet; empty for one engine, and without a price."""
    bill, hours = answer.cost.allocation_usd, answer.window.hours
    if answer.window.engines < 2 or bill.mid is None:
        return ""
    return f"The bill was {usd(bill.mid)} for {number(hours)} h. "


def _cost(answer: Answer) -> str:
    each = answer.cost.usd_per_request
    if each.is_bound:
        return f"The cost per request is {value(each, usd)}: {reason(each)}."
    if each.low is None or each.mid is None or each.high is None:
        return f"The cost per request is not known: {reason(each)}."
    text, write = _per_request(each.mid)
    interval = between(each, write)
    text += f", {interval}" if interval else ""
    if answer.requests.lost.high:
        unseen = plural(answer.requests.lost.high, "request")
        return (
            f"{text}. The true cost may be lower, because up to {unseen} may have finished "
            "unrecorded before a server restarted or died."
        )
    if each.low == each.high:
        return f"{text}. Exact count; the only uncertainty is the GPU price."
    is_wide = each.low <= 0 or each.high / each.low > _WIDE
    return f"{text}{': a rough figure' if is_wide else ''}."


def _per_request(each: float) -> tuple[str, Write]:
    """The sentence so far, and the number format for further amounts in it."""
    if each >= _CENT_USD:
        return f"The cost per request is {usd(each)}", usd
    thousand = usd_per_thousand(each)
    return f"The cost per request is {usd(each)}, or {thousand} per 1,000", usd_per_thousand


def _utilization(answer: Answer) -> str:
    cost = answer.cost
    used, idle, bill = cost.utilization, cost.idle_usd, cost.allocation_usd
    why = reason(used)
    if answer.window.engines > 1 and why.startswith(_SOME_ENGINES):  # more below by engine
        why = why.partition(": ")[0]
    if used.is_unknown:
        return f"Utilization, and so the unused share of the bill, is not known: {why}."
    if used.mid is None:
        return _utilization_bound(used, idle, bill, why)
    if used.high == 0:
        paid = f" of {usd(bill.mid)}" if bill.mid is not None else ""
        return f"Utilization was 0: nothing was generated, and the whole bill{paid} was idle cost."
    aside = ", ignoring latency targets" if within_targets(answer) else ""
    text = f"Utilization was {sure(used, percent)} of capacity{aside}"
    if used.mid >= _FULL_RATIO:
        return f"{text}; almost all of the bill bought capacity that was used."
    rest = "the rest of the bill"
    if idle.mid is not None and bill.mid is not None:
        rest = f"{usd(idle.mid)} of the {usd(bill.mid)} bill"
    return f"{text}; {rest} bought capacity nobody used."


def _utilization_bound(used: Estimate, idle: Estimate, bill: Estimate, why: str) -> str:
    """The sentence for a capacity that is a lower bound, so that utilization is an upper one."""
    text = f"Utilization was {value(used, percent)} of capacity"
    if idle.is_bound and bill.mid is not None:
        text += f": {value(idle, usd)} of the {usd(bill.mid)} bill bought capacity nobody used"
    return f"{text}. The exact share is not known: {why}."


def _bottleneck(answer: Answer) -> str:
    saturation = answer.saturation
    first, capacity = saturation.bottleneck, _capacity(saturation)
    if first in LIMITS:
        return f"The first bottleneck is {LIMITS[first]}: at peak load, {SIGNS[first]}. {capacity}"
    if saturation.regime == IDLE:
        return "There was no bottleneck: the server was idle."
    if saturation.regime == CLIENT:
        return f"There was no bottleneck: the server had capacity for more requests. {capacity}"
    return f"The bottleneck is not known{_evidence(saturation)}."


def _capacity(saturation: Saturation) -> str:
    """The capacity and the headroom, or that the capacity is unknown (utilization says why)."""
    capacity, headroom = saturation.capacity, saturation.headroom_ratio
    if capacity.is_unknown:
        return "Capacity is not known."
    if capacity.mid is None:
        bound = value(capacity, number)
        return f"Capacity is {bound} output tokens/s; how much exactly is not known."
    running = saturation.capacity_running_requests.mid
    at = f" at {number(running)} running requests" if running is not None else ""
    how = _HOW.get(saturation.capacity_kind, "")
    text = f"Capacity is {sure(capacity, number)} output tokens/s{at}{how}"
    if headroom.mid is None:
        return f"{text}."
    if headroom.mid < 1 - _FULL_RATIO:
        return f"{text}; there was no headroom over the whole window."
    return f"{text}; headroom over the whole window was {percent(headroom.mid)}."


def _evidence(saturation: Saturation) -> str:
    for each in saturation.regimes:
        if each.regime == saturation.regime and each.evidence:
            return f" ({each.evidence.rstrip('.')})"
    return ""


def _next(answer: Answer) -> str:
    saturation = answer.saturation
    errors = [each.check for each in answer.quality if each.severity in POOR]
    if errors:
        return (
            "Next: fix the telemetry before deciding anything; it has errors that make figures "
            f"unreliable: {_named(errors)}."
        )
    if saturation.bottleneck in _NEXT:
        advice = f"{_balance(saturation)}{_NEXT[saturation.bottleneck]}"
        return f"Next: {advice}.{_gain(answer)}"
    if saturation.regime == IDLE:
        return "Next: stop the server while nobody uses it, or let it share its machine."
    if answer.cost.allocation_usd.mid is None:
        return "Next: give a GPU price, which turns these figures into dollars."
    if saturation.capacity.mid is None:
        return (
            "Next: run one load test up to the point where requests queue; until then the capacity "
            "stays unknown."
        )
    if answer.slo.missed:
        return (
            "Next: add a replica or send it fewer requests: it misses its latency targets below "
            "its capacity."
        )
    return "Next: send it more requests or run fewer servers; there is headroom."


def _balance(saturation: Saturation) -> str:
    """Advice to balance the load if one engine was at a limit while another had headroom."""
    found = saturation.imbalance
    if found is None:
        return ""
    return (
        f"balance the load first: {_listed(found.limited)} reached the limit while "
        f"{_listed(found.free)}, serving the same model, had room. Only then "
    )


def _gain(answer: Answer) -> str:
    """The expected gain of the first piece of advice, if known."""
    known = [each for each in answer.advice if each.effect.low is not None]
    if not known:
        return ""
    first = known[0]
    share = sure(first.effect, percent)
    if first.setting == REPLICAS:
        return f" Running fewer engines would save {share} of the bill."
    change = "doubling KV memory" if first.setting == KV_MEMORY else "that"
    return f" Expected: {change} gives about {share} more output."


def _named(checks: Sequence[str]) -> str:
    """The distinct names of checks."""
    return ", ".join(dict.fromkeys(checks))


def _listed(names: Sequence[str]) -> str:
    """Up to three names; if there are more, two and the number of others."""
    shown = list(names)
    if len(shown) > _NAMED:
        shown = [*shown[: _NAMED - 1], f"{len(shown) - _NAMED + 1} others"]
    return " and ".join([", ".join(shown[:-1]), shown[-1]] if shown[1:] else shown)
