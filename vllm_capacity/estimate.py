"""Uncertainty: a figure that affects money is an interval, a bound, or unknown with a reason."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import StrEnum
from functools import cache

from msgspec.structs import force_setattr, replace

from vllm_capacity.errors import InputError
from vllm_capacity.record import Record

_Ends = tuple[float | None, float | None, float | None]
_END_NAMES = ("low", "mid", "high")
CONFIDENCE = 0.9
_MAX_NAMES = 3
_MAX_REASONS = 2
_NUMBER = re.compile(r"\d[\d,.]*")


class Kind(StrEnum):
    """How a figure was obtained, most certain first; a result is as certain as its worst part."""

    COUNTED = "counted"
    """Exact: counters and clocks."""
    GIVEN = "given"
    """Given by the user: a price, a demand, a target."""
    BOUNDED = "bounded"
    """Hard bounds, or one of them: the true value always lies within."""
    ESTIMATED = "estimated"
    """From measurements, with an interval that contains the true value with that confidence."""
    ASSUMED = "assumed"
    """By a rule or a list that no measurement here confirms."""
    EXTRAPOLATED = "extrapolated"
    """Beyond what was measured: another load, another GPU, another time."""


_ORDER = {kind: place for place, kind in enumerate(Kind)}


class Estimate(Record, frozen=True):
    """An interval `low` ≤ `mid` ≤ `high`, one bound alone, or unknown.

    *Known*: three numbers with their `basis`. *Bounded*: only `low` ("at least") or only `high`
    ("at most"), with the basis of the bound and the `reason` why only a bound is known. *Unknown*:
    no number, and a reason. All three have one type, so that no reason and no bound gets lost on
    the way to the page. Build it with `known`, `between`, `exact`, `at_least`, `at_most` or
    `unknown`.

    `basis` lists its sources. `confidence` is how often such an interval contains the true value
    (0.9), None if its ends are hard bounds or there is no uncertainty. `kind` is None if nothing is
    known. `unit` is for display ("USD", "s", "/s"), empty for a pure number.
    """

    low: float | None
    mid: float | None
    high: float | None
    basis: tuple[str, ...] = ()
    reason: str = ""
    kind: Kind | None = None
    confidence: float | None = None
    unit: str = ""

    def __post_init__(self) -> None:
        numbers = [n for n in (self.low, self.mid, self.high) if n is not None]
        if not all(math.isfinite(n) for n in numbers):
            raise ValueError(f"an estimate's numbers are finite: {numbers}")
        if self.mid is not None and len(numbers) < 3:
            raise ValueError(f"an estimate with a middle has both ends: {numbers}")
        if self.mid is None and (len(numbers) > 1 or not self.reason):
            raise ValueError(f"an estimate without a middle has a reason and one bound: {numbers}")
        if numbers != sorted(numbers):
            raise ValueError(f"an estimate is ordered low <= mid <= high: {numbers}")

    @classmethod
    def known(
        cls,
        low: float,
        mid: float,
        high: float,
        *basis: str,
        kind: Kind = Kind.ESTIMATED,
        confidence: float | None = CONFIDENCE,
    ) -> Estimate:
        """An interval with 90 % confidence by default; ValueError if the ends are not in order."""
        return cls(float(low), float(mid), float(high), basis, "", kind, confidence)

    @classmethod
    def between(cls, low: float, mid: float, high: float, *basis: str) -> Estimate:
        """Hard bounds: the true value certainly lies between `low` and `high`."""
        return cls.known(low, mid, high, *basis, kind=Kind.BOUNDED, confidence=None)

    @classmethod
    def exact(cls, value: float, *basis: str, kind: Kind = Kind.COUNTED) -> Estimate:
        """A figure counted or given, not estimated: low = mid = high."""
        return cls.known(value, value, value, *basis, kind=kind, confidence=None)

    @classmethod
    def at_least(cls, low: float, *basis: str, reason: str) -> Estimate:
        """A lower bound and its basis; `reason`: why no more than that is known."""
        return cls(float(low), None, None, basis, reason, Kind.BOUNDED)

    @classmethod
    def at_most(cls, high: float, *basis: str, reason: str) -> Estimate:
        """An upper bound and its basis; `reason`: why no more than that is known."""
        return cls(None, None, float(high), basis, reason, Kind.BOUNDED)

    @classmethod
    def unknown(cls, reason: str, *basis: str) -> Estimate:
        """No figure, and why."""
        return cls(None, None, None, basis, reason)

    @property
    def is_known(self) -> bool:
        """Whether there is an interval."""
        return self.mid is not None

    @property
    def is_bound(self) -> bool:
        """Whether there is only one bound."""
        return self.mid is None and not self.is_unknown

    @property
    def is_unknown(self) -> bool:
        """Whether there is no number at all."""
        return self.low is None and self.high is None

    @property
    def sources(self) -> str:
        """Its basis in one line; empty if nothing is recorded."""
        return "; ".join(self.basis)

    def map(
        self, function: Callable[[float], float], *basis: str, is_decreasing: bool = False
    ) -> Estimate:
        """The estimate under a monotone function; a decreasing one swaps ends. Unknown is kept.

        `basis` are further sources that the function uses. `is_decreasing` is only needed for
        functions that may be given a bound: for an interval, the order of the results shows it.
        """
        sources = _merged(self.basis, basis)
        if self.low is not None and self.mid is not None and self.high is not None:
            low, high = sorted((function(self.low), function(self.high)))
            ends = (float(low), float(function(self.mid)), float(high))
            return Estimate(*ends, sources, "", self.kind, self.confidence)
        low_end, high_end = (None if n is None else function(n) for n in (self.low, self.high))
        if is_decreasing:
            low_end, high_end = high_end, low_end
        return Estimate(low_end, None, high_end, sources, self.reason, self.kind, self.confidence)

    def scaled(self, factor: float, *basis: str) -> Estimate:
        """The estimate times an exactly known factor, which is not negative."""
        return self.map(lambda value: value * factor, *basis)

    def inverse(self, *basis: str) -> Estimate:
        """1 ÷ a non-negative estimate; unknown if it may be zero.

        An upper bound becomes a lower one. The inverse of a lower bound of 0 is unknown.
        """
        return Estimate.exact(1.0).divided_by(self, *basis)

    def plus(self, other: Estimate) -> Estimate:
        """The sum with another non-negative estimate (see `total`), in their unit.

        InputError if the units differ; a pure number takes the unit of the other.
        """
        units = {each.unit for each in (self, other)} - {""}
        if len(units) > 1:
            raise InputError(f"{self!s} and {other!s} do not add up: their units differ.")
        found = total({"one part": self, "another": other})
        return replace(found, unit=next(iter(units), ""))

    def times(self, other: Estimate, *basis: str) -> Estimate:
        """The product of two non-negative estimates, with the ends that both of them have."""
        return _paired(self, other, other._ends, lambda one, two: one * two, basis)

    def divided_by(self, other: Estimate, *basis: str) -> Estimate:
        """The ratio of two non-negative estimates, ends paired for the widest interval.

        A lower bound on the divisor gives an upper bound on the ratio, and vice versa. Unknown if
        no end is known: either is unknown, or the divisor may be zero.
        """
        sources = _merged(self.basis, other.basis, basis)
        if other.low is not None and other.low <= 0 and not self.is_unknown:
            return Estimate.unknown(f"the divisor may be zero ({other.sources})", *sources)
        inverse = other.high, other.mid, other.low
        return _paired(self, other, inverse, lambda one, two: one / two, basis)

    def capped(self, most: Estimate) -> Estimate:
        """The interval, with each end capped at that of `most`; bounds and unknowns are kept."""
        if not (self.is_known and most.is_known):
            return self
        pairs = zip(self._ends, most._ends, strict=True)
        low, mid, high = (min(a, b) for a, b in pairs if a is not None and b is not None)
        return replace(self, low=low, mid=mid, high=high)

    @property
    def _ends(self) -> _Ends:
        return self.low, self.mid, self.high

    def __str__(self) -> str:
        """The figure in a line: `298 tokens/s (288 to 308, 90 %)`, `at least 50`, or why not."""
        if self.is_unknown:
            return f"unknown: {self.reason}"
        if self.mid is None:
            side, end = ("at most", self.high) if self.low is None else ("at least", self.low)
            return f"{side} {self._written(end)}{self._per}"
        if self.low == self.high:
            return f"{self._written(self.mid)}{self._per}"
        sure = "" if self.confidence is None else f", {100 * self.confidence:g} %"
        ends = f"{self._written(self.low)} to {self._written(self.high)}"
        return f"{self._written(self.mid)}{self._per} ({ends}{sure})"

    def __repr__(self) -> str:
        """The figure with its kind and its sources, or why only a bound is known."""
        if self.is_unknown:
            return str(self)
        rest = f". Only a bound: {self.reason}" if self.is_bound else ""
        return f"{self} [{self.kind}] {self.sources}{rest}"

    @property
    def _per(self) -> str:
        """The unit as written after the number; a dollar sign is written before it."""
        unit = self.unit.removeprefix("USD").strip()
        return f" {unit}" if unit else ""

    def _written(self, value: float | None) -> str:
        number = f"{value:,.0f}" if abs(value or 0.0) >= 1000 else f"{value:.3g}"
        return f"${number}" if self.unit.startswith("USD") else number


_UNITS = (
    (r"tokens_per_usd", "tokens per USD"),
    (r"usd_per_request.*", "USD per request"),
    (r"usd_per_million_.*", "USD per million tokens"),
    (r"usd_per_gpu_hour", "USD per GPU-hour"),
    (r"usd_per_day", "USD per day"),
    (r"usd_per_month", "USD per month"),
    (r".*_usd", "USD"),
    (r".*output_tokens_per_second", "output tokens/s"),
    (r".*requests_per_second", "requests/s"),
    (r".*running_requests", "running requests"),
    (r"rejected|abandoned", "requests"),
    (r".*replicas|gpus", ""),
)


class Figures(Record, frozen=True):
    """A result with estimates: each gets the unit that its field name ends with."""

    def __post_init__(self) -> None:
        """Set units, so that each estimate can be displayed on its own."""
        for name in filter(unit_of, self.__struct_fields__):
            value = getattr(self, name)
            if isinstance(value, Estimate) and not value.unit:
                force_setattr(self, name, replace(value, unit=unit_of(name)))


@cache
def unit_of(name: str) -> str:
    """The display unit of a figure, by its name; empty for a pure number."""
    return next((unit for pattern, unit in _UNITS if re.fullmatch(pattern, name)), "")


def total(parts: Mapping[str, Estimate], *basis: str, lacking: str = "") -> Estimate:
    """The sum of named non-negative estimates; ends are added for the widest interval.

    If not all parts are known, the sum is an upper bound if all have an upper end, else a lower
    bound, in which parts without a lower end count as 0. The reason gives the number of parts that
    are not known, in the words `lacking` ("no price of {}", with "2 of 8" for the braces), names
    some of them, and gives similar reasons of parts only once. Unknown if no end of the sum is
    known, and if there are no parts. `basis` comes before the sources of the parts.
    """
    if not parts:
        return Estimate.unknown("there is nothing to add up", *basis)
    sources = _merged(basis, *(part.basis for part in parts.values()))
    kind = _least_sure(part.kind for part in parts.values())
    confidence = _lowest(part.confidence for part in parts.values())
    if all(part.is_known for part in parts.values()):
        low, mid, high = (
            math.fsum(getattr(part, end) for part in parts.values()) for end in _END_NAMES
        )
        return Estimate(low, mid, high, sources, "", kind, confidence)
    reason = _why_lacking(parts, lacking)
    lows = [part.low for part in parts.values() if part.low is not None]
    highs = [part.high for part in parts.values() if part.high is not None]
    if len(highs) == len(parts):
        return Estimate(None, None, math.fsum(highs), sources, reason, kind, confidence)
    if lows:
        return Estimate(math.fsum(lows), None, None, sources, reason, kind, confidence)
    return Estimate.unknown(reason, *sources)


def _merged(*lists: Iterable[str]) -> tuple[str, ...]:
    """The sources in several lists, in order and without duplicates."""
    return tuple(dict.fromkeys(source for sources in lists for source in sources if source))


def _least_sure(kinds: Iterable[Kind | None]) -> Kind | None:
    return max((kind for kind in kinds if kind is not None), key=_ORDER.__getitem__, default=None)


def _lowest(confidences: Iterable[float | None]) -> float | None:
    return min((each for each in confidences if each is not None), default=None)


def listed(names: Sequence[str], most: int = _MAX_NAMES) -> str:
    """The first names, and how many more there are: `gpu-0, gpu-1, gpu-2 and 5 more`."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def _why_lacking(parts: Mapping[str, Estimate], words: str) -> str:
    """How many and which parts are not known, and why.

    If no part is known and all have the same reason, only that reason. Reasons that differ only in
    their numbers are given once, with the numbers of the part with the highest lower bound; of
    different reasons, the two most frequent are given.
    """
    lacking = {name: part for name, part in parts.items() if not part.is_known}
    reasons = {part.reason for part in lacking.values()}
    if len(reasons) == 1 and len(lacking) == len(parts):
        return next(iter(reasons))
    alike: dict[str, list[str]] = {}
    for name, part in lacking.items():
        alike.setdefault(_NUMBER.sub("#", part.reason), []).append(name)
    share = f"{len(lacking)} of {len(parts)}"
    if len(alike) > 1:
        by_reason = _by_reason(lacking, alike.values())
        return f"{words.format(share)}: {by_reason}" if words else by_reason
    nearest = max(lacking, key=lambda name: lacking[name].low or 0.0)
    names = listed(list(lacking))
    if words:
        names = f"{words.format(share)} ({names})"
    elif len(lacking) > 1:
        names = f"{names} ({share})"
    whose = "" if len(reasons) == 1 else f" ({nearest})"
    return f"{names}: {lacking[nearest].reason}{whose}"


def _by_reason(lacking: Mapping[str, Estimate], groups: Iterable[list[str]]) -> str:
    """The reasons of the largest groups, each after one part with it and the number of others."""
    largest = sorted(groups, key=len, reverse=True)
    said = []
    for names in largest[:_MAX_REASONS]:
        nearest = max(names, key=lambda name: lacking[name].low or 0.0)
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        said.append(f"{nearest}{more}: {lacking[nearest].reason}")
    others = len(lacking) - sum(map(len, largest[:_MAX_REASONS]))
    return "; ".join([*said, *([f"{others} more for other reasons"] if others else [])])


def _paired(
    one: Estimate,
    other: Estimate,
    other_ends: _Ends,
    function: Callable[[float, float], float],
    basis: tuple[str, ...],
) -> Estimate:
    """A function of two estimates, end by end; `other_ends` are paired with the ends of `one`.

    If only one end of the result is known, it is a bound.
    """
    low, mid, high = (
        None if a is None or b is None else function(a, b)
        for a, b in zip(one._ends, other_ends, strict=True)
    )
    sources = _merged(one.basis, other.basis, basis)
    kind, confidence = (
        _least_sure((one.kind, other.kind)),
        _lowest((one.confidence, other.confidence)),
    )
    if low is not None and mid is not None and high is not None:
        return Estimate(low, mid, high, sources, "", kind, confidence)
    if low is None and high is None:
        return Estimate.unknown(one.reason or other.reason, *sources)
    # Not both ends without a middle: each of the two is an interval or has only one bound.
    return Estimate(low, None, high, sources, one.reason or other.reason, kind, confidence)
