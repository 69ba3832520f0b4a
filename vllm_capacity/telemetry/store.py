"""The window folder: writes rows as Parquet files, atomically, and adds `run` to them.

    WINDOW/
      window.json                     provenance: source, versions, scrape intervals; the files
      series.parquet, intake.parquet
      samples/2026-11-24T08.parquet   one file per hour, sorted by series and time
      histograms/2026-11-24T08.parquet
      .rollup/                        minutes, computed on demand (rollup.py); safe to delete

`window.json` lists the window's files (manifest.py). Files with late rows have a hash in their
names, `2026-11-24T08.0f3a….parquet` (late.py).

`run` numbers the processes that counted a series. It increases by 1 when a counter falls, when a
histogram's count, sum or any bucket falls, and when another process answers (processes.py). Within
a run everything is monotone: the state of a series at a time is its last row, and the increase over
any range is the difference of two states. Computing it once, here, makes all later queries exact
and cheap.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import polars as pl
from msgspec import Struct

from vllm_capacity.errors import NoTelemetryError, WindowError
from vllm_capacity.holding import workplace
from vllm_capacity.telemetry.manifest import TABLES, WORKPLACE, File, as_listed, write_note
from vllm_capacity.telemetry.parts import RowsInParts, Spool, Tables
from vllm_capacity.telemetry.rows import Rows
from vllm_capacity.telemetry.settling import settle_stretches
from vllm_capacity.timerange import iso


class Place(Struct, frozen=True):
    """The place of a window to be written: its path, and a hidden working folder beside it.

    `answers` has a source's responses so far; it survives a failed run.
    """

    path: Path
    folder: Path

    @property
    def answers(self) -> Path:
        """Folder of a source's responses, kept until the window exists."""
        return self.folder / "answers"

    @property
    def staging(self) -> Path:
        """The incomplete window."""
        return self.folder / "window"

    @property
    def incoming(self) -> Path:
        """Folder for rows in order of arrival (`parts.Spool`)."""
        return self.folder / "incoming"

    @property
    def ordered(self) -> Path:
        """Folder for rows in order of time, until all have been read."""
        return self.folder / "ordered"

    def clear(self) -> None:
        """Remove everything except the source's responses."""
        for folder in (self.staging, self.incoming, self.ordered):
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def reserved(path: Path) -> Iterator[Place]:
    """Reserve the place of a new window at `path` for this run.

    Raises WindowError if `path` exists, SourceError if another run is writing there. Leftovers of a
    killed run are removed, except its `answers`, which are removed once the window exists.
    """
    require_free(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    busy = f"Another run is writing {path}; nothing was done. Try again when it has finished."
    with workplace(path.with_name(f".{path.name}{WORKPLACE}"), busy=busy) as folder:
        place = Place(path, folder)
        place.clear()
        try:
            require_free(path)
            yield place
        finally:
            place.clear()
            if path.exists():
                shutil.rmtree(place.answers, ignore_errors=True)


def require_free(path: Path) -> None:
    """Raise WindowError if `path` exists."""
    if path.exists():
        raise WindowError(f"{path} exists already. Choose another name, or remove it first.")


def write_window(path: Path, rows: Rows, provenance: Mapping[str, object]) -> Path:
    """Write a window folder at `path`, which must not exist, and return it.

    Drops duplicates, keeps the newest spelling of a concept, and sets `run` and `starts_at_zero`.
    Raises WindowError if `path` exists, NoTelemetryError if there are no samples, SourceError if
    another run is writing there; in these cases nothing is left behind.
    """
    with reserved(path) as place:
        return put_window(place, rows, provenance)


def put_window(
    place: Place,
    rows: Rows | RowsInParts,
    provenance: Mapping[str, object],
    minutes: Mapping[str, pl.DataFrame] | None = None,
) -> Path:
    """Write a window at a reserved place, atomically, and return its path.

    Like `write_window`; `minutes` are the tables that a downsampled window has beside its samples.
    If rows come in parts, memory is bounded by the rows of one hour.
    """
    parts = RowsInParts.of(rows) if isinstance(rows, Rows) else rows
    if all(frame.is_empty() for part in parts.parts for frame in part()):
        raise NoTelemetryError(f"Nothing to write to {place.path}: there are no samples.")
    place.staging.mkdir()
    for name in TABLES:
        (place.staging / name).mkdir()
    files = [
        *_hours(place, parts, is_downsampled=bool(minutes)),
        *(_written(place.staging, name, name, frame) for name, frame in (minutes or {}).items()),
    ]
    wanted = {"start": iso(rows.begin)} if rows.begin else {}
    write_note(place.staging, {**wanted, **provenance}, files, through=place.staging)
    return place.staging.replace(place.path)


def _hours(place: Place, rows: RowsInParts, *, is_downsampled: bool) -> list[File]:
    """Finalize the rows and write the files of a window, hour by hour."""
    files: list[File] = []

    def write(tables: Tables) -> None:
        for table, frame in zip(TABLES, tables, strict=True):
            files.extend(
                _written(place.staging, table, f"{table}/{hour}", part)
                for hour, part in by_hour(frame)
            )

    series, ingest_notes = settle_stretches(
        rows, Spool(place.ordered), write, is_downsampled=is_downsampled
    )
    single = (("series", series), ("intake", ingest_notes))
    return [*files, *(_written(place.staging, name, name, frame) for name, frame in single)]


def _written(folder: Path, table: str, name: str, part: pl.DataFrame) -> File:
    write_part(folder / f"{name}.parquet", part)
    return as_listed(folder, table, f"{name}.parquet", rows=part.height)


def write_part(path: Path, part: pl.DataFrame) -> None:
    """Write one file of a window."""
    part.write_parquet(path, compression="zstd", compression_level=9, statistics=True)


def parts_of(rows: Rows) -> Iterator[tuple[str, str, pl.DataFrame]]:
    """The files to write: table, path in the window without suffix, rows."""
    yield from (("series", "series", rows.series), ("intake", "intake", rows.ingest_notes))
    for table, frame in (("samples", rows.samples), ("histograms", rows.histograms)):
        yield from ((table, f"{table}/{hour}", part) for hour, part in by_hour(frame))


def by_hour(frame: pl.DataFrame) -> list[tuple[str, pl.DataFrame]]:
    """The frame split by UTC hour, as (2026-11-24T08, rows) in order."""
    hours = frame.with_columns(hour=pl.col("ts").dt.strftime("%Y-%m-%dT%H"))
    parts = hours.partition_by("hour", as_dict=True, include_key=False)
    return sorted((str(key[0]), part) for key, part in parts.items())
