"""Failures, as far as vLLM lets them be seen: each with its definition and its blind spot.

vLLM exports no total of received requests and no failure counter, so there is no failure rate to
subtract out. What can be known: HTTP answers, requests the engine ended with an error, rejections
at admission, and an estimate of streams that clients left.
"""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from vllm_capacity.estimate import Estimate, Figures
from vllm_capacity.figures import gauges, latency, traffic
from vllm_capacity.telemetry.window import Window
from vllm_capacity.timerange import TimeRange

# What answers with tokens; the rest (health, models, tokenize …) says nothing about serving.
_GENERATES = "completions|responses|messages|generate|embeddings|score|rerank"


@dataclass(frozen=True, repr=False)
class Failures(Figures):
    """What can be known of failures, each unknown where its series do not exist.

    `http_5xx_ratio` and `http_4xx_ratio` of answers on generating paths, `error_ratio` of finished
    requests, `rejected` and `abandoned` in requests.
    """

    http_5xx_ratio: Estimate
    http_4xx_ratio: Estimate
    error_ratio: Estimate
    rejected: Estimate
    abandoned: Estimate


def failures(window: Window, *, time_range: TimeRange) -> Failures:
    """What can be known of failures in the part."""
    increases = traffic.counter_increases(window, traffic.COUNTERS, time_range=time_range)
    return Failures(
        http_5xx_ratio=_http_share(
            increases, "5xx", "a lower bound: a stream that breaks after its head counts as 2xx"
        ),
        http_4xx_ratio=_http_share(
            increases, "4xx", "errors of the clients: bad parameters, unknown model, too long"
        ),
        error_ratio=_error_share(increases),
        rejected=_rejected(increases),
        abandoned=_abandoned(window, increases, time_range),
    )


def _http_share(increases: pl.DataFrame, status: str, blind_spot: str) -> Estimate:
    rows = increases.filter(pl.col("metric") == traffic.HTTP_REQUESTS).with_columns(
        handler=pl.col("labels").str.json_path_match("$.handler"),
        status=pl.col("labels").str.json_path_match("$.status"),
    )
    rows = rows.filter(pl.col("handler").str.contains(_GENERATES))
    total = float(rows.get_column("increase").sum())
    if not total:
        return Estimate.unknown(
            f"no answer on a generating path was counted by {traffic.HTTP_REQUESTS}"
        )
    failed = float(rows.filter(pl.col("status") == status).get_column("increase").sum())
    return Estimate.exact(failed / total, f"{failed:,.0f} of {total:,.0f} answers", blind_spot)


def _error_share(increases: pl.DataFrame) -> Estimate:
    by_reason = traffic.total_by_label(increases, traffic.REQUESTS, "finished_reason")
    finished = sum(by_reason.values())
    if "error" not in by_reason:
        return Estimate.unknown("this vLLM does not count errors (it does from 0.13 on)")
    if not finished:
        return Estimate.unknown("no request finished")
    blind_spot = "blind to requests refused before the engine and to clients that left"
    counted = f"{by_reason['error']:,.0f} of {finished:,.0f} finished requests"
    return Estimate.exact(by_reason["error"] / finished, counted, blind_spot)


def _rejected(increases: pl.DataFrame) -> Estimate:
    rejected = traffic.total(increases, traffic.REJECTIONS)
    if rejected is None:
        return Estimate.unknown("this vLLM does not count rejections (it does from 0.32 on)")
    return Estimate.exact(rejected, "refused at admission; a proxy's own refusals are not in it")


def _abandoned(window: Window, increases: pl.DataFrame, time_range: TimeRange) -> Estimate:
    """Streams with a first token that never finished: first tokens − finished − still in flight.

    In flight at either end is between nothing and all that ran there. Valid over parts long against
    a request.
    Source: vLLM counts a client's disconnect nowhere.
    """
    first = latency.histogram_increases(window, [latency.TTFT], time_range=time_range)
    finished = traffic.total(increases, traffic.REQUESTS)
    if not first or finished is None:
        return Estimate.unknown("needs time_to_first_token_seconds and request_success_total")
    running = gauges.gauge_samples(window, [gauges.RUNNING], time_range=time_range).sort("ts")
    ends = running.group_by("instance", "engine").agg(
        first=pl.col("value").first(), last=pl.col("value").last()
    )
    at_start, at_end = (float(ends.get_column(name).sum()) for name in ("first", "last"))
    open_streams = sum(i.count for i in first) - finished
    basis = (
        f"{open_streams:,.0f} first tokens more than finished requests",
        f"{at_start:,.0f} requests running at the start and {at_end:,.0f} at the end",
        "blind to clients that left before a first token",
    )
    low, mid, high = (
        max(0.0, open_streams + delta) for delta in (-at_end, at_start - at_end, at_start)
    )
    return Estimate.between(low, mid, high, *basis)
