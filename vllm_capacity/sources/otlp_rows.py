"""Converts the data points in Parseable's files to canonical rows, slice by slice.

The reader converts its files to the relation `points` (one row per data point): identity (a hash of
name, kind, instance, job, bounds and labels), metric_name, wire_kind, instance, job, bounds, one
column per label, then ts, arrived, started (naive UTC), value, count, sum, counts, flags.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import duckdb
import polars as pl

from vllm_capacity.facts.metrics import keeps
from vllm_capacity.sources.otlp import (
    EPOCH,
    Child,
    Wire,
    as_schema,
    query_text,
    read,
    series_of,
    serving,
)
from vllm_capacity.sources.parseable_queries import AHEAD_SECONDS, LATE_SECONDS
from vllm_capacity.sources.slices import (
    HISTOGRAMS,
    SAMPLES,
    SliceSeries,
    Times,
    WireSeries,
    add_rows,
    children_of,
    series_in,
    slice_part,
)
from vllm_capacity.telemetry.parts import Held, RowsInParts, Spool
from vllm_capacity.telemetry.rows import INGEST_NOTES_SCHEMA, UTC_MICROSECONDS

_FINDINGS: dict[str, Any] = {
    "check": pl.String,
    "instance": pl.String,
    "job": pl.String,
    "metric_name": pl.String,
    "ts": UTC_MICROSECONDS,
    "count": pl.Int64,
    "seconds": pl.Float64,
}
NOTHING = slice_part(
    SliceSeries([]),
    pl.DataFrame(schema=SAMPLES),
    pl.DataFrame(schema=HISTOGRAMS),
    pl.DataFrame(schema=_FINDINGS),
)
"""What is read of a slice without points."""


def part_of_points(
    connection: duckdb.DuckDBPyConnection, labels: Sequence[str], *, since: datetime = EPOCH
) -> bytes:
    """The relation `points` on this connection as a `SlicePart`.

    Staleness markers are left out and noted; late points and points that lost their value are noted
    if sampled from `since` on. Duplicates stay: the store counts and drops them.
    """
    every = read(connection, query_text("points_children")).to_dicts()
    found = [row for row in every if keeps(row["metric_name"])]
    own = SliceSeries(
        [_series(row, labels) for row in found],
        [Times(row["first"], row["started"]) for row in found],
    )
    connection.register("children", _children_frame(own.series, [row["identity"] for row in found]))
    try:
        samples = read(connection, query_text("points_samples"))
        histograms = read(connection, query_text("points_histograms"))
        findings = read(
            connection,
            query_text("points_findings"),
            late_seconds=LATE_SECONDS,
            ahead_seconds=AHEAD_SECONDS,
            since_seconds=since.timestamp(),
        )
    finally:
        connection.unregister("children")
    return slice_part(
        own,
        as_schema(samples, SAMPLES),
        as_schema(histograms, HISTOGRAMS),
        as_schema(findings, _FINDINGS),
    )


def rows_of_points(
    parts: Sequence[Callable[[], bytes]], spool: Held | Spool, *, since: datetime = EPOCH
) -> RowsInParts:
    """The canonical rows of all slices, given in order of arrival; one part for each.

    NoTelemetryError if there are no vLLM series.
    """
    children = serving(children_of(series_in(parts), added={}))
    findings = add_rows(spool, parts, children)
    series = series_of(children.values(), begin=since.astimezone(UTC).replace(tzinfo=None))
    return RowsInParts(series, spool.parts, _ingest_notes(findings, children))


def _series(row: Mapping[str, Any], labels: Sequence[str]) -> WireSeries:
    own = ((label, row[label]) for label in labels if row[label] is not None)
    bounds = None if row["bounds"] is None else tuple(row["bounds"])
    name, kind = row["metric_name"], row["wire_kind"]
    return WireSeries(name, kind, row["instance"], row["job"], tuple(sorted(own)), bounds)


def _children_frame(series: Sequence[WireSeries], identities: Sequence[int]) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "identity": pl.Series(identities, dtype=pl.UInt64),
            "child": pl.Series(range(len(series)), dtype=pl.UInt32),
            "scale": pl.Series(
                [Wire.of(one.exposed, one.kind).scale for one in series], dtype=pl.Float64
            ),
        }
    )


def _ingest_notes(findings: pl.DataFrame, children: Mapping[WireSeries, Child]) -> pl.DataFrame:
    """A note per check and instance, of points that lost their value per metric.

    Of points that belong to an inference server; stale markers of all its targets' families.
    """
    pairs = sorted({(one.instance, one.job) for one in children})
    known = pl.DataFrame(pairs, schema={"instance": pl.String, "job": pl.String}, orient="row")
    is_stale = pl.col("check") == "series"
    own = pl.concat(
        [
            findings.filter(is_stale).join(known.unique("instance"), on="instance", how="semi"),
            findings.filter(~is_stale).join(known, on=["instance", "job"], how="semi"),
        ]
    )
    subject = {"series": "stale markers", "late": "arrival", "clock": "arrival"}
    noted = own.with_columns(
        subject=pl.coalesce(
            pl.col("check").replace_strict(subject, default=None), pl.col("metric_name")
        )
    )
    counted = noted.group_by("check", "instance", "subject").agg(
        pl.col("ts").min(),
        pl.col("count").sum(),
        pl.col("seconds").max(),
        families=pl.col("metric_name").n_unique(),
    )
    rows = counted.sort("check", "instance", "subject").to_dicts()
    return pl.DataFrame(
        [{**row, "detail": _detail(row)} for row in rows], schema=INGEST_NOTES_SCHEMA
    )


def _detail(row: Mapping[str, Any]) -> str:
    match row["check"]:
        case "series":
            return (
                f"the target stopped exposing {row['families']} families; their stale markers were "
                "dropped"
            )
        case "late":
            return f"arrived up to {math.floor(row['seconds'])} s after it was sampled"
        case "clock":
            return (
                f"sampled up to {math.ceil(row['seconds'])} s after it arrived: the Collector's "
                "clock is ahead of the store's"
            )
    return "the value of the point was lost on its way to the store"
