"""Gauges: running, waiting and KV-cache usage, over scrape times and engines.

A gauge holds from its scrape to the next one, but no longer than a gap's threshold: means are
weighted by that time, so that a scrape interval that changes inside the window does not bend them.
At an even interval this is the plain mean over samples.
"""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from vllm_capacity.facts.metrics import KV_CACHE, RUNNING, WAITING
from vllm_capacity.figures.scrapes import hold_seconds
from vllm_capacity.record import Record
from vllm_capacity.telemetry.window import Window
from vllm_capacity.timerange import TimeRange

GAUGES = (RUNNING, WAITING, KV_CACHE)
"""Every gauge that a figure is made of."""


@dataclass(frozen=True, repr=False)
class Gauge(Record):
    """Mean and maximum of a gauge; both None where it was not observed."""

    mean: float | None
    max: float | None


@dataclass(frozen=True)
class Gauges:
    """`running` and `waiting` requests, summed over engines; `kv_cache_ratio`, over all of them."""

    running: Gauge
    waiting: Gauge
    kv_cache_ratio: Gauge


def gauge_samples(window: Window, metrics: list[str], *, time_range: TimeRange) -> pl.DataFrame:
    """The samples in the part: metric, instance, engine, model_name, labels, ts, value."""
    wanted = GAUGES if set(metrics) <= set(GAUGES) else metrics
    found = window.named_sql(
        "figures", "gauge_samples", metrics=list(wanted), start=time_range.start, end=time_range.end
    )
    return found.filter(pl.col("metric").is_in(metrics))


def gauges(window: Window, attempts: pl.DataFrame, *, time_range: TimeRange) -> Gauges:
    """`running` and `waiting`, summed over engines, and `kv_cache_ratio`, pooled over them.

    In a thinned window they come from its minutes; the maximum of a sum over several engines is
    then not known, for their maxima need not fall together.
    """
    if window.grain == "minute":
        minutes = gauge_minutes(window, [RUNNING, WAITING, KV_CACHE], time_range=time_range)
        return Gauges(
            running=_summed_minutes(minutes, RUNNING),
            waiting=_summed_minutes(minutes, WAITING),
            kv_cache_ratio=_of_minutes(minutes.filter(pl.col("metric") == KV_CACHE)),
        )
    samples = gauge_samples(window, [RUNNING, WAITING, KV_CACHE], time_range=time_range)
    inside = attempts.filter(pl.col("ts") >= time_range.start)
    return Gauges(
        running=gauge_of(summed(samples, inside, RUNNING)),
        waiting=gauge_of(summed(samples, inside, WAITING)),
        kv_cache_ratio=pooled(samples, KV_CACHE),
    )


def gauge_minutes(window: Window, metrics: list[str], *, time_range: TimeRange) -> pl.DataFrame:
    """Gauges by minute: metric, instance, engine, labels, ts, n, value (mean), max."""
    return window.named_sql(
        "figures", "gauge_minutes", metrics=metrics, start=time_range.start, end=time_range.end
    )


def _of_minutes(minutes: pl.DataFrame) -> Gauge:
    if minutes.is_empty():
        return Gauge(None, None)
    mean = minutes.select((pl.col("value") * pl.col("n")).sum() / pl.col("n").sum()).item()
    return Gauge(float(mean), float(minutes.get_column("max").max()))  # type: ignore[arg-type]


def _summed_minutes(minutes: pl.DataFrame, metric: str) -> Gauge:
    rows = minutes.filter(pl.col("metric") == metric)
    engines = [_of_minutes(own) for _, own in rows.group_by("instance", "engine")]
    if not engines:
        return Gauge(None, None)
    most = engines[0].max if len(engines) == 1 else None
    return Gauge(sum(engine.mean or 0.0 for engine in engines), most)


def summed(samples: pl.DataFrame, attempts: pl.DataFrame, metric: str) -> pl.DataFrame:
    """A gauge summed over engines at every scrape time: columns ts, value, hold_seconds.

    At each good scrape of any target every engine's newest sample counts, unless its target has
    failed to answer since. Empty where the gauge was not observed.
    """
    rows = samples.filter(pl.col("metric") == metric).select("instance", "engine", "ts", "value")
    times = rows.select(pl.col("ts").unique().sort())
    failed = attempts.filter(~pl.col("is_good")).select("instance", "ts")
    parts = []
    for (instance, _), own in rows.group_by("instance", "engine", maintain_order=True):
        down = failed.filter(pl.col("instance") == instance).select(
            "ts", value=pl.lit(None, dtype=pl.Float64)
        )
        known = pl.concat([own.select("ts", "value"), down]).sort("ts")
        parts.append(times.join_asof(known, on="ts", strategy="backward"))
    if not parts:
        return pl.DataFrame(
            schema={"ts": pl.Datetime("us", "UTC"), "value": pl.Float64, "hold_seconds": pl.Float64}
        )
    total = pl.concat(parts).group_by("ts").agg(pl.col("value").sum()).sort("ts")
    return total.with_columns(hold_seconds=hold_seconds(total.get_column("ts")))


def gauge_of(rows: pl.DataFrame) -> Gauge:
    """Mean (by the time each value held) and maximum of a frame with value and hold_seconds."""
    if rows.is_empty():
        return Gauge(None, None)
    value, weight = rows.get_column("value"), rows.get_column("hold_seconds")
    whole = float(weight.sum())
    mean = float((value * weight).sum()) / whole if whole > 0 else float(value.sum()) / len(value)
    return Gauge(mean, float(value.max()))  # type: ignore[arg-type]


def pooled(samples: pl.DataFrame, metric: str) -> Gauge:
    """Mean and maximum of a gauge over engines and time, never summed: for ratios."""
    rows = samples.filter(pl.col("metric") == metric)
    parts = [
        own.with_columns(hold_seconds=hold_seconds(own.get_column("ts")))
        for _, own in rows.group_by("instance", "engine", "labels", maintain_order=True)
    ]
    return gauge_of(pl.concat(parts)) if parts else Gauge(None, None)
