"""How observations most likely lie inside a histogram's buckets, where a straight line misleads.

In vLLM's 10 to 20 s bucket of time to first token, a straight line said 17 s of a p95 that was
11.8 s. A histogram knows more than one bucket's count. In words:

1. The cumulative counts at the edges are exact. A monotone cubic through them (Fritsch and Butland
   1984, as in SciPy's PCHIP) spreads each bucket's observations as its neighbors suggest: towards
   the fuller neighbor, away from an empty one.
2. The sum is known too. If that sum is possible at all (between the least and the most the buckets
   allow: vLLM #49135 poisons sums), the density in every bucket is multiplied by one and the same
   power of x, so that the mean comes out right and every bucket keeps its count.
3. Quantiles are read off, inside their bucket.

Of the interpolants and tilts tried, this one was best on the load steps of a recorded sweep; other
captures confirm it (tests/figures/test_quantile_estimate.py). Why not SciPy for step 1: importing
it costs half a second, half of what a whole `figures` call may take.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

_CELLS = 64  # how finely a bucket is divided: more changes quantiles by less than a thousandth
_STEEPEST = 1e5  # the power at which a tilted bucket is a point mass, however narrow it is
_HALVINGS = 36  # leaves the power known to a few millionths
_TRACE = 1e-12  # the share of a bucket that every cell has, so that a tilt can reach it


Floats = npt.NDArray[np.float64]


@lru_cache(maxsize=64)
def distribution(
    edges: tuple[float, ...], counts: tuple[float, ...], total: float | None
) -> tuple[Floats, Floats]:
    """Values, and how many observations lie at or under each, along the occupied finite buckets.

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
    """The borders of the cells that divide the first `buckets` buckets.

    Even, except in a bucket from 0, which spans all magnitudes: there they crowd towards 0.
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
    """The slope at an end knot: three-point formula, kept from falling and from overshooting."""
    slope = ((2 * width + next_width) * secant - width * next_secant) / (width + next_width)
    return min(max(slope, 0.0), 3 * secant)


def _tilted(masses: Floats, xs: Floats, inside: Floats, total: float) -> Floats:
    """The masses times the power of x that gives them the sum `total`; every row keeps its own sum.

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
