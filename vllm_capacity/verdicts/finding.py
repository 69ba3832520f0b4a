"""One line of the data-quality ledger."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from vllm_capacity.timerange import iso


@dataclass(frozen=True)
class Finding:
    """What a check found: how bad, how often, when, and which figures it can move by how much.

    `info` is a fact to know, `warning` a doubt about a figure, `error` a figure not to be trusted.
    `moves` gives the most it can move a figure, in that figure's unit; empty where it moves none.
    """

    check: str
    severity: str
    count: int
    effect: str
    when: str | None = None
    moves: Mapping[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """The keys of the machine interface, and `moves`."""
        return {
            "check": self.check,
            "severity": self.severity,
            "count": self.count,
            "effect": self.effect,
            "when": self.when,
            "moves": dict(self.moves),
        }


def span(start: datetime, end: datetime) -> str:
    """A time range as `when` shows it."""
    return f"{iso(start)} … {iso(end)}"


def amounts(moves: Mapping[str, float]) -> str:
    """The figures that a finding moves, in words."""
    return "; ".join(f"{figure} by at most {amount:.3g}" for figure, amount in moves.items())
