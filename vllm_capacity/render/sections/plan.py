"""Which GPUs, how many, and for how long: a plan as tables and sentences."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from vllm_capacity.analysis import Analysis
from vllm_capacity.estimate import Estimate
from vllm_capacity.plan import Plan, working
from vllm_capacity.render.numbers import (
    Write,
    count,
    hours,
    minute_of,
    number,
    percent,
    plural,
    reason,
    seconds,
    sure,
    usd,
    value,
)
from vllm_capacity.render.prose import verdict as prose
from vllm_capacity.render.tables import (
    Cell,
    Column,
    Figure,
    Table,
    Text,
    figures_table,
    interval,
    table,
    text,
)
from vllm_capacity.verdicts.hardware.compare import Option
from vllm_capacity.verdicts.replay import Replay
from vllm_capacity.verdicts.sizing import MINUTE_SECONDS, ModelSurplus, Policy, QueueCheck, Surplus

_NEEDS: tuple[tuple[str, str, Write, str], ...] = (
    ("demand", "demand_requests_per_second", number, "requests/s"),
    ("demand, as output", "demand_output_tokens_per_second", number, "output tokens/s"),
    ("capacity of a replica", "capacity_output_tokens_per_second", number, "output tokens/s"),
    ("replicas, spares included", "replicas", count, ""),
    ("GPUs", "gpus", count, ""),
    ("cost per month", "usd_per_month", usd, ""),
)
_WAYS = {
    "off in hours of the day that are always idle": "schedule",
    "off whenever there are no requests": "scale_to_zero",
    "fewer replicas, always on": "consolidation",
}
_MILLION = 1e6
_SEVERAL = 1.5


def sizing_table(plan: Plan) -> Table:
    """Demand, capacity of a replica, and the replicas, GPUs and dollars needed.

    Without a price of its own, the cost uses the price of the option for the GPU in use.
    """
    figures = [Figure(label, getattr(plan, name), w, unit) for label, name, w, unit in _NEEDS]
    option = plan.option(plan.gpu)
    if option is not None and option.usd_per_month.is_known:
        if plan.options_basis:
            figures.append(Figure("replicas, by arithmetic", option.replicas, count))
            figures.append(Figure("cost per month, by arithmetic", option.usd_per_month, usd))
        elif not plan.usd_per_month.is_known:
            figures[-1] = Figure("cost per month, at a list price", option.usd_per_month, usd)
    by_arithmetic = plan.capacity_by_arithmetic_output_tokens_per_second
    if not by_arithmetic.is_unknown:
        words = "the same, by arithmetic"
        figures.insert(3, Figure(words, by_arithmetic, number, "output tokens/s"))
    return figures_table(figures)


def surplus_text(found: Surplus) -> Text:
    """How many replicas can be removed, and the savings per day; empty for a single replica."""
    if found.replicas < _SEVERAL:
        return text()
    there, removable = count(found.replicas), found.removable_replicas
    if removable.is_unknown or (removable.is_bound and not removable.low):
        return text(
            f"It is not known how many replicas can be removed, because {reason(removable)}."
        )
    if removable.high == 0:
        return text(f"None of the {there} replicas can be removed.", *_rests_on(found))
    many = f"At least {count(removable.low or 0.0)}"
    if removable.is_known and not removable.low:
        many = f"Up to {count(removable.high or 0.0)}"
    money = found.usd_per_day
    saved = "" if money.is_unknown else f": {_saved(money)} per day"
    return text(f"{many} of {there} replicas can be removed{saved}.", *_rests_on(found))


def arithmetic_text(analysis: Analysis) -> Text:
    """The estimates by arithmetic for servers that were never loaded; empty if there are none."""
    sentence = prose.by_arithmetic(analysis.answer)
    return text(sentence) if sentence else text()


def _saved(money: Estimate) -> str:
    """Dollars: at least the low end, or up to the high end if no saving is certain."""
    if money.low:
        return f"at least {usd(money.low)}"
    return f"up to {usd(money.high or 0.0)}"


def _rests_on(found: Surplus) -> list[str]:
    """The basis of the number of remaining replicas, a sentence per model."""
    policy, parts = found.policy, found.by_model
    spares = plural(policy.spare_replicas, "replica")
    free = f"{percent(policy.headroom_ratio)} stays free, and {spares}"
    if len(parts) == 1:
        (part,) = parts.values()
        return [f"{_busy_time(part)}, of which {free} may fail.", *replay_sentences(part.replays)]
    each = [
        sentence
        for name, part in parts.items()
        for sentence in (
            f"For {name or 'no model'}: {_of_model(part)}.",
            *replay_sentences(part.replays),
        )
    ]
    return [*each, f"Of this capacity, {free} of each model may fail."]


def replay_sentences(tried: Sequence[Replay]) -> list[str]:
    """The result of a replay of the busiest arrivals on these replicas; empty for none."""
    if not tried:
        return []
    first, last = tried[0], tried[-1]
    length = f"{hours(first.seconds / 3600)} from {minute_of(first.start)}"
    on = plural(first.replicas, "replica")
    replay = f"In a simulated replay of the busiest arrivals ({length}), {on}"
    if first.is_kept:
        return [f"{replay} kept up even at the low end of the capacity: {_fared(first)}."]
    failed = f"{replay} did not keep up ({_fared(first)})"
    if last.is_kept and last.replicas == first.replicas:
        return [f"{failed} at the low end of the capacity, but did at its high end."]
    if last.is_kept:
        return [f"{failed}, but {count(last.replicas)} did, so these are counted."]
    return [f"{failed}, nor did {count(last.replicas)}, so more are counted."]


def _fared(replay: Replay) -> str:
    """The p95 latencies of the replay's requests."""
    latencies = (
        f"p95 TTFT {seconds(replay.ttft_p95_seconds)}",
        f"ITL {seconds(replay.itl_p95_seconds)}",
        f"E2E {seconds(replay.e2e_p95_seconds)}",
    )
    return ", ".join(latencies)


def _of_model(part: ModelSurplus) -> str:
    """How many replicas of one model can be removed, and why the others are needed."""
    removable, there = part.removable_replicas, count(part.replicas)
    if removable.low:
        return f"at least {count(removable.low)} of {there} can be removed. {_busy_time(part)}"
    if removable.high is None:
        return f"it is not known how many of {there} can be removed, because {reason(removable)}"
    if removable.high:
        return f"up to {count(removable.high)} of {there} can be removed. {_busy_time(part)}"
    return f"none of {there} can be removed. {_busy_time(part)}"


def _busy_time(part: ModelSurplus) -> str:
    """The time of the highest demand, and the capacity of a replica for it."""
    asked, each = part.busiest_output_tokens_per_second.high, part.replica_output_tokens_per_second
    if not asked or part.busiest_start is None:
        return f"There was no demand; a replica provides {value(each, number)}"
    length = "minute" if part.busiest_seconds == MINUTE_SECONDS else "quarter-hour"
    return (
        f"The busiest {length}, from {minute_of(part.busiest_start)}, needed {number(asked)} "
        f"output tokens/s; a replica provides at least {number(each.low or 0.0)}"
    )


def queue_check(plan: Plan) -> Text:
    """The queueing model's result for these replicas without spares, and that of a replay on them.

    For several models, one sentence each, because their requests wait in separate queues.
    """
    parts, policy = plan.by_model, plan.policy
    if len(parts) < 2:
        capacity = plan.capacity_output_tokens_per_second
        sentence = _queue_sentence(plan.queue_check, plan.working_replicas, capacity)
        return text(sentence, *replay_sentences(plan.replays))
    return text(
        *(
            sentence
            for name, part in parts.items()
            for sentence in (
                f"For {name or 'no model'}: {_many(part.replicas)}.",
                _queue_sentence(
                    part.queue_check,
                    working(part.replicas, policy),
                    part.capacity_output_tokens_per_second,
                ),
                *replay_sentences(part.replays),
            )
        )
    )


def _many(replicas: Estimate) -> str:
    """The planned number of replicas of a model."""
    if replicas.is_unknown:
        return f"it is not known how many replicas are needed, because {reason(replicas)}"
    return f"{value(replicas, count)} replicas are planned, spares included"


def _queue_sentence(check: QueueCheck | None, replicas: int | None, capacity: Estimate) -> str:
    if check is None and capacity.is_bound:
        return "No queue check: only a bound on the capacity of a replica is known."
    if check is None:
        return "No queue check: demand, capacity or running requests at capacity are not known."
    limit = seconds(check.wait_limit_seconds)
    busy = (
        f"{plural(replicas or 1, 'replica')} without spares would be "
        f"{percent(check.utilization_ratio)} busy"
    )
    if check.wait_seconds is None:
        waits = "and the queue would grow without limit"
    elif check.is_within_limit and not check.wait_seconds:
        waits = f"and 95 % of requests would not wait at all (limit: {limit})"
    else:
        verdict = "within" if check.is_within_limit else "above"
        waits = f"with a p95 wait of {seconds(check.wait_seconds)}, {verdict} the limit of {limit}"
    fewest = "no number of replicas meets that limit"
    if check.replicas_needed is not None:
        fewest = f"meeting the limit takes at least {plural(check.replicas_needed, 'replica')}"
    return f"queue check: {busy}, {waits}; {fewest}. Assumed: {check.assumes}."


def sensitivity_table(plan: Plan) -> Table:
    """The replicas needed if demand, prompts or caching change."""
    columns = (
        Column("case", "case"),
        Column("replicas", "replicas", count, is_numeric=True),
        Column("interval"),
        Column("why not known", "reason", is_note=True),
    )
    rows = [
        (name, each, interval(each, count), reason(each) if each.is_unknown else "")
        for name, each in plan.sensitivity.items()
    ]
    return table(columns, rows)


def runway_table(plan: Plan, *, growth_ratio_per_month: float) -> Table:
    """The load that each number of replicas can serve, as a multiple of demand, and until when."""
    growth, policy = percent(growth_ratio_per_month), plan.policy
    columns = (
        Column("replicas", "replicas", count, is_numeric=True),
        Column("carried", "carried_output_tokens_per_second", number, is_numeric=True),
        Column("times the demand", "times_demand", number, is_numeric=True),
        Column("interval"),
        Column(f"enough for, at {growth} growth per month", "months"),
    )
    rows = [
        (
            each.replicas,
            each.carried,
            each.times_demand,
            interval(each.times_demand, number),
            Cell(_months(each.months), each.months),
        )
        for each in plan.runways(growth_ratio_per_month)
    ]
    return table(
        columns,
        rows,
        caption=f"Carried: output tokens/s without the {plural(policy.spare_replicas, 'spare')} "
        f"and with {percent(policy.headroom_ratio)} of each other replica kept free.",
        empty=f"It is not known how long replicas are enough: {reason(plan.replicas)}.",
    )


def forecast_table(plan: Plan) -> Table:
    """Requests of the next day by hour with measured intervals, or why there is no forecast."""
    forecast = plan.forecast
    columns = (
        Column("hour from (UTC)", "start", _hour),
        Column("at least", "low", number, is_numeric=True),
        Column("requests", "mid", number, is_numeric=True),
        Column("at most", "high", number, is_numeric=True),
    )
    rows = [(each.ts, each.low, each.mid, each.high) for each in forecast.forecast or ()]
    return table(
        columns,
        rows,
        caption=method_text(forecast.method, forecast.coverage_measured) if rows else "",
        empty=f"No forecast: {forecast.reason.rstrip('.')}.",
    )


def method_text(method: str, coverage_ratio: float | None) -> str:
    """The method of a forecast, and the expected coverage of its intervals."""
    if coverage_ratio is None:
        return f"Method: {method}."
    share = percent(coverage_ratio)
    return f"Method: {method}. Coverage expected from the back-test: {share} of points inside."


def savings_table(analysis: Analysis, policy: Policy) -> Table:
    """Dollars per month that three ways to avoid idle time would have saved, or why unknown."""
    found = analysis.savings(policy)
    ways = [Figure(label, getattr(found, name), usd) for label, name in _WAYS.items()]
    if any(each.estimate.is_known for each in ways):
        return figures_table(ways, caption="Savings, dollars per month.")
    because = reason(ways[0].estimate)
    return figures_table((), empty=f"Savings are not known: {because}.")


def gpu_table(options: Sequence[Option]) -> Table:
    """The comparable GPUs of a plan, most tokens per dollar first."""
    columns = (
        Column("GPU", "gpu"),
        Column("$ per GPU-hour", "usd_per_gpu_hour", usd, is_numeric=True),
        Column("M tokens per $", "tokens_per_usd", _millions, is_numeric=True),
        Column("interval"),
        Column("replicas", "replicas", count, is_numeric=True),
        Column("$ per month", "usd_per_month", usd, is_numeric=True),
        Column("label", "label"),
        Column("output tokens/s", "output_tokens_per_second", number, is_note=True),
        Column("price, and what is assumed", "price", is_note=True),
    )
    rows = [
        (
            Cell(_name(each), each.gpu),
            each.usd_per_gpu_hour,
            each.tokens_per_usd,
            interval(each.tokens_per_usd, _millions),
            each.replicas,
            each.usd_per_month,
            each.label,
            each.slo_output_tokens_per_second,
            "; ".join(filter(None, (each.price_row, _assumed(each)))),
        )
        for each in options
        if each.is_comparable
    ]
    return table(columns, rows, empty="No GPU can be compared.")


def rejected_table(options: Sequence[Option]) -> Table:
    """The GPUs that cannot be compared, grouped by reason."""
    groups: dict[str, list[str]] = {}
    for each in options:
        if not each.is_comparable:
            groups.setdefault(_why_not(each), []).append(_name(each))
    rows = [(because, ", ".join(names)) for because, names in groups.items()]
    columns = (Column("not compared", "reason"), Column("GPUs", "gpus", is_note=True))
    return table(columns, rows, empty="Every GPU could be compared.")


def plan_verdict(
    plan: Plan, options: Sequence[Option], *, model: str, requests_per_second: float
) -> Text:
    """The replicas needed for the window's load, then the best GPU for a model, each with its load.

    `options` are for `model` at `requests_per_second`. They are based on an externally measured
    rate, so they are known even if the window's own capacity is not.
    """
    return text(" ".join(filter(None, (_enough(plan), _best(options, model, requests_per_second)))))


def _enough(plan: Plan) -> str:
    replicas, rate = plan.replicas, plan.demand_requests_per_second
    load = [plan.model or "no model named"]
    load += [] if rate.mid is None else [f"{number(rate.mid)} requests/s"]
    sentence = f"for this window's load ({', '.join(load)}), "
    if replicas.is_unknown:
        return f"{sentence}it is not known how many replicas are needed: {reason(replicas)}."
    sentence += f"{sure(replicas, count)} replicas are needed, spares included"
    if not plan.usd_per_month.is_unknown:
        sentence += f", at {sure(plan.usd_per_month, usd)} per month"
    if plan.forecast.forecast is None:
        because = plan.forecast.reason.rstrip(".")
        sentence += f"; for how long that is enough is not known: {because}"
    return f"{sentence}."


def _best(options: Sequence[Option], model: str, requests_per_second: float) -> str:
    known = [option for option in options if option.is_comparable]
    if not known:
        return ""
    best, *others = known
    rivals = [option for option in others if option.may_equal(best)]
    sentence = (
        f"For {model} at {number(requests_per_second)} requests/s, from the rate measured "
        f"elsewhere, {best.gpu} gives the most tokens per dollar"
    )
    if best.replicas.is_known:
        sentence += f", with {sure(best.replicas, count)} replicas, spares included"
    if rivals:
        sentence += f", though {plural(len(rivals), 'other type')} may give as many"
    return f"{sentence}."


def _name(option: Option) -> str:
    return option.gpu.partition(" (")[0]


def _assumed(option: Option) -> str:
    """What a GPU's label adds to its name: its assumed form factors."""
    return option.gpu.partition(" (")[2].rstrip(")")


def _why_not(option: Option) -> str:
    """The reason without the GPU's name, so that several GPUs can share it."""
    name = _name(option)
    because = option.reason or option.tokens_per_usd.reason
    return because.removeprefix(f"{name} ").replace(f" of {name}", "")


def _millions(tokens: float, like: float | None = None) -> str:
    return number(tokens / _MILLION, None if like is None else like / _MILLION)


def _hour(at: datetime) -> str:
    return f"{at:%-d %b %Y %H:%M}"


def _months(months: Estimate) -> str:
    if months.low is None or months.high is None:
        return reason(months) if months.is_unknown else value(months, number)
    if months.high < 0:
        return "already too few"
    if months.low < 0:
        return f"perhaps already too few, {number(months.high)} months at most"
    ends = interval(months, number)
    return f"{number(months.mid or 0.0)} months{f' ({ends})' if ends else ''}"
