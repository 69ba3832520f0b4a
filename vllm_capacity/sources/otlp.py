"""From OTLP data points to canonical rows: what Parseable's files and its answers share.

A collector turns a scrape into points: name, kind, attributes, and a resource for the target.
Parseable keeps a point as a row, its attributes and the resource's as columns, side by side. A dot
tells them apart: no label of a Prometheus target holds one, every resource attribute does. Of the
resource's, those that say where and for whom the server runs are labels, too.

`points` is the shape both readers bring their rows into (one row per data point):
identity (a hash of name, kind, instance, job, bounds and labels), metric_name, wire_kind, instance,
job, bounds, one column a label, then ts, arrived, started (naive UTC), value, count, sum, counts,
flags.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.resources import files
from typing import Any

import duckdb
import polars as pl

from vllm_capacity.errors import NoTelemetryError
from vllm_capacity.facts.metrics import Kind, Match, canonical_name, keeps, match
from vllm_capacity.telemetry.processes import BOOKKEEPING
from vllm_capacity.telemetry.rows import (
    HISTOGRAMS_SCHEMA,
    INGEST_NOTES_SCHEMA,
    SAMPLES_SCHEMA,
    UTC_MICROSECONDS,
    Rows,
    SeriesKey,
    series_frame,
)

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
LATE_SECONDS = 60  # a batch is sent after at most ten seconds; a minute means it had to wait
AHEAD_SECONDS = 5  # nothing arrives before it was sampled, but for clocks that differ a little
# What a scraper adds to every target, and a collector's own names for it: no labels of the server.
_TARGET_LABELS = frozenset({"job", "instance", "le", "quantile", "__name__"})
# Resource attributes that say where and for whom a server runs, of OpenTelemetry's conventions.
_PLACES = ("k8s.", "cloud.", "deployment.", "service.namespace")


@dataclass(frozen=True)
class Wire:
    """One family as it is spelt on the wire, and what the catalogue knows of it.

    `kind` is counter, gauge or histogram as the wire declares it, empty where it declares nothing.
    """

    exposed: str
    kind: str
    found: Match | None

    @classmethod
    def of(cls, exposed: str, kind: str) -> Wire:
        """The family of that name and declared kind; an info family is a gauge on the wire."""
        found = match(exposed)
        if found and (not kind or found.metric.kind is Kind.INFO):
            kind = str(found.metric.kind)
        if not kind:
            kind = "counter" if exposed.endswith("_total") else "gauge"
        return cls(exposed, kind, found)

    @property
    def alias_priority(self) -> int:
        """How old the spelling is: 0 is vLLM's newest name of the concept."""
        return self.found.alias_priority if self.found else 0

    @property
    def scale(self) -> float:
        """What turns a value of the wire into the family's unit."""
        return self.found.scale if self.found else 1.0

    def key(
        self, instance: str, labels: Mapping[str, str], bounds: tuple[float, ...] | None = None
    ) -> SeriesKey:
        """The identity of one child. An empty label is no label, as Prometheus has it."""
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
    """Whether an attribute tells of the server, rather than of the scraper or collector.

    A label of its own or of its target, or a resource attribute that says where it runs.
    """
    return name.startswith(_PLACES) or ("." not in name and name not in _TARGET_LABELS)


def of_job(key: SeriesKey, job: str, jobs: Collection[str]) -> SeriesKey:
    """The identity, with its job if it is a scrape's own bookkeeping and several jobs scrape there.

    What a server counts is the same whoever asks; how often it was asked is each job's own.
    """
    if key.metric not in BOOKKEEPING or len(jobs) < 2:
        return key
    return replace(key, labels=(*key.labels, ("job", job)))


@dataclass(frozen=True)
class Child:
    """One series as it is on the wire: what it is, where it comes from, since when it is there.

    `started` is the OTLP start time, naive UTC; None where the collector set none.
    """

    wire: Wire
    key: SeriesKey
    job: str = ""
    first: datetime | None = None
    started: datetime | None = None


def serving(children: Mapping[int, Child]) -> dict[int, Child]:
    """The children that belong to inference servers, by the same keys.

    A store may hold other targets (nodes, GPUs, the collector itself). Their `up` and start times
    are left out: only a target that exposes a serving family, or shares the job of one that does
    (a replica that never came up), counts. NoTelemetryError where nothing is left.
    """
    own = [child for child in children.values() if child.key.metric.startswith("vllm:")]
    if not own:
        raise NoTelemetryError(
            "There is no vLLM series in what was asked for. Check the stream and the time range, "
            "and that the collector scrapes vLLM's /metrics."
        )
    instances = {child.key.instance for child in own}
    jobs = {child.job for child in own if child.job}
    return {
        name: child
        for name, child in children.items()
        if child.key.instance in instances or child.job in jobs
    }


def rows_from_points(
    connection: duckdb.DuckDBPyConnection, labels: Sequence[str], *, since: datetime = EPOCH
) -> Rows:
    """The canonical rows of the relation `points` on this connection.

    Markers of staleness are dropped and noted; late arrivals, and points whose value was lost on
    the way, are noted: those sampled `since`. Duplicates stay: the store counts and drops them.
    """
    children = serving(_children(connection, labels))
    connection.register("children", _children_frame(children))
    try:
        samples = read(connection, query_text("points_samples"))
        histograms = read(connection, query_text("points_histograms"))
        ingest_notes = read(
            connection,
            query_text("points_intake"),
            late_seconds=LATE_SECONDS,
            ahead_seconds=AHEAD_SECONDS,
            since_seconds=since.timestamp(),
        )
    finally:
        connection.unregister("children")
    return Rows(
        series_of(children.values(), begin=since.astimezone(UTC).replace(tzinfo=None)),
        as_schema(samples, SAMPLES_SCHEMA),
        as_schema(histograms, HISTOGRAMS_SCHEMA),
        as_schema(ingest_notes, INGEST_NOTES_SCHEMA),
    )


def series_of(children: Iterable[Child], *, begin: datetime | None = None) -> pl.DataFrame:
    """The `series` table of these children, under the newest spelling of each.

    A series starts at zero if its start time lies in the capture, which begins at `begin` (naive
    UTC) or with the first point of all.
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
    """Whether its start time says that it was born after `scraped`, or in the capture.

    A collector that knows no start writes the time of the first point that it saw: such a one
    tells only that the scrapes of the instance before it did not have the series.
    """
    if child.started is None or child.first is None or scraped is None:
        return False
    return child.started > scraped or capture <= child.started < child.first


def read(connection: duckdb.DuckDBPyConnection, query: str, **params: float | str) -> pl.DataFrame:
    """The answer of a query, as a frame."""
    return pl.DataFrame(connection.sql(query, params=params) if params else connection.sql(query))


def query_text(name: str) -> str:
    """The SQL of that name, shipped beside this module."""
    return (files("vllm_capacity.sources") / "sql" / f"{name}.sql").read_text()


def as_schema(frame: pl.DataFrame, schema: Mapping[str, Any]) -> pl.DataFrame:
    """The frame in a canonical schema; naive times are UTC, a column that is missing is null."""
    columns = []
    for name, dtype in schema.items():
        column = pl.col(name) if name in frame.columns else pl.lit(None)
        if dtype == UTC_MICROSECONDS and name in frame.columns:
            column = column.cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
        columns.append(column.cast(dtype).alias(name))
    return frame.select(columns)


def _children(connection: duckdb.DuckDBPyConnection, labels: Sequence[str]) -> dict[int, Child]:
    """Every kept series among `points`, by identity."""
    rows = read(connection, query_text("points_children")).to_dicts()
    jobs: dict[str, set[str]] = {}
    for row in rows:
        if row["metric_name"] == "up":
            jobs.setdefault(row["instance"], set()).add(row["job"])
    children = {
        row["identity"]: Child(
            wire := Wire.of(row["metric_name"], row["wire_kind"]),
            wire.key(
                row["instance"],
                {label: row[label] for label in labels if row[label] is not None},
                None if row["bounds"] is None else tuple(row["bounds"]),
            ),
            row["job"],
            row["first"],
            row["started"],
        )
        for row in rows
        if keeps(row["metric_name"])
    }
    return {
        identity: replace(child, key=of_job(child.key, child.job, jobs.get(child.key.instance, ())))
        for identity, child in children.items()
    }


def _children_frame(children: Mapping[int, Child]) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "identity": pl.Series(list(children), dtype=pl.UInt64),
            "series_id": [child.key.series_id for child in children.values()],
            "alias_priority": pl.Series(
                [child.wire.alias_priority for child in children.values()], dtype=pl.Int8
            ),
            "scale": [child.wire.scale for child in children.values()],
        }
    )
