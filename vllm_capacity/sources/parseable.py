"""Queries a Parseable server over HTTP: SQL in, rows out, refusals as one clear line.

Parseable's peculiarities, handled here: a wrong password is a 403, a missing right to a stream a
400; times select by arrival and are truncated to the minute; flags go in the URL, never in the
body; each line of a streamed answer is a list of rows; an error midway cuts the connection.

The client is passed in, with address, credentials and timeouts; requests only read.
"""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import httpx
from msgspec import Struct, field

from vllm_capacity.errors import InputError, SourceError
from vllm_capacity.sources import parseable_shapes as shapes
from vllm_capacity.sources.http import (
    BUSY,
    TransientError,
    address,
    decoded,
    transport_errors,
    wire_bytes,
    with_retries,
)
from vllm_capacity.sources.parseable_queries import arrow_type
from vllm_capacity.timerange import TimeRange

_INTERNAL = frozenset({"pstats", "pmeta"})
_MINUTE = timedelta(minutes=1)
_LONG_BYTES = 1000  # shorter bodies are not compressed
_QUESTION_SECONDS = 60.0  # for requests about the server; queries use the client's timeout
Row = dict[str, Any]
_Answer = TypeVar("_Answer")


class Traffic(Struct):
    """The traffic so far: requests answered, and bytes on the wire."""

    answers: int = 0
    wire_bytes: int = 0


class Parseable(Struct, frozen=True):
    """A Parseable server; `pause` waits between attempts (tests replace it)."""

    client: httpx.Client
    pause: Callable[[float], None] = time.sleep
    traffic: Traffic = field(default_factory=Traffic)

    @property
    def address(self) -> str:
        """The server's address for messages and notes, without credentials."""
        return address(self.client)

    def about(self) -> shapes.About:
        """The server's description of itself."""
        return self._get("/api/v1/about", shapes.About)

    def streams(self) -> list[str]:
        """The names of the streams this user may see, without Parseable's internal ones."""
        found = self._get("/api/v1/logstream", list[shapes.Named])
        return sorted(stream.name for stream in found if stream.name not in _INTERNAL)

    def columns(self, stream: str) -> dict[str, str]:
        """The columns of a stream and their types (`arrow_type`); empty while it has no data.

        InputError if the stream does not exist or this user may not see it: a reader gets a 403 in
        both cases.
        """
        try:
            found = self._get(f"/api/v1/logstream/{stream}/schema", shapes.Schema)
        except (InputError, SourceError):
            known = self.streams()  # fails, too, if the credentials are wrong
            if stream in known:
                raise
            raise InputError(
                f"There is no stream {stream!r} at {self.address}, or this user has no right to "
                f"it. Streams there: {', '.join(known) or 'none that this user may see'}."
            ) from None
        return {column.name: arrow_type(column.data_type) for column in found.fields}

    def query(self, sql: str, arrivals: TimeRange, rows: type[list[Row]] = list[Row]) -> list[Row]:
        """The rows of a query over data that arrived in the range, widened to whole minutes.

        Returns the whole answer, in the shape `rows`. If it is cut short, the query is retried and
        then raises SourceError.
        """
        body = {
            "query": sql,
            "startTime": _rfc3339(_floor(arrivals.start)),
            "endTime": _rfc3339(_floor(arrivals.end + _MINUTE - timedelta(microseconds=1))),
        }
        flags = {"fields": "true", "streaming": "true"}
        return self._again(lambda: self._rows("/api/v1/query", flags, body, rows))

    def _get(self, path: str, shape: type[_Answer]) -> _Answer:
        def ask() -> _Answer:
            with self._open("GET", path, seconds=_QUESTION_SECONDS) as response:
                return self._decoded(response.read(), shape)

        return self._again(ask)

    def _rows(
        self, path: str, flags: dict[str, str], body: Row, rows: type[list[Row]]
    ) -> list[Row]:
        with self._open("POST", path, flags=flags, body=body) as response:
            head, *batches = _lines(response) or [b""]
        self._decoded(head, shapes.Head)
        return [each for batch in batches for each in self._decoded(batch, rows)]

    def _decoded(self, content: bytes, shape: type[_Answer]) -> _Answer:
        return decoded(content, shape, at=self.address, dialect="Parseable")

    @contextmanager
    def _open(
        self,
        method: str,
        path: str,
        *,
        flags: Row | None = None,
        body: Row | None = None,
        seconds: float | None = None,
    ) -> Iterator[httpx.Response]:
        """A successful response, to be read inside the `with`; raises this package's errors.

        `seconds` overrides the client's timeout.
        """
        timeout = self.client.timeout if seconds is None else httpx.Timeout(seconds)
        content, headers = (None, {}) if body is None else _packed(body)
        with (
            transport_errors(self.address),
            self.client.stream(
                method, path, params=flags, content=content, headers=headers, timeout=timeout
            ) as response,
        ):
            if response.status_code != 200:
                response.read()
                raise _refusal(response, self.address)
            yield response
            self.traffic.answers += 1
            self.traffic.wire_bytes += wire_bytes(response)

    def _again(self, ask: Callable[[], _Answer]) -> _Answer:
        # Retries are safe: requests change nothing. Refusals are not retried.
        return with_retries(ask, self.pause)


def _packed(body: Row) -> tuple[bytes, dict[str, str]]:
    """The body to send and its headers; long bodies are compressed with gzip.

    Parseable's web framework decompresses the input of its JSON handlers:
    https://docs.rs/actix-web/4.9.0/actix_web/dev/struct.Decompress.html
    """
    text = json.dumps(body, separators=(",", ":")).encode()
    kind = {"Content-Type": "application/json"}
    if len(text) < _LONG_BYTES:
        return text, kind
    return gzip.compress(text, mtime=0), kind | {"Content-Encoding": "gzip"}


def _lines(response: httpx.Response) -> list[bytes]:
    """The lines of a streamed answer; TransientError if the last line is cut off."""
    lines: list[bytes] = []
    pending = bytearray()
    for piece in response.iter_bytes():
        pending += piece
        if b"\n" in piece:
            *whole, rest = bytes(pending).split(b"\n")
            lines += filter(None, whole)
            pending = bytearray(rest)
    if pending:
        raise TransientError("The server's answer ends in the middle of a line: it was cut short.")
    return lines


def _refusal(response: httpx.Response, address: str) -> SourceError | InputError:
    """The error for a refusal: what the server answered, and what to do about it."""
    text = " ".join(response.text.split())[:300] or f"status {response.status_code}"
    if response.status_code in BUSY:
        return TransientError(f"{address} is not ready (status {response.status_code}): {text}")
    if response.status_code == 400:
        return _bad_query(text)
    if response.status_code == 404 and "Stream not found" in text:
        return InputError(f"{text} at {address}.")
    return SourceError(_ADVICE.get(response.status_code, _OTHERWISE).format(at=address, text=text))


_OTHERWISE = "{at} refused: {text}"
_ADVICE = {
    401: "{at} does not know these credentials: {text} Set PARSEABLE_USER and "
    "PARSEABLE_PASSWORD, or a PARSEABLE_API_KEY that it has issued.",
    403: "{at} refused the user or the password (403). Check PARSEABLE_USER and "
    "PARSEABLE_PASSWORD; an ingestor's user may write but not query: use a reader's.",
    404: "{at} has no such page: {text}. Is it a Parseable server, and is the URL its root?",
    413: "{at} found the request too large: {text}.",
    500: "{at} failed: {text}. If it ran out of time, ask for a shorter range or raise "
    "P_SQL_TIMEOUT there.",
}


def _bad_query(text: str) -> SourceError | InputError:
    """The error for a 400: no right to the stream, no such stream, or unexpected columns."""
    if "does not have access" in text:
        return SourceError(f"This user has no right to the stream ({text}). Give it a reader role.")
    if "not found" in text.lower():
        return InputError(f"No such stream: {text}.")
    return SourceError(f"Parseable could not run the query: {text}")


def _floor(moment: datetime) -> datetime:
    return moment.replace(second=0, microsecond=0)


def _rfc3339(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
