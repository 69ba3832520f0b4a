"""Fact tables: CSV files read into records, and suggestions for misspelled names.

`data/README.md` documents the tables. A header must hold every field of the table's record; it
may hold more columns, for readers only. Values are checked against the annotations, so a mistyped
cell raises an error with its file, line and column instead of becoming a wrong number.

Users keep their own rows in files of the same names in a folder of theirs (`use_own_rows`). Such a
file may omit columns that have a default. Its rows come before the shipped rows and replace those
of the same name. Their `source` begins with `OWN`, so every cited source shows that it is theirs.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from difflib import SequenceMatcher, get_close_matches
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_origin

import msgspec
from msgspec.structs import FieldInfo, fields

from vllm_capacity.errors import InputError
from vllm_capacity.resources import shipped

Row = TypeVar("Row", bound=msgspec.Struct)

Text = Annotated[str, msgspec.Meta(min_length=1)]
Day = Annotated[str, msgspec.Meta(pattern=r"^\d{4}(-\d{2}(-\d{2})?)?$")]
"""A date as precise as its source: `2026`, `2026-11` or `2026-11-24`."""
Count = Annotated[int, msgspec.Meta(ge=0)]
Positive = Annotated[float, msgspec.Meta(gt=0, le=1e15)]  # neither "nan" nor "inf"
Share = Annotated[float, msgspec.Meta(gt=0, le=1)]

OWN = "your own row"
"""Prefix of the source of a user's own row."""
_own_folder: list[Path] = []  # at most one
_SUGGESTED = 4
_MIN_PREFIX = 3
"""Shorter words, such as 8b, match too many names as a prefix."""


def use_own_rows(folder: Path | None) -> None:
    """Put the rows of the tables in a folder before the shipped rows; None undoes this."""
    _own_folder[:] = [] if folder is None else [folder]


def own_folder() -> Path | None:
    """The folder of the user's own tables, or None if there is none."""
    return _own_folder[0] if _own_folder else None


def own_path(name: str) -> Path | None:
    """The user's own table of that file name, or None if there is none."""
    folder = own_folder()
    return folder / name if folder is not None and (folder / name).is_file() else None


def table_rows(cls: type[Row], name: str, key: Callable[[Row], object]) -> tuple[Row, ...]:
    """The rows of `data/<name>`, after the user's own rows, which replace those of equal `key`.

    Raises InputError as `read_rows` does.
    """
    return _table_rows(cls, name, key, own_path(name))


@cache
def _table_rows(
    cls: type[Row], name: str, key: Callable[[Row], object], own: Path | None
) -> tuple[Row, ...]:
    rows = read_rows(cls, shipped(f"data/{name}"))
    if own is None:
        return rows
    mine = read_rows(cls, own, is_own=True)
    keys = {key(row) for row in mine}
    return (*mine, *(row for row in rows if key(row) not in keys))


def is_own(source: str) -> bool:
    """Whether a row with that source is the user's own."""
    return source.startswith(OWN)


def read_rows(cls: type[Row], path: Path, *, is_own: bool = False) -> tuple[Row, ...]:
    """The rows of a CSV file as `cls`, in file order; none for an empty table.

    An empty cell takes its field's default, as does a column missing from a user's own table
    (`is_own`). Cells of a tuple field hold words separated by spaces.
    Raises InputError, with the line, if the file cannot be read, lacks a column, has a row whose
    length differs from the header's, or holds a value that its field's type does not allow.
    """
    header, rows = _cells(path)
    known = [each for each in fields(cls) if not (is_own and _may_lack(each, header))]
    shown = str(path) if is_own else path.name
    if missing := [field.name for field in known if field.name not in header]:
        raise InputError(f"{shown}, line 1: missing column {', '.join(missing)}.")
    places = [(field.name, header.index(field.name)) for field in known]
    lists = [field.name for field in known if get_origin(field.type) is tuple]
    found = []
    for line, row in rows:
        texts = {name: row[place] for name, place in places if row[place]}
        cells: dict[str, Any] = {**texts, **{n: texts[n].split() for n in lists if n in texts}}
        if is_own and "source" in cells:
            cells["source"] = f"{OWN} ({path.name}, line {line}): {cells['source']}"
        try:
            found.append(msgspec.convert(cells, cls, strict=False))
        except msgspec.ValidationError:
            raise InputError(f"{shown}, line {line}: {_wrong(cells, texts, known)}.") from None
    return tuple(found)


def _wrong(cells: Mapping[str, Any], texts: Mapping[str, str], known: Sequence[FieldInfo]) -> str:
    """Which of a row's cells is wrong, and why."""
    for field in known:
        if field.name not in texts:
            if field.required:
                return f"{field.name} is empty"
            continue
        try:
            msgspec.convert(cells[field.name], field.type, strict=False)
        except msgspec.ValidationError as error:
            return f"{field.name} is {texts[field.name]!r}. {error}"
    return "its cells do not fit together"


def _may_lack(field: FieldInfo, header: Sequence[str]) -> bool:
    return field.name not in header and not field.required


def _cells(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The header of a CSV file, and its rows with their line numbers."""
    try:
        reader = csv.reader(StringIO(path.read_text(encoding="utf-8"), newline=""), strict=True)
        header = next(reader, [])
        rows = [(reader.line_num, row) for row in reader if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"Cannot read the table {path}: {error}.") from None
    for line, row in rows:
        if len(row) != len(header):
            raise InputError(
                f"{path}, line {line}: {len(row)} cells under {len(header)} columns; quote a "
                "cell that contains a comma."
            )
    return header, rows


def suggest(
    wanted: str, names: Iterable[str], *, compared: Callable[[str], str] = str.lower
) -> str:
    """The end of an error message about an unknown name: the nearest names, or that none is near.

    At most four, the most similar first: names that contain `wanted`, else names whose first word
    (the family) occurs in it, else names spelled alike. `compared` returns the part of a name to
    compare, in lower case.
    """
    shown = {compared(name): name for name in names}
    near = [shown[name] for name in _nearest(compared(wanted), list(shown))]
    if not near:
        return ", and no similar name"
    # Price rows have commas in their names.
    return f"; nearest: {('; ' if any(',' in name for name in near) else ', ').join(near)}"


def _nearest(wanted: str, known: Sequence[str]) -> Iterator[str]:
    for found in (
        [name for name in known if wanted and wanted in name],
        [name for name in known if _names_family_of(wanted, name)],
    ):
        if found:
            likeness = {name: SequenceMatcher(None, wanted, name).ratio() for name in found}
            yield from sorted(found, key=lambda name: -likeness[name])[:_SUGGESTED]
            return
    yield from get_close_matches(wanted, known, n=_SUGGESTED)


def _names_family_of(wanted: str, name: str) -> bool:
    family = _words(name)[:1]
    return any(_is_prefix(word, first) for first in family for word in _words(wanted))


def _is_prefix(one: str, other: str) -> bool:
    """Whether the words are equal, or the longer one begins with the shorter."""
    short, long = sorted((one, other), key=len)
    return one == other or (len(short) >= _MIN_PREFIX and long.startswith(short))


def _words(name: str) -> list[str]:
    return re.findall(r"[a-z0-9.]+", name)
