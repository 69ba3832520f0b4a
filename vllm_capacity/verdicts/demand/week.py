"""The blend with days of the week, and whether the recorded demand asks for it.

1. **Hour-of-week profile**: the logarithm of demand over up to eight whole weeks, less each week's
   mean and a steady growth, averaged over the weeks. It has three parts: the hours of the day, what
   a day of the week adds to them, smoothed over five hours, and what is left hour by hour. Each
   part is shrunk by how well the weeks agree on it (James and Stein's factor): where they do not
   agree nothing remains, and the forecast is that of the daily blend.
2. **Forecast**: the daily blend of demand divided by that profile, times the profile of the hours
   ahead. Level and persistence are those of `forecast_model`, so growth is followed.
3. **Choice**: from two whole weeks on, and only where this forecast had errors at least 5 % smaller
   than the daily blend's at the same past origins, by more than one standard error of the
   difference over days, and its intervals are no wider: at most 5 % wider where the errors are
   a quarter smaller. (A service of bursts had errors 30 % smaller but, for want of its quiet first
   week, intervals twice as wide.) Origins stand in the later half of the weeks, a week in at the
   earliest.

Why not statsforecast: over nine kinds of simulated demand (five weeks, weekends 0–70 % quieter,
noise, growth, gaps, holidays), the error of this forecast was 0.55–0.82 of the weekly seasonal
naive's a day ahead and 0.72–0.87 a week ahead. Of statsforecast 2.1.1, MSTL with AutoETS had
0.59–0.93 and 0.82–0.91 at 0.7 s a fit, hundreds of which a back-test takes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vllm_capacity.verdicts.demand.intervals import error_band
from vllm_capacity.verdicts.demand.model import (
    Backtest,
    Expected,
    Floats,
    backtest,
    blend,
    filled,
    offset,
    shrunk,
)

LEAST_WEEKS = 2
_MOST_WEEKS = 8
_SMOOTHED_HOURS = 5
_SHARES_OF_ONE_WEEK = (0.9, 0.5, 0.0)
_LEAST_GAIN = 0.05
_LARGE_GAIN = 0.25
_WIDEST_RATIO = 1.05


@dataclass(frozen=True)
class Pattern:
    """The forecast that suits a series: how it is made, from what, and how wrong it was before.

    `history` has its gaps filled. `week` says in words whether a weekly pattern is used, and why.
    """

    expected: Expected
    history: Floats
    past: Backtest
    week: str


def best_pattern(values: Floats, horizon: int, steps_per_day: int) -> Pattern:
    """The daily blend, or the weekly one where that was measurably better on the series' own past.

    `values` are whole steps, NaN in gaps. Errors are measured up to `horizon` steps ahead; the two
    are compared over a day at least, lest the same series be told two ways.
    """
    week = 7 * steps_per_day
    weeks, compared = len(values) // week, max(horizon, steps_per_day)
    history = filled(values, steps_per_day)
    past = backtest(values, history, compared, steps_per_day)
    if weeks < LEAST_WEEKS:
        why = "no weekly pattern, for under two weeks of history"
        return Pattern(blend, history, past.within(horizon), why)
    weekly_history = filled(_filled_from_last_week(values, week), steps_per_day)
    weekly = backtest(
        values,
        weekly_history,
        compared,
        steps_per_day,
        expected=weekly_blend,
        first=max(1, weeks // 2) * week,
    )
    gain = _gain(past, weekly, steps_per_day)
    widest = _WIDEST_RATIO if gain >= _LARGE_GAIN else 1.0
    if gain < _LEAST_GAIN or _width_ratio(weekly, past, steps_per_day) > widest:
        why = "no weekly pattern, for it did not make the back-test better"
        return Pattern(blend, history, past.within(horizon), why)
    seen = min(weeks, _MOST_WEEKS)
    used = f"weekly pattern of {seen} weeks (back-test error {gain * 100:.0f} % lower than without)"
    return Pattern(weekly_blend, weekly_history, weekly.within(horizon), used)


def weekly_blend(history: Floats, horizon: int, steps_per_day: int) -> Floats:
    """Demand expected in each of the next `horizon` steps, in the unit of `history` (no gaps).

    Under a whole week of history it is the daily blend's. Demand is raised by the offset while it
    is divided by the profile: an empty weekend is then at its usual level, not at none.
    """
    week = 7 * steps_per_day
    if len(history) < week:
        return blend(history, horizon, steps_per_day)
    profile = np.exp(_week_profile(history, steps_per_day))
    extra = offset(history, steps_per_day)
    level = blend((history[-week:] + extra) / profile, horizon, steps_per_day)
    return np.asarray(np.maximum(level * profile[np.arange(horizon) % week] - extra, 0.0))


def _week_profile(history: Floats, steps_per_day: int) -> Floats:
    """The logarithm of the shape of a week from the next step on, mean 0."""
    week = 7 * steps_per_day
    weeks = min(_MOST_WEEKS, len(history) // week)
    logs = np.log(history[-weeks * week :] + offset(history, steps_per_day)).reshape(weeks, week)
    levels = logs.mean(axis=1, keepdims=True)
    growth = (levels[-1] - levels[0]) / (max(1, weeks - 1) * week)
    shapes = logs - levels - growth * (np.arange(week) - (week - 1) / 2)
    hours_of_day = np.tile(shapes.reshape(weeks, 7, steps_per_day).mean(axis=1), (1, 7))
    rest = shapes - hours_of_day
    smooth = _smoothed(rest.ravel(), _SMOOTHED_HOURS * steps_per_day // 24)
    days_of_week = smooth.reshape(weeks, week)
    parts = zip((hours_of_day, days_of_week, rest - days_of_week), _SHARES_OF_ONE_WEEK, strict=True)
    means = [shrunk(part, np.ones(weeks), one_share=share) for part, share in parts]
    return np.asarray(np.sum(means, axis=0) - np.mean(means) * len(means))


def _smoothed(values: Floats, steps: int) -> Floats:
    """The mean over an odd number of steps around each; the end of the weeks meets their start."""
    around = steps // 2
    if around == 0:
        return values
    windows = np.lib.stride_tricks.sliding_window_view(
        np.pad(values, around, mode="wrap"), 2 * around + 1
    )
    return np.asarray(windows.mean(axis=1))


def _filled_from_last_week(values: Floats, week: int) -> Floats:
    """The series with gaps taken from seven days before, where that was recorded."""
    out = values.copy()
    for i in np.flatnonzero(~np.isfinite(out)):
        if i >= week:
            out[i] = out[i - week]
    return out


def _gain(daily: Backtest, weekly: Backtest, steps_per_day: int) -> float:
    """How much smaller the weekly errors were, 0..1; 0 unless by more than one standard error.

    Errors are compared in pairs, averaged over each day of truth: days are what is independent.
    """
    daily_errors = np.abs(daily.errors[np.isin(daily.origins, weekly.origins)])
    weekly_errors = np.abs(weekly.errors)
    seen = np.isfinite(daily_errors) & np.isfinite(weekly_errors)
    ahead = np.arange(weekly_errors.shape[1])
    days = ((weekly.origins[:, None] + ahead - weekly.origins[0]) // steps_per_day)[seen]
    counts = np.bincount(days)
    sums = np.bincount(days, weights=(daily_errors - weekly_errors)[seen])
    better = sums[counts > 0] / counts[counts > 0]
    if len(better) < 2 or better.mean() <= better.std(ddof=1) / np.sqrt(len(better)):
        return 0.0
    return float(1 - weekly_errors[seen].mean() / daily_errors[seen].mean())


def _width_ratio(one: Backtest, other: Backtest, steps_per_day: int) -> float:
    """The mean half-width of one band over the other's; infinite where `one` has none."""
    ours, theirs = (error_band(past, steps_per_day) for past in (one, other))
    if ours is None or theirs is None:
        return float("inf")
    least = 1e-12  # series alike to the digit have no width
    return float((ours.half_width.mean() + least) / (theirs.half_width.mean() + least))
