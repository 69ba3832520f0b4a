"""Turns recorded rows into even steps of demand, and tells gaps from zeros.

A gap is a missing row, an empty value, or a collapse of the whole series below 5 % of its median
over ±12 h: services do not stop for half an hour and resume where they were, recorders do. A
collapse at the same time on most days, with at least three days, is a schedule or a night, and is
kept.

A row is assigned to a step by its time, not by its number, so that a late row or a drifting clock
does not shift the others. Counts are summed as recorded; the distance between rows only shows how
much of a step they cover, and so what is missing.
"""

from __future__ import annotations

import numpy as np
import polars as pl
from msgspec import Struct
from numpy.typing import NDArray

from vllm_capacity.errors import InputError
from vllm_capacity.verdicts.demand.model import Floats

DAY_SECONDS = 86_400.0
_COLLAPSE_RATIO = 0.05
_MIN_OBSERVED_RATIO = 0.5
_JITTER_RATIO = 0.25
_MAX_OFF_RATIO = 0.1
_REGIME_ROWS = 12
_DRIFT_RATIO = 0.01
_MAX_ROWS, _MAX_GAPS_RATIO = 1_000_000, 20


class DemandGrid(Struct, frozen=True):
    """Demand in whole steps, NaN in gaps, from `start_seconds` to `end_seconds`.

    `rows` are the recorded rows at their own resolution, NaN in gaps.
    """

    values: Floats
    start_seconds: float
    step_seconds: float
    rows: Floats
    interval_seconds: float

    @property
    def end_seconds(self) -> float:
        """The start of the first step to forecast; an unfinished last step is forecast whole."""
        return self.start_seconds + len(self.values) * self.step_seconds

    @property
    def span_seconds(self) -> float:
        """The time that the rows span, including gaps."""
        return len(self.rows) * self.interval_seconds

    @property
    def steps_per_day(self) -> int:
        """Steps in 24 h."""
        return round(DAY_SECONDS / self.step_seconds)


def demand_grid(ts_seconds: Floats, values: Floats, *, step_seconds: float) -> DemandGrid:
    """The rows (ascending starts; NaN for an empty value) summed into steps of `step_seconds`.

    Steps begin at whole multiples of their length, so a first or last step that rows cover only
    partly is left out. A step recorded for at least half is scaled up to the whole; otherwise it is
    a gap. InputError if rows are coarser than the step or not on an even grid.
    """
    _check_step(step_seconds)
    interval = median_gap_seconds(ts_seconds) or step_seconds
    _check_ratio(interval, step_seconds)
    phase = _phase(ts_seconds, interval) if _divides(interval, step_seconds) else 0.0
    covers = _covers(ts_seconds, interval)
    since = ts_seconds - phase
    places = np.floor(since / interval + _JITTER_RATIO)
    first, end = (places[0], places[-1] + 1) if len(places) else (0.0, 0.0)
    _check_span(int(end - first), len(places), interval)
    index = (places - first).astype(np.int64)
    rows = _sums(index, values, covers, count=int(end - first), width=interval, interval=interval)
    lost = collapses(rows, interval)
    rows[lost] = np.nan
    # An end up to half a row short counts as whole: scheduled jobs have such jitter.
    step_first = np.ceil((first - 0.5) * interval / step_seconds) + 0.0
    step_end = max(step_first, np.floor((end + 0.5) * interval / step_seconds))
    step_index = np.floor((since + _JITTER_RATIO * interval) / step_seconds) - step_first
    return DemandGrid(
        values=_sums(
            step_index.astype(np.int64),
            np.where(lost[index], np.nan, values),
            covers,
            count=int(step_end - step_first),
            width=step_seconds,
            interval=interval,
        ),
        start_seconds=phase + step_first * step_seconds,
        step_seconds=step_seconds,
        rows=rows,
        interval_seconds=interval,
    )


def collapses(rows: Floats, interval_seconds: float) -> NDArray[np.bool_]:
    """Where a series falls below 5 % of its median over ±12 h, unless it does so on most days."""
    half = int(DAY_SECONDS / 2 / interval_seconds)
    series = pl.Series(rows).fill_nan(None)
    medians = series.rolling_median(2 * half + 1, min_samples=1, center=True).to_numpy()
    low = np.nan_to_num(rows, nan=np.inf) < _COLLAPSE_RATIO * np.nan_to_num(medians, nan=0.0)
    per_day = max(1, round(DAY_SECONDS / interval_seconds))
    slot = np.arange(len(rows)) % per_day
    seen = np.bincount(slot, weights=np.isfinite(rows), minlength=per_day)
    often = np.bincount(slot, weights=low, minlength=per_day)
    is_habit = (seen >= 3) & (often > seen / 2)
    return np.asarray(low & ~is_habit[slot])


def median_gap_seconds(ts_seconds: Floats) -> float | None:
    """The distance between neighboring rows, with jitter averaged out; None for under two rows.

    If several distances each make up a tenth of all, the shortest is used, as longer ones are due
    to missing rows. InputError if rows are not on an even grid or change their distance
    permanently.
    """
    gaps = np.diff(ts_seconds)
    if len(gaps) == 0:
        return None
    median_gap = float(np.median(gaps))
    for _ in range(8):
        finer = gaps[gaps < (1 - _JITTER_RATIO) * median_gap]
        if len(finer) <= _MAX_OFF_RATIO * len(gaps):
            break
        median_gap = float(np.median(finer))
    if median_gap <= 0:
        raise InputError(
            "Most rows share their time with another. Sum rows with the same time first."
        )
    _check_even(ts_seconds, gaps, median_gap)
    interval = float(gaps[np.abs(gaps - median_gap) <= _JITTER_RATIO * median_gap].mean())
    # The actual interval is a round number if some round number fits all rows.
    rounder = (round(interval, digits) for digits in (0, 1, 3))
    return float(next((g for g in rounder if g > 0 and _is_kept(ts_seconds, g)), interval))


def _direction(ts_seconds: Floats, interval: float) -> complex:
    """The position of rows within an interval, as the mean of points on a circle."""
    return complex(np.exp(2j * np.pi * (ts_seconds % interval) / interval).mean())


def _is_kept(ts_seconds: Floats, interval: float) -> bool:
    """Whether rows stay within about half of the interval rather than drift through all of it."""
    return abs(_direction(ts_seconds, interval)) >= 0.7


def _check_even(ts_seconds: Floats, gaps: Floats, median_gap: float) -> None:
    places = np.maximum(1.0, np.round(gaps / median_gap))
    off = np.abs(gaps - places * median_gap) > _JITTER_RATIO * median_gap
    if off.mean() > _MAX_OFF_RATIO:
        raise InputError(
            f"The rows are not on an even grid: {off.sum()} of {len(gaps)} are not a whole "
            f"multiple of {median_gap:.6g} s after the one before. Sum them into intervals of "
            "equal length first."
        )
    if len(gaps) < _REGIME_ROWS:
        return
    runs = np.lib.stride_tricks.sliding_window_view(gaps, _REGIME_ROWS)
    finest, coarsest = runs.min(axis=1), runs.max(axis=1)
    is_other = (coarsest < (1 - _JITTER_RATIO) * median_gap) | (
        finest > (1 + _JITTER_RATIO) * median_gap
    )
    is_regime = is_other & (coarsest - finest <= _JITTER_RATIO * finest)
    if is_regime.any():
        row = int(np.argmax(is_regime))
        raise InputError(
            f"The spacing of the rows changes: most are {median_gap:.6g} s apart, but from row "
            f"{row + 1} (at {ts_seconds[row]:.15g}) on {_REGIME_ROWS} or more are {gaps[row]:.6g} "
            "s apart, so it is unknown which are missing. Sum them into intervals of equal length "
            "first."
        )


def _check_step(step_seconds: float) -> None:
    per_day = DAY_SECONDS / step_seconds
    if abs(per_day - round(per_day)) > 1e-6 or per_day < 1 - 1e-6:
        raise InputError(
            f"A step of {step_seconds:g} s does not divide a day evenly. Try 10m, 1h, 6h or 1d."
        )


def _check_span(grid_rows: int, rows: int, interval: float) -> None:
    if grid_rows > max(_MAX_ROWS, _MAX_GAPS_RATIO * rows):
        raise InputError(
            f"The {rows:,} rows span {grid_rows * interval / DAY_SECONDS:,.0f} days: {interval:g} "
            f"s apart would be {grid_rows:,} rows. Leave out rows far from the others."
        )


def _check_ratio(interval_seconds: float, step_seconds: float) -> None:
    ratio = step_seconds / interval_seconds
    if ratio < 1 - _DRIFT_RATIO:
        raise InputError(
            f"The rows are {interval_seconds:g} s apart, coarser than the step of "
            f"{step_seconds:g} s. Ask for a step of {interval_seconds:g} s or more."
        )
    if abs(ratio - round(ratio)) > _DRIFT_RATIO * ratio:
        raise InputError(
            f"A step of {step_seconds:g} s is not a whole number of rows of {interval_seconds:g} s."
        )


def _divides(interval: float, step_seconds: float) -> bool:
    ratio = step_seconds / interval
    return abs(ratio - round(ratio)) <= 1e-6 * ratio


def _phase(ts_seconds: Floats, interval: float) -> float:
    """The offset of rows within an interval; 0 if they are roughly clock-aligned, or drift."""
    if len(ts_seconds) == 0 or not _is_kept(ts_seconds, interval):
        return 0.0
    center = float(np.angle(_direction(ts_seconds, interval))) / (2 * np.pi) * interval
    residuals = (ts_seconds - center + interval / 2) % interval - interval / 2
    phase = center + float(np.median(residuals))
    if np.ptp(residuals) > 1e-6 * interval + 1e-5:
        phase = 0.0 if abs(phase) < _JITTER_RATIO * interval else float(round(phase))
    phase = round(phase, 6)
    return phase + interval if phase <= -_JITTER_RATIO * interval else phase


def _covers(ts_seconds: Floats, interval: float) -> Floats:
    """The seconds that each row covers: to the next row, or one interval if that is missing.

    If two gaps add up to two intervals, the row between them is late, and none is missing.
    """
    gaps = np.append(np.diff(ts_seconds), interval)
    following = np.append(gaps[1:], interval)
    alone = np.clip(2 * interval - following, interval, np.maximum(gaps, interval))
    return np.where(gaps <= 1.5 * interval, gaps, alone)


def _sums(
    index: NDArray[np.int64],
    values: Floats,
    covers: Floats,
    *,
    count: int,
    width: float,
    interval: float,
) -> Floats:
    """The sum of the values of each index from 0 to `count`, scaled to `width` seconds.

    A step that is covered to within half a row counts as whole; NaN if less than half is covered.
    """
    seen = np.isfinite(values) & (index >= 0) & (index < count)
    sums = np.bincount(index[seen], weights=values[seen], minlength=count)
    share = np.bincount(index[seen], weights=covers[seen], minlength=count) / width
    share = np.where(np.abs(share - 1) <= 0.5 * interval / width + 1e-9, 1.0, share)
    enough = share >= _MIN_OBSERVED_RATIO - 1e-9
    return np.where(enough, sums / np.where(enough, share, 1.0), np.nan)
