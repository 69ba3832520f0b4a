"""Long windows: figures of many hours are computed from hourly summaries instead of rows.

A range of more than six hours is not read row by row. The summaries of its pieces
(figures/pieces.py) are computed once and stored next to the window, each under a hash of its source
rows: a piece is computed again only if its data changed, so late rows renew exactly the pieces that
they affect. Those of a finished day are also stored as one (figures/days.py). The cost of an answer
grows with the number of minutes, not of scrapes.

Exact, as if from all rows: counts, bills, histogram quantiles, restarts, gaps. Means of gauges
differ by the hold time of one scrape at each hour boundary, and steps are one minute long.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import cache, cached_property
from importlib.metadata import version
from itertools import groupby
from pathlib import Path

import polars as pl
from msgspec import Struct, field

from vllm_capacity.figures import traffic
from vllm_capacity.figures.attempts import Attempts
from vllm_capacity.figures.days import in_days, joined
from vllm_capacity.figures.pieces import (
    NO_BASE,
    ROWS_PER_PIECE,
    Base,
    Frames,
    Piece,
    computed,
    pieces_of,
    stored,
)
from vllm_capacity.figures.steps import STEP_SCHEMA
from vllm_capacity.telemetry.manifest import as_pattern, digest
from vllm_capacity.telemetry.memory import Database, database
from vllm_capacity.telemetry.shelf import Entry, Shelf
from vllm_capacity.telemetry.window import Answers, Window, asked, query_text
from vllm_capacity.timerange import TimeRange

FROM_HOURS = 6.0
"""A longer range is read from hourly summaries, others row by row."""

_LAYOUT = 5  # of the summaries
_HASH_DIGITS = 24
OF_ALL_ROWS = ("relabelled",)  # also depends on the rows between first and last
_SMALL = ("series", "intake")
_LARGE = ("attempt_steps",)  # not cached in memory: read again each time


class Kept(Struct, frozen=True):
    """A time range and the stored entry of its piece."""

    time_range: TimeRange
    entry: Entry


class HourlyWindow(Window, frozen=True):
    """A window for figures of one range, computed from the summaries of its pieces.

    Shipped queries read the rows at the ends of pieces; `hourly` returns the other frames. `sql`
    still reads every row.
    """

    time_range: TimeRange | None = None
    pieces: tuple[Kept, ...] = ()
    shelf: Shelf | None = None
    """Keeps others from removing the stored entries while this window is in use."""
    _frames: dict[tuple[str, bool], pl.DataFrame] = field(default_factory=dict)

    @property
    def resolution(self) -> str:
        """Figures are computed from hourly summaries."""
        return "hour"

    def shipped_sql(self, package: str, name: str, params: Mapping[str, object]) -> pl.DataFrame:
        """The result of a shipped query, from the summaries of the pieces."""
        if name in _ANSWERED:
            return _ANSWERED[name](self, params)
        if name in OF_ALL_ROWS and self._is_relabelled:
            return super().shipped_sql(package, name, params)
        return asked(self.ends, query_text(package, name), params, window=self.name)

    def first_rows(
        self, package: str, name: str, count: int, **params: object
    ) -> tuple[pl.DataFrame, int]:
        """The first rows of `named_sql`; a month of many targets has a hundred million attempts."""
        if name != "attempts":
            return super().first_rows(package, name, count, **params)
        return _attempts_before(self.pieces, params).first_rows_by_source(count)

    def hourly(self, name: str, *, everywhere: bool = False) -> pl.DataFrame:
        """The named frame of the range's pieces in order; of all if `everywhere`."""
        key = (name, everywhere)
        if key not in self._frames:
            found = together(self.pieces if everywhere else self._inside, name)
            found = _settled(found, self) if "is_birth" in found.columns else found
            if name in _LARGE:
                return found
            self._frames[key] = found.rechunk()  # else sums depend on the number of files
        return self._frames[key]

    def hourly_parts(
        self, name: str, *, columns: Sequence[str] | None = None
    ) -> Iterator[pl.DataFrame]:
        """The named frame of the pieces in the range, those of a day at a time, in order."""
        for _, day in groupby(self._inside, key=lambda piece: piece.time_range.start.date()):
            yield together(list(day), name, columns)

    @cached_property
    def ends(self) -> Database:
        """The rows at the ends of pieces; made for the first query that needs them."""
        return connected(self, self.pieces)

    @cached_property
    def _is_relabelled(self) -> bool:
        """Whether ingestion noted relabeled series, which summaries do not show."""
        return is_relabelled(self)

    @cached_property
    def _inside(self) -> list[Kept]:
        whole = self.time_range or self.extent
        return [
            piece
            for piece in self.pieces
            if whole.start <= piece.time_range.start and piece.time_range.end <= whole.end
        ]


def is_relabelled(window: Window) -> bool:
    """Whether ingestion noted relabeled series: these need all rows (`OF_ALL_ROWS`)."""
    noted = window.sql("select count(*) from intake where \"check\" in ('respelled', 'relabelled')")
    return bool(noted.item())


def is_read_by_hour(window: Window, time_range: TimeRange) -> bool:
    """Whether figures of the range are computed from hourly summaries."""
    return time_range.hours > FROM_HOURS and window.grain == "scrape"


def by_hour(
    window: Window, time_range: TimeRange, *, rows_per_piece: int = ROWS_PER_PIECE
) -> Window:
    """The window to use for figures of the range: with hourly summaries if the range is long.

    Entries that are not stored yet are computed, in pieces of about `rows_per_piece` rows.
    """
    if not is_read_by_hour(window, time_range):
        return window.remembering()
    shelf = Shelf.of(window.manifest)
    cut = pieces_of(window, time_range, rows_per_piece=rows_per_piece)
    days = in_days(cut, (time_range.start, time_range.end, window.extent.start))
    pieces = tuple(kept_pieces(window, days, shelf))
    if not any(piece.is_cut for piece in cut):
        shelf.tidy()
    kept = {"time_range": time_range, "pieces": pieces, "shelf": shelf}
    found = HourlyWindow(**{**window.fields, "answers": Answers(), **kept})
    vars(found)["extent"] = window.extent
    return found


def kept_pieces(window: Window, pieces: Sequence[Piece], shelf: Shelf) -> Iterator[Kept]:
    """Every piece of the window in order, from its stored entry or computed now.

    Pieces cut by an end of the range are not stored: there are many ranges, but few hours. A day
    is made of its pieces, which are stored as well.
    """
    return _kept_after(window, pieces, shelf, Digests(window.path), None)


def _kept_after(
    window: Window, pieces: Sequence[Piece], shelf: Shelf, digests: Digests, before: Entry | None
) -> Iterator[Kept]:
    """`kept_pieces` of pieces that follow the one with the entry `before`."""
    shelf.fetch({piece.hour for piece in pieces if not piece.is_cut})
    for piece in pieces:
        base = NO_BASE.digest if before is None else before.base
        key = key_of(piece, base, digests)
        entry = None if piece.is_cut else shelf.find(key)
        if entry is not None:
            _mark_used(piece.parts, base, shelf, digests)
        elif piece.parts:
            parts = [own.entry for own in _kept_after(window, piece.parts, shelf, digests, before)]
            entry = keep_day(window, parts, shelf, key)
        else:
            frames = computed(window, piece, base_in(before))
            entry = keep(frames, shelf, None if piece.is_cut else key)
        yield Kept(piece.time_range, entry)
        before = entry


def _mark_used(parts: Sequence[Piece], base: str | None, shelf: Shelf, digests: Digests) -> None:
    """Keep the entries of a day's pieces, though only the day's is read."""
    for part in parts:
        if base is not None:
            base = shelf.mark_used(key_of(part, base, digests))


class Digests(dict[str, str]):
    """The hashes of files that a window lists without a hash; each file is read once."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def __missing__(self, name: str) -> str:
        self[name] = digest(self._path / name)
        return self[name]


@cache
def _version() -> str:
    """The version of the code. Finding it takes longer than a small window's hashes."""
    return version("vllm-capacity")


def key_of(piece: Piece, base: str, digests: Digests) -> str:
    """The key of an entry: a hash of its inputs and the code's version."""
    made_of = (
        *(file.sha256 or digests[file.name] for file in piece.files),
        *(end.isoformat() for end in (piece.time_range.start, piece.time_range.end)),
        *(base, _version(), str(_LAYOUT), *STEP_SCHEMA),
    )
    return f"{piece.hour}.{hashlib.sha256(' '.join(made_of).encode()).hexdigest()[:_HASH_DIGITS]}"


def base_in(before: Entry | None) -> Base:
    """The base of a piece, from the entry of the piece before it; empty if there is none."""
    if before is None:
        return NO_BASE
    return Base(before.frame("base_samples"), before.frame("base_histograms"))


def keep(frames: Frames, shelf: Shelf, key: str | None) -> Entry:
    """The entry of a piece's frames: stored under the key, or in memory without a key."""
    base = Base(frames["base_samples"], frames["base_histograms"]).digest
    return Entry(frames, base) if key is None else shelf.keep(key, base, frames)


def keep_day(window: Window, parts: Sequence[Entry], shelf: Shelf, key: str) -> Entry:
    """The entry of a day, stored under the key; made from those of its pieces."""
    frames = joined(parts, window.named_sql("figures", "series"))
    return shelf.keep(key, parts[-1].base, frames)


def connected(window: Window, pieces: Sequence[Kept]) -> Database:
    """A database of the rows at the ends of pieces, as views named like a window's tables."""
    own = database()
    with own.cursor() as cursor:
        for table in _SMALL:
            paths = [as_pattern(path) for path in window.manifest.paths(table)]
            cursor.read_parquet(paths).to_view(table)
        for table in ("samples", "histograms"):
            kept = [as_pattern(path) for path in _paths(pieces, table)]
            if len(kept) == len(pieces) and table == "samples":
                cursor.read_parquet(kept).create(table)  # a dozen queries read all of these files
            elif len(kept) == len(pieces):
                cursor.read_parquet(kept).to_view(table)
            else:
                stored(cursor, table, together(pieces, table))
    return own


def _paths(pieces: Sequence[Kept], name: str) -> list[Path]:
    kept = (piece.entry.frames for piece in pieces)
    return [frames / f"{name}.parquet" for frames in kept if isinstance(frames, Path)]


def together(
    pieces: Sequence[Kept], name: str, columns: Sequence[str] | None = None
) -> pl.DataFrame:
    """The named frame of all pieces, in order; without `columns`, all of them."""
    found = []
    for is_kept, own in groupby(pieces, key=lambda piece: isinstance(piece.entry.frames, Path)):
        group = list(own)
        if is_kept:
            wanted = list(columns) if columns else None
            found.append(pl.read_parquet(_paths(group, name), glob=False, columns=wanted))
        else:
            frames = [piece.entry.frame(name) for piece in group]
            found += [frame.select(columns or pl.all()) for frame in frames]
    return pl.concat(found)


# --- shipped queries that need more than the first and last rows ----------------------------------


def _attempts(window: HourlyWindow, params: Mapping[str, object]) -> pl.DataFrame:
    return kept_attempts(window.pieces, params)


def kept_attempts(pieces: Sequence[Kept], params: Mapping[str, object]) -> pl.DataFrame:
    """The result of attempts.sql, from stretches."""
    targets = _attempts_before(pieces, params).targets
    return pl.concat(own.rows_by_source() for own in targets.values())


def _attempts_before(pieces: Sequence[Kept], params: Mapping[str, object]) -> Attempts:
    found = Attempts.put_together(
        together(pieces, "attempts"), lambda: together(pieces, "attempt_steps")["steps"]
    )
    end: datetime = params["end"]  # type: ignore[assignment]
    return found.before(end)


def _scrape_increases(window: HourlyWindow, params: Mapping[str, object]) -> pl.DataFrame:
    """The result of scrape_increases.sql: from summaries for step counters, else from all rows."""
    metrics = list(params["metrics"])  # type: ignore[call-overload]
    if not set(metrics) <= set(traffic.STEP_COUNTERS):
        return Window.shipped_sql(window, "figures", "scrape_increases", params)
    grown = (
        window.hourly("increases", everywhere=True)
        .drop("hour")
        .filter(
            pl.col("metric").is_in(metrics),
            pl.col("ts") >= _instant(params["start"]),
            pl.col("ts") < _instant(params["end"]),
        )
    )
    return grown.sort("metric", "instance", "engine", "labels", "ts")


def _settled(increases: pl.DataFrame, window: Window) -> pl.DataFrame:
    """The increases, without first values of series that did not start at zero."""
    key = ["metric", "instance", "engine", "labels"]
    series = window.named_sql("figures", "series")
    born = series.filter(pl.col("starts_at_zero").fill_null(False)).select(key)
    series_starts = increases.filter("is_birth").join(born, on=key, how="semi", nulls_equal=True)
    return pl.concat([increases.filter(~pl.col("is_birth")), series_starts]).drop("is_birth")


def _instant(value: object) -> pl.Expr:
    return pl.lit(value, pl.Datetime("us", "UTC"))


def _fastest_means(window: HourlyWindow, params: Mapping[str, object]) -> pl.DataFrame:
    metrics = list(params["metrics"])  # type: ignore[call-overload]
    return window.hourly("fastest_means", everywhere=True).filter(pl.col("metric").is_in(metrics))


def same_processes(
    window: Window, some_rows: Database, params: Mapping[str, object]
) -> pl.DataFrame:
    """The result of same_processes.sql; reads all rows only if `some_rows` leave a possible pair.

    The count of one process grows over any selection of samples, so some rows can rule a pair out.
    """
    name, possible = "same_processes", {**params, "fewest": 0}
    found = asked(some_rows, query_text("figures", name), possible, window=window.name)
    if found.is_empty():
        return found
    return Window.shipped_sql(window, "figures", name, params)


_ANSWERED: dict[str, Callable[[HourlyWindow, Mapping[str, object]], pl.DataFrame]] = {
    "attempts": _attempts,
    "scrape_increases": _scrape_increases,
    "fastest_means": _fastest_means,
    "same_processes": lambda window, params: same_processes(window, window.ends, params),
}
