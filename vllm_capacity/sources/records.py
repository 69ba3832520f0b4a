"""Reads rows and fields from CSV, JSON, JSON lines, Parquet, and text in a given format.

Column names are given by the caller or found among common names; a dot reaches into an object.
Each row has its line number; an unreadable line has the reason instead of a row.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import polars as pl

from vllm_capacity.errors import InputError
from vllm_capacity.timerange import parse_instant

Row = Mapping[str, Any]
Sources = Mapping[str, tuple[tuple[str, ...], ...]]
"""For each field, the paths where it may be in a row."""

_NOTHING = frozenset(("", "-", "null", "none", "nan"))
_EPOCH_UNITS = ((1e17, 1e9), (1e14, 1e6), (1e11, 1e3))
_NGINX_TIME = "%d/%b/%Y:%H:%M:%S %z"
_GZIP = b"\x1f\x8b"
_LONGEST_CELL = 1 << 27  # LiteLLM logs whole messages if configured to


def pairs(text: str) -> dict[str, str]:
    """`a=b,c=d` as a mapping; empty for empty text. InputError for any other format."""
    found: dict[str, str] = {}
    for each in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = (part.strip() for part in each.partition("="))
        if not (name and equals and value) or name in found:
            raise InputError(f"Cannot read {text!r}; write NAME=VALUE,NAME=VALUE, each name once.")
        found[name] = value
    return found


def given_columns(
    columns: str | Mapping[str, str] | None, fields: Mapping[str, tuple[str, ...]]
) -> dict[str, str]:
    """The given column names, by field; InputError for an unknown field."""
    given = pairs(columns) if isinstance(columns, str) else dict(columns or {})
    if unknown := given.keys() - fields.keys():
        raise InputError(
            f"Unknown column {', '.join(sorted(unknown))}; known are: {', '.join(fields)}."
        )
    return given


def sources(fields: Mapping[str, tuple[str, ...]], given: Mapping[str, str]) -> Sources:
    """For each field, the given name or else the common ones, both whole and split at dots."""
    named = {name: (given[name],) if name in given else usual for name, usual in fields.items()}
    return {
        name: tuple(
            path for each in usual for path in dict.fromkeys(((each,), tuple(each.split("."))))
        )
        for name, usual in named.items()
    }


def found(row: Row, paths: tuple[tuple[str, ...], ...]) -> Any:  # noqa: ANN401  what JSON has
    """The value at the first path that has one; None if no path does."""
    for path in paths:
        value = _at(row, path)
        if value is not None:
            return value
    return None


def _at(row: Any, path: tuple[str, ...]) -> Any:  # noqa: ANN401  what JSON has
    """The value at the path, None if there is none; text that holds a JSON object is parsed."""
    for name in path:
        if isinstance(row, str) and row.startswith("{"):
            try:
                row = json.loads(row)
            except ValueError:
                return None
        if not isinstance(row, Mapping) or name not in row:
            return None
        row = row[name]
    if row is None or isinstance(row, Mapping | list):
        return None
    return None if str(row).strip().lower() in _NOTHING else row


def instant(value: Any) -> datetime:  # noqa: ANN401  what JSON has
    """An aware UTC instant from ISO 8601, a number since 1970, or nginx's local time."""
    if isinstance(value, datetime):
        return (value if value.tzinfo else value.replace(tzinfo=UTC)).astimezone(UTC)
    try:
        number = float(value)
    except (TypeError, ValueError):
        text = str(value).strip()
        try:
            return parse_instant(text)
        except InputError as error:
            try:
                return datetime.strptime(text.strip("[]"), _NGINX_TIME).astimezone(UTC)
            except ValueError:
                raise ValueError(str(error)) from None
    units = next((units for least, units in _EPOCH_UNITS if abs(number) >= least), 1.0)
    seconds = number / units
    if not (math.isfinite(seconds) and 0 < seconds < 7e9):
        raise ValueError(f"{value!r} is not a time")
    return datetime.fromtimestamp(seconds, UTC)


def raw_rows(path: Path, log_format: str | None) -> Iterator[tuple[int, Row | str]]:
    """Each row with its line (for Parquet, its position); an unreadable row is text saying why."""
    try:
        if path.suffix == ".parquet":
            yield from enumerate(pl.read_parquet(path).iter_rows(named=True), 1)
            return
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if raw.startswith(_GZIP) else raw).decode("utf-8-sig")
    except (OSError, EOFError, UnicodeDecodeError, pl.exceptions.PolarsError) as error:
        raise InputError(f"Cannot read {path}: {str(error).splitlines()[0]}") from None
    begin = text.lstrip()[:1]
    if not begin:
        raise InputError(f"{path} is empty.")
    if log_format is not None:
        yield from _formatted(text, log_format)
    elif begin == "[":
        yield from _json_array(text, path)
    elif begin == "{":
        yield from _json_lines(text)
    else:
        yield from _csv_rows(text, path)


def _json_array(text: str, path: Path) -> Iterator[tuple[int, Row | str]]:
    try:
        found = msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise InputError(f"{path} is not JSON: {error}") from None
    yield from ((place, _object(each)) for place, each in enumerate(found, 1))


def _json_lines(text: str) -> Iterator[tuple[int, Row | str]]:
    decode = msgspec.json.Decoder().decode
    for line, each in enumerate(text.splitlines(), 1):
        if not each.strip():
            continue
        try:
            yield line, _object(decode(each))
        except msgspec.DecodeError as error:
            yield line, f"not JSON: {error}"


def _object(value: Any) -> Mapping[str, Any] | str:  # noqa: ANN401  what JSON has
    return value if isinstance(value, Mapping) else "no object"


def _csv_rows(text: str, path: Path) -> Iterator[tuple[int, Row | str]]:
    reader = csv.reader(io.StringIO(text, newline=""))
    usual = csv.field_size_limit(_LONGEST_CELL)  # the limit is one for the whole process
    try:
        head = [name.strip() for name in next(reader)]
        for row in reader:
            if len(row) == len(head):
                yield reader.line_num, dict(zip(head, row, strict=True))
            elif row:
                yield reader.line_num, f"{len(row)} cells under {len(head)} columns"
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: not CSV: {error}.") from None
    finally:
        csv.field_size_limit(usual)


def _formatted(text: str, log_format: str) -> Iterator[tuple[int, Row | str]]:
    """The rows of a text log in nginx's `log_format`; a `$name` in it becomes a field."""
    pattern = _pattern(log_format)
    for line, each in enumerate(text.splitlines(), 1):
        if each.strip():
            found = pattern.fullmatch(each.rstrip())
            yield line, "not of the log format" if found is None else found.groupdict()


def _pattern(log_format: str) -> re.Pattern[str]:
    pieces = re.split(r"\$(\w+)|\$\{(\w+)\}", log_format.strip())
    texts, names = pieces[0::3], [a or b for a, b in zip(pieces[1::3], pieces[2::3], strict=True)]
    if not names or len(set(names)) < len(names) or not all(map(str.isidentifier, names)):
        raise InputError(
            f"The log format {log_format!r} must name what it logs, each once, as nginx does: "
            "'$remote_addr [$time_local] \"$request\" $http_x_api_key'."
        )
    groups: Iterable[str] = (f"(?P<{name}>.*?)" for name in names)
    return re.compile(
        re.escape(texts[0])
        + "".join(g + re.escape(t) for g, t in zip(groups, texts[1:], strict=True))
    )
