"""What each engine did in each whole hour of the clock."""

from __future__ import annotations

from datetime import datetime, timedelta

import polars as pl

from vllm_capacity.figures import traffic
from vllm_capacity.telemetry.window import Window
from vllm_capacity.timerange import TimeRange

HOUR = timedelta(hours=1)
_UNSEEN = timedelta(minutes=6)
_KEY = ("instance", "engine", "ts")


def engine_hours(
    window: Window, fleet: pl.DataFrame, tries: pl.DataFrame, *, part: TimeRange
) -> pl.DataFrame:
    """What each engine of `fleet` was billed for and did in each whole hour (UTC) of the part.

    One row an engine and hour in which it was asked: instance, engine, ts (the hour's start),
    billed_hours, requests, generation_tokens (0 where nothing came), is_seen. What grew between two
    scrapes counts for the hour of the later one; `is_seen` is False where that may be another: the
    server gave no answer for over six minutes that touch the hour. Empty without a whole hour.
    """
    hours = pl.DataFrame({"ts": whole_hours(part)}, schema={"ts": pl.Datetime("us", "UTC")})
    asked = _billed(tries).join(hours, on="ts", how="semi")
    rows = asked.join(fleet.select("instance", "engine"), on="instance")
    done = _done(window, part)
    return (
        rows.join(done, on=_KEY, how="left")
        .join(_unseen(tries), on=["instance", "ts"], how="left")
        .select(
            *_KEY,
            "billed_hours",
            pl.col("requests", "generation_tokens").fill_null(0.0),
            is_seen=pl.col("is_unseen").is_null(),
        )
        .sort("ts", "instance", "engine")
    )


def whole_hours(part: TimeRange) -> list[datetime]:
    """The starts of the whole hours of the clock in the part."""
    first = part.start.replace(minute=0, second=0, microsecond=0)
    first += HOUR if first < part.start else timedelta(0)
    return [first + HOUR * i for i in range(max(0, (part.end - first) // HOUR))]


def _hour(column: str = "ts") -> pl.Expr:
    return pl.col(column).dt.truncate("1h")


def _billed(tries: pl.DataFrame) -> pl.DataFrame:
    """Hours of each server by hour of the clock: from attempt to attempt, failed ones included."""
    steps = tries.sort("instance", "ts").with_columns(
        step=pl.col("ts").diff().over("instance").dt.total_microseconds() / 3.6e9
    )
    by_hour = steps.group_by("instance", ts=_hour()).agg(billed_hours=pl.col("step").sum())
    return by_hour.filter(pl.col("billed_hours") > 0)


def _unseen(tries: pl.DataFrame) -> pl.DataFrame:
    """The hours that a long time without an answer touches, by server."""
    good = tries.filter("is_good").sort("instance", "ts")
    steps = good.with_columns(before=pl.col("ts").shift().over("instance"))
    gaps = steps.filter(pl.col("ts") - pl.col("before") > _UNSEEN)
    touched = gaps.select("instance", ts=pl.datetime_ranges(_hour("before"), _hour(), "1h"))
    return touched.explode("ts").unique().with_columns(is_unseen=True)


def _done(window: Window, part: TimeRange) -> pl.DataFrame:
    names = {traffic.REQUESTS: "requests", traffic.GENERATION_TOKENS: "generation_tokens"}
    increases = traffic.scrape_increases(window, list(names), part=part)
    return increases.group_by("instance", "engine", ts=_hour()).agg(
        pl.col("increase").filter(pl.col("metric") == metric).sum().alias(name)
        for metric, name in names.items()
    )
