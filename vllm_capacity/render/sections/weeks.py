"""Days and weeks in sentences: busiest hour, best and worst day, growth."""

from __future__ import annotations

from vllm_capacity.analysis import Analysis
from vllm_capacity.estimate import Estimate
from vllm_capacity.render.numbers import (
    Write,
    between,
    count,
    number,
    percent,
    plural,
    reason,
    usd,
    usd_per_thousand,
)
from vllm_capacity.render.tables import Text, text
from vllm_capacity.verdicts.demand.weeks import MIN_HOURS, Day, weekly_growth, whole_days

_CENT_USD = 0.01


def days_text(analysis: Analysis, *, time_zone: str = "UTC") -> Text:
    """The busiest hour, the cheapest and most expensive day by name, and growth per week.

    Hours and days are those of `time_zone`. For less than a day of whole hours, it only says so.
    """
    hours = analysis.hours
    if not analysis.is_days_long:
        got = plural(hours.height, "whole hour")
        return text(f"Days and weeks need at least {MIN_HOURS} h of data; this window has {got}.")
    if not hours["requests"].sum():
        return text(f"No request came in {plural(hours.height, 'whole hour')}.")
    days = whole_days(hours, time_zone=time_zone)
    return text(
        *filter(None, (_busiest(analysis, time_zone), _best_and_worst(days), _growth(days)))
    )


def _busiest(analysis: Analysis, time_zone: str) -> str:
    seen = analysis.hours.drop_nulls("requests")
    local = seen.with_columns(seen["ts"].dt.convert_time_zone(time_zone))
    most = local.sort("requests", "ts", descending=[True, False]).row(0, named=True)
    times = most["requests"] / seen["requests"].mean()
    return (
        f"The busiest hour began on {most['ts']:%a %-d %b at %H:%M} ({time_zone}): "
        f"{count(most['requests'])} requests, {number(times)} times the mean hour."
    )


def _best_and_worst(days: tuple[Day, ...]) -> str:
    """The days with the lowest and the highest cost per request, or the quietest and busiest."""
    costs = [(each, day) for day in days if (each := day.usd_per_request) is not None]
    if len(costs) > 1:
        (low, best), (high, worst) = min(costs, key=_first), max(costs, key=_first)
        write: Write = usd if high >= _CENT_USD else usd_per_thousand
        unit = "per request" if high >= _CENT_USD else "per 1,000 requests"
        if write(low) != write(high):
            return (
                f"The best day was {best.day:%a %-d %b}, {write(low)} {unit} at "
                f"{count(best.requests)} requests; the worst was {worst.day:%a %-d %b}, "
                f"{write(high)} at {count(worst.requests)}."
            )
    if len(days) < 2:
        return ""
    most, least = max(days, key=_requests), min(days, key=_requests)
    if most.requests == least.requests:
        return f"Each of {plural(len(days), 'whole day')} had {count(most.requests)} requests."
    return (
        f"The busiest day was {most.day:%a %-d %b}, {count(most.requests)} requests; the quietest "
        f"was {least.day:%a %-d %b}, {count(least.requests)}."
    )


def _growth(days: tuple[Day, ...]) -> str:
    growth = weekly_growth(days)
    if growth.low is None or growth.mid is None or growth.high is None:
        return f"Growth is not known: {reason(growth)}."
    interval = between(growth, percent) or "exactly"
    if growth.low <= 0 <= growth.high:
        return f"No clear growth: {percent(growth.mid)} per week, {interval}."
    verb = "grew" if growth.mid > 0 else "fell"
    size = growth if growth.mid > 0 else _mirrored(growth)
    return f"Requests {verb} by {percent(size.mid or 0.0)} per week, {between(size, percent)}."


def _mirrored(growth: Estimate) -> Estimate:
    """A decline as a positive share."""
    return growth.map(lambda ratio: -ratio, is_decreasing=True)


def _first(pair: tuple[float, Day]) -> float:
    return pair[0]


def _requests(day: Day) -> float:
    return day.requests
