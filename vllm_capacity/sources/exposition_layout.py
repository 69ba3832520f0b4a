"""The layout of an exposition: where its values are in the text, and which series they belong to.

Successive scrapes of a server differ only in their values. So one text is parsed in full, which
gives the layout; if a later text differs only after the last space of its lines, the values are
read from there. `prometheus_client` alone decides what a line means: any text that does not match
a layout exactly, or has a value that is not a plain number, is parsed by it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, pairwise

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray
from prometheus_client import Metric as Family

from vllm_capacity.facts.metrics import keeps
from vllm_capacity.sources.otlp import Wire

Floats = NDArray[np.float64]
Labels = tuple[tuple[str, str], ...]


class Scalar(Struct, frozen=True):
    """A sample of a counter, gauge or info: the positions of its value and its creation time."""

    wire: Wire
    labels: Labels
    at: int
    created_at: int | None


class Histogram(Struct, frozen=True):
    """One histogram: the positions of its cumulative buckets (`bounds`, then +Inf) and its sum.

    `bounds` is None if the buckets cannot form a histogram, whatever their values. `twins` are
    pairs of positions of the same bucket, if it occurs more than once. `sum_at` is -1 if there is
    no sum.
    """

    wire: Wire
    labels: Labels
    bounds: tuple[float, ...] | None
    buckets_at: tuple[int, ...]
    sum_at: int
    twins: tuple[tuple[int, int], ...]
    created_at: int | None

    def counts(self, values: Floats) -> list[float] | None:
        """The counts per bucket, the overflow bucket last; None if they form no histogram."""
        if self.bounds is None or any(values[one] != values[other] for one, other in self.twins):
            return None
        cumulative = [float(values[at]) for at in self.buckets_at]
        if not all(0 <= each < math.inf for each in cumulative):  # False for NaN, too
            return None
        # A bucket below its predecessor is raised to it, as Prometheus does.
        raised = list(accumulate(cumulative, max))
        return [raised[0], *(b - a for a, b in pairwise(raised))]


class Lines(Struct, frozen=True):
    """A text without its values: sample lines up to the last space (`heads`), and other lines."""

    length: int
    other_at: tuple[int, ...]
    others: list[str]
    sample_at: tuple[int, ...]
    heads: tuple[str, ...]

    def values(self, lines: list[str]) -> Floats | None:
        """The values of a text that differs from this one only in its values; None otherwise.

        Read as by `prometheus_client`, which, unlike Python, rejects `_` in a number.
        """
        if len(lines) != self.length or [lines[i] for i in self.other_at] != self.others:
            return None
        heads, tails = _cut([lines[i] for i in self.sample_at])
        if heads != self.heads or "_" in "".join(tails):
            return None
        try:
            return np.fromiter(map(float, tails), np.float64, len(tails))
        except ValueError:
            return None


class Layout(Struct, frozen=True):
    """The series of one exposition, by position; `lines` is None if only a parser can read it."""

    scalars: tuple[Scalar, ...]
    histograms: tuple[Histogram, ...]
    lines: Lines | None

    @classmethod
    def of(cls, text: str, families: Sequence[Family]) -> Layout:
        """The layout of a text and the families it was parsed into."""
        places = list(_places(families))
        created = _created_places(places)
        scalars: list[Scalar] = []
        histograms: list[Histogram] = []
        for family, first in places:
            wire = _wire(family)
            if not keeps(wire.exposed):
                continue
            if family.type == "histogram":
                histograms += _histograms(family, wire, first, created)
            elif family.type in ("counter", "gauge", "unknown", "info"):
                scalars += _scalars(family, wire, first, created)
        return cls(tuple(scalars), tuple(histograms), _lines(text, families))

    def values(self, lines: list[str]) -> Floats | None:
        """The values of a text with these lines; None if it has another layout."""
        return self.lines.values(lines) if self.lines else None


def values_of(families: Iterable[Family]) -> Floats:
    """The values of all samples, in the order of their lines."""
    return np.array([_number(s.value) for family in families for s in family.samples], np.float64)


def _number(value: float) -> float:
    try:
        return float(value)
    except OverflowError:  # an integer of hundreds of digits
        return math.inf if value > 0 else -math.inf


def _lines(text: str, families: Sequence[Family]) -> Lines | None:
    """The lines of a text; None unless each value follows a space and ends its line."""
    lines = text.split("\n")
    sample_at = tuple(i for i, line in enumerate(lines) if line.strip() and not _is_comment(line))
    samples = [sample for family in families for sample in family.samples]
    if len(samples) != len(sample_at) or any(s.timestamp is not None for s in samples):
        return None
    found = set(sample_at)
    other_at = tuple(i for i in range(len(lines)) if i not in found)
    heads, tails = _cut([lines[i] for i in sample_at])
    if not all(map(_is_number, tails)):
        return None
    return Lines(len(lines), other_at, [lines[i] for i in other_at], sample_at, heads)


def _is_comment(line: str) -> bool:
    return line.strip().startswith("#")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _cut(lines: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The parts before and after the last space of each line."""
    if not lines:
        return (), ()
    heads, _, tails = zip(*[line.rpartition(" ") for line in lines], strict=True)
    return heads, tails


def _places(families: Iterable[Family]) -> Iterator[tuple[Family, int]]:
    """The families, each with the position of its first value."""
    first = 0
    for family in families:
        yield family, first
        first += len(family.samples)


def _wire(family: Family) -> Wire:
    # The parser removes `_total` from a counter's family name; at /metrics it is present.
    is_bare = family.type == "counter" and not family.name.endswith("_total")
    exposed = f"{family.name}_total" if is_bare else str(family.name)
    return Wire.of(exposed, "" if family.type == "unknown" else str(family.type))


def _frozen(labels: Mapping[str, str]) -> Labels:
    return tuple(sorted((k, v) for k, v in labels.items() if k != "le"))


def _created_places(places: Iterable[tuple[Family, int]]) -> dict[tuple[str, Labels], int]:
    """The positions of creation times of counters and histograms, by exposed name and labels.

    Classic text declares these times as separate gauge families, `X_created`.
    """
    return {
        (suffixed, _frozen(sample.labels)): at
        for family, first in places
        if family.name.endswith("_created")
        for at, sample in enumerate(family.samples, first)
        for bare in [family.name.removesuffix("_created")]
        for suffixed in (bare, f"{bare}_total")
    }


def _scalars(
    family: Family, wire: Wire, first: int, created: Mapping[tuple[str, Labels], int]
) -> Iterator[Scalar]:
    for at, sample in enumerate(family.samples, first):
        if not sample.name.endswith("_created"):
            born_at = created.get((wire.exposed, _frozen(sample.labels)))
            yield Scalar(wire, tuple(sample.labels.items()), at, born_at)


def _histograms(
    family: Family, wire: Wire, first: int, created: Mapping[tuple[str, Labels], int]
) -> Iterator[Histogram]:
    buckets: dict[Labels, dict[float, list[int]]] = {}
    sums: dict[Labels, int] = {}
    counts: dict[Labels, int] = {}
    for at, sample in enumerate(family.samples, first):
        labels = _frozen(sample.labels)
        if sample.name.endswith("_bucket"):
            edge = _edge(sample.labels.get("le"))
            buckets.setdefault(labels, {}).setdefault(edge, []).append(at)
        elif sample.name.endswith("_sum"):
            sums[labels] = at
        elif sample.name.endswith("_count"):
            counts[labels] = at
    for labels, edges in buckets.items():
        if labels in counts:
            edges = {math.inf: [counts[labels]], **edges}
        ordered = sorted(edges)
        is_whole = math.inf in edges and all(map(math.isfinite, edges.keys() - {math.inf}))
        yield Histogram(
            wire,
            labels,
            bounds=tuple(ordered[:-1]) if is_whole else None,
            buckets_at=tuple(edges[edge][0] for edge in ordered),
            sum_at=sums.get(labels, -1),
            # A bucket that occurs twice with different counts is unusable.
            twins=tuple((edge[0], other) for edge in edges.values() for other in edge[1:]),
            created_at=created.get((wire.exposed, labels)),
        )


def _edge(text: str | None) -> float:
    try:
        return float(text) if text is not None else math.nan
    except ValueError:
        return math.nan
