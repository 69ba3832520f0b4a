"""Demand and cost by hour of the week and by day, and how demand grew over the weeks.

Growth is told from three weeks on: each day of the week then came three times, so that a weekend at
the end of a window is no decline. By logarithms of the days' requests: day of the week + slope ×
day, least squares, a Student-t interval, widened for days that resemble the day before (by the
residuals' autocorrelation at one day, less its bias in a short series, and never under 0.35).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from itertools import product

import numpy as np
import polars as pl

from vllm_capacity.estimate import Estimate
from vllm_capacity.timerange import time_zone as zone_named
from vllm_capacity.verdicts.demand.model import Floats

LEAST_HOURS = 24
LEAST_DAYS = 21
_DAYS_A_WEEK = 7
_LEAST_ALIKE, _MOST_ALIKE = 0.35, 0.85  # what few days cannot tell: they do resemble each other
_CONFIDENCE = 0.9


@dataclass(frozen=True)
class Day:
    """One whole day: its requests, its bill and its utilization (0..1), None where not known."""

    day: date
    requests: float
    cost_usd: float | None
    utilization_ratio: float | None

    @property
    def usd_per_request(self) -> float | None:
        """What a request cost; None where the bill is not known, or nothing was asked."""
        return (
            self.cost_usd / self.requests if self.cost_usd is not None and self.requests else None
        )


def hours_of_week(hours: pl.DataFrame, *, time_zone: str = "UTC") -> pl.DataFrame:
    """The means of each hour of the week: 168 rows, Monday 00 h first, in `time_zone`.

    `hours`: one row per hour: ts (aware), requests, cost_usd, utilization_ratio (null: not known).
    Columns: weekday (1 is Monday), hour, observed_hours, requests (per hour), utilization_ratio,
    usd_per_request (of all its hours together). Null where it was never seen; InputError for a time
    zone that there is not.
    """
    week = pl.DataFrame(
        list(product(range(1, 8), range(24))),
        schema={"weekday": pl.Int8, "hour": pl.Int8},
        orient="row",
    )
    is_priced = pl.col("cost_usd").is_not_null()
    asked = pl.col("requests").filter(is_priced).sum()
    means = (
        _local(hours, time_zone)
        .group_by("weekday", "hour")
        .agg(
            observed_hours=pl.len().cast(pl.Int64),
            requests=pl.col("requests").mean(),
            utilization_ratio=pl.col("utilization_ratio").mean(),
            usd_per_request=pl.when(asked > 0).then(pl.col("cost_usd").sum() / asked),
        )
    )
    table = week.join(means, on=["weekday", "hour"], how="left").sort("weekday", "hour")
    return table.with_columns(pl.col("observed_hours").fill_null(0))


def whole_days(hours: pl.DataFrame, *, time_zone: str = "UTC") -> tuple[Day, ...]:
    """The days of `time_zone` of which every hour was seen, in order; `hours` as above.

    A day has 23 or 25 hours where the clocks change. Its bill and its utilization are known where
    those of all its hours are; utilization is the mean over the bill.
    """
    used = pl.col("cost_usd") * pl.col("utilization_ratio")
    is_known = pl.col("cost_usd").null_count() == 0
    is_used = is_known & (pl.col("utilization_ratio").null_count() == 0)
    bill = pl.col("cost_usd").sum()
    days = (
        _local(hours, time_zone)
        .group_by("day")
        .agg(
            seen=pl.len(),
            requests=pl.col("requests").sum(),
            cost_usd=pl.when(is_known).then(bill),
            utilization_ratio=pl.when(is_used & (bill > 0)).then(used.sum() / bill),
        )
        .filter(pl.col("seen") == _length(pl.col("day"), time_zone).dt.total_hours())
        .sort("day")
    )
    columns = ["day", "requests", "cost_usd", "utilization_ratio"]
    return tuple(Day(*row) for row in days.select(columns).iter_rows())


def _length(day: pl.Expr, time_zone: str) -> pl.Expr:
    """From midnight to the next one; null where the clocks skip one of them."""
    first, after = (
        each.cast(pl.Datetime("us")).dt.replace_time_zone(
            time_zone, ambiguous="earliest", non_existent="null"
        )
        for each in (day, day.dt.offset_by("1d"))
    )
    return after - first


def weekly_growth(days: Sequence[Day]) -> Estimate:
    """How requests grew from a week to the next, as a ratio (0.1: by a tenth), with its interval.

    Unknown under 21 whole days, or where a day had no request.
    """
    if len(days) < LEAST_DAYS:
        return Estimate.unknown(
            f"{len(days)} whole days; under {LEAST_DAYS}, it cannot be told from a weekly pattern"
        )
    if any(day.requests <= 0 for day in days):
        return Estimate.unknown("on some days no request came, so that no rate of growth holds")
    slope, error, freedom = _slope(days)
    from scipy.special import stdtrit  # slow to import, and few commands get here

    half = float(stdtrit(freedom, (1 + _CONFIDENCE) / 2)) * error
    low, mid, high = (
        math.expm1(_DAYS_A_WEEK * each) for each in (slope - half, slope, slope + half)
    )
    basis = f"{len(days)} whole days, each compared with the same day of other weeks"
    return Estimate.known(low, mid, high, basis, confidence=_CONFIDENCE)


def _slope(days: Sequence[Day]) -> tuple[float, float, float]:
    """The slope of log requests per day, its standard error, and the degrees of freedom."""
    start = days[0].day
    times = np.array([(day.day - start).days for day in days], float)
    weekdays = np.array([day.day.weekday() for day in days])
    pattern = (weekdays[:, None] == np.unique(weekdays)[None, :]).astype(float)
    design = np.column_stack([times, pattern])
    logs = np.log([day.requests for day in days])
    found, *_ = np.linalg.lstsq(design, logs, rcond=None)
    rest = logs - design @ found
    freedom = len(days) - design.shape[1]
    spread = float(rest @ rest) / freedom
    own = float(np.linalg.inv(design.T @ design)[0, 0])
    return float(found[0]), math.sqrt(spread * own * _widening(rest)), freedom


def _widening(rest: Floats) -> float:
    """How much wider a variance is where a day resembles the day before it."""
    whole = float(rest @ rest)
    alike = float(rest[1:] @ rest[:-1]) / whole if whole else 0.0
    corrected = min(_MOST_ALIKE, max(_LEAST_ALIKE, alike + (1 + 4 * max(0.0, alike)) / len(rest)))
    return (1 + corrected) / (1 - corrected)


def _local(hours: pl.DataFrame, time_zone: str) -> pl.DataFrame:
    """The hours in which requests were seen, with local weekday, hour and day."""
    local = pl.col("ts").dt.convert_time_zone(zone_named(time_zone).key)
    return hours.drop_nulls("requests").with_columns(
        weekday=local.dt.weekday(), hour=local.dt.hour(), day=local.dt.date()
    )
