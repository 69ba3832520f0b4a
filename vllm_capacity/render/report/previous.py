"""Changes since the previous report: which report that is, and what each tile says about it.

Everything is read from the pages of the folder, as the index is, so there is no separate store. The
previous report is chosen by these rules.

1. It comes from the same notebook under the same title.
2. It is of the same models and shares a server; both are measured, or both simulated.
3. Its window ends no later than this one's starts. A twentieth of the shorter window may overlap,
   because consecutive daily windows may overlap by about a scrape.
4. Of these, the one whose window ends latest (then starts latest, then is last by name).

The page about to be replaced also counts, and so does the report it was compared with. A run
repeated over one window therefore finds what the first run found, even if the previous report had
the page's own name and is gone.

A change is reported only if the two intervals do not overlap; otherwise the tile says that the
change is not clear. A figure that depends on a price is compared only at the same price, and one
that depends on a target only with the same target: a higher price does not make a server worse. Up
and down imply no judgment, so they have no color.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta

from msgspec import Struct
from msgspec.structs import replace

from vllm_capacity.render.numbers import (
    Write,
    number,
    percent,
    plural,
    usd,
    usd_per_thousand,
)
from vllm_capacity.render.report.metadata import (
    Metadata,
    Since,
    SummaryLine,
    Tile,
    TileChange,
    Tiles,
)
from vllm_capacity.timerange import TimeRange

RATES = "rates"
"""The term that money depends on: the price of a GPU-hour."""
BILL = "bill"
"""The term that a whole bill depends on: the price of a GPU-hour and the number of hours."""

UP, DOWN = "▲", "▼"
_OVERLAP_RATIO = 0.05
WRITES: Mapping[str, Write] = {
    "number": number,
    "percent": percent,
    "usd": usd,
    "usd_per_thousand": usd_per_thousand,
}
"""Writers of a tile's numbers, by the name that the tile keeps."""
_OTHER_TARGET = "a different target"
_OTHER = {RATES: "a different price", BILL: "a window of another length or price"}


class _Candidate(Struct, frozen=True):
    """A report that may be the previous one, its time range, and its file if it exists."""

    report: Metadata
    time_range: TimeRange
    page: str

    @property
    def order(self) -> tuple[datetime, datetime, str]:
        """Sort key, latest last; for the same window, a report with a page is later."""
        return self.time_range.end, self.time_range.start, self.page


def previous_report(
    now: Metadata, reports: Mapping[str, Metadata], *, page: str
) -> Metadata | None:
    """The report to compare with, as `now` keeps it: its page, line and the numbers of its tiles.

    `reports` has the metadata of each page of the folder by file name; `page` is the future file
    name of `now`. None if there is no previous report.
    """
    others = [("" if name == page else name, report) for name, report in reports.items()]
    carried = reports[page].previous if page in reports else None
    if carried is not None:
        others.append(("", carried))
    found = [
        _Candidate(report, report.line.time_range, name)
        for name, report in others
        if report.line.time_range is not None and _is_comparable(now, report)
    ]
    if not found:
        return None
    latest = max(found, key=lambda each: each.order)
    tiles = tuple(Tile(t.figure, low=t.low, mid=t.mid, high=t.high) for t in latest.report.tiles)
    return replace(
        latest.report, page=latest.page, tiles=tiles, verdict=None, previous=None, use=None
    )


def series_of_reports(reports: Mapping[str, Metadata]) -> list[list[tuple[str, Metadata]]]:
    """The reports, given by file name, as series: each follows its previous report.

    Oldest first within a series; the series with the latest end first. A report without a previous
    one starts a series.
    """
    candidates = [
        _Candidate(report, report.line.time_range, name)
        for name, report in reports.items()
        if report.line.time_range is not None
    ]
    series: dict[str, list[tuple[str, Metadata]]] = {}
    earlier: list[_Candidate] = []
    for each in sorted(candidates, key=lambda one: one.order):
        before = (one for one in reversed(earlier) if _is_comparable(each.report, one.report))
        found = next(before, None)
        own = [] if found is None else series[found.page]
        own.append((each.page, each.report))
        series[each.page] = own
        earlier.append(each)
    latest = {id(own): own for own in reversed(series.values())}
    return list(latest.values())


def with_changes(tiles: Tiles, line: SummaryLine, before: Metadata | None) -> Tiles:
    """The tiles with the change of each, and the previous report in full.

    `line` is the title line of the report that is being made. Without a previous report the tiles
    are returned unchanged.
    """
    if before is None:
        return tiles
    then = before.by_figure
    report = f"the report ending {_when(before.line, line)}"
    made = []
    for tile in tiles.tiles:
        otherwise = _otherwise(tile, line, before.line)
        found = change(tile, then.get(tile.figure), otherwise=otherwise)
        made.append(tile if found is None else replace(tile, change=replace(found, report=report)))
    return Tiles(tuple(made), _since(line, before))


def change(now: Tile, then: Tile | None, *, otherwise: str = "") -> TileChange | None:
    """The change of a figure since the previous report.

    `otherwise` says what was different then, so that the two cannot be compared. None if there is
    nothing to say: the figure is unknown now, or the previous report did not have it.
    """
    if now.mid is None or then is None:
        return None
    if then.mid is None:
        return TileChange("not known before", ", in")
    if otherwise:
        return TileChange("not compared", f": {otherwise} in")
    write = WRITES[now.writes]
    was, is_now = write(then.mid), write(now.mid)
    if was == is_now:
        return TileChange("about the same", " as in")
    if _overlap(now, then):
        return TileChange(f"no clear change: {was} → {is_now}", " since")
    is_up = now.mid > then.mid
    how = f"{'up' if is_up else 'down'}{_by(now.mid, then.mid, write)} from {was}"
    return TileChange(how, " since", UP if is_up else DOWN)


def _overlap(now: Tile, then: Tile) -> bool:
    """Whether their intervals overlap."""
    if now.low is None or now.high is None or then.low is None or then.high is None:
        return True
    return now.low <= then.high and then.low <= now.high


def _by(now: float, then: float, write: Write) -> str:
    """The change in percent; empty for a share, whose change in percent would be misread."""
    return "" if write is percent or not then else f" {percent(abs(now / then - 1))}"


def _is_comparable(now: Metadata, then: Metadata) -> bool:
    here, there = now.line, then.line
    return (
        here.is_complete
        and there.is_complete
        and all(tile.has_ends for tile in (*now.tiles, *then.tiles))
        and (now.notebook, now.title) == (then.notebook, then.title)
        and (here.models, here.is_simulated) == (there.models, there.is_simulated)
        and bool(_servers(here) & _servers(there))
        and _is_before(there.time_range, here.time_range)
    )


def _servers(line: SummaryLine) -> frozenset[str]:
    return frozenset(line.servers or ())


def _is_before(then: TimeRange | None, now: TimeRange | None) -> bool:
    if then is None or now is None:
        return False
    shorter = min(then.end - then.start, now.end - now.start)
    overlap = max(then.end - now.start, timedelta(0))
    return then.start < now.start and overlap <= _OVERLAP_RATIO * shorter


def _otherwise(tile: Tile, line: SummaryLine, then: SummaryLine) -> str:
    if not tile.hangs_on or line.term(tile.hangs_on) == then.term(tile.hangs_on):
        return ""
    return _OTHER.get(tile.hangs_on, _OTHER_TARGET)


def _since(line: SummaryLine, before: Metadata) -> Since:
    then = before.line
    price = "" if line.term(RATES) == then.term(RATES) else f", at a different price: {then.price}"
    notes = [price]
    here, there = _servers(line), _servers(then)
    if here != there:
        had, kept = plural(len(there), "server"), len(here & there)
        notes.append(f"It had {had}, this one has {len(here)}, {kept} in both")
    differences = "".join(f"{note}. " for note in notes).rstrip()
    return Since(before.page, f"{then.span} ({then.hours})", differences)


def _when(then: SummaryLine, now: SummaryLine) -> str:
    """When the previous window ended, with its day and year where these differ."""
    if then.time_range is None or now.time_range is None:
        return then.end
    at, today = then.time_range.end, now.time_range.end
    if at.date() == today.date():
        return f"{at:%H:%M:%S} UTC"
    return f"{at:%-d %b %H:%M} UTC" if at.year == today.year else f"{at:%-d %b %Y %H:%M} UTC"
