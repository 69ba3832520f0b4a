"""Counters: how much grew, exactly, over the whole window or any part of it."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from vllm_capacity.facts.metrics import FLOPS as FLOPS
from vllm_capacity.facts.metrics import GENERATION_TOKENS as GENERATION_TOKENS
from vllm_capacity.facts.metrics import HTTP_REQUESTS as HTTP_REQUESTS
from vllm_capacity.facts.metrics import OLD_PREFIX_HITS as OLD_PREFIX_HITS
from vllm_capacity.facts.metrics import OLD_PREFIX_QUERIES as OLD_PREFIX_QUERIES
from vllm_capacity.facts.metrics import PREEMPTIONS as PREEMPTIONS
from vllm_capacity.facts.metrics import PREFIX_HITS as PREFIX_HITS
from vllm_capacity.facts.metrics import PREFIX_QUERIES as PREFIX_QUERIES
from vllm_capacity.facts.metrics import PROMPT_TOKENS as PROMPT_TOKENS
from vllm_capacity.facts.metrics import PROMPT_TOKENS_BY_SOURCE as PROMPT_TOKENS_BY_SOURCE
from vllm_capacity.facts.metrics import PROMPT_TOKENS_CACHED as PROMPT_TOKENS_CACHED
from vllm_capacity.facts.metrics import READ_BYTES as READ_BYTES
from vllm_capacity.facts.metrics import REJECTIONS as REJECTIONS
from vllm_capacity.facts.metrics import REQUESTS as REQUESTS
from vllm_capacity.facts.metrics import WRITE_BYTES as WRITE_BYTES
from vllm_capacity.telemetry.window import Window
from vllm_capacity.timerange import TimeRange

# What a step of the window is told by.
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
"""Every counter that a figure is made of."""
SUCCESSFUL_REASONS = ("stop", "length", "repetition")


def counter_increases(
    window: Window, metrics: Sequence[str], *, time_range: TimeRange
) -> pl.DataFrame:
    """The exact (anchored) increase of each counter series over the part.

    One row per series with a sample in the part: series_id, metric, instance, engine, model_name,
    labels, starts_at_zero, increase (in the counter's unit), base_ts and last_ts, the two scrapes
    it lies between. No row where nothing was observed.
    Source: PromQL's `increase …
    anchored`.
    """
    # Every analysis asks for several of these: all at once is one pass over the samples.
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

    One row per (series, scrape) in the part: metric, instance, engine, model_name, labels,
    ts_before, ts, increase; null on a first scrape that has no base.
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
    """The increase of a counter summed over its series; None where there is no such series."""
    rows = increases.filter(pl.col("metric") == metric)
    return None if rows.is_empty() else float(rows.get_column("increase").sum())


def total_by_label(increases: pl.DataFrame, metric: str, label: str) -> dict[str, float]:
    """The increase of a counter by the value of one label; empty where there is no such series."""
    rows = increases.filter(pl.col("metric") == metric)
    values = rows.with_columns(by=pl.col("labels").str.json_path_match(f"$.{label}").fill_null(""))
    summed = values.group_by("by").agg(pl.col("increase").sum()).sort("by")
    return dict(summed.iter_rows())


def rate_per_second(increases: pl.DataFrame, metric: str) -> float | None:
    """The increase of a counter over the time between the two scrapes it lies between, per second.

    None where there is no such series, or only one scrape of it.
    """
    rows = increases.filter(pl.col("metric") == metric)
    if rows.is_empty():
        return None
    span = pl.col("last_ts").max() - pl.col("base_ts").min()
    seconds = float(rows.select(span.dt.total_microseconds()).item()) / 1e6
    return float(rows.get_column("increase").sum()) / seconds if seconds > 0 else None


def successful(by_reason: dict[str, float]) -> float | None:
    """Requests that ended as they should: stop, length and repetition.

    None where requests are not counted by reason: not at all, or by a server that does not say why.
    """
    if not by_reason or "" in by_reason:
        return None
    return sum(by_reason.get(reason, 0.0) for reason in SUCCESSFUL_REASONS)


def prompt_tokens_computed(increases: pl.DataFrame) -> float | None:
    """Prompt tokens that were computed, not taken from a cache.

    From the split by source (vLLM 0.16 on), else prompt tokens less cached ones; None where neither
    series is there: older prefix-cache counters count retries, just when memory is short.
    """
    by_source = total_by_label(increases, PROMPT_TOKENS_BY_SOURCE, "source")
    if "local_compute" in by_source:
        return by_source["local_compute"]
    prompt, cached = total(increases, PROMPT_TOKENS), total(increases, PROMPT_TOKENS_CACHED)
    return None if prompt is None or cached is None else prompt - cached


def prefix_cache_hit_ratio(increases: pl.DataFrame) -> float | None:
    """Share of looked-up prompt tokens found in the prefix cache; None where none was looked up."""
    pairs = ((PREFIX_QUERIES, PREFIX_HITS), (OLD_PREFIX_QUERIES, OLD_PREFIX_HITS))
    for queries, hits in ((total(increases, q), total(increases, h)) for q, h in pairs):
        if queries is not None and hits is not None:
            return hits / queries if queries else None
    return None
