"""From recorded rows to even steps of demand: what is a gap, what is a whole step, what is a zero.

A gap is a missing row, an empty value, or a collapse of the whole series under 5 % of its median of
±12 h: services do not stop for half an hour and resume where they were, recorders do. A collapse at
the same time of most days, of three or more, is a schedule or a night, and stays.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from vllm_capacity.errors import InputError
from vllm_capacity.verdicts.forecast_model import Floats

DAY_SECONDS = 86_400.0
_COLLAPSE_RATIO = 0.05
_LEAST_OBSERVED_RATIO = 0.5
_JITTER_RATIO = 0.25


@dataclass(frozen=True)
class Grid:
    """Demand in whole steps, NaN in gaps, from `start_seconds` to `end_seconds`.

    `rows` are the recorded rows at their own grain, gaps NaN, the first at `rows_start_seconds`.
    """

    values: Floats
    start_seconds: float
    step_seconds: float
    rows: Floats
    rows_start_seconds: float
    grain_seconds: float

    @property
    def end_seconds(self) -> float:
        """Where the first step to forecast begins; an unfinished last step is forecast whole."""
        return self.start_seconds + len(self.values) * self.step_seconds

    @property
    def span_seconds(self) -> float:
        """The time the rows span, gaps inside them included."""
        return len(self.rows) * self.grain_seconds

    @property
    def steps_per_day(self) -> int:
        """Steps in 24 h."""
        return round(DAY_SECONDS / self.step_seconds)


def demand_grid(ts_seconds: Floats, values: Floats, *, step_seconds: float) -> Grid:
    """The rows (ascending starts; NaN for an empty value) summed into steps of `step_seconds`.

    Steps stand on whole multiples of their length, so a first or last step the rows cover only in
    part is left out. A step of which at least half was recorded is scaled up to the whole; less
    is a gap. Rows coarser than the step, or off an even grid, are an `InputError`.
    """
    _check_step(step_seconds)
    grain, index = _even_grid(ts_seconds, fallback_seconds=step_seconds)
    per_step = _rows_per_step(grain, step_seconds)
    rows = np.full(int(index[-1]) + 1 if len(index) else 0, np.nan)
    rows[index] = values
    rows[collapses(rows, grain)] = np.nan
    first = float(ts_seconds[0]) if len(ts_seconds) else 0.0
    into_step = round(((first - first % grain) % step_seconds) / grain) % per_step
    skipped = (per_step - into_step) % per_step
    whole = max(0, (len(rows) - skipped) // per_step)
    table = rows[skipped : skipped + whole * per_step].reshape(whole, per_step)
    return Grid(
        values=_step_sums(table),
        start_seconds=first + skipped * grain,
        step_seconds=step_seconds,
        rows=rows,
        rows_start_seconds=first,
        grain_seconds=grain,
    )


def collapses(rows: Floats, grain_seconds: float) -> NDArray[np.bool_]:
    """Where a series falls under 5 % of its median of ±12 h, and does not do so every day."""
    half = int(DAY_SECONDS / 2 / grain_seconds)
    series = pl.Series(rows).fill_nan(None)
    medians = series.rolling_median(2 * half + 1, min_samples=1, center=True).to_numpy()
    low = np.nan_to_num(rows, nan=np.inf) < _COLLAPSE_RATIO * np.nan_to_num(medians, nan=0.0)
    per_day = max(1, round(DAY_SECONDS / grain_seconds))
    slot = np.arange(len(rows)) % per_day
    seen = np.bincount(slot, weights=np.isfinite(rows), minlength=per_day)
    often = np.bincount(slot, weights=low, minlength=per_day)
    is_habit = (seen >= 3) & (often > seen / 2)
    return np.asarray(low & ~is_habit[slot])


def _check_step(step_seconds: float) -> None:
    per_day = DAY_SECONDS / step_seconds
    if abs(per_day - round(per_day)) > 1e-6 or per_day < 1 - 1e-6:
        raise InputError(
            f"A step of {step_seconds:g} s does not divide a day evenly. Try 10m, 1h, 6h or 1d."
        )


def _even_grid(ts_seconds: Floats, *, fallback_seconds: float) -> tuple[float, NDArray[np.int64]]:
    """The rows' grain in seconds, and which place on that grid each row has."""
    gaps = np.diff(ts_seconds)
    if len(gaps) == 0:
        return fallback_seconds, np.arange(len(ts_seconds), dtype=np.int64)
    grain = _grain(gaps)
    places = np.round(gaps / grain) if grain > 0 else np.zeros(len(gaps))
    off = np.abs(gaps - places * grain) > _JITTER_RATIO * grain
    if off.any() or (places < 1).any():
        worst = int(np.argmax(off | (places < 1)))
        raise InputError(
            f"The rows are not on an even grid: most are {grain:g} s apart, yet after "
            f"{ts_seconds[worst]:.15g} the next comes {gaps[worst]:g} s later. "
            "Sum single events into windows of one length first."
        )
    return grain, np.concatenate([[0], np.cumsum(places)]).astype(np.int64)


def _grain(gaps: Floats) -> float:
    """The usual distance of neighbouring rows, jitter averaged out; the finer one of several."""
    usual = float(np.median(gaps))
    if gaps.min() < (1 - _JITTER_RATIO) * usual:
        usual = float(gaps.min())
    grain = float(gaps[np.abs(gaps - usual) <= _JITTER_RATIO * usual].mean())
    return float(round(grain)) if abs(grain - round(grain)) < 0.001 * grain else grain


def _rows_per_step(grain_seconds: float, step_seconds: float) -> int:
    ratio = step_seconds / grain_seconds
    if ratio < 1 - 1e-6:
        raise InputError(
            f"The rows are {grain_seconds:g} s apart, coarser than the step of {step_seconds:g} s. "
            f"Ask for a step of {grain_seconds:g} s or more."
        )
    if abs(ratio - round(ratio)) > 0.01:
        raise InputError(
            f"A step of {step_seconds:g} s is no whole number of rows of {grain_seconds:g} s."
        )
    return round(ratio)


def _step_sums(table: Floats) -> Floats:
    """The sum of each line of rows, gaps at the mean of the rest; NaN where over half is gap."""
    observed = np.isfinite(table)
    share = observed.mean(axis=1) if table.size else np.zeros(len(table))
    sums = np.where(observed, table, 0.0).sum(axis=1)
    enough = share >= _LEAST_OBSERVED_RATIO
    return np.where(enough, sums / np.where(enough, share, 1.0), np.nan)
