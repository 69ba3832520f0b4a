"""Late data: adds rows to an existing window, changing only the hours that they affect.

Changed hours are written beside the old ones under new names, then `window.json` is replaced. The
window changes at that moment, so a reader sees all of the change or nothing. The old files are
removed when nobody reads them any more.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

import polars as pl
from msgspec.structs import replace

from vllm_capacity.errors import WindowError
from vllm_capacity.holding import alone, workplace
from vllm_capacity.telemetry.manifest import (
    FORMAT,
    TABLES,
    WORKPLACE,
    File,
    Manifest,
    as_listed,
    digest,
    read_list,
    read_manifest,
    read_part,
    unlisted,
    write_note,
)
from vllm_capacity.telemetry.relabelled import without_repeats
from vllm_capacity.telemetry.rows import HISTOGRAMS_SCHEMA, SAMPLES_SCHEMA, Rows
from vllm_capacity.telemetry.settling import settle
from vllm_capacity.telemetry.store import parts_of, write_part
from vllm_capacity.telemetry.window import asked_instant

_PATIENCE_SECONDS = 600.0
_HASH_DIGITS = 12


def extend_window(path: Path, late: Rows) -> list[str]:
    """Add late rows to the window at `path`; returns the hours with changed data, in order.

    Concurrent runs take turns; raises SourceError after waiting ten minutes for another run.
    Unchanged hours keep their files, and so their rollup. Raises WindowError for a downsampled
    window, which has minutes instead of samples.
    """
    busy = f"Another run is still adding to {path}; nothing was done. Try again later."
    place = workplace(path / WORKPLACE, busy=busy, patience_seconds=_PATIENCE_SECONDS)
    with place as folder:
        held = read_manifest(path, verify=True)
        if "minute" in (held.provenance["grain"], held.provenance.get("counters")):
            raise WindowError(
                f"{path} has minutes, not samples, so nothing can be added to it. Pull it again "
                "instead."
            )
        held = _as_listed(held, folder)
        try:
            _remove_unlisted(path, folder)
            begin = asked_instant(held.provenance, "start")
            stored = _rows_of(held)
            settled = settle(_joined(stored, without_repeats(late, stored), begin=begin))
            files = list(_files_of(settled, held, folder))
            write_note(path, held.provenance, files, through=folder)
        finally:
            _remove_unlisted(path, folder)
    changed = {file for file in files if file not in held.files and file.table in TABLES}
    return sorted({Path(file.plain).name for file in changed})


def stored_rows(path: Path) -> Rows:
    """The rows of a window, in the form that sources return."""
    return _rows_of(read_manifest(path))


def _rows_of(held: Manifest) -> Rows:
    samples = _joined_hours(held, "samples", SAMPLES_SCHEMA)
    histograms = _joined_hours(held, "histograms", HISTOGRAMS_SCHEMA)
    (series,), (ingest_notes,) = (held.frames(table) for table in ("series", "intake"))
    return Rows(series, samples, histograms, ingest_notes)


def _joined_hours(held: Manifest, table: str, schema: dict[str, Any]) -> pl.DataFrame:
    hours = [
        hour.with_columns(alias_priority=pl.lit(0, pl.Int8), arrival=pl.lit(0, pl.Int64)).select(
            list(schema)
        )
        for hour in held.frames(table)
    ]
    return pl.concat([pl.DataFrame(schema=schema), *hours])


def _joined(stored: Rows, late: Rows, *, begin: datetime | None) -> Rows:
    """Both together; resets `starts_at_zero` of series that now begin with a late row."""
    older = pl.concat(
        [late.samples.select("series_id", "ts"), late.histograms.select("series_id", "ts")]
    )
    first = pl.concat(
        [stored.samples.select("series_id", "ts"), stored.histograms.select("series_id", "ts")]
    )
    earliest = first.group_by("series_id").agg(first=pl.col("ts").min())
    moved = (
        older.join(earliest, on="series_id")
        .filter(pl.col("ts") < pl.col("first"))["series_id"]
        .unique()
    )
    is_moved = pl.col("series_id").is_in(moved.implode())
    series = stored.series.with_columns(
        starts_at_zero=pl.when(is_moved).then(None).otherwise("starts_at_zero")
    )
    return Rows(
        pl.concat([series, late.series]),
        pl.concat([stored.samples.select(list(SAMPLES_SCHEMA)), late.samples]),
        pl.concat([stored.histograms.select(list(HISTOGRAMS_SCHEMA)), late.histograms]),
        pl.concat([stored.ingest_notes, late.ingest_notes]),
        begin,
    )


def _as_listed(held: Manifest, folder: Path) -> Manifest:
    """The window in a format that lists its files; adds the list to an older window."""
    if held.provenance["format"] == FORMAT:
        return held
    files = tuple(replace(file, sha256=digest(held.path / file.name)) for file in held.files)
    write_note(held.path, held.provenance, files, through=folder)
    return replace(held, files=files)


def _files_of(settled: Rows, held: Manifest, folder: Path) -> Iterable[File]:
    """The files of the finalized rows: the old file if its rows are the same, else a new one."""
    path, old = held.path, {file.plain: file for file in held.files}
    for table, name, part in parts_of(settled):
        before = old.get(name)
        if before is not None and read_part(path, path / before.name).equals(part):
            yield before
        else:
            yield _written(path, folder, table, name, part)


def _written(path: Path, folder: Path, table: str, name: str, part: pl.DataFrame) -> File:
    """Write a new file of a window; its name contains its hash, so no file ever changes."""
    partial = folder / "part.parquet"
    write_part(partial, part)
    named = f"{name}.{digest(partial)[:_HASH_DIGITS]}.parquet"
    (path / named).parent.mkdir(exist_ok=True)
    partial.replace(path / named)
    return as_listed(path, table, named, rows=part.height)


def _remove_unlisted(path: Path, folder: Path) -> None:
    """Remove files that are not part of the window, unless somebody is reading it.

    In that case a mark in the workplace leaves the removal to the next run.
    """
    with alone(path) as is_unread:
        if not is_unread:
            (folder / "replaced").touch()
            return
        for file in [*unlisted(path, read_list(path)), *folder.glob("[!.]*")]:
            file.unlink()
