"""The summary of a piece of a window: the frames from which figures of a long range are computed.

A piece is one clock hour, or several if there are few rows. Its summary is computed from its own
rows and its base, the last rows of each series before it. Because of the base, the frames of
consecutive pieces only have to be concatenated.

- `samples`, `histograms`: the rows at the ends of the piece, for every run in it, and those next to
  a restart or a gap. Queries about totals and lifetimes give the same result on them as on all
  rows.
- `attempts`: every scrape attempt of every job, as stretches (figures/attempts.py), because only
  the whole window shows which job's attempts count; `attempt_steps`: the steps between them.
  `steps`: engine steps of one minute.
- `increases`: increases of the step counters by hour; `requests`: finished ones by minute.
- `latency`: increases of latency histograms by minute, all engines together; `gauges`: likewise.
- `paces`, `places`, `fastest_means`: the inputs of loss bounds.
- `base_samples`, `base_histograms`: the base of the next piece.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import groupby, pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from msgspec import Struct
from msgspec.structs import replace
from numpy.typing import NDArray

from vllm_capacity.facts.metrics import (
    GENERATION_TOKENS,
    KV_CACHE,
    REQUESTS,
    RUNNING,
    WAITING,
)
from vllm_capacity.figures import gauges, latency, losses, scrapes, steps, traffic
from vllm_capacity.figures.attempts import packed
from vllm_capacity.figures.sorted_rows import SortedRows, SortedWindow
from vllm_capacity.telemetry.manifest import TABLES, File, Manifest, read_hour
from vllm_capacity.telemetry.memory import database, require_room
from vllm_capacity.telemetry.mirror import at_hand
from vllm_capacity.telemetry.processes import PROCESS_START
from vllm_capacity.telemetry.window import Answers, Window
from vllm_capacity.timerange import TimeRange, iso

if TYPE_CHECKING:
    import duckdb

ROWS_PER_PIECE = 400_000

_MIDNIGHT = datetime(2000, 1, 1, tzinfo=UTC)
_PARTS_OF_A_DAY = (1, 2, 3, 4, 6, 8, 12, 24)
_BASE_ROWS, _BASE_SECONDS = 12, 65  # enough for intervals and the best minute
_UP = "up"
_LONG_BASE = (_UP, RUNNING, GENERATION_TOKENS)
LOAD = (RUNNING, WAITING)
_OF_THE_SCRAPER = (_UP, "scrape_duration_seconds")  # have a sample even if a scrape fails
_SEEN = (RUNNING, GENERATION_TOKENS, REQUESTS, KV_CACHE)  # of engines: one row is enough
_FRESH = timedelta(minutes=5)
_MINUTE = "1m"

Frames = Mapping[str, pl.DataFrame]
Mask = NDArray[np.bool_]


class Piece(Struct, frozen=True):
    """A time range of one or more clock hours, and the window's files with its rows.

    `is_cut`: whether an end of the requested range cuts it. `parts` are the pieces of a day
    (days.py); empty for a piece that is computed from rows.
    """

    time_range: TimeRange
    files: tuple[File, ...]
    is_cut: bool = False
    parts: tuple[Piece, ...] = ()

    @property
    def hour(self) -> str:
        """The hour as in its files' names, `2026-11-24T08`; of a day, its date."""
        return f"{self.time_range.start:{'%Y-%m-%d' if self.parts else '%Y-%m-%dT%H'}}"

    @property
    def rows(self) -> dict[str, int]:
        """The number of rows in its files, by table."""
        return {
            table: sum(file.rows for file in self.files if file.table == table) for table in TABLES
        }


class Base(Struct, frozen=True):
    """The last rows of each series before a piece, with the columns of a window's tables."""

    samples: pl.DataFrame
    histograms: pl.DataFrame

    @property
    def digest(self) -> str:
        """A hash of the rows, the same on every machine."""
        found = hashlib.sha256()
        for frame in (self.samples, self.histograms):
            for column in frame.iter_columns():
                flat = column.explode() if column.dtype == pl.List else column
                found.update(flat.to_physical().to_numpy().tobytes())
        return found.hexdigest()[:24]


NO_BASE = Base(
    pl.DataFrame(
        schema={
            "series_id": pl.Int64,
            "run": pl.Int32,
            "ts": pl.Datetime("us", "UTC"),
            "value": pl.Float64,
        }
    ),
    pl.DataFrame(
        schema={
            "series_id": pl.Int64,
            "run": pl.Int32,
            "ts": pl.Datetime("us", "UTC"),
            "count": pl.Float64,
            "sum": pl.Float64,
            "counts": pl.List(pl.Float64),
        }
    ),
)


def pieces_of(
    window: Window, time_range: TimeRange, *, rows_per_piece: int = ROWS_PER_PIECE
) -> list[Piece]:
    """The window cut at clock hours and at the ends of the range, in order.

    A piece is one hour, or a number of hours that divides a day, with about `rows_per_piece` rows.
    Hours without rows have no piece.
    """
    whole, hours = window.extent, files_by_hour(window.manifest)
    length = timedelta(hours=_hours_per_piece(hours, rows_per_piece))
    borders = {time_range.start, time_range.end, whole.start}
    found = []
    for begin, own in groupby(sorted(hours), key=lambda hour: hour - (hour - _MIDNIGHT) % length):
        files = tuple(file for hour in own for file in hours[hour])
        # Rows that a pull carried in from before its start are a piece, too: a base for the next.
        first = begin if window.begin == whole.start else max(begin, whole.start)
        last = min(begin + length, whole.end)
        cuts = {border for border in borders if first < border < last}
        is_cut = bool(cuts - {whole.start})
        ends = pairwise(sorted({first, last} | cuts))
        found += [Piece(TimeRange(start, end), files, is_cut) for start, end in ends]
    return found


def files_by_hour(manifest: Manifest) -> dict[datetime, list[File]]:
    """The files with the rows of each hour."""
    hours: dict[datetime, list[File]] = {}
    for file in sorted(manifest.files, key=lambda file: file.name):
        if file.table in TABLES:
            name = f"{Path(file.plain).name}+0000"
            hour = datetime.strptime(name, "%Y-%m-%dT%H%z").astimezone(UTC)
            hours.setdefault(hour, []).append(file)
    return hours


def _hours_per_piece(hours: Mapping[datetime, Sequence[File]], rows: int) -> int:
    """How many hours have about `rows` rows: most of the cost is per piece.

    Uses the mean over the window, so that one row more or less does not change the pieces.
    """
    mean = sum(file.rows for files in hours.values() for file in files) / max(1, len(hours))
    return max((each for each in _PARTS_OF_A_DAY if each * mean <= rows), default=1)


def computed(window: Window, piece: Piece, base: Base) -> Frames:
    """Every frame of the piece's summary, by name."""
    time_range = piece.time_range
    series = window.named_sql("figures", "series")
    rows = all_rows(window, piece)
    own = _own_window(window, series, rows, base)
    tried = _attempts(rows, base, series)
    attempts = scrapes.merged(_of_one_kind(tried))
    stretches = packed(tried.filter(pl.col("ts") >= time_range.start))
    increases = traffic.scrape_increases(own, traffic.STEP_COUNTERS, time_range=time_range)
    samples = _end_samples(rows.samples, base.samples, series, _last_answers(tried))
    histograms = _ends(rows, base)
    after = base_after(base, rows, series)
    return {
        "samples": samples,
        "histograms": histograms,
        "attempts": stretches.drop("steps"),
        "attempt_steps": stretches.select("steps"),
        "steps": steps.minute_steps(own, time_range=time_range, attempts=attempts),
        "increases": _growth(increases),
        "requests": _requests(increases, since=time_range.start),
        "latency": latency.minutes(own, time_range=time_range),
        "gauges": _gauge_minutes(own, attempts, time_range),
        "paces": losses.scrape_paces(increases),
        "places": losses.engine_places(own, time_range=time_range),
        "fastest_means": losses.fastest_means(own),
        "base_samples": after.samples,
        "base_histograms": after.histograms,
    }


def own_base(window: Window, piece: Piece) -> Base:
    """The next piece's base from this piece's rows alone, to be combined with this piece's base."""
    series = window.named_sql("figures", "series")
    return base_after(NO_BASE, all_rows(window, piece), series)


def all_rows(window: Window, piece: Piece) -> Base:
    """The rows of the piece; InputError if they do not fit into memory."""
    begin, end = iso(piece.time_range.start), iso(piece.time_range.end)
    require_room(f"What {window.name} has from {begin} to {end}", **piece.rows)
    at_hand(window.manifest, piece.files)
    return Base(*(_rows(window, piece, table) for table in TABLES))


def _rows(window: Window, piece: Piece, table: str) -> pl.DataFrame:
    """The rows of the piece, sorted by series and time."""
    files = [file for file in piece.files if file.table == table]
    empty = NO_BASE.samples if table == "samples" else NO_BASE.histograms
    parts = [read_hour(window.path, file) for file in files]
    frame = pl.concat([part.select(empty.columns) for part in parts]) if parts else empty
    if len(parts) > 1:  # each is sorted, and they are in order of time
        frame = frame.sort("series_id", maintain_order=True)
    is_inside = (pl.col("ts") >= piece.time_range.start) & (pl.col("ts") < piece.time_range.end)
    return frame if frame.select(is_inside.all()).item() else frame.filter(is_inside)


def _own_window(window: Window, series: pl.DataFrame, rows: Base, base: Base) -> Window:
    """A window with the data for steps and restarts, from the piece and its base.

    A series that starts in it is taken to count from 0; whether it does is decided when the frames
    are read (`_growth`).
    """
    whole, seen = (
        series.filter(pl.col("metric").is_in(metrics)).get_column("series_id").to_numpy()
        for metrics in ((PROCESS_START,), _SEEN)
    )
    born = series.with_columns(starts_at_zero=pl.col("kind") == "counter")
    both = (base.samples, rows.samples)
    samples = [*(_of(whole, each) for each in both), *(_first(seen, each) for each in both)]
    tables = {
        "series": born,
        "samples": pl.concat(samples).unique(["series_id", "ts"]),
        "histograms": rows.histograms.clear(),
    }
    own = database()
    with own.cursor() as cursor:
        for name, frame in tables.items():
            stored(cursor, name, frame)
    here = replace(window.manifest, origin=None)  # complete: nothing to fetch from S3
    return SortedWindow(
        **{**window.fields, "manifest": here, "database": own, "answers": Answers()},
        series=born,
        samples=SortedRows(base.samples, rows.samples),
        histograms=SortedRows(base.histograms, rows.histograms),
    )


def _of(series_ids: NDArray[np.int64], rows: pl.DataFrame) -> pl.DataFrame:
    """The rows of these series, from rows sorted by series."""
    ids = rows["series_id"].to_numpy()
    wanted = np.sort(series_ids)
    starts, ends = np.searchsorted(ids, wanted), np.searchsorted(ids, wanted, side="right")
    parts = [rows[int(a) : int(b)] for a, b in zip(starts, ends, strict=True) if a < b]
    return pl.concat([rows.clear(), *parts])


def _first(series_ids: NDArray[np.int64], rows: pl.DataFrame) -> pl.DataFrame:
    """The first row of each of these series that has any, from rows sorted by series."""
    starts, ends = (
        np.searchsorted(rows["series_id"].to_numpy(), series_ids, side=side)
        for side in ("left", "right")
    )
    return rows[np.sort(starts[starts < ends])]


def stored(connection: duckdb.DuckDBPyConnection, name: str, frame: pl.DataFrame) -> None:
    """Make a frame a table of the connection's database."""
    connection.register("frame", frame)
    connection.execute(f"create table {name} as select * from frame")
    connection.unregister("frame")


# --- attempts ------------------------------------------------------------------------------------


def _attempts(rows: Base, base: Base, series: pl.DataFrame) -> pl.DataFrame:
    """Every scrape attempt in the piece and its base: instance, ts, source, is_good.

    Sorted by instance, source, ts. As in attempts.sql, but `source` is null for the times of a
    target's samples before its first `up`: they count as attempts only if it has no `up`
    (`_of_one_kind`).
    """
    both = (base.samples, rows.samples)
    is_up = pl.col("metric") == _UP
    ups = series.filter(is_up).select("series_id", "instance", source="labels")
    tried = pl.concat([_of(ups["series_id"].to_numpy(), each) for each in both]).join(
        ups, on="series_id"
    )
    watched = tried.group_by("instance").agg(since=pl.col("ts").min())
    known = ups.filter(pl.col("series_id").is_in(base.samples["series_id"].implode()))
    others = (
        series.filter(~pl.col("metric").is_in(_OF_THE_SCRAPER))
        .join(watched, on="instance", how="left")
        .filter(pl.col("since").is_null() | ~pl.col("instance").is_in(known["instance"].implode()))
    )
    ids = others["series_id"].implode()
    unwatched = (
        pl.concat([each.filter(pl.col("series_id").is_in(ids)) for each in both])
        .join(others.select("series_id", "instance", "since"), on="series_id")
        .filter(pl.col("since").is_null() | (pl.col("ts") < pl.col("since")))
        .select("instance", "ts")
        .unique()
    )
    found = pl.concat(
        [
            tried.select("instance", "ts", "source", is_good=pl.col("value") > 0),
            unwatched.with_columns(source=pl.lit(None, pl.String), is_good=pl.lit(True)),
        ]
    )
    return found.sort("instance", "source", "ts", nulls_last=True)


def _of_one_kind(tried: pl.DataFrame) -> pl.DataFrame:
    """The attempts as in attempts.sql: without times of samples for targets with `up`."""
    is_watched = pl.col("source").is_not_null().any().over("instance")
    return (
        tried.filter(pl.col("source").is_not_null() | ~is_watched)
        .with_columns(pl.col("source").fill_null(""))
        .sort("instance", "ts", "source")
    )


def _last_answers(tried: pl.DataFrame) -> pl.DataFrame:
    """The last good attempt of each job at each target: instance, ts. An outage may follow it."""
    good = tried.filter("is_good")
    return good.group_by("instance", "source").agg(pl.col("ts").max()).drop("source")


# --- last rows and bases ------------------------------------------------------------------------


def base_after(before: Base, rows: Base, series: pl.DataFrame) -> Base:
    """The base of the next piece: the last rows of each series until then.

    `rows` are those of a piece, or the base from them alone (`own_base`). Both give the same
    result, so the bases of pieces can be computed in parallel and combined in order.
    """
    long = series.filter(pl.col("metric").is_in(_LONG_BASE)).get_column("series_id").to_numpy()
    is_long = pl.col("series_id").is_in(pl.Series(long).implode())
    many = pl.concat([_of(long, before.samples), _of(long, rows.samples)])
    rank = pl.int_range(pl.len()).reverse().over("series_id")
    age = pl.col("ts").last().over("series_id") - pl.col("ts")
    many = many.filter((rank < _BASE_ROWS) | (age <= timedelta(seconds=_BASE_SECONDS)))
    samples = _last(before.samples, rows.samples).filter(~is_long)
    return Base(
        pl.concat([samples, many.select(samples.columns)]).sort("series_id", "ts"),
        _last(before.histograms, rows.histograms),
    )


def _last(before: pl.DataFrame, rows: pl.DataFrame) -> pl.DataFrame:
    """The last row of each series, from rows sorted by series and time."""
    ids = rows["series_id"].to_numpy()
    own = rows.filter(pl.Series(np.append(ids[1:] != ids[:-1], True)[: ids.size]))
    both = pl.concat([before, own])
    return both.unique("series_id", keep="last", maintain_order=True).sort("series_id")


def _ends(rows: Base, base: Base) -> pl.DataFrame:
    """The last row of every histogram's run, and the first if the base does not have the run."""
    return rows.histograms.filter(pl.Series(is_run_end(rows.histograms, base.histograms)))


def is_run_end(rows: pl.DataFrame, base: pl.DataFrame) -> Mask:
    """Whether each row ends a (series, run), or begins one that does not continue from the base."""
    ids, runs = rows["series_id"].to_numpy(), rows["run"].to_numpy()
    if not ids.size:
        return np.zeros(0, bool)
    changes = (ids[1:] != ids[:-1]) | (runs[1:] != runs[:-1])
    first, last = np.append(True, changes), np.append(changes, True)
    begins = np.flatnonzero(first)
    first[begins] = _run_before(base, ids[begins]) != runs[begins]
    return np.asarray(first | last)


def _run_before(base: pl.DataFrame, series_ids: NDArray[np.int64]) -> NDArray[np.int32]:
    """The last run of each series in the base; -1 if the base does not have the series."""
    ids, runs = base["series_id"].to_numpy(), base["run"].to_numpy()
    if not ids.size:
        return np.full(series_ids.size, -1, np.int32)
    at = np.searchsorted(ids, series_ids, side="right") - 1
    return np.where((at >= 0) & (ids[at] == series_ids), runs[at], -1).astype(np.int32)


def _end_samples(
    rows: pl.DataFrame, base: pl.DataFrame, series: pl.DataFrame, last_answers: pl.DataFrame
) -> pl.DataFrame:
    """The rows at both ends of runs; for gauges, also the first row of each series.

    For load, also the rows before silences and at the last answers (instance, ts). For process
    starts, the rows on both sides of a change of a target's start.
    """
    ends = rows.filter(pl.Series(is_run_end(rows, base)))
    known = series.select("series_id", "kind", "metric", "instance")
    ids = {
        name: known.filter(which).get_column("series_id").to_numpy()
        for name, which in (
            ("gauges", pl.col("kind").is_in(["gauge", "info"])),
            ("load", pl.col("metric").is_in(LOAD)),
            ("starts", pl.col("metric") == PROCESS_START),
        )
    }
    gauged = _of(ids["gauges"], rows)
    load, starts = (_of(ids[name], rows).join(known, on="series_id") for name in ("load", "starts"))
    other = pl.col("value") != pl.col("value").shift(1).over("series_id")
    changed = starts.filter((other | other.shift(-1).over("series_id")).fill_null(False))
    gap = pl.col("ts").shift(-1).over("series_id") - pl.col("ts")
    silent = load.filter(gap > scrapes.GAP_FACTOR * gap.median().over("series_id"))
    # Requests running and waiting when a run ended, and all start times reported at that time.
    ended = ends.join(known.filter(pl.col("kind") == "counter"), on="series_id")
    own = (frame.select("instance", "ts") for frame in (ended, changed, last_answers))
    times = pl.concat(own).unique()
    beside = pl.concat([load, starts]).join(times, on=["instance", "ts"], how="semi")
    columns = rows.columns
    firsts = gauged.unique("series_id", keep="first", maintain_order=True)
    parts = (ends, firsts, *(frame.select(columns) for frame in (changed, silent, beside)))
    return pl.concat(parts).unique(["series_id", "ts"], maintain_order=True).sort("series_id", "ts")


# --- reading pieces -----------------------------------------------------------------------------


def _growth(increases: pl.DataFrame) -> pl.DataFrame:
    """The increase of each counter in each hour, one row each; series starts in separate rows.

    A series start has no scrape before it; it counts only if the window has `starts_at_zero` for
    the series.
    """
    key = ("metric", "instance", "engine", "model_name", "labels")
    return increases.group_by(
        *key,
        hour=pl.col("ts").dt.truncate("1h"),
        is_birth=pl.col("ts_before").is_null(),
        maintain_order=True,
    ).agg(pl.col("ts_before").min(), pl.col("ts").max(), pl.col("increase").sum())


def _requests(increases: pl.DataFrame, *, since: datetime) -> pl.DataFrame:
    """Finished requests per minute, by labels, all engines together; series starts separately."""
    own = increases.filter(pl.col("metric") == REQUESTS).with_columns(
        pl.col("ts").dt.truncate(_MINUTE).clip(lower_bound=since),
        is_birth=pl.col("ts_before").is_null(),
    )
    counted = (
        own.filter(~pl.col("is_birth"))
        .group_by("metric", "ts", "labels", "is_birth", maintain_order=True)
        .agg(pl.col("increase").sum())
    )
    born = own.filter("is_birth").select(*counted.columns, "instance", "engine")
    return pl.concat([counted, born], how="diagonal").sort("ts", "labels")


def _gauge_minutes(window: Window, attempts: pl.DataFrame, time_range: TimeRange) -> pl.DataFrame:
    """Gauges in each minute, all engines together: running and waiting summed, KV pooled.

    One row per metric and minute: the sum of values (`total`, over `n`), of values × their hold
    seconds (`weighted`, over `seconds`), and the maximum.
    """
    since = time_range.start - _FRESH
    fresh = TimeRange(since, time_range.end)
    samples = gauges.gauge_samples(window, list(gauges.GAUGES), time_range=fresh)
    tried = attempts.filter(pl.col("ts") >= since)
    frames = {metric: gauges.summed(samples, tried, metric) for metric in (RUNNING, WAITING)}
    frames[KV_CACHE] = gauges.held(samples, KV_CACHE)
    value, seconds = pl.col("value"), pl.col("hold_seconds")
    return pl.concat(
        [
            frame.filter(pl.col("ts") >= time_range.start)
            .group_by(pl.col("ts").dt.truncate(_MINUTE), maintain_order=True)
            .agg(
                metric=pl.lit(metric),
                total=value.sum(),
                n=pl.len().cast(pl.Int64),
                weighted=(value * seconds).sum(),
                seconds=seconds.sum(),
                max=value.max(),
            )
            for metric, frame in frames.items()
        ]
    )
