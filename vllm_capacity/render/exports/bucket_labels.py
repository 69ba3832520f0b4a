"""Edges of histogram buckets in Prometheus: text (`le`), which only an expression can compare."""

from __future__ import annotations

from decimal import Decimal


def at_or_above(value: float) -> str:
    """An RE2 expression for the labels `le` of edges at or above a positive number, +Inf included.

    Edges are plain decimals (`2.5`, `1.0`, `1`); those written with an exponent do not match.
    """
    whole, _, part = format(Decimal(repr(value)).normalize(), "f").partition(".")
    ways = [r"[+]Inf", f"[1-9][0-9]{{{len(whole)},}}({_ANY_PART})?"]
    # A whole part of as many digits that is larger from one digit on.
    for place, digit in enumerate(whole):
        if digit < "9":
            rest = f"[0-9]{{{len(whole) - place - 1}}}"
            ways.append(f"{whole[:place]}[{int(digit) + 1}-9]{rest}({_ANY_PART})?")
    # The same whole part, and a fraction that is larger from one digit on, or goes on as this one.
    for place, digit in enumerate(part):
        if digit < "9":
            ways.append(f"{whole}[.]{part[:place]}[{int(digit) + 1}-9][0-9]*")
    ways.append(f"{whole}[.]{part}[0-9]*" if part else f"{whole}({_ANY_PART})?")
    return "|".join(ways)


_ANY_PART = "[.][0-9]+"
