"""Columns of steps as arrays, and the arithmetic that every verdict on them shares.

Values that were not observed are nan. Sums add values in time order: numpy's own `sum` adds them in
pairs, so the last digits of a result would depend on how many steps were summed at once.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]
Codes = NDArray[np.int8]
Mask = NDArray[np.bool_]
Instants = NDArray[np.datetime64]


def instant(value: np.datetime64) -> datetime:
    """A UTC instant as an aware datetime."""
    found: datetime = value.astype("datetime64[us]").item()
    return found.replace(tzinfo=UTC)


def is_seen(values: Floats) -> Mask:
    """Which values were observed."""
    return ~np.isnan(values)


def or_zero(values: Floats) -> Floats:
    """The values, with 0 for those not observed."""
    return np.where(np.isnan(values), 0.0, values)


def is_nonzero(values: Floats) -> Mask:
    """Which values were observed and are not 0."""
    return np.asarray(is_seen(values) & (values != 0))


def summed(values: Floats) -> float:
    """The sum of the values in their order; 0 for none."""
    return float(np.cumsum(values)[-1]) if len(values) else 0.0


def total(rate: Floats, seconds: Floats) -> float:
    """The total of a rate over the steps in which it was observed."""
    return summed(or_zero(rate) * seconds)


def time_mean(values: Floats, seconds: Floats) -> float | None:
    """The mean over time of the observed values; None without any."""
    observed = summed(np.where(np.isnan(values), 0.0, seconds))
    return total(values, seconds) / observed if observed else None


def highest(values: Floats, *, default: float = 0.0) -> float:
    """The highest observed value, at least the default."""
    return float(np.fmax.reduce(values, initial=default))


def upper_median(values: Floats) -> float:
    """The upper median; nan for no values."""
    middle = len(values) // 2
    return float(np.partition(values, middle)[middle]) if len(values) else math.nan


def sums_around(values: Floats | Indices, reach: int) -> Floats:
    """The sum of each value and of the `reach` steps before and after it, in time order."""
    padded = np.pad(values, reach)
    shifts = range(2 * reach + 1)
    return np.asarray(sum(padded[shift : shift + len(values)] for shift in shifts))


def group_sums(values: Floats | Indices, groups: Indices | Codes, count: int = 0) -> Floats:
    """The sum of each group, added in time order; at least `count` groups.

    `groups` has the group number of each value.
    """
    return np.bincount(groups, weights=values, minlength=count).astype(np.float64, copy=False)


def numbered(values: Floats) -> tuple[Indices, Indices, Indices]:
    """The distinct values in order, the number of each value among them, and how often each occurs.

    `values` are whole and lie close to each other, such as the numbers of bands: they are counted,
    not sorted.
    """
    whole = values.astype(np.int64)
    lowest = whole.min(initial=0)
    counts = np.bincount(whole - lowest)
    present = np.flatnonzero(counts)
    numbers = np.cumsum(counts > 0) - 1
    return present + lowest, numbers[whole - lowest], counts[present]


def group_order(groups: Indices) -> Indices:
    """The indices of the first group's values, then of the second's, each in time order.

    There must be fewer than 2^15 groups: numpy sorts such short integers in a fraction of the time.
    """
    return np.argsort(groups.astype(np.int16), kind="stable")


def group_middles(values: Floats, groups: Indices, count: int) -> tuple[Floats, Floats]:
    """The lower and upper median of the observed values in each group; nan without any."""
    seen = is_seen(values)
    values, groups = values[seen], groups[seen]
    sizes = np.bincount(groups, minlength=count)
    ends = np.cumsum(sizes)
    ordered = np.append(values[group_order(groups)], math.nan)
    for first, end in zip((ends - sizes).tolist(), ends.tolist(), strict=True):
        ordered[first:end].sort()
    lower, upper = ends - sizes + np.maximum(sizes - 1, 0) // 2, ends - sizes + sizes // 2
    is_seen_group = sizes > 0
    return ordered[np.where(is_seen_group, lower, -1)], ordered[np.where(is_seen_group, upper, -1)]
