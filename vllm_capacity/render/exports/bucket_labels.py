"""Regular expressions that compare Prometheus bucket edges, which are text labels (`le`)."""

from __future__ import annotations

from decimal import Decimal


def at_or_above(value: float) -> str:
    """An RE2 expression that matches `le` labels at or above a positive number, +Inf included.

    It matches edges written as plain decimals (`2.5`, `1.0`, `1`), not with an exponent.
    """
    whole, _, part = format(Decimal(repr(value)).normalize(), "f").partition(".")
    ways = [r"[+]Inf", f"[1-9][0-9]{{{len(whole)},}}({_ANY_PART})?"]
    # A whole part of the same length that is larger from this digit on.
    for place, digit in enumerate(whole):
        if digit < "9":
            rest = f"[0-9]{{{len(whole) - place - 1}}}"
            ways.append(f"{whole[:place]}[{int(digit) + 1}-9]{rest}({_ANY_PART})?")
    # The same whole part, and a fraction that is larger from this digit on or continues this one.
    for place, digit in enumerate(part):
        if digit < "9":
            ways.append(f"{whole}[.]{part[:place]}[{int(digit) + 1}-9][0-9]*")
    ways.append(f"{whole}[.]{part}[0-9]*" if part else f"{whole}({_ANY_PART})?")
    return "|".join(ways)


_ANY_PART = "[.][0-9]+"
