"""Re-serves vLLM's /metrics with `:` turned into `_` in metric names, for what cannot take a colon.

The Collector, Parseable and Prometheus take the colon: they need no proxy. Where one is needed, the
name must change in the HELP, TYPE and UNIT lines and in the samples alike, or every type is lost.

Paths: /metrics (the upstream's, renamed), /health (200 only if the upstream answers with metrics
now), /proxy/metrics (the proxy's own). Bodies are streamed: memory does not grow with their size.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final

import httpx
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_NAME = re.compile(rb"^(# (?:HELP|TYPE|UNIT) )?([A-Za-z_:][A-Za-z0-9_:]*)", re.MULTILINE)
_METRICS = re.compile(
    rb"^(# (HELP|TYPE) \S+ |[A-Za-z_:][A-Za-z0-9_:]*(\{.*\})? [-+.0-9eEaINnf]+\s)", re.MULTILINE
)
_LONGEST_HELD: Final = 64 * 1024
# Classic text only: some client libraries write wrong TYPE lines when OpenMetrics is negotiated.
_ACCEPT: Final = {"Accept": "text/plain;version=0.0.4", "Accept-Encoding": "gzip"}


def renamed(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The exposition text with colons in metric names turned into underscores, in pieces.

    Label values, HELP texts and other comments stay as they are. At most one line is held back, and
    of a line longer than 64 KiB only its beginning.
    """
    held = b""
    is_inside_line = False  # the beginning of this line is out already
    for piece in pieces:
        held += piece
        cut = held.rfind(b"\n") + 1
        if not cut and len(held) <= _LONGEST_HELD:
            continue
        ready, held = (held[:cut], held[cut:]) if cut else (held, b"")
        if is_inside_line:
            end = ready.find(b"\n") + 1 or len(ready)
            yield ready[:end]
            ready = ready[end:]
        if ready:
            yield _NAME.sub(_underscored, ready)
        is_inside_line = not cut
    if held:
        yield held if is_inside_line else _NAME.sub(_underscored, held)


def _underscored(match: re.Match[bytes]) -> bytes:
    return (match[1] or b"") + match[2].replace(b":", b"_")


class Upstream:
    """The vLLM server behind the proxy. `client` settles TLS and timeouts; this, the deadline."""

    def __init__(self, client: httpx.Client, url: str, *, deadline_seconds: float = 30.0) -> None:
        self.url = url
        self._client = client
        self._deadline_seconds = deadline_seconds

    @contextmanager
    def metrics(self) -> Iterator[tuple[str, Iterator[bytes]]]:
        """The content type and the pieces; httpx.HTTPError at once or between pieces."""
        started = time.monotonic()
        with self._client.stream("GET", self.url, headers=_ACCEPT) as response:
            if response.status_code != httpx.codes.OK:
                raise httpx.HTTPError(f"it answered {response.status_code}")

            def pieces() -> Iterator[bytes]:
                # As they come, not collected to a size: a dripping upstream must meet the deadline.
                for piece in response.iter_bytes():
                    if time.monotonic() - started > self._deadline_seconds:
                        raise httpx.HTTPError(f"not complete after {self._deadline_seconds:g} s")
                    yield piece

            yield response.headers.get("Content-Type", "text/plain; version=0.0.4"), pieces()

    def complaint(self) -> str:
        """Why the upstream gives no metrics now; empty if it does."""
        start = b""
        try:
            with self.metrics() as (_, pieces):
                for piece in pieces:
                    start += piece
                    if _METRICS.search(start):
                        return ""
                    if len(start) > _LONGEST_HELD:
                        break
        except httpx.HTTPError as error:
            return f"{self.url}: {reason(error)}"
        return f"{self.url} answers, but not with metrics"


def reason(error: httpx.HTTPError) -> str:
    """What went wrong, in words: some of httpx's errors have no text."""
    return str(error) or type(error).__name__


class ProxyServer(ThreadingHTTPServer):
    """The proxy, bound to `address`; of more than `most_clients` at a time the rest gets 503."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self, address: tuple[str, int], upstream: Upstream, *, most_clients: int = 64
    ) -> None:
        self.upstream = upstream
        self.places = threading.BoundedSemaphore(most_clients)
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "vllm_capacity_proxy_requests",
            "Requests for /metrics by outcome.",
            ["outcome"],
            registry=self.registry,
        )
        self.bytes = Counter(
            "vllm_capacity_proxy_bytes", "Bytes of metrics sent.", registry=self.registry
        )
        self.seconds = Histogram(
            "vllm_capacity_proxy_seconds",
            "Seconds to serve /metrics, whole.",
            registry=self.registry,
        )
        self.busy = Gauge(
            "vllm_capacity_proxy_clients", "Clients being served.", registry=self.registry
        )
        for outcome in ("ok", "upstream_failed", "cut", "client_left", "busy"):
            self.requests.labels(outcome)
        super().__init__(address, _Handler)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "vllm-capacity-proxy"
    timeout = 30  # a client that does not read or write for so long is let go
    server: ProxyServer

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/proxy/metrics":
            self._answer(200, generate_latest(self.server.registry).decode())
        elif path not in ("/metrics", "/health"):
            self._answer(404, "The paths are /metrics, /health and /proxy/metrics.")
        elif not self.server.places.acquire(blocking=False):
            self.server.requests.labels("busy").inc()
            self._answer(503, "Too many clients at a time; try again.")
        else:
            try:
                self._metrics() if path == "/metrics" else self._health()
            finally:
                self.server.places.release()

    def _health(self) -> None:
        complaint = self.server.upstream.complaint()
        self._answer(503 if complaint else 200, complaint or "ok")

    def _metrics(self) -> None:
        with self.server.busy.track_inprogress(), self.server.seconds.time():
            self.server.requests.labels(self._relay()).inc()

    def _relay(self) -> str:
        """Sends the upstream's metrics on; returns the outcome."""
        is_begun = False
        try:
            with self.server.upstream.metrics() as (content_type, pieces):
                for piece in renamed(pieces):
                    if not is_begun:
                        self._begin(content_type)
                        is_begun = True
                    self._send(piece)
            if not is_begun:
                raise httpx.HTTPError("an empty answer")
            self._send(b"")
        except httpx.HTTPError as error:
            if is_begun:  # too late for a status: without the last chunk the client sees the cut
                self.close_connection = True
                return "cut"
            self._answer(502, f"{self.server.upstream.url}: {reason(error)}")
            return "upstream_failed"
        except OSError:
            self.close_connection = True
            return "client_left"
        return "ok"

    def _begin(self, content_type: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", content_type)
        if self.request_version == "HTTP/1.0":
            self.close_connection = True
        else:
            self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def _send(self, piece: bytes) -> None:
        """One piece; the empty one ends the body. HTTP/1.0 knows no chunks, only the end."""
        is_chunked = self.request_version != "HTTP/1.0"
        self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece) if is_chunked else piece)
        self.server.bytes.inc(len(piece))

    def _answer(self, status: int, text: str) -> None:
        body = text.encode() + b"\n"
        with suppress(OSError):  # nobody is left to be told
            self.send_response(status)
            self.send_header("Content-Type", "text/plain; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: a line for each scrape is noise; the own metrics count them."""
