"""A small Parseable for tests: takes OTLP/JSON in, answers SQL, refuses as the real one does.

Ingest, columns and queries are computed (DataFusion is the real one's engine, too); management
calls are replayed from the recorded exchanges. It misbehaves on demand: see `Fault`.

    with Standin() as server:
        httpx.get(f"{server.url}/api/v1/about", auth=("root", "root-password"))
"""

import base64
import gzip
import json
import threading
import time
import zlib
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar
from urllib.parse import parse_qs, urlsplit

import httpx

from tests.standin.flatten import metric_rows, parse, trace_rows
from tests.standin.tables import RefusedError, Stream, answer, batch, minute_range, schema_json

RECORDED = Path(__file__).parents[1] / "data" / "parseable"
ABOUT = {"version": "v2.9.5", "mode": "Standalone", "commit": "standin", "license": {"plan": "OSS"}}
DENIED = (
    "You don't have permission to access this resource. "
    "Please contact your administrator for assistance."
)
_READERS = {"/v1/metrics": ("otel-metrics", metric_rows), "/v1/traces": ("otel-traces", trace_rows)}
_LIMIT_BYTES = 10_485_760


@dataclass(frozen=True)
class User:
    """Who may do what: `role` is admin, reader or ingestor, the latter two on `streams`."""

    password: str
    role: str = "admin"
    streams: tuple[str, ...] = ()

    def may(self, action: str, stream: str) -> bool:
        if self.role == "admin":
            return True
        allowed = {"reader": "query", "ingestor": "ingest"}[self.role]
        return action == allowed and stream in self.streams


ROOT = {"root": User("root-password")}


@dataclass
class Fault:
    """What goes wrong at the next `times` requests whose path starts with `path`.

    `status` with `text` answers that; `seconds` delays; `cut` sends half the body and hangs up.
    """

    path: str
    times: int = 1
    status: int | None = None
    text: str = ""
    seconds: float = 0.0
    cut: bool = False


@dataclass
class Standin:
    """The server; `with` starts and stops it. Streams can be filled without HTTP, too."""

    users: dict[str, User] = field(default_factory=lambda: dict(ROOT))
    api_keys: dict[str, User] = field(default_factory=dict)
    exchanges: Path | None = None
    streams: dict[str, Stream] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    requests: list[dict] = field(default_factory=list)
    now: datetime | None = None
    _server: ThreadingHTTPServer | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> "Standin":
        replies = _recorded(self.exchanges) if self.exchanges else []
        handler = type("Handler", (_Handler,), {"standin": self, "replies": replies})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def client(
        self, user: str = "root", password: str = "root-password", *, timeout: float = 60
    ) -> httpx.Client:
        """A client of it, which does not read the machine's certificates: that takes 24 ms."""
        auth = (user, password)
        return httpx.Client(base_url=self.url, auth=auth, timeout=timeout, verify=False)

    def clock(self) -> datetime:
        return self.now or datetime.now(UTC)

    def ingest(
        self,
        stream: str,
        path: str,
        body: dict,
        *,
        arrived: datetime | None = None,
        agent: str = "",
    ) -> int:
        """Keep an export as arrived then (default: now); the number of its rows."""
        log_source, rows_of = _READERS[path]
        rows = list(rows_of(body))
        kept = self.streams.setdefault(stream, Stream(log_source))
        if rows:
            when = arrived or self.clock()
            kept.batches.append(batch(rows, when, agent=agent, log_source=log_source))
        return len(rows)

    def replay(self, recording: Path, *, every: int = 1) -> int:
        """Keep the exports of a recording, each as arrived when it was recorded; the rows."""
        rows = 0
        with gzip.open(recording, "rt") as lines:
            for line in list(lines)[::every]:
                export = parse(line)
                rows += self.ingest(
                    export["stream"],
                    export["path"],
                    export["body"],
                    arrived=datetime.fromtimestamp(export["t"], UTC),
                    agent="/ (linux/amd64)",
                )
        return rows

    def fault(self, path: str) -> Fault | None:
        """The fault the next request to this path meets, used up by it."""
        for fault in self.faults:
            if fault.times and path.startswith(fault.path):
                fault.times -= 1
                return fault
        return None


def _recorded(path: Path) -> list[dict]:
    with gzip.open(path, "rt") as lines:
        return [json.loads(line) for line in lines]


class _Handler(BaseHTTPRequestHandler):
    standin: ClassVar[Standin]
    replies: ClassVar[list[dict]]
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    do_PUT = do_PATCH = do_DELETE = do_HEAD = do_GET  # noqa: N815  names the library asks for

    def _serve(self) -> None:
        url = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Content-Encoding") == "gzip":
            body = zlib.decompress(body, 47)
        self.standin.requests.append({"method": self.command, "path": self.path, "body": body})
        fault = self.standin.fault(url.path)
        if fault:
            time.sleep(fault.seconds)
        try:
            if fault and fault.status:
                raise RefusedError(fault.status, fault.text)
            status, kind, text = self._answer(url.path, url.query, body)
        except RefusedError as refused:
            status, kind, text = refused.status, "text/plain; charset=utf-8", refused.text
        with suppress(ConnectionError):  # a client that has given up
            self._send(status, kind, text.encode(), is_cut=bool(fault and fault.cut))

    def _send(self, status: int, kind: str, data: bytes, *, is_cut: bool) -> None:
        if "gzip" in self.headers.get("Accept-Encoding", "") and data:
            data = gzip.compress(data, 6)
            encoding = "gzip"
        else:
            encoding = "identity"
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Encoding", encoding)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        if self.command == "HEAD":
            return
        for part in _parts(data[: len(data) // 2] if is_cut else data):
            self.wfile.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")
        if is_cut:
            self.close_connection = True
            return
        self.wfile.write(b"0\r\n\r\n")

    def _answer(self, path: str, query: str, body: bytes) -> tuple[int, str, str]:
        if path in ("/api/v1/liveness", "/api/v1/readiness"):
            return 200, "text/plain", ""
        user = self._user()
        if path in _READERS:
            return self._ingest(user, path, body)
        if path == "/api/v1/query":
            return self._query(user, parse_qs(query), body)
        if path == "/api/v1/about" and not self.replies:
            return 200, "application/json", json.dumps(ABOUT)
        if path.startswith("/api/v1/logstream") and self.command == "GET":
            return self._stream(user, path)
        return self._replay(path, body)

    def _user(self) -> User:
        standin, key = self.standin, self.headers.get("X-API-KEY")
        if key is not None:
            if key not in standin.api_keys:
                raise RefusedError(401, "Invalid API key")
            return standin.api_keys[key]
        scheme, _, encoded = self.headers.get("Authorization", "").partition(" ")
        if scheme != "Basic":
            raise RefusedError(
                401,
                "Your session has expired or is no longer valid. "
                "Please re-authenticate to access this resource.",
            )
        name, _, password = base64.b64decode(encoded).decode().partition(":")
        user = standin.users.get(name)
        if user is None or user.password != password:
            raise RefusedError(403, DENIED)
        return user

    def _ingest(self, user: User, path: str, body: bytes) -> tuple[int, str, str]:
        log_source = _READERS[path][0]
        if len(body) > _LIMIT_BYTES:
            raise RefusedError(413, "payload reached size limit")
        stream = self.headers.get("X-P-Stream")
        if not stream:
            raise RefusedError(400, "Header Error: Stream name not found in header [x-p-stream]")
        if not self.headers.get("X-P-Log-Source"):
            raise RefusedError(400, "Header Error: Log source not found in header [x-p-log-source]")
        if self.headers["X-P-Log-Source"] != log_source:
            kind = log_source.replace("-", " ")
            text = f'Please use "x-p-log-source: {log_source}" for ingesting {kind} data'
            raise RefusedError(400, text)
        if not user.may("ingest", stream):
            raise RefusedError(403, DENIED)
        self._require_json(stream)
        try:
            export = parse(body)
        except ValueError as error:
            raise RefusedError(400, f"Could not deserialize into JSON object, {error}") from None
        agent = self.headers.get("User-Agent", "")
        self.standin.ingest(stream, path, export, agent=agent)
        return 200, "text/plain", ""

    def _require_json(self, stream: str) -> None:
        kind = self.headers.get("Content-Type", "")
        if kind == "application/json":
            return
        start = f"Invalid Request: Ingestion failed for stream {stream}: "
        if kind == "application/x-protobuf":
            raise RefusedError(400, f"{start}Protobuf ingestion is not supported in Parseable OSS")
        expected = "Expected application/json or application/x-protobuf"
        raise RefusedError(400, f"{start}Unsupported Content-Type: {kind}. {expected}")

    def _query(self, user: User, flags: dict, body: bytes) -> tuple[int, str, str]:
        if user.role == "ingestor":
            raise RefusedError(403, DENIED)
        asked = json.loads(body)
        for name in self.standin.streams:
            if name in asked["query"] and not user.may("query", name):
                raise RefusedError(400, f"Error: User does not have access to stream- {name}")
        start, end = minute_range(asked["startTime"], asked["endTime"], self.standin.clock())
        names, batches = answer(self.standin.streams, asked["query"], start, end)
        if flags.get("streaming") == ["true"]:
            head = [json.dumps({"fields": names})] if flags.get("fields") == ["true"] else []
            lines = [*head, *(json.dumps(rows, separators=(",", ":")) for rows in batches if rows)]
            return 200, "application/x-ndjson", "".join(f"{line}\n" for line in lines)
        rows = [row for found in batches for row in found]
        return 200, "application/json", json.dumps(rows, separators=(",", ":"))

    def _stream(self, user: User, path: str) -> tuple[int, str, str]:
        streams = self.standin.streams
        _, _, name, what = [*path.removeprefix("/api/v1").split("/"), "", ""][:4]
        if not name:
            seen = [{"name": known} for known in streams if user.may("query", known)]
            return 200, "application/json", json.dumps(seen)
        if user.role != "admin" and not user.may("query", name):
            raise RefusedError(403, DENIED)
        if name not in streams:
            raise RefusedError(404, f"Stream not found: {name}")
        if what == "schema":
            return 200, "application/json", json.dumps(schema_json(streams[name]))
        if what == "info":
            return 200, "application/json", json.dumps(_info(streams[name]))
        return self._replay(path, b"")

    def _replay(self, path: str, body: bytes) -> tuple[int, str, str]:
        """The recorded answer to the same request, else to any request of that method and path."""
        same = [r for r in self.replies if (r["method"], r["path"]) == (self.command, path)]
        exact = [r for r in same if r["request"].encode() == body]
        if not same:
            raise RefusedError(404, "")
        reply = (exact or same)[0]
        kind = reply["response_headers"].get("content-type", "text/plain")
        return reply["status"], kind, reply["response"]


def _parts(data: bytes, size: int = 16_384) -> Iterable[bytes]:
    return (data[at : at + size] for at in range(0, len(data), size))


def _info(stream: Stream) -> dict:
    arrived = [batch.column("p_timestamp")[0].as_py() for batch in stream.batches]
    minutes = [moment.replace(second=0, microsecond=0).isoformat() for moment in sorted(arrived)]
    seen = {}
    if minutes:
        seen = {"firstEventAt": f"{minutes[0]}+00:00", "latestEventAt": f"{minutes[-1]}+00:00"}
    return {
        **seen,
        "streamType": "UserDefined",
        "logSource": [{"log_source_format": stream.log_source, "fields": []}],
        "telemetryType": stream.log_source.removeprefix("otel-"),
        "inferTimestamp": True,
    }
