"""The currency of exported money: dollars, or another at a rate given by the user."""

from __future__ import annotations

import math
import re
from datetime import date

from msgspec import Struct

from vllm_capacity.errors import InputError
from vllm_capacity.estimate import Estimate

_GIVEN = re.compile(r"([A-Za-z]{3})=([0-9.]+)@(\d{4}-\d{2}-\d{2})")


class Currency(Struct, frozen=True):
    """A currency by its ISO 4217 code, and the value of one US dollar in it on a day."""

    code: str = "USD"
    per_usd: float = 1.0
    day: date | None = None

    @property
    def note(self) -> str:
        """The rate with its day; empty for dollars."""
        return "" if self.day is None else f"1 USD = {self.per_usd:g} {self.code} on {self.day}"

    def of(self, usd: Estimate) -> Estimate:
        """An amount of dollars in this currency, with the rate among its sources."""
        return usd if self.day is None else usd.scaled(self.per_usd, self.note)

    def per(self, per_dollar: Estimate) -> Estimate:
        """A quantity per dollar, converted to a quantity per unit of this currency."""
        return per_dollar if self.day is None else per_dollar.scaled(1 / self.per_usd, self.note)

    def renamed(self, text: str) -> str:
        """A figure's name or unit with this currency instead of the dollar."""
        return text.replace("usd", self.code.lower()).replace("USD", self.code)


USD = Currency()


def parse_currency(text: str) -> Currency:
    """The currency of `EUR=0.92@2026-11-28`: a dollar was worth 0.92 euros on that day.

    InputError for any other form; the date is required so that readers can check the rate.
    """
    found = _GIVEN.fullmatch(text.strip())
    try:
        if found is None:
            raise ValueError
        rate, day = float(found[2]), date.fromisoformat(found[3])
    except ValueError:
        raise InputError(
            f"Cannot read {text!r} as a currency with a dated rate; try EUR=0.92@2026-11-28 "
            "(what one US dollar was worth, and when)."
        ) from None
    if not (math.isfinite(rate) and rate > 0):
        raise InputError(f"A rate must be above 0, not {found[2]}, in {text!r}.")
    return Currency(found[1].upper(), rate, day)
