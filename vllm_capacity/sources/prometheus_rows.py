"""A series a bucket, as Prometheus answers, into one state a scrape, as canonical rows have it.

Buckets are cumulative over `le` on the wire, and per bucket here. What a scraper's configuration
puts on every series of a target (namespace, pod, cluster …) is on that target's `up`, too: that is
how it is told from the server's own labels.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import msgspec
import polars as pl

from vllm_capacity.errors import SourceError, plain
from vllm_capacity.facts.metrics import keeps
from vllm_capacity.sources.otlp import Child, Wire, as_schema, of_job, series_of, serving
from vllm_capacity.telemetry.rows import (
    HISTOGRAMS_SCHEMA,
    INTAKE_SCHEMA,
    SAMPLES_SCHEMA,
    Rows,
)

HISTOGRAM_PARTS = ("_bucket", "_sum", "_count")
_RAW: dict[str, Any] = {"child": pl.Int64, "ms": pl.Int64, "value": pl.Float64}
_STATES: dict[str, Any] = {
    "series_id": pl.Int64,
    "rank": pl.Int8,
    "ms": pl.Int64,
    "count": pl.Float64,
    "sum": pl.Float64,
    "counts": pl.List(pl.Float64),
}
_Labels = tuple[tuple[str, str], ...]
_UnixSeconds = Annotated[float, msgspec.Meta(ge=-1e11, le=1e11)]


class Series(msgspec.Struct):
    """One series of an answer: its labels, and its samples as (Unix seconds, number as text)."""

    metric: dict[str, str]
    values: list[tuple[_UnixSeconds, str]] = []


@dataclass(frozen=True)
class Families:
    """What there is to ask for: scalars and histograms by name, with their declared kinds."""

    scalars: tuple[str, ...]
    histograms: tuple[str, ...]
    kinds: Mapping[str, str]


def families(names: Sequence[str], kinds: Mapping[str, str]) -> Families:
    """The families behind metric names, those that border 1 keeps."""
    histograms = [n.removesuffix("_bucket") for n in names if n.endswith("_bucket")]
    parts = {base + suffix for base in histograms for suffix in HISTOGRAM_PARTS}
    return Families(
        scalars=tuple(name for name in names if name not in parts and keeps(name)),
        histograms=tuple(base for base in histograms if keeps(base)),
        kinds=kinds,
    )


@dataclass
class _Known:
    """The children seen so far, by series id; `targets` are the labels put on, by instance."""

    targets: Mapping[str, set[tuple[str, str]]]
    children: dict[int, Child] = field(default_factory=dict)

    def series_id(
        self, wire: Wire, labels: Mapping[str, str], bounds: tuple[float, ...] | None = None
    ) -> int:
        instance = labels.get("instance", "")
        added = self.targets.get(instance, set())
        own = {k: v for k, v in labels.items() if (k, v) not in added}
        job = labels.get("job", "")
        jobs = {value for name, value in added if name == "job"}
        child = Child(wire, of_job(wire.key(instance, own, bounds), job, jobs), job)
        self.children[child.key.series_id] = child
        return child.key.series_id


@dataclass
class SeriesReader:
    """Collects raw series; a child is one label set, buckets apart from scalars."""

    found: Families
    _labels: dict[tuple[str, _Labels], int] = field(default_factory=dict)
    _frames: list[pl.DataFrame] = field(default_factory=list)
    _warnings: Counter[str] = field(default_factory=Counter)

    def add(self, matrix: Sequence[Series]) -> None:
        """Take in the answer of a query; SourceError where a series is none of Prometheus'."""
        for series in matrix:
            labels = dict(series.metric)
            name = labels.pop("__name__", "")
            if not name or (name.endswith("_bucket") and _edge(labels.get("le")) is None):
                raise SourceError(
                    f"Prometheus answers with a series that has no name or bound: {series.metric}"
                )
            child = self._labels.setdefault(
                (name, tuple(sorted(labels.items()))), len(self._labels)
            )
            frame = pl.DataFrame(
                {
                    "ms": [round(moment * 1000) for moment, _ in series.values],
                    "value": [_number(value) for _, value in series.values],
                },
                schema={"ms": pl.Int64, "value": pl.Float64},
            )
            self._frames.append(frame.select(pl.lit(child, pl.Int64).alias("child"), "ms", "value"))

    def warn(self, warnings: Sequence[str]) -> None:
        """Take in that an answer may not hold all there is, for the ledger."""
        self._warnings.update(warnings)

    def rows(self) -> Rows:
        """Everything taken in, as canonical rows, a sample that came twice counted once."""
        raw = pl.concat([pl.DataFrame(schema=_RAW), *self._frames])
        raw = raw.filter(pl.col("value").is_not_nan()).unique(["child", "ms"])
        known = _Known(self._target_labels())
        samples = self._scalars(raw, known)
        states = self._histograms(raw, known)
        own = serving(known.children)
        kept = pl.Series(list(own), dtype=pl.Int64).implode()
        times = {"ts": pl.from_epoch(pl.col("ms") * 1000, time_unit="us")}
        samples, states = (
            frame.filter(pl.col("series_id").is_in(kept))
            .with_columns(**times)
            .sort("series_id", "ts")
            for frame in (samples, states)
        )
        return Rows(
            series_of(own.values()),
            as_schema(samples, SAMPLES_SCHEMA),
            as_schema(states, HISTOGRAMS_SCHEMA),
            self._intake(),
        )

    def _intake(self) -> pl.DataFrame:
        notes = [
            ("coverage", None, None, "partial answer", plain(warning)[:300], count)
            for warning, count in self._warnings.items()
        ]
        return pl.DataFrame(notes, schema=INTAKE_SCHEMA, orient="row")

    def _target_labels(self) -> dict[str, set[tuple[str, str]]]:
        """What the scraper puts on every series of a target, by instance."""
        targets: dict[str, set[tuple[str, str]]] = {}
        for name, labels in self._labels:
            if name == "up":
                targets.setdefault(dict(labels).get("instance", ""), set()).update(labels)
        return targets

    def _scalars(self, raw: pl.DataFrame, known: _Known) -> pl.DataFrame:
        names = set(self.found.scalars)
        rows = []
        for (name, labels), child in self._labels.items():
            if name in names:
                wire = Wire.of(name, _kind(self.found.kinds.get(name, "")))
                series_id = known.series_id(wire, dict(labels))
                rows.append((child, series_id, wire.rank, wire.scale))
        schema = {"child": pl.Int64, "series_id": pl.Int64, "rank": pl.Int8, "scale": pl.Float64}
        named = pl.DataFrame(rows, schema=schema, orient="row")
        return raw.join(named, on="child").select(
            "series_id", "rank", "ms", value=pl.col("value") * pl.col("scale")
        )

    def _histograms(self, raw: pl.DataFrame, known: _Known) -> pl.DataFrame:
        frames = [pl.DataFrame(schema=_STATES)]
        for base in self.found.histograms:
            states, label_sets = self._states(raw, base)
            wire = Wire.of(base, "histogram")
            keys = states.select("group", "bounds").unique(maintain_order=True)
            ids = [
                known.series_id(wire, dict(label_sets[group]), tuple(bounds))
                for group, bounds in keys.iter_rows()
            ]
            named = keys.with_columns(
                pl.Series("series_id", ids, dtype=pl.Int64),
                pl.lit(wire.rank, pl.Int8).alias("rank"),
            )
            frames.append(states.join(named, on=["group", "bounds"]).select(list(_STATES)))
        return pl.concat(frames)

    def _states(self, raw: pl.DataFrame, base: str) -> tuple[pl.DataFrame, list[_Labels]]:
        """A family's states (group, ms, bounds, counts, count, sum) and the groups' label sets."""
        groups: dict[_Labels, int] = {}
        buckets, sums = [], []
        for (name, labels), child in self._labels.items():
            bare = tuple(item for item in labels if item[0] != "le")
            if name == f"{base}_bucket":
                edge = _edge(dict(labels)["le"])
                buckets.append((child, groups.setdefault(bare, len(groups)), edge))
            elif name == f"{base}_sum":
                sums.append((child, groups.setdefault(bare, len(groups))))
        bucket_schema = {"child": pl.Int64, "group": pl.Int64, "edge": pl.Float64}
        edges = pl.DataFrame(buckets, schema=bucket_schema, orient="row")
        totals = pl.DataFrame(sums, schema={"child": pl.Int64, "group": pl.Int64}, orient="row")
        per_scrape = (
            raw.join(edges, on="child")
            .sort("group", "ms", "edge")
            .group_by("group", "ms", maintain_order=True)
            .agg(bounds="edge", counts=pl.col("value").cum_max())
            .filter(pl.col("bounds").list.last().is_infinite())
            .with_columns(
                bounds=pl.col("bounds").list.head(pl.col("bounds").list.len() - 1),
                # Cumulative over the edges on the wire, per bucket here.
                counts=pl.col("counts").list.eval(pl.element().diff().fill_null(pl.element())),
            )
        )
        total = raw.join(totals, on="child").select("group", "ms", sum="value")
        joined = per_scrape.join(total, on=["group", "ms"], how="left")
        return joined.with_columns(count=pl.col("counts").list.sum()), list(groups)


def _edge(text: str | None) -> float | None:
    """The bound of a bucket; None where there is none to be read."""
    try:
        edge = float(text or "")
    except ValueError:
        return None
    return None if math.isnan(edge) else edge


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise SourceError(f"Prometheus answers with the value {text!r}, no number.") from None


def _kind(declared: str) -> str:
    """The declared type in our words; empty where none was declared."""
    return declared if declared in ("counter", "gauge") else ""
