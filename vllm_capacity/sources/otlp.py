"""Converts OTLP data points to canonical rows, for both Parseable's files and its answers.

A collector turns a scrape into points: name, kind, attributes, and a resource for the target.
Parseable stores each point as a row, with its attributes and the resource's as columns. A dot in
the name distinguishes them: every resource attribute has one, no label of a Prometheus target
does. Resource attributes that say where and for whom the server runs also become labels.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from datetime import UTC, datetime
from importlib.resources import files
from typing import Any, TypeVar

import duckdb
import polars as pl
from msgspec import Struct
from msgspec.structs import replace

from vllm_capacity.errors import NoTelemetryError
from vllm_capacity.facts.metrics import Kind, Match, canonical_name, match
from vllm_capacity.telemetry.processes import BOOKKEEPING
from vllm_capacity.telemetry.rows import (
    UTC_MICROSECONDS,
    SeriesKey,
    series_frame,
)

_Key = TypeVar("_Key")
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# Added by Prometheus or a collector, not by the server.
_TARGET_LABELS = frozenset({"job", "instance", "le", "quantile", "__name__"})
# OpenTelemetry's resource attributes that say where and for whom a server runs.
_PLACES = ("k8s.", "cloud.", "deployment.", "service.namespace")


class Wire(Struct, frozen=True):
    """One family under its name on the wire, with its catalogue entry, if any.

    `kind` is counter, gauge or histogram, as declared on the wire or else from the catalogue or
    the name.
    """

    exposed: str
    kind: str
    found: Match | None

    @classmethod
    def of(cls, exposed: str, kind: str) -> Wire:
        """The family with that name and declared kind; an info family is a gauge on the wire."""
        found = match(exposed)
        if found and (not kind or found.metric.kind is Kind.INFO):
            kind = str(found.metric.kind)
        if not kind:
            kind = "counter" if exposed.endswith("_total") else "gauge"
        return cls(exposed, kind, found)

    @property
    def alias_priority(self) -> int:
        """How old the name is: 0 is vLLM's newest name for the metric."""
        return self.found.alias_priority if self.found else 0

    @property
    def scale(self) -> float:
        """The factor from a value on the wire to the family's unit."""
        return self.found.scale if self.found else 1.0

    def key(
        self, instance: str, labels: Mapping[str, str], bounds: tuple[float, ...] | None = None
    ) -> SeriesKey:
        """The identity of one series; an empty label counts as absent, as in Prometheus."""
        kept = {k: v for k, v in labels.items() if v and is_label(k)}
        has_engine = self.found.metric.has_engine if self.found else "engine" in kept
        engine = kept.pop("engine", "0")
        model_name = kept.pop("model_name", None) or kept.pop("model", None)  # Dynamo's spelling
        return SeriesKey(
            metric=self.found.metric.name if self.found else canonical_name(self.exposed),
            kind=self.kind,
            instance=instance,
            engine=engine if has_engine else None,
            model_name=model_name,
            labels=tuple(sorted(kept.items())),
            bounds=bounds,
        )


def is_label(name: str) -> bool:
    """Whether an attribute describes the server, rather than the scraper or collector.

    It does if it is a label of the series or its target, or a resource attribute that says where
    the server runs.
    """
    return name.startswith(_PLACES) or ("." not in name and name not in _TARGET_LABELS)


def of_job(key: SeriesKey, job: str, jobs: Collection[str]) -> SeriesKey:
    """The identity, plus the job for scrape metrics (such as `up`) if several jobs scrape there.

    A server's own metrics are the same for every job; scrape metrics differ by job.
    """
    if key.metric not in BOOKKEEPING or len(jobs) < 2:
        return key
    return replace(key, labels=(*key.labels, ("job", job)))


class Child(Struct, frozen=True):
    """One series as it is on the wire: its identity, its job, and when it started.

    `first` is the time of its first point. `started` is the OTLP start time, naive UTC; None if
    the collector set none.
    """

    wire: Wire
    key: SeriesKey
    job: str = ""
    first: datetime | None = None
    started: datetime | None = None


def serving(children: Mapping[_Key, Child]) -> dict[_Key, Child]:
    """The series that belong to inference servers, by the same keys.

    A store may hold other targets (nodes, GPUs, the collector itself), whose `up` and start times
    are left out. A target counts only if it exposes a serving family, or shares the job of one
    that does (a replica that never came up). NoTelemetryError if nothing is left.
    """
    own = [child for child in children.values() if child.key.metric.startswith("vllm:")]
    if not own:
        raise NoTelemetryError(
            "No vLLM series found. Check the stream and the time range, and that the collector "
            "scrapes vLLM's /metrics."
        )
    instances = {child.key.instance for child in own}
    jobs = {child.job for child in own if child.job}
    return {
        name: child
        for name, child in children.items()
        if child.key.instance in instances or child.job in jobs
    }


def series_of(children: Iterable[Child], *, begin: datetime | None = None) -> pl.DataFrame:
    """The `series` table of these children, each under its newest name.

    A series starts at zero if its start time is within the capture, which begins at `begin` (naive
    UTC) or at the very first point.
    """
    ordered = sorted(children, key=lambda child: -child.wire.alias_priority)
    exposed = {child.key: child.wire.exposed for child in ordered}
    first: dict[str, datetime] = {}
    for child in ordered:
        if child.first is not None:
            known = first.setdefault(child.key.instance, child.first)
            first[child.key.instance] = min(known, child.first)
    capture = max(begin or datetime.min, min(first.values(), default=datetime.min))
    born = {c.key.series_id for c in ordered if _is_born(c, first.get(c.key.instance), capture)}
    ids = pl.Series(sorted(born), dtype=pl.Int64).implode()
    is_stated = pl.col("series_id").is_in(ids)
    return series_frame(exposed).with_columns(starts_at_zero=pl.when(is_stated).then(True))


def _is_born(child: Child, scraped: datetime | None, capture: datetime) -> bool:
    """Whether a series' start time shows that it began after `scraped`, or within the capture.

    A collector that does not know the start writes the time of the first point it saw. That only
    shows that earlier scrapes of the instance did not have the series.
    """
    if child.started is None or child.first is None or scraped is None:
        return False
    return child.started > scraped or capture <= child.started < child.first


def read(connection: duckdb.DuckDBPyConnection, query: str, **params: float | str) -> pl.DataFrame:
    """The result of a query as a frame."""
    return pl.DataFrame(connection.sql(query, params=params) if params else connection.sql(query))


def query_text(name: str) -> str:
    """The SQL with that name, shipped beside this module."""
    return (files("vllm_capacity.sources") / "sql" / f"{name}.sql").read_text()


def as_schema(frame: pl.DataFrame, schema: Mapping[str, Any]) -> pl.DataFrame:
    """The frame in a canonical schema; naive times are UTC, missing columns are null."""
    columns = []
    for name, dtype in schema.items():
        column = pl.col(name) if name in frame.columns else pl.lit(None)
        if dtype == UTC_MICROSECONDS and name in frame.columns:
            column = column.cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
        columns.append(column.cast(dtype).alias(name))
    return frame.select(columns)
