"""A short time range of a long window: the rows of its hours, and summaries of the others.

A range of up to six hours is read row by row, and its figures may depend on rows of any earlier
hour: the rows of a month would be read, and copied from S3, for one hour. The hourly summaries
(figures/by_hour.py) include the rows at the ends of each piece, on which most queries give the same
result as on all rows. For other queries, all rows are read. Results are bit-for-bit the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta

import polars as pl
from msgspec.structs import replace

from vllm_capacity.figures.by_hour import (
    FROM_HOURS,
    OF_ALL_ROWS,
    Digests,
    Kept,
    by_hour,
    connected,
    is_read_by_hour,
    is_relabelled,
    kept_attempts,
    kept_pieces,
    key_of,
    same_processes,
    together,
)
from vllm_capacity.figures.days import in_days
from vllm_capacity.figures.few_rows import with_few_rows
from vllm_capacity.figures.pieces import (
    NO_BASE,
    ROWS_PER_PIECE,
    Piece,
    all_rows,
    files_by_hour,
    pieces_of,
)
from vllm_capacity.telemetry.memory import Database, require_room_for_exact
from vllm_capacity.telemetry.shelf import Entry, Shelf
from vllm_capacity.telemetry.window import Answers, Window, asked, query_text
from vllm_capacity.timerange import TimeRange, iso

MANY_ROWS = 50_000_000

_HOUR = timedelta(hours=1)
_OF_ATTEMPTS = ("attempts", "attempt_steps")
_OF_THE_PART = ("scrape_increases", "gauge_samples", "adapters")  # per scrape, from $start on


class ShortPart(Window, frozen=True):
    """A window for figures of a short time range, with the same results as from all rows.

    `here` has all rows of the pieces that overlap the range, and the rows at the ends of all other
    pieces; `near` is the time range of those with all rows. `sql` still reads every row.
    """

    pieces: tuple[Kept, ...] = ()
    here: Database | None = None
    near: TimeRange | None = None
    shelf: Shelf | None = None
    """Keeps others from removing the stored entries while this window is in use."""

    def hourly(self, name: str, *, everywhere: bool = False) -> pl.DataFrame | None:
        """The attempts of all pieces; other frames are None, as figures are made from rows."""
        return together(self.pieces, name) if name in _OF_ATTEMPTS else None

    def shipped_sql(self, package: str, name: str, params: Mapping[str, object]) -> pl.DataFrame:
        """The result of a shipped query, from the rows in `here` or from all rows."""
        if self.here is None or self._needs_all_rows(name, params):
            return super().shipped_sql(package, name, params)
        if name == "attempts":
            return kept_attempts(self.pieces, params)
        if name == "same_processes":
            return same_processes(self, self.here, params)
        return asked(self.here, query_text(package, name), params, window=self.name)

    def _needs_all_rows(self, name: str, params: Mapping[str, object]) -> bool:
        if name in _OF_THE_PART and self.near is not None:
            start, end = params["start"], params["end"]
            return start < self.near.start or end > self.near.end  # type: ignore[operator]
        return name == "fastest_means" or (name in OF_ALL_ROWS and is_relabelled(self))


def as_read(
    window: Window, time_range: TimeRange, *, rows_per_piece: int = ROWS_PER_PIECE
) -> Window:
    """The window to use for figures of the range, wherever it is stored.

    It reads hourly summaries if the range is long, else rows in memory if there are few. For a
    short range of a long window, it avoids reading all rows if every hour's entry is stored; of a
    window with very many rows, it stores them first.
    """
    if is_read_by_hour(window, time_range):
        return by_hour(window, time_range, rows_per_piece=rows_per_piece)
    few = with_few_rows(window)
    if few is not None:
        return few
    is_short = time_range.hours <= FROM_HOURS and is_read_by_hour(window, window.extent)
    part = short_part(window, time_range, rows_per_piece=rows_per_piece) if is_short else None
    return part or window.remembering()


def with_every_row(window: Window, time_range: TimeRange) -> Window:
    """The window to use for exact figures of the range; InputError if they do not fit into memory.

    The memory is estimated from the rows of the hours that overlap the range.
    """
    hours = files_by_hour(window.manifest)
    own = [hour for hour in hours if time_range.start < hour + _HOUR and hour < time_range.end]
    begin, end = iso(time_range.start), iso(time_range.end)
    what = f"What {window.name} has from {begin} to {end}"
    require_room_for_exact(what, rows=sum(file.rows for hour in own for file in hours[hour]))
    return window.remembering()


def short_part(
    window: Window, time_range: TimeRange, *, rows_per_piece: int = ROWS_PER_PIECE
) -> ShortPart | None:
    """The window with the rows near the range; None if any entry that it needs is not stored.

    Of a window with more than `MANY_ROWS`, missing entries are made, because reading every row
    would take too much memory.
    """
    cut = pieces_of(window, window.extent, rows_per_piece=rows_per_piece)
    shelf = Shelf.of(window.manifest)
    near = [piece.time_range for piece in cut if _overlap(piece.time_range, time_range)]
    borders = [border for own in near for border in (own.start, own.end)]
    days = in_days(cut, [window.extent.start, *borders])
    digests = Digests(window.path)
    entries = _kept(days, shelf, digests, NO_BASE.digest)
    if entries is None and sum(sum(piece.rows.values()) for piece in cut) > MANY_ROWS:
        for _ in kept_pieces(window, cut, shelf):
            pass
        entries = _kept(cut, shelf, digests, NO_BASE.digest)
    if entries is None:
        return None
    pieces = [
        Kept(
            piece.time_range,
            _with_rows(window, piece, entry) if piece.time_range in near else entry,
        )
        for piece, entry in entries
    ]
    found = ShortPart(
        **{**window.fields, "answers": Answers()},
        pieces=tuple(pieces),
        here=connected(window, pieces),
        shelf=shelf,
        near=TimeRange(near[0].start, near[-1].end) if near else time_range,
    )
    vars(found)["extent"] = window.extent
    return found


def _overlap(one: TimeRange, other: TimeRange) -> bool:
    return one.start < other.end and one.end > other.start


def _kept(
    pieces: Sequence[Piece], shelf: Shelf, digests: Digests, base: str
) -> list[tuple[Piece, Entry]] | None:
    """Each piece with its entry, or the pieces of a day without one; None if any is missing."""
    shelf.fetch({piece.hour for piece in pieces})
    found: list[tuple[Piece, Entry]] = []
    for piece in pieces:
        entry = shelf.find(key_of(piece, base, digests))
        own = [(piece, entry)] if entry else _kept(piece.parts, shelf, digests, base)
        if not own:
            return None
        found += own
        base = own[-1][1].base
    return found


def _with_rows(window: Window, piece: Piece, entry: Entry) -> Entry:
    """The entry of a piece, with all of its rows instead of only those at its ends."""
    rows = all_rows(window, piece)
    kept = {name: entry.frame(name) for name in _OF_ATTEMPTS}
    frames = {"samples": rows.samples, "histograms": rows.histograms, **kept}
    return replace(entry, frames=frames)
