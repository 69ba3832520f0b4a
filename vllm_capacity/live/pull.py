"""Pulls telemetry from a store or server into a window, whole or not at all.

`sources/` handles the differences between sources; this module fetches and writes the window.
A server's answers are kept beside the target (`.NAME.writing`) until the window is complete, so
that a killed pull resumes where it stopped.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import httpx
from msgspec import Struct
from msgspec.structs import replace

from vllm_capacity.errors import InputError, SourceError
from vllm_capacity.figures import scrapes
from vllm_capacity.live.access import (
    checked_url,
    client,
    is_server,
    read_settings,
    secret,
    trusting,
)
from vllm_capacity.selector import selector
from vllm_capacity.sources import parquet, prometheus_pull
from vllm_capacity.sources.answers import LATE, AnswerCache, Step
from vllm_capacity.sources.http import address
from vllm_capacity.sources.parquet import StreamSlice, open_store, stream_slices
from vllm_capacity.sources.parseable import Parseable
from vllm_capacity.sources.parseable_pull import PullRequest, pull
from vllm_capacity.sources.parseable_rows import downsampled_rows, whole_rows
from vllm_capacity.sources.prometheus import Prometheus
from vllm_capacity.sources.prometheus_pull import PrometheusSlice, prometheus_slices
from vllm_capacity.sources.slices import Read, Slice, gathered, one_by_one
from vllm_capacity.telemetry.bucket import Bucket
from vllm_capacity.telemetry.parts import Spool
from vllm_capacity.telemetry.store import Place, put_window, reserved
from vllm_capacity.telemetry.window import open_window
from vllm_capacity.telemetry.workers import Workers
from vllm_capacity.timerange import TimeRange, iso
from vllm_capacity.verdicts.quality import scrapes as quality_scrapes

_THINNED_FROM_SECONDS = timedelta(hours=3).total_seconds()
# Parseable allows a query 300 s; the rest is for the transfer of its answer.
_TIMEOUT = httpx.Timeout(600.0, connect=10.0)
_Slice = TypeVar("_Slice", bound=Slice)
_GLANCE_SECONDS = 5.0
_MAX_BYTES = 2 * 1024**3  # per answer: an hour of all samples of a large fleet
_KEPT = httpx.Limits(max_keepalive_connections=1)


class PullOrder(Struct, frozen=True):
    """What to pull: the source, the time range, and how.

    `origin` is a server's URL, or the path or s3:// URL of a store's root; empty: PARSEABLE_URL.
    `stream` is a Parseable stream; None for Prometheus. `is_full` None: every sample if the range
    is under 3 h, else downsampled. `late` is how late samples may have arrived. `match` holds label
    matchers, and `tenant` the X-Scope-OrgID, for a Prometheus, Thanos or Mimir with other series
    as well; `ca` holds the certificates to trust instead of the system's.
    """

    origin: str | None
    stream: str | None
    time_range: TimeRange | None
    is_full: bool | None = None
    late: timedelta = LATE
    profile: Path | None = None
    match: str | None = None
    tenant: str | None = None
    ca: Path | None = None

    @property
    def is_downsampled(self) -> bool:
        """Whether a server is asked for one state per minute of each counter."""
        if self.is_full is not None:
            return not self.is_full
        return self.time_range is not None and self.time_range.seconds >= _THINNED_FROM_SECONDS


def pull_window(
    order: PullOrder,
    target: Path,
    *,
    environment: Mapping[str, str],
    now: datetime,
    workers: Workers | None = None,
    kept: Bucket | None = None,
    progress: Callable[[Step], None] = lambda step: None,
) -> Path:
    """The window written at `target`, from any kind of source.

    With `workers`, they read a Prometheus or a store's files (not a Parseable server), with
    credentials from their own environment. `kept` is a folder in S3 to keep what was read, too,
    until the window is written. Credentials come from `environment` or the order's profile.
    InputError for an order that cannot be fulfilled, SourceError if the source does not answer; no
    window is left in either case.
    """
    settings = read_settings(environment, order.profile)
    order = replace(order, origin=order.origin or settings.get("url"))
    origin, stream, time_range = order.origin, order.stream, order.time_range
    if not origin:
        raise InputError(
            "Give --from, the source to pull from: a URL, a folder, or s3://…, or set "
            "PARSEABLE_URL."
        )
    reading = Reading(now, None if workers is None else _by(workers, order), kept, progress)
    if (order.match or order.tenant) and (stream is not None or not is_server(origin)):
        raise InputError("--match and --tenant are for a Prometheus: leave out --stream.")
    if not is_server(origin):
        if stream is None:
            raise InputError(
                f"Give --stream, the stream of {origin!r} to pull. A Prometheus is given by its "
                "URL: http://prometheus:9090."
            )
        return pull_files(origin, stream, target, time_range, late=order.late, reading=reading)
    if time_range is None:
        raise InputError("Give the time range: --last 24h, or --start and --end.")
    if stream is None:
        with _prometheus(order, environment) as server, _not_vllm_itself(server.client):
            return pull_prometheus(
                server, time_range, target, is_downsampled=order.is_downsampled, reading=reading
            )
    request = PullRequest(stream, time_range, order.is_downsampled, order.late)
    with parseable_client(origin, settings, ca=order.ca) as asking, _not_vllm_itself(asking):
        return pull_server(Parseable(asking), request, target, now=now, progress=progress)


class Reading(Struct, frozen=True):
    """How the slices of a source are read; by default in this process, one in memory at a time.

    With `now`, the slices that a killed pull to the same target has read are reused, from beside
    the target or from `kept` in S3, except those that could still grow at that time.
    """

    now: datetime | None = None
    by: Read[Any] | None = None
    kept: Bucket | None = None
    progress: Callable[[Step], None] = lambda step: None

    def parts(
        self, place: Place, slices: Sequence[_Slice], read: Callable[[_Slice], bytes]
    ) -> list[Callable[[], bytes]]:
        """What reads the part of each slice; `read` reads one in this process."""
        cache = AnswerCache(place.answers, self.now, self.kept)
        by = self.by or one_by_one(read)
        return gathered(slices, by, cache=cache, progress=self.progress)


_ALONE = Reading()


class _Task(Struct, frozen=True):
    """A slice to read for an order."""

    order: PullOrder
    slice: Slice


def _by(workers: Workers, order: PullOrder) -> Read[Any]:
    return lambda slices: workers.map(_read_slice, [_Task(order, own) for own in slices])


def _read_slice(task: _Task) -> bytes:
    """What a worker reads of a source."""
    if isinstance(task.slice, StreamSlice):
        return parquet.read_slice(open_store(task.order.origin or ""), task.slice)
    assert isinstance(task.slice, PrometheusSlice)
    with _prometheus(task.order, os.environ) as server:
        return prometheus_pull.read_slice(server, task.slice)


@contextmanager
def _prometheus(order: PullOrder, environment: Mapping[str, str]) -> Iterator[Prometheus]:
    only = selector(order.match) if order.match else None
    opened = prometheus_client(order.origin or "", environment, tenant=order.tenant, ca=order.ca)
    with opened as asking:
        yield Prometheus(asking, only=only)


@contextmanager
def _not_vllm_itself(asking: httpx.Client) -> Iterator[None]:
    """Replace a SourceError by an InputError if the server turns out to be vLLM itself."""
    try:
        yield
    except SourceError as error:
        if not _is_vllm(asking):
            raise
        raise InputError(
            f"{address(asking)} is a vLLM server: it shows only the present and keeps no history. "
            "Give the Prometheus or Parseable that scrapes it, or scrape it for a while: "
            f"vllm-capacity scrape {address(asking)} --for 1h --to WINDOW."
        ) from error


def _is_vllm(asking: httpx.Client) -> bool:
    """Whether a server's /metrics has vLLM series."""
    url = f"{address(asking).removesuffix('/metrics')}/metrics"
    with suppress(httpx.HTTPError):
        return "\nvllm:" in asking.get(url, timeout=_GLANCE_SECONDS).text
    return False


@contextmanager
def parseable_client(
    url: str, settings: Mapping[str, str], *, ca: Path | None = None
) -> Iterator[httpx.Client]:
    """A client for Parseable; InputError for a password in the URL or missing credentials."""
    checked_url(url, variables="PARSEABLE")
    if not settings.get("api_key") and not (settings.get("user") and settings.get("password")):
        raise InputError(
            f"No credentials for {url}. Set PARSEABLE_USER and PARSEABLE_PASSWORD, or "
            "PARSEABLE_API_KEY, or write a --profile of mode 0600."
        )
    with _http_client(url, settings, ca) as opened:
        yield opened


@contextmanager
def prometheus_client(
    url: str,
    environment: Mapping[str, str],
    *,
    tenant: str | None = None,
    ca: Path | None = None,
) -> Iterator[httpx.Client]:
    """A client for Prometheus, with credentials from the environment, if any.

    `tenant` is sent with every request as X-Scope-OrgID.
    """
    checked_url(url, variables="PROMETHEUS")
    names = ("user", "password", "token")
    settings = read_settings(environment, None, prefix="PROMETHEUS", names=names)
    with _http_client(url, settings, ca) as opened:
        if tenant is not None:
            opened.headers["X-Scope-OrgID"] = secret("The tenant's token", tenant)
        yield opened


def _http_client(
    url: str, settings: Mapping[str, str], ca: Path | None
) -> AbstractContextManager[httpx.Client]:
    trust = None if ca is None else trusting(ca)
    return client(
        settings,
        base_url=url,
        timeout=_TIMEOUT,
        most_bytes=_MAX_BYTES,
        limits=_KEPT,
        verify=trust,
    )


def pull_files(
    location: str,
    stream: str,
    target: Path,
    time_range: TimeRange | None = None,
    *,
    late: timedelta = LATE,
    reading: Reading = _ALONE,
) -> Path:
    """The window written at `target` from Parseable's own files; without a range, the whole stream.

    Data is read by the hour of its arrival. InputError if the store or stream does not exist; then
    no window is left.
    """
    note = {"source": "Parseable files", "origin": location, "stream": stream, "grain": "scrape"}
    with reserved(target) as place:
        store = open_store(location)
        slices = stream_slices(store, stream, time_range, late=late)
        parts = reading.parts(place, slices, partial(parquet.read_slice, store))
        rows = parquet.rows_of_slices(slices, parts, Spool(place.incoming))
        return put_window(place, rows, note | _requested(time_range))


def pull_server(
    server: Parseable,
    request: PullRequest,
    target: Path,
    *,
    now: datetime,
    progress: Callable[[Step], None] = lambda step: None,
) -> Path:
    """The window written at `target` from a Parseable server, downsampled or whole as requested.

    Reuses the answers that a killed pull to the same target has fetched. `now` determines which of
    them could still grow on the server and are fetched again.
    """
    with reserved(target) as place:
        version = server.about().version
        journal = AnswerCache(place.answers, now)
        pulled = pull(server, request, journal=journal, progress=progress)
        note = {
            "source": "Parseable server",
            "origin": server.address,
            "stream": request.stream,
            "grain": "minute" if request.is_downsampled else "scrape",
            "versions": {"parseable": version},
            **_requested(request.time_range),
        }
        if not request.is_downsampled:
            return put_window(place, whole_rows(pulled), note)
        downsampled = downsampled_rows(pulled)
        minutes = {
            "minutes": downsampled.minutes,
            "minute_histograms": downsampled.minute_histograms,
        }
        return put_window(place, downsampled.rows, note, minutes)


def pull_prometheus(
    server: Prometheus,
    time_range: TimeRange,
    target: Path,
    *,
    is_downsampled: bool = False,
    reading: Reading = _ALONE,
) -> Path:
    """The window written at `target` from Prometheus or a server with its API.

    It has every sample, or, downsampled, every gauge sample and one state per minute of counters
    and histograms (`sources/prometheus_pull.py`). Data is read in slices of up to an hour.
    """
    note = {"source": "Prometheus", "origin": server.address, "grain": "scrape"}
    if is_downsampled:
        note["counters"] = "minute"
    if server.only is not None:
        note["match"] = str(server.only)
    with reserved(target) as place:
        slices = prometheus_slices(server, time_range, is_downsampled=is_downsampled)
        parts = reading.parts(place, slices, partial(prometheus_pull.read_slice, server))
        rows = prometheus_pull.rows_of_slices(parts, time_range, Spool(place.incoming))
        return put_window(place, rows, note | _requested(time_range))


def unreached_end(target: Path) -> str | None:
    """A warning if the window at `target` ends well before the requested end; else None."""
    window = open_window(target)
    attempts = scrapes.attempts(window, end=window.extent.end)
    found = quality_scrapes.unreached_end(attempts, window.asked_end)
    return found[0].effect if found else None


def _requested(time_range: TimeRange | None) -> dict[str, object]:
    if time_range is None:
        return {}
    return {"start": iso(time_range.start), "end": iso(time_range.end)}
