"""Scraping live targets on a fixed grid into a journal, and the journal into a window.

The journal holds saved scrapes, one gzip member each: it can be read at any moment, and a kill
loses at most the scrape under way. A grid point that comes while the scrape before it is still
under way is a failed attempt, like an answer other than 200 and no answer at all.
"""

from __future__ import annotations

import gzip
import json
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from vllm_capacity.errors import InputError, ParseError, plain
from vllm_capacity.sources.exposition import ACCEPT, Scrape, whole_text

_LONGEST_TIMEOUT_SECONDS = 10.0


@dataclass(frozen=True)
class Target:
    """An endpoint and the instance it is known as: its host and port."""

    url: str
    instance: str


def targets(urls: tuple[str, ...]) -> list[Target]:
    """The targets of these URLs; a bare host:port gets http:// and /metrics.

    InputError for what is no http(s) URL, and for two URLs of one instance.
    """
    found: list[Target] = []
    for text in urls:
        url = text if "://" in text else f"http://{text}"
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InputError(f"Cannot scrape {text!r}: not an http(s) URL, such as {_EXAMPLE}.")
        if parts.path in ("", "/"):
            url = f"{parts.scheme}://{parts.netloc}/metrics"
        # Credentials in a URL belong to the request, not to the name of the instance.
        instance = parts.netloc.rpartition("@")[2]
        if instance in [target.instance for target in found]:
            raise InputError(f"The target {instance} is given twice; each target is one instance.")
        found.append(Target(url, instance))
    return found


_EXAMPLE = "http://127.0.0.1:8000/metrics"


@dataclass
class Journal:
    """Saved scrapes on disk, appended one gzip member at a time; safe to call from threads."""

    path: Path
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def append(self, scrape: Scrape, error: str) -> None:
        """Append one scrape and hand it to the operating system."""
        row = {
            "t": scrape.t_unix_seconds,
            "dur": scrape.seconds,
            "target": scrape.target,
            "status": scrape.status,
            "text": scrape.text,
        }
        member = gzip.compress(
            (json.dumps(row | ({"err": error} if error else {})) + "\n").encode()
        )
        with self._lock, self.path.open("ab") as file:
            file.write(member)
            file.flush()
            os.fsync(file.fileno())


@dataclass(frozen=True)
class Progress:
    """How far a run is."""

    points: int
    good: int
    failed: int
    last_error: str


@dataclass
class _Tally:
    good: int = 0
    failed: int = 0
    last_error: str = ""

    def count(self, error: str) -> None:
        self.good, self.failed = self.good + (not error), self.failed + bool(error)
        self.last_error = error or self.last_error

    def progress(self, points: int) -> Progress:
        return Progress(points, self.good, self.failed, self.last_error)


def run(
    found: list[Target],
    *,
    client: httpx.Client,
    journal: Journal,
    every_seconds: float,
    for_seconds: float | None,
    stop: threading.Event,
    tell: Callable[[Progress], None],
) -> Progress:
    """Scrape every target on a grid of `every_seconds` until the time is up or `stop` is set."""
    tally = _Tally()
    pending: dict[str, Future[str]] = {}
    timeout = min(_LONGEST_TIMEOUT_SECONDS, every_seconds)
    start, point = time.monotonic(), 0

    with ThreadPoolExecutor(max_workers=len(found)) as pool:
        while not stop.is_set() and (for_seconds is None or point * every_seconds < for_seconds):
            for target in found:
                before = pending.get(target.instance)
                if before is not None and not before.done():
                    error = "the scrape before was still under way"
                    journal.append(Scrape(time.time(), target.instance, 0, ""), error)
                    tally.count(error)
                    continue
                if before is not None:
                    tally.count(before.result())
                pending[target.instance] = pool.submit(_scrape, target, client, journal, timeout)
            point += 1
            tell(tally.progress(point))
            # A fixed grid: the next point counts from the start, so delays do not add up.
            stop.wait(max(0.0, start + point * every_seconds - time.monotonic()))
    for future in pending.values():
        tally.count(future.result())
    return tally.progress(point)


def _scrape(target: Target, client: httpx.Client, journal: Journal, timeout: float) -> str:
    """One attempt, journalled; the error, or nothing."""
    t, began = time.time(), time.monotonic()
    status, text, error = 0, "", ""
    try:
        response = client.get(target.url, timeout=timeout, headers=ACCEPT)
        status = response.status_code
        if status == httpx.codes.OK:
            text = whole_text(response.content, response.headers.get("Content-Type", ""))
        else:
            error = f"HTTP {status}"
    except (httpx.HTTPError, ParseError) as failure:
        status, text, error = 0, "", plain(f"{type(failure).__name__}: {failure}")[:200]
    journal.append(Scrape(t, target.instance, status, text, time.monotonic() - began), error)
    return error
