"""What a window cost over time: by round parts for the chart, by clock hour for idle hours.

Each part is charged as the whole is (bills.py): its own billed hours, its own exact counts. So the
parts' bills add up to the whole's.

What each engine did in each whole hour of the clock.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import polars as pl

from vllm_capacity.assumptions import Pricing
from vllm_capacity.bills import engine_name, priced
from vllm_capacity.estimate import Estimate
from vllm_capacity.facts.metrics import GENERATION_TOKENS, REQUESTS
from vllm_capacity.figures import scrapes, traffic
from vllm_capacity.telemetry.window import Window
from vllm_capacity.timerange import TimeRange
from vllm_capacity.verdicts.cost.bill import CostShare, Usage, bill

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
    names = {REQUESTS: "requests", GENERATION_TOKENS: "generation_tokens"}
    increases = traffic.scrape_increases(window, list(names), time_range=time_range)
    return increases.group_by("instance", "engine", ts=_hour()).agg(
        pl.col("increase").filter(pl.col("metric") == metric).sum().alias(name)
        for metric, name in names.items()
    )


_MAX_ROWS = 48
_MONDAY = datetime(2024, 1, 1, tzinfo=UTC)
_HOUR_FROM_HOURS = 6.0
_READABLE_PARTS_HOURS = (1 / 12, 1 / 4, 1.0, 2.0, 4.0, 12.0, 24.0, 168.0)
_INSTANT = pl.Datetime("us", "UTC")
_ROW_SCHEMA: dict[str, Any] = {
    **{name: _INSTANT for name in ("start", "end")},
    **{name: pl.Float64 for name in ("successful_requests", "allocation_usd", "usd_per_request")},
}
_HOUR_SCHEMA: dict[str, Any] = {
    "ts": _INSTANT,
    **{name: pl.Float64 for name in ("requests", "cost_usd", "utilization_ratio")},
}


def costs_by_part(
    window: Window,
    engines: pl.DataFrame,
    attempts: pl.DataFrame,
    *,
    time_range: TimeRange,
    pricing: Pricing,
) -> pl.DataFrame:
    """One row per hour of the time range (or a round length that gives 48 rows at most), in order.

    Columns: start, end, successful_requests, allocation_usd, usd_per_request (null where unknown),
    and is_stub: a last part shorter than half of the longest, whose cost per request a handful of
    requests decides.
    """
    increases = traffic.scrape_increases(window, [REQUESTS], time_range=time_range)
    rows = [
        _row_of(cut, engines, attempts, _within(increases, cut), pricing)
        for cut in _cuts(time_range)
    ]
    length = pl.col("end") - pl.col("start")
    return pl.DataFrame(rows, schema=_ROW_SCHEMA, orient="row").with_columns(
        is_stub=2 * length < length.max()
    )


def _row_of(
    cut: TimeRange,
    engines: pl.DataFrame,
    attempts: pl.DataFrame,
    increases: pl.DataFrame,
    pricing: Pricing,
) -> tuple[datetime, datetime, float | None, float | None, float | None]:
    known = attempts.filter(pl.col("ts") < cut.end)
    tried = known.filter(pl.col("ts") >= cut.start).select("instance").unique()
    there = engines.select("instance", "engine", "model_name").join(
        tried, on="instance", how="semi"
    )
    usages = {}
    for row in scrapes.billed_hours(there, known, time_range=cut).iter_rows(named=True):
        own = increases.filter(
            (pl.col("instance") == row["instance"]) & pl.col("engine").eq_missing(row["engine"])
        )
        by_reason = traffic.total_by_label(own, REQUESTS, "finished_reason")
        usage = Usage(row["hours"], traffic.successful(by_reason), None, None)
        unknown = Estimate.unknown("a part's capacity is not asked for")
        usages[engine_name(row)] = priced(row, usage, unknown, pricing)
    charged = bill(usages)
    cost, each = charged.whole.allocation_usd.mid, charged.whole.usd_per_request.mid
    return cut.start, cut.end, charged.usage.successful_requests, cost, each


def _within(increases: pl.DataFrame, cut: TimeRange) -> pl.DataFrame:
    known = increases.drop_nulls("increase")
    return known.filter((pl.col("ts") >= cut.start) & (pl.col("ts") < cut.end))


def _cuts(time_range: TimeRange) -> list[TimeRange]:
    """The time range cut at even steps; the last one perhaps shorter.

    Steps of hours and more stand on the clock (UTC), so that the first may be shorter, too.
    """
    step = timedelta(hours=_row_hours(time_range.hours))
    start = time_range.start
    if step >= HOUR:
        start -= (start - _MONDAY) % step
    count = max(1, -((start - time_range.end) // step))
    borders = [start + step * i for i in range(1, count)]
    ends = [time_range.start, *borders, time_range.end]
    return [TimeRange(first, last) for first, last in pairwise(ends) if first < last]


def _row_hours(hours: float) -> float:
    """An hour where the window has several and not too many, else the nearest round length."""
    if _HOUR_FROM_HOURS <= hours <= _MAX_ROWS:
        return 1.0
    fitting = [each for each in _READABLE_PARTS_HOURS if hours / each <= _MAX_ROWS]
    return fitting[0] if fitting else _READABLE_PARTS_HOURS[-1]


def costs_by_hour(
    window: Window,
    engines: pl.DataFrame,
    attempts: pl.DataFrame,
    *,
    time_range: TimeRange,
    pricing: Pricing,
    capacity: Estimate,
) -> pl.DataFrame:
    """What each whole hour of the clock (UTC) in the time range brought and cost, in order.

    Columns: ts (its start), requests (finished), cost_usd, utilization_ratio (0..1). Cost and use
    are the bill's (verdicts/cost/bill.py); `capacity` is that of one engine, output tokens/s.
    Null where an engine was not seen through the hour (costs_by_time.py), or where there is no
    price or no capacity. Empty where the time range holds no whole hour.
    """
    frame = engine_hours(window, engines, attempts, time_range=time_range)
    by_hour = frame.partition_by("ts", as_dict=True)
    rows = []
    for start in whole_hours(time_range, attempts):
        own = by_hour.get((start,))
        is_seen = own is not None and bool(own["is_seen"].all())
        found = _clock_hour(own, pricing, capacity) if is_seen and own is not None else None
        rows.append((start, *(found or (None, None, None))))
    return pl.DataFrame(rows, schema=_HOUR_SCHEMA, orient="row")


def _clock_hour(
    engines: pl.DataFrame, pricing: Pricing, capacity: Estimate
) -> tuple[float, float | None, float | None]:
    """Requests, cost and utilization of one hour: its rows of costs_by_time.py."""
    parts: dict[str, CostShare] = {}
    for row in engines.iter_rows(named=True):
        hours, tokens = row["billed_hours"], row["generation_tokens"]
        usage = Usage(
            billed_hours=hours,
            successful_requests=None,
            prompt_tokens=None,
            generation_tokens=tokens,
            output_tokens_per_second=tokens / 3600,
        )
        times = {"billed_start": row["ts"], "billed_end": row["ts"] + HOUR}
        parts[engine_name(row)] = priced({**row, **times}, usage, capacity.scaled(hours), pricing)
    whole = bill(parts).whole
    return float(engines["requests"].sum()), whole.allocation_usd.mid, whole.utilization.mid
