"""Demand and cost by hour of the week and by day, and the weekly growth of demand.

Growth is reported from three weeks on: each day of the week then occurred three times, so a weekend
at the end of a window does not look like a decline. The model of the logarithm of a day's requests:
day of the week + slope × day + residual. Residuals are correlated from day to day (an AR(1)
process) and within a week (a component shared by its days). A few weeks do not determine how
strongly: they look calmer than they are, and a nominal 90 % interval from the single best fit
covers 80 %. So the interval is a posterior over both correlations: each combination is fitted by
generalized least squares and weighted by its likelihood, with regression and variance integrated
out (Zellner & Tiao 1964; Box & Tiao 1973, Bayesian Inference in Statistical Analysis, 8.5). The
prior prefers no length of memory: it is uniform in its logarithm.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import date
from itertools import product

import numpy as np
import polars as pl
from msgspec import Struct

from vllm_capacity.estimate import Estimate
from vllm_capacity.timerange import time_zone as zone_named
from vllm_capacity.verdicts.demand.model import Floats

MIN_HOURS = 24
MIN_DAYS = 21
_DAYS_A_WEEK = 7
# Correlation of neighboring days; and variance shared within a week over a day's own, with the
# prior probability of each.
_ALIKE = np.array([0.0, 0.15, 0.3, 0.45, 0.6, 0.7, 0.8, 0.87, 0.92, 0.96])
_SHARED = {0.0: 0.5, 0.25: 0.25, 1.0: 0.25}
_MIN_VARIANCE = 1e-20  # of logarithms: the floating-point error of days without noise
_CONFIDENCE = 0.9


class Day(Struct, frozen=True):
    """One whole day: its requests, its bill and its utilization (0..1), None if unknown."""

    day: date
    requests: float
    cost_usd: float | None
    utilization_ratio: float | None

    @property
    def usd_per_request(self) -> float | None:
        """Cost per request; None if the bill is unknown, or there were no requests."""
        return (
            self.cost_usd / self.requests if self.cost_usd is not None and self.requests else None
        )


def hours_of_week(hours: pl.DataFrame, *, time_zone: str = "UTC") -> pl.DataFrame:
    """The means of each hour of the week: 168 rows, Monday 00 h first, in `time_zone`.

    `hours`: one row per hour: ts (aware), requests, cost_usd, utilization_ratio (null if unknown).
    Columns: weekday (1 is Monday), hour, observed_hours, requests (per hour), utilization_ratio,
    usd_per_request (over all its hours). Null if an hour was never observed; InputError for an
    unknown time zone.
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
    """The days in `time_zone` with every hour observed, in order; `hours` as above.

    A day has 23 or 25 hours when the clocks change. Its bill and utilization are known if those of
    all its hours are; utilization is the mean weighted by the bill.
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
    """The time from one midnight to the next; null if a clock change skips either."""
    first, after = (
        each.cast(pl.Datetime("us")).dt.replace_time_zone(
            time_zone, ambiguous="earliest", non_existent="null"
        )
        for each in (day, day.dt.offset_by("1d"))
    )
    return after - first


def weekly_growth(days: Sequence[Day]) -> Estimate:
    """The growth of requests per week, as a ratio (0.1 is 10 %), with its interval.

    Unknown for under 21 whole days, or if a day had no requests.
    """
    if len(days) < MIN_DAYS:
        return Estimate.unknown(
            f"{len(days)} whole days; with fewer than {MIN_DAYS}, growth cannot be "
            "distinguished from a weekly pattern"
        )
    if any(day.requests <= 0 for day in days):
        return Estimate.unknown("some days had no requests, so no growth rate can be given")
    low, mid, high = (math.expm1(_DAYS_A_WEEK * each) for each in _slope(days))
    basis = f"{len(days)} whole days, each compared with the same day of other weeks"
    return Estimate.known(low, mid, high, basis, confidence=_CONFIDENCE)


def _slope(days: Sequence[Day]) -> tuple[float, float, float]:
    """The slope of log requests per day: low end, mean and high end of its interval."""
    from scipy.optimize import brentq
    from scipy.special import stdtr  # slow to import, and rarely needed

    slopes, errors, weights, freedom = _fits(days)
    mid, width = float(weights @ slopes), float(errors.max())

    def end(share: float) -> float:
        def beyond(slope: float) -> float:
            return float(weights @ stdtr(freedom, (slope - slopes) / errors)) - share

        least, most = float(slopes.min()) - 100 * width, float(slopes.max()) + 100 * width
        return float(brentq(beyond, least, most, xtol=1e-12))

    return end((1 - _CONFIDENCE) / 2), mid, end((1 + _CONFIDENCE) / 2)


def _fits(days: Sequence[Day]) -> tuple[Floats, Floats, Floats, int]:
    """Slope, standard error and weight for each correlation structure; degrees of freedom."""
    ordinals = np.array([day.day.toordinal() for day in days])
    weekdays, weeks = (ordinals - 1) % _DAYS_A_WEEK, (ordinals - 1) // _DAYS_A_WEEK
    times = (ordinals - ordinals[0]).astype(float)
    pattern = (weekdays[:, None] == np.unique(weekdays)[None, :]).astype(float)
    both = np.column_stack([times, pattern, np.log([day.requests for day in days])])
    freedom = len(days) - both.shape[1] + 1
    apart = np.abs(times[:, None] - times[None, :])
    in_a_week = (weeks[:, None] == weeks[None, :]).astype(float)
    prior = np.gradient(_ALIKE) / (1 - _ALIKE)  # d log(1 − alike)
    found = []
    for alike, expected in zip(_ALIKE.tolist(), prior.tolist(), strict=True):
        for shared, share in _SHARED.items():
            root = np.linalg.cholesky(alike**apart + shared * in_a_week)
            white = np.linalg.solve(root, both)
            design, logs = white[:, :-1], white[:, -1]
            normal = design.T @ design
            fitted = np.linalg.solve(normal, design.T @ logs)
            rest = logs - design @ fitted
            squares = float(rest @ rest) + len(days) * _MIN_VARIANCE
            error = math.sqrt(squares / freedom * float(np.linalg.inv(normal)[0, 0]))
            weight = math.log(expected * share) - float(np.log(np.diag(root)).sum())
            weight -= (float(np.linalg.slogdet(normal)[1]) + freedom * math.log(squares)) / 2
            found.append((float(fitted[0]), error, weight))
    slopes, errors, logs_of_weights = np.array(found).T
    weights = np.exp(logs_of_weights - logs_of_weights.max())
    return slopes, errors, weights / weights.sum(), freedom


def _local(hours: pl.DataFrame, time_zone: str) -> pl.DataFrame:
    """The hours in which requests were observed, with local weekday, hour and day."""
    local = pl.col("ts").dt.convert_time_zone(zone_named(time_zone).key)
    return hours.drop_nulls("requests").with_columns(
        weekday=local.dt.weekday(), hour=local.dt.hour(), day=local.dt.date()
    )
