"""One line of the data-quality ledger."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import ClassVar

from vllm_capacity.record import Record
from vllm_capacity.timerange import iso


@dataclass(frozen=True, repr=False)
class Finding(Record):
    """What a check found: how bad, how often, when, and which figures it can move by how much.

    `info` is a fact to know, `warning` a doubt about a figure, `error` a figure not to be trusted.
    `max_effect` gives the most it can move a figure, in that figure's unit; empty where none.
    """

    renamed: ClassVar[Mapping[str, str]] = {"moves": "max_effect"}

    check: str
    severity: str
    count: int
    effect: str
    when: str | None = None
    max_effect: Mapping[str, float] = field(default_factory=dict)


def span(start: datetime, end: datetime) -> str:
    """A time range as `when` shows it."""
    return f"{iso(start)} … {iso(end)}"


def amounts(max_effect: Mapping[str, float]) -> str:
    """The figures that a finding moves, in words."""
    return "; ".join(f"{figure} by at most {amount:.3g}" for figure, amount in max_effect.items())
