"""Demand series from CSV: which cells are gaps, which are errors, how a file writes its times.

A demand CSV holds the start of each row in `ts_seconds` (numbers) or `ts` (ISO 8601, or numbers
in seconds, or since 1970 in milli-, micro- or nanoseconds), and counts in named columns. An empty
cell is a row not recorded. Times come back out the way they went in.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import polars as pl

from vllm_capacity.errors import InputError
from vllm_capacity.timerange import parse_instant

_GAPS = frozenset({"", "nan", "null", "none", "na"})
_ISO_TAIL = re.compile(r"(Z|[+-]\d{2}:?\d{2})$", re.IGNORECASE)
_EPOCH_UNITS = ((1e17, 1e9), (1e14, 1e6), (1e11, 1e3))


@dataclass(frozen=True)
class Clock:
    """How a file writes an instant: a number, `units_per_second`, or ISO text as its first is."""

    units_per_second: float | None
    separator: str = "T"
    tail: str = ""

    def written(self, ts_seconds: float) -> float | int | str:
        """The instant as the file would write it; whole numbers without a fraction."""
        if self.units_per_second is not None:
            number = round(ts_seconds * self.units_per_second, 6)
            return int(number) if number == int(number) else number
        zone = _zone(self.tail)
        instant = datetime.fromtimestamp(0, UTC) + timedelta(seconds=round(ts_seconds, 6))
        local = instant.astimezone(zone).replace(tzinfo=None)
        return local.isoformat(sep=self.separator) + self.tail


@dataclass(frozen=True)
class DemandSeries:
    """One column of a demand CSV.

    `frame`: ts_seconds (ascending, no two alike) and `value` (null: not recorded). ISO times count
    from 1970, numbers from wherever the file's do.
    """

    frame: pl.DataFrame
    clock: Clock
    time_column: str


def read_demand(path: Path, column: str) -> DemandSeries:
    """The series of `column`; `InputError` names the line of a bad, negative or doubled cell."""
    table = _text_table(path)
    time_column = next((name for name in ("ts_seconds", "ts") if name in table.columns), None)
    if time_column is None:
        raise InputError(
            f"{path} has neither a column ts_seconds nor ts; found: {', '.join(table.columns)}."
        )
    if column not in table.columns or column == time_column:
        others = ", ".join(name for name in table.columns if name != time_column) or "none"
        raise InputError(f"{path} has no column {column!r} of counts; found: {others}.")
    stamps = [(cell or "").strip() for cell in table[time_column].to_list()]
    clock = _clock(time_column, stamps)
    ts_seconds = [_instant(cell, clock, path, line) for line, cell in enumerate(stamps, start=2)]
    cells = table[column].to_list()
    values = [_count(cell or "", column, path, line) for line, cell in enumerate(cells, start=2)]
    schema = {"ts_seconds": pl.Float64(), "value": pl.Float64()}
    frame = pl.DataFrame({"ts_seconds": ts_seconds, "value": values}, schema=schema)
    _check_unique(ts_seconds, stamps, path)
    return DemandSeries(frame.sort("ts_seconds"), clock, time_column)


def _text_table(path: Path) -> pl.DataFrame:
    try:
        table = pl.read_csv(path.read_bytes(), infer_schema=False)
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror or error}.") from None
    except pl.exceptions.NoDataError:
        raise InputError(f"{path} is empty; a header line and rows were expected.") from None
    except pl.exceptions.PolarsError as error:
        first_line = str(error).splitlines()[0]
        raise InputError(f"{path} is not readable as CSV: {first_line}") from None
    return table.rename({name: name.strip() for name in table.columns})


def _clock(time_column: str, stamps: list[str]) -> Clock:
    first = next((cell for cell in stamps if cell), "")
    number = _number(first)
    if time_column == "ts_seconds":
        return Clock(1.0)
    if number is not None:
        units = (units for least, units in _EPOCH_UNITS if abs(number) >= least)
        return Clock(next(units, 1.0))
    tail = _ISO_TAIL.search(first)
    return Clock(None, " " if " " in first else "T", tail.group(1) if tail else "")


def _zone(tail: str) -> timezone:
    if tail in ("", "Z", "z"):
        return UTC
    offset = timedelta(hours=int(tail[1:3]), minutes=int(tail[-2:]))
    return timezone(-offset if tail[0] == "-" else offset)


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


def _instant(cell: str, clock: Clock, path: Path, line: int) -> float:
    if clock.units_per_second is None:
        try:
            return parse_instant(cell).timestamp()
        except InputError as error:
            raise InputError(f"{path}, line {line}: {error}") from None
    number = _number(cell)
    if number is None or not math.isfinite(number):
        raise InputError(
            f"{path}, line {line}: {cell!r} is no time in numbers like the rows before."
        )
    return number / clock.units_per_second


def _count(cell: str, column: str, path: Path, line: int) -> float | None:
    bare = cell.strip()
    if bare.lower() in _GAPS:
        return None
    number = _number(bare)
    if number is None or not math.isfinite(number):
        raise InputError(f"{path}, line {line}: {bare!r} in column {column!r} is no number.")
    if number < 0:
        raise InputError(
            f"{path}, line {line}: {bare} in column {column!r} is negative; demand counts from 0. "
            "Leave the cell empty where nothing was recorded."
        )
    return number


def _check_unique(ts_seconds: list[float], stamps: list[str], path: Path) -> None:
    seen: dict[float, int] = {}
    for line, instant in enumerate(ts_seconds, start=2):
        if instant in seen:
            raise InputError(
                f"{path}, line {line}: the time {stamps[line - 2]} was given already on line "
                f"{seen[instant]}. Sum rows of one time (say, of several replicas) into one first."
            )
        seen[instant] = line
