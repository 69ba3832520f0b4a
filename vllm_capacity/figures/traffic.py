"""Counters: their exact increase over the whole window or any time range of it.

Also failures, as far as vLLM exposes them, each with its definition and its blind spot.

vLLM exports no total of received requests and no failure counter, so a failure rate cannot be
computed by subtraction. Available are: HTTP answers, requests that the engine ended with an error,
rejections at admission, and an estimate of the streams that clients abandoned.
"""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from vllm_capacity.estimate import Estimate, Figures
from vllm_capacity.facts.metrics import (
    FLOPS,
    GENERATION_TOKENS,
    HTTP_REQUESTS,
    OLD_PREFIX_HITS,
    OLD_PREFIX_QUERIES,
    PREEMPTIONS,
    PREFIX_HITS,
    PREFIX_QUERIES,
    PROMPT_TOKENS,
    PROMPT_TOKENS_BY_SOURCE,
    PROMPT_TOKENS_CACHED,
    READ_BYTES,
    REJECTIONS,
    REQUESTS,
    RUNNING,
    TTFT,
    WRITE_BYTES,
)
from vllm_capacity.figures import gauges, latency, traffic
from vllm_capacity.telemetry.window import Window
from vllm_capacity.timerange import TimeRange

# The counters behind the columns of each step.
STEP_COUNTERS = (GENERATION_TOKENS, PROMPT_TOKENS, REQUESTS, PREEMPTIONS)
COUNTERS = (
    REQUESTS,
    GENERATION_TOKENS,
    PROMPT_TOKENS,
    PROMPT_TOKENS_BY_SOURCE,
    PROMPT_TOKENS_CACHED,
    PREEMPTIONS,
    PREFIX_QUERIES,
    PREFIX_HITS,
    OLD_PREFIX_QUERIES,
    OLD_PREFIX_HITS,
    HTTP_REQUESTS,
    REJECTIONS,
    FLOPS,
    READ_BYTES,
    WRITE_BYTES,
)
"""Every counter that any figure uses."""
SUCCESSFUL_REASONS = ("stop", "length", "repetition")


def counter_increases(
    window: Window, metrics: Sequence[str], *, time_range: TimeRange
) -> pl.DataFrame:
    """The exact (anchored) increase of each counter series over the time range.

    One row per series with a sample in the time range: series_id, metric, instance, engine,
    model_name, labels, starts_at_zero, increase (in the counter's unit), base_ts and last_ts, the
    two scrapes between which it increased. Empty if nothing was observed. Source: PromQL's
    `increase … anchored`.
    """
    # An analysis needs several of these; fetching all of them takes one pass over the samples.
    wanted = COUNTERS if set(metrics) <= set(COUNTERS) else tuple(metrics)
    found = window.named_sql(
        "figures",
        "counter_increase",
        metrics=list(wanted),
        start=time_range.start,
        end=time_range.end,
    )
    return found.filter(pl.col("metric").is_in(list(metrics)))


def scrape_increases(
    window: Window, metrics: Sequence[str], *, time_range: TimeRange
) -> pl.DataFrame:
    """The increase of each counter from scrape to scrape.

    One row per (series, scrape) in the time range: metric, instance, engine, model_name, labels,
    ts_before, ts, increase; null at a first scrape without a base.
    """
    wanted = STEP_COUNTERS if set(metrics) <= set(STEP_COUNTERS) else tuple(metrics)
    found = window.named_sql(
        "figures",
        "scrape_increases",
        metrics=list(wanted),
        start=time_range.start,
        end=time_range.end,
    )
    return found.filter(pl.col("metric").is_in(list(metrics)))


def total(increases: pl.DataFrame, metric: str) -> float | None:
    """The increase of a counter summed over its series; None if it has no series."""
    rows = increases.filter(pl.col("metric") == metric)
    return None if rows.is_empty() else float(rows.get_column("increase").sum())


def total_by_label(increases: pl.DataFrame, metric: str, label: str) -> dict[str, float]:
    """The increase of a counter per value of one label; empty if it has no series."""
    rows = increases.filter(pl.col("metric") == metric)
    values = rows.with_columns(by=pl.col("labels").str.json_path_match(f"$.{label}").fill_null(""))
    summed = values.group_by("by").agg(pl.col("increase").sum()).sort("by")
    return dict(summed.iter_rows())


def rate_per_second(increases: pl.DataFrame, metric: str) -> float | None:
    """The increase of a counter per second, between the first and last scrape that it covers.

    None if it has no series, or only one scrape.
    """
    rows = increases.filter(pl.col("metric") == metric)
    if rows.is_empty():
        return None
    span = pl.col("last_ts").max() - pl.col("base_ts").min()
    seconds = float(rows.select(span.dt.total_microseconds()).item()) / 1e6
    return float(rows.get_column("increase").sum()) / seconds if seconds > 0 else None


def successful(by_reason: dict[str, float]) -> float | None:
    """Requests that ended normally: by stop, length or repetition.

    None if requests are not counted, or the server does not give the reason.
    """
    if not by_reason or "" in by_reason:
        return None
    return sum(by_reason.get(reason, 0.0) for reason in SUCCESSFUL_REASONS)


def prompt_tokens_computed(increases: pl.DataFrame) -> float | None:
    """Prompt tokens that were computed rather than taken from a cache.

    From the split by source (vLLM 0.16 on), else prompt tokens minus cached ones. None if neither
    series exists: the older prefix-cache counters also count retries, exactly when memory is short.
    """
    by_source = total_by_label(increases, PROMPT_TOKENS_BY_SOURCE, "source")
    if "local_compute" in by_source:
        return by_source["local_compute"]
    prompt, cached = total(increases, PROMPT_TOKENS), total(increases, PROMPT_TOKENS_CACHED)
    return None if prompt is None or cached is None else prompt - cached


def prefix_cache_hit_ratio(increases: pl.DataFrame) -> float | None:
    """Share of looked-up prompt tokens found in the prefix cache; None if none were looked up."""
    pairs = ((PREFIX_QUERIES, PREFIX_HITS), (OLD_PREFIX_QUERIES, OLD_PREFIX_HITS))
    for queries, hits in ((total(increases, q), total(increases, h)) for q, h in pairs):
        if queries is not None and hits is not None:
            return hits / queries if queries else None
    return None


# Paths that do inference; the others (health, models, tokenize …) are irrelevant to serving.
_GENERATES = "completions|responses|messages|generate|embeddings|score|rerank"


class Failures(Figures, frozen=True):
    """Failures as far as they are known; each is unknown if its series do not exist.

    `http_5xx_ratio` and `http_4xx_ratio` are shares of the responses on generating paths,
    `error_ratio` of finished requests; `rejected` and `abandoned` are numbers of requests.
    """

    http_5xx_ratio: Estimate
    http_4xx_ratio: Estimate
    error_ratio: Estimate
    rejected: Estimate
    abandoned: Estimate


def failures(window: Window, *, time_range: TimeRange) -> Failures:
    """The known failures in the time range."""
    increases = traffic.counter_increases(window, traffic.COUNTERS, time_range=time_range)
    return Failures(
        http_5xx_ratio=_http_share(
            increases, "5xx", "a lower bound: a stream that breaks after its headers counts as 2xx"
        ),
        http_4xx_ratio=_http_share(
            increases, "4xx", "client errors: bad parameters, unknown model, too long"
        ),
        error_ratio=_error_share(increases),
        rejected=_rejected(increases),
        abandoned=_abandoned(window, increases, time_range),
    )


def _http_share(increases: pl.DataFrame, status: str, blind_spot: str) -> Estimate:
    rows = increases.filter(pl.col("metric") == HTTP_REQUESTS).with_columns(
        handler=pl.col("labels").str.json_path_match("$.handler"),
        status=pl.col("labels").str.json_path_match("$.status"),
    )
    rows = rows.filter(pl.col("handler").str.contains(_GENERATES))
    total = float(rows.get_column("increase").sum())
    if not total:
        return Estimate.unknown(f"no answer on a generating path was counted by {HTTP_REQUESTS}")
    failed = float(rows.filter(pl.col("status") == status).get_column("increase").sum())
    return Estimate.exact(failed / total, f"{failed:,.0f} of {total:,.0f} answers", blind_spot)


def _error_share(increases: pl.DataFrame) -> Estimate:
    by_reason = traffic.total_by_label(increases, REQUESTS, "finished_reason")
    finished = sum(by_reason.values())
    if "error" not in by_reason:
        return Estimate.unknown("this vLLM does not count errors (it does from 0.13 on)")
    if not finished:
        return Estimate.unknown("no request finished")
    blind_spot = "without requests refused before the engine and clients that disconnected"
    counted = f"{by_reason['error']:,.0f} of {finished:,.0f} finished requests"
    return Estimate.exact(by_reason["error"] / finished, counted, blind_spot)


def _rejected(increases: pl.DataFrame) -> Estimate:
    rejected = traffic.total(increases, REJECTIONS)
    if rejected is None:
        return Estimate.unknown("this vLLM does not count rejections (it does from 0.32 on)")
    return Estimate.exact(rejected, "refused at admission; a proxy's own refusals are not included")


def _abandoned(window: Window, increases: pl.DataFrame, time_range: TimeRange) -> Estimate:
    """Streams with a first token that never finished: first tokens − finished − still in flight.

    The number in flight at either end lies between zero and all that ran there. Valid for time
    ranges that are long compared to a request. vLLM does not count client disconnects.
    """
    first = latency.histogram_increases(window, [TTFT], time_range=time_range)
    finished = traffic.total(increases, REQUESTS)
    if not first or finished is None:
        return Estimate.unknown("needs time_to_first_token_seconds and request_success_total")
    running = gauges.gauge_samples(window, [RUNNING], time_range=time_range)
    ends = running.group_by("instance", "engine").agg(
        first=pl.col("value").get(pl.col("ts").arg_min()),
        last=pl.col("value").get(pl.col("ts").arg_max()),
    )
    at_start, at_end = (float(ends.get_column(name).sum()) for name in ("first", "last"))
    open_streams = sum(i.count for i in first) - finished
    basis = (
        f"{open_streams:,.0f} first tokens more than finished requests",
        f"{at_start:,.0f} requests running at the start and {at_end:,.0f} at the end",
        "without clients that disconnected before a first token",
    )
    low, mid, high = (
        max(0.0, open_streams + delta) for delta in (-at_end, at_start - at_end, at_start)
    )
    return Estimate.between(low, mid, high, *basis)
