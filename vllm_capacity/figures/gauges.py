"""Gauges: running, waiting and KV-cache usage, over scrape times and engines.

A value is valid from its scrape to the next one, but no longer than the gap threshold (its hold
time). Means are weighted by hold time, so a change of the scrape interval within the window does
not bias them. With an even interval, they equal the plain mean over samples.
"""

from __future__ import annotations

import numpy as np
import polars as pl
from msgspec import Struct

from vllm_capacity.facts.metrics import KV_CACHE, RUNNING, WAITING
from vllm_capacity.figures.attempts import Attempts, rows_in
from vllm_capacity.figures.scrapes import GAP_FACTOR, hold_seconds
from vllm_capacity.record import Record
from vllm_capacity.telemetry.window import Window
from vllm_capacity.timerange import TimeRange

GAUGES = (RUNNING, WAITING, KV_CACHE)
"""Every gauge that any figure uses."""


class Gauge(Record, frozen=True):
    """Mean and maximum of a gauge; both None if it was not observed."""

    mean: float | None
    max: float | None


class Gauges(Struct, frozen=True):
    """`running` and `waiting` requests, summed over engines; `kv_cache_ratio`, pooled over them."""

    running: Gauge
    waiting: Gauge
    kv_cache_ratio: Gauge


def gauge_samples(window: Window, metrics: list[str], *, time_range: TimeRange) -> pl.DataFrame:
    """The samples in the time range: metric, instance, engine, model_name, labels, ts, value."""
    wanted = GAUGES if set(metrics) <= set(GAUGES) else metrics
    found = window.named_sql(
        "figures", "gauge_samples", metrics=list(wanted), start=time_range.start, end=time_range.end
    )
    return found.filter(pl.col("metric").is_in(metrics))


def gauges(window: Window, attempts: pl.DataFrame | Attempts, *, time_range: TimeRange) -> Gauges:
    """`running` and `waiting`, summed over engines, and `kv_cache_ratio`, pooled over them.

    A downsampled window has them per minute. The maximum of a sum over several engines is then
    unknown, because the engines' maxima need not coincide.
    """
    if window.grain == "minute":
        minutes = gauge_minutes(window, [RUNNING, WAITING, KV_CACHE], time_range=time_range)
        return Gauges(
            running=_summed_minutes(minutes, RUNNING),
            waiting=_summed_minutes(minutes, WAITING),
            kv_cache_ratio=_of_minutes(minutes.filter(pl.col("metric") == KV_CACHE)),
        )
    kept = window.hourly("gauges")
    if kept is not None:
        return Gauges(*(_of_kept(kept, metric) for metric in GAUGES))
    samples = gauge_samples(window, [RUNNING, WAITING, KV_CACHE], time_range=time_range)
    inside = rows_in(attempts, time_range)
    return Gauges(
        running=gauge_of(summed(samples, inside, RUNNING)),
        waiting=gauge_of(summed(samples, inside, WAITING)),
        kv_cache_ratio=gauge_of(held(samples, KV_CACHE)),
    )


def gauge_minutes(window: Window, metrics: list[str], *, time_range: TimeRange) -> pl.DataFrame:
    """Gauges per minute: metric, instance, engine, labels, ts, n, value (mean), max."""
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

    At each good scrape of any target, the latest sample of every engine counts, within its hold
    time and unless its target has failed to answer since. Empty if the gauge was not observed.
    """
    rows = samples.filter(pl.col("metric") == metric).select("instance", "engine", "ts", "value")
    failed = attempts.filter(~pl.col("is_good")).select("instance", "ts")
    down = rows.select("instance", "engine").unique().join(failed, on="instance")
    ends = pl.concat([down, _ends_of_holding(rows)]).with_columns(value=pl.lit(0.0))
    known = pl.concat([rows, ends]).sort("ts")
    change = pl.col("value") - pl.col("value").shift(1, fill_value=0.0).over("instance", "engine")
    # A running sum of changes: its cost grows with the samples, not with the number of engines.
    total = (
        known.with_columns(change=change)
        .group_by("ts", maintain_order=True)
        .agg(pl.col("change").sum())
        .select("ts", value=pl.col("change").cum_sum())
        .join(rows.select("ts"), on="ts", how="semi")
    )
    return total.with_columns(hold_seconds=hold_seconds(total.get_column("ts")))


def _ends_of_holding(rows: pl.DataFrame) -> pl.DataFrame:
    """The times at which an engine's sample expires without a newer one: instance, engine, ts."""
    ends = [rows.select("instance", "engine", "ts").clear()]
    for own in rows.sort("ts").partition_by("instance", "engine", maintain_order=True):
        if own.height < 2:
            continue  # the hold time of a single sample is unknown
        held = hold_seconds(own.get_column("ts")).to_numpy()
        times = own.get_column("ts").to_physical().to_numpy()
        until = times[:-1] + (held[:-1] * 1e6).astype(np.int64)
        last = times[-1] + round(GAP_FACTOR * float(held[-1]) * 1e6)
        over = pl.Series("ts", np.append(until[until < times[1:]], last)).cast(rows.schema["ts"])
        name = own.select(pl.col("instance", "engine").first())
        ends.append(name.join(over.to_frame(), how="cross"))
    return pl.concat(ends)


def gauge_of(rows: pl.DataFrame) -> Gauge:
    """Mean (weighted by hold time) and maximum of a frame with value and hold_seconds."""
    if rows.is_empty():
        return Gauge(None, None)
    # In one piece: else sums depend on the number of threads in their last bit.
    value, weight = (rows.get_column(name).rechunk() for name in ("value", "hold_seconds"))
    whole = float(weight.sum())
    mean = float((value * weight).sum()) / whole if whole > 0 else float(value.sum()) / len(value)
    return Gauge(mean, float(value.max()))  # type: ignore[arg-type]


def held(samples: pl.DataFrame, metric: str) -> pl.DataFrame:
    """The samples of a gauge, with the hold time of each: ts, value, hold_seconds; not summed."""
    rows = samples.filter(pl.col("metric") == metric)
    parts = [
        own.select("ts", "value", hold_seconds=hold_seconds(own.get_column("ts")))
        for _, own in rows.group_by("instance", "engine", "labels", maintain_order=True)
    ]
    return pl.concat([_NO_SAMPLES, *parts])


_NO_SAMPLES = pl.DataFrame(
    schema={"ts": pl.Datetime("us", "UTC"), "value": pl.Float64, "hold_seconds": pl.Float64}
)


def _of_kept(minutes: pl.DataFrame, metric: str) -> Gauge:
    """A gauge from its minutes (figures/pieces.py)."""
    own = minutes.filter(pl.col("metric") == metric)
    if own.is_empty():
        return Gauge(None, None)
    is_held = own["seconds"].sum() > 0
    over, by = ("weighted", "seconds") if is_held else ("total", "n")
    return Gauge(float(own[over].sum()) / float(own[by].sum()), float(own["max"].max()))  # type: ignore[arg-type]
