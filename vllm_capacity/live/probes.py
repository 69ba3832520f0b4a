"""Sends `doctor`'s requests to each link of the chain and keeps the replies, without judging them.

Every request can be repeated and changes nothing: the one test export contains no points, and is
sent only to a stream that exists, because it would create a missing one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any, Final, Literal, TypeVar

import httpx
import msgspec
from msgspec import Struct
from msgspec.structs import replace

from vllm_capacity.answer import Answer
from vllm_capacity.errors import plain
from vllm_capacity.live.stack import is_sendable
from vllm_capacity.sources.http import shown
from vllm_capacity.sources.parseable_queries import quoted
from vllm_capacity.timerange import iso

Link = Literal["vLLM", "proxy", "Collector", "Parseable", "window"]
CheckState = Literal["ok", "broken", "unknown"]


class CheckResult(Struct, frozen=True):
    """The result of one check; `check` names the fault, `remedy` is empty unless it was found."""

    link: Link
    check: str
    state: CheckState
    found: str
    remedy: str = ""

    def as_dict(self) -> dict[str, str]:
        """The keys of `vllm-capacity doctor --json`."""
        return {
            "link": self.link,
            "check": self.check,
            "state": self.state,
            "found": self.found,
            "remedy": self.remedy,
        }


def fine(link: Link, check: str, found: str) -> CheckResult:
    """A check that found nothing wrong."""
    return CheckResult(link, check, "ok", plain(found))


def broken(link: Link, check: str, found: str, remedy: str) -> CheckResult:
    """A check that found a fault."""
    return CheckResult(link, check, "broken", plain(found), plain(remedy))


def unknown(link: Link, check: str, found: str) -> CheckResult:
    """A check that could not be made, with the reason."""
    return CheckResult(link, check, "unknown", plain(found))


def first_broken(findings: list[CheckResult]) -> CheckResult | None:
    """The first broken link on the way from vLLM to the window; None if there is none."""
    return next((finding for finding in findings if finding.state == "broken"), None)


_RECENT_MINUTES: Final = 15
_Body = TypeVar("_Body")


class Reply(Struct, frozen=True):
    """A reply, or the reason why there is none, in which case `status` is None."""

    url: str
    status: int | None = None
    text: str = ""
    error: str = ""
    server_time: datetime | None = None

    @property
    def is_ok(self) -> bool:
        """Whether the status is 2xx."""
        return self.status is not None and 200 <= self.status < 300

    @property
    def summary(self) -> str:
        """The reply in a few words."""
        if self.status is None:
            return f"{self.url} does not answer ({plain(self.error)})"
        text = " ".join(plain(self.text[:1000]).split())[:160]
        return f"{self.url} answers {self.status}" + (f" {text!r}" if text else "")

    def body(self, shape: type[_Body]) -> _Body | None:
        """The decoded body, if the reply is a success and JSON of that shape; else None."""
        if not self.is_ok:
            return None
        try:
            return msgspec.json.decode(self.text, type=shape)
        except (msgspec.MsgspecError, UnicodeEncodeError, RecursionError):
            return None


class Chain(Struct, frozen=True):
    """The URLs of the links; a link that is empty or None is not checked."""

    vllm: tuple[str, ...] = ()
    proxy: str | None = None
    collector_metrics: str | None = None
    collector_health: str | None = None
    parseable: str | None = None
    stream: str = "vllm_metrics"


class ChainEvidence(Struct, frozen=True):
    """Everything that was found; None where no request was made."""

    now: datetime
    stream: str = "vllm_metrics"
    vllm: tuple[Reply, ...] = ()
    proxy: Reply | None = None
    collector_health: Reply | None = None
    collector_before: Reply | None = None
    collector_after: Reply | None = None
    collector_config: Mapping[str, Any] | None = None
    liveness: Reply | None = None
    about: Reply | None = None
    default_login: Reply | None = None
    ingest: Reply | None = None
    streams: Reply | None = None
    schema: Reply | None = None
    info: Reply | None = None
    payloads: Reply | None = None
    batches: Reply | None = None
    instances: Reply | None = None
    answer: Answer | None = None

    @property
    def writer(self) -> str:
        """Who writes to the stream: the Collector, if one was checked."""
        return "whatever writes to it" if self.collector_health is None else "the Collector"


def ask(
    client: httpx.Client,
    method: str,
    url: str,
    *,
    headers: Mapping[str, str] | None = None,
    body: object = None,
    auth: httpx.Auth | None = None,
) -> Reply:
    """The reply to one request; a failed request is also a reply."""
    at = shown(url)
    try:
        answer = client.request(method, url, headers=headers, json=body, auth=auth or httpx.Auth())
    except httpx.HTTPError as error:
        return Reply(at, error=str(error) or type(error).__name__)
    text = answer.content.decode(errors="replace")
    return Reply(at, answer.status_code, text, "", _time(answer.headers.get("Date")))


def _time(date: str | None) -> datetime | None:
    """The time in a Date header; None if it is missing or invalid."""
    try:
        found = parsedate_to_datetime(date) if date else None
    except (ValueError, OverflowError):
        return None
    return found.replace(tzinfo=UTC) if found is not None and found.tzinfo is None else found


def gather(
    client: httpx.Client,
    chain: Chain,
    *,
    clock: Callable[[], datetime],
    pause: Callable[[], None],
    metrics: httpx.Auth | None = None,
    reader: httpx.Auth | None = None,
    ingest_authorization: str | None = None,
    collector_config: Mapping[str, Any] | None = None,
    answer: Answer | None = None,
) -> ChainEvidence:
    """The evidence on the whole chain.

    `pause` is called between two looks at the Collector. `metrics` are the credentials for vLLM's
    /metrics, `reader` those for Parseable's streams.
    """
    before = _get(client, chain.collector_metrics)
    vllm = tuple(ask(client, "GET", url, auth=metrics) for url in chain.vllm)
    proxy = _get(client, chain.proxy)
    health = _get(client, chain.collector_health)
    if before is not None and before.is_ok:
        pause()
    after = _get(client, chain.collector_metrics)
    found = ChainEvidence(
        clock(),
        chain.stream,
        vllm,
        proxy,
        health,
        before,
        after,
        collector_config,
        answer=answer,
    )
    return _with_parseable(found, client, chain, reader, ingest_authorization)


def _get(client: httpx.Client, url: str | None) -> Reply | None:
    return None if url is None else ask(client, "GET", url)


def _with_parseable(
    evidence: ChainEvidence,
    client: httpx.Client,
    chain: Chain,
    reader: httpx.Auth | None,
    ingest_authorization: str | None,
) -> ChainEvidence:
    """The evidence with Parseable's replies added; its streams are read as the reader."""
    if chain.parseable is None:
        return evidence
    base = chain.parseable.rstrip("/")
    about, stream = f"{base}/api/v1/about", f"{base}/api/v1/logstream/{chain.stream}"
    evidence = replace(
        evidence,
        liveness=ask(client, "GET", f"{base}/api/v1/liveness"),
        default_login=ask(client, "GET", about, auth=httpx.BasicAuth("admin", "admin")),
    )
    if reader is None or not (evidence.liveness and evidence.liveness.is_ok):
        return evidence
    schema = ask(client, "GET", f"{stream}/schema", auth=reader)
    recent = _recent(evidence.now)
    queried = {
        name: ask(
            client, "POST", f"{base}/api/v1/query", body={"query": query, **recent}, auth=reader
        )
        for name, query in _queries(chain.stream).items()
    }
    return replace(
        evidence,
        about=ask(client, "GET", about, auth=reader),
        schema=schema,
        info=ask(client, "GET", f"{stream}/info", auth=reader),
        payloads=queried["payloads"],
        batches=queried["batches"],
        streams=ask(client, "GET", f"{base}/api/v1/logstream", auth=reader),
        instances=queried["instances"] if chain.collector_metrics is not None else None,
        ingest=_export(client, base, chain.stream, ingest_authorization) if schema.is_ok else None,
    )


def _export(
    client: httpx.Client, base: str, stream: str, authorization: str | None
) -> Reply | None:
    if authorization is None:
        return None
    if not is_sendable(authorization):  # not sent: the error would show the secret
        sentence = (
            "the secret has space around it, or a character that is not allowed in an HTTP header"
        )
        return Reply(f"{base}/v1/metrics", error=sentence)
    headers = {
        "Authorization": authorization,
        "X-P-Stream": stream,
        "X-P-Log-Source": "otel-metrics",
    }
    nothing: dict[str, list[object]] = {"resourceMetrics": []}
    return ask(client, "POST", f"{base}/v1/metrics", headers=headers, body=nothing)


def _recent(now: datetime) -> dict[str, str]:
    """The last 15 whole minutes by arrival, including the current one; the end is exclusive."""
    end = now.astimezone(UTC).replace(second=0, microsecond=0) + timedelta(minutes=1)
    return {"startTime": iso(end - timedelta(minutes=_RECENT_MINUTES)), "endTime": iso(end)}


def _queries(stream: str) -> dict[str, str]:
    """Queries for aggregates, so that the replies are small however much the stream holds."""
    table, instance = quoted(stream), quoted("service.instance.id")
    return {
        "payloads": (
            "select metric_type, count(1) as points, count(data_point_value) as filled "
            f"from {table} where metric_type in ('gauge', 'sum') group by metric_type"
        ),
        "batches": (
            "select p_timestamp as arrived, max(time_unix_nano) as newest "
            f"from {table} group by p_timestamp"
        ),
        "instances": (
            f"select {instance} as instance, max(time_unix_nano) as tried, "
            "max(case when data_point_value = 1 then time_unix_nano end) as scraped "
            f"from {table} where metric_name = 'up' group by {instance}"
        ),
    }
