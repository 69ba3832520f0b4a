"""The top and bottom of a page: title line, verdict, tiles; provenance and definitions."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from vllm_capacity.analysis import Analysis
from vllm_capacity.answer import Answer
from vllm_capacity.estimate import Estimate
from vllm_capacity.record import plain
from vllm_capacity.render.numbers import (
    Write,
    between,
    bound_word,
    count,
    hours,
    moment,
    number,
    percent,
    plural,
    span,
    sure,
    usd,
    usd_per_thousand,
    value,
)
from vllm_capacity.render.prose import verdict as prose
from vllm_capacity.render.report.metadata import Quality, Rate, SummaryLine, Tile, Tiles, Verdict
from vllm_capacity.render.report.previous import BILL, RATES
from vllm_capacity.render.sections.definitions import shown_definitions
from vllm_capacity.render.sections.plan import surplus_text
from vllm_capacity.render.tables import Cell, Column, Element, Table, interval, reasons_once, table
from vllm_capacity.timerange import iso

_CENT_USD = 0.01
_SOURCES_SHOWN = 5
_TTFT_TARGET = "ttft_p95_seconds"


def title_line(analysis: Analysis) -> Element:
    """The line under the title: servers, model, window and price.

    `servers` and `terms` are not shown: they determine which reports can be compared.
    """
    extent, window = analysis.answer.window, analysis.window
    target = analysis.assumptions.slo.ttft_p95_seconds
    line = SummaryLine(
        window=window.name,
        models=tuple(analysis.models),
        engines=plural(extent.engines, "engine"),
        span=span(extent.start, extent.end),
        hours=hours(extent.hours),
        start=iso(extent.start),
        end=iso(extent.end),
        price=price_text(analysis),
        is_simulated=window.is_simulated,
        servers=tuple(analysis.instances),
        terms={RATES: _rates(analysis), _TTFT_TARGET: target, **_bill_terms(analysis)},
    )
    named = ", ".join(analysis.models) or "no model named"
    text = f"{line.window}: {named}, {line.engines}, {line.span} ({line.hours}), {line.price}"
    return Element("title_line", msgspec.to_builtins(line), text)


def verdict(analysis: Analysis) -> Element:
    """The answer in a few sentences, with the telemetry quality as a word and a shape."""
    sentences = verdict_sentences(analysis)
    word, because = prose.quality_word(analysis.answer)
    found = Verdict(tuple(sentences), Quality(word, prose.SHAPES[word], because))
    text = "\n".join([*sentences, f"Telemetry: {word} ({because})"])
    return Element("verdict", msgspec.to_builtins(found), text)


def verdict_sentences(analysis: Analysis) -> list[str]:
    """The sentences of the verdict; for a fleet, with the names of the engines that idled most."""
    is_fleet = analysis.answer.window.engines > 1
    sentences = prose.verdict(
        analysis.answer,
        is_simulated=analysis.window.is_simulated,
        engines=analysis.engine_rows if is_fleet else (),
    )
    can_go = _can_go(analysis) if is_fleet else ""
    return [*sentences[:-1], *([can_go] if can_go else []), sentences[-1]]


def _can_go(analysis: Analysis) -> str:
    """How many replicas can be removed, the savings, the replay; empty if none certainly can."""
    found = analysis.surplus()
    if not found.removable_replicas.low:
        return ""
    tried = [one for part in found.by_model.values() for one in part.replays[-1:]]
    kept = len(tried) == len(found.by_model) and all(one.is_kept for one in tried)
    replayed = " In a simulated replay of the busiest arrivals, the remaining ones kept up."
    return surplus_text(found).sentences[0] + (replayed if kept else "")


def tiles(analysis: Analysis) -> Element:
    """The figures of the first screen, each with its interval and basis or its reason."""
    shown = Tiles(tiles_of(analysis.answer))
    return Element("tiles", msgspec.to_builtins(shown), repr(tile_table(analysis)))


def tile_table(analysis: Analysis) -> Table:
    """The figures of the tiles as a table: value, interval, and why a figure is unknown."""
    columns = (
        Column("figure", "figure"),
        Column("value", "value"),
        Column("interval"),
        Column("why not known", "reason", is_note=True),
    )
    rows = []
    for each in _figures(analysis.answer):
        tile = _tile(each)
        shown = Cell(f"{tile.value} {tile.unit}".strip(), each.estimate)
        beside = interval(each.estimate, each.write) or tile.between
        rows.append((tile.label, shown, beside, tile.reason))
    return reasons_once(table(columns, rows))


def tiles_of(answer: Answer) -> tuple[Tile, ...]:
    """The tiles of an answer, in page order; for a fleet, each reason is given once.

    Reasons for cost and utilization are in the verdict above the tiles.
    """
    if answer.window.engines < 2:
        return tuple(map(_tile, _figures(answer)))
    in_verdict = (answer.cost.usd_per_request, answer.cost.utilization)
    reason_text = {each.reason: "for the reason given above" for each in in_verdict}
    tiles = []
    for figure in _figures(answer):
        tiles.append(_tile(figure, reason_text.get(figure.estimate.reason, "")))
        reason_text.setdefault(figure.estimate.reason, f"for the same reason as “{figure.label}”")
    return tuple(tiles)


def provenance(analysis: Analysis) -> Element:
    """The origin of the figures: source, rows, coverage of the window, versions."""
    extent, note = analysis.answer.window, analysis.window.provenance
    facts = [
        ("window", analysis.window.name),
        ("source", _plain(note.get("source", "not recorded"))),
        ("from", moment(extent.start)),
        ("to", moment(extent.end)),
        ("length", hours(extent.hours)),
        ("price", price_text(analysis)),
        ("GPUs per engine", f"{analysis.assumptions.pricing.gpus_per_engine:g}"),
        *((f"rows of {name}", count(rows)) for name, rows in sorted(note["counts"].items())),
    ]
    shown = {"source", "counts", "simulated"}
    facts += [(name, _plain(each)) for name, each in sorted(note.items()) if name not in shown]
    if analysis.window.is_simulated:
        facts.insert(1, ("kind", "simulated, not measured"))
    content = {"facts": [{"name": name, "value": text} for name, text in facts]}
    return Element("facts", content, "\n".join(f"{name}: {text}" for name, text in facts))


def kept_use(analysis: Analysis) -> Element:
    """The inputs of the bill, by engine: hidden in the page, so that it can be repriced."""
    engines = plural(len(analysis.bill_parts), "engine")
    text = f"Kept in the page for `vllm-capacity reprice`: the use of {engines}"
    return Element("kept_use", msgspec.to_builtins(analysis.billed_use), text)


def definitions(analysis: Analysis) -> Element:
    """How each figure is computed: its definition, functions, queries and their rows."""
    shown = shown_definitions(analysis)
    lines = [f"{each.title}: {each.text}" for each in shown.definitions]
    return Element("definitions", plain(shown), "\n".join(lines))


def price_text(analysis: Analysis) -> str:
    """The assumed price of a GPU-hour, and its source."""
    pricing = analysis.assumptions.pricing
    if pricing.rules:
        return "prices by instance, from a mapping file"
    price = pricing.usd_per_gpu_hour
    if price is None or price.mid is None:
        return "no price given"
    interval = between(price, usd)
    text = f"{usd(price.mid)} per GPU-hour{f', {interval}' if interval else ''}"
    return f"{text} ({pricing.note or 'as given'})"


def window_line(analysis: Analysis) -> str:
    """Time, duration and number of engines."""
    extent = analysis.answer.window
    when = span(extent.start, extent.end)
    return f"{when} ({hours(extent.hours)}), {plural(extent.engines, 'engine')}"


class _Figure(Struct, frozen=True):
    """A figure of the first screen, its number format, and a note added to its basis."""

    name: str
    label: str
    estimate: Estimate
    write: Write
    unit: str = ""
    hangs_on: str = ""
    note: str = ""


def _figures(answer: Answer) -> tuple[_Figure, ...]:
    """The figures of the first screen, in page order; for a fleet, the total cost first.

    With latency targets, the headroom within them comes before the one without.
    """
    cost, headroom = answer.cost, answer.saturation.headroom_ratio
    each, million = cost.usd_per_request, "usd_per_million_output_tokens"
    met, used = answer.slo.ttft_attainment, cost.utilization
    served = prose.served_within(answer)
    per_request = _Figure("usd_per_request", "Cost per request", each, *_per_request(each), RATES)
    per_million = _Figure(
        million, "Cost per million output tokens", getattr(cost, million), usd, "", RATES
    )
    tokens = _Figure("tokens_per_usd", "Tokens per dollar", cost.tokens_per_usd, number, "", RATES)
    utilization = _Figure(
        "utilization",
        "Utilization",
        used,
        percent,
        "of capacity",
        note=_calculated(answer, "utilization"),
    )
    room = _Figure("headroom_ratio", "Headroom", headroom, percent, "of capacity", note=served)
    calculated = _calculated(answer, "headroom_ratio")
    within = _Figure(
        "ttft_attainment", "TTFT within target", met, percent, "of requests", _TTFT_TARGET
    )
    length = f"for {hours(answer.window.hours)}"
    bill = _Figure("allocation_usd", "Bill", cost.allocation_usd, usd, length, BILL)
    month = _Figure("usd_per_month", "Run rate", answer.usd_per_month, usd, "per month", RATES)
    within_targets = _Figure(
        "slo_headroom_ratio",
        "Headroom within the latency targets",
        answer.slo_headroom_ratio,
        percent,
        "of the throughput that meets them",
        note=_calculated(answer, "slo_headroom_ratio") or served,
    )
    bare = replace(room, label="Headroom, ignoring latency targets", note=calculated)
    room = replace(room, note=served or calculated)
    is_fleet, has_targets = answer.window.engines > 1, _has_targets(answer)
    if not is_fleet and not has_targets:
        return (per_request, per_million, tokens, utilization, room, within)
    if not is_fleet:
        rest = (utilization, within_targets, bare, within, bill, month)
        return (per_request, per_million, tokens, *rest)
    money = (bill, month, per_request, per_million, utilization)
    if not has_targets:
        return (*money, replace(room, note=calculated))
    return (*money, within_targets, bare, within, tokens)


def _calculated(answer: Answer, name: str) -> str:
    """A figure by arithmetic, to show next to its bound; empty if it is unknown."""
    found: Estimate = getattr(answer.by_arithmetic, name)
    return "" if found.is_unknown else f"By arithmetic: {sure(found, percent)}"


def _has_targets(answer: Answer) -> bool:
    """Whether any figure on latency targets is known; without targets, none is."""
    slo = answer.slo
    return not all(e.is_unknown for e in (*slo.attainments.values(), slo.throughput))


def _per_request(each: Estimate) -> tuple[Write, str]:
    """The number format of a cost per request, and its unit: per thousand if below a cent."""
    if each.is_unknown or (each.mid or each.low or each.high or 0.0) >= _CENT_USD:
        return usd, ""
    return usd_per_thousand, f"per 1,000 · {value(each, usd)} each"


def _tile(figure: _Figure, same: str = "") -> Tile:
    """The figure as its tile shows it; `same` refers to a reason given earlier."""
    estimate, write = figure.estimate, figure.write
    is_known = not estimate.is_unknown
    basis = _basis(estimate, same) if is_known else ""
    interval = bound_word(estimate) or between(estimate, write) or "exact"
    return Tile(
        figure=figure.name,
        label=figure.label,
        low=estimate.low,
        mid=estimate.mid,
        high=estimate.high,
        hangs_on=figure.hangs_on,
        writes=getattr(write, "__name__", ""),
        value=value(estimate, write),
        unit=figure.unit if is_known else "",
        between=interval if is_known else "",
        basis=f"{basis}. {figure.note}" if basis and figure.note else basis,
        reason="" if is_known else same or estimate.reason,
        is_known=is_known,
    )


def _basis(estimate: Estimate, same: str) -> str:
    """Its basis, only the first of many sources; for a bound, also why no more is known."""
    sources = list(estimate.basis)
    if len(sources) > _SOURCES_SHOWN:
        more = len(sources) - _SOURCES_SHOWN + 1
        sources = [*sources[: _SOURCES_SHOWN - 1], f"and {more} more sources"]
    if estimate.is_bound:
        sources.append(f"no more is known, {same or f'because {estimate.reason}'}")
    return "; ".join(sources)


def _rates(analysis: Analysis) -> tuple[Rate, ...]:
    """The distinct rates, to six digits; empty if no price is known."""
    rates = {
        tuple(float(f"{end:.6g}") for end in (gpus, price.low, price.mid, price.high))
        for gpus, price in analysis.rates
        if price.low is not None and price.mid is not None and price.high is not None
    }
    return tuple(sorted(rates))


def _bill_terms(analysis: Analysis) -> dict[str, tuple[Rate, ...]]:
    """The terms of the whole bill: its rates and hours; empty without a price."""
    rates = _rates(analysis)
    return {BILL: (*rates, (analysis.answer.window.hours,))} if rates else {}


def _plain(value: object) -> str:
    """A value of the provenance note as readable text."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(each)}" for key, each in sorted(value.items()))
    if isinstance(value, list | tuple):
        return ", ".join(_plain(each) for each in value)
    return str(value)
