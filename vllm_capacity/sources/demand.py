"""Reads demand series from CSV: which cells are gaps or errors, and how the file writes times.

A demand CSV has the start of each row in `ts_seconds` (numbers) or `ts` (ISO 8601, or numbers in
seconds, or since 1970 in milli-, micro- or nanoseconds), and counts in named columns. An empty
cell means not recorded. Times are written back in the file's own format.
"""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime, time, timedelta, timezone
from pathlib import Path
from typing import NamedTuple

import polars as pl
from msgspec import Struct

from vllm_capacity.errors import InputError
from vllm_capacity.timerange import parse_instant

_GAPS = frozenset({"", "nan", "null", "none", "na"})
_ISO_TAIL = re.compile(r"\d{2}(Z|[+-]\d{2}(?::?\d{2})?)$", re.IGNORECASE)
_DATE = re.compile(r"\d{4}-?\d{2}-?\d{2}")
_NUMBERED = re.compile(r"_duplicated_\d+$")
_MAX = 1e12
_EPOCH_UNITS = ((1e17, 1e9), (1e14, 1e6), (1e11, 1e3))


class Clock(Struct, frozen=True):
    """How a file writes times: as numbers (`units_per_second`), or as ISO text like the latest."""

    units_per_second: float | None
    separator: str = "T"
    tail: str = ""
    is_date: bool = False

    def written(self, ts_seconds: float) -> float | int | str:
        """The time in the file's format; whole numbers have no fraction.

        In a file of dates, midnight is written as a date alone.
        """
        if self.units_per_second is not None:
            number = round(ts_seconds * self.units_per_second, 6)
            return int(number) if number == int(number) else number
        zone = _zone(self.tail)
        instant = datetime.fromtimestamp(0, UTC) + timedelta(seconds=round(ts_seconds, 6))
        local = instant.astimezone(zone).replace(tzinfo=None)
        if self.is_date and local.time() == time():
            return local.date().isoformat()
        return local.isoformat(sep=self.separator) + self.tail


class DemandSeries(Struct, frozen=True):
    """One column of a demand CSV.

    `frame`: ts_seconds (ascending, unique) and `value` (null: not recorded). ISO times count from
    1970, numbers from the file's own origin.
    """

    frame: pl.DataFrame
    clock: Clock


class _Row(NamedTuple):
    line: int
    stamp: str
    cell: str


def read_demand(path: Path, column: str) -> DemandSeries:
    """The series of `column`; `InputError` names the line of a bad cell or a duplicate time."""
    table = _text_table(path)
    names = [name.strip() for name in table.columns]
    time_column = next((name for name in ("ts_seconds", "ts") if name in names), None)
    if time_column is None:
        raise InputError(
            f"{path} has neither a column ts_seconds nor ts; found: {', '.join(names)}."
        )
    if column not in names or column == time_column:
        others = ", ".join(name for name in names if name != time_column) or "none"
        raise InputError(f"{path} has no column {column!r} of counts; found: {others}.")
    rows = _rows(table, _place(time_column, names, path), _place(column, names, path))
    units = _units(time_column, [row.stamp for row in rows])
    ts_seconds = [_instant(row.stamp, units, path, row.line) for row in rows]
    values = [_count(row.cell, column, path, row.line) for row in rows]
    _check_unique(ts_seconds, rows, path)
    latest = rows[ts_seconds.index(max(ts_seconds))].stamp if rows else ""
    schema = {"ts_seconds": pl.Float64(), "value": pl.Float64()}
    frame = pl.DataFrame({"ts_seconds": ts_seconds, "value": values}, schema=schema)
    return DemandSeries(frame.sort("ts_seconds"), _clock(units, latest))


def _text_table(path: Path) -> pl.DataFrame:
    try:
        table = pl.read_csv(path.read_bytes(), infer_schema=False, glob=False)
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror or error}.") from None
    except pl.exceptions.NoDataError:
        raise InputError(f"{path} is empty; a header line and rows were expected.") from None
    except pl.exceptions.PolarsError as error:
        first_line = str(error).splitlines()[0]
        raise InputError(f"{path} is not readable as CSV: {first_line}") from None
    return table


def _place(name: str, names: list[str], path: Path) -> int:
    """The column's index; InputError if two have this name (polars numbers the second)."""
    alike = [other for other in names if _NUMBERED.sub("", other) == name]
    if len(alike) > 1:
        raise InputError(f"{path} has {len(alike)} columns {name!r}; keep or rename one of them.")
    return names.index(name)


def _rows(table: pl.DataFrame, stamp: int, count: int) -> list[_Row]:
    """The rows with their line numbers, without blank lines (rows with only empty cells)."""
    lines = enumerate(table.iter_rows(), start=2)
    cells = ((line, [(cell or "").strip() for cell in row]) for line, row in lines)
    return [_Row(line, row[stamp], row[count]) for line, row in cells if any(row)]


def _units(time_column: str, stamps: list[str]) -> float | None:
    """The file's time units per second; None if it writes ISO 8601."""
    number = _number(next((stamp for stamp in stamps if stamp), ""))
    if time_column == "ts_seconds":
        return 1.0
    if number is None:
        return None
    return next((units for least, units in _EPOCH_UNITS if abs(number) >= least), 1.0)


def _clock(units: float | None, latest: str) -> Clock:
    if units is not None:
        return Clock(units)
    tail = _ISO_TAIL.search(latest) if ":" in latest or "T" in latest.upper() else None
    return Clock(
        None,
        " " if " " in latest else "T",
        tail.group(1) if tail else "",
        is_date=_DATE.fullmatch(latest) is not None,
    )


def _zone(tail: str) -> timezone:
    if tail in ("", "Z", "z"):
        return UTC
    offset = timedelta(hours=int(tail[1:3]), minutes=int(tail[3:].lstrip(":") or 0))
    return timezone(-offset if tail[0] == "-" else offset)


def _number(cell: str) -> float | None:
    try:
        return None if "_" in cell else float(cell)  # only Python accepts 1_000
    except ValueError:
        return None


def _instant(cell: str, units: float | None, path: Path, line: int) -> float:
    if units is None:
        try:
            return parse_instant(cell).timestamp()
        except InputError as error:
            raise InputError(f"{path}, line {line}: {error}") from None
    number = _number(cell)
    if number is None or not math.isfinite(number):
        raise InputError(
            f"{path}, line {line}: {cell!r} is not a time in seconds, as in the rows before it."
        )
    return number / units


def _count(cell: str, column: str, path: Path, line: int) -> float | None:
    if cell.lower() in _GAPS:
        return None
    number = _number(cell)
    if number is None or not math.isfinite(number):
        raise InputError(f"{path}, line {line}: {cell!r} in column {column!r} is not a number.")
    if number < 0:
        raise InputError(
            f"{path}, line {line}: {cell} in column {column!r} is negative; demand cannot be below "
            "0. Leave the cell empty where nothing was recorded."
        )
    if number > _MAX:
        raise InputError(
            f"{path}, line {line}: {cell} in column {column!r} is too large; the maximum is "
            f"{_MAX:g} per row."
        )
    return number


def _check_unique(ts_seconds: list[float], rows: list[_Row], path: Path) -> None:
    seen: dict[float, int] = {}
    for instant, row in zip(ts_seconds, rows, strict=True):
        if instant in seen:
            raise InputError(
                f"{path}, line {row.line}: the time {row.stamp} is already on line "
                f"{seen[instant]}. Sum rows with the same time (of several replicas, say) first."
            )
        seen[instant] = row.line
