"""Re-serves vLLM's /metrics with `:` replaced by `_` in metric names, for tools that reject colons.

The Collector, Parseable and Prometheus accept colons and need no proxy. A proxy must rename HELP,
TYPE and UNIT lines as well as samples, or every type is lost.

Paths: /metrics (the upstream's, renamed), /health (200 only if the upstream currently answers with
metrics), /proxy/metrics (the proxy's own). Bodies are streamed, so memory does not grow with their
size, and threads are limited. Clients never see the upstream's credentials.
"""

from __future__ import annotations

import io
import re
import socket
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

import httpx
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from vllm_capacity.errors import plain
from vllm_capacity.sources.exposition import ACCEPT
from vllm_capacity.sources.http import shown

_NAME = re.compile(rb"^(# (?:HELP|TYPE|UNIT) )?([A-Za-z_:][A-Za-z0-9_:]*)", re.MULTILINE)
_METRICS = re.compile(
    rb"^(# (HELP|TYPE) \S+ |[A-Za-z_:][A-Za-z0-9_:]*(\{.*\})? [-+.0-9eEaINnf]+\s)", re.MULTILINE
)
_LONGEST_PENDING: Final = 64 * 1024
_LONGEST_REQUEST_BODY: Final = 64 * 1024
_TEXT: Final = "text/plain; version=0.0.4"
_BUSY: Final = b"Too many clients at a time; try again.\n"
_REFUSAL: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Type: text/plain\r\n"
    b"Content-Length: %d\r\n\r\n%b" % (len(_BUSY), _BUSY)
)


def renamed(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The exposition text with colons in metric names replaced by underscores, in pieces.

    Label values, HELP texts and other comments are unchanged. At most one line is buffered; of a
    line longer than 64 KiB, only its beginning.
    """
    pending = b""
    is_inside_line = False  # the start of this line was already sent
    for piece in pieces:
        pending += piece
        cut = pending.rfind(b"\n") + 1
        if not cut and len(pending) <= _LONGEST_PENDING:
            continue
        ready, pending = (pending[:cut], pending[cut:]) if cut else (pending, b"")
        if is_inside_line:
            end = ready.find(b"\n") + 1 or len(ready)
            yield ready[:end]
            ready = ready[end:]
        if ready:
            yield _NAME.sub(_underscored, ready)
        is_inside_line = not cut
    if pending:
        yield pending if is_inside_line else _NAME.sub(_underscored, pending)


def _underscored(match: re.Match[bytes]) -> bytes:
    return (match[1] or b"") + match[2].replace(b":", b"_")


class Upstream:
    """The vLLM server behind the proxy; `client` determines TLS and timeouts."""

    def __init__(self, client: httpx.Client, url: str) -> None:
        self.address = shown(url)
        self._url = url
        self._client = client

    @contextmanager
    def metrics(self) -> Iterator[tuple[str, Iterator[bytes]]]:
        """The content type and the body in pieces; httpx.HTTPError at once or between pieces."""
        with self._client.stream("GET", self._url, headers=ACCEPT) as response:
            if response.status_code != httpx.codes.OK:
                raise httpx.HTTPError(f"it answered {response.status_code}")
            kind = response.headers.get("Content-Type", "")
            is_fit = kind and kind.isascii() and kind.isprintable()
            yield kind if is_fit else _TEXT, response.iter_bytes()

    def complaint(self) -> str:
        """Why the upstream currently serves no metrics; empty if it does."""
        start, looked = b"", 0
        try:
            with self.metrics() as (_, pieces):
                for piece in pieces:
                    start += piece
                    if len(start) >= 2 * looked:  # do not search again for every tiny piece
                        looked = len(start)
                        if _METRICS.search(start):
                            return ""
                    if len(start) > _LONGEST_PENDING:
                        break
        except httpx.HTTPError as error:
            return f"{self.address}: {reason(error)}"
        return "" if _METRICS.search(start) else f"{self.address} answers, but not with metrics"


def reason(error: httpx.HTTPError) -> str:
    """The error's text, or its type, since some of httpx's errors have no text."""
    return plain(error).strip() or type(error).__name__


class ProxyServer(ThreadingHTTPServer):
    """The proxy, bound to `address`; clients beyond `most_clients` at a time get a 503."""

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
            "Seconds to serve /metrics completely.",
            registry=self.registry,
        )
        self.busy = Gauge(
            "vllm_capacity_proxy_clients", "Clients being served.", registry=self.registry
        )
        for outcome in ("ok", "upstream_failed", "cut", "client_left", "busy"):
            self.requests.labels(outcome)
        super().__init__(address, _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:  # noqa: ANN401
        """Start a thread for the connection if a place is free; decided before anything is read."""
        if not self.places.acquire(blocking=False):
            self.requests.labels("busy").inc()
            _refuse(request)
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:
            self.places.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:  # noqa: ANN401
        """Serve the connection, then free its place."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ANN401
        """Print one line on stderr, or none for an OSError such as a client that left."""
        error = sys.exception()
        if not isinstance(error, OSError):
            sentence = plain(f"{type(error).__name__}: {error}")
            print(f"vllm-capacity: a request failed: {sentence}", file=sys.stderr)


def _refuse(connection: socket.socket) -> None:
    connection.setblocking(False)
    with suppress(OSError):
        connection.send(_REFUSAL)
        connection.recv(_LONGEST_REQUEST_BODY)  # unread input would reset the connection


class _Input(io.RawIOBase):
    """A client's input up to a deadline, which also stops a client that sends byte by byte."""

    def __init__(self, connection: socket.socket) -> None:
        self.until = 0.0
        self._connection = connection

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401  any writable buffer
        left = self.until - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._connection.settimeout(left)
        return self._connection.recv_into(buffer)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "vllm-capacity-proxy"
    timeout = 10  # seconds, to receive a whole request and to send each piece of an answer
    server: ProxyServer

    def setup(self) -> None:
        super().setup()
        self._input = _Input(self.connection)
        self.rfile = io.BufferedReader(self._input)

    def handle_one_request(self) -> None:
        self._input.until = time.monotonic() + self.timeout
        super().handle_one_request()

    def do_GET(self) -> None:
        if not self._has_body_read():
            self.close_connection = True
            self._answer(400, "A request must have no body, or a short one with a Content-Length.")
            return
        self.connection.settimeout(self.timeout)
        path = self.path.partition("?")[0]
        if path == "/proxy/metrics":
            self._answer(200, generate_latest(self.server.registry).decode())
        elif path == "/metrics":
            self._metrics()
        elif path == "/health":
            self._health()
        else:
            self._answer(404, "Available paths: /metrics, /health and /proxy/metrics.")

    def _has_body_read(self) -> bool:
        """Skip the request's body, which would be read as the next request; False if impossible."""
        lengths = self.headers.get_all("Content-Length", ["0"])
        length = lengths[0].strip()
        if "Transfer-Encoding" in self.headers or len(lengths) > 1 or not length.isdecimal():
            return False
        if len(length) > 5 or int(length) > _LONGEST_REQUEST_BODY:
            return False
        return len(self.rfile.read(int(length))) == int(length)

    def _health(self) -> None:
        complaint = self.server.upstream.complaint()
        self._answer(503 if complaint else 200, complaint or "ok")

    def _metrics(self) -> None:
        with self.server.busy.track_inprogress(), self.server.seconds.time():
            self.server.requests.labels(self._relay()).inc()

    def _relay(self) -> str:
        """Forward the upstream's metrics; returns the outcome."""
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
            if is_begun:  # too late for a status: the missing last chunk tells the client
                self.close_connection = True
                return "cut"
            self._answer(502, f"{self.server.upstream.address}: {reason(error)}")
            return "upstream_failed"
        except OSError:
            self.close_connection = True
            return "client_left"
        return "ok"

    def _begin(self, content_type: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", content_type)
        if self._is_chunked:
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.close_connection = True
        self.end_headers()

    def _send(self, piece: bytes) -> None:
        """Send one piece; an empty one ends the body."""
        self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece) if self._is_chunked else piece)
        self.server.bytes.inc(len(piece))

    @property
    def _is_chunked(self) -> bool:
        """Whether to send chunks; HTTP/1.0 and older do not support them."""
        return self.request_version not in ("HTTP/0.9", "HTTP/1.0")

    def _answer(self, status: int, text: str) -> None:
        body = text.encode(errors="replace") + b"\n"
        with suppress(OSError):  # the client may have hung up
            self.send_response(status)
            self.send_header("Content-Type", "text/plain; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            if self.close_connection:
                self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing: a line per scrape is noise, and the proxy's own metrics count them."""
