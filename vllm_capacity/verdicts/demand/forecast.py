"""Demand in the next hours or days, with intervals from its own past errors, or why there is none.

The method, its intervals and the days of the week: model.py. What counts as a gap: history.py.

Why not statsforecast: a day ahead, at the same origins of three published services (ServeGen
m-large and m-small, BurstGPT), the MASE of this blend is 0.97 / 1.41 / 0.65, 1.01 on average. In
statsforecast 2.1.1, AutoCES has 1.09 / 1.58 / 0.64, AutoTheta 1.14 / 1.49 / 0.79, the dynamic
optimised Theta 1.14 / 1.51 / 0.79, AutoETS 1.43 / 2.45 / 0.82. AutoARIMA, with 1.04 / 1.39 on the
first two, is slightly better on the second at 14 s per fit. None is measurably better.
"""

from __future__ import annotations

import math
from datetime import datetime, timedelta

import numpy as np
import polars as pl
from msgspec import Struct

from vllm_capacity.errors import InputError
from vllm_capacity.estimate import Estimate, Kind
from vllm_capacity.record import Record
from vllm_capacity.verdicts.demand.history import DAY_SECONDS, DemandGrid, demand_grid
from vllm_capacity.verdicts.demand.model import (
    Backtest,
    Floats,
    best_pattern,
    error_band,
    error_count,
    offset,
    stated_coverage,
    widened,
)

_METHOD = (
    "mean of the last 24 h × hour-of-day profile × how far the last hour was above or below it, "
    "fading over a day; 90 % intervals from the errors this method made on the same series before"
)
PEAK_PRIOR = Estimate.known(
    1.29,
    1.44,
    1.47,
    "p95 of a 10 min peak over its hour's mean on three published LLM services "
    "(ServeGen 2025: m-small 1.29, deepseek-r1 1.44, m-large 1.47)",
    kind=Kind.ASSUMED,
    confidence=None,
)
_MIN_MEAN_RATIO = 0.01
_LONG_GAP = timedelta(weeks=4)
_WIDENED = (
    "; intervals widened, because demand in the last two hours was outside its own forecast: how "
    "often intervals hold right after such a step was not measured"
)


class Forecast(Struct, frozen=True):
    """Demand ahead, or the `reason` why it is unknown.

    `frame`: one row per step ahead: ts_seconds (or ts, as in the input), low, mid, high, in the
    unit of the series per step; empty if refused. `method` describes how it was made, and whether a
    weekly pattern was used. `coverage_measured`: the share of points, 0..1, to expect inside the
    intervals, measured in the back-test and shrunk towards 90 % if that was short
    (`stated_coverage`). `width_ratio`: mean width of the intervals ÷ mean forecast demand, None if
    that is under 1 % of the series' mean. `peak_over_mean`: how far a short peak exceeds its hour's
    mean (p95 of hours).
    """

    frame: pl.DataFrame
    method: str
    coverage_measured: float | None
    width_ratio: float | None
    peak_over_mean: Estimate
    reason: str

    @property
    def is_known(self) -> bool:
        """Whether there is a forecast."""
        return not self.frame.is_empty()


class Ahead(Record, frozen=True):
    """Requests in one hour ahead, with a 90 % interval."""

    ts: datetime
    low: float
    mid: float
    high: float


class DemandAhead(Record, frozen=True):
    """Requests per hour over the next day, or why there is no forecast.

    `coverage_measured` is the share of hours, 0..1, to expect inside the intervals.
    """

    forecast: tuple[Ahead, ...] | None
    method: str
    coverage_measured: float | None
    reason: str


def forecast_demand(
    series: pl.DataFrame,
    *,
    column: str = "requests",
    step_seconds: float = 3600.0,
    horizon_seconds: float = DAY_SECONDS,
) -> Forecast:
    """The demand in each step until `horizon_seconds` after the last whole step of the series.

    `series`: ts (aware datetime) or ts_seconds, the start of each row, and `column`, the count in
    that row (null if not recorded). Finer rows are summed into steps. Refused, with a reason: under
    a day of history, a horizon longer than the history, nothing recorded in half the time or in the
    last day, only zeros.
    """
    grid = demand_grid(*demand_arrays(series, column), step_seconds=step_seconds)
    horizon = _whole_steps(horizon_seconds, step_seconds)
    peak = peak_over_mean(grid)
    reason = refusal(grid, horizon_seconds)
    if reason:
        return _refused(series, grid, peak, reason)
    pattern = best_pattern(grid.values, horizon, grid.steps_per_day)
    history, past = pattern.history, pattern.past
    band = error_band(past, grid.steps_per_day)
    if band is None:
        return _refused(series, grid, peak, _too_few_errors(grid, horizon, past))
    wider = widened(past, band, grid.steps_per_day)
    low, mid, high = _ends(
        pattern.expected(history, horizon, grid.steps_per_day),
        (wider or band).half_width,
        extra=offset(history, grid.steps_per_day),
        mean_level=float(history.mean()),
    )
    frame = _stamped(series, [low, mid, high], grid)
    is_near_zero = mid.mean() <= _MIN_MEAN_RATIO * history.mean()
    width = None if is_near_zero else float((high - low).mean() / mid.mean())
    method = f"{_METHOD}; {pattern.week}{_WIDENED if wider else ''}"
    coverage = stated_coverage(past, grid.steps_per_day)
    return Forecast(frame, method, coverage, width, peak, "")


def _ends(
    expected: Floats, half_width: Floats, *, extra: float, mean_level: float
) -> tuple[Floats, Floats, Floats]:
    """low, mid, high: the forecast plus or minus `half_width` on the square-root scale.

    Rounded to nine digits of `mean_level`, the mean of the history: the rest is rounding error. A
    forecast under a millionth of it is rounding error too, and set to 0.
    """
    mid = np.where(expected < 1e-6 * mean_level, 0.0, expected)
    root = np.sqrt(mid + extra)
    low = np.clip(np.maximum(root - half_width, 0.0) ** 2 - extra, 0.0, mid)
    high = np.maximum((root + half_width) ** 2 - extra, mid)
    digits = min(290, 9 - math.ceil(math.log10(mean_level or 1.0)))
    return _rounded(low, digits), _rounded(mid, digits), _rounded(high, digits)


def _rounded(values: Floats, digits: int) -> Floats:
    return np.asarray(np.round(values, digits), dtype=np.float64)


def _too_few_errors(grid: DemandGrid, horizon: int, past: Backtest) -> str:
    """The reason for refusing a history with too few past errors, and how long one must be."""
    per_day = grid.steps_per_day
    enough = next(n for n in range(1, 100 * per_day) if error_count(n, horizon, per_day) >= 10)
    days = max(enough, horizon) / per_day
    return (
        f"the data are too short for steps of {grid.step_seconds / 3600:g} h: an interval needs "
        f"ten past errors, and there are {np.isfinite(past.errors).sum()}; give {days:g} days "
        "without gaps, or a shorter step"
    )


def _refused(series: pl.DataFrame, grid: DemandGrid, peak: Estimate, reason: str) -> Forecast:
    return Forecast(_stamped(series, [], grid), _METHOD, None, None, peak, reason)


def demand_arrays(series: pl.DataFrame, column: str) -> tuple[Floats, Floats]:
    """Ascending starts in seconds, and values with NaN for null, from either time column."""
    if column not in series.columns:
        raise InputError(f"No column {column!r} in the series; found: {', '.join(series.columns)}.")
    is_numeric = "ts_seconds" in series.columns
    ts = pl.col("ts_seconds") if is_numeric else pl.col("ts").dt.epoch("us") / 1e6
    rows = series.select(ts_seconds=ts.cast(pl.Float64), value=pl.col(column).cast(pl.Float64))
    rows = rows.sort("ts_seconds")
    return rows["ts_seconds"].to_numpy(), rows["value"].fill_null(float("nan")).to_numpy()


def refusal(grid: DemandGrid, horizon_seconds: float) -> str:
    """Why this history does not allow a forecast so far ahead; empty if it does."""
    hours = grid.span_seconds / 3600
    recorded = np.isfinite(grid.rows)
    last_day = recorded[-max(1, round(DAY_SECONDS / grid.interval_seconds)) :]
    if not recorded.any():
        return "there is nothing to forecast from: no row has a value"
    if grid.span_seconds < DAY_SECONDS:
        return f"the data span {hours:.1f} h, but at least 24 h are needed"
    if horizon_seconds > grid.span_seconds:
        return (
            f"the data span {hours:.1f} h, too short to measure the error of a forecast "
            f"{horizon_seconds / 3600:g} h ahead; give a shorter horizon"
        )
    if recorded.mean() < 0.5:
        return (
            f"there are too many gaps: only {recorded.mean() * 100:.0f} % of the rows have a "
            "value, and half are needed"
        )
    if not last_day.any():
        return "the last day was not recorded"
    if not np.nansum(grid.rows):
        return "there is nothing to forecast from: every row is zero"
    return ""


def peak_over_mean(grid: DemandGrid) -> Estimate:
    """How far an hour's highest row exceeds the hour's mean: the p95 over hours, a ratio.

    Its ends are the order statistics that contain the true p95 with 90 % confidence. If rows are
    coarser than 30 min or fewer than 60 whole hours were recorded, it is the published
    `PEAK_PRIOR`.
    """
    per_hour = 3600 / grid.interval_seconds
    if per_hour < 2 or abs(per_hour - round(per_hour)) > 1e-6:
        return PEAK_PRIOR
    hours = len(grid.rows) // round(per_hour)
    table = grid.rows[: hours * round(per_hour)].reshape(hours, round(per_hour))
    table = table[np.isfinite(table).all(axis=1) & (np.nan_to_num(table).sum(axis=1) > 0)]
    if len(table) < 60:
        return PEAK_PRIOR
    from scipy.special import bdtr  # slow to import, and rarely needed

    peaks = np.sort(table.max(axis=1) / table.mean(axis=1))
    at_most = bdtr(np.arange(len(peaks)), len(peaks), 0.95)
    low, mid, high = peaks[np.minimum(np.searchsorted(at_most, [0.05, 0.5, 0.95]), len(peaks) - 1)]
    minutes = grid.interval_seconds / 60
    return Estimate.known(
        low, mid, high, f"p95 of {minutes:g} min peaks over their hour's mean, {len(peaks)} hours"
    )


def _whole_steps(horizon_seconds: float, step_seconds: float) -> int:
    steps = horizon_seconds / step_seconds
    if steps < 1 - 1e-6 or abs(steps - round(steps)) > 1e-6:
        raise InputError(
            f"A horizon of {horizon_seconds:g} s is not a whole number of steps of "
            f"{step_seconds:g} s."
        )
    return round(steps)


def _stamped(series: pl.DataFrame, columns: list[Floats], grid: DemandGrid) -> pl.DataFrame:
    """low, mid, high with the time column of the input series; no rows if `columns` is empty."""
    low, mid, high = columns or [np.array([])] * 3
    starts = grid.end_seconds + np.arange(len(mid)) * grid.step_seconds
    frame = pl.DataFrame({"ts_seconds": starts, "low": low, "mid": mid, "high": high})
    if "ts_seconds" in series.columns:
        return frame
    kind = series.schema["ts"]
    zone = kind.time_zone if isinstance(kind, pl.Datetime) else None
    ts = (pl.col("ts_seconds") * 1e6).round().cast(pl.Int64).cast(pl.Datetime("us", zone))
    return frame.select(ts.cast(kind).alias("ts"), "low", "mid", "high")


def demand_ahead(increases: pl.DataFrame) -> DemandAhead:
    """Requests per hour over the next day, as in the `forecast` command.

    `increases` are those of finished requests at each scrape (figures/traffic.py). Refused, with
    the reason, if they are too short or have no pattern.
    """
    minutes = (
        increases.drop_nulls("increase")
        .group_by(ts=pl.col("ts").dt.truncate("1m"))
        .agg(requests=pl.col("increase").sum())
        .sort("ts")
    )
    minutes = minutes.filter(pl.col("ts") >= _since_long_gap(minutes.get_column("ts")))
    if minutes.height < 2:
        return DemandAhead(None, "", None, "the data have fewer than two minutes with requests")
    # A minute without a scrape is a row without a value: not recorded, rather than 0.
    found = forecast_demand(minutes.upsample("ts", every="1m"), column="requests")
    rows = None
    if found.is_known:
        hours = found.frame.select("ts", "low", "mid", "high")
        rows = tuple(Ahead(**hour) for hour in hours.iter_rows(named=True))
    return DemandAhead(rows, found.method, found.coverage_measured, found.reason)


def _since_long_gap(ts: pl.Series) -> datetime | None:
    """The start of the last stretch without a gap of over four weeks; None without any time."""
    return ts.filter((ts.diff() > _LONG_GAP).fill_null(True)).last()  # type: ignore[return-value]
