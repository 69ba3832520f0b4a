"""The contents of a window: `window.json`, which lists its files, and checks against that list.

The list defines the window: a file that is not on it is not part of the window, and replacing
`window.json` changes the window. Format 2 lists every file with its bytes, rows and hash. Format 1
only counts the rows of each table, so the files of such a window are those that exist.

Opening checks everything, except the hashes of samples, histograms and minutes. These are checked
only in a small window, with `--verify`, and when the rollup reads a whole hour anyway; otherwise
only the number of rows in each file is checked.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
import stat
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import polars as pl
from msgspec import Struct
from msgspec.structs import asdict, replace

from vllm_capacity.errors import WindowError
from vllm_capacity.telemetry.memory import database
from vllm_capacity.telemetry.rows import (
    HISTOGRAMS_SCHEMA,
    INGEST_NOTES_SCHEMA,
    SAMPLES_SCHEMA,
    SERIES_SCHEMA,
)

FORMAT = 2
NOTE = "window.json"
WORKPLACE = ".writing"
TABLES = ("samples", "histograms")
SINGLE = ("series", "intake")
MINUTES = ("minutes", "minute_histograms")
_HASHED_AT_ONCE_BYTES = 100_000_000  # takes 0.1 s; about ten days of one engine
_COUNTED = ("series", *TABLES)
_SCHEMAS = {
    "series": SERIES_SCHEMA,
    "intake": INGEST_NOTES_SCHEMA,
    "samples": SAMPLES_SCHEMA,
    "histograms": HISTOGRAMS_SCHEMA,
}
_GRAINS = ("scrape", "minute")
_NAME = re.compile(r"((samples|histograms)/)?[A-Za-z0-9_][A-Za-z0-9._-]*\.parquet")


class File(Struct, frozen=True):
    """One Parquet file of a window: its table, its path in the window, its size, rows and hash.

    `sha256` is None in a window of format 1.
    """

    table: str
    name: str
    bytes: int
    rows: int
    sha256: str | None = None

    @property
    def plain(self) -> str:
        """Its path in the window without suffix and hash: `samples/2026-11-24T08`."""
        return self.name.partition(".")[0]


class Manifest(Struct, frozen=True):
    """A window's folder, its provenance (`window.json` without the list), and its files."""

    path: Path
    provenance: Mapping[str, Any]
    files: tuple[File, ...]
    origin: str | None = None
    """The S3 URL if this is a local copy; hour files are fetched when read (mirror.py)."""

    def paths(self, table: str) -> list[Path]:
        """The paths of a table's files, sorted."""
        return sorted(self.path / file.name for file in self.files if file.table == table)

    def frames(self, table: str) -> list[pl.DataFrame]:
        """The rows of each file of a table, in that order; WindowError if one is damaged."""
        return [read_part(self.path, path) for path in self.paths(table)]


def read_manifest(
    path: Path,
    *,
    verify: bool = False,
    origin: str | None = None,
    hashed_at_once_bytes: int = _HASHED_AT_ONCE_BYTES,
) -> Manifest:
    """The checked manifest of the window at `path`; checks all hashes with `verify` or if small.

    With an `origin`, missing files are assumed to be as listed. Raises WindowError if it is not a
    window, has an unknown format, or is damaged.
    """
    while True:
        text = _text(path)
        try:
            most = None if verify else hashed_at_once_bytes
            return _checked(path, _note(text, path), origin, hashed_at_once_bytes=most)
        except WindowError:
            if _text(path) == text:  # otherwise it was replaced meanwhile
                raise


def read_list(path: Path) -> list[File]:
    """The files that the window at `path` lists, unchecked; WindowError if it has no list."""
    return _listed(path, _note(_text(path), path).get("files"))


def read_part(
    path: Path,
    part: Path,
    *,
    columns: list[str] | None = None,
    parallel: Literal["auto", "none"] = "auto",
) -> pl.DataFrame:
    """The rows of one file of the window at `path`; WindowError if it cannot be read."""
    try:
        return pl.read_parquet(part, columns=columns, glob=False, parallel=parallel)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        raise _unreadable(path, str(part.relative_to(path)), error) from None


def read_hour(path: Path, file: File) -> pl.DataFrame:
    """The rows of an hour of samples or histograms; WindowError as in `read_part`.

    An hour is small, so threads cost more than they save. Histograms are decoded by pyarrow, which
    takes two thirds of the time that polars takes.
    """
    if file.table != "histograms":
        return read_part(path, path / file.name, parallel="none")
    from pyarrow import ArrowException  # imported here: many commands read no histograms
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path / file.name) as part:
            found = pl.from_arrow(part.read(use_threads=False))
    except (ArrowException, OSError) as error:
        raise _unreadable(path, file.name, error) from None
    assert isinstance(found, pl.DataFrame)
    return found


def _unreadable(path: Path, name: str, error: BaseException) -> WindowError:
    what = (str(error).splitlines() or [type(error).__name__])[0]
    return damaged(path, f"{name} cannot be read ({what})")


def write_note(
    folder: Path, provenance: Mapping[str, object], files: Iterable[File], *, through: Path
) -> None:
    """Write `window.json` with a list of these files, atomically: first to the folder `through`."""
    listed = sorted(files, key=lambda file: (file.table, file.name))
    note = {
        "grain": "scrape",
        **provenance,
        "format": FORMAT,
        "counts": row_totals(listed),
        "files": [asdict(file) for file in listed],
    }
    partial = through / NOTE
    with partial.open("w", encoding="utf-8") as out:
        out.write(json.dumps(note, indent=2, sort_keys=True) + "\n")
        out.flush()
        os.fsync(out.fileno())
    partial.replace(folder / NOTE)


def as_listed(folder: Path, table: str, name: str, *, rows: int) -> File:
    """The list entry of a file that was just written."""
    path = folder / name
    return File(table, name, path.stat().st_size, rows, digest(path))


def digest(path: Path) -> str:
    """The SHA-256 of a file, as in `window.json`."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_hash(path: Path, file: File) -> str:
    """The hash of a window's file; WindowError if it differs from the listed one."""
    found = digest(path / file.name)
    if file.sha256 not in (None, found):
        raise damaged(path, f"{file.name} was changed since it was written")
    return found


def damaged(path: Path, what: str) -> WindowError:
    """The error for a damaged window."""
    return WindowError(
        f"The window {path} is damaged: {what}. Restore it from a backup, or make it again."
    )


def unlisted(path: Path, files: Iterable[File]) -> list[Path]:
    """The Parquet files in a window's folder that are not in `files`."""
    listed = {path / file.name for file in files}
    folders = (path, *(path / table for table in TABLES))
    there = [found for folder in folders for found in folder.glob("[!.]*.parquet")]
    return sorted(found for found in there if found not in listed)


def as_pattern(path: Path) -> str:
    """A path escaped for DuckDB, which would read special characters as a pattern."""
    return glob.escape(str(path))


def _text(path: Path) -> str:
    try:
        _require_regular(path / NOTE)
        return (path / NOTE).read_text(encoding="utf-8")
    except (OSError, ValueError):
        raise WindowError(f"{path} is not a window: it has no readable {NOTE}.") from None


def _note(text: str, path: Path) -> dict[str, Any]:
    """The contents of a `window.json`; WindowError if its format is unknown or it is incomplete."""
    try:
        note = json.loads(text)
    except (ValueError, RecursionError):
        raise WindowError(f"{path} is not a window: it has no readable {NOTE}.") from None
    if not isinstance(note, dict) or type(note.get("format")) is not int:
        raise WindowError(f"{path} is not a window: its {NOTE} names no format.")
    if note["format"] not in (1, FORMAT):
        raise WindowError(
            f"The window {path} has format {note['format']}; this version reads formats 1 and "
            f"{FORMAT}. Install a newer vllm-capacity, or make the window again."
        )
    counts = note.get("counts")
    if not isinstance(counts, dict) or not all(_is_count(counts.get(name)) for name in _COUNTED):
        raise damaged(path, f"its {NOTE} has no row counts")
    if note.setdefault("grain", "scrape") not in _GRAINS:
        raise damaged(path, f"its {NOTE} has the grain {note['grain']!r}")
    return note


def _checked(
    path: Path, note: dict[str, Any], origin: str | None, *, hashed_at_once_bytes: int | None
) -> Manifest:
    """The manifest; checks hashes of hours only up to `hashed_at_once_bytes`, all if None."""
    has_list = note["format"] == FORMAT
    files = _listed(path, note.pop("files", None)) if has_list else _found(path)
    _check_tables(path, note["grain"], files)
    there: list[File] = []
    away: list[File] = []
    for file in files:
        is_there = origin is None or (path / file.name).exists()
        (there if is_there else away).append(file)
    sized = [replace(file, bytes=_size(path, file, has_list=has_list)) for file in there]
    size = sum(file.bytes for file in [*sized, *away])
    is_hashed = hashed_at_once_bytes is None or size <= hashed_at_once_bytes
    read = sized if is_hashed and has_list else _with_rows(path, sized, has_list=has_list)
    files = [*read, *away]
    _check_counts(path, note["counts"], files)
    if has_list:
        _check_extras(path, unlisted(path, files))
    else:  # without hashes, these may not be the files that were written
        _check_types(path, files)
    found = Manifest(path, note, tuple(files), origin)
    _check_hashes(found, all_of_them=is_hashed)  # the right hash implies the right number of rows
    return found


def _check_types(path: Path, files: Iterable[File]) -> None:
    """Raise WindowError if a column's type differs from its table's schema."""
    for file in files:
        schema = _SCHEMAS.get(file.table, {})
        try:
            columns = pl.read_parquet_schema(path / file.name)
        except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
            raise _unreadable(path, file.name, error) from None
        for column, found in columns.items():
            if found != schema.get(column, found):
                what = f"the column {column} of {file.name} is {found}, not {schema[column]}"
                raise damaged(path, what)


def _check_extras(path: Path, extras: list[Path]) -> None:
    """Raise WindowError for unlisted files, except those of a running or killed writer."""
    if (path / WORKPLACE).exists():
        return
    for extra in extras:
        if extra.exists():  # a writer that has just ended removes its own files
            raise damaged(path, f"{extra.relative_to(path)} is not one of its files")


def _check_hashes(window: Manifest, *, all_of_them: bool) -> None:
    for file in window.files:
        if window.origin is not None and not (window.path / file.name).exists():
            continue
        if all_of_them or file.table in SINGLE:
            check_hash(window.path, file)


def _listed(path: Path, files: object) -> list[File]:
    try:
        listed = [File(**each) for each in files]  # type: ignore[attr-defined]
    except TypeError:
        raise damaged(path, f"its {NOTE} does not list its files") from None
    if len({file.name for file in listed if isinstance(file.name, str)}) < len(listed):
        raise damaged(path, f"its {NOTE} lists a file twice")
    if not all(_is_file(file) for file in listed):
        raise damaged(path, f"its {NOTE} does not list its files")
    return listed


def _is_file(file: File) -> bool:
    texts = (file.table, file.name, file.sha256)
    return (
        all(isinstance(text, str) for text in texts)
        and _is_count(file.bytes)
        and _is_count(file.rows)
        and (named := _NAME.fullmatch(file.name)) is not None
        and (named[2] or "") == (file.table if file.table in TABLES else "")
    )


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0


def _found(path: Path) -> list[File]:
    """The files of a window without a list: all that exist."""
    hours = [(table, found) for table in TABLES for found in (path / table).glob("*.parquet")]
    single = [(found.stem, found) for found in path.glob("*.parquet")]
    named = [(table, str(found.relative_to(path))) for table, found in sorted(single + hours)]
    return [File(table, name, 0, 0) for table, name in named]


def _check_tables(path: Path, grain: str, files: Iterable[File]) -> None:
    """Raise WindowError unless single-file tables have one file each and all tables are known."""
    of = Counter(file.table for file in files)
    single = (*SINGLE, *(MINUTES if grain == "minute" else ()))
    for table in single:
        if of[table] != 1:
            raise damaged(path, f"it has {of[table] or 'no'} files of the table {table}, not 1")
    for table in set(of) - {*single, *TABLES}:
        raise damaged(path, f"a window with the grain {grain} has no table {table!r}")


def _size(path: Path, file: File, *, has_list: bool) -> int:
    try:
        found = _require_regular(path / file.name)
    except FileNotFoundError:
        raise damaged(path, f"{file.name} is missing") from None
    except (OSError, ValueError) as error:
        raise damaged(path, f"{file.name}: {error}") from None
    if has_list and found != file.bytes:
        raise damaged(path, f"{file.name} has {found} bytes, but was written with {file.bytes}")
    return found


def _with_rows(path: Path, files: Sequence[File], *, has_list: bool) -> list[File]:
    """The files with their number of rows, by Parquet footers; WindowError if the list differs."""
    import duckdb  # slow to import: many small windows are read without it

    names = [as_pattern(path / file.name) for file in files]
    query = "select file_name, num_rows from parquet_file_metadata($names)"
    own = database()  # kept until the rows are counted
    try:
        with own.cursor() as cursor:
            counts = dict(cursor.execute(query, {"names": names}).fetchall())
    except duckdb.Error as error:
        raise damaged(path, str(error).splitlines()[0]) from None
    for file in files:
        found = counts[str(path / file.name)]
        if has_list and found != file.rows:
            what = f"{file.name} has {found} rows, but was written with {file.rows}"
            raise damaged(path, what)
    return [replace(file, rows=counts[str(path / file.name)]) for file in files]


def _check_counts(path: Path, counts: Mapping[str, int], files: Iterable[File]) -> None:
    for table, rows in row_totals(files).items():
        if rows != counts[table]:
            what = f"its table {table} has {rows} rows, but {NOTE} says {counts[table]}"
            raise damaged(path, what)


def row_totals(files: Iterable[File]) -> dict[str, int]:
    """The total number of rows of each table that `window.json` counts."""
    listed = list(files)
    return {table: sum(file.rows for file in listed if file.table == table) for table in _COUNTED}


def _require_regular(path: Path) -> int:
    """The size of a regular file in bytes; raises OSError or ValueError for anything else."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):  # reading a pipe or a device might never end
        raise ValueError("not a regular file")
    return found.st_size
