"""Pulls a time range of a Parseable stream by the hour: whole, or downsampled on the server.

1. Read the stream's columns, then survey its families, with their labels and bounds.
2. Query families of the same shape together, one hour of sample time per query. Late data arrives
   after that hour, so each query covers a wider range of arrivals and filters by sample time.
3. Also fetch the last state before the start, one row per series.
4. Keep every answer that can no longer grow in a journal before the next query, so that a killed
   pull can resume.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timedelta
from typing import Any

import polars as pl
from msgspec import Struct

from vllm_capacity.errors import NoTelemetryError
from vllm_capacity.facts.metrics import Kind, keeps, match
from vllm_capacity.sources import parseable_queries as queries
from vllm_capacity.sources import parseable_shapes as shapes
from vllm_capacity.sources.answers import LATE, LOOKBACK, SKEW, AnswerCache, Step
from vllm_capacity.sources.parseable import Parseable, Row
from vllm_capacity.sources.parseable_queries import Group, Stream, resolve
from vllm_capacity.sources.parseable_shapes import unpacked
from vllm_capacity.timerange import TimeRange, hours, iso

_WIDE = 12  # a family with more labels is queried alone, so that others are not grouped by them

_TEXTS = ("metric_name", "wire_kind", "instance", "job", "bounds")
SCALARS: dict[str, Any] = {"ms": pl.Int64, "v": pl.Float64}
HISTOGRAMS: dict[str, Any] = {"ms": pl.Int64, "s": pl.Float64, "b": pl.List(pl.Int64)}
ATTEMPTS: dict[str, Any] = {"m": pl.Int64, "at": pl.List(pl.Int64), "v": pl.List(pl.Float64)}


class Chunk(Struct, frozen=True):
    """One answer: its group and its rows, with the columns of the query."""

    group: Group
    frame: pl.DataFrame


class Pulled(Struct, frozen=True):
    """The results of a pull: downsampled and whole answers, states before the start, findings.

    `start` is that of the range; `bounds` holds, by name, the bounds of families whose series all
    have the same.
    """

    start: datetime
    downsampled: list[Chunk]
    whole: list[Chunk]
    before: list[Chunk]
    attempts: list[Chunk]
    findings: list[Row]
    bounds: Mapping[str, str]


class PullRequest(Struct, frozen=True):
    """What to pull: a stream's range, whether downsampled, and how late points may arrive."""

    stream: str
    time_range: TimeRange
    is_downsampled: bool = True
    late: timedelta = LATE


def pull(
    server: Parseable,
    request: PullRequest,
    *,
    journal: AnswerCache | None = None,
    progress: Callable[[Step], None] = lambda step: None,
) -> Pulled:
    """The server's answers to the request; `parseable_rows` converts them to rows."""
    stream = Stream(
        request.stream,
        resolve(request.stream, server.columns(request.stream)),
        request.time_range,
    )
    walk = _Walk(server, request, journal or AnswerCache(), progress)
    surveyed = _survey(server, stream, request)
    groups = [*_scalar_groups(stream, surveyed), *_histogram_groups(stream, surveyed)]
    metrics = [row["metric_name"] for row in surveyed]
    walk.total = 1 + len(groups) + len(hours(request.time_range)) * (len(groups) + 1)
    return Pulled(
        start=request.time_range.start,
        before=list(walk.before(stream, groups)),
        downsampled=list(walk.downsampled(stream, groups)) if request.is_downsampled else [],
        whole=[] if request.is_downsampled else list(walk.whole(stream, groups)),
        attempts=list(walk.attempts(stream)) if request.is_downsampled else [],
        findings=walk.findings(stream, metrics),
        bounds={
            row["metric_name"]: row.get("lowest_bounds", "")
            for row in surveyed
            if row["wire_kind"] == "histogram"
        },
    )


class _Walk(Struct):
    """Runs the queries one after another, through the journal, and counts them."""

    server: Parseable
    request: PullRequest
    journal: AnswerCache
    progress: Callable[[Step], None]
    total: int = 0
    done: int = 0

    def before(self, stream: Stream, groups: list[Group]) -> Iterator[Chunk]:
        start = stream.time_range.start
        earlier = stream.during(TimeRange(start - LOOKBACK, start))
        for group in groups:
            yield self._minutes(
                earlier, group, queries.downsampled(earlier, group, by_minute=False)
            )

    def downsampled(self, stream: Stream, groups: list[Group]) -> Iterator[Chunk]:
        for hour in hours(stream.time_range):
            part = stream.during(hour)
            for group in groups:
                yield self._minutes(part, group, queries.downsampled(part, group))

    def whole(self, stream: Stream, groups: list[Group]) -> Iterator[Chunk]:
        for hour in hours(stream.time_range):
            part = stream.during(hour)
            for group in groups:
                sql, shape = queries.whole(part, group), shapes.points(group)
                yield self._ask(part, group, sql, shape, _points_frame)

    def attempts(self, stream: Stream) -> Iterator[Chunk]:
        for hour in hours(stream.time_range):
            part = stream.during(hour)
            yield self._ask(
                part,
                shapes.UP,
                queries.attempts(part),
                shapes.ATTEMPTS,
                _attempts_frame,
            )

    def findings(self, stream: Stream, metrics: list[str]) -> list[Row]:
        found = self.server.query(
            queries.findings(stream, metrics),
            _arrivals(stream.time_range, self.request.late),
            shapes.FINDINGS,
        )
        self._step()
        return found

    def _minutes(self, stream: Stream, group: Group, sql: str) -> Chunk:
        return self._ask(stream, group, sql, shapes.minutes(group), unpacked)

    def _ask(
        self,
        stream: Stream,
        group: Group,
        sql: str,
        shape: type[list[Row]],
        framed: Callable[[list[Row], Group], pl.DataFrame],
    ) -> Chunk:
        """An answer with rows of the given shape, converted by `framed`."""
        arrivals = _arrivals(stream.time_range, self.request.late)
        question = "\n".join([self.server.address, sql, iso(arrivals.start), iso(arrivals.end)])

        def ask() -> pl.DataFrame:
            return framed(self.server.query(sql, arrivals, shape), group)

        frame = self.journal.frame(question, arrivals, ask)
        self._step()
        return Chunk(group, frame)

    def _step(self) -> None:
        self.done += 1
        self.progress(Step(self.done, max(self.total, self.done), self.server.traffic.wire_bytes))


def _points_frame(rows: list[Row], group: Group) -> pl.DataFrame:
    payload = HISTOGRAMS if group.is_histogram else SCALARS
    return pl.DataFrame(rows, schema={**dict.fromkeys(group.identity, pl.String), **payload})


def _attempts_frame(rows: list[Row], group: Group) -> pl.DataFrame:
    for row in rows:
        shapes.require_even((row["at"], row["v"]))
    return pl.DataFrame(rows, schema={**dict.fromkeys(group.identity, pl.String), **ATTEMPTS})


def _arrivals(time_range: TimeRange, late: timedelta) -> TimeRange:
    return TimeRange(time_range.start - SKEW, time_range.end + late)


def _survey(server: Parseable, stream: Stream, request: PullRequest) -> list[Row]:
    """The families in the range that are kept; NoTelemetryError if there are none."""
    arrivals = _arrivals(request.time_range, request.late)
    shape = shapes.survey(len(stream.columns.labels))
    found = server.query(queries.survey(stream), arrivals, shape)
    kept = [row for row in found if keeps(row["metric_name"])]
    if not kept:
        asked = f"{iso(request.time_range.start)} to {iso(request.time_range.end)}"
        raise NoTelemetryError(
            f"Stream {stream.name!r} at {server.address} has no vLLM series sampled from "
            + asked
            + (f", but {len(found)} other families." if found else ", nor anything else.")
        )
    return kept


def _scalar_groups(stream: Stream, surveyed: list[Row]) -> list[Group]:
    """Groups of counters and gauges: one for all with few labels, one per info or wide family."""
    narrow: list[tuple[str, tuple[str, ...]]] = []
    wide: list[tuple[str, tuple[str, ...]]] = []
    for row in surveyed:
        if row["wire_kind"] == "histogram":
            continue
        labels = queries.label_names(stream.columns, row)
        found = match(row["metric_name"])
        is_info = found is not None and found.metric.kind is Kind.INFO
        (wide if is_info or len(labels) > _WIDE else narrow).append((row["metric_name"], labels))
    together = [_group(narrow)] if narrow else []
    return [*together, *(_group([family]) for family in wide)]


def _histogram_groups(stream: Stream, surveyed: list[Row]) -> list[Group]:
    """Groups of histograms: one for families whose series share bounds, one that sends bounds."""
    rows = [row for row in surveyed if row["wire_kind"] == "histogram"]
    groups = []
    for has_bounds in (False, True):
        chosen = [
            row
            for row in rows
            if (row.get("lowest_bounds") != row.get("highest_bounds")) == has_bounds
        ]
        if chosen:
            families = [
                (row["metric_name"], queries.label_names(stream.columns, row)) for row in chosen
            ]
            edges = max(row.get("edges") or 0 for row in chosen)
            groups.append(_group(families, edges=edges, has_bounds=has_bounds))
    return groups


def _group(
    families: list[tuple[str, tuple[str, ...]]],
    *,
    edges: int | None = None,
    has_bounds: bool = False,
) -> Group:
    labels = sorted({label for _, names in families for label in names})
    return Group(
        metrics=tuple(sorted({name for name, _ in families})),
        labels=tuple(labels),
        is_histogram=edges is not None,
        has_bounds=has_bounds,
        edges=edges or 0,
    )
