"""Reads the charges of an invoice or cost export: FOCUS, AWS, or any table with a cost column."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
from msgspec import Struct

from vllm_capacity.errors import InputError
from vllm_capacity.sources.records import Row, found, given_columns, instant, raw_rows, sources

FIELDS: Mapping[str, tuple[str, ...]] = {
    "start": ("ChargePeriodStart", "lineItem/UsageStartDate", "usage_start_time", "start", "date",
              "day"),
    "end": ("ChargePeriodEnd", "lineItem/UsageEndDate", "usage_end_time", "end"),
    "cost": ("BilledCost", "lineItem/UnblendedCost", "cost", "amount", "charged", "usd", "total"),
    "hours": ("hours", "ConsumedQuantity", "lineItem/UsageAmount", "usage_hours"),
    "currency": ("BillingCurrency", "lineItem/CurrencyCode", "currency"),
}  # fmt: skip
"""The fields that are read, with their column names in common exports."""

INVOICE_SCHEMA: dict[str, Any] = {
    "start": pl.Datetime("us", "UTC"),
    "end": pl.Datetime("us", "UTC"),
    "usd": pl.Float64,
    "hours": pl.Float64,
}
"""A charge; `hours` is null if the row has none. A row without an end covers one day."""

_DAY = timedelta(days=1)
_MAX_USD = 1e12
_EXAMPLES = 5


class Invoice(Struct, frozen=True):
    """The charges (`INVOICE_SCHEMA`), the number of unreadable rows, and the first reasons."""

    name: str
    frame: pl.DataFrame
    malformed: int
    examples: tuple[str, ...]


def read_invoice(path: Path, *, columns: str | Mapping[str, str] | None = None) -> Invoice:
    """The charges in a file; `columns` maps fields to its columns: "cost=Charge,start=Day".

    InputError if the file or all of its rows cannot be read, or for a currency other than USD.
    """
    paths = sources(FIELDS, given_columns(columns, FIELDS))
    rows: list[tuple[datetime, datetime, float, float | None]] = []
    examples: list[str] = []
    malformed, names = 0, ""
    for line, row in raw_rows(path, None):
        try:
            if isinstance(row, str):
                raise ValueError(row)
            names = names or ", ".join(map(str, row))
            rows.append(_charge({name: found(row, at) for name, at in paths.items()}, path))
        except ValueError as error:
            malformed += 1
            examples = [*examples, f"line {line}: {error}"][:_EXAMPLES]
    if not rows:
        why = examples[0] if examples else "it has no rows"
        raise InputError(
            f"No charge of {path} can be read ({why}). It has: {names or 'no columns'}. Say which "
            "they are: --invoice-columns cost=NAME,start=NAME."
        )
    frame = pl.DataFrame(rows, schema=INVOICE_SCHEMA, orient="row")
    return Invoice(path.name, frame.sort("start"), malformed, tuple(examples))


def _charge(value: Row, path: Path) -> tuple[datetime, datetime, float, float | None]:
    if value["start"] is None or value["cost"] is None:
        raise ValueError("it has no start" if value["start"] is None else "it has no cost")
    if str(value["currency"] or "USD").upper() != "USD":
        raise InputError(
            f"{path} charges in {value['currency']}; the bill is in USD. Convert it first, at the "
            "rate it was paid at."
        )
    start = instant(value["start"])
    end = start + _DAY if value["end"] is None else instant(value["end"])
    if end <= start:
        raise ValueError(f"it ends at {value['end']}, not after its start")
    hours = None if value["hours"] is None else _amount(value["hours"], "hours")
    return start, end, _amount(value["cost"], "cost"), hours


def _amount(value: object, what: str) -> float:
    """The value as a number; credits are negative."""
    try:
        number = float(str(value).replace("$", "").strip())
    except ValueError:
        raise ValueError(f"{what} {value!r} is not a number") from None
    if not abs(number) <= _MAX_USD:
        raise ValueError(f"{what} {value!r} is not a number")
    return number
