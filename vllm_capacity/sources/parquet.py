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

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import duckdb
from msgspec import Struct

from vllm_capacity.errors import InputError, NoTelemetryError, SourceError
from vllm_capacity.sources.answers import LATE, LOOKBACK, SKEW, AnswerCache
from vllm_capacity.sources.otlp import EPOCH
from vllm_capacity.sources.otlp_rows import NOTHING, part_of_points, rows_of_points
from vllm_capacity.sources.parseable_queries import duckdb_projection, duckdb_type, resolve
from vllm_capacity.sources.slices import Slice, cut_in_parts, during, gathered, one_by_one
from vllm_capacity.telemetry.bucket import failed, opened_filesystem
from vllm_capacity.telemetry.parts import Held, RowsInParts, Spool
from vllm_capacity.telemetry.rows import Rows
from vllm_capacity.timerange import TimeRange, iso

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


class StreamSlice(Slice, frozen=True):
    """The files in an hour's folder that arrived within `arrivals`.

    Samples outside of `time_range`, and of the hour before it, are left out; None keeps all.
    """

    folder: str
    stream: str
    time_range: TimeRange | None


def read_stream(
    store: Store, stream: str, time_range: TimeRange | None = None, *, late: timedelta = LATE
) -> Rows:
    """The canonical rows of one stream, sampled within the range, or all of them.

    With a range, each series also includes its last sample before the start. InputError, listing
    the existing streams, if the stream does not exist.
    """
    slices = stream_slices(store, stream, time_range, late=late)
    parts = gathered(slices, one_by_one(partial(read_slice, store)), cache=AnswerCache())
    return rows_of_slices(slices, parts, Held()).whole()


def stream_slices(
    store: Store, stream: str, time_range: TimeRange | None, *, late: timedelta
) -> list[StreamSlice]:
    """The hours in which samples of the range, and of the hour before it, may have arrived.

    InputError if the stream does not exist, NoTelemetryError if there are no files.
    """
    folder = _folder(store, stream)
    arrivals = _arrivals(time_range, late)
    slices = []
    for own, begun in _hours(store, folder, arrivals):
        end = begun + timedelta(hours=1)
        if arrivals is not None:
            begun, end = max(begun, arrivals.start), min(end, arrivals.end)
        spans = [TimeRange(begun, end), *([time_range] if time_range else [])]
        question = "\n".join([own, *(iso(at) for span in spans for at in (span.start, span.end))])
        slices.append(StreamSlice(question, spans[0], own, stream, time_range))
    if not any(_files_of(store, own) for own in slices):
        raise _nothing(store, stream, time_range)
    return slices


def read_slice(store: Store, own: StreamSlice) -> bytes:
    """The samples in the files of a slice, as a `SlicePart`.

    SourceError if a file cannot be read.
    """
    files = _files_of(store, own)
    if not files:
        return NOTHING
    with closing(duckdb.connect()) as connection:
        connection.execute("set timezone = 'UTC'")
        store.prepare(connection)
        try:
            return _read_points(connection, files, own)
        except (duckdb.IOException, duckdb.InvalidInputException) as error:
            raise SourceError(
                f"Could not read the files of stream {own.stream!r}: {str(error).splitlines()[0]} "
                "Retention may have removed one, or the server was still writing it. Try again."
            ) from error


def rows_of_slices(
    slices: Sequence[StreamSlice], parts: Sequence[Callable[[], bytes]], spool: Held | Spool
) -> RowsInParts:
    """The canonical rows of all slices of a stream; errors as in `read_stream`."""
    time_range = slices[0].time_range
    rows = rows_of_points(parts, spool, since=time_range.start if time_range else EPOCH)
    return rows if time_range is None else cut_in_parts(rows, time_range)


def stream_files(
    store: Store, stream: str, time_range: TimeRange | None, *, late: timedelta
) -> list[str]:
    """The files that may hold samples from the range and up to an hour before it.

    Errors as in `stream_slices`.
    """
    arrivals = _arrivals(time_range, late)
    found = [
        file
        for folder, begun in _hours(store, _folder(store, stream), arrivals)
        for file in _files(store, folder, begun, arrivals)
    ]
    if not found:
        raise _nothing(store, stream, time_range)
    return found


def _folder(store: Store, stream: str) -> str:
    """The folder of a stream; InputError if it does not exist."""
    known = store.streams()
    if stream not in known:
        raise InputError(
            f"No stream {stream!r} in {store.root}. "
            + (f"Streams there: {', '.join(known)}." if known else "It has no streams.")
        )
    return f"{store.root}/{stream}"


def _nothing(store: Store, stream: str, time_range: TimeRange | None) -> NoTelemetryError:
    return NoTelemetryError(f"Stream {stream!r} in {store.root} has no data{during(time_range)}.")


def _arrivals(time_range: TimeRange | None, late: timedelta) -> TimeRange | None:
    if time_range is None:
        return None
    return TimeRange(time_range.start - LOOKBACK - SKEW, time_range.end + late)


def _hours(store: Store, folder: str, arrivals: TimeRange | None) -> Iterator[tuple[str, datetime]]:
    """The hour folders that overlap the range of arrivals, each with its time; oldest first."""
    for date in _partitions(store, folder, "date"):
        day = datetime.fromisoformat(date).replace(tzinfo=UTC)
        if not _overlaps(day, timedelta(days=1), arrivals):
            continue
        for hour in _partitions(store, f"{folder}/date={date}", "hour"):
            begun = day + timedelta(hours=int(hour))
            if _overlaps(begun, timedelta(hours=1), arrivals):
                yield f"{folder}/date={date}/hour={hour}", begun


def _files_of(store: Store, own: StreamSlice) -> list[str]:
    begun = own.arrivals.start.replace(minute=0, second=0, microsecond=0)
    return _files(store, own.folder, begun, own.arrivals)


def _files(store: Store, folder: str, begun: datetime, arrivals: TimeRange | None) -> list[str]:
    """An hour's Parquet files in minutes that overlap the range of arrivals, oldest first."""
    minutes = _minutes(store, folder, begun, arrivals)
    return [file for minute in minutes for file in _parquet_files(store, minute)]


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


def _read_points(
    connection: duckdb.DuckDBPyConnection, files: list[str], own: StreamSlice
) -> bytes:
    stored = connection.read_parquet(files, union_by_name=True, hive_partitioning=False)
    types = {
        name: duckdb_type(str(sort))
        for name, sort in zip(stored.columns, stored.types, strict=True)
    }
    columns = resolve(own.stream, types)
    wanted = stored.filter("metric_type in ('gauge', 'sum', 'histogram')")
    points = wanted.project(duckdb_projection(columns)).filter("ts is not null")
    since = EPOCH
    if own.time_range is not None:
        since, end = own.time_range.start, own.time_range.end
        points = points.filter(f"ts >= {_naive(since - LOOKBACK)} and ts < {_naive(end)}")
    points.to_view("points")
    return part_of_points(connection, list(columns.labels), since=since)


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
