"""Bounds on what servers may have counted without a scrape reading it: no figure includes it.

No scrape reads what a process counts between its last scrape and its end (at a restart, or at an
outage without return) or, if it does not report its start time, before its first scrape. The amount
depends on load that was not observed, so earlier rates do not bound it. The sum of these does:

1. the requests that ran and waited at the last scrape, because they may have finished;
2. the maximum that finished between any two scrapes of the window, because clients may all leave at
   once;
3. for the time since then, the maximum that a server can do: as many requests as it can run at once
   (as many of this kind as fit into its KV cache), each as fast as the fastest stretch seen, or the
   highest rate of any minute if that is higher. If telemetry does not show this number or the
   latencies, the highest rate of any scrape interval.

The lower bound is 0: the process may have ended right after its last scrape.

Figures also lack scrapes that were left out because a clock was set. For a single process, that
amount is known exactly from its counters. If a process ended while a clock was set, it is unknown
how long it kept running, so there is no upper bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from functools import cached_property
from math import ceil
from typing import Any

import polars as pl
from msgspec import Struct

from vllm_capacity.facts.metrics import (
    E2E,
    GENERATION_TOKENS,
    ITL,
    KV_CACHE,
    PROMPT_TOKENS,
    REQUESTS,
    RUNNING,
    WAITING,
)
from vllm_capacity.figures import gauges, traffic
from vllm_capacity.figures.attempts import Attempts
from vllm_capacity.figures.scrapes import (
    GAP_FACTOR,
    Outage,
    Restart,
    doubtful_addresses,
    longest_median,
)
from vllm_capacity.record import Record
from vllm_capacity.telemetry.window import Window
from vllm_capacity.timerange import TimeRange

TOKENS = (GENERATION_TOKENS, PROMPT_TOKENS)
COUNTED = (REQUESTS, *TOKENS)
STRETCH = {E2E: 20, ITL: 200}  # minimum observations for a mean
_MIN_KV_RATIO = 0.02  # lower usage does not show how many requests fit into the cache


class Lost(Record, frozen=True):
    """Bounds of what is missing from all figures, in the unit of the counter.

    `high` is None if there is no upper bound; `reason` then says why, and is empty otherwise.
    """

    low: float
    high: float | None
    reason: str = ""


class Pace(Struct, frozen=True):
    """The maximum that one server counted between two scrapes, and that it can count per second.

    `per_second` is None if no rate was ever observed.
    """

    burst: float
    per_second: float | None

    def most(self, seconds: float) -> float:
        """The maximum that it can count in that time."""
        return self.burst + seconds * (self.per_second or 0.0)


class Ceiling(Struct, frozen=True):
    """The maximum that one server can have done; `places`: the requests that it can run at once."""

    requests: Pace
    output_tokens: Pace
    prompt_tokens: Pace
    prompt_tokens_per_request: float
    places: float
    basis: str  # how the pace of requests was found, as text


class Unread(Struct, frozen=True):
    """A time in which a server may have counted without being read, with bounds on the amount.

    `running` and `waiting` are the requests at the last scrape before it; both None if there is
    none (late, clock). `why` is restart, outage, late (ended by the first scrape) or clock (scrapes
    were left out because a clock was set, somewhere in the window). The bounds `requests` and
    `tokens` are whole numbers, like counts; both None if the elapsed time is unknown.
    """

    instance: str
    why: str
    start: datetime
    end: datetime
    running: float | None
    waiting: float | None
    requests: int | None
    tokens: int | None
    reason: str = ""  # why there is no bound


class Losses(Struct, frozen=True, dict=True):
    """Everything that figures of a time range may lack, and the basis of the bounds."""

    stretches: tuple[Unread, ...]
    basis: str

    @property
    def requests(self) -> Lost:
        """Bounds on lost finished requests."""
        return self._all([each.requests for each in self.stretches])

    @property
    def tokens(self) -> Lost:
        """Bounds on lost prompt and output tokens together."""
        return self._all([each.tokens for each in self.stretches])

    def _all(self, bounds: Sequence[int | None]) -> Lost:
        known = [bound for bound in bounds if bound is not None]
        reasons = sorted({each.reason for each in self.stretches} - {""})
        high = None if len(known) < len(bounds) else float(sum(known))
        return Lost(0.0, high, "; ".join(reasons))

    def of(self, instance: str, why: str) -> list[Unread]:
        """The unread times of one target and kind, in order."""
        return self._by_target.get((instance, why), [])

    @cached_property
    def _by_target(self) -> dict[tuple[str, str], list[Unread]]:
        found: dict[tuple[str, str], list[Unread]] = {}
        for one in self.stretches:
            found.setdefault((one.instance, one.why), []).append(one)
        return found


def losses(
    window: Window,
    *,
    time_range: TimeRange,
    attempts: pl.DataFrame | Attempts,
    restarts: Sequence[Restart],
    outages: Sequence[Outage],
) -> Losses:
    """What figures of the time range may lack; nothing if every process was read to its end."""
    late = _late(window, time_range, attempts)
    untimed = window.named_sql("figures", "untimed")
    unread, basis = _left_out(window, untimed, time_range=time_range), ""
    if restarts or outages or not late.is_empty():
        found = ceiling(window)
        set_clocks = set(untimed.get_column("instance"))
        spells = [_restart_spell(each, each.instance in set_clocks) for each in restarts]
        spells += [(o.instance, "outage", o.last_good, o.end) for o in outages]
        reasons: dict[str, list[tuple[datetime, str]]] = {}
        for instance, ts, reason in untimed.select("instance", "ts", "reason").iter_rows():
            if ts is not None:
                reasons.setdefault(instance, []).append((ts, reason))
        unread += [
            _after_last_scrape(row, found, reasons.get(row["instance"], ()))
            for row in _with_load(window, time_range, spells).iter_rows(named=True)
        ]
        unread += [_before_first_scrape(row, found) for row in late.iter_rows(named=True)]
        basis = found.basis
    return Losses(tuple(sorted(unread, key=lambda one: (one.instance, one.start))), basis)


def _restart_spell(restart: Restart, is_set: bool) -> tuple[str, str, datetime, datetime]:
    """How long the old process may have kept running; ignores the new start if a clock `is_set`.

    A process reports its start by its server's clock, which is not corrected as timestamps are.
    """
    end = None if is_set else restart.started
    return restart.instance, "restart", restart.before, end or restart.after


def _left_out(window: Window, untimed: pl.DataFrame, *, time_range: TimeRange) -> list[Unread]:
    """How much counters increased in scrapes that were left out, by target.

    Unknown for a target if its clock was set and its processes cannot be put in order.
    """
    counted = window.named_sql("figures", "uncounted", metrics=[REQUESTS, *TOKENS])
    doubtful = [] if untimed.is_empty() else list(doubtful_addresses(window))
    is_unsure = pl.col("ts").is_null() | pl.col("instance").is_in(doubtful)
    unsure: dict[str, str] = dict(
        untimed.filter(is_unsure).select("instance", "reason").iter_rows()
    )
    found = []
    for instance in sorted({*counted.get_column("instance"), *unsure}):
        own = counted.filter(pl.col("instance") == instance).select("metric", "grown")
        grown: dict[str, float] = dict(own.iter_rows())
        requests, tokens = (
            None if instance in unsure else _up(sum(grown.get(name, 0.0) for name in names))
            for names in ((REQUESTS,), TOKENS)
        )
        start, end, reason = time_range.start, time_range.end, unsure.get(instance, "")
        found.append(Unread(instance, "clock", start, end, None, None, requests, tokens, reason))
    return found


def ceiling(window: Window) -> Ceiling:
    """The maximum that one server can have done, judged from the whole window."""
    increases, paces = (window.hourly(name, everywhere=True) for name in ("increases", "paces"))
    if increases is None or paces is None:
        increases = traffic.scrape_increases(window, COUNTED, time_range=window.extent)
        paces = scrape_paces(increases)
    places, is_known = _places(window)
    means = {metric: _fastest_mean(window, metric, least) for metric, least in STRETCH.items()}
    able = {
        metric: places / seconds
        for metric, seconds in means.items()
        if is_known and seconds is not None
    }
    requests = _pace(paces, REQUESTS, able.get(E2E))
    finished, read = (traffic.total(increases, m) for m in (REQUESTS, TOKENS[1]))
    return Ceiling(
        requests,
        _pace(paces, TOKENS[0], able.get(ITL)),
        _pace(paces, TOKENS[1], 0.0 if E2E in able else None),
        (read or 0.0) / finished if finished else 0.0,
        places,
        _basis(requests, places if E2E in able else None),
    )


def fastest_means(window: Window) -> pl.DataFrame:
    """The lowest mean latencies over stretches of a piece: fastest_means.sql.

    One row per metric of `STRETCH` that was observed. Stretches are half as long as in a whole
    window, because the ends of the piece cut some short.
    """
    found = [
        window.named_sql("figures", "fastest_means", metrics=[metric], least=least // 2)
        for metric, least in STRETCH.items()
    ]
    return pl.concat(found)


def _fastest_mean(window: Window, metric: str, least: int) -> float | None:
    """The lowest mean of a latency over a stretch, else over all observations; None if none.

    For a window in pieces, the lowest of their means: a bound should err on the fast side.
    """
    own = window.named_sql("figures", "fastest_means", metrics=[metric], least=least)
    if own.is_empty():
        return None
    whole = pl.col("seconds") / pl.col("observed")
    return float(own.select(pl.coalesce("fastest_seconds", whole).min()).item())


def _basis(requests: Pace, places: float | None) -> str:
    if requests.per_second is None:
        return "an unknown rate, because none was observed; more may have been lost"
    how = (
        "the highest rate of any scrape interval"
        if places is None
        else f"{places:.0f} concurrent, at the highest speed observed or that of the best minute"
    )
    return f"{requests.per_second:.3g} requests/s ({how})"


def scrape_paces(increases: pl.DataFrame) -> pl.DataFrame:
    """The maximum that each target counted, from increases between scrapes.

    One row per target and metric: `burst` between two scrapes, `per_second` between two scrapes at
    least a second apart, `per_second_of_minute` over the scrapes of a clock minute.
    """
    seconds = (pl.col("ts") - pl.col("ts_before")).dt.total_microseconds() / 1e6
    rate = pl.col("increase") / seconds
    scrapes = (
        increases.drop_nulls(["ts_before", "increase"])
        .group_by("instance", "metric", "ts")
        .agg(pl.col("increase").sum(), pl.col("ts_before").max())
    )
    minutes = scrapes.group_by("instance", "metric", pl.col("ts").dt.truncate("1m").alias("m")).agg(
        pl.col("increase").sum(), pl.col("ts").max(), pl.col("ts_before").min()
    )
    key = ("instance", "metric")
    return (
        scrapes.group_by(key)
        .agg(burst=pl.col("increase").max(), per_second=rate.filter(seconds >= 1).max())
        .join(minutes.group_by(key).agg(per_second_of_minute=rate.max()), on=key)
        .sort(key)
    )


def _pace(paces: pl.DataFrame, metric: str, able: float | None) -> Pace:
    """The pace of a counter; `able`: the rate if all places are used, None if unknown."""
    own = paces.filter(pl.col("metric") == metric)
    burst, rate, of_minute = (
        own.get_column(name).max() for name in ("burst", "per_second", "per_second_of_minute")
    )
    if able is None:
        return Pace(burst or 0.0, rate)  # type: ignore[arg-type]
    return Pace(burst or 0.0, max(able, of_minute or 0.0) or None)  # type: ignore[arg-type]


def _places(window: Window) -> tuple[float, bool]:
    """How many requests one server can run at once, and whether telemetry shows it.

    It does if a cache in use shows how many would fit; else returns the maximum that ran at once.
    """
    rows = window.hourly("places", everywhere=True)
    if rows is None:
        rows = engine_places(window, time_range=window.extent)
    engines = rows.group_by("instance", "engine").agg(
        most=pl.col("most").max(), held=pl.col("running").sum() / pl.col("kv_cache_ratio").sum()
    )
    held = pl.col("held").fill_nan(None)
    servers = engines.group_by("instance").agg(
        places=pl.max_horizontal("most", held).sum(), is_known=held.is_not_null().any()
    )
    most = servers.get_column("places").max()
    return max(1.0, float(most or 0.0)), bool(servers.get_column("is_known").any())  # type: ignore[arg-type]


def engine_places(window: Window, *, time_range: TimeRange) -> pl.DataFrame:
    """Data on how many requests each engine can run: instance, engine, `most` (maximum that ran).

    `running` and `kv_cache_ratio` are sums over the scrapes in which its cache was in use.
    """
    metrics = [RUNNING, KV_CACHE]
    samples = gauges.gauge_samples(window, metrics, time_range=time_range)
    running, kv_cache = (
        samples.filter(pl.col("metric") == metric)
        .group_by("instance", "engine", "ts", maintain_order=True)
        .agg(pl.col("value").max())
        for metric in metrics
    )
    key = ["instance", "engine", "ts"]
    both = running.join(
        kv_cache, on=key, how="left", nulls_equal=True, suffix="_kv", maintain_order="left"
    )
    is_full = pl.col("value_kv") >= _MIN_KV_RATIO
    held = both.group_by("instance", "engine", maintain_order=True).agg(
        most=pl.col("value").max(),
        running=pl.col("value").filter(is_full),
        kv_cache_ratio=pl.col("value_kv").filter(is_full),
    )
    # Sums of groups depend on the number of threads in their last bit, sums of lists do not.
    return held.with_columns(pl.col("running", "kv_cache_ratio").list.sum())


def _with_load(
    window: Window, time_range: TimeRange, spells: Sequence[tuple[str, str, datetime, datetime]]
) -> pl.DataFrame:
    """The spells, with the requests running and waiting at the last scrape before each of them.

    Columns: instance, why, start, end, running, waiting (summed over engines; null if unobserved).
    """
    instant = pl.Datetime("us", "UTC")
    texts = {"instance": pl.String, "why": pl.String}
    schema: dict[str, Any] = {**texts, "start": instant, "end": instant}
    frame = pl.DataFrame(spells, schema=schema, orient="row").sort("start")
    whole = TimeRange(window.extent.start, time_range.end)
    load = gauges.gauge_samples(window, [RUNNING, WAITING], time_range=whole)
    for name, metric in (("running", RUNNING), ("waiting", WAITING)):
        own = load.filter(pl.col("metric") == metric).group_by("instance", start="ts")
        frame = frame.join_asof(
            own.agg(pl.col("value").sum().alias(name)).sort("start"),
            on="start",
            by="instance",
            check_sortedness=False,
        )
    return frame.sort("instance", "start")


def _after_last_scrape(
    row: dict[str, Any], found: Ceiling, untimed: Sequence[tuple[datetime, str]]
) -> Unread:
    """The maximum counted by a process after its last scrape; `untimed`: why it may be unknown."""
    instance, why, start, end = row["instance"], row["why"], row["start"], row["end"]
    running, waiting = row["running"] or 0.0, row["waiting"] or 0.0
    reasons = [reason for ts, reason in untimed if start < ts <= end]
    if reasons:
        return Unread(instance, why, start, end, running, waiting, None, None, reasons[0])
    seconds = max(0.0, (end - start).total_seconds())
    requests = running + waiting + found.requests.most(seconds)
    tokens = _most_tokens(seconds, running, requests, found)
    return Unread(instance, why, start, end, running, waiting, _up(requests), _up(tokens))


def _most_tokens(seconds: float, running: float, requests: float, found: Ceiling) -> float:
    """Tokens: prompts of all requests that can have started, output, one per running request."""
    prompts = (requests + found.places) * found.prompt_tokens_per_request
    output = running + found.output_tokens.most(seconds)
    return output + max(prompts, found.prompt_tokens.most(seconds))


def _late(window: Window, time_range: TimeRange, attempts: pl.DataFrame | Attempts) -> pl.DataFrame:
    """Targets first scraped well after the time range began that do not report their start.

    One row per target: instance, start, first (its first good scrape), and the requests and tokens
    that it had counted by then.
    """
    firsts = window.named_sql(
        "figures",
        "first_values",
        metrics=[REQUESTS, *TOKENS],
        start=time_range.start,
        end=time_range.end,
    ).filter(~pl.col("starts_at_zero") & (pl.col("first_value") > 0))
    is_request = pl.col("metric") == REQUESTS
    counted = firsts.group_by("instance", maintain_order=True).agg(
        first=pl.col("first_ts").min(),
        requests=pl.col("first_value").filter(is_request).sum(),
        tokens=pl.col("first_value").filter(~is_request).sum(),
    )
    since = pl.lit(time_range.start, pl.Datetime("us", "UTC"))
    if counted.is_empty():
        return counted.with_columns(start=since)
    inside = Attempts.of(attempts).since(time_range.start)
    seconds = (pl.col("first") - since).dt.total_microseconds() / 1e6
    # Medians over a long time are costly; bounds on them are enough for nearly all targets.
    bounds = [ends for own in inside.targets.values() if (ends := own.most_steps())]
    least, most = (max((ends[which] for ends in bounds), default=0.0) for which in (0, 1))
    counted = counted.filter(seconds > GAP_FACTOR * least)
    if counted.select((seconds <= GAP_FACTOR * most).any()).item():
        usual = longest_median(inside.targets.values())
        counted = counted.filter(seconds > GAP_FACTOR * usual)
    return counted.with_columns(start=since)


def _before_first_scrape(row: dict[str, Any], found: Ceiling) -> Unread:
    """What a late target counted since the start: at most its whole count, or what it can do."""
    start, first = row["start"], row["first"]
    seconds = (first - start).total_seconds()
    requests, tokens = row["requests"], row["tokens"]
    if found.requests.per_second is not None:
        requests = min(requests, found.places + found.requests.most(seconds))
        tokens = min(tokens, _most_tokens(seconds, found.places, requests, found))
    return Unread(row["instance"], "late", start, first, None, None, _up(requests), _up(tokens))


def _up(bound: float) -> int:
    """The next whole number; digits that depend on a sum's order are rounded off first."""
    return ceil(round(bound, 6))
