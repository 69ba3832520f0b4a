"""The cost of a window over time: by even parts for the chart, by clock hour for idle hours.

Each part is billed like the whole (bills.py), by its own billed hours and its own exact counts. So
the bills of the parts add up to that of the whole.

Also the billed time and use of each engine in each whole hour of the clock.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import cached_property
from itertools import pairwise
from typing import Any

import polars as pl
from msgspec import Struct, field

from vllm_capacity.assumptions import Pricing
from vllm_capacity.billed import rate_of
from vllm_capacity.estimate import Estimate
from vllm_capacity.facts.fleet import Rate
from vllm_capacity.facts.metrics import GENERATION_TOKENS, REQUESTS
from vllm_capacity.figures import traffic
from vllm_capacity.figures.attempts import Attempts
from vllm_capacity.telemetry.window import Window
from vllm_capacity.timerange import TimeRange

HOUR = timedelta(hours=1)
_UNSEEN = timedelta(minutes=6)
_NEAR = timedelta(days=7)
_ENGINE = ("instance", "engine")
_KEY = (*_ENGINE, "ts")
_Successful = dict[tuple[str, str | None], float | None]
_Billed = dict[str, Any]


def engine_hours(
    window: Window,
    engines: pl.DataFrame,
    attempts: pl.DataFrame | Attempts,
    *,
    time_range: TimeRange,
) -> pl.DataFrame:
    """Billed time and use of each engine of `engines` in each whole hour (UTC) of the time range.

    One row per engine and hour with scrape attempts: instance, engine, ts (the hour's start),
    billed_hours, requests, generation_tokens (0 if there were none), is_seen. Growth between two
    scrapes counts for the hour of the later one; `is_seen` is False if it may belong to another
    hour, because the server did not answer for over six minutes that overlap the hour. Empty
    without a whole hour.
    """
    known = Attempts.of(attempts)
    wanted = _billed(known, whole_hours(time_range, known))
    rows = wanted.join(engines.select("instance", "engine"), on="instance")
    done = _done(window, time_range)
    return (
        rows.join(done, on=_KEY, how="left")
        .join(_unseen(known, wanted), on=["instance", "ts"], how="left")
        .select(
            *_KEY,
            "billed_hours",
            pl.col("requests", "generation_tokens").fill_null(0.0),
            is_seen=pl.col("is_unseen").is_null(),
        )
        .sort("ts", "instance", "engine")
    )


def whole_hours(time_range: TimeRange, attempts: Attempts) -> list[datetime]:
    """The starts of the whole clock hours in the time range, in order.

    Hours more than a week from any scrape attempt are left out, so that a year without attempts
    does not make a long list.
    """
    spans = attempts.stretches.select("start", "end").sort("start")
    spans = spans.with_columns(pl.col("end").cum_max())
    is_new = (pl.col("start") - pl.col("end").shift() > 2 * _NEAR).fill_null(True)
    apart = spans.group_by(is_new.cum_sum().alias("number"), maintain_order=True)
    return [
        hour
        for _, first, last in apart.agg(pl.col("start").first(), pl.col("end").last()).iter_rows()
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


def _billed(attempts: Attempts, hours: Sequence[datetime]) -> pl.DataFrame:
    """Billed time of each server in each of these hours: instance, ts, billed_hours (above 0).

    From the last attempt before the hour (else the first one in it) to the last one in it; failed
    ones count.
    """
    wanted = pl.DataFrame({"ts": hours}, schema={"ts": _INSTANT})
    ends = attempts.beside(sorted({*hours, *(hour + HOUR for hour in hours)}))
    steps = ends.with_columns(step=pl.col("ts").diff().over("instance"))
    by_hour = steps.group_by("instance", ts=_hour()).agg(
        billed_hours=pl.col("step").sum().dt.total_microseconds() / 3.6e9
    )
    return by_hour.filter(pl.col("billed_hours") > 0).join(wanted, on="ts", how="semi")


def _unseen(attempts: Attempts, wanted: pl.DataFrame) -> pl.DataFrame:
    """The wanted hours that overlap a long time without an answer, by server."""
    silences = attempts.silences(_UNSEEN.total_seconds())
    touched = silences.select("instance", ts=_hour("start"), until=_hour("end")).sort("ts")
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
    attempts: pl.DataFrame | Attempts,
    *,
    time_range: TimeRange,
    pricing: Pricing,
) -> pl.DataFrame:
    """One row per hour of the time range (or a round length that gives at most 48 rows), in order.

    Columns: start, end, successful_requests, allocation_usd, usd_per_request (null if unknown), and
    is_stub: a last part shorter than half of the longest (its cost per request depends on a few
    requests).
    """
    increases = traffic.scrape_increases(window, [REQUESTS], time_range=time_range)
    cuts = _cuts(time_range)
    billed = _billed_by_part(engines, Attempts.of(attempts).before(time_range.end), cuts)
    rows = [
        _row_of(cut, own, successful, pricing)
        for cut, own, successful in zip(cuts, billed, _successful(increases, cuts), strict=True)
    ]
    length = pl.col("end") - pl.col("start")
    return pl.DataFrame(rows, schema=_ROW_SCHEMA, orient="row").with_columns(
        is_stub=2 * length < length.max()
    )


def _row_of(
    cut: TimeRange, billed: Sequence[_Billed], successful: _Successful, pricing: Pricing
) -> tuple[datetime, datetime, float | None, float | None, float | None]:
    """A row of `costs_by_part` without is_stub, over engines with scrape attempts in the part."""
    rates = [rate_of(row, pricing) for row in billed]
    hours = [(row["billed_end"] - row["billed_start"]) / HOUR for row in billed]
    cost = _allocation_usd(hours, rates)
    counts = [successful.get((row["instance"], row["engine"])) for row in billed]
    counted = [count for count in counts if count is not None]
    requests = math.fsum(counted) if len(counted) == len(counts) else None
    each = cost / requests if cost is not None and requests else None
    return cut.start, cut.end, requests, cost, each


def _allocation_usd(hours: Sequence[float], rates: Sequence[Rate]) -> float | None:
    """The mid value of a bill: the sum of hours × GPUs × price; None if any engine has no price.

    Same as in `bill` (verdicts/cost/bill.py), without its other figures: a month needs a bill for
    each hour of each engine.
    """
    prices = [rate.usd_per_gpu_hour.mid for rate in rates]
    parts = [
        price * (length * rate.gpus_per_engine)
        for length, rate, price in zip(hours, rates, prices, strict=True)
        if price is not None
    ]
    return math.fsum(parts) if parts and len(parts) == len(rates) else None


def _successful(increases: pl.DataFrame, cuts: Sequence[TimeRange]) -> list[_Successful]:
    """Successful requests of each engine in each part (`traffic.successful`), by `_ENGINE`.

    Engines without a reading of the counter in a part are absent from it.
    """
    starts = pl.Series("start", [cut.start for cut in cuts], dtype=_INSTANT)
    parts = starts.to_frame().with_row_index("part")
    reasons = increases.get_column("labels").unique().to_frame()
    reasons = reasons.with_columns(
        reason=pl.col("labels").str.json_path_match("$.finished_reason").fill_null("")
    )
    counted = (
        increases.select("ts", *_ENGINE, "labels", "increase")
        .drop_nulls("increase")
        .filter(pl.col("ts").is_between(cuts[0].start, cuts[-1].end, closed="left"))
        .sort("ts")
        .join_asof(parts, left_on="ts", right_on="start")
        .join(reasons, on="labels")
        .group_by("part", *_ENGINE)
        .agg(
            pl.sum_horizontal(
                pl.col("increase").filter(pl.col("reason") == reason).sum()
                for reason in traffic.SUCCESSFUL_REASONS
            ).alias("requests"),
            is_known=(pl.col("reason") != "").all(),
        )
    )
    found: list[_Successful] = [{} for _ in cuts]
    for part, instance, engine, requests, is_known in counted.iter_rows():
        found[part][instance, engine] = requests if is_known else None
    return found


def _billed_by_part(
    engines: pl.DataFrame, attempts: Attempts, cuts: Sequence[TimeRange]
) -> list[list[_Billed]]:
    """The engines with attempts in each part, with billed times as in `scrapes.billed_hours`.

    Computed for all parts at once: instance, engine, billed_start, billed_end.
    """
    borders = [cut.start for cut in cuts]
    starts = pl.Series("start", borders, dtype=_INSTANT).to_frame().with_row_index("part")
    ends = attempts.beside([*borders, cuts[-1].end])
    placed = ends.sort("ts").join_asof(starts, left_on="ts", right_on="start")
    spans = placed.group_by("instance", "part").agg(
        first=pl.col("ts").first(), billed_end=pl.col("ts").last()
    )
    # Attempts before the first part (null) sort first.
    before = pl.col("billed_end").shift().over("instance", order_by="part")
    spans = spans.with_columns(billed_start=pl.coalesce(before, "first")).drop_nulls("part")
    rows = engines.select(_ENGINE).join(spans, on="instance", maintain_order="left")
    found: list[list[_Billed]] = [[] for _ in cuts]
    for row in rows.iter_rows(named=True):
        found[row["part"]].append(row)
    return found


def _cuts(time_range: TimeRange) -> list[TimeRange]:
    """The time range split into even steps; the last one may be shorter.

    Steps of an hour or more are aligned with the clock (UTC), so the first may be shorter, too.
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
    """One hour if that gives several rows but not too many, else the nearest round length."""
    if _HOUR_FROM_HOURS <= hours <= _MAX_ROWS:
        return 1.0
    fitting = [each for each in _READABLE_PARTS_HOURS if hours / each <= _MAX_ROWS]
    return fitting[0] if fitting else _READABLE_PARTS_HOURS[-1]


def costs_by_hour(
    window: Window,
    engines: pl.DataFrame,
    attempts: pl.DataFrame | Attempts,
    *,
    time_range: TimeRange,
    pricing: Pricing,
    capacity: Estimate,
) -> pl.DataFrame:
    """Use and cost of each whole clock hour (UTC) in the time range, in order.

    Columns: ts (its start), requests (finished), cost_usd, utilization_ratio (0..1). Cost and use
    are those of the bill (verdicts/cost/bill.py); `capacity` is that of one engine, output
    tokens/s. Null if an engine was not seen throughout the hour (`engine_hours`), or without a
    price or a capacity. Empty if the time range has no whole hour.
    """
    known = Attempts.of(attempts)
    frame = engine_hours(window, engines, known, time_range=time_range)
    by_hour = frame.partition_by("ts", as_dict=True)
    rates = HourRates(pricing)
    rows = []
    for start in whole_hours(time_range, known):
        own = by_hour.get((start,))
        is_seen = own is not None and bool(own["is_seen"].all())
        found = hour_of(own, start, rates, capacity) if is_seen and own is not None else None
        rows.append((start, *(found or (None, None, None))))
    return pl.DataFrame(rows, schema=_HOUR_SCHEMA, orient="row")


def hour_of(
    engines: pl.DataFrame, start: datetime, rates: HourRates, capacity: Estimate
) -> tuple[float, float | None, float | None]:
    """Requests, cost and utilization of one hour, from its rows of `engine_hours`."""
    hours, tokens = engines["billed_hours"].to_list(), engines["generation_tokens"].to_list()
    cost = _allocation_usd(hours, [rates.of(name, start) for name in engines["instance"]])
    used = _utilization(hours, tokens, capacity)
    return float(engines["requests"].sum()), cost, used


def _utilization(
    hours: Sequence[float], tokens: Sequence[float], capacity: Estimate
) -> float | None:
    """The mid value of utilization over an hour, 0..1; `capacity` is that of one engine."""
    if not math.fsum(tokens):
        return 0.0
    if capacity.low is None or capacity.mid is None:
        return None
    if math.fsum(capacity.low * length for length in hours) <= 0:
        return None
    rate = math.fsum(count / 3600 for count in tokens)
    return min(rate / math.fsum(capacity.mid * length for length in hours), 1.0)


class HourRates(Struct, frozen=True, dict=True):
    """The rate of an instance by hour; hours between two starts of rules share one lookup."""

    pricing: Pricing
    _found: dict[tuple[str, int], Rate] = field(default_factory=dict)

    def of(self, instance: str, start: datetime) -> Rate:
        """The GPUs and the price in the hour that starts at `start`."""
        row = {"instance": instance, "billed_start": start, "billed_end": start + HOUR}
        place = bisect_right(self._borders, start)
        if place < len(self._borders) and self._borders[place] < start + HOUR:
            return rate_of(row, self.pricing)  # it changes within the hour
        if (instance, place) not in self._found:
            self._found[instance, place] = rate_of(row, self.pricing)
        return self._found[instance, place]

    @cached_property
    def _borders(self) -> list[datetime]:
        ends = (end for rule in self.pricing.rules for end in (rule.start, rule.end))
        return sorted({end for end in ends if end is not None})
