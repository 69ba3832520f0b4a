"""Checks of Parseable and its stream, using only the collected evidence."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

from vllm_capacity.errors import CapacityError
from vllm_capacity.live.probes import ChainEvidence, CheckResult, Reply, broken, fine, unknown
from vllm_capacity.sources import parseable_shapes as shapes
from vllm_capacity.timerange import iso, parse_instant

_Shape = TypeVar("_Shape")
_OLDEST: Final = (2, 5, 9)
_ADVISED: Final = (2, 9, 2)
_STALE_SECONDS: Final = 60.0
_SKEW_SECONDS: Final = 2.0
_LATE_SECONDS: Final = 60.0
_COLUMNS: Final = (
    "metric_name",
    "metric_type",
    "time_unix_nano",
    "data_point_value",
    "data_point_count",
    "data_point_sum",
    "data_point_bucket_counts",
    "data_point_explicit_bounds",
    "model_name",
    "service.instance.id",
)


def server_checks(evidence: ChainEvidence) -> list[CheckResult]:
    """Check that Parseable answers, refuses the default password, accepts ours, and is not old."""
    alive = evidence.liveness
    if alive is None:
        return []
    if not alive.is_ok:
        remedy = (
            "Is Parseable running, and is PARSEABLE_URL right? compose-otel.yml publishes it on "
            "127.0.0.1:8080."
            if alive.status is None
            else "Another server listens there, or a proxy in front of Parseable interferes."
        )
        return [broken("Parseable", "parseable-down", alive.summary, remedy)]
    found = [fine("Parseable", "parseable-down", f"{alive.url} answers"), _default(evidence)]
    if evidence.about is None:
        reason = (
            "PARSEABLE_USER and PARSEABLE_PASSWORD are not set, so the stream cannot be checked"
        )
        return [*found, unknown("Parseable", "wrong-password", reason)]
    return [*found, *_login(evidence.about)]


def _default(evidence: ChainEvidence) -> CheckResult:
    reply = evidence.default_login
    if reply is not None and reply.is_ok:
        return broken(
            "Parseable",
            "default-password",
            "the default password works: admin/admin logs in as administrator",
            "Set P_USERNAME and P_PASSWORD (in .env: PARSEABLE_ROOT_USER, PARSEABLE_ROOT_PASSWORD) "
            "and restart Parseable.",
        )
    return fine("Parseable", "default-password", "the default password is refused")


def _login(about: Reply) -> list[CheckResult]:
    if about.status in (401, 403):
        remedy = (
            "Parseable answers 403 to a wrong user or password. Check PARSEABLE_USER and "
            "PARSEABLE_PASSWORD (secrets/reader_password); `vllm-capacity stack init --renew` "
            "makes new ones."
        )
        return [
            broken("Parseable", "wrong-password", f"the reader is refused: {about.summary}", remedy)
        ]
    if not about.is_ok:
        return [broken("Parseable", "wrong-password", about.summary, "Look at Parseable's log.")]
    result = about.body(shapes.About)
    version = result.version if result is not None else ""
    return [fine("Parseable", "wrong-password", "the reader can log in"), _version(version)]


def _version(version: str) -> CheckResult:
    numbers = tuple(map(int, re.findall(r"\d{1,9}", version)[:3]))
    if not numbers:
        return unknown("Parseable", "old-version", f"its version {version!r} cannot be read")
    if numbers < _OLDEST:
        return broken(
            "Parseable",
            "old-version",
            f"it is version {version}, which loses histograms or names columns differently",
            f"Use {'.'.join(map(str, _ADVISED))} or newer.",
        )
    advice = "" if numbers >= _ADVISED else f"; {'.'.join(map(str, _ADVISED))} is advised"
    return fine("Parseable", "old-version", f"it is version {version}{advice}")


def ingest_checks(evidence: ChainEvidence) -> list[CheckResult]:
    """Check that Parseable accepts the Collector's own credentials."""
    reply = evidence.ingest
    if reply is None:
        return []
    if reply.status in (None, 401, 403):
        return [
            broken(
                "Collector",
                "ingest-password",
                f"the Collector's credentials are refused: {reply.summary}",
                "The Collector drops data that is refused with 403. Give it the ingestor's secret "
                "(PARSEABLE_AUTHORIZATION, secrets/ingest_authorization: one line, no newline at "
                "its end); `vllm-capacity stack init --renew` makes a new one.",
            )
        ]
    return [fine("Collector", "ingest-password", "the Collector's credentials are accepted")]


def stream_checks(evidence: ChainEvidence) -> list[CheckResult]:
    """Check that the stream exists, has the right columns, values, fresh rows and sound clocks."""
    schema = evidence.schema
    if schema is None or evidence.about is None or not evidence.about.is_ok:
        return []
    if not schema.is_ok:
        return [_no_stream(evidence, schema)]
    rows = _body(evidence.batches, list[shapes.InsertBatch]) if _fields(schema) else []
    if rows is None:
        return [_unreadable(evidence)]
    if not rows:
        return [_empty(evidence)]
    return [
        fine("Parseable", "stream-absent", f"the stream {evidence.stream} exists"),
        _columns(schema, evidence.stream),
        _values(evidence),
        _fresh(evidence, rows),
        _clocks(evidence, rows),
    ]


def _fields(schema: Reply) -> list[shapes.StreamColumn]:
    """The stream's columns; empty until data arrives, and until then every query is refused."""
    result = schema.body(shapes.Schema)
    return result.fields if result is not None else []


def _unreadable(evidence: ChainEvidence) -> CheckResult:
    """The result for a failed query: Parseable answers 400 if the user may not read the stream."""
    sentence = _summary(evidence.batches)
    if "does not have access" in sentence:
        return _no_right(evidence, sentence)
    return unknown("Parseable", "stream-empty", sentence)


def _no_right(evidence: ChainEvidence, sentence: str) -> CheckResult:
    """The result for no access: to a reader, a mistyped and a forbidden stream look the same."""
    stream, seen = evidence.stream, _visible(evidence)
    streams = f"It may read {', '.join(seen)}. " if seen else ""
    return broken(
        "Parseable",
        "no-right",
        f"the reader has no right to {stream}, or there is no such stream: {sentence}",
        f"Is the name right, here and in the Collector (PARSEABLE_STREAM)? {streams}If it is, "
        f"`vllm-capacity stack init --stream {stream}` grants the right and removes none.",
    )


def _visible(evidence: ChainEvidence) -> list[str]:
    """The streams that the reader may see, without Parseable's internal ones."""
    rows = (evidence.streams and evidence.streams.body(list[dict[str, Any]])) or []
    names = {str(row.get("name")) for row in rows}
    return sorted(names - {"pstats", "pmeta"})


def _no_stream(evidence: ChainEvidence, schema: Reply) -> CheckResult:
    stream = evidence.stream
    if schema.status in (401, 403):
        return _no_right(evidence, schema.summary)
    return broken(
        "Parseable",
        "stream-absent",
        f"there is no stream {stream}: {schema.summary}",
        "Is the name right, here and in the Collector (PARSEABLE_STREAM)? Names are "
        "case-sensitive. The first export that Parseable accepts creates the stream, and so does "
        f"`vllm-capacity stack init --stream {stream}`.",
    )


def _empty(evidence: ChainEvidence) -> CheckResult:
    """The result for an empty stream: it never had data, or, by its info, has no recent data."""
    info = _body(evidence.info, shapes.Info)
    last = info.latest_event_at if info is not None else None
    if last:
        return broken(
            "Parseable",
            "stream-stale",
            f"nothing has arrived in {evidence.stream} for 15 minutes; last {last}",
            f"Is {evidence.writer} running, and can it reach Parseable? See its checks, if any.",
        )
    return broken(
        "Parseable",
        "stream-empty",
        f"the stream {evidence.stream} exists but is empty",
        "Parseable creates a stream before it looks at the body: a Collector without `encoding: "
        "json` leaves an empty one and drops every batch. Otherwise nothing was exported yet: see "
        "the Collector's findings.",
    )


def _columns(schema: Reply, stream: str) -> CheckResult:
    names = {column.name for column in _fields(schema)}
    prefixed = {name.removeprefix("metric_") for name in names}
    missing = [name for name in _COLUMNS if name not in names and name not in prefixed]
    if missing:
        return broken(
            "Parseable",
            "columns-unexpected",
            f"{stream} has no column {', '.join(missing)}",
            "This is no stream of vLLM's OTel metrics, or they came as plain logs, or by another "
            "exporter: send OTLP/JSON to /v1/metrics with X-P-Log-Source: otel-metrics.",
        )
    return fine("Parseable", "columns-unexpected", f"all {len(_COLUMNS)} columns needed are there")


def _values(evidence: ChainEvidence) -> CheckResult:
    """Check that rows have values: Parseable loses those of OTLP integers, not of doubles."""
    rows = _body(evidence.payloads, list[shapes.Payload])
    if rows is None:
        return unknown("Parseable", "values-lost", _summary(evidence.payloads))
    hollow = [row.metric_type for row in rows if row.points and not row.filled]
    if hollow:
        return broken(
            "Parseable",
            "values-lost",
            f"every {' and '.join(hollow)} arrived without its value",
            "Something between the Prometheus receiver and the exporter turns doubles into "
            "integers, whose values Parseable loses: remove that processor or connector.",
        )
    return fine("Parseable", "values-lost", "gauges and sums have their values")


def _fresh(evidence: ChainEvidence, rows: list[shapes.InsertBatch]) -> CheckResult:
    newest = max(filter(None, (_instant(row.newest) for row in rows)), default=None)
    if newest is None:
        return broken(
            "Parseable", "stream-stale", "no row has a time", "See the columns of the stream."
        )
    age = (evidence.now - newest).total_seconds()
    found = f"the newest sample is from {iso(newest)}, {age:,.0f} s ago"
    if age > _STALE_SECONDS:
        remedy = (
            f"Scraping or exporting has stopped, or {evidence.writer} is still sending its queue "
            "after an outage (then the delay shrinks by itself)."
        )
        return broken("Parseable", "stream-stale", found, remedy)
    return fine("Parseable", "stream-stale", found)


def _clocks(evidence: ChainEvidence, rows: list[shapes.InsertBatch]) -> CheckResult:
    """Check the clocks: batches cannot arrive before their samples, nor late unless queued."""
    pairs = [(_instant(row.arrived), _instant(row.newest)) for row in rows]
    delays = [(a - n).total_seconds() for a, n in pairs if a is not None and n is not None]
    ours = _offset(evidence)
    if ours is not None and abs(ours) > _SKEW_SECONDS * 5:
        return broken(
            "Parseable",
            "clock-skew",
            f"Parseable's clock is {ours:+,.0f} s off this machine's",
            "Synchronize both with NTP. Parseable's clock decides which time range a pull gets.",
        )
    if not delays:
        return unknown(
            "Parseable", "clock-skew", ("no batch has both a sample time and an arrival time")
        )
    least = min(delays)
    if -_SKEW_SECONDS <= least <= _LATE_SECONDS:
        return fine("Parseable", "clock-skew", f"batches arrive {least:.1f} s after their samples")
    if least < 0:
        found = (
            f"samples are dated {-least:,.0f} s after their arrival: "
            f"the clock of {evidence.writer} is ahead"
        )
    else:
        found = f"the quickest batch took {least:,.0f} s: the clock of {evidence.writer} is behind"
    return broken(
        "Parseable",
        "clock-skew",
        found,
        "Synchronize both machines with NTP. A Collector that is still sending its queue also "
        "looks as if its clock were behind: check again when the queue is empty.",
    )


def _offset(evidence: ChainEvidence) -> float | None:
    """Parseable's clock minus ours, seconds, from the Date of its answer (whole seconds)."""
    if evidence.about is None or evidence.about.server_time is None:
        return None
    return (evidence.about.server_time - evidence.now).total_seconds()


def _body(reply: Reply | None, shape: type[_Shape]) -> _Shape | None:
    """The decoded reply; None if there is no reply, it failed, or it has another shape."""
    return None if reply is None else reply.body(shape)


def _summary(reply: Reply | None) -> str:
    return "not asked" if reply is None else reply.summary


def _instant(text: str | None) -> datetime | None:
    """A Parseable time, which has no zone and is UTC; None if there is none or it is invalid."""
    if text is None:
        return None
    try:
        return parse_instant(text).astimezone(UTC)
    except (CapacityError, OverflowError):
        return None
