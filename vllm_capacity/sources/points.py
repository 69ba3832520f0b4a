"""Reads tables of loads: CSV files with running requests and throughput, as people write them.

Also the CSV written by `vllm bench sweep serve`, which has the columns of its JSON.
"""

from __future__ import annotations

import math
from pathlib import Path

import polars as pl

from vllm_capacity.errors import InputError

_LOAD, _CLIENTS = "running_requests", "clients"
_REQUIRED = (_LOAD, "output_tokens_per_second")
_OPTIONAL = (
    "requests_per_second",
    "ttft_p95_seconds",
    "itl_p95_seconds",
    "kv_cache_ratio",
    _CLIENTS,
    "waiting_requests",
    "offered_requests_per_second",
    "max_num_seqs",
)
_BENCH = ("request_throughput", "output_throughput")
_MAX = 1e12
_RATIO_SLACK = 1.001


def read_points(path: Path) -> pl.DataFrame:
    """A CSV of loads as a frame: its required and optional columns as floats, without others.

    An empty cell is null. `clients` may replace running_requests; one of the two is required. The
    offered rate may be inf: as much as the server takes. Raises `InputError` if the file cannot be
    read, lacks a column, or has a cell that is not a number, is negative or above 1e12, or a KV
    ratio above 1.
    """
    table = _table(path)
    missing = [name for name in _REQUIRED if name not in table.columns]
    if missing == [_LOAD] and _CLIENTS in table.columns:
        missing = []
    if missing:
        raise InputError(
            f"{str(path)!r} lacks {', '.join(missing)}; it has "
            f"{', '.join(table.columns) or 'none'}. Required: {', '.join(_REQUIRED)}; used if "
            f"present: {', '.join(_OPTIONAL)}."
        )
    names = [name for name in (*_REQUIRED, *_OPTIONAL) if name in table.columns]
    return pl.DataFrame([_numbers(table[name], path) for name in names])


def bench_rows(path: Path) -> list[dict[str, object]] | None:
    """The rows of a `summary.csv` of `vllm bench sweep serve`; None for any other table.

    Cells are numbers where possible, else text; empty ones are None.
    """
    table = _table(path)
    if not all(name in table.columns for name in _BENCH):
        return None
    return [{name: _cell(cell) for name, cell in row.items()} for row in table.to_dicts()]


def _cell(text: str | None) -> object:
    try:
        number = float(text or "nan")
    except ValueError:
        return text
    return number if math.isfinite(number) else text


def _table(path: Path) -> pl.DataFrame:
    """The CSV's cells as text, with stripped column names; InputError for duplicate names."""
    if path.is_dir():
        raise InputError(f"Cannot read {str(path)!r} as a CSV: it is a folder.")
    try:
        table = pl.read_csv(path.read_bytes(), infer_schema_length=0, glob=False)
    except (OSError, pl.exceptions.PolarsError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"Cannot read {str(path)!r} as a CSV: {reason}.") from None
    names = [name.strip() for name in table.columns]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"{str(path)!r} has {', '.join(twice)} more than once; keep one of each.")
    table.columns = names
    return table


def _numbers(texts: pl.Series, path: Path) -> pl.Series:
    """The column as floats; empty cells are null."""
    bare = texts.str.strip_chars()
    bare = bare.set(bare == "", None)
    numbers = bare.cast(pl.Float64, strict=False)
    most = _RATIO_SLACK if texts.name == "kv_cache_ratio" else _MAX
    most = math.inf if texts.name == "offered_requests_per_second" else most
    is_wrong = (numbers < 0) | (numbers.is_not_nan() & (numbers > most))
    is_bad = bare.is_not_null() & (numbers.is_null() | is_wrong.fill_null(value=False))
    if is_bad.any():
        row = int(is_bad.arg_true()[0])
        wanted = "a ratio of 0 to 1 (vLLM's own gauge is one, not a percentage)"
        if texts.name != "kv_cache_ratio":
            wanted = f"a number from 0 to {_MAX:g}"
        raise InputError(
            f"{str(path)!r}, line {row + 2}: {texts.name} is {texts[row]!r}; "
            f"write {wanted}, or leave the cell empty."
        )
    return numbers
