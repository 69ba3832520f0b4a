"""Values that nothing counts or measures: left out where rows come in, whatever their dialect.

A counter, a gauge or a histogram of a server stays far below 2^63, and what only grows from 0 is
never negative. A value beyond that, infinity and NaN are mistakes of a sender, and one of them
would outweigh all else that was counted. The sum of a histogram may be NaN: not every dialect
tells it.
"""

from __future__ import annotations

from dataclasses import replace

import polars as pl

from vllm_capacity.telemetry.rows import Rows

_LIMIT = 2.0**63
_DETAIL = "values that nothing counts or measures (infinite, beyond 2^63, or a negative count)"


def without_impossible(rows: Rows) -> Rows:
    """The rows without impossible values, and a note of how many for each metric of a target.

    A series whose first value was such existed before its first possible one, which therefore does
    not count from 0. Rows without such values come back as they are.
    """
    counters = rows.series.filter(pl.col("kind") == "counter").select("series_id")
    is_endless = ~is_possible("value")
    doubtful = rows.samples.filter(is_endless | (pl.col("value") < 0))
    is_count = pl.col("series_id").is_in(counters["series_id"].implode())
    bad_samples = doubtful.filter(is_endless | is_count)
    is_total = pl.col("sum").is_nan() | is_possible("sum")
    bad_states = rows.histograms.filter(~(is_possible("count") & is_total) | (pl.col("count") < 0))
    bad = pl.concat([frame.select("series_id", "ts") for frame in (bad_samples, bad_states)])
    if bad.is_empty():
        return rows
    key = ["series_id", "ts", "rank", "arrival"]
    samples, histograms = (
        frame.join(own.select(key), on=key, how="anti", nulls_equal=True, maintain_order="left")
        for frame, own in ((rows.samples, bad_samples), (rows.histograms, bad_states))
    )
    return replace(
        rows,
        series=_not_born(rows.series, bad, pl.concat([_times(samples), _times(histograms)])),
        samples=samples,
        histograms=histograms,
        intake=pl.concat([rows.intake, _notes(bad, rows.series)]),
    )


def is_possible(column: str) -> pl.Expr:
    """Whether a server can have counted or measured that; true of null, never of NaN."""
    return (pl.col(column).abs() < _LIMIT).fill_null(True)


def _times(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.select("series_id", "ts")


def _not_born(series: pl.DataFrame, bad: pl.DataFrame, kept: pl.DataFrame) -> pl.DataFrame:
    """The series, those whose first value was left out as ones that do not start at zero."""
    first = kept.group_by("series_id").agg(first=pl.col("ts").min())
    earliest = bad.group_by("series_id").agg(bad=pl.col("ts").min())
    older = earliest.join(first, on="series_id").filter(pl.col("bad") < pl.col("first"))
    is_older = pl.col("series_id").is_in(older["series_id"].implode())
    return series.with_columns(
        starts_at_zero=pl.when(is_older).then(False).otherwise("starts_at_zero")
    )


def _notes(bad: pl.DataFrame, series: pl.DataFrame) -> pl.DataFrame:
    named = series.select("series_id", "instance", "metric").unique("series_id")
    counted = (
        bad.join(named, on="series_id")
        .group_by("instance", "metric")
        .agg(count=pl.len().cast(pl.Int64), ts=pl.col("ts").min())
        .sort("instance", "metric")
    )
    return counted.select(
        check=pl.lit("coverage"),
        instance="instance",
        ts="ts",
        subject="metric",
        detail=pl.lit(_DETAIL),
        count="count",
    )
