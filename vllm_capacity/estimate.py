"""Uncertainty: a figure that decides money is an interval with what it rests on, or a reason."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Estimate:
    """An interval `low` ≤ `mid` ≤ `high` with its `basis`, or unknown with a `reason`.

    Both states are one type, so that no reason is lost on the way to the page. Build it with
    `known`, `exact` or `unknown`.
    """

    low: float | None
    mid: float | None
    high: float | None
    basis: str = ""
    reason: str = ""

    def __post_init__(self) -> None:
        numbers = (self.low, self.mid, self.high)
        if any(n is None for n in numbers):
            if any(n is not None for n in numbers) or not self.reason:
                raise ValueError(f"an unknown estimate has no numbers and a reason: {self}")
        elif not all(n is not None and math.isfinite(n) for n in numbers):
            raise ValueError(f"an estimate's numbers are finite: {self}")
        elif not self.low <= self.mid <= self.high:  # type: ignore[operator]
            raise ValueError(f"an estimate is ordered low <= mid <= high: {self}")

    @classmethod
    def known(cls, low: float, mid: float, high: float, basis: str) -> Estimate:
        """An interval; the three are sorted only against rounding, never silently reordered."""
        return cls(float(low), float(mid), float(high), basis=basis)

    @classmethod
    def exact(cls, value: float, basis: str) -> Estimate:
        """A figure counted, not estimated: low = mid = high."""
        return cls.known(value, value, value, basis)

    @classmethod
    def unknown(cls, reason: str, basis: str = "") -> Estimate:
        """No figure, and why."""
        return cls(None, None, None, basis=basis, reason=reason)

    @property
    def is_known(self) -> bool:
        """Whether there are numbers."""
        return self.mid is not None

    def map(self, function: Callable[[float], float], basis: str | None = None) -> Estimate:
        """The estimate under a monotone function; decreasing ones swap the ends. Unknown stays."""
        if self.low is None or self.mid is None or self.high is None:
            return self
        low, high = sorted((function(self.low), function(self.high)))
        return Estimate.known(low, function(self.mid), high, self.basis if basis is None else basis)

    def scaled(self, factor: float, basis: str | None = None) -> Estimate:
        """The estimate times an exactly known factor."""
        return self.map(lambda value: value * factor, basis)

    def divided_by(self, other: Estimate, basis: str) -> Estimate:
        """The ratio of two non-negative estimates, ends paired for the widest interval.

        Unknown where either is unknown or the divisor may be zero.
        """
        if self.low is None or self.mid is None or self.high is None:
            return self
        if other.low is None or other.mid is None or other.high is None:
            return other
        if other.low <= 0:
            return Estimate.unknown(f"the divisor may be zero ({other.basis})", basis)
        return Estimate.known(
            self.low / other.high, self.mid / other.mid, self.high / other.low, basis
        )

    def as_dict(self) -> dict[str, Any]:
        """The five keys of the machine interface; null where unknown."""
        return {
            "low": self.low,
            "mid": self.mid,
            "high": self.high,
            "basis": self.basis,
            "reason": self.reason,
        }
