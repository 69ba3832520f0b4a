"""Fact tables: CSV files whose columns are a dataclass's fields; names suggested from them.

A table is documented in `data/README.md`. Its header must hold every field of its dataclass; it may
hold further columns, for readers only. Values are checked against the annotations, so that a
mistyped cell is an error that names its file, line and column, and never a wrong number.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import MISSING, Field, fields
from difflib import SequenceMatcher, get_close_matches
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_origin, get_type_hints

import msgspec

from vllm_capacity.errors import InputError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Row = TypeVar("Row", bound="DataclassInstance")

Text = Annotated[str, msgspec.Meta(min_length=1)]
Day = Annotated[str, msgspec.Meta(pattern=r"^\d{4}(-\d{2}(-\d{2})?)?$")]
"""A date as precise as its source: `2026`, `2026-11` or `2026-11-24`."""
Count = Annotated[int, msgspec.Meta(ge=0)]
Positive = Annotated[float, msgspec.Meta(gt=0, le=1e15)]  # neither "nan" nor "inf"
Share = Annotated[float, msgspec.Meta(gt=0, le=1)]

_SUGGESTED = 4
_MIN_PREFIX = 3
"""A shorter word, such as 8b, is the beginning of anything."""


def read_rows(cls: type[Row], path: Path) -> tuple[Row, ...]:
    """The rows of a CSV file, in its order, one `cls` each; an empty table gives none.

    An empty cell takes its field's default. Cells of a tuple field are words, separated by spaces.
    InputError, with the line, where the file cannot be read, lacks a column, has a row of another
    length than its header, or holds a value that its field's type does not allow.
    """
    header, rows = _cells(path)
    hints = get_type_hints(cls, include_extras=True)
    known = fields(cls)
    if missing := [field.name for field in known if field.name not in header]:
        raise InputError(f"{path.name} lacks the column {', '.join(missing)}.")
    places = [(field, hints[field.name], header.index(field.name)) for field in known]
    return tuple(
        cls(
            **{
                field.name: _value(row[place], hint, field, where=f"{path.name}, line {line}")
                for field, hint, place in places
            }
        )
        for line, row in rows
    )


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
                f"{path.name}, line {line}: {len(row)} cells under {len(header)} columns; quote a "
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
