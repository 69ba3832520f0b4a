"""Impossible values, which ingestion drops in every format.

A server's counters, gauges and histograms stay far below 2^63, and values that only grow from 0 are
never negative. Larger values, negative counts, infinity and NaN are errors of the sender, and a
single one would outweigh everything else. The sum of a histogram may be NaN: not every format
reports it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import polars as pl
from msgspec.structs import replace

from vllm_capacity.telemetry.parts import RowsInParts, Tables
from vllm_capacity.telemetry.rows import Rows

_LIMIT = 2.0**63
_DETAIL = "impossible values (infinite, beyond 2^63, or a negative count)"


def without_impossible(rows: Rows) -> Rows:
    """The rows without impossible values, with a note of their number per metric and target.

    A series whose first value is impossible existed before its first possible value, which
    therefore does not count from 0. Rows without impossible values are returned unchanged.
    """
    tables = (rows.samples, rows.histograms)
    bad_tables = _impossible(rows.series, tables)
    bad = pl.concat([_times(frame) for frame in bad_tables])
    if bad.is_empty():
        return rows
    samples, histograms = _possible(rows.series, lambda: tables)
    return replace(
        rows,
        series=_not_born(rows.series, bad, pl.concat([_times(samples), _times(histograms)])),
        samples=samples,
        histograms=histograms,
        ingest_notes=pl.concat([rows.ingest_notes, _notes(bad, rows.series)]),
    )


def without_impossible_in_parts(rows: RowsInParts) -> RowsInParts:
    """Like `without_impossible`, for parts; the values are dropped whenever a part is read."""
    parts = [partial(_possible, rows.series, part) for part in rows.parts]
    found = [_impossible(rows.series, part()) for part in rows.parts]
    if all(frame.is_empty() for tables in found for frame in tables):
        return rows
    # Only the first possible row of each series matters.
    found += [
        (_first_rows(samples), _first_rows(states)) for samples, states in (p() for p in parts)
    ]
    deciding = RowsInParts(rows.series, [partial(_joined, found)], rows.ingest_notes, rows.begin)
    result = without_impossible(deciding.whole())
    return replace(rows, series=result.series, ingest_notes=result.ingest_notes, parts=parts)


def _joined(tables: Sequence[Tables]) -> Tables:
    samples, histograms = zip(*tables, strict=True)
    return pl.concat(samples), pl.concat(histograms)


def _first_rows(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.filter(pl.col("ts") == pl.col("ts").min().over("series_id"))


def _impossible(series: pl.DataFrame, tables: Tables) -> Tables:
    """The samples and histograms that have an impossible value."""
    samples, histograms = tables
    counters = series.filter(pl.col("kind") == "counter").select("series_id")
    is_endless = ~is_possible("value")
    doubtful = samples.filter(is_endless | (pl.col("value") < 0))
    is_count = pl.col("series_id").is_in(counters["series_id"].implode())
    is_total = pl.col("sum").is_nan() | is_possible("sum")
    bad_states = histograms.filter(~(is_possible("count") & is_total) | (pl.col("count") < 0))
    return doubtful.filter(is_endless | is_count), bad_states


def _possible(series: pl.DataFrame, part: Callable[[], Tables]) -> Tables:
    """The samples and histograms that have no impossible value."""
    tables = part()
    key = ["series_id", "ts", "alias_priority", "arrival"]
    samples, histograms = (
        frame.join(own.select(key), on=key, how="anti", nulls_equal=True, maintain_order="left")
        for frame, own in zip(tables, _impossible(series, tables), strict=True)
    )
    return samples, histograms


def is_possible(column: str) -> pl.Expr:
    """Whether a server could have reported that value; true for null, false for NaN."""
    return (pl.col(column).abs() < _LIMIT).fill_null(True)


def _times(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.select("series_id", "ts")


def _not_born(series: pl.DataFrame, bad: pl.DataFrame, kept: pl.DataFrame) -> pl.DataFrame:
    """The series, with `starts_at_zero` False where the first value was dropped."""
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
