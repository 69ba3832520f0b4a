"""Reads Parseable's own Parquet files, which it never modifies; the server may keep running.

    ROOT/STREAM/date=2026-11-24/hour=08/minute=14/….parquet      data, by the minute it *arrived*
    ROOT/STREAM/.stream/                                          marks a folder as a stream

Partitions only determine which files to open; samples are selected by their own time,
`time_unix_nano`. A collector that was cut off delivers late, so files up to `late` after the end
are read as well. Files may have different columns and are combined by column name. The last minute
or two, which the server still holds in memory, is not in the files.

DuckDB's own S3 support is not used, because it is an extension downloaded on first use, which a
machine without internet cannot do. s3fs (the extra `s3`) takes credentials from the environment.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import duckdb
import polars as pl
from msgspec import Struct

from vllm_capacity.errors import InputError, NoTelemetryError, SourceError
from vllm_capacity.sources.otlp import EPOCH, rows_from_points
from vllm_capacity.sources.parseable_queries import duckdb_projection, duckdb_type, resolve
from vllm_capacity.telemetry.bucket import failed, opened_filesystem
from vllm_capacity.telemetry.parts import RowsInParts, Tables
from vllm_capacity.telemetry.rows import Rows
from vllm_capacity.timerange import TimeRange, iso

LATE = timedelta(hours=2)
# How far before the start to look for a series' last sample, and how far clocks may differ.
LOOKBACK = timedelta(hours=1)
SKEW = timedelta(minutes=5)
_INTERNAL = frozenset({"pstats", "pmeta"})


class Store(Struct, frozen=True):
    """The root of a Parseable store: a local folder, or a bucket and prefix."""

    root: str
    names: Callable[[str], list[str]]
    prepare: Callable[[duckdb.DuckDBPyConnection], None]

    def streams(self) -> list[str]:
        """The names of its streams, without Parseable's internal ones."""
        return sorted(
            name
            for name in self.names(self.root)
            if name not in _INTERNAL
            and not name.startswith(".")
            and ".stream" in self.names(f"{self.root}/{name}")
        )


def open_store(location: str) -> Store:
    """The store in a folder or at `s3://bucket/prefix`; InputError if the folder does not exist."""
    root = location.rstrip("/")
    if root.startswith("s3://"):
        return _s3_store(root)
    if not Path(root).is_dir():
        raise InputError(f"No Parseable store at {location}: there is no such folder.")
    return Store(root, _local_names, lambda connection: None)


def read_stream(
    store: Store, stream: str, time_range: TimeRange | None = None, *, late: timedelta = LATE
) -> Rows:
    """The canonical rows of one stream, sampled within the range, or all of them.

    With a range, each series also includes its last sample before the start. InputError, listing
    the existing streams, if the stream does not exist.
    """
    files = stream_files(store, stream, time_range, late=late)
    rows = _read_files(store, stream, files, time_range)
    return rows if time_range is None else cut(rows, time_range)


def stream_files(
    store: Store, stream: str, time_range: TimeRange | None, *, late: timedelta
) -> list[str]:
    """The files that may hold samples from the range and up to an hour before it.

    InputError if the stream does not exist, NoTelemetryError if there are no such files.
    """
    known = store.streams()
    if stream not in known:
        raise InputError(
            f"No stream {stream!r} in {store.root}. "
            + (f"Streams there: {', '.join(known)}." if known else "It has no streams.")
        )
    files = _files(store, f"{store.root}/{stream}", _arrivals(time_range, late))
    if not files:
        raise NoTelemetryError(
            f"Stream {stream!r} in {store.root} has no data{_during(time_range)}."
        )
    return files


def cut(rows: Rows, time_range: TimeRange) -> Rows:
    """The rows within the range, and the last row before it of each series in the range.

    NoTelemetryError if nothing was sampled within the range.
    """
    samples, histograms = (_cut(frame, time_range) for frame in (rows.samples, rows.histograms))
    ids = pl.concat([samples.get_column("series_id"), histograms.get_column("series_id")]).unique()
    if ids.is_empty():
        raise NoTelemetryError(f"Nothing was sampled{_during(time_range)}.")
    series = rows.series.filter(pl.col("series_id").is_in(ids.implode()))
    return Rows(series, samples, histograms, rows.ingest_notes, time_range.start)


def cut_in_parts(rows: RowsInParts, time_range: TimeRange) -> RowsInParts:
    """Like `cut`, for rows in parts: the rows before the range become the first part."""
    inside, before, parts = [], [rows.parts[0]()], []
    before[0] = (before[0][0].clear(), before[0][1].clear())
    for part in rows.parts:
        tables = part()
        within = [_within(frame, time_range) for frame in tables]
        inside += [frame["series_id"].unique() for frame in within]
        earlier = [frame.filter(pl.col("ts") < time_range.start) for frame in tables]
        before.append((_newest(earlier[0]), _newest(earlier[1])))
        is_whole = [frame.height for frame in within] == [frame.height for frame in tables]
        parts.append(part if is_whole else partial(_part_within, part, time_range))
    ids = pl.concat(inside).unique().implode()
    if ids.explode().is_empty():
        raise NoTelemetryError(f"Nothing was sampled{_during(time_range)}.")
    is_kept = pl.col("series_id").is_in(ids)
    samples, histograms = (
        pl.concat(frames).filter(is_kept) for frames in zip(*before, strict=True)
    )
    carried = (_newest(samples), _newest(histograms))
    return RowsInParts(
        rows.series.filter(is_kept),
        [lambda: carried, *parts],
        rows.ingest_notes,
        time_range.start,
    )


def _part_within(part: Callable[[], Tables], time_range: TimeRange) -> Tables:
    samples, histograms = part()
    return _within(samples, time_range), _within(histograms, time_range)


def _within(frame: pl.DataFrame, time_range: TimeRange) -> pl.DataFrame:
    return frame.filter(pl.col("ts").is_between(time_range.start, time_range.end, closed="left"))


def _newest(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.filter(pl.col("ts") == pl.col("ts").max().over("series_id"))


def _cut(frame: pl.DataFrame, time_range: TimeRange) -> pl.DataFrame:
    inside = _within(frame, time_range)
    before = _newest(
        frame.filter(pl.col("ts") < time_range.start).join(
            inside.select("series_id").unique(), on="series_id", how="semi"
        )
    )
    return pl.concat([before, inside]).sort(
        "series_id", "ts", "alias_priority", maintain_order=True
    )


def _during(time_range: TimeRange | None) -> str:
    return "" if time_range is None else f" from {iso(time_range.start)} to {iso(time_range.end)}"


def _arrivals(time_range: TimeRange | None, late: timedelta) -> TimeRange | None:
    if time_range is None:
        return None
    return TimeRange(time_range.start - LOOKBACK - SKEW, time_range.end + late)


def _files(store: Store, folder: str, arrivals: TimeRange | None) -> list[str]:
    """The Parquet files whose partition overlaps the range of arrivals, oldest first."""
    found: list[str] = []
    for date in _partitions(store, folder, "date"):
        day = datetime.fromisoformat(date).replace(tzinfo=UTC)
        if not _overlaps(day, timedelta(days=1), arrivals):
            continue
        for hour in _partitions(store, f"{folder}/date={date}", "hour"):
            begun = day + timedelta(hours=int(hour))
            if _overlaps(begun, timedelta(hours=1), arrivals):
                minutes = _minutes(store, f"{folder}/date={date}/hour={hour}", begun, arrivals)
                found += [file for minute in minutes for file in _parquet_files(store, minute)]
    return found


def _minutes(store: Store, folder: str, hour: datetime, arrivals: TimeRange | None) -> list[str]:
    """An hour's minute folders that overlap the arrivals; one may span several ("00-09")."""
    chosen = []
    for minute in _partitions(store, folder, "minute"):
        first, _, last = minute.partition("-")
        span = timedelta(minutes=int(last or first) - int(first) + 1)
        if _overlaps(hour + timedelta(minutes=int(first)), span, arrivals):
            chosen.append(f"{folder}/minute={minute}")
    return chosen


def _parquet_files(store: Store, folder: str) -> list[str]:
    """The Parquet files under a minute folder; a custom partition adds one level."""
    names = store.names(folder)
    nested = [n for name in names if "=" in name for n in _parquet_files(store, f"{folder}/{name}")]
    return [f"{folder}/{name}" for name in names if name.endswith(".parquet")] + nested


def _partitions(store: Store, folder: str, key: str) -> list[str]:
    prefix = f"{key}="
    names = store.names(folder)
    return sorted(name.removeprefix(prefix) for name in names if name.startswith(prefix))


def _overlaps(begun: datetime, span: timedelta, arrivals: TimeRange | None) -> bool:
    return arrivals is None or (begun < arrivals.end and begun + span > arrivals.start)


def _read_files(store: Store, stream: str, files: list[str], time_range: TimeRange | None) -> Rows:
    with closing(duckdb.connect()) as connection:
        connection.execute("set timezone = 'UTC'")
        store.prepare(connection)
        try:
            return _read_points(connection, stream, files, time_range)
        except (duckdb.IOException, duckdb.InvalidInputException) as error:
            raise SourceError(
                f"Could not read the files of stream {stream!r}: {str(error).splitlines()[0]} "
                "Retention may have removed one, or the server was still writing it. Try again."
            ) from error


def _read_points(
    connection: duckdb.DuckDBPyConnection,
    stream: str,
    files: list[str],
    time_range: TimeRange | None,
) -> Rows:
    stored = connection.read_parquet(files, union_by_name=True, hive_partitioning=False)
    types = {
        name: duckdb_type(str(sort))
        for name, sort in zip(stored.columns, stored.types, strict=True)
    }
    columns = resolve(stream, types)
    wanted = stored.filter("metric_type in ('gauge', 'sum', 'histogram')")
    points = wanted.project(duckdb_projection(columns)).filter("ts is not null")
    if time_range is not None:
        span = f"ts >= {_naive(time_range.start - LOOKBACK)} and ts < {_naive(time_range.end)}"
        points = points.filter(span)
    points.to_view("points")
    return rows_from_points(
        connection, list(columns.labels), since=time_range.start if time_range else EPOCH
    )


def _naive(instant: datetime) -> str:
    return f"timestamp '{instant.astimezone(UTC).replace(tzinfo=None).isoformat(' ')}'"


def _local_names(folder: str) -> list[str]:
    return [entry.name for entry in Path(folder).iterdir()] if Path(folder).is_dir() else []


def _s3_store(root: str) -> Store:
    bucket = opened_filesystem()
    from botocore.exceptions import BotoCoreError  # type: ignore[import-untyped]

    def names(folder: str) -> list[str]:
        try:
            return [str(path).rsplit("/", 1)[-1] for path in bucket.ls(folder, detail=False)]
        except FileNotFoundError:
            return []
        except (OSError, ValueError, BotoCoreError) as error:
            raise failed(f"list {folder}", error) from error

    return Store(root, names, lambda connection: connection.register_filesystem(bucket))
