"""Gauges: running, waiting and KV-cache usage, over scrape times and engines.

A gauge holds from its scrape to the next one, but no longer than a gap's threshold: means are
weighted by that time, so that a scrape interval that changes inside the window does not bend them.
At an even interval this is the plain mean over samples.
"""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from vllm_capacity.figures.scrapes import hold_seconds
from vllm_capacity.telemetry.window import Window
from vllm_capacity.timerange import TimeRange

RUNNING = "vllm:num_requests_running"
WAITING = "vllm:num_requests_waiting"
KV_CACHE = "vllm:kv_cache_usage_perc"


@dataclass(frozen=True)
class Spread:
    """Mean and maximum of a gauge; both None where it was not observed."""

    mean: float | None
    max: float | None


def gauge_samples(window: Window, metrics: list[str], *, part: TimeRange) -> pl.DataFrame:
    """The samples in the part: metric, instance, engine, model_name, labels, ts, value."""
    return window.named_sql(
        "figures", "gauge_samples", metrics=metrics, start=part.start, end=part.end
    )


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


def spread(rows: pl.DataFrame) -> Spread:
    """Mean (by the time each value held) and maximum of a frame with value and hold_seconds."""
    if rows.is_empty():
        return Spread(None, None)
    value, weight = rows.get_column("value"), rows.get_column("hold_seconds")
    whole = float(weight.sum())
    mean = float((value * weight).sum()) / whole if whole > 0 else float(value.sum()) / len(value)
    return Spread(mean, float(value.max()))  # type: ignore[arg-type]


def pooled(samples: pl.DataFrame, metric: str) -> Spread:
    """Mean and maximum of a gauge over engines and time, never summed: for ratios."""
    rows = samples.filter(pl.col("metric") == metric)
    parts = [
        own.with_columns(hold_seconds=hold_seconds(own.get_column("ts")))
        for _, own in rows.group_by("instance", "engine", "labels", maintain_order=True)
    ]
    return spread(pl.concat(parts)) if parts else Spread(None, None)
