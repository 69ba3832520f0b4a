"""HTTP requests: errors of this package, retries, and clients that limit each exchange's time.

A timeout in httpx limits a single read, so a server that sends a byte now and then never hits it.
Here it limits the whole exchange, from the first address tried, through redirects, to the last
byte. Answers are limited in size after decompression, must be complete, and are read as UTF-8;
cookies are not kept. Failures are always an `httpx.TransportError` (or too many redirects).
"""

from __future__ import annotations

import re
import socket
import ssl
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, TypeVar
from urllib.request import getproxies, proxy_bypass

import httpcore
import httpx
import msgspec
import tenacity

from vllm_capacity.errors import InputError, SourceError

_ATTEMPTS = 4
_CREDENTIALS = re.compile(r"^([a-zA-Z][\w+.-]*://)?.*@", re.DOTALL)
# Statuses of a server, or a proxy in front of it, that is not ready.
BUSY = (429, 502, 503, 504)
# For single requests: a server may close a kept connection just as it is reused, which would look
# like a failure of the server.
NO_KEEPALIVE = httpx.Limits(max_keepalive_connections=0)
_Answer = TypeVar("_Answer")


class TransientError(SourceError):
    """A failure that a retry may resolve."""


def with_retries(ask: Callable[[], _Answer], pause: Callable[[float], None]) -> _Answer:
    """The answer, after up to four attempts; only for requests that change nothing."""
    attempts = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(TransientError),
        stop=tenacity.stop_after_attempt(_ATTEMPTS),
        wait=tenacity.wait_exponential(multiplier=0.5, max=10),
        sleep=pause,
        reraise=True,
    )
    return attempts(ask)


def without_credentials(url: str) -> str:
    """The URL without credentials, that is, without anything before an @; works for any text."""
    return _CREDENTIALS.sub(r"\1", url)


def decoded(content: bytes, shape: type[_Answer], *, at: str, dialect: str) -> _Answer:
    """The JSON of an answer, decoded to `shape`; SourceError if it has another shape.

    Keys that are not in the shape are left out.
    """
    try:
        return msgspec.json.decode(content, type=shape)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise SourceError(
            f"{at} does not answer as {dialect} does: {error}. Is it {dialect}, and is the URL "
            "its root?"
        ) from None


def shown(url: str | httpx.URL) -> str:
    """A URL for messages: without user, password, query and fragment."""
    bare = httpx.URL(url).copy_with(userinfo=b"", query=None, fragment=None)
    return str(bare).rstrip("/")


def address(client: httpx.Client) -> str:
    """The address of a client's server for messages and notes, without credentials."""
    return shown(client.base_url)


@contextmanager
def transport_errors(at: str) -> Iterator[None]:
    """Turn transport errors into errors that say what to check.

    `TransientError` if a retry may help, which is not the case after a timeout.
    """
    try:
        yield
    except httpx.ConnectTimeout as error:
        raise TransientError(f"{at} could not be reached in time. Is the URL right?") from error
    except httpx.TimeoutException as error:
        raise SourceError(f"{at} did not answer in time. Ask for a shorter range.") from error
    except httpx.RemoteProtocolError as error:
        raise TransientError(
            f"{at} cut its answer short ({error}): the query failed midway, or the server "
            "stopped. See its log."
        ) from error
    except httpx.HTTPError as error:
        raise TransientError(
            f"No usable answer from {at} ({error}). Is it running, and is the URL right?"
        ) from error


_MAX_BYTES: Final = 64 * 1024 * 1024
_PIECE_BYTES: Final = 1024 * 1024
_LOOK_SECONDS: Final = 0.2  # how often a waiting read checks `stop`
_GZIP: Final = 31  # zlib's number for a gzip header and trailer
_NOT_PASSED_ON: Final = (b"content-encoding", b"content-length", b"set-cookie")


def client(
    *,
    timeout: float | httpx.Timeout = 20.0,
    limits: httpx.Limits = NO_KEEPALIVE,
    verify: ssl.SSLContext | None = None,
    most_bytes: int = _MAX_BYTES,
    stop: threading.Event | None = None,
    transport: httpx.BaseTransport | None = None,
    **settings: Any,  # noqa: ANN401  whatever else httpx.Client takes
) -> httpx.Client:
    """A client whose `timeout` (its `read`) limits a whole exchange.

    `verify` replaces the system's certificates. An answer over `most_bytes`, decompressed, is an
    error. Setting `stop` ends exchanges that wait for an answer. These limits do not apply to
    another `transport`. A request raises InputError if the environment's proxy is invalid.
    """
    bounded = transport or _Transport(verify, limits, most_bytes, stop)
    return httpx.Client(transport=bounded, timeout=timeout, **settings)


def wire_bytes(response: httpx.Response) -> int:
    """The bytes of the body received so far, as compressed on the wire."""
    counted = response.extensions.get("wire_bytes")
    return counted[0] if counted else response.num_bytes_downloaded


class _Until(float):
    """A shrinking timeout: httpcore passes it on as a number; `left` is what remains of it.

    As a number it is the maximum duration of this step; `at` is when the exchange must be over.
    """

    at: float

    @classmethod
    def made(cls, seconds: float, at: float) -> _Until:
        until = cls(seconds)
        until.at = at
        return until

    def left(self, error: type[Exception]) -> float:
        """The seconds left for this step; raises `error` if the time is up."""
        rest = self.at - time.monotonic()
        if rest <= 0:
            raise error("timed out")
        return min(float(self), rest)


class _Stream(httpcore.NetworkStream):
    """A connection whose reads and writes end at the exchange's deadline or when `stop` is set."""

    def __init__(self, inner: httpcore.NetworkStream, stop: threading.Event | None) -> None:
        self._inner = inner
        self._stop = stop

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        while True:
            left = _left(timeout, httpcore.ReadTimeout)
            if self._stop is None or left is None:
                return self._inner.read(max_bytes, timeout=left)
            if self._stop.is_set():
                raise httpcore.ReadError("stopped")
            try:
                return self._inner.read(max_bytes, timeout=min(left, _LOOK_SECONDS))
            except httpcore.ReadTimeout:
                continue

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._inner.write(buffer, timeout=_left(timeout, httpcore.WriteTimeout))

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        left = _left(timeout, httpcore.ConnectTimeout)
        return _Stream(self._inner.start_tls(ssl_context, server_hostname, left), self._stop)

    def get_extra_info(self, info: str) -> Any:  # noqa: ANN401  as httpcore has it
        return self._inner.get_extra_info(info)


class _Backend(httpcore.NetworkBackend):
    """Opens connections with a deadline, shared by all addresses of a host."""

    def __init__(self, stop: threading.Event | None) -> None:
        self._inner = httpcore.SyncBackend()
        self._stop = stop

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        failure: Exception = httpcore.ConnectError(f"no address is known for {host}")
        for address in _addresses(host, port):
            left = _left(timeout, httpcore.ConnectTimeout)
            try:
                inner = self._inner.connect_tcp(address, port, left, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
            else:
                return _Stream(inner, self._stop)
        raise failure


def _left(timeout: float | None, error: type[Exception]) -> float | None:
    return timeout.left(error) if isinstance(timeout, _Until) else timeout


def _addresses(host: str, port: int) -> list[str]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:  # UnicodeError: an invalid host name
        raise httpcore.ConnectError(f"no such host: {error}") from None
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


class _Transport(httpx.BaseTransport):
    """The transport for httpx, through the proxies set in the environment."""

    def __init__(
        self,
        verify: ssl.SSLContext | None,
        limits: httpx.Limits,
        most_bytes: int,
        stop: threading.Event | None,
    ) -> None:
        self._verify = verify
        self._limits = limits
        self._most_bytes = most_bytes
        self._stop = stop
        self._pools: dict[tuple[str, str], httpcore.ConnectionPool] = {}
        self._lock = threading.Lock()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        _set_deadline(request)
        request.headers["Accept-Encoding"] = "gzip"
        url = request.url
        wanted = httpcore.Request(
            method=request.method,
            url=httpcore.URL(
                scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path
            ),
            headers=request.headers.raw,
            content=request.stream,
            extensions=request.extensions,
        )
        with _as_httpx():
            found = self._pool(url).handle_request(wanted)
        headers = httpx.Headers(found.headers)
        if "Location" in headers:
            try:
                headers["Location"] = _target(url, headers["Location"])
            except (httpx.InvalidURL, ValueError):
                found.close()
                raise httpx.RemoteProtocolError(
                    "it redirects to something that is not a URL"
                ) from None
        counted = [0]
        response = httpx.Response(
            found.status,
            headers=[item for item in headers.raw if item[0].lower() not in _NOT_PASSED_ON],
            stream=_Body(found, headers.get("Content-Encoding", ""), self._most_bytes, counted),
            extensions={**found.extensions, "wire_bytes": counted},
        )
        response.encoding = "utf-8"
        return response

    def _pool(self, url: httpx.URL) -> httpcore.ConnectionPool:
        proxies = getproxies()
        proxy = proxies.get(url.scheme) or proxies.get("all") or ""
        if proxy and proxy_bypass(url.host):
            proxy = ""
        with self._lock:
            if (url.scheme, proxy) not in self._pools:
                self._pools[url.scheme, proxy] = self._made(url.scheme, proxy)
            return self._pools[url.scheme, proxy]

    def _made(self, scheme: str, proxy: str) -> httpcore.ConnectionPool:
        # Reading the system's certificates takes longer than an answer, so only if they are needed.
        trust = None if scheme == "http" else self._verify or httpx.create_ssl_context()
        settings: dict[str, Any] = {
            "ssl_context": trust,
            "max_connections": self._limits.max_connections,
            "max_keepalive_connections": self._limits.max_keepalive_connections,
            "keepalive_expiry": self._limits.keepalive_expiry,
            "network_backend": _Backend(self._stop),
        }
        if not proxy:
            return httpcore.ConnectionPool(**settings)
        try:
            via = httpx.Proxy(proxy if "://" in proxy else f"http://{proxy}")
        except (ValueError, httpx.InvalidURL):  # it may hold a password: not shown
            raise InputError(
                "Cannot use the proxy set in the environment: check HTTP_PROXY, HTTPS_PROXY and "
                "ALL_PROXY."
            ) from None
        if via.url.scheme not in ("http", "https"):
            raise httpx.UnsupportedProtocol(f"the proxy {via.url.scheme}://… is not an HTTP proxy")
        at = httpcore.URL(
            scheme=via.url.raw_scheme, host=via.url.raw_host, port=via.url.port, target=b"/"
        )
        return httpcore.HTTPProxy(at, proxy_auth=via.raw_auth, **settings)

    def close(self) -> None:
        for pool in self._pools.values():
            pool.close()


def _set_deadline(request: httpx.Request) -> None:
    """Give all timeouts of a request a common deadline; a redirected request keeps its own."""
    timeouts: Mapping[str, float | None] = request.extensions.get("timeout", {})
    whole = timeouts.get("read")
    if whole is None or isinstance(whole, _Until):
        return
    at = time.monotonic() + whole
    request.extensions["timeout"] = {
        step: _Until.made(whole if seconds is None else seconds, at)
        for step, seconds in timeouts.items()
    }


def _target(url: httpx.URL, location: str) -> str:
    """The target of a redirect; ValueError or httpx.InvalidURL if httpx could not handle it."""
    to = url.join(location)
    if to.scheme not in ("http", "https") or not to.host:  # a host may also be unreadable
        raise ValueError(location)
    return str(to)


@contextmanager
def _as_httpx() -> Iterator[None]:
    """Raise httpcore's errors as the httpx errors of the same name."""
    try:
        yield
    except (
        httpcore.TimeoutException,
        httpcore.NetworkError,
        httpcore.ProtocolError,
        httpcore.ProxyError,
        httpcore.UnsupportedProtocol,
    ) as error:
        raise getattr(httpx, type(error).__name__)(str(error)) from error


class _Body(httpx.SyncByteStream):
    """The decoded body, in pieces of bounded size."""

    def __init__(
        self, response: httpcore.Response, encoding: str, most_bytes: int, counted: list[int]
    ) -> None:
        self._response = response
        self._encoding = encoding.strip().lower()
        self._most_bytes = most_bytes
        self._counted = counted

    def __iter__(self) -> Iterator[bytes]:
        if self._encoding not in ("", "identity", "gzip", "x-gzip"):
            raise httpx.RemoteProtocolError(
                f"it sends {self._encoding[:40]!r}, an encoding that was not asked for"
            )
        size = 0
        pieces = gunzipped(self._raw()) if "gzip" in self._encoding else self._raw()
        for piece in pieces:
            size += len(piece)
            if size > self._most_bytes:
                raise httpx.ReadError(f"its answer is larger than {self._most_bytes:,} bytes")
            yield piece

    def _raw(self) -> Iterator[bytes]:
        with _as_httpx():
            for piece in self._response.iter_stream():
                self._counted[0] += len(piece)
                yield piece

    def close(self) -> None:
        with _as_httpx():
            self._response.close()


def gunzipped(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The decompressed bytes in pieces of at most 1 MiB; none for no input.

    RemoteProtocolError if the stream is damaged or ends before its checksum.
    """
    member = None
    for piece in pieces:
        rest, is_full = piece, False
        while rest or is_full:
            if member is None or member.eof:
                member = zlib.decompressobj(_GZIP)
            made, rest = _decompressed(member, rest)
            is_full = len(made) == _PIECE_BYTES and not member.eof
            if made:
                yield made
    if member is not None and not member.eof:
        raise httpx.RemoteProtocolError("its gzip stream is cut short")


def _decompressed(member: Any, data: bytes) -> tuple[bytes, bytes]:  # noqa: ANN401  zlib's own
    """The decompressed piece, at most 1 MiB, and the remaining input."""
    try:
        made = member.decompress(data, _PIECE_BYTES)
    except zlib.error as error:
        raise httpx.RemoteProtocolError(f"its gzip stream is damaged ({error})") from None
    return made, member.unconsumed_tail or member.unused_data
