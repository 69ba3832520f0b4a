"""A folder of reports in other tools' formats: each night once, from the data kept in its page.

A page keeps the inputs of its bill (`kept_use`) and the figures of its first screen, so nothing is
pulled, and the windows may be deleted. Formats with a time column have every night; formats for the
current state (Markdown, Prometheus, LiteLLM) have the newest of each series of reports
(report/previous.py).

Two pages can cover the same time: of two notebooks, or of a day and its week. Each hour of a server
counts once: pages named by a day come first, then pages that keep their bill, then longer ones.
Notes list what is left out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from vllm_capacity.billed import Billed, BilledUse
from vllm_capacity.errors import InputError
from vllm_capacity.estimate import Estimate, listed, unit_of
from vllm_capacity.render.exports.currency import USD, Currency
from vllm_capacity.render.exports.focus import Billing, focus_csv, months
from vllm_capacity.render.exports.litellm import Measured, litellm_json
from vllm_capacity.render.exports.prometheus import Exposed, prometheus_text
from vllm_capacity.render.exports.summary import message, money_in
from vllm_capacity.render.numbers import NOT_KNOWN, number, sure
from vllm_capacity.render.prose.verdict import SIMULATED
from vllm_capacity.render.report.metadata import Metadata, Tile, page_metadata, pages
from vllm_capacity.render.report.previous import WRITES, series_of_reports
from vllm_capacity.render.tables import Column, Table, Value, markdown, table
from vllm_capacity.timerange import TimeRange, iso
from vllm_capacity.verdicts.cost.bill import CostShare

_OVERLAP_RATIO = 0.05  # consecutive windows may overlap by about a scrape
_COUNTS = ("billed_hours", "successful_requests", "prompt_tokens", "generation_tokens")


class Night(Struct, frozen=True):
    """A report: its page's file name, its metadata and its time range."""

    page: str
    report: Metadata
    time_range: TimeRange

    @property
    def use(self) -> BilledUse | None:
        """The inputs of its bill; engines without a model get the page's model, if it has only one.

        None if the page does not keep them.
        """
        kept, models = self.report.use, self.report.line.models or ()
        if kept is None or len(models) != 1:
            return kept
        engines = {
            name: replace(each, model=each.model or models[0])
            for name, each in kept.engines.items()
        }
        return replace(kept, engines=engines)

    @property
    def figures(self) -> dict[str, Estimate]:
        """Its figures by name: those of the first screen, and of its bill if the page keeps it."""
        screen = {tile.figure: _estimate(tile) for tile in self.report.tiles if tile.figure}
        if self.report.use is None:
            return screen
        costs = self.report.use.as_paid.whole
        return screen | {name: getattr(costs, name) for name in costs.__struct_fields__}


class Reports(Struct, frozen=True):
    """The reports of a folder, oldest first, each hour of a server once; `notes` list the rest.

    `name` is the name of the folder or of the single page.
    """

    name: str
    nights: tuple[Night, ...]
    notes: tuple[str, ...] = ()

    @property
    def series(self) -> list[list[Night]]:
        """Consecutive nights, oldest first; the series with the latest end first."""
        nights = {night.page: night for night in self.nights}
        found = series_of_reports({page: night.report for page, night in nights.items()})
        return [[nights[page] for page, _ in own] for own in found]

    @property
    def newest(self) -> list[Night]:
        """The newest night of each series, the latest first."""
        return [own[-1] for own in self.series]


def are_reports(path: Path) -> bool:
    """Whether a path is a folder of reports or a single page, rather than a window."""
    if path.is_file():
        return path.suffix == ".html"
    return path.is_dir() and not (path / "window.json").exists() and bool(pages(path))


def read_reports(path: Path) -> Reports:
    """The reports of a folder or a single page; InputError if there are none."""
    nights, notes = [], []
    for page in [path] if path.is_file() else pages(path):
        report = page_metadata(page)
        time_range = None if report is None else report.line.time_range
        if report is None or time_range is None:
            notes.append(f"{page.name} is skipped: it is not a report, or was modified.")
        else:
            nights.append(Night(page.name, report, time_range))
    if not nights:
        raise InputError(f"There is no report in {path}. Name a folder that `report` wrote into.")
    taken: list[Night] = []
    for night in sorted(nights, key=_first_taken):
        twin = next((one for one in taken if _is_same_time(one, night)), None)
        if twin is None:
            taken.append(night)
        else:
            notes.append(f"{night.page} is skipped: {twin.page} covers its servers at that time.")
    taken.sort(key=lambda night: (night.time_range.start, night.page))
    return Reports(path.name or str(path), tuple(taken), tuple(notes))


def export_reports(
    found: Reports, to: str, currency: Currency = USD
) -> tuple[str | bytes, tuple[str, ...]]:
    """The reports in one of `FORMATS`, and notes on what is missing.

    InputError for an unknown format, and if no report has the data it needs.
    """
    if to not in FORMATS:
        raise InputError(f"No format {to!r} to export to; there are {', '.join(FORMATS)}.")
    return FORMATS[to](found, currency), (*found.notes, *_lacking(found, to))


# --- choosing nights ----------------------------------------------------------------------------


def _first_taken(night: Night) -> tuple[bool, bool, float, str]:
    is_day = _is_day(night.report.line.window)
    return not is_day, night.use is None, -night.time_range.seconds, night.page


def _is_day(name: str) -> bool:
    try:
        return date.fromisoformat(name).isoformat() == name
    except ValueError:
        return False


def _is_same_time(one: Night, two: Night) -> bool:
    """Whether the reports share time and servers; a report without server names matches any."""
    own, others = (frozenset(each.report.line.servers or ()) for each in (one, two))
    if own and others and not own & others:
        return False
    a, b = one.time_range, two.time_range
    overlap_seconds = (min(a.end, b.end) - max(a.start, b.start)).total_seconds()
    return overlap_seconds > _OVERLAP_RATIO * min(a.seconds, b.seconds)


def _lacking(found: Reports, to: str) -> Iterator[str]:
    """A note on pages without some data for the format; none if no data is missing."""
    if to == "markdown":
        return  # uses only the summary tiles, which every page stores
    nights = found.newest if to in _OF_NOW else found.nights
    without = [night.page for night in nights if night.use is None]
    if without:
        less = "only the summary figures are included" if to in _OF_SCREENS else "left out"
        yield (
            f"{listed(without)} has no stored bill, being from an earlier release or another "
            f"notebook: {less}. Make it again from the window: report WINDOW --price …."
        )


def _with_use(nights: Sequence[Night], found: Reports) -> list[tuple[Night, BilledUse]]:
    """The nights that keep the inputs of their bills, and those inputs; InputError if none does."""
    kept = [(night, use) for night in nights if (use := night.use) is not None]
    if not kept:
        raise InputError(
            f"No report in {found.name} has the data behind its bill: each is from an earlier "
            "release, or from another notebook. Make them again from their windows: report WINDOW "
            "--price …."
        )
    return kept


# --- formats with every night -------------------------------------------------------------------


def report_table(found: Reports, currency: Currency) -> Table:
    """One row per report, oldest first, with every figure that any of them keeps.

    Columns: page, series (the first page of the consecutive reports), window, start, end, models,
    engines, price, is_simulated, has_bill, the billed and counted quantities, then each figure with
    its low, high and unit. Values that a page does not know or keep are empty, never 0. InputError
    if no page has a figure.
    """
    names = list(dict.fromkeys(name for night in found.nights for name in night.figures))
    if not names:
        raise InputError(f"The reports in {found.name} have no figures: none shows tiles.")
    heads = (
        *("page", "series", "window", "start", "end", "models", "engines", "price"),
        *("is_simulated", "has_bill", *_COUNTS, *map(currency.renamed, names)),
    )
    first = {night.page: own[0].page for own in found.series for night in own}
    rows = [_row(night, first[night.page], names, currency) for night in found.nights]
    return table([Column(name, name) for name in heads], rows)


def _row(night: Night, series: str, names: Sequence[str], currency: Currency) -> list[Value]:
    line, use, figures = night.report.line, night.report.use, night.figures
    usage = None if use is None else use.as_paid.usage
    return [
        *(night.page, series.removesuffix(".html"), line.window),
        *(night.time_range.start, night.time_range.end),
        *(", ".join(line.models or ()) or None, line.engines or None, line.price),
        *(line.is_simulated, use is not None),
        *(None if usage is None else getattr(usage, name) for name in _COUNTS),
        *(_in(figures.get(name), name, currency) for name in names),
    ]


def _in(found: Estimate | None, name: str, currency: Currency) -> Estimate:
    """The figure in the currency, with the unit that its name implies; unknown for None."""
    if found is None:
        return Estimate.unknown("the page does not keep it")
    unit = unit_of(name) or found.unit
    if unit.startswith(USD.code):
        found = currency.of(found)
    elif unit.endswith(USD.code):
        found = currency.per(found)
    return replace(found, unit=currency.renamed(unit))


def _to_csv(found: Reports, currency: Currency) -> str:
    return report_table(found, currency).to_csv()


def _to_parquet(found: Reports, currency: Currency) -> bytes:
    return report_table(found, currency).to_parquet()


def _to_json(found: Reports, currency: Currency) -> str:
    rows = report_table(found, currency).frame.to_dicts()
    body = {
        "reports": found.name,
        "currency": currency.code,
        "currency_rate": currency.note,
        "nights": [{**row, "start": iso(row["start"]), "end": iso(row["end"])} for row in rows],
    }
    return json.dumps(body, allow_nan=False, indent=2) + "\n"


def _to_focus(version: str) -> Callable[[Reports, Currency], str]:
    def to_focus(found: Reports, currency: Currency) -> str:
        kept = _with_use(found.nights, found)
        billings = [each for night, use in kept for each in _billings(night, use)]
        return focus_csv(billings, currency, version=version, of=found.name)

    return to_focus


def _billings(night: Night, use: BilledUse) -> Iterator[Billing]:
    """The bill of a night, split at the end of a month (UTC) by the billed hours of engines.

    A page does not know the tokens of each part, so they are split in the ratio of the hours.
    """
    cut = months(night.time_range)
    for month in cut:
        parts = {
            name: each.as_paid if len(cut) == 1 else _cut(each, month, cut)
            for name, each in use.engines.items()
        }
        note = "" if len(cut) == 1 else "a night across the end of a month, split by billed hours"
        yield Billing(parts, use.engines, month, note=note)


def _cut(billed: Billed, month: TimeRange, cut: Sequence[TimeRange]) -> CostShare:
    """One month's part of an engine's bill; the parts add up to the whole."""

    def seconds(of: TimeRange) -> float:
        start = billed.start if of == cut[0] else max(billed.start, of.start)
        end = billed.end if of == cut[-1] else min(billed.end, of.end)
        return max((end - start).total_seconds(), 0.0)

    whole = sum(map(seconds, cut))
    ratio = seconds(month) / whole if whole else float(month == cut[0])
    return replace(billed.as_paid, usage=billed.usage.part(ratio))


# --- formats with the newest night --------------------------------------------------------------


def _to_markdown(found: Reports, currency: Currency) -> str:
    """The newest night of each series: its figures, each with the change since the last report."""
    return message("\n\n".join("\n".join(_lines(night, currency)) for night in found.newest))


def _lines(night: Night, currency: Currency) -> Iterator[str]:
    line, rate = night.report.line, f"; {currency.note}" if currency.note else ""
    about = ", ".join(filter(None, (line.span, line.engines)))
    yield f"**{markdown(line.window)}** · {_for_chats(about)}"
    if line.is_simulated:
        yield SIMULATED
    yield f"Price: {_for_chats(line.price or 'not given')}{rate}"
    yield ""
    if not night.report.tiles:
        yield "This report has no figures."
    for tile in night.report.tiles:
        shown = _shown(tile) if currency.day is None else _in_other_money(tile, currency)
        change = _change(tile, currency)
        yield "; ".join(filter(None, (f"- {tile.label}: {_for_chats(shown)}", _for_chats(change))))


def _for_chats(text: str) -> str:
    """The text with markup escaped, except dollars, because chats have no formulas."""
    return markdown(text).replace("\\$", "$")


def _shown(tile: Tile) -> str:
    """The figure as the page shows it, or why it is unknown."""
    if not tile.is_known:
        return f"{NOT_KNOWN} ({tile.reason})"
    interval = f"({tile.between})" if tile.between.startswith("between") else ""
    return " ".join(filter(None, (tile.value, tile.unit, interval)))


def _in_other_money(tile: Tile, currency: Currency) -> str:
    """The figure in another currency, per piece even if the page shows it per thousand."""
    if not tile.is_known:
        return _shown(tile)
    is_money = tile.writes.startswith("usd")
    write = money_in(currency) if is_money else WRITES.get(tile.writes, number)
    unit = "" if tile.writes == "usd_per_thousand" else tile.unit
    return f"{sure(_in(_estimate(tile), tile.figure, currency), write)} {unit}".rstrip()


def _change(tile: Tile, currency: Currency) -> str:
    """The change since the previous report; without its USD amounts in another currency."""
    change = tile.change
    if change is None:
        return ""
    words = f"{change.arrow} {change.words}".strip()
    if tile.writes.startswith("usd") and currency.day is not None:
        return re.split(r" from |: ", words)[0]
    return f"{words}{change.joins} {change.report}".rstrip()


def _to_prometheus(found: Reports, currency: Currency) -> str:
    exposed = []
    for night, use in _with_use(found.newest, found):
        bill = use.as_paid
        exposed.append(
            Exposed(
                window=night.report.line.window,
                end=night.time_range.end,
                costs=bill.whole,
                engines=bill.parts,
                headroom=bill.whole.idle_ratio,
                capacity=bill.capacity,
                output_tokens_per_second=bill.usage.output_tokens_per_second,
            )
        )
    return prometheus_text(exposed, currency)


def _to_litellm(found: Reports, currency: Currency) -> str:
    prices = {}
    for night, use in reversed(_with_use(found.newest, found)):  # the newest wins
        measured = Measured(night.report.line.window, night.time_range.start, night.time_range.end)
        for model, bill in use.by_model.items():
            if model is not None:
                prices[model] = (bill.whole, measured)
    return litellm_json(prices, currency, of=found.name)


def _estimate(tile: Tile) -> Estimate:
    """The tile's figure as an estimate: an interval, a bound, or why it is unknown."""
    basis = (tile.basis,) if tile.basis else ()
    if tile.low is not None and tile.mid is not None and tile.high is not None:
        return Estimate.between(tile.low, tile.mid, tile.high, *basis)
    reason = tile.reason or tile.basis or "the page does not say"
    if tile.low is not None:
        return Estimate.at_least(tile.low, reason=reason)
    if tile.high is not None:
        return Estimate.at_most(tile.high, reason=reason)
    return Estimate.unknown(reason)


FORMATS: Mapping[str, Callable[[Reports, Currency], str | bytes]] = {
    "csv": _to_csv,
    "parquet": _to_parquet,
    "json": _to_json,
    "markdown": _to_markdown,
    "focus": _to_focus("1.4"),
    "focus-1.2": _to_focus("1.2"),
    "prometheus": _to_prometheus,
    "litellm": _to_litellm,
}
_OF_NOW = frozenset({"markdown", "prometheus", "litellm"})
_OF_SCREENS = frozenset({"csv", "parquet", "json"})
