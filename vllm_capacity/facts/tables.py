"""Fact tables: CSV files whose columns are a dataclass's fields; names suggested from them.

A table is documented in `data/README.md`. Its header must hold every field of its dataclass; it may
hold further columns, for readers only. Values are checked against the annotations, so that a
mistyped cell is an error that names its file, line and column, and never a wrong number.

A user's own rows are in files of the same names in a folder of theirs (`use_own_rows`). They may
leave out columns that have a default, come before the shipped rows, replace those of the same name,
and their `source` begins with `OWN`, so that whatever names a source names them.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import MISSING, Field, fields
from difflib import SequenceMatcher, get_close_matches
from functools import cache
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_origin, get_type_hints

import msgspec

from vllm_capacity.errors import InputError
from vllm_capacity.resources import shipped

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Row = TypeVar("Row", bound="DataclassInstance")

Text = Annotated[str, msgspec.Meta(min_length=1)]
Day = Annotated[str, msgspec.Meta(pattern=r"^\d{4}(-\d{2}(-\d{2})?)?$")]
"""A date as precise as its source: `2026`, `2026-11` or `2026-11-24`."""
Count = Annotated[int, msgspec.Meta(ge=0)]
Positive = Annotated[float, msgspec.Meta(gt=0, le=1e15)]  # neither "nan" nor "inf"
Share = Annotated[float, msgspec.Meta(gt=0, le=1)]

OWN = "your own row"
"""How the source of a user's own row begins."""
_own_folder: list[Path] = []  # at most one
_SUGGESTED = 4
_MIN_PREFIX = 3
"""A shorter word, such as 8b, is the beginning of anything."""


def use_own_rows(folder: Path | None) -> None:
    """Put the rows of a folder's tables before the shipped ones from now on; None: no longer."""
    _own_folder[:] = [] if folder is None else [folder]


def own_folder() -> Path | None:
    """The folder of the user's own tables, None where there is none."""
    return _own_folder[0] if _own_folder else None


def own_path(name: str) -> Path | None:
    """The user's own table of that file name, None where there is none."""
    folder = own_folder()
    return folder / name if folder is not None and (folder / name).is_file() else None


def table_rows(cls: type[Row], name: str, key: Callable[[Row], object]) -> tuple[Row, ...]:
    """The rows of `data/<name>`, the user's own first; of one `key` only theirs, if they have it.

    InputError as of `read_rows`.
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
    """The rows of a CSV file, in its order, one `cls` each; an empty table gives none.

    An empty cell takes its field's default, and so does a column that a user's own table
    (`is_own`) does not have. Cells of a tuple field are words, separated by spaces.
    InputError, with the line, where the file cannot be read, lacks a column, has a row of another
    length than its header, or holds a value that its field's type does not allow.
    """
    header, rows = _cells(path)
    hints = get_type_hints(cls, include_extras=True)
    known = [each for each in fields(cls) if not (is_own and _may_lack(each, header))]
    shown = str(path) if is_own else path.name
    if missing := [field.name for field in known if field.name not in header]:
        raise InputError(f"{shown}, line 1: it lacks the column {', '.join(missing)}.")
    places = [(field, hints[field.name], header.index(field.name)) for field in known]
    found = []
    for line, row in rows:
        cells: dict[str, Any] = {
            field.name: _value(row[place], hint, field, where=f"{shown}, line {line}")
            for field, hint, place in places
        }
        if is_own:
            cells["source"] = f"{OWN} ({path.name}, line {line}): {cells['source']}"
        found.append(cls(**cells))
    return tuple(found)


def _may_lack(field: Field[Any], header: Sequence[str]) -> bool:
    return field.name not in header and field.default is not MISSING


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
                "cell that holds a comma."
            )
    return header, rows


def _value(cell: str, hint: object, field: Field[Any], *, where: str) -> object:
    if not cell:
        if field.default is MISSING:
            raise InputError(f"{where}: {field.name} is empty.")
        return field.default
    try:
        words = cell.split() if get_origin(hint) is tuple else cell
        return msgspec.convert(words, hint, strict=False)
    except msgspec.ValidationError as error:
        raise InputError(f"{where}: {field.name} is {cell!r}. {error}.") from None


def suggest(
    wanted: str, names: Iterable[str], *, compared: Callable[[str], str] = str.lower
) -> str:
    """The end of a message about a name nobody knows: the nearest names, or that none is near.

    At most four, the likeliest first: names that hold what was asked, else names of a family that
    it names (their first word), else names spelt alike. `compared` is the part of a name to look
    at, in lower case.
    """
    shown = {compared(name): name for name in names}
    near = [shown[name] for name in _nearest(compared(wanted), list(shown))]
    if not near:
        return ", and no name near it"
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
    """Whether they are one word, or one begins with the other."""
    short, long = sorted((one, other), key=len)
    return one == other or (len(short) >= _MIN_PREFIX and long.startswith(short))


def _words(name: str) -> list[str]:
    return re.findall(r"[a-z0-9.]+", name)
