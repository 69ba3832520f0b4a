"""Converts Parseable's answers to canonical rows, or to the minutes of a downsampled window.

It also identifies the series of the answers, and collects findings for the quality report.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, Final

import polars as pl
from msgspec import Struct

from vllm_capacity.sources.otlp import Child, Wire, as_schema, of_job, series_of, serving
from vllm_capacity.sources.parseable_pull import (
    ATTEMPTS,
    HISTOGRAMS,
    SCALARS,
    Chunk,
    Pulled,
)
from vllm_capacity.sources.parseable_queries import Group
from vllm_capacity.sources.parseable_shapes import (
    FINDING_COLUMNS,
    MINUTE_HISTOGRAMS,
    MINUTES,
    bounds_of,
)
from vllm_capacity.telemetry.clocks import correction
from vllm_capacity.telemetry.impossible import is_possible, without_impossible
from vllm_capacity.telemetry.processes import process_lives
from vllm_capacity.telemetry.relabelled import renumbered, with_relabelled_minutes
from vllm_capacity.telemetry.rows import (
    HISTOGRAMS_SCHEMA,
    INGEST_NOTES_SCHEMA,
    SAMPLES_SCHEMA,
    UTC_MICROSECONDS,
    Rows,
)
from vllm_capacity.telemetry.settling import settle
from vllm_capacity.telemetry.stamps import Correction

COUNTS: Final = pl.List(pl.Float64)
MINUTE_MS: Final = 60_000


def instant(column: str) -> pl.Expr:
    """A column of milliseconds as times, naive UTC."""
    return pl.from_epoch(pl.col(column) * 1000, time_unit="us")


class Reader(Struct, frozen=True, dict=True):
    """Identifies the series in a pull's answers, and collects them by id."""

    pulled: Pulled
    children: dict[int, Child]

    def table(
        self, parts: Sequence[Chunk], payload: Mapping[str, Any], *, is_histogram: bool = False
    ) -> pl.DataFrame:
        """The scalar or histogram parts as one frame: series_id, alias_priority, scale, payload."""
        by_group: dict[Group, list[pl.DataFrame]] = {}
        for chunk in parts:
            if chunk.group.is_histogram == is_histogram:
                by_group.setdefault(chunk.group, []).append(chunk.frame)
        known = {"series_id": pl.Int64, "alias_priority": pl.Int8, "scale": pl.Float64, **payload}
        frames = [
            self._identified(group, pl.concat(frames)).select(list(known))
            for group, frames in by_group.items()
        ]
        return pl.concat([pl.DataFrame(schema=known), *frames])

    def _identified(self, group: Group, frame: pl.DataFrame) -> pl.DataFrame:
        keys = frame.select(group.identity).unique(maintain_order=True)
        children = [self._child(group, row) for row in keys.iter_rows(named=True)]
        ids = [child.key.series_id for child in children]
        self.children.update(zip(ids, children, strict=True))
        named = keys.with_columns(
            pl.Series("series_id", ids, dtype=pl.Int64),
            pl.Series(
                "alias_priority", [child.wire.alias_priority for child in children], dtype=pl.Int8
            ),
            pl.Series("scale", [child.wire.scale for child in children], dtype=pl.Float64),
        )
        joined = frame.join(named, on=group.identity, nulls_equal=True)
        if not group.is_histogram:
            return joined
        # A state whose buckets do not match its bounds is dropped.
        sizes = {i: len(c.key.bounds or ()) + 1 for i, c in zip(ids, children, strict=True)}
        size = pl.col("series_id").replace_strict(sizes, return_dtype=pl.UInt32)
        buckets = "fb" if "fb" in joined.columns else "b"
        return joined.filter(pl.col(buckets).list.len() == size)

    def _child(self, group: Group, row: Mapping[str, Any]) -> Child:
        wire = Wire.of(row["metric_name"], row["wire_kind"])
        bounds = None
        if group.is_histogram:
            text = row["bounds"] if group.has_bounds else self.pulled.bounds[row["metric_name"]]
            bounds = bounds_of(text)
        labels = {name: row[name] for name in group.labels if row[name] is not None}
        key = wire.key(row["instance"], labels, bounds)
        return Child(wire, of_job(key, row["job"], self.jobs.get(key.instance, ())), row["job"])

    @cached_property
    def jobs(self) -> dict[str, set[str]]:
        """The jobs that scrape each instance, from its `up` series."""
        found: dict[str, set[str]] = {}
        pulled = self.pulled
        for chunk in (*pulled.attempts, *pulled.whole, *pulled.downsampled, *pulled.before):
            up = chunk.frame.filter(pl.col("metric_name") == "up")
            for instance, job in up.select("instance", "job").unique().iter_rows():
                found.setdefault(instance, set()).add(job)
        return found


def minutes_of(answers: pl.DataFrame) -> pl.DataFrame:
    """Downsampled scalars: series_id, alias_priority, ms (from t0), t1_ms, n, first, …."""
    scale = pl.col("scale")
    lowest = pl.col("lo")
    highest = pl.coalesce("hi", "lo")
    constant = pl.when(pl.col("hi").is_null()).then(lowest * pl.col("n"))
    return answers.select(
        "series_id",
        "alias_priority",
        *_clock(),
        "n",
        "twins",
        first=pl.coalesce("f", "lo") * scale,
        last=pl.coalesce("l", highest) * scale,
        min=lowest * scale,
        max=highest * scale,
        sum=pl.coalesce("total", constant) * scale,
    )


def minute_histograms_of(answers: pl.DataFrame) -> pl.DataFrame:
    """Downsampled histograms, with all columns."""
    first, last = pl.col("fb").cast(COUNTS), pl.coalesce("b", "fb").cast(COUNTS)
    return answers.select(
        "series_id",
        "alias_priority",
        *_clock(),
        "n",
        "twins",
        first_count=first.list.sum(),
        first_sum="fs",
        first_counts=first,
        count=last.list.sum(),
        sum=pl.coalesce("s", "fs"),
        counts=last,
    )


def _clock() -> list[pl.Expr]:
    origin = pl.col("m") * MINUTE_MS
    return [
        (origin + pl.col("t0")).alias("ms"),
        (origin + pl.coalesce("t1", "t0")).alias("t1_ms"),
    ]


def ingest_notes(reader: Reader, children: Iterable[Child]) -> pl.DataFrame:
    """The findings of ingestion, one row per (check, instance), for duplicates also per metric."""
    instances = {child.key.instance for child in children}
    notes = [
        {
            "check": check,
            "instance": row["instance"],
            "ms": row[f"{column}_ms"],
            "subject": subject,
            "detail": detail.format(**row),
            "count": row[column],
        }
        for row in ({**_NONE, **result} for result in reader.pulled.findings)
        if row.get("instance") in instances
        for column, check, subject, detail in _FINDINGS
        if row.get(column)
    ]
    schema = {"ms": pl.Int64, **{k: v for k, v in INGEST_NOTES_SCHEMA.items() if k != "ts"}}
    noted = pl.DataFrame(notes, schema=schema)
    found = pl.concat([noted, _twins(reader).select(noted.columns)])
    return found.with_columns(ts=instant("ms")).sort("check", "instance", "subject")


_FINDINGS = (
    (
        "stale",
        "series",
        "stale markers",
        "the target stopped exposing {stale_families} families; their stale markers were dropped",
    ),
    ("late", "late", "arrival", "arrived up to {lag_seconds} s after it was sampled"),
    (
        "ahead",
        "clock",
        "arrival",
        "sampled up to {lead_seconds} s after it arrived: the Collector's clock is ahead of the "
        "store's",
    ),
    (
        "unreadable",
        "coverage",
        "values",
        "the value of the point was lost on its way to the store",
    ),
)


_NONE: Final = dict.fromkeys(FINDING_COLUMNS)  # answers omit the keys of nulls


def _twins(reader: Reader) -> pl.DataFrame:
    """Points that the server had twice and counted once, per instance and metric."""
    parts = reader.pulled.downsampled
    tables = [
        minutes_of(reader.table(parts, MINUTES)),
        minute_histograms_of(reader.table(parts, MINUTE_HISTOGRAMS, is_histogram=True)),
    ]
    seen = [t.filter(pl.col("twins") > 0).select("series_id", "ms", "twins") for t in tables]
    names = pl.DataFrame(
        [(i, c.key.instance, c.key.metric) for i, c in reader.children.items()],
        schema={"series_id": pl.Int64, "instance": pl.String, "subject": pl.String},
        orient="row",
    )
    return (
        pl.concat(seen)
        .join(names, on="series_id")
        .group_by("instance", "subject", maintain_order=True)
        .agg(count=pl.col("twins").sum(), ms=pl.col("ms").min())
        .with_columns(
            check=pl.lit("duplicate"),
            detail=pl.lit("the same series and sample time, counted once"),
        )
    )


# The columns of the rollup's two tables.
MINUTES_SCHEMA: dict[str, Any] = {
    "series_id": pl.Int64,
    "minute": UTC_MICROSECONDS,
    "run": pl.Int32,
    "first": pl.Float64,
    "last": pl.Float64,
    "t0": UTC_MICROSECONDS,
    "t1": UTC_MICROSECONDS,
    "n": pl.Int32,
    "min": pl.Float64,
    "max": pl.Float64,
    "sum": pl.Float64,  # null for a counter that changed: meaningless and not sent
}
MINUTE_HISTOGRAMS_SCHEMA: dict[str, Any] = {
    "series_id": pl.Int64,
    "minute": UTC_MICROSECONDS,
    "run": pl.Int32,
    "first_count": pl.Float64,
    "first_sum": pl.Float64,
    "first_counts": pl.List(pl.Float64),
    "count": pl.Float64,
    "sum": pl.Float64,
    "counts": pl.List(pl.Float64),
    "t0": UTC_MICROSECONDS,
    "t1": UTC_MICROSECONDS,
    "n": pl.Int32,
}
_MERGED = (MINUTES_SCHEMA.keys() | MINUTE_HISTOGRAMS_SCHEMA.keys()) - {
    *("series_id", "minute", "run", "t0", "t1"),
}
# The columns of a row, and the columns of a minute with its first and last state.
_VALUE = {"value": ("first", "last")}
_STATE = {"sum": ("first_sum", "sum"), "counts": ("first_counts", "counts")}
_COUNTED = ("first", "last", "min", "max", "first_sum", "sum")


class DownsampledRows(Struct, frozen=True):
    """A downsampled pull: the minutes, and their first and last states as rows.

    `minutes` and `minute_histograms` have the columns of the rollup. `rows` has every scrape
    attempt (`up`), but of other series only first and last states; no others were transferred.
    """

    rows: Rows
    minutes: pl.DataFrame
    minute_histograms: pl.DataFrame


def whole_rows(pulled: Pulled) -> Rows:
    """The canonical rows of a pull at full resolution, with the last state before it."""
    reader = Reader(pulled, {})
    scalars = reader.table(pulled.whole, SCALARS)
    histograms = reader.table(pulled.whole, HISTOGRAMS, is_histogram=True)
    samples = scalars.select(
        "series_id", "alias_priority", "ms", value=pl.col("v") * pl.col("scale")
    )
    states = histograms.select(
        "series_id", "alias_priority", "ms", sum="s", counts=pl.col("b").cast(COUNTS)
    )
    return _rows(reader, samples, states, _before(reader))


def downsampled_rows(pulled: Pulled) -> DownsampledRows:
    """The minutes of a downsampled pull, and the canonical rows that go with them."""
    reader = Reader(pulled, {})
    minutes = _newest(minutes_of(reader.table(pulled.downsampled, MINUTES)))
    histograms = _newest(
        minute_histograms_of(reader.table(pulled.downsampled, MINUTE_HISTOGRAMS, is_histogram=True))
    )
    before, attempts = _before(reader), _attempts(reader)
    samples = pl.concat([_ends(minutes, _VALUE), attempts])
    states = _ends(histograms, _STATE)
    samples = samples.unique(["series_id", "ms"], keep="first", maintain_order=True)
    rows = without_impossible(_rows(reader, samples, states, before))
    clock = correction(rows)
    scalar_parts, histogram_parts = (
        [_restamped(_possible(part), clock) for part in parts]
        for parts in ([before[0], minutes], [before[1], histograms])
    )
    rows, moved = _relabelled(clock.corrected(rows), scalar_parts[1], histogram_parts[1])
    scalar_parts, histogram_parts = (
        [renumbered(part, moved) for part in parts] for parts in (scalar_parts, histogram_parts)
    )
    settled = settle(rows, is_downsampled=True)
    return DownsampledRows(
        rows,
        _with_run(scalar_parts, settled.samples, MINUTES_SCHEMA),
        _with_run(histogram_parts, settled.histograms, MINUTE_HISTOGRAMS_SCHEMA),
    )


def _relabelled(
    rows: Rows, minutes: pl.DataFrame, histograms: pl.DataFrame
) -> tuple[Rows, dict[int, int]]:
    """The rows, with series merged that continued under other labels, and their old to new ids."""
    clock = {
        "ts": instant("ms").dt.replace_time_zone("UTC"),
        "until": instant("t1_ms").dt.replace_time_zone("UTC"),
    }
    spans = [
        minutes.select("series_id", "n", "first", "last", **clock),
        histograms.select("series_id", "n", first="first_count", last="count", **clock),
    ]
    lives = process_lives(rows.samples.sort("series_id", "ts"), rows.series)
    return with_relabelled_minutes(rows, lives, pl.concat(spans))


def _possible(minutes: pl.DataFrame) -> pl.DataFrame:
    """The minutes without those that have an impossible value."""
    kept = (name for name in _COUNTED if name in minutes.columns)
    return minutes.filter(is_possible(name) for name in kept)


def _restamped(minutes: pl.DataFrame, clock: Correction) -> pl.DataFrame:
    """The minutes with corrected times at both ends; those that lost an end are removed."""
    for end in ("ms", "t1_ms"):
        ts = instant(end).dt.replace_time_zone("UTC")
        stamped = minutes.with_columns(ts=ts, arrival=pl.lit(None, pl.Int64))
        moved = clock.applied(stamped).with_columns(pl.col("ts").dt.epoch("ms").alias(end))
        minutes = moved.drop("ts", "arrival")
    return minutes


def _newest(minutes: pl.DataFrame) -> pl.DataFrame:
    """The minutes without older metric names if a newer name has the same series and minute."""
    best = pl.col("alias_priority").min().over("series_id", pl.col("ms") // MINUTE_MS)
    return minutes.filter(pl.col("alias_priority") == best)


def _ends(minutes: pl.DataFrame, columns: Mapping[str, tuple[str, str]]) -> pl.DataFrame:
    """The first and last states of minutes: series_id, alias_priority, ms, `columns`."""
    first = minutes.select(
        "series_id",
        "alias_priority",
        "ms",
        **{name: pl.col(begin) for name, (begin, _) in columns.items()},
    )
    last = minutes.filter(pl.col("t1_ms") > pl.col("ms")).select(
        "series_id",
        "alias_priority",
        ms="t1_ms",
        **{name: pl.col(end) for name, (_, end) in columns.items()},
    )
    return pl.concat([first, last])


def _before(reader: Reader) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The last state of every series before the start, as minutes of one point each."""
    before = reader.pulled.before
    scalars = minutes_of(reader.table(before, MINUTES))
    histograms = minute_histograms_of(reader.table(before, MINUTE_HISTOGRAMS, is_histogram=True))
    newest = pl.col("t1_ms") == pl.col("t1_ms").max().over("series_id")
    alone = {"ms": pl.col("t1_ms"), "n": pl.lit(1, pl.Int64), "twins": pl.lit(None, pl.Int64)}
    last = pl.col("last")
    return (
        scalars.filter(newest).with_columns(first=last, min=last, max=last, sum=last, **alone),
        histograms.filter(newest).with_columns(
            first_count="count", first_sum="sum", first_counts="counts", **alone
        ),
    )


def _attempts(reader: Reader) -> pl.DataFrame:
    """Every scrape attempt: series_id, alias_priority, ms, value."""
    packed = reader.table(reader.pulled.attempts, ATTEMPTS)
    one_by_one = packed.explode("at", "v", empty_as_null=False)
    return one_by_one.select(
        "series_id", "alias_priority", ms=pl.col("m") * MINUTE_MS + pl.col("at"), value="v"
    )


def _rows(
    reader: Reader,
    samples: pl.DataFrame,
    states: pl.DataFrame,
    before: tuple[pl.DataFrame, pl.DataFrame],
) -> Rows:
    """Canonical rows of inference servers; a series in the range includes its state before it."""
    own = serving(reader.children)
    inside = pl.concat([samples.select("series_id"), states.select("series_id")]).unique()
    inside = inside.filter(pl.col("series_id").is_in(pl.Series(list(own)).implode()))
    earlier = (_ends(before[0], _VALUE), _ends(before[1], _STATE))
    scalars, histograms = (
        pl.concat([first.select(frame.columns), frame]).join(inside, on="series_id", how="semi")
        for first, frame in zip(earlier, (samples, states), strict=True)
    )
    seen = set(inside.get_column("series_id").to_list())
    children = [child for series_id, child in own.items() if series_id in seen]
    counted = histograms.with_columns(count=pl.col("counts").list.sum())
    return Rows(
        series_of(children),
        as_schema(_in_time(scalars), SAMPLES_SCHEMA),
        as_schema(_in_time(counted), HISTOGRAMS_SCHEMA),
        as_schema(ingest_notes(reader, children), INGEST_NOTES_SCHEMA),
        reader.pulled.start,
    )


def _in_time(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.with_columns(ts=instant("ms")).sort(
        "series_id", "ts", "alias_priority", maintain_order=True
    )


def _with_run(
    parts: Sequence[pl.DataFrame], settled: pl.DataFrame, schema: Mapping[str, Any]
) -> pl.DataFrame:
    """The minutes in the rollup's columns, with the run that the store determined for `t0`.

    Parts of the same minute are merged: the point before the start may be in the first minute, and
    two jobs may have scraped a server in the same one.
    """
    begun = settled.select("series_id", "run", ms=pl.col("ts").dt.epoch("ms"))
    minutes = pl.concat([part.select(parts[0].columns) for part in parts])
    is_state = "counts" in schema
    merged = [_merged(n, is_state=is_state) for n in minutes.columns if n in _MERGED]
    clock = {"t0": pl.col("ms").first(), "t1": pl.col("t1_ms").max()}
    named = (
        minutes.join(begun, on=["series_id", "ms"])
        .with_columns(minute=pl.col("ms") // MINUTE_MS * MINUTE_MS)
        .sort("series_id", "ms")
        .group_by("series_id", "minute", "run", maintain_order=True)
        .agg(*merged, **clock)
        .with_columns(instant(name).alias(name) for name in ("minute", "t0", "t1"))
    )
    return as_schema(named, schema).sort("series_id", "minute", "run")


def _merged(column: str, *, is_state: bool) -> pl.Expr:
    """The expression that merges a rollup column from parts of one minute, in time order.

    `is_state`: the minutes are a histogram's, whose `sum` is a state and must not be added up.
    """
    value = pl.col(column)
    if column == "sum" and not is_state:
        return pl.when(value.is_not_null().all()).then(value.sum())
    if column in ("n", "min", "max"):
        return {"n": value.sum(), "min": value.min(), "max": value.max()}[column]
    return value.first() if column.startswith("first") else value.sort_by("t1_ms").last()
