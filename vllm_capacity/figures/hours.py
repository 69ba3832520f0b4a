"""What each engine did in each whole hour of the clock."""

from __future__ import annotations

from datetime import datetime, timedelta

import polars as pl

from vllm_capacity.figures import traffic
from vllm_capacity.telemetry.window import Window
from vllm_capacity.timerange import TimeRange

HOUR = timedelta(hours=1)
_UNSEEN = timedelta(minutes=6)
_NEAR = timedelta(days=7)
_KEY = ("instance", "engine", "ts")


def engine_hours(
    window: Window, engines: pl.DataFrame, attempts: pl.DataFrame, *, time_range: TimeRange
) -> pl.DataFrame:
    """What each engine of `engines` was billed for and did in each whole hour (UTC) of the part.

    One row per engine and hour in which it was asked: instance, engine, ts (the hour's start),
    billed_hours, requests, generation_tokens (0 where nothing came), is_seen. What grew between two
    scrapes counts for the hour of the later one; `is_seen` is False where that may be another: the
    server gave no answer for over six minutes that touch the hour. Empty without a whole hour.
    """
    hours = pl.DataFrame(
        {"ts": whole_hours(time_range, attempts)}, schema={"ts": pl.Datetime("us", "UTC")}
    )
    wanted = _billed(attempts).join(hours, on="ts", how="semi")
    rows = wanted.join(engines.select("instance", "engine"), on="instance")
    done = _done(window, time_range)
    return (
        rows.join(done, on=_KEY, how="left")
        .join(_unseen(attempts, wanted), on=["instance", "ts"], how="left")
        .select(
            *_KEY,
            "billed_hours",
            pl.col("requests", "generation_tokens").fill_null(0.0),
            is_seen=pl.col("is_unseen").is_null(),
        )
        .sort("ts", "instance", "engine")
    )


def whole_hours(time_range: TimeRange, attempts: pl.DataFrame) -> list[datetime]:
    """The starts of the whole hours of the clock in the part, in order.

    Hours over a week from any attempt are left out: a year in which nobody asked is no list.
    """
    wanted = attempts.get_column("ts").sort()
    is_new = (wanted.diff() > 2 * _NEAR).fill_null(True)
    firsts, lasts = wanted.filter(is_new), wanted.filter(is_new.shift(-1, fill_value=True))
    return [
        hour
        for first, last in zip(firsts, lasts, strict=True)
        for hour in _hours_in(
            max(time_range.start, first - _NEAR), min(time_range.end, last + _NEAR)
        )
    ]


def _hours_in(start: datetime, end: datetime) -> list[datetime]:
    first = start.replace(minute=0, second=0, microsecond=0)
    first += HOUR if first < start else timedelta(0)
    return [first + HOUR * i for i in range(max(0, (end - first) // HOUR))]


def _hour(column: str = "ts") -> pl.Expr:
    return pl.col(column).dt.truncate("1h")


def _billed(attempts: pl.DataFrame) -> pl.DataFrame:
    """Hours of each server by hour of the clock: from attempt to attempt, failed ones included."""
    steps = attempts.sort("instance", "ts").with_columns(
        step=pl.col("ts").diff().over("instance").dt.total_microseconds() / 3.6e9
    )
    by_hour = steps.group_by("instance", ts=_hour()).agg(billed_hours=pl.col("step").sum())
    return by_hour.filter(pl.col("billed_hours") > 0)


def _unseen(attempts: pl.DataFrame, wanted: pl.DataFrame) -> pl.DataFrame:
    """Those of the hours asked that a long time without an answer touches, by server."""
    good = attempts.filter("is_good").sort("instance", "ts")
    steps = good.with_columns(before=pl.col("ts").shift().over("instance"))
    gaps = steps.filter(pl.col("ts") - pl.col("before") > _UNSEEN)
    touched = gaps.select("instance", ts=_hour("before"), until=_hour()).sort("ts")
    return (
        wanted.select("instance", "ts")
        .sort("ts")
        .join_asof(touched, on="ts", by="instance", check_sortedness=False)
        .filter(pl.col("ts") <= pl.col("until"))
        .select("instance", "ts", is_unseen=True)
    )


def _done(window: Window, time_range: TimeRange) -> pl.DataFrame:
    names = {traffic.REQUESTS: "requests", traffic.GENERATION_TOKENS: "generation_tokens"}
    increases = traffic.scrape_increases(window, list(names), time_range=time_range)
    return increases.group_by("instance", "engine", ts=_hour()).agg(
        pl.col("increase").filter(pl.col("metric") == metric).sum().alias(name)
        for metric, name in names.items()
    )
