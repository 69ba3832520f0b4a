"""The window folder: rows become Parquet, whole or not at all, and `run` is settled by value.

    WINDOW/
      window.json                     provenance: source, versions, scrape intervals; the files
      series.parquet, intake.parquet
      samples/2026-11-24T08.parquet   a file an hour, sorted by series and time
      histograms/2026-11-24T08.parquet
      .rollup/                        minutes, computed on demand (rollup.py); safe to delete

Which files are the window's, `window.json` says (manifest.py): rows that came late are in files
with a hash in their names, `2026-11-24T08.0f3a….parquet` (late.py).

`run` is the ordinal of the process life of a series: +1 where a counter drops, where a histogram's
count, sum or any bucket does, and where another process answers than before (processes.py). Inside
a run everything is monotone, so the state of a series at a moment is its last row, and an increase
over any range is a difference of two states. Settling it here, once, is what makes every later
query exact and cheap.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from vllm_capacity.errors import NoTelemetryError, WindowError
from vllm_capacity.holding import workplace
from vllm_capacity.telemetry.manifest import TABLES, WORKPLACE, File, as_listed, write_note
from vllm_capacity.telemetry.parts import RowsInParts, Spool, Tables
from vllm_capacity.telemetry.rows import Rows
from vllm_capacity.telemetry.settling import settle_stretches
from vllm_capacity.timerange import iso


@dataclass(frozen=True)
class Place:
    """Where a window is to be: its path, and a hidden folder beside it to make it in.

    `answers` is for what a source has said so far: it outlives a run that did not end well.
    """

    path: Path
    folder: Path

    @property
    def answers(self) -> Path:
        """Kept until the window is there."""
        return self.folder / "answers"

    @property
    def staging(self) -> Path:
        """The window before it is whole."""
        return self.folder / "window"

    @property
    def incoming(self) -> Path:
        """For rows in the order in which they come in (`parts.Spool`)."""
        return self.folder / "incoming"

    @property
    def ordered(self) -> Path:
        """For rows in order of time, until all are known."""
        return self.folder / "ordered"

    def clear(self) -> None:
        """Remove all of it but what a source has said."""
        for folder in (self.staging, self.incoming, self.ordered):
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def reserved(path: Path) -> Iterator[Place]:
    """Hold the place of a window that is to be made at `path`, for this run alone.

    WindowError where something is there, SourceError where another run is making it. What a killed
    run left is removed, but for its answers; those go when the window is there.
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
    """WindowError if there is something at `path` already."""
    if path.exists():
        raise WindowError(f"{path} exists already. Choose another name, or remove it first.")


def write_window(path: Path, rows: Rows, provenance: Mapping[str, object]) -> Path:
    """Write a window folder at `path`, which must not exist, and return it.

    Duplicates are dropped, the newest spelling of a concept wins, `run` and `starts_at_zero` are
    settled. WindowError where `path` is taken, NoTelemetryError where nothing was sampled,
    SourceError where another run is writing there; then nothing is left behind.
    """
    with reserved(path) as place:
        return put_window(place, rows, provenance)


def put_window(
    place: Place,
    rows: Rows | RowsInParts,
    provenance: Mapping[str, object],
    minutes: Mapping[str, pl.DataFrame] | None = None,
) -> Path:
    """Write a window at a reserved place, whole or not at all, and return its path.

    As `write_window`; `minutes` are the tables that a downsampled window has beside its samples.
    Memory is bounded by an hour's rows where they come in parts.
    """
    parts = RowsInParts.of(rows) if isinstance(rows, Rows) else rows
    if all(frame.is_empty() for part in parts.parts for frame in part()):
        raise NoTelemetryError(f"Nothing to write to {place.path}: there is not one sample.")
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
    """Settle the rows into the files of a window, each hour as soon as it is known."""
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
    """One file of a window."""
    part.write_parquet(path, compression="zstd", compression_level=9, statistics=True)


def parts_of(rows: Rows) -> Iterator[tuple[str, str, pl.DataFrame]]:
    """What becomes a file: its table, its path in a window without a suffix, its rows."""
    yield from (("series", "series", rows.series), ("intake", "intake", rows.ingest_notes))
    for table, frame in (("samples", rows.samples), ("histograms", rows.histograms)):
        yield from ((table, f"{table}/{hour}", part) for hour, part in by_hour(frame))


def by_hour(frame: pl.DataFrame) -> list[tuple[str, pl.DataFrame]]:
    """The frame cut at UTC hours, as (2026-11-24T08, rows) in order."""
    hours = frame.with_columns(hour=pl.col("ts").dt.strftime("%Y-%m-%dT%H"))
    parts = hours.partition_by("hour", as_dict=True, include_key=False)
    return sorted((str(key[0]), part) for key, part in parts.items())
