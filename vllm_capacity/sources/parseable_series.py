"""Whose answers they are: the series behind Parseable's rows, and what the ledger hears of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import polars as pl

from vllm_capacity.sources.otlp import Child, Wire, of_job
from vllm_capacity.sources.parseable_minutes import MINUTE_HISTOGRAMS, MINUTES
from vllm_capacity.sources.parseable_pull import Chunk, Pulled
from vllm_capacity.sources.parseable_queries import Group
from vllm_capacity.sources.parseable_shapes import FINDING_COLUMNS, bounds_of
from vllm_capacity.telemetry.rows import INTAKE_SCHEMA

COUNTS: Final = pl.List(pl.Float64)
MINUTE_MS: Final = 60_000


def instant(column: str) -> pl.Expr:
    """Milliseconds as an instant, naive UTC."""
    return pl.from_epoch(pl.col(column) * 1000, time_unit="us")


@dataclass(frozen=True)
class Reader:
    """Identifies the series of a pull's answers, and remembers them by id."""

    pulled: Pulled
    children: dict[int, Child]

    def table(
        self, parts: Sequence[Chunk], payload: Mapping[str, Any], *, is_histogram: bool = False
    ) -> pl.DataFrame:
        """The parts of one sort as one frame: series_id, rank, scale, then the payload."""
        by_group: dict[Group, list[pl.DataFrame]] = {}
        for time_range in parts:
            if time_range.group.is_histogram == is_histogram:
                by_group.setdefault(time_range.group, []).append(time_range.frame)
        known = {"series_id": pl.Int64, "rank": pl.Int8, "scale": pl.Float64, **payload}
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
            pl.Series("rank", [child.wire.rank for child in children], dtype=pl.Int8),
            pl.Series("scale", [child.wire.scale for child in children], dtype=pl.Float64),
        )
        joined = frame.join(named, on=group.identity, nulls_equal=True)
        if not group.is_histogram:
            return joined
        # A state whose buckets do not fit its bounds is none.
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
        """The jobs that scrape each instance, as its `up` tells."""
        found: dict[str, set[str]] = {}
        pulled = self.pulled
        for time_range in (*pulled.attempts, *pulled.whole, *pulled.thinned, *pulled.before):
            up = time_range.frame.filter(pl.col("metric_name") == "up")
            for instance, job in up.select("instance", "job").unique().iter_rows():
                found.setdefault(instance, set()).add(job)
        return found


def minutes_of(answers: pl.DataFrame) -> pl.DataFrame:
    """Thinned scalars with all columns told: series_id, rank, ms (of t0), t1_ms, n, first, …."""
    scale = pl.col("scale")
    lowest = pl.col("lo")
    highest = pl.coalesce("hi", "lo")
    constant = pl.when(pl.col("hi").is_null()).then(lowest * pl.col("n"))
    return answers.select(
        "series_id",
        "rank",
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
    """Thinned histograms with all columns told."""
    first, last = pl.col("fb").cast(COUNTS), pl.coalesce("b", "fb").cast(COUNTS)
    return answers.select(
        "series_id",
        "rank",
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


def intake(reader: Reader, children: Iterable[Child]) -> pl.DataFrame:
    """The findings of the border, one row per (check, instance), duplicates per metric."""
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
    schema = {"ms": pl.Int64, **{k: v for k, v in INTAKE_SCHEMA.items() if k != "ts"}}
    noted = pl.DataFrame(notes, schema=schema)
    found = pl.concat([noted, _twins(reader).select(noted.columns)])
    return found.with_columns(ts=instant("ms")).sort("check", "instance", "subject")


_FINDINGS = (
    (
        "stale",
        "series",
        "markers of staleness",
        "the target stopped exposing {stale_families} families; the markers were dropped",
    ),
    ("late", "late", "arrival", "arrived up to {lag_seconds} s after it was sampled"),
    (
        "ahead",
        "clock",
        "arrival",
        "sampled up to {lead_seconds} s after it arrived: the clock of its Collector stands ahead "
        "of the store's",
    ),
    (
        "unreadable",
        "coverage",
        "values",
        "the value of the point was lost on its way into the store",
    ),
)


_NONE: Final = dict.fromkeys(FINDING_COLUMNS)  # a null has no key in an answer


def _twins(reader: Reader) -> pl.DataFrame:
    """Points the server had twice and counted once, per instance and metric."""
    parts = reader.pulled.thinned
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
