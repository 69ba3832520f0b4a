"""Uncertainty: a figure that decides money is an interval, a bound, or a reason for neither."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

_Ends = tuple[float | None, float | None, float | None]
_END_NAMES = ("low", "mid", "high")


@dataclass(frozen=True)
class Estimate:
    """An interval `low` ≤ `mid` ≤ `high`, one bound alone, or unknown.

    *Known*: three numbers with their `basis`. *Bounded*: `low` alone ("at least") or `high` alone
    ("at most"), with the basis of the bound and, as `reason`, why no more than a bound is known.
    *Unknown*: no number, and a reason. All three are one type, so that no reason and no bound is
    lost on the way to the page. Build it with `known`, `exact`, `at_least`, `at_most` or `unknown`.
    """

    low: float | None
    mid: float | None
    high: float | None
    basis: str = ""
    reason: str = ""

    def __post_init__(self) -> None:
        numbers = [n for n in (self.low, self.mid, self.high) if n is not None]
        if not all(math.isfinite(n) for n in numbers):
            raise ValueError(f"an estimate's numbers are finite: {self}")
        if self.mid is not None and len(numbers) < 3:
            raise ValueError(f"an estimate with a middle has both ends: {self}")
        if self.mid is None and (len(numbers) > 1 or not self.reason):
            raise ValueError(f"an estimate without a middle has a reason and one bound: {self}")
        if numbers != sorted(numbers):
            raise ValueError(f"an estimate is ordered low <= mid <= high: {self}")

    @classmethod
    def known(cls, low: float, mid: float, high: float, basis: str) -> Estimate:
        """An interval; ValueError where the three are not in order."""
        return cls(float(low), float(mid), float(high), basis=basis)

    @classmethod
    def exact(cls, value: float, basis: str) -> Estimate:
        """A figure counted, not estimated: low = mid = high."""
        return cls.known(value, value, value, basis)

    @classmethod
    def at_least(cls, low: float, basis: str, reason: str) -> Estimate:
        """A lower bound and what it rests on; `reason`: why no more than that is known."""
        return cls(float(low), None, None, basis=basis, reason=reason)

    @classmethod
    def at_most(cls, high: float, basis: str, reason: str) -> Estimate:
        """An upper bound and what it rests on; `reason`: why no more than that is known."""
        return cls(None, None, float(high), basis=basis, reason=reason)

    @classmethod
    def unknown(cls, reason: str, basis: str = "") -> Estimate:
        """No figure, and why."""
        return cls(None, None, None, basis=basis, reason=reason)

    @property
    def is_known(self) -> bool:
        """Whether there is an interval."""
        return self.mid is not None

    @property
    def is_bound(self) -> bool:
        """Whether there is one bound and no more."""
        return self.mid is None and not self.is_unknown

    @property
    def is_unknown(self) -> bool:
        """Whether there is no number at all."""
        return self.low is None and self.high is None

    def map(
        self,
        function: Callable[[float], float],
        basis: str | None = None,
        *,
        is_decreasing: bool = False,
    ) -> Estimate:
        """The estimate under a monotone function; a decreasing one swaps the ends. Unknown stays.

        `is_decreasing` need only be told of a function that may meet a bound: of an interval the
        order shows by itself.
        """
        told = self.basis if basis is None else basis
        if self.low is not None and self.mid is not None and self.high is not None:
            low, high = sorted((function(self.low), function(self.high)))
            return Estimate.known(low, function(self.mid), high, told)
        low_end, high_end = (None if n is None else function(n) for n in (self.low, self.high))
        if is_decreasing:
            low_end, high_end = high_end, low_end
        return Estimate(low_end, None, high_end, basis=told, reason=self.reason)

    def scaled(self, factor: float, basis: str | None = None) -> Estimate:
        """The estimate times an exactly known factor, which is not negative."""
        return self.map(lambda value: value * factor, basis)

    def times(self, other: Estimate, basis: str) -> Estimate:
        """The product of two non-negative estimates; a bound where either has one on that side."""
        return _paired(self, other._ends, lambda one, two: one * two, basis, other.reason)

    def divided_by(self, other: Estimate, basis: str) -> Estimate:
        """The ratio of two non-negative estimates, ends paired for the widest interval.

        A lower bound of the divisor is an upper bound of the ratio, and the other way round.
        Unknown where no end can be told: either is unknown, or the divisor may be zero.
        """
        if other.low is not None and other.low <= 0 and not self.is_unknown:
            return Estimate.unknown(f"the divisor may be zero ({other.basis})", basis)
        inverse = other.high, other.mid, other.low
        return _paired(self, inverse, lambda one, two: one / two, basis, other.reason)

    def capped(self, most: Estimate) -> Estimate:
        """The interval, no end of it above the same end of `most`; a bound or unknown stays."""
        if not (self.is_known and most.is_known):
            return self
        pairs = zip(self._ends, most._ends, strict=True)
        low, mid, high = (min(a, b) for a, b in pairs if a is not None and b is not None)
        return Estimate.known(low, mid, high, self.basis)

    @property
    def _ends(self) -> _Ends:
        return self.low, self.mid, self.high

    def as_dict(self) -> dict[str, Any]:
        """The five keys of the machine interface; null where unknown."""
        return {
            "low": self.low,
            "mid": self.mid,
            "high": self.high,
            "basis": self.basis,
            "reason": self.reason,
        }


def total(parts: Mapping[str, Estimate], basis: str) -> Estimate:
    """The sum of named estimates of what cannot be negative; ends added for the widest interval.

    Where a part has no upper end the sum is "at least" what the parts are at least, a part of which
    nothing is known being at least 0; where one has no lower end but all have an upper one, "at
    most". The reason names each part that is not known. Unknown where no end of the sum can be
    told, and for no parts.
    """
    if not parts:
        return Estimate.unknown("there is nothing to add up", basis)
    if all(part.is_known for part in parts.values()):
        low, mid, high = (
            math.fsum(getattr(part, end) for part in parts.values()) for end in _END_NAMES
        )
        return Estimate.known(low, mid, high, basis)
    reason = _named_reasons(parts)
    lows = [part.low for part in parts.values() if part.low is not None]
    highs = [part.high for part in parts.values() if part.high is not None]
    if len(highs) == len(parts):
        return Estimate.at_most(math.fsum(highs), basis, reason)
    if lows:
        return Estimate.at_least(math.fsum(lows), basis, reason)
    return Estimate.unknown(reason, basis)


def _named_reasons(parts: Mapping[str, Estimate]) -> str:
    """Each reason once, after the names of the parts it holds for."""
    names: dict[str, list[str]] = {}
    for name, part in parts.items():
        if not part.is_known:
            names.setdefault(part.reason, []).append(name)
    return ". ".join(f"{', '.join(which)}: {reason}" for reason, which in names.items())


def _paired(
    one: Estimate,
    other: _Ends,
    function: Callable[[float, float], float],
    basis: str,
    other_reason: str,
) -> Estimate:
    """An estimate and the ends that meet its own under a function: what is known of each end.

    Only one end known of a figure that cannot be negative is a bound.
    """
    low, mid, high = (
        None if a is None or b is None else function(a, b)
        for a, b in zip(one._ends, other, strict=True)
    )
    if low is not None and mid is not None and high is not None:
        return Estimate(low, mid, high, basis=basis)
    # Both ends without a middle cannot be: each of the two is an interval or has one bound.
    return Estimate(low, None, high, basis=basis, reason=one.reason or other_reason)
