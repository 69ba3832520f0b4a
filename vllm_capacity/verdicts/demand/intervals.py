"""Intervals of a demand forecast: quantiles of its own past errors, and how often they held.

Errors are pooled by how far ahead they were made (within 4 h, 24 h, then doubling), because one
horizon alone has too few. Of a pool's 5 % and 95 % quantiles the larger counts on both sides, for
a few days may well have erred one way only; it is widened by 1 + 0.6/√days, because days, not
hours, are what is independent here, and levels move: the bare quantiles held 79 % of the time on a
service whose tenants step in and out. A band never narrows with the horizon. Right after a step of
the level it is as wide as the errors of the last two hours ask for.

What share of points to expect inside is stated with care: on three published services and 46 of
their tenants, the share measured over one or two weeks did not tell which of them would hold (0.96
or more was measured for 311 forecasts, which held 0.94; under 0.90 for 23, which held 0.99; one
service held 0.85 of its last quarter after 0.97). So the nominal 90 % counts as ten days of
measurement beside it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vllm_capacity.verdicts.demand.model import Backtest, Floats

NOMINAL_RATIO = 0.90
_EDGES_HOURS = (4, 24, 48, 96, 192, 384, 768, 1536)
_LEAST_ERRORS = 10
_NEWEST_HOURS = 2.0
_NOMINAL_DAYS = 10.0


@dataclass(frozen=True)
class Band:
    """How far the root of a forecast is from its ends, one number a step ahead."""

    half_width: Floats


def widening(days: float) -> float:
    """The factor on error quantiles that rest on so many days; 2.2 at a quarter of one or less."""
    return float(1 + 0.6 / np.sqrt(max(days, 0.25)))


def error_band(past: Backtest, steps_per_day: int) -> Band | None:
    """The band of every step of the back-test's horizon; None without ten errors anywhere."""
    return _band(past.errors, past.days, steps_per_day)


def widened(past: Backtest, band: Band, steps_per_day: int) -> Band | None:
    """The band as wide as the newest errors ask for; None where most of those lie inside it.

    Over the truths of the last two hours and all forecasts made of them up to a day before: where
    most lie outside, as after a step of the level, their 0.95 quantile in half-widths is the
    factor. A forecast made now errs about as they did, whatever quieter days say.
    """
    newest = max(1, round(_NEWEST_HOURS * steps_per_day / 24))
    ahead = np.arange(min(past.errors.shape[1], steps_per_day))
    errors = np.abs(past.errors[:, ahead])
    is_newest = past.origins[:, None] + ahead[None, :] > past.origins[-1] - newest
    seen = is_newest & np.isfinite(errors)
    half_widths = np.broadcast_to(np.maximum(band.half_width[ahead], 1e-9), errors.shape)
    misses = errors[seen] / half_widths[seen]
    if len(misses) == 0 or np.median(misses) <= 1:
        return None
    least = np.quantile(errors[seen], 0.95)  # days alike to the digit have no half-width to widen
    return Band(np.maximum(band.half_width * np.quantile(misses, 0.95), least))


def stated_coverage(past: Backtest, steps_per_day: int) -> float | None:
    """The share of points to expect inside the band, 0..1: as measured, drawn towards the nominal.

    None where nothing could be measured.
    """
    measured = measured_coverage(past, steps_per_day)
    if measured is None:
        return None
    weighed = measured * past.days + NOMINAL_RATIO * _NOMINAL_DAYS
    return weighed / (past.days + _NOMINAL_DAYS)


def measured_coverage(past: Backtest, steps_per_day: int) -> float | None:
    """The share of back-test points inside a band that never saw them, 0..1.

    Truths are held out a day at a time (a quarter of the span at a time under four days): all
    errors whose truth lies there, however far ahead they were made, against the band of the others,
    widened for the days that leaves. None with less than two such blocks.
    """
    steps = max(1, min(steps_per_day, int(past.days * steps_per_day) // 4))
    ahead = np.arange(past.errors.shape[1])
    block_of = (past.origins[:, None] - past.origins[:1, None] + ahead[None, :]) // steps
    observed = np.isfinite(past.errors)
    inside: list[NDArray[np.bool_]] = []
    for block in np.unique(block_of[observed]):
        held_out = block_of == block
        others = np.where(held_out, np.nan, past.errors)
        band = _band(others, past.days - steps / steps_per_day, steps_per_day)
        if band is not None:
            is_inside = np.abs(past.errors) <= band.half_width
            inside.append(is_inside[held_out & observed])
    is_inside_all = np.concatenate(inside) if inside else np.array([], dtype=bool)
    return float(is_inside_all.mean()) if len(is_inside_all) else None


def _band(errors: Floats, days: float, steps_per_day: int) -> Band | None:
    """Quantiles a pool of horizons; one of under ten takes the next farther, else the nearer.

    The farther one is the safer guess; past the last, the nearer one's grows with the square root
    of the horizon. Where no pool has ten, all errors are one pool; None if even that has not.
    """
    hours = np.arange(1, errors.shape[1] + 1) * 24 / steps_per_day
    pool_of = np.searchsorted(_EDGES_HOURS, hours - 1e-9)
    pools = np.unique(pool_of)
    farthest = np.array([hours[pool_of == pool][-1] for pool in pools])
    ends = np.array([_end(errors[:, pool_of == pool]) for pool in pools])
    if not np.isfinite(ends).any():
        ends[-1] = _end(errors)
    measured = np.flatnonzero(np.isfinite(ends))
    if len(measured) == 0:
        return None
    next_measured = np.searchsorted(measured, np.arange(len(pools)))
    source = measured[np.minimum(next_measured, len(measured) - 1)]
    stretch = np.sqrt(np.maximum(1.0, farthest / farthest[measured[-1]]))
    end = np.maximum.accumulate(ends[source]) * stretch * widening(days)
    return Band(end[np.searchsorted(pools, pool_of)])


def _end(pool: Floats) -> float:
    """The farther one of the 5 % and 95 % quantiles of a pool; NaN for under ten errors."""
    seen = pool[np.isfinite(pool)]
    if len(seen) < _LEAST_ERRORS:
        return float("nan")
    tail = (1 - NOMINAL_RATIO) / 2
    return float(np.abs(np.quantile(seen, [tail, 1 - tail])).max())
