"""Cost per request and its idle share; other prices; what to change first."""

from __future__ import annotations

from collections.abc import Sequence

from vllm_capacity.analysis import Analysis
from vllm_capacity.bills import Group
from vllm_capacity.estimate import Estimate, Kind
from vllm_capacity.facts.metrics import GENERATION_TOKENS
from vllm_capacity.facts.prices import Price, offers
from vllm_capacity.render.numbers import (
    NOT_KNOWN,
    Write,
    count,
    number,
    percent,
    reason,
    seconds,
    span,
    sure,
    usd,
    usd_per_thousand,
    value,
    why,
)
from vllm_capacity.render.report.reprice import Repriced
from vllm_capacity.render.sections.fleet import limit_of, slowest
from vllm_capacity.render.tables import (
    Cell,
    Column,
    Figure,
    Table,
    Text,
    Value,
    figures_table,
    interval,
    reasons_once,
    table,
    text,
    with_interval,
)
from vllm_capacity.timerange import parse_instant
from vllm_capacity.verdicts.cost.bill import Costs
from vllm_capacity.verdicts.saturation.advice import Advice

_COSTS: tuple[tuple[str, str, Write], ...] = (
    ("allocation_usd", "bill, idle included", usd),
    ("idle_usd", "idle cost, of the bill", usd),
    ("utilization", "utilization", percent),
    ("usd_per_request", "cost per 1,000 requests", usd_per_thousand),
    ("usd_per_request_at_knee", "cost per 1,000 requests at capacity", usd_per_thousand),
    ("usd_per_million_output_tokens", "cost per million output tokens", usd),
    ("usd_per_million_output_tokens_at_knee", "cost per million output tokens at capacity", usd),
    ("usd_per_million_total_tokens", "cost per million tokens, input and output", usd),
    ("usd_per_million_input_tokens_split", "cost per million input tokens, bill split", usd),
    ("usd_per_million_output_tokens_split", "cost per million output tokens, bill split", usd),
    ("tokens_per_usd", "output tokens per dollar", number),
)
_BILL: tuple[tuple[str, str, Write], ...] = (
    ("allocation_usd", "bill", usd),
    ("idle_usd", "idle cost", usd),
    ("utilization", "utilization", percent),
    ("usd_per_request", "per 1,000 requests", usd_per_thousand),
    ("usd_per_million_output_tokens", "per million output tokens", usd),
)
_SHARED, _NAMED = 3, 3  # engines: minimum to merge rows of advice, maximum named
_RESTS_ON_OUTPUT = frozenset({"idle_usd", "utilization", "usd_per_million_output_tokens"})
_CHEAPER = {
    True: "own GPUs are cheaper",
    False: "the API is cheaper",
    None: "the difference is too uncertain to say which is cheaper",
}


def cost_table(analysis: Analysis) -> Table:
    """Every cost figure of the window: value, interval, and its basis or why it is unknown."""
    cost = analysis.answer.cost
    return figures_table(Figure(label, getattr(cost, name), write) for name, label, write in _COSTS)


def repriced_table(found: Repriced) -> Table:
    """Every cost figure of a report, as reported and at another price, with intervals."""
    columns = (
        Column("figure", "figure"),
        Column("as reported", "before", is_numeric=True),
        Column("at this price", "after", is_numeric=True),
        Column("intervals", is_note=True),
        Column("why not known", "reason", is_note=True),
    )
    rows: list[tuple[Value | Cell, ...]] = []
    for name, label, write in _COSTS:
        before, after = getattr(found.before, name), getattr(found.after, name)
        cells = [Cell(value(each, write), each) for each in (before, after)]
        rows.append((label, *cells, _both_intervals(before, after, write), after.reason))
    when = span(parse_instant(found.start), parse_instant(found.end))
    caption = f"{found.window}, {when}"
    return reasons_once(table(columns, rows, caption=caption))


def _both_intervals(before: Estimate, after: Estimate, write: Write) -> str:
    """The interval after and before; empty if neither has one."""
    was, now = (interval(each, write) for each in (before, after))
    return f"{now or 'exact'}, was {was or 'exact'}" if was or now else ""


def bill_table(analysis: Analysis, by: str = "engine") -> Table:
    """The bill by engine, instance, model or any label, and the total as the last row.

    InputError if no counter has the label.
    """
    bill = analysis.bill_by(by)
    columns = (
        Column(by, "group"),
        *(Column(title, name, write, is_numeric=True) for name, title, write in _BILL),
    )
    groups = [*sorted(bill.parts.items()), ("total", bill.whole)]
    rows = [(name, *(getattr(costs, each) for each, _, _ in _BILL)) for name, costs in groups]
    return table(columns, rows, caption=_notes(bill.whole, by, analysis.unlabelled(by)))


def groups_table(analysis: Analysis, by: str) -> Table:
    """Requests, tokens, utilization, bill, p95 TTFT and limit by a label; the total comes last.

    InputError if nothing has the label.
    """
    found = analysis.by(by)
    columns = (
        Column(by, "group"),
        Column("requests", "successful_requests", count, is_numeric=True),
        Column("prompt tokens", "prompt_tokens", count, is_numeric=True),
        Column("output tokens", "generation_tokens", count, is_numeric=True),
        Column("share of tokens", "token_share_ratio", percent, is_numeric=True),
        Column("hours", "billed_hours", number, is_numeric=True),
        Column("utilization", "utilization", percent, is_numeric=True),
        Column("TTFT p95", "ttft_p95_seconds", seconds, is_numeric=True),
        Column("bill", "allocation_usd", usd, is_numeric=True),
        Column("what limits it", "limit", is_note=True),
    )
    row_of = {row.model: row for row in analysis.rows_by(by)}
    rows: list[Sequence[Value | Cell]] = [
        (
            name,
            *_counted(each),
            row_of[name].token_share_ratio,
            *_used(each),
            slowest(row_of[name].ttft_p95),
            each.cost.allocation_usd,
            limit_of(row_of[name]),
        )
        for name, each in sorted(found.parts.items())
    ]
    whole, slow = found.whole, slowest(analysis.latency.ttft.p95)
    rows.append(
        ("total", *_counted(whole), None, *_used(whole), slow, whole.cost.allocation_usd, Cell(""))
    )
    return table(columns, rows, caption=_notes(found.whole.cost, by, analysis.unlabelled(by)))


def _counted(group: Group) -> tuple[float | None, ...]:
    return group.successful_requests, group.prompt_tokens, group.generation_tokens


def _used(group: Group) -> tuple[float, Estimate]:
    return group.billed_hours, group.cost.utilization


def other_prices(analysis: Analysis) -> Table:
    """The same window at other offers for its GPU and at its own price, cheapest first.

    Empty, with the reason, if the price is not a row of the price list: only a row names a GPU.
    """
    columns = (
        Column("price list row", "price"),
        Column("date", "date"),
        Column("per GPU-hour", "usd_per_gpu_hour", usd, is_numeric=True),
        Column("per 1,000 requests", "usd_per_request", is_numeric=True),
        Column("per million output tokens", "usd_per_million_output_tokens", usd, is_numeric=True),
        Column("source", "source", is_note=True),
    )
    own = analysis.assumptions.pricing.row
    if own is None:
        empty = (
            "No other price is compared: that needs a GPU chosen by a row of the price list "
            "(parameter price)."
        )
        return table(columns, [], empty=empty)
    others = {each.key: each for each in (*offers(f"{own.gpu}-{own.form_factor}"), own)}
    ordered = sorted(others.values(), key=lambda each: (each.usd_per_gpu_hour, each.key))
    return table(columns, [_at_price(analysis, each, is_own=each == own) for each in ordered])


def first_changes(analysis: Analysis) -> Table:
    """What to change first, before buying a GPU: the setting, its bounded effect, its evidence.

    Three or more engines with the same setting and gain are one row, with the evidence of the
    first.
    """
    columns = (
        Column("change", "setting"),
        Column("engine", "engine"),
        Column("gain", "gain"),
        Column("evidence", "evidence", is_note=True),
    )
    groups: dict[tuple[str, Cell], list[Advice]] = {}
    for each in analysis.answer.advice:
        groups.setdefault((each.setting, _gain(each.effect)), []).append(each)
    rows = [
        (setting, _engines([each.engine for each in row]), gain, row[0].evidence)
        for (setting, gain), own in groups.items()
        for row in ([own] if len(own) >= _SHARED else [[each] for each in own])
    ]
    return table(columns, rows, empty="No setting of the server limited throughput in this window.")


def _engines(names: Sequence[str]) -> Cell:
    """The engines of one row: up to three names, and the number of others."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return Cell(", ".join(names[:_NAMED]) + more, names[0])


def break_even_table(
    analysis: Analysis,
    *,
    usd_per_million_input: float,
    usd_per_million_output: float,
    note: str,
) -> Table:
    """Own GPUs against an API's price for the same requests, and where both cost the same.

    `note` names the source of the API's price. InputError for an invalid price.
    """
    found = analysis.break_even(usd_per_million_input, usd_per_million_output)
    if found is None:
        empty = "No request finished in this window: there is nothing to compare with an API."
        return figures_table((), empty=empty)
    prices = f"{usd(usd_per_million_input)} / {usd(usd_per_million_output)} per million in / out"
    api = Estimate.exact(found.api_usd_per_request, f"{prices}: {note}", kind=Kind.GIVEN)
    today = analysis.throughput.requests_per_day
    figures = (
        Figure("1,000 requests, from the API", api, usd_per_thousand),
        Figure("1,000 requests, own GPUs", found.own_usd_per_request, usd_per_thousand),
        Figure("requests per day, in this window", today, number),
        Figure("requests per day at break-even", found.requests_per_day, number),
        Figure("utilization at break-even", found.utilization, percent),
        Figure("price per GPU-hour at break-even", found.usd_per_gpu_hour, usd),
    )
    return figures_table(figures, caption=f"In this window {_CHEAPER[found.is_own_cheaper]}.")


def cost_verdict(analysis: Analysis) -> Text:
    """The cost per request and its idle share, in one sentence."""
    cost = analysis.answer.cost
    each, idle, knee = cost.usd_per_request, cost.idle_ratio, cost.usd_per_request_at_knee
    if each.is_unknown:
        return text(f"The cost per request is not known: {reason(each)}.")
    sentence = f"1,000 requests cost {sure(each, usd_per_thousand)}"
    if idle.is_unknown:
        return text(f"{sentence}; the idle share is not known: {reason(idle)}.")
    sentence += f", {sure(idle, percent)} of it idle cost"
    if not knee.is_unknown:
        sentence += f"; at capacity they would cost {sure(knee, usd_per_thousand)}"
    return text(f"{sentence}.")


def _notes(whole: Costs, by: str, unlabelled: Sequence[str]) -> str:
    """The intervals of the total, and each reason once with all figures it leaves unknown."""
    intervals = []
    reasons: dict[str, list[str]] = {}
    for name, title, write in _BILL:
        found = getattr(whole, name)
        if found.is_known:
            ends = interval(found, write)
            intervals += [f"{title} {ends}"] if ends else []
            continue
        because = found.reason
        if GENERATION_TOKENS in unlabelled and name in _RESTS_ON_OUTPUT:
            because = f"{GENERATION_TOKENS} is counted without the label {by}"
        bound = "only a bound is known" if found.is_bound else NOT_KNOWN
        reasons.setdefault(f"{bound}: {because}", []).append(title)
    notes = [f"Total: {', '.join(intervals)}"] if intervals else []
    notes += [f"{', '.join(titles)}: {because}" for because, titles in reasons.items()]
    return ". ".join(f"{note[:1].upper()}{note[1:]}" for note in notes)


def _at_price(analysis: Analysis, row: Price, *, is_own: bool) -> tuple[Value | Cell, ...]:
    cost = analysis.bill_at(row.usd).whole
    return (
        f"{row.offer}{' (used here)' if is_own else ''}",
        row.date,
        row.usd_per_gpu_hour,
        with_interval(cost.usd_per_request, usd_per_thousand),
        with_interval(cost.usd_per_million_output_tokens, usd),
        row.source,
    )


def _gain(effect: Estimate) -> Cell:
    if effect.is_unknown:
        return Cell(f"{value(effect, percent)}: {why(effect)}", effect)
    return with_interval(effect, percent)
