"""What an API charges for a model: dated rows of a CSV somebody keeps, or two given numbers."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

from vllm_capacity.errors import InputError

COLUMNS = ("provider", "model", "usd_per_million_input", "usd_per_million_output", "source", "date")


@dataclass(frozen=True)
class ApiPrice:
    """One API's price of a model, in USD per million input and output tokens."""

    provider: str
    model: str
    usd_per_million_input: float
    usd_per_million_output: float
    source: str
    date: str

    def __post_init__(self) -> None:
        """Refuse a price that is no price."""
        rates = (self.usd_per_million_input, self.usd_per_million_output)
        if not all(math.isfinite(rate) and rate >= 0 for rate in rates) or not any(rates):
            raise InputError(
                f"API prices must be 0 or more, and not both 0; found {rates[0]} and {rates[1]}."
            )

    @property
    def basis(self) -> str:
        """The row in words, with its date and source."""
        rates = f"${self.usd_per_million_input:g}/${self.usd_per_million_output:g} per M in/out"
        dated = ", ".join(part for part in (self.date, self.source) if part)
        return f"{self.provider} {self.model} {rates}".strip() + (f" ({dated})" if dated else "")

    def usd_per_request(self, *, input_tokens: float, output_tokens: float) -> float:
        """What the API charges for one request of those lengths."""
        return (
            input_tokens * self.usd_per_million_input + output_tokens * self.usd_per_million_output
        ) / 1e6


def given_api_price(usd_per_million_input: float, usd_per_million_output: float) -> ApiPrice:
    """A price given as two numbers."""
    return ApiPrice("API", "", usd_per_million_input, usd_per_million_output, "given", "")


def load_api_prices(path: Path) -> tuple[ApiPrice, ...]:
    """The rows of a CSV with the columns of `COLUMNS`; others are ignored."""
    try:
        rows = list(csv.DictReader(StringIO(path.read_text(encoding="utf-8"))))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"Cannot read the API prices {path}: {error}.") from None
    if not rows or (missing := [name for name in COLUMNS if name not in rows[0]]):
        lacking = ", ".join(missing) if rows else "every row"
        raise InputError(f"The API prices {path} lack {lacking}; needed: {', '.join(COLUMNS)}.")
    return tuple(_row(row, f"{path}, line {line}") for line, row in enumerate(rows, 2))


def newest_api_price(rows: Sequence[ApiPrice], *, provider: str, model: str) -> ApiPrice:
    """The newest row of a provider and model; case is ignored. None of them: an `InputError`."""
    asked = (provider.lower(), model.lower())
    found = [row for row in rows if (row.provider.lower(), row.model.lower()) == asked]
    if not found:
        known = ", ".join(sorted({f"{row.provider} {row.model}" for row in rows}))
        raise InputError(f"No API price of {provider} {model}; the file has {known}.")
    return max(found, key=lambda row: row.date)


def _row(row: dict[str, str], where: str) -> ApiPrice:
    try:
        per_input, per_output = (float(row[name]) for name in COLUMNS[2:4])
    except (TypeError, ValueError):
        raise InputError(f"{where}: {COLUMNS[2]} and {COLUMNS[3]} must be numbers.") from None
    return ApiPrice(
        row["provider"], row["model"], per_input, per_output, row["source"], row["date"]
    )
