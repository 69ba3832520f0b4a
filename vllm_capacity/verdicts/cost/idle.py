"""Money spent on idle GPUs by hour of week, and what three ways to reduce it would have saved.

Each saving replays the observed hours under a rule, in dollars per month of 730.5 h. Its interval
is the Student-t one over observed days, so a fleet with few or uneven days gets a wide one.

- *Schedule*: off in the hours of the day that were idle on every other day. Each day is judged by a
  schedule from the others, so a saving is never claimed on the days that suggested it.
- *Scale to zero*: off in every hour without any load, and started before the next load: the
  start-up time is paid for.
- *Consolidation*: as many replicas as the busiest hours need at a target utilization, always on.

Why hours of the day rather than of the week for the schedule: each hour of a week occurs once a
week, and two of them do not prove a pattern. The table by hour of week shows the past; it is not a
forecast.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from itertools import product

import numpy as np
import polars as pl
from msgspec import Struct

from vllm_capacity.errors import InputError
from vllm_capacity.estimate import Estimate
from vllm_capacity.timerange import HOURS_PER_MONTH
from vllm_capacity.timerange import time_zone as zone_named

IDLE_RATIO = 0.02
MIN_DAYS = 3
_MIN_HOURS_OF_DAY = 12


class Savings(Struct, frozen=True):
    """What each way would have saved, USD per month; `hours_off`: the schedule from all days."""

    schedule: Estimate
    scale_to_zero: Estimate
    consolidation: Estimate
    hours_off: tuple[int, ...]


class _Hour(Struct, frozen=True):
    stamp: int
    day: int
    hour: int
    cost_usd: float
    utilization_ratio: float


def idle_by_hour_of_week(hours: pl.DataFrame, *, time_zone: str = "UTC") -> pl.DataFrame:
    """Mean idle cost of each hour of the week: 168 rows, Monday 00 h first, in `time_zone`.

    `hours`: one row per hour: ts (aware), cost_usd, utilization_ratio (0..1; null: not observed).
    Columns: weekday (1 is Monday), hour, observed_hours, cost_usd, utilization_ratio, idle_usd =
    cost × (1 − utilization), all means; null, not 0, if that hour was never observed.
    """
    observed = _observed(hours, time_zone)
    week = pl.DataFrame(
        list(product(range(1, 8), range(24))),
        schema={"weekday": pl.Int8, "hour": pl.Int8},
        orient="row",
    )
    means = observed.group_by("weekday", "hour").agg(
        observed_hours=pl.len().cast(pl.Int64),
        cost_usd=pl.col("cost_usd").mean(),
        utilization_ratio=pl.col("utilization_ratio").mean(),
        idle_usd=(pl.col("cost_usd") * (1 - pl.col("utilization_ratio"))).mean(),
    )
    table = week.join(means, on=["weekday", "hour"], how="left").sort("weekday", "hour")
    return table.with_columns(pl.col("observed_hours").fill_null(0))


def savings(
    hours: pl.DataFrame,
    *,
    replicas: int,
    startup_lead_seconds: float,
    target_utilization_ratio: float = 0.8,
    time_zone: str = "UTC",
) -> Savings:
    """What a schedule, scale-to-zero and consolidation would have saved; `hours` as above.

    All are unknown with fewer than three days that have half their hours observed. If nothing can
    be saved, the saving is exactly 0, with the obstacle as the basis.
    """
    if replicas < 1 or startup_lead_seconds < 0 or not 0 < target_utilization_ratio <= 1:
        raise InputError(
            f"Savings need at least one replica (got {replicas}), a start-up lead of 0 s or more "
            f"(got {startup_lead_seconds:g}) and a target in (0, 1] "
            f"(got {target_utilization_ratio:g})."
        )
    days = _days(_observed(hours, time_zone))
    if len(days) < MIN_DAYS:
        unknown = Estimate.unknown(
            f"{len(days)} days with at least {_MIN_HOURS_OF_DAY} observed hours; {MIN_DAYS} "
            "are needed to see a daily pattern"
        )
        return Savings(unknown, unknown, unknown, ())
    return Savings(
        _schedule(days),
        _scale_to_zero(days, startup_lead_seconds / 3600),
        _consolidation(days, replicas, target_utilization_ratio),
        _idle_hours(days),
    )


def _observed(hours: pl.DataFrame, time_zone: str) -> pl.DataFrame:
    """The rows with both figures, checked, with local weekday, hour and day; one row per hour."""
    rows = hours.drop_nulls(["cost_usd", "utilization_ratio"]).sort("ts")
    bad = rows.filter(
        (pl.col("cost_usd") < 0)
        | ~pl.col("cost_usd").is_finite()
        | ~pl.col("utilization_ratio").is_between(0, 1)
    )
    if not bad.is_empty():
        raise InputError(
            f"Hours of idle cost need cost_usd ≥ 0 and utilization_ratio in 0..1; found "
            f"{bad['cost_usd'][0]} and {bad['utilization_ratio'][0]} at {bad['ts'][0]}."
        )
    local = pl.col("ts").dt.convert_time_zone(zone_named(time_zone).key)
    rows = rows.with_columns(
        weekday=local.dt.weekday(),
        hour=local.dt.hour(),
        day=local.dt.date().cast(pl.Int32),
        stamp=pl.col("ts").dt.epoch("s") // 3600,
    )
    twice = rows.filter(pl.col("stamp").is_duplicated())
    if not twice.is_empty():
        raise InputError(
            f"Idle cost has one row per hour; {twice['ts'][0]} and {twice['ts'][1]} share one."
        )
    return rows


def _days(observed: pl.DataFrame) -> list[list[_Hour]]:
    """The observed hours by day, without days that miss more than half of theirs."""
    columns = ["stamp", "day", "hour", "cost_usd", "utilization_ratio"]
    by_day: dict[int, list[_Hour]] = defaultdict(list)
    for row in observed.select(columns).iter_rows():
        by_day[row[1]].append(_Hour(*row))
    return [hours for hours in by_day.values() if len(hours) >= _MIN_HOURS_OF_DAY]


def _idle_hours(days: Sequence[Sequence[_Hour]]) -> tuple[int, ...]:
    """The hours of the day that were idle each time they were observed, at least twice."""
    seen: dict[int, list[float]] = defaultdict(list)
    for hour in (hour for day in days for hour in day):
        seen[hour.hour].append(hour.utilization_ratio)
    return tuple(
        sorted(h for h, ratios in seen.items() if len(ratios) >= 2 and max(ratios) <= IDLE_RATIO)
    )


def _schedule(days: list[list[_Hour]]) -> Estimate:
    saved, off_hours, busy_hours = [], 0, 0
    for i, day in enumerate(days):
        off = set(_idle_hours(days[:i] + days[i + 1 :]))
        idle = [hour for hour in day if hour.hour in off]
        off_hours += len(idle)
        busy_hours += sum(hour.utilization_ratio > IDLE_RATIO for hour in idle)
        saved.append(_a_month(day, sum(hour.cost_usd for hour in idle)))
    if not off_hours:
        return Estimate.exact(0.0, "no hour of the day was idle on every day")
    return _mean_over_days(
        saved,
        days,
        f"each day's schedule from the other days, {len(days)} days; {busy_hours} of {off_hours} "
        "hours switched off had load after all",
    )


def _scale_to_zero(days: list[list[_Hour]], lead_hours: float) -> Estimate:
    left = _hours_left_idle([hour for day in days for hour in day])
    saved = [
        _a_month(
            day,
            sum(hour.cost_usd * min(1.0, max(0.0, left[hour.stamp] - lead_hours)) for hour in day),
        )
        for day in days
    ]
    if not any(saved):
        return Estimate.exact(
            0.0, f"no run of hours without load longer than the start-up lead of {lead_hours:.2g} h"
        )
    return _mean_over_days(
        saved, days, f"hours without any load less a {lead_hours:.2g} h start-up, {len(days)} days"
    )


def _hours_left_idle(hours: list[_Hour]) -> dict[int, int]:
    """For each hour, how many consecutive hours without load begin with it; 0 if it had load."""
    left: dict[int, int] = {}
    for hour in reversed(hours):
        is_empty = hour.utilization_ratio == 0
        left[hour.stamp] = left.get(hour.stamp + 1, 0) + 1 if is_empty else 0
    return left


def _consolidation(days: list[list[_Hour]], replicas: int, target_ratio: float) -> Estimate:
    """The saving with the replicas that the p95, p99 and highest hour need: high, mid and low."""
    if replicas == 1:
        return Estimate.unknown("one replica cannot be consolidated; see the schedule instead")
    ratios = np.array([hour.utilization_ratio for day in days for hour in day])
    cost = float(np.mean([_a_month(day, sum(hour.cost_usd for hour in day)) for day in days]))
    peaks = np.quantile(ratios, [1.0, 0.99, 0.95])
    needed = [_replicas_needed(float(peak), replicas, target_ratio) for peak in peaks]
    low, mid, high = (cost * (replicas - count) / replicas for count in needed)
    return Estimate.known(
        low,
        mid,
        high,
        f"{needed[0]} / {needed[1]} / {needed[2]} of {replicas} replicas carry the highest / p99 / "
        f"p95 hour at {target_ratio * 100:.0f} % utilization; failures and start-up not counted",
    )


def _replicas_needed(ratio: float, replicas: int, target_ratio: float) -> int:
    return min(replicas, max(1, math.ceil(ratio * replicas / target_ratio - 1e-9)))


def _a_month(day: Sequence[_Hour], usd: float) -> float:
    """Dollars per month, from those of a day's observed hours, if all days were like it."""
    return usd / len(day) * HOURS_PER_MONTH


def _mean_over_days(saved: list[float], days: list[list[_Hour]], basis: str) -> Estimate:
    """The mean over days with its 90 % Student-t interval, clipped at 0 and the whole bill."""
    from scipy.special import stdtrit  # slow to import, and rarely needed

    bill = float(np.mean([_a_month(day, sum(hour.cost_usd for hour in day)) for day in days]))
    mid = float(np.mean(saved))
    half = float(stdtrit(len(saved) - 1, 0.95) * np.std(saved, ddof=1) / math.sqrt(len(saved)))
    return Estimate.known(max(0.0, mid - half), mid, max(mid, min(bill, mid + half)), basis)
