"""How numbers are written: three significant digits, a unit, and intervals to match.

Every function takes the value and, optionally, `like`: the number whose decimal places (and choice
of ms or s) it shares, so that an interval has the same precision as its figure.

Estimates are written the same way in every table and sentence: value, interval, reason.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Protocol

from vllm_capacity.estimate import Estimate

_SIGNIFICANT = 3
_CENT_USD = 0.01
_SPACE = "\N{NO-BREAK SPACE}"  # keeps a number and its unit on one line


class Write(Protocol):
    """A function that writes a number, with the decimal places of `like`."""

    def __call__(self, value: float, /, like: float | None = None) -> str:
        """The number as text, with its unit if it has one."""


def number(value: float, like: float | None = None) -> str:
    """Three significant digits with thousands separators: 1,230 · 29.7 · 0.00512."""
    places = _places(value if like is None else like)
    rounded = round(value, places)
    return f"{rounded + 0.0:,.{max(places, 0)}f}"


def count(value: float, like: float | None = None) -> str:
    """A whole number with all its digits: 5,138."""
    return f"{round(value):,}"


def plural(amount: float, noun: str) -> str:
    """A count with its noun: 1 engine, 2 engines."""
    return f"{count(amount)} {noun}{'' if amount == 1 else 's'}"


def usd(value: float, like: float | None = None) -> str:
    """Dollars: $1.64 · $1,230 · $0.00101."""
    sign = "-" if value < 0 else ""
    reference = value if like is None else like
    if abs(reference) >= _CENT_USD and _places(reference) == 1:  # $29.70, never $29.7
        return f"{sign}${abs(value):,.2f}"
    return f"{sign}${number(abs(value), abs(reference))}"


def usd_per_thousand(value: float, like: float | None = None) -> str:
    """A price below a cent, per thousand: $1.00 for $0.001."""
    return usd(value * 1000, None if like is None else like * 1000)


def percent(ratio: float, like: float | None = None) -> str:
    """A 0..1 ratio in percent: no decimals, one below 10 %, two below 1 %."""
    reference = abs(ratio if like is None else like) * 100
    places = 0 if reference >= 10 or reference == 0 else 1 if reference >= 1 else 2
    return f"{ratio * 100 + 0.0:,.{places}f}{_SPACE}%"


def seconds(value: float, like: float | None = None) -> str:
    """A duration: 38 ms · 1.44 s · 27.9 s."""
    reference = abs(value if like is None else like)
    if 0 < reference < 1:
        return f"{number(value * 1000, reference * 1000)}{_SPACE}ms"
    return f"{number(value, reference)}{_SPACE}s"


def hours(value: float) -> str:
    """A window's length: 3.15 h · 25.5 min · 40 s."""
    if value >= 1:
        return f"{number(value)} h"
    if value * 60 >= 1:
        return f"{number(value * 60)} min"
    return f"{number(value * 3600)} s"


def between(estimate: Estimate, write: Write) -> str:
    """`between a and b` for a known estimate; empty if exact or if both ends look the same."""
    low, mid, high = estimate.low, estimate.mid, estimate.high
    if low is None or mid is None or high is None or low == high:
        return ""
    ends = write(low, like=mid), write(high, like=mid)
    return "" if ends[0] == ends[1] else f"between {ends[0]} and {ends[1]}"


def moment(at: datetime) -> str:
    """A time for people: 24 Nov 2026 08:14:05 UTC."""
    return f"{at.astimezone(UTC):%-d %b %Y %H:%M:%S} UTC"


def minute_of(at: datetime) -> str:
    """A time without its seconds: 24 Nov 2026 08:14 UTC."""
    return f"{at.astimezone(UTC):%-d %b %Y %H:%M} UTC"


def span(start: datetime, end: datetime) -> str:
    """Two times for people, the day given once if it is the same."""
    first, last = start.astimezone(UTC), end.astimezone(UTC)
    if first.date() == last.date():
        return f"{first:%-d %b %Y %H:%M:%S} to {last:%H:%M:%S} UTC"
    return f"{first:%-d %b %Y %H:%M} to {last:%-d %b %Y %H:%M} UTC"


def days(start: datetime, end: datetime) -> str:
    """The days of two times, common parts given once: 24 Nov 2026 · 24 Nov to 1 Dec 2026."""
    first, last = start.astimezone(UTC), end.astimezone(UTC)
    if first.date() == last.date():
        return f"{last:%-d %b %Y}"
    year = "" if first.year == last.year else f" {first:%Y}"
    return f"{first:%-d %b}{year} to {last:%-d %b %Y}"


def _places(value: float) -> int:
    if value == 0 or not math.isfinite(value):
        return 0
    exponent = math.floor(math.log10(abs(value)))
    if round(abs(value), _SIGNIFICANT - 1 - exponent) >= 10 ** (exponent + 1):
        exponent += 1  # 9.996 is written 10.0
    return _SIGNIFICANT - 1 - exponent


NOT_KNOWN = "not known"


def bound_word(estimate: Estimate) -> str:
    """The kind of bound; empty if it is no bound."""
    if not estimate.is_bound:
        return ""
    return "upper bound" if estimate.low is None else "lower bound"


def value(estimate: Estimate, write: Write) -> str:
    """The middle value, "at least" or "at most" a bound, or that it is unknown."""
    if estimate.mid is not None:
        return write(estimate.mid)
    if estimate.low is not None:
        return f"at least {write(estimate.low)}"
    return NOT_KNOWN if estimate.high is None else f"at most {write(estimate.high)}"


def sure(estimate: Estimate, write: Write) -> str:
    """The middle value with its interval, if any, in brackets; a bound as in `value`."""
    interval = between(estimate, write)
    return f"{value(estimate, write)}{f' ({interval})' if interval else ''}"


def why(estimate: Estimate) -> str:
    """Its basis, or why it is unknown; for a bound, both."""
    if estimate.is_bound:
        return f"{estimate.sources}; no more is known, because {estimate.reason}"
    return estimate.reason if estimate.is_unknown else estimate.sources


def reason(estimate: Estimate) -> str:
    """Why it is unknown, to be used inside a sentence."""
    return (estimate.reason or "no reason was recorded").rstrip(".")


def line(name: str, estimate: Estimate, write: Write, unit: str = "") -> list[str]:
    """A row of a table: name, value with its unit, interval, why."""
    shown = value(estimate, write)
    with_unit = shown if estimate.is_unknown else f"{shown} {unit}".strip()
    return [name, with_unit, between(estimate, write), why(estimate)]
