"""Prometheus' series as canonical rows: scalars by name, histograms from their buckets.

Prometheus returns one series per bucket; canonical rows have one state per scrape. Buckets are
cumulative over `le` on the wire, and per bucket here. Labels that a scraper's configuration adds to
every series of a target (namespace, pod, cluster …) are also on the target's `up`, which
distinguishes them from the server's own labels. They become labels of `target_info`.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import polars as pl
from msgspec import Struct, field

from vllm_capacity.errors import SourceError, plain
from vllm_capacity.facts.metrics import keeps
from vllm_capacity.sources.otlp import Child, Wire, as_schema, is_label, of_job, series_of, serving
from vllm_capacity.telemetry.parts import Held, RowsInParts, Spool, Tables
from vllm_capacity.telemetry.processes import TARGET_INFO
from vllm_capacity.telemetry.rows import (
    HISTOGRAMS_SCHEMA,
    INGEST_NOTES_SCHEMA,
    SAMPLES_SCHEMA,
    SeriesKey,
    microseconds,
)
from vllm_capacity.timerange import TimeRange

HISTOGRAM_PARTS = ("_bucket", "_sum", "_count")
_STATES: dict[str, Any] = {
    "series_id": pl.Int64,
    "alias_priority": pl.Int8,
    "ms": pl.Int64,
    "count": pl.Float64,
    "sum": pl.Float64,
    "counts": pl.List(pl.Float64),
}
_Labels = tuple[tuple[str, str], ...]


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


class _Known(Struct):
    """The series seen so far, by id; `targets` has the labels added by the scraper, by instance."""

    targets: Mapping[str, set[tuple[str, str]]]
    children: dict[int, Child] = field(default_factory=dict)
    _ids: dict[tuple[str, _Labels, tuple[float, ...] | None], int] = field(default_factory=dict)

    def series_id(
        self, wire: Wire, labels: _Labels, bounds: tuple[float, ...] | None = None
    ) -> int:
        key = (wire.exposed, labels, bounds)
        if key not in self._ids:
            self._ids[key] = self._new(wire, dict(labels), bounds)
        return self._ids[key]

    def _new(self, wire: Wire, labels: Mapping[str, str], bounds: tuple[float, ...] | None) -> int:
        instance = labels.get("instance", "")
        added = self.targets.get(instance, set())
        own = {k: v for k, v in labels.items() if (k, v) not in added}
        job = labels.get("job", "")
        jobs = {value for name, value in added if name == "job"}
        child = Child(wire, of_job(wire.key(instance, own, bounds), job, jobs), job)
        self.children[child.key.series_id] = child
        return child.key.series_id


class SeriesReader(Struct):
    """Collects raw series; a child is one name and label set, with scalars and buckets separate.

    Which labels a scraper adds to every series of a target is only known once all are seen. Until
    then samples are kept in `raw`, those of scalars separate from those of histograms.
    """

    found: Families
    raw: Held | Spool = field(default_factory=Held)
    _labels: dict[tuple[str, _Labels], int] = field(default_factory=dict)
    _children: dict[str, int] = field(default_factory=dict)
    _warnings: Counter[str] = field(default_factory=Counter)

    def add(self, answers: Sequence[pl.DataFrame], time_range: TimeRange) -> None:
        """Add the samples in the range, and count warnings that an answer may be incomplete.

        SourceError for an invalid series. A sample received twice counts once.
        """
        answer = pl.concat(answers)
        self._warnings.update(answer["warning"].drop_nulls())
        answer = answer.filter(pl.col("metric").is_not_null())
        children = [self._child(metric) for metric in answer["metric"]]
        start, end = (microseconds(each) // 1000 for each in (time_range.start, time_range.end))
        samples = (
            answer.select(pl.Series("child", children, dtype=pl.Int64), "ms", "value")
            .explode("ms", "value", empty_as_null=False)
            .filter(pl.col("ms").is_between(start, end, closed="left"))
            .filter(pl.col("value").is_not_nan())
            .unique(["child", "ms"])
        )
        scalars = set(self.found.scalars)
        own = [child for (name, _), child in self._labels.items() if name in scalars]
        is_scalar = pl.col("child").is_in(pl.Series(own, dtype=pl.Int64).implode())
        self.raw.add(samples.filter(is_scalar), samples.filter(~is_scalar))

    @property
    def targets(self) -> int:
        """How many targets were seen so far."""
        return len({dict(labels).get("instance") for name, labels in self._labels if name == "up"})

    def _child(self, metric: str) -> int:
        if metric not in self._children:
            labels: dict[str, str] = json.loads(metric)
            name = labels.pop("__name__", "")
            if not name or (name.endswith("_bucket") and _edge(labels.get("le")) is None):
                raise SourceError(f"Prometheus returned a series without a name or bound: {metric}")
            key = (name, tuple(sorted(labels.items())))
            self._children[metric] = self._labels.setdefault(key, len(self._labels))
        return self._children[metric]

    def rows(self, spool: Held | Spool) -> RowsInParts:
        """Everything that was added, as canonical rows; one part per call of `add`."""
        targets = self._target_labels()
        known = _Known(targets)
        infos = {name: _target_info(name, labels) for name, labels in targets.items()}
        scalars = self._named_scalars(known)
        histograms = _Histograms.of(self.found.histograms, self._labels)
        for part in self.raw.parts:
            raw_scalars, raw_buckets = part()
            samples = raw_scalars.join(scalars, on="child").select(
                "series_id", "alias_priority", "ms", value=pl.col("value") * pl.col("scale")
            )
            samples = pl.concat([samples, self._target_samples(raw_scalars, infos)])
            states = histograms.states(raw_buckets, known)
            spool.add(_canonical(samples, SAMPLES_SCHEMA), _canonical(states, HISTOGRAMS_SCHEMA))
        known.children.update({info.key.series_id: info for info in infos.values() if info})
        own = serving(known.children)
        parts = list(spool.parts)
        if len(own) < len(known.children):
            kept = pl.Series(list(own), dtype=pl.Int64)
            parts = [partial(_of_series, part, kept) for part in parts]
        return RowsInParts(series_of(own.values()), parts, self._ingest_notes())

    def _target_samples(
        self, scalars: pl.DataFrame, infos: Mapping[str, Child | None]
    ) -> pl.DataFrame:
        """A sample of the info series of each target whose `up` was sampled."""
        found = {}
        for (name, labels), child in self._labels.items():
            info = infos.get(dict(labels).get("instance", "")) if name == "up" else None
            if info is not None:
                found[child] = info.key.series_id
        first = scalars.filter(pl.col("child").is_in(list(found))).sort("ms")
        return first.select(
            pl.col("child").replace_strict(found, return_dtype=pl.Int64).alias("series_id"),
            pl.lit(0, pl.Int8).alias("alias_priority"),
            "ms",
            pl.lit(1.0).alias("value"),
        ).unique("series_id", keep="first", maintain_order=True)

    def _ingest_notes(self) -> pl.DataFrame:
        notes = [
            ("coverage", None, None, "partial answer", plain(warning)[:300], count)
            for warning, count in self._warnings.items()
        ]
        return pl.DataFrame(notes, schema=INGEST_NOTES_SCHEMA, orient="row")

    def _target_labels(self) -> dict[str, set[tuple[str, str]]]:
        """The labels that the scraper adds to every series of a target, by instance."""
        targets: dict[str, set[tuple[str, str]]] = {}
        for name, labels in self._labels:
            if name == "up":
                targets.setdefault(dict(labels).get("instance", ""), set()).update(labels)
        return targets

    def _named_scalars(self, known: _Known) -> pl.DataFrame:
        """The series of each scalar child: child, series_id, alias_priority, scale."""
        names = set(self.found.scalars)
        rows = []
        for (name, labels), child in self._labels.items():
            if name in names:
                wire = Wire.of(name, declared_kind(self.found.kinds.get(name, "")))
                rows.append((child, known.series_id(wire, labels), wire.alias_priority, wire.scale))
        schema = {
            "child": pl.Int64,
            "series_id": pl.Int64,
            "alias_priority": pl.Int8,
            "scale": pl.Float64,
        }
        return pl.DataFrame(rows, schema=schema, orient="row")


class _Histograms(Struct, frozen=True):
    """The buckets and sums of histograms, grouped by family and label set."""

    groups: list[tuple[Wire, _Labels]]
    edges: pl.DataFrame
    totals: pl.DataFrame

    @classmethod
    def of(cls, bases: Sequence[str], children: Mapping[tuple[str, _Labels], int]) -> _Histograms:
        wires = {base: Wire.of(base, "histogram") for base in bases}
        parts = {base + part: (base, part) for base in bases for part in ("_bucket", "_sum")}
        groups: dict[tuple[str, _Labels], int] = {}
        buckets, sums = [], []
        for (name, labels), child in children.items():
            if name in parts:
                base, part = parts[name]
                bare = tuple(item for item in labels if item[0] != "le")
                group = groups.setdefault((base, bare), len(groups))
                if part == "_sum":
                    sums.append((child, group))
                else:
                    buckets.append((child, group, _edge(dict(labels)["le"])))
        bucket_schema = {"child": pl.Int64, "group": pl.Int64, "edge": pl.Float64}
        edges = pl.DataFrame(buckets, schema=bucket_schema, orient="row")
        return cls(
            [(wires[base], labels) for base, labels in groups],
            edges.sort("group", "edge").with_row_index("rank"),
            pl.DataFrame(sums, schema={"child": pl.Int64, "group": pl.Int64}, orient="row"),
        )

    def states(self, raw: pl.DataFrame, known: _Known) -> pl.DataFrame:
        """The histogram states in these samples, with the columns of `_STATES`."""
        scrape, value = ["group", "ms"], pl.col("value")
        is_first = pl.any_horizontal(pl.col(scrape) != pl.col(scrape).shift(1)).fill_null(True)
        per_scrape = (
            raw.join(self.edges, on="child")
            .sort(pl.col("ms") * self.edges.height + pl.col("rank"))  # faster than by two columns
            .with_columns(value=value.cum_max().over(scrape))
            # Counts are cumulative on the wire, per bucket here.
            .with_columns(value=pl.when(is_first).then(value).otherwise(value - value.shift(1)))
            .group_by(scrape, maintain_order=True)
            .agg(bounds="edge", counts="value")
            .filter(pl.col("bounds").list.last().is_infinite())
            .with_columns(bounds=pl.col("bounds").list.head(pl.col("bounds").list.len() - 1))
        )
        total = raw.join(self.totals, on="child").select("group", "ms", sum="value")
        states = per_scrape.join(total, on=["group", "ms"], how="left")
        states = states.with_columns(count=pl.col("counts").list.sum())
        keys = states.select("group", "bounds").unique(maintain_order=True)
        keys = keys.sort("group", maintain_order=True)
        named = keys.with_columns(
            pl.Series("series_id", list(self._ids(keys, known)), dtype=pl.Int64),
            alias_priority=pl.Series(
                [self.groups[at][0].alias_priority for at in keys["group"]], dtype=pl.Int8
            ),
        )
        return states.join(named, on=["group", "bounds"]).select(list(_STATES))

    def _ids(self, keys: pl.DataFrame, known: _Known) -> Iterator[int]:
        for group, bounds in keys.iter_rows():
            wire, labels = self.groups[group]
            yield known.series_id(wire, labels, tuple(bounds))


def _target_info(instance: str, labels: Collection[tuple[str, str]]) -> Child | None:
    """The series that keeps a target's labels; None if it has only its instance and job.

    A label that changed during the range has the alphabetically last of its values.
    """
    own = {name: value for name, value in sorted(labels) if value and is_label(name)}
    if not own:
        return None
    key = SeriesKey(TARGET_INFO, "info", instance, labels=tuple(sorted(own.items())))
    return Child(Wire(TARGET_INFO, "info", None), key)


def _canonical(frame: pl.DataFrame, schema: Mapping[str, Any]) -> pl.DataFrame:
    times = frame.with_columns(ts=pl.from_epoch(pl.col("ms") * 1000, time_unit="us"))
    return as_schema(times.sort("series_id", "ts"), schema)


def _of_series(part: Callable[[], Tables], kept: pl.Series) -> Tables:
    samples, histograms = part()
    is_kept = pl.col("series_id").is_in(kept.implode())
    return samples.filter(is_kept), histograms.filter(is_kept)


def _edge(text: str | None) -> float | None:
    """The bound of a bucket; None if it is missing or invalid."""
    try:
        edge = float(text or "")
    except ValueError:
        return None
    return None if math.isnan(edge) else edge


def declared_kind(declared: str) -> str:
    """The declared type if it is counter or gauge, else empty."""
    return declared if declared in ("counter", "gauge") else ""
