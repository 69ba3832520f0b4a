"""An estimate in words, the same way in every table and sentence: value, interval, why."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vllm_capacity.pages.numbers import Write, between

Told = Mapping[str, Any]
NOT_KNOWN = "not known"


def value(estimate: Told, write: Write) -> str:
    """Its middle, or that it is not known."""
    return NOT_KNOWN if estimate["mid"] is None else write(estimate["mid"])


def sure(estimate: Told, write: Write) -> str:
    """Its middle with its interval in brackets, where it has one."""
    interval = between(estimate, write)
    return f"{value(estimate, write)}{f' ({interval})' if interval else ''}"


def why(estimate: Told) -> str:
    """What it rests on, or why it is not known."""
    return str(estimate["reason"] if estimate["mid"] is None else estimate["basis"])


def reason(estimate: Told) -> str:
    """Why it is not known, to stand inside a sentence."""
    return str(estimate["reason"] or "no reason was recorded").rstrip(".")


def line(name: str, estimate: Told, write: Write, unit: str = "") -> list[str]:
    """A row of a table: name, value with its unit, interval, why."""
    shown = value(estimate, write)
    with_unit = f"{shown} {unit}".strip() if estimate["mid"] is not None else shown
    return [name, with_unit, between(estimate, write), why(estimate)]
