"""What a window holds: `window.json`, which lists its files, and whether they are as it says.

The list is what makes a window: a file that is not on it is no part of it, and replacing
`window.json` is what changes one. Format 2 lists every file with its bytes, rows and hash; windows
of format 1 only count the rows of their tables, so their files are those that are there.

Opening checks all of it; the hashes of samples, histograms and minutes, however, only in a window
that is hashed in a moment, on `--verify`, and where the rollup reads an hour whole anyway.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
import stat
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import duckdb
import polars as pl

from vllm_capacity.errors import WindowError
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
_HASHED_AT_ONCE_BYTES = 100_000_000  # a tenth of a second; some ten days of an engine
_COUNTED = ("series", *TABLES)
_SCHEMAS = {
    "series": SERIES_SCHEMA,
    "intake": INGEST_NOTES_SCHEMA,
    "samples": SAMPLES_SCHEMA,
    "histograms": HISTOGRAMS_SCHEMA,
}
_GRAINS = ("scrape", "minute")
_NAME = re.compile(r"((samples|histograms)/)?[A-Za-z0-9_][A-Za-z0-9._-]*\.parquet")


@dataclass(frozen=True)
class File:
    """One Parquet file of a window: its table, its path inside, and what is known of it.

    Without a `sha256` in a window of format 1.
    """

    table: str
    name: str
    bytes: int
    rows: int
    sha256: str | None = None

    @property
    def plain(self) -> str:
        """Its path inside without suffix and hash: `samples/2026-11-24T08`."""
        return self.name.partition(".")[0]


@dataclass(frozen=True)
class Manifest:
    """A window's folder, its provenance (all of `window.json` but the list), and its files."""

    path: Path
    provenance: Mapping[str, Any]
    files: tuple[File, ...]
    origin: str | None = None
    """Of a copy of a window in S3: where that is. Hour files come as they are read (mirror.py)."""

    def paths(self, table: str) -> list[Path]:
        """The files of a table, in order of their names."""
        return sorted(self.path / file.name for file in self.files if file.table == table)

    def frames(self, table: str) -> list[pl.DataFrame]:
        """The rows of each file of a table, in that order; WindowError where one is damaged."""
        return [read_part(self.path, path) for path in self.paths(table)]


def read_manifest(
    path: Path,
    connection: duckdb.DuckDBPyConnection,
    *,
    verify: bool = False,
    origin: str | None = None,
    hashed_at_once_bytes: int = _HASHED_AT_ONCE_BYTES,
) -> Manifest:
    """What the window at `path` holds, checked; every byte of it with `verify`, or in a small one.

    With an `origin`, files that are not there are taken as listed. WindowError for what is no
    window, one of another format, and one that is damaged.
    """
    while True:
        text = _text(path)
        try:
            found = _checked(path, _note(text, path), connection, origin)
            size = sum(file.bytes for file in found.files)
            _check_hashes(found, all_of_them=verify or size <= hashed_at_once_bytes)
            return found
        except WindowError:
            if _text(path) == text:  # else it was replaced meanwhile
                raise


def read_list(path: Path) -> list[File]:
    """The files that the window at `path` lists, as it says; WindowError where it lists none."""
    return _listed(path, _note(_text(path), path).get("files"))


def read_part(path: Path, part: Path, *, columns: list[str] | None = None) -> pl.DataFrame:
    """The rows of one file of the window at `path`; WindowError where it cannot be read."""
    try:
        return pl.read_parquet(part, columns=columns, glob=False)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        raise _unreadable(path, str(part.relative_to(path)), error) from None


def _unreadable(path: Path, name: str, error: BaseException) -> WindowError:
    what = (str(error).splitlines() or [type(error).__name__])[0]
    return damaged(path, f"{name} cannot be read ({what})")


def write_note(
    folder: Path, provenance: Mapping[str, object], files: Iterable[File], *, through: Path
) -> None:
    """Write `window.json` over these files, whole: it is made in the folder `through` first."""
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
    """A file that was just written, as the list has it."""
    path = folder / name
    return File(table, name, path.stat().st_size, rows, digest(path))


def digest(path: Path) -> str:
    """The hash of a file's bytes, as `window.json` has it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_hash(path: Path, file: File) -> str:
    """The hash of a window's file; WindowError where it is not the one that is listed."""
    found = digest(path / file.name)
    if file.sha256 not in (None, found):
        raise damaged(path, f"{file.name} was changed since it was written")
    return found


def damaged(path: Path, what: str) -> WindowError:
    """The error for a window that is not as it was written."""
    return WindowError(
        f"The window {path} is damaged: {what}. Take it from a backup, or make it again."
    )


def unlisted(path: Path, files: Iterable[File]) -> list[Path]:
    """The Parquet files in a window's folder that are none of these."""
    listed = {path / file.name for file in files}
    folders = (path, *(path / table for table in TABLES))
    there = [found for folder in folders for found in folder.glob("[!.]*.parquet")]
    return sorted(found for found in there if found not in listed)


def as_pattern(path: Path) -> str:
    """A path as DuckDB takes it: what would be a pattern is a name."""
    return glob.escape(str(path))


def _text(path: Path) -> str:
    try:
        _require_regular(path / NOTE)
        return (path / NOTE).read_text(encoding="utf-8")
    except (OSError, ValueError):
        raise WindowError(f"{path} is not a window: it has no readable {NOTE}.") from None


def _note(text: str, path: Path) -> dict[str, Any]:
    """What a `window.json` says, of a format that is known and with all that the format has."""
    try:
        note = json.loads(text)
    except (ValueError, RecursionError):
        raise WindowError(f"{path} is not a window: it has no readable {NOTE}.") from None
    if not isinstance(note, dict) or type(note.get("format")) is not int:
        raise WindowError(f"{path} is not a window: its {NOTE} names no format.")
    if note["format"] not in (1, FORMAT):
        raise WindowError(
            f"The window {path} is of format {note['format']}; this version reads formats 1 and "
            f"{FORMAT}. Install a newer vllm-capacity, or make the window again."
        )
    counts = note.get("counts")
    if not isinstance(counts, dict) or not all(_is_count(counts.get(name)) for name in _COUNTED):
        raise damaged(path, f"its {NOTE} does not count its rows")
    if note.setdefault("grain", "scrape") not in _GRAINS:
        raise damaged(path, f"its {NOTE} has the grain {note['grain']!r}")
    return note


def _checked(
    path: Path, note: dict[str, Any], connection: duckdb.DuckDBPyConnection, origin: str | None
) -> Manifest:
    has_list = note["format"] == FORMAT
    files = _listed(path, note.pop("files", None)) if has_list else _found(path)
    _check_tables(path, note["grain"], files)
    is_there = [origin is None or (path / file.name).exists() for file in files]
    there = [file for file, is_here in zip(files, is_there, strict=True) if is_here]
    sized = [replace(file, bytes=_size(path, file, has_list=has_list)) for file in there]
    counts = _row_counts(path, sized, connection)
    read = [replace(file, rows=_rows(path, file, counts, has_list=has_list)) for file in sized]
    files = [*read, *(file for file in files if file not in there)]
    _check_counts(path, note["counts"], files)
    if has_list:
        _check_extras(path, unlisted(path, files))
    else:  # no hash tells whether these are the files that were written
        _check_types(path, files)
    return Manifest(path, note, tuple(files), origin)


def _check_types(path: Path, files: Iterable[File]) -> None:
    """WindowError where a column is of another type than its table has."""
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
    """WindowError for a file that was put there; those of a writer, running or killed, are none."""
    if (path / WORKPLACE).exists():
        return
    for extra in extras:
        if extra.exists():  # a writer that has just ended took its own along
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
    """The files of a window that has no list: those that are there."""
    hours = [(table, found) for table in TABLES for found in (path / table).glob("*.parquet")]
    single = [(found.stem, found) for found in path.glob("*.parquet")]
    named = [(table, str(found.relative_to(path))) for table, found in sorted(single + hours)]
    return [File(table, name, 0, 0) for table, name in named]


def _check_tables(path: Path, grain: str, files: Iterable[File]) -> None:
    """WindowError unless each table that has one file has it, and no other table has any."""
    of = Counter(file.table for file in files)
    single = (*SINGLE, *(MINUTES if grain == "minute" else ()))
    for table in single:
        if of[table] != 1:
            raise damaged(path, f"it has {of[table] or 'no'} files of the table {table}, not 1")
    for table in set(of) - {*single, *TABLES}:
        raise damaged(path, f"a window of the grain {grain} has no table {table!r}")


def _size(path: Path, file: File, *, has_list: bool) -> int:
    try:
        found = _require_regular(path / file.name)
    except FileNotFoundError:
        raise damaged(path, f"{file.name} is missing") from None
    except (OSError, ValueError) as error:
        raise damaged(path, f"{file.name}: {error}") from None
    if has_list and found != file.bytes:
        raise damaged(path, f"{file.name} has {found} bytes, not the {file.bytes} of its writing")
    return found


def _row_counts(
    path: Path, files: Iterable[File], connection: duckdb.DuckDBPyConnection
) -> dict[str, int]:
    """The rows of each file by its path, as the footers say."""
    names = [as_pattern(path / file.name) for file in files]
    query = "select file_name, num_rows from parquet_file_metadata($names)"
    try:
        return dict(connection.execute(query, {"names": names}).fetchall())
    except duckdb.Error as error:
        raise damaged(path, str(error).splitlines()[0]) from None


def _rows(path: Path, file: File, counts: Mapping[str, int], *, has_list: bool) -> int:
    found = counts[str(path / file.name)]
    if has_list and found != file.rows:
        raise damaged(path, f"{file.name} has {found} rows, not the {file.rows} of its writing")
    return found


def _check_counts(path: Path, counts: Mapping[str, int], files: Iterable[File]) -> None:
    for table, rows in row_totals(files).items():
        if rows != counts[table]:
            what = f"its {table} have {rows} rows, not the {counts[table]} that {NOTE} counts"
            raise damaged(path, what)


def row_totals(files: Iterable[File]) -> dict[str, int]:
    """The rows of each table that `window.json` counts."""
    listed = list(files)
    return {table: sum(file.rows for file in listed if file.table == table) for table in _COUNTED}


def _require_regular(path: Path) -> int:
    """The size of a regular file in bytes; OSError or ValueError for anything else."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):  # reading a pipe or a device might never end
        raise ValueError("not a regular file")
    return found.st_size
