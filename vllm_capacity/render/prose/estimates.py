"""An estimate in words, the same way in every table and sentence: value, interval, why."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vllm_capacity.render.numbers import Write, between

Told = Mapping[str, Any]
NOT_KNOWN = "not known"


def is_unknown(estimate: Told) -> bool:
    """Whether there is no number at all, not even a bound."""
    return estimate["low"] is None and estimate["high"] is None


def is_bound(estimate: Told) -> bool:
    """Whether there is a lower or an upper bound and no more."""
    return estimate["mid"] is None and not is_unknown(estimate)


def bound_word(estimate: Told) -> str:
    """What kind of bound it is, empty where it is none."""
    if not is_bound(estimate):
        return ""
    return "upper bound" if estimate["low"] is None else "lower bound"


def value(estimate: Told, write: Write) -> str:
    """Its middle, "at least" or "at most" its bound, or that it is not known."""
    if is_unknown(estimate):
        return NOT_KNOWN
    if estimate["mid"] is not None:
        return write(estimate["mid"])
    if estimate["low"] is not None:
        return f"at least {write(estimate['low'])}"
    return f"at most {write(estimate['high'])}"


def sure(estimate: Told, write: Write) -> str:
    """Its middle with its interval in brackets, where it has one; a bound as in `value`."""
    interval = between(estimate, write)
    return f"{value(estimate, write)}{f' ({interval})' if interval else ''}"


def why(estimate: Told) -> str:
    """What it rests on, or why it is not known; of a bound, both."""
    if is_bound(estimate):
        return f"{estimate['basis']}; no more is known, because {estimate['reason']}"
    return str(estimate["reason"] if is_unknown(estimate) else estimate["basis"])


def reason(estimate: Told) -> str:
    """Why it is not known, to stand inside a sentence."""
    return str(estimate["reason"] or "no reason was recorded").rstrip(".")


def line(name: str, estimate: Told, write: Write, unit: str = "") -> list[str]:
    """A row of a table: name, value with its unit, interval, why."""
    shown = value(estimate, write)
    with_unit = shown if is_unknown(estimate) else f"{shown} {unit}".strip()
    return [name, with_unit, between(estimate, write), why(estimate)]
