"""Terminal output for a window, a bill, a plan and the results of smaller commands.

It has the same sentences and tables as the page, in the same order, wrapped to a width.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from vllm_capacity.alerts import Alert
from vllm_capacity.analysis import Analysis
from vllm_capacity.estimate import Estimate
from vllm_capacity.facts.gpus import GIB
from vllm_capacity.facts.llms import Llm
from vllm_capacity.plan import Plan
from vllm_capacity.render.numbers import count, minute_of, number, percent, seconds, value
from vllm_capacity.render.prose import verdict as prose
from vllm_capacity.render.sections.choice import choice_sentences, choice_text
from vllm_capacity.render.sections.cost import bill_table, groups_table
from vllm_capacity.render.sections.header import (
    price_text,
    tile_table,
    verdict_sentences,
    window_line,
)
from vllm_capacity.render.sections.plan import (
    arithmetic_text,
    forecast_table,
    gpu_table,
    method_text,
    queue_check,
    rejected_table,
    sensitivity_table,
    sizing_table,
    surplus_text,
)
from vllm_capacity.render.sections.quality import quality_table
from vllm_capacity.render.tables import (
    Cell,
    Column,
    Figure,
    Table,
    Value,
    figures_table,
    interval,
    table,
    wrapped,
)
from vllm_capacity.sources.demand import Clock
from vllm_capacity.telemetry.window import KnownWindow
from vllm_capacity.verdicts.demand.forecast import Forecast
from vllm_capacity.verdicts.hardware.what_if import WhatIf
from vllm_capacity.verdicts.saturation.at_load import AtLoad
from vllm_capacity.verdicts.saturation.fit import Saturation
from vllm_capacity.verdicts.saturation.next_load import NextLoad

_WIDTH = 80


def windows_text(found: Sequence[KnownWindow], *, width: int = _WIDTH) -> str:
    """The windows found, a row each; if there are none, how to get one."""
    if not found:
        return "No windows here. Scrape or pull one: vllm-capacity scrape --help.\n"
    columns = (
        Column("window", "name"),
        Column("from", "start", write=minute_of),
        Column("hours", "hours", is_numeric=True, write=number),
        Column("MB", "megabytes", is_numeric=True, write=number),
        Column("source", "source"),
        Column("", "note", is_note=True),
    )
    rows = [
        (
            each.name,
            each.start,
            None if each.start is None or each.end is None else _hours(each.start, each.end),
            each.bytes / 1e6,
            each.source,
            each.problem or ("simulated" if each.is_simulated else ""),
        )
        for each in found
    ]
    return table(columns, rows).to_text(width)


def _hours(start: datetime, end: datetime) -> float:
    return (end - start).total_seconds() / 3600


def figures_text(analysis: Analysis, *, width: int = _WIDTH) -> str:
    """A window: title lines, verdict, the figures of the tiles, telemetry quality."""
    sentences = verdict_sentences(analysis)
    return _page(
        _paragraphs(_title(analysis), width),
        _paragraphs(sentences, width),
        tile_table(analysis).to_text(width),
        "Can I trust this?\n" + quality_table(analysis).to_text(width),
    )


def groups_text(analysis: Analysis, *, by: str, width: int = _WIDTH) -> str:
    """The figures of a window by a label: a row per group, then the total.

    InputError if nothing has the label `by`.
    """
    title = [*_title(analysis), *_simulated(analysis)]
    return _page(_paragraphs(title, width), groups_table(analysis, by).to_text(width))


def cost_text(analysis: Analysis, *, by: str = "engine", width: int = _WIDTH) -> str:
    """The bill of a window: a row per group, then the total.

    InputError if no counter has the label `by`.
    """
    title = [*_title(analysis), *_simulated(analysis)]
    return _page(
        _paragraphs(title, width),
        bill_table(analysis, by).to_text(width),
        _paragraphs(surplus_text(analysis.surplus()).sentences, width),
        _paragraphs(arithmetic_text(analysis).sentences, width),
    )


def plan_text(analysis: Analysis, plan: Plan, *, width: int = _WIDTH) -> str:
    """The replicas needed, their sensitivity, the GPUs, and how long they suffice."""
    title = [*_title(analysis), *_simulated(analysis)]
    return _page(
        _paragraphs(title, width),
        sizing_table(plan).to_text(width),
        _paragraphs(surplus_text(plan.surplus).sentences, width),
        _paragraphs(arithmetic_text(analysis).sentences, width),
        _paragraphs(queue_check(plan).sentences, width),
        "What if?\n" + sensitivity_table(plan).to_text(width),
        "Which GPUs?\n" + _gpus(plan, width),
        "How long will capacity last?\n" + forecast_table(plan).to_text(width),
    )


def fit_text(found: Saturation, *, width: int = _WIDTH) -> str:
    """The capacity measured in, or extrapolated from, a table of loads, and its basis."""
    figures = (
        Figure("capacity", found.capacity, number, "output tokens/s"),
        Figure("reached at", found.capacity_running_requests, number, "running requests"),
    )
    limit = prose.LIMITS.get(found.bottleneck or "")
    bottleneck = wrapped(f"The first bottleneck is {limit}.", width) if limit else ""
    return _page(figures_table(figures).to_text(width), bottleneck)


def at_text(found: AtLoad, *, width: int = _WIDTH) -> str:
    """Throughput and latency at a concurrency, one per row, with intervals and basis."""
    figures = (
        Figure("throughput", found.output_tokens_per_second, number, "output tokens/s"),
        Figure("requests", found.requests_per_second, number, "requests/s"),
        Figure("request latency", found.request_seconds, seconds, "mean"),
        Figure("TTFT", found.ttft_p95_seconds, seconds, "p95"),
        Figure("ITL", found.itl_p95_seconds, seconds, "p95"),
    )
    caption = f"At {found.clients:,.4g} concurrent requests"
    return figures_table(figures, caption=caption).to_text(width)


def next_text(proposed: Sequence[NextLoad], commands: Sequence[str], *, width: int = _WIDTH) -> str:
    """The next loads to test, each with the interval expected after it and the command to run."""
    if not proposed:
        return wrapped("No further load would narrow the capacity much.", width)
    lines = []
    for place, (each, command) in enumerate(zip(proposed, commands, strict=True)):
        lead = "And then: " if place else "Next load to test: "
        lines.append(
            wrapped(f"{lead}{each.clients:,} concurrent requests.{_expected_width(each)}", width)
        )
        lines.append(f"  {command}\n")
    return "".join(lines)


def _expected_width(each: NextLoad) -> str:
    if each.high_over_low is None:
        return " Three loads are needed to see how throughput bends."
    return f" Expected to narrow the capacity's interval to high ÷ low = {each.high_over_low:.2f}."


def whatif_text(found: WhatIf, *, where: str, width: int = _WIDTH) -> str:
    """The performance of a model on another GPU, `where`; or why it is unknown."""
    figures = [Figure("output", found.output_tokens_per_second, number, "tokens/s")]
    if found.itl_seconds.is_known:
        figures += [
            Figure("mean ITL", found.itl_seconds, seconds),
            Figure("mean TTFT", found.ttft_seconds, seconds),
        ]
    return _page(
        figures_table(figures, caption=where).to_text(width),
        _splits(found, width) if found.splits else "",
        wrapped(choice_sentences(found.choice), width) if found.choice else "",
    )


def _splits(found: WhatIf, width: int) -> str:
    """The ways to split the GPUs, best first."""
    columns = (
        Column("engines"),
        Column("GPUs each", is_numeric=True),
        Column("output tokens/s", is_numeric=True),
        Column("interval"),
        Column("mean ITL", is_numeric=True),
        Column("why not", is_note=True),
    )
    rows = [
        (
            str(split.replicas),
            str(split.gpus_per_engine),
            value(split.output_tokens_per_second, number),
            interval(split.output_tokens_per_second, number),
            value(split.itl_seconds, seconds),
            split.output_tokens_per_second.reason,
        )
        for split in found.splits
    ]
    return table(columns, rows, caption="Splits").to_text(width)


def model_text(llm: Llm, *, dtype: str, kv_dtype: str, users: Estimate, width: int = _WIDTH) -> str:
    """The memory use of a model, and how many users fit, by context length and GPU."""
    columns = (
        Column("figure", "figure"),
        Column("value", "value", is_numeric=True),
        Column("unit", "unit"),
    )
    rows: list[tuple[str | Cell, ...]] = [
        (f"weights as {dtype}", _number(llm.weights_bytes(dtype) / GIB), "GiB"),
        ("KV cache", _count(llm.kv_bytes_per_token(kv_dtype)), "bytes per token of context"),
    ]
    fixed = llm.kv_fixed_bytes_per_sequence(kv_dtype)
    if fixed:
        rows.append((f"plus {_fixed(llm)}", _count(fixed), "bytes per request"))
    memory = table(columns, rows, caption=llm.model)
    fit = figures_table([Figure("concurrent users", users, count)])
    source = wrapped(f"Shape from {llm.source} ({llm.date})", width, indent=2)
    return _page(memory.to_text(width), fit.to_text(width), source)


def forecast_text(found: Forecast, clock: Clock, *, title: str, width: int = _WIDTH) -> str:
    """The forecast demand, a row per step, with the past coverage of its intervals.

    `clock` writes times as the file has them.
    """
    if not found.is_known:
        return wrapped(title, width) + wrapped(f"No forecast: {found.reason}.", width)
    steps = found.frame
    stamps = [clock.written(each) for each in steps["ts_seconds"]]
    head, times = _times(stamps)
    columns = (
        Column(head, "start"),
        Column("at least", "low", is_numeric=True),
        Column("most likely", "mid", is_numeric=True),
        Column("at most", "high", is_numeric=True),
    )
    rows: list[list[Value | Cell]] = [
        [time, *(Cell(number(end, like=ends[1]), end) for end in ends)]
        for time, ends in zip(times, steps.select("low", "mid", "high").iter_rows(), strict=True)
    ]
    width_ratio = found.width_ratio
    wide = "" if width_ratio is None else f" Mean width: {percent(width_ratio)} of the forecast."
    method = f"90 % intervals.{wide} {method_text(found.method, found.coverage_measured)}"
    return _page(table(columns, rows, caption=title).to_text(width), wrapped(method, width))


def alerts_text(found: Sequence[Alert], *, width: int = _WIDTH) -> str:
    """Every rule with its state, the value found, and the threshold."""
    return alert_table(found).to_text(width)


def alert_table(found: Sequence[Alert]) -> Table:
    """Every rule with its state, the value found, and the threshold; one row per rule."""
    columns = (
        Column("state", "state"),
        Column("alert", "alert"),
        Column("found", "found"),
        Column("fires", "threshold"),
    )
    rows = [
        (
            Cell(one.state.upper() if one.state == "fired" else one.state, one.state),
            one.rule.title,
            _observed(one),
            Cell(one.rule.limit, one.rule.threshold),
        )
        for one in found
    ]
    return table(columns, rows)


def _title(analysis: Analysis) -> list[str]:
    price = f"Price: {price_text(analysis)}"
    return [analysis.window.name, window_line(analysis), price]


def _simulated(analysis: Analysis) -> list[str]:
    return [prose.SIMULATED] if analysis.window.is_simulated else []


def _page(*parts: str) -> str:
    """The non-empty parts, separated by empty lines."""
    return "\n".join(part for part in parts if part)


def _paragraphs(sentences: Sequence[str], width: int) -> str:
    return "".join(wrapped(each, width) for each in sentences)


def _gpus(plan: Plan, width: int) -> str:
    """The GPUs compared, the prices of the current and the best other one, those not compared."""
    if not plan.options:
        return wrapped(f"No GPUs compared: {plan.options_reason}", width)
    known = plan.comparable
    own = [each for each in known if each.gpu == plan.gpu]
    best = [each for each in known if each.gpu != plan.gpu][:1]
    prices = [f"Price of {each.gpu}: {each.price_row}" for each in (*own, *best)]
    compared = f"{plan.model}, weights as {known[0].dtype}\n" if known else ""
    return _page(
        compared + gpu_table(plan.options).to_text(width, notes=False),
        "".join(wrapped(each, width, indent=2) for each in prices),
        _paragraphs(choice_text(plan).sentences, width),
        rejected_table(plan.options).to_text(width) if len(known) < len(plan.options) else "",
    )


def _fixed(llm: Llm) -> str:
    """The memory that a request takes whatever its length."""
    if llm.attention == "mixed":
        return f"sliding windows, full from {count(llm.sliding_window_tokens or 0)} tokens"
    return "state of its linear layers"


def _number(value: float) -> Cell:
    return Cell(number(value), value)


def _count(value: float) -> Cell:
    return Cell(count(value), value)


def _observed(one: Alert) -> Cell:
    seen, unit = one.observed, one.rule.unit
    if one.state == "unknown":
        return Cell(f"may be {one.span}" if one.span else f"not known: {seen.reason}")
    if seen.value is not None:
        return Cell(_with_unit(seen.value, unit), seen.value)
    return Cell(one.found)


def _with_unit(value: float, unit: str) -> str:
    return seconds(value) if unit == "s" else f"{number(value)} {unit}".rstrip()


def _times(stamps: Sequence[float | str]) -> tuple[str, list[str]]:
    """The header of a column of times, and its cells; plain numbers stay as in the file."""
    moments = [datetime.fromisoformat(stamp) for stamp in stamps if isinstance(stamp, str)]
    if not moments:
        return "from, as the file counts", [f"{stamp:,}" for stamp in stamps]
    form = "%-d %b %Y %H:%M:%S" if any(each.second for each in moments) else "%-d %b %Y %H:%M"
    zone = moments[0].tzname()
    return f"from ({zone})" if zone else "from", [f"{each:{form}}" for each in moments]
