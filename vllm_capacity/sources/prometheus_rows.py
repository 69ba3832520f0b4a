"""Prometheus' series as canonical rows: scalars by name, histograms from their buckets.

Prometheus returns one series per bucket; canonical rows have one state per scrape. Buckets are
cumulative over `le` on the wire, and per bucket here. Labels that a scraper's configuration adds to
every series of a target (namespace, pod, cluster …) are also on the target's `up`, which
distinguishes them from the server's own labels. They become labels of `target_info`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import polars as pl
from msgspec import Struct

from vllm_capacity.errors import SourceError, plain
from vllm_capacity.facts.metrics import keeps
from vllm_capacity.sources.otlp import Child, Wire, as_schema, is_label, series_of, serving
from vllm_capacity.sources.slices import (
    HISTOGRAMS,
    SAMPLES,
    SliceSeries,
    WireSeries,
    add_rows,
    children_of,
    series_in,
    slice_part,
)
from vllm_capacity.telemetry.parts import Held, RowsInParts, Spool
from vllm_capacity.telemetry.processes import TARGET_INFO
from vllm_capacity.telemetry.rows import (
    INGEST_NOTES_SCHEMA,
    SAMPLES_SCHEMA,
    SeriesKey,
    microseconds,
)
from vllm_capacity.timerange import TimeRange

HISTOGRAM_PARTS = ("_bucket", "_sum", "_count")
_Wire = tuple[str, dict[str, str]]  # a series' name and labels
_Labels = set[tuple[str, str]]


class Families(Struct, frozen=True):
    """The families to query: names of scalars and histograms, and their declared kinds."""

    scalars: tuple[str, ...]
    histograms: tuple[str, ...]
    kinds: Mapping[str, str]


def families(names: Sequence[str], kinds: Mapping[str, str]) -> Families:
    """The families behind metric names, only those that ingestion keeps."""
    histograms = [n.removesuffix("_bucket") for n in names if n.endswith("_bucket")]
    parts = {base + suffix for base in histograms for suffix in HISTOGRAM_PARTS}
    return Families(
        scalars=tuple(name for name in names if name not in parts and keeps(name)),
        histograms=tuple(base for base in histograms if keeps(base)),
        kinds=kinds,
    )


def declared_kind(declared: str) -> str:
    """The declared type if it is counter or gauge, else empty."""
    return declared if declared in ("counter", "gauge") else ""


# --- one slice ----------------------------------------------------------------------------------


def part_of(found: Families, answers: Sequence[pl.DataFrame], time_range: TimeRange) -> bytes:
    """The samples in the range as a `SlicePart`; its findings are warnings of incomplete answers.

    SourceError for an invalid series. A sample received twice counts once.
    """
    answer = pl.concat(answers)
    warnings = answer["warning"].drop_nulls().alias("warning").value_counts(name="count")
    answer = answer.filter(pl.col("metric").is_not_null())
    numbers = answer.select(pl.col("metric").unique(maintain_order=True)).with_row_index("wire")
    wire = [_name_and_labels(metric) for metric in numbers["metric"]]
    start, end = (microseconds(each) // 1000 for each in (time_range.start, time_range.end))
    samples = (
        answer.join(numbers, on="metric", maintain_order="left")
        .select("wire", "ms", "value")
        .explode("ms", "value", empty_as_null=False)
        .filter(pl.col("ms").is_between(start, end, closed="left"))
        .filter(pl.col("value").is_not_nan())
        .unique(["wire", "ms"], maintain_order=True)
    )
    series, scalars = _scalars(found, wire, samples)
    histograms, states = _histograms(found.histograms, wire, samples, first=len(series))
    return slice_part(
        SliceSeries([*series, *histograms]),
        _timed(scalars, SAMPLES),
        _timed(states, HISTOGRAMS),
        warnings.cast({"count": pl.Int64}),
    )


def _name_and_labels(metric: str) -> _Wire:
    labels: dict[str, str] = json.loads(metric)
    name = labels.pop("__name__", "")
    if not name or (name.endswith("_bucket") and _edge(labels.get("le")) is None):
        raise SourceError(f"Prometheus returned a series without a name or bound: {metric}")
    return name, labels


def _series(
    name: str, kind: str, labels: Mapping[str, str], bounds: tuple[float, ...] | None = None
) -> WireSeries:
    own = {**labels}
    instance, job = own.pop("instance", ""), own.pop("job", "")
    return WireSeries(name, kind, instance, job, tuple(sorted(own.items())), bounds)


def _timed(frame: pl.DataFrame, schema: Mapping[str, Any]) -> pl.DataFrame:
    times = frame.with_columns(ts=pl.from_epoch(pl.col("ms") * 1000, time_unit="us"))
    return as_schema(times, schema)


def _scalars(
    found: Families, wire: Sequence[_Wire], samples: pl.DataFrame
) -> tuple[list[WireSeries], pl.DataFrame]:
    """The series of counters and gauges, and their samples: child, ms, value in their unit."""
    names = set(found.scalars)
    series: list[WireSeries] = []
    rows = []
    for number, (name, labels) in enumerate(wire):
        if name in names:
            kind = declared_kind(found.kinds.get(name, ""))
            rows.append((number, len(series), Wire.of(name, kind).scale))
            series.append(_series(name, kind, labels))
    schema = {"wire": pl.UInt32, "child": pl.UInt32, "scale": pl.Float64}
    children = pl.DataFrame(rows, schema=schema, orient="row")
    own = samples.join(children, on="wire", maintain_order="left")
    return series, own.select("child", "ms", value=pl.col("value") * pl.col("scale"))


def _histograms(
    bases: Collection[str], wire: Sequence[_Wire], raw: pl.DataFrame, *, first: int
) -> tuple[list[WireSeries], pl.DataFrame]:
    """The series of histograms, and their states: child (from `first` on), ms, count, sum, counts.

    A histogram whose bounds changed is several series.
    """
    parts = {base + part: (base, part) for base in bases for part in ("_bucket", "_sum")}
    groups: dict[tuple[str, frozenset[tuple[str, str]]], int] = {}
    buckets, sums = [], []
    for number, (name, labels) in enumerate(wire):
        if name in parts:
            base, part = parts[name]
            bare = frozenset(item for item in labels.items() if item[0] != "le")
            group = groups.setdefault((base, bare), len(groups))
            if part == "_sum":
                sums.append((number, group))
            else:
                buckets.append((number, group, _edge(labels["le"])))
    bucket_schema = {"wire": pl.UInt32, "group": pl.Int64, "edge": pl.Float64}
    edges = pl.DataFrame(buckets, schema=bucket_schema, orient="row").sort("group", "edge")
    totals = pl.DataFrame(sums, schema={"wire": pl.UInt32, "group": pl.Int64}, orient="row")
    states = _states(raw, edges.with_row_index("rank"), totals)
    keys = states.select("group", "bounds").unique(maintain_order=True)
    named = list(groups)
    series = [
        _series(named[group][0], "histogram", dict(named[group][1]), tuple(bounds))
        for group, bounds in keys.iter_rows()
    ]
    keys = keys.with_row_index("child", offset=first)
    return series, states.join(keys, on=["group", "bounds"], maintain_order="left")


def _states(raw: pl.DataFrame, edges: pl.DataFrame, totals: pl.DataFrame) -> pl.DataFrame:
    """The histogram states in these samples: group, ms, bounds, count, sum, counts."""
    scrape, value = ["group", "ms"], pl.col("value")
    is_first = pl.any_horizontal(pl.col(scrape) != pl.col(scrape).shift(1)).fill_null(True)
    per_scrape = (
        raw.join(edges, on="wire")
        .sort(pl.col("ms") * edges.height + pl.col("rank"))  # faster than by two columns
        .with_columns(value=value.cum_max().over(scrape))
        # Counts are cumulative on the wire, per bucket here.
        .with_columns(value=pl.when(is_first).then(value).otherwise(value - value.shift(1)))
        .group_by(scrape, maintain_order=True)
        .agg(bounds="edge", counts="value")
        .filter(pl.col("bounds").list.last().is_infinite())
        .with_columns(bounds=pl.col("bounds").list.head(pl.col("bounds").list.len() - 1))
    )
    total = raw.join(totals, on="wire").select("group", "ms", sum="value")
    states = per_scrape.join(total, on=["group", "ms"], how="left", maintain_order="left")
    return states.with_columns(count=pl.col("counts").list.sum())


def _edge(text: str | None) -> float | None:
    """The bound of a bucket; None if it is missing or invalid."""
    try:
        edge = float(text or "")
    except ValueError:
        return None
    return None if math.isnan(edge) else edge


# --- all slices ---------------------------------------------------------------------------------


def rows_of(parts: Sequence[Callable[[], bytes]], spool: Held | Spool) -> RowsInParts:
    """The canonical rows of all slices, given in order of time; one part for each.

    NoTelemetryError if there are no vLLM series.
    """
    series = series_in(parts)
    targets: dict[str, _Labels] = {}
    for one in series:
        if one.exposed == "up":
            targets.setdefault(one.instance, set()).update(one.labels)
    children = children_of(series, added=targets)
    infos = {name: info for name, own in targets.items() if (info := _target_info(name, own))}
    own = serving({**children, **infos})
    sampled = {
        child.key.series_id: infos[one.instance].key.series_id
        for one, child in children.items()
        if one.exposed == "up" and one.instance in infos
    }
    warnings = add_rows(
        spool,
        parts,
        {one: child for one, child in children.items() if one in own},
        lambda samples: _target_samples(samples, sampled),
    )
    return RowsInParts(series_of(own.values()), spool.parts, _ingest_notes(warnings))


def _target_info(instance: str, labels: Collection[tuple[str, str]]) -> Child | None:
    """The series that keeps a target's labels; None if it has only its instance and job.

    A label that changed during the range has the alphabetically last of its values.
    """
    own = {name: value for name, value in sorted(labels) if value and is_label(name)}
    if not own:
        return None
    key = SeriesKey(TARGET_INFO, "info", instance, labels=tuple(sorted(own.items())))
    return Child(Wire(TARGET_INFO, "info", None), key)


def _target_samples(samples: pl.DataFrame, infos: Mapping[int, int]) -> pl.DataFrame:
    """A sample of the info series of each target whose `up` was sampled; ids by those of `up`."""
    found = samples.filter(pl.col("series_id").is_in(list(infos))).sort("ts")
    info = pl.col("series_id").replace_strict(infos, return_dtype=pl.Int64)
    named = found.with_columns(info, value=pl.lit(1.0), alias_priority=pl.lit(0, pl.Int8))
    return named.unique("series_id", keep="first", maintain_order=True).select(list(SAMPLES_SCHEMA))


def _ingest_notes(warnings: pl.DataFrame) -> pl.DataFrame:
    counted = warnings.group_by("warning", maintain_order=True).agg(pl.col("count").sum())
    notes = [
        ("coverage", None, None, "partial answer", plain(warning)[:300], count)
        for warning, count in counted.iter_rows()
    ]
    return pl.DataFrame(notes, schema=INGEST_NOTES_SCHEMA, orient="row")
