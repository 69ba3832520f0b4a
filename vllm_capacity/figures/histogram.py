"""Exact results (quantile bounds, shares, merging) and best estimates from a histogram.

Pure functions over `edges` (finite upper bounds, ascending) and `counts` (per bucket, not
cumulative, one longer than `edges`: the last is the overflow bucket). Counts may be fractional.

The estimate is of how observations are distributed inside buckets, where linear interpolation
misleads: in vLLM's 10 to 20 s bucket of TTFT, interpolation gave 17 s for a p95 of 11.8 s. But a
histogram contains more information than one bucket's count:

1. The cumulative counts at the edges are exact. A monotone cubic through them (Fritsch and Butland
   1984, as in SciPy's PCHIP) distributes each bucket's observations as its neighbors suggest:
   towards the fuller neighbor, away from an empty one.
2. The sum is known, too. If it is possible (between the minimum and the maximum that the buckets
   allow: vLLM #49135 corrupts sums), the density in every bucket is multiplied by the same power of
   x, chosen so that the mean is right; every bucket keeps its count.
3. Quantiles are read from this density, inside their bucket.

Of the interpolants and tilts tried, this one was best on the load steps of a recorded sweep; other
captures confirm it (tests/figures/test_quantile_estimate.py). Step 1 does not use SciPy: importing
it takes half a second, which is half of the limit for a whole `figures` call.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate, pairwise

import numpy as np
import numpy.typing as npt

from vllm_capacity.errors import InputError

_CELLS = 64  # cells per bucket: more of them change quantiles by less than a thousandth
_STEEPEST = 1e5  # the power at which even a narrow tilted bucket is a point mass
_HALVINGS = 36  # gives the power to within a few millionths
_TRACE = 1e-12  # minimum share of a bucket in each cell, so that a tilt can reach it


Floats = npt.NDArray[np.float64]


@lru_cache(maxsize=64)
def distribution(
    edges: tuple[float, ...], counts: tuple[float, ...], total: float | None
) -> tuple[Floats, Floats]:
    """Values, and how many observations lie at or below each, over the occupied finite buckets.

    A first bucket that ends at or below 0 has no width: its observations sit on its edge.
    """
    at_floor = counts[0] if edges[0] <= 0 else 0.0
    knots = np.array(edges if edges[0] <= 0 else (0.0, *edges))
    inside = np.array(counts[1:-1] if edges[0] <= 0 else counts[:-1], dtype=np.float64)
    occupied = int(np.flatnonzero(inside)[-1]) + 1
    xs = _cells(knots, occupied)
    cubic = _monotone_cubic(knots, np.concatenate(([0.0], np.cumsum(inside))), xs)
    masses = np.maximum(np.diff(cubic), 0.0).reshape(occupied, _CELLS)
    if total is not None and not counts[-1] and edges[0] >= 0:
        masses = _tilted(masses, xs, inside[:occupied], total)
    return xs, at_floor + np.concatenate(([0.0], np.cumsum(masses)))


def _cells(knots: Floats, buckets: int) -> Floats:
    """The boundaries of the cells that divide the first `buckets` buckets.

    Evenly spaced, except in a bucket from 0, which spans all magnitudes: there they are denser
    towards 0.
    """
    even = np.arange(_CELLS) / _CELLS
    widths = np.diff(knots[: buckets + 1])
    borders = knots[:buckets, None] + widths[:, None] * even
    if knots[0] == 0:
        borders[0] = widths[0] * even**3
    return np.append(borders.ravel(), knots[buckets])


def _monotone_cubic(knots: Floats, heights: Floats, xs: Floats) -> Floats:
    """The piecewise cubic through the points, without overshoot (Fritsch and Butland), at `xs`."""
    widths, secants = np.diff(knots), np.diff(heights) / np.diff(knots)
    slopes = _slopes(widths, secants)
    piece = np.clip(np.searchsorted(knots, xs, side="right") - 1, 0, len(widths) - 1)
    h = widths[piece]
    t = (xs - knots[piece]) / h
    return (
        heights[piece] * (1 + 2 * t) * (1 - t) ** 2
        + heights[piece + 1] * t**2 * (3 - 2 * t)
        + h * slopes[piece] * t * (1 - t) ** 2
        - h * slopes[piece + 1] * t**2 * (1 - t)
    )


def _slopes(widths: Floats, secants: Floats) -> Floats:
    """The cubic's slope at every knot: weighted harmonic means of the neighboring secants."""
    if len(widths) == 1:
        return np.repeat(secants, 2)
    left, right = 2 * widths[1:] + widths[:-1], widths[1:] + 2 * widths[:-1]
    before, after = secants[:-1], secants[1:]
    rises = (before > 0) & (after > 0)
    weighted = left / np.where(rises, before, 1.0) + right / np.where(rises, after, 1.0)
    inner = np.where(rises, (left + right) / weighted, 0.0)
    first = _end_slope(widths[0], widths[1], secants[0], secants[1])
    last = _end_slope(widths[-1], widths[-2], secants[-1], secants[-2])
    return np.concatenate(([first], inner, [last]))


def _end_slope(width: float, next_width: float, secant: float, next_secant: float) -> float:
    """The slope at an end knot: three-point formula, limited so as not to fall or overshoot."""
    slope = ((2 * width + next_width) * secant - width * next_secant) / (width + next_width)
    return min(max(slope, 0.0), 3 * secant)


def _tilted(masses: Floats, xs: Floats, inside: Floats, total: float) -> Floats:
    """The masses times the power of x that makes their sum `total`; every row keeps its mass.

    Unchanged if no distribution in these buckets has that sum.
    """
    borders = xs[:-1].reshape(masses.shape)
    highest = np.append(borders[1:, 0], xs[-1])
    if not inside @ borders[:, 0] <= total <= inside @ highest:
        return masses
    middles = ((xs[1:] + xs[:-1]) / 2).reshape(masses.shape)
    logs = np.log(middles)
    from_top, from_bottom = logs - logs[:, -1:], logs - logs[:, :1]
    reachable = np.maximum(masses, _TRACE * inside[:, None])

    def at(power: float) -> Floats:
        weighted = reachable * np.exp(power * (from_top if power > 0 else from_bottom))
        sums = weighted.sum(axis=1, keepdims=True)
        return weighted * (inside[:, None] / np.where(sums > 0, sums, 1.0))

    low, high = -_STEEPEST, _STEEPEST
    for _ in range(_HALVINGS):
        power = (low + high) / 2
        if (at(power) * middles).sum() < total:
            low = power
        else:
            high = power
    return at((low + high) / 2)


def bucket_quantile(edges: Sequence[float], counts: Sequence[float], q: float) -> float | None:
    """The `q` quantile of a histogram, in the unit of `edges`.

    Interpolates linearly inside a bucket, as PromQL does. Unlike PromQL, None if the quantile lies
    in the overflow bucket, where it is only known to exceed `edges[-1]`. Also None if nothing was
    observed. InputError if `q` is outside 0..1 or the input is not a histogram.
    """
    _require_quantile(q)
    _require_histogram(edges, counts)
    rank, below, lower = q * sum(counts), 0.0, _floor(edges)
    for upper, count in zip(edges, counts, strict=False):
        if count and below + count >= rank:
            # Rounding must not exceed the bound: 0.1 × 3 ÷ 3 does.
            return min(upper, lower + (upper - lower) * (rank - below) / count)
        below, lower = below + count, upper
    return None


def bucket_quantiles(edges: Sequence[float], counts: Floats, q: float) -> Floats:
    """`bucket_quantile` of many histograms on the same edges: one per row of `counts`.

    NaN instead of None.
    """
    _require_quantile(q)
    for row in counts[~(np.isfinite(counts) & (counts >= 0)).all(axis=1)][:1]:
        _require_histogram(edges, row.tolist())
    if not edges or not len(counts):
        return np.full(len(counts), math.nan)
    finite, uppers = counts[:, :-1], np.asarray(edges)
    lowers = np.append(_floor(edges), uppers[:-1])
    at_or_under = np.cumsum(finite, axis=1)
    rank = q * (at_or_under[:, -1] + counts[:, -1])
    is_there = (finite > 0) & (at_or_under >= rank[:, None])
    bucket, row = is_there.argmax(axis=1), np.arange(len(counts))
    below = np.where(bucket > 0, at_or_under[row, bucket - 1], 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = (uppers - lowers)[bucket] * (rank - below) / finite[row, bucket]
    value = np.minimum(uppers[bucket], lowers[bucket] + share)
    return np.where(is_there.any(axis=1), value, math.nan)


def quantile_bounds(
    edges: Sequence[float], counts: Sequence[float], q: float
) -> tuple[float | None, float | None]:
    """The edges of the bucket that contains the `q` quantile: the true value lies between them.

    The first bucket begins at 0, or at its own edge if that is below 0. In the overflow bucket the
    upper bound is None; if nothing was observed, both are.
    """
    _require_quantile(q)
    _require_histogram(edges, counts)
    total = sum(counts)
    if not total or not edges:
        return None, None
    rank, below, lower = q * total, 0.0, _floor(edges)
    for upper, count in zip(edges, counts, strict=False):
        if count and below + count >= rank:
            return lower, upper
        below, lower = below + count, upper
    return edges[-1], None


def quantile_estimate(
    edges: Sequence[float], counts: Sequence[float], total: float | None, q: float
) -> float | None:
    """The best estimate of the `q` quantile, within its bounds, in the unit of `edges`.

    `total` is the sum of all observations, None if unknown. It is ignored if the buckets rule it
    out, or if the overflow bucket, whose values may be anything, has observations. None if the
    quantile lies in the overflow bucket or nothing was observed. The method: `distribution`.
    """
    lower, upper = quantile_bounds(edges, counts, q)
    if lower is None or upper is None:
        return None
    if lower == upper:
        return lower
    known = None if total is None or not math.isfinite(total) else float(total)
    xs, below = distribution(tuple(edges), tuple(counts), known)
    return min(max(float(np.interp(q * sum(counts), below, xs)), lower), upper)


def attainment(
    edges: Sequence[float], counts: Sequence[float], target: float
) -> tuple[float | None, float | None]:
    """The minimum and the maximum share of observations at or below `target`, 0..1.

    Equal at an edge, where the share is exact; between two edges, the bucket's observations may lie
    on either side. Observations are assumed not to be negative. None, None if nothing was observed.
    """
    _require_histogram(edges, counts)
    if math.isnan(target):
        raise InputError("A target must be a number, not NaN.")
    total = sum(counts)
    if not total:
        return None, None
    below = [0.0, *accumulate(counts)]
    bounds = [_floor(edges), *edges, math.inf]
    for (lower, upper), (at_lower, at_upper) in zip(pairwise(bounds), pairwise(below), strict=True):
        if target < lower or (target == lower > bounds[0]):
            return at_lower / total, at_lower / total
        if target < upper:
            return at_lower / total, at_upper / total
    return 1.0, 1.0


def fraction(
    edges: Sequence[float], counts: Sequence[float], lower: float, upper: float
) -> float | None:
    """The share of observations between `lower` and `upper`, 0..1, as PromQL's histogram_fraction.

    Interpolates linearly inside finite buckets; observations in the overflow bucket count as above
    any finite `upper`. 0 if `lower` is not below `upper`; None if nothing was observed.
    """
    _require_histogram(edges, counts)
    if math.isnan(lower) or math.isnan(upper):
        raise InputError(f"A range must have two numbers as ends, not {lower} and {upper}.")
    total = sum(counts)
    if not total:
        return None
    if lower >= upper:
        return 0.0
    return (_at_or_under(edges, counts, upper) - _at_or_under(edges, counts, lower)) / total


def merge(
    histograms: Sequence[tuple[Sequence[float], Sequence[float]]],
) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Several histograms as one, on the edges that all of them have: exact, but coarser.

    The count at or below a shared edge is exact in each, so their sum is too. None if no edge is
    shared, or there is no histogram.
    """
    for edges, counts in histograms:
        _require_histogram(edges, counts)
    if not histograms:
        return None
    common = sorted(set[float](histograms[0][0]).intersection(*(edges for edges, _ in histograms)))
    if not common:
        return None
    at_or_under = [0.0] * (len(common) + 1)
    for edges, counts in histograms:
        below = dict(zip([*edges, math.inf], accumulate(counts), strict=True))
        columns = zip(at_or_under, [*common, math.inf], strict=True)
        at_or_under = [so_far + below[edge] for so_far, edge in columns]
    counts_between = [high - low for low, high in pairwise([0.0, *at_or_under])]
    return tuple(common), tuple(counts_between)


def _require_quantile(q: float) -> None:
    if not 0 <= q <= 1:
        raise InputError(f"A quantile must lie between 0 and 1, not {q}; p95 is 0.95.")


def _require_histogram(edges: Sequence[float], counts: Sequence[float]) -> None:
    if len(counts) != len(edges) + 1:
        raise InputError(
            f"{len(edges)} edges need {len(edges) + 1} counts, the last for what lies above; "
            f"there are {len(counts)}."
        )
    if not math.isfinite(sum(counts)) or min(counts) < 0:
        raise InputError(f"Counts per bucket must be finite and not negative: {list(counts)}.")
    if not _is_ascending(tuple(edges)):
        raise InputError(f"Edges must be finite and ascend: {list(edges)}.")


@lru_cache(maxsize=1024)  # a window has few sets of edges and very many histograms
def _is_ascending(edges: tuple[float, ...]) -> bool:
    return all(map(math.isfinite, edges)) and all(a < b for a, b in pairwise(edges))


def _floor(edges: Sequence[float]) -> float:
    """Where the first bucket begins: 0, or its own edge if that is below 0."""
    return min([0.0, *edges[:1]])


def _at_or_under(edges: Sequence[float], counts: Sequence[float], value: float) -> float:
    """How many observations lie at or below `value`, interpolated inside finite buckets."""
    if value == math.inf:
        return sum(counts)
    if value == -math.inf:
        return 0.0
    below, lower = 0.0, _floor(edges)
    for upper, count in zip(edges, counts, strict=False):
        if value < upper:
            # A first bucket that ends at or below 0 has no lower edge to interpolate from.
            share = max(value - lower, 0.0) / (upper - lower) if upper > lower else 1.0
            return below + count * share
        below, lower = below + count, upper
    return below
