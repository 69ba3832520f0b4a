"""Scrapes live targets on a fixed grid into a journal, and turns a journal into a window.

The journal holds saved scrapes, one gzip member each: it can be read at any time, and a kill
loses at most the scrapes in progress. A scrape attempt fails if the answer is not 200, if there is
no answer, or if the target's previous scrape is still in progress. Each scrape has the time of day
and the time of a monotonic clock: if the system clock is changed, the second shows by how much.

A window is reserved first and written whole, from live targets or from saved scrapes.
"""

from __future__ import annotations

import gzip
import json
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import httpx
from msgspec import Struct, field
from msgspec.structs import replace

from vllm_capacity.errors import InputError, NoTelemetryError, ParseError, SourceError, plain
from vllm_capacity.live.access import METRICS, METRICS_SETTINGS, client, read_settings
from vllm_capacity.live.running import JOURNAL
from vllm_capacity.live.targets import Target
from vllm_capacity.sources.exposition import ACCEPT, Scrape, provenance, whole_text
from vllm_capacity.sources.http import NO_KEEPALIVE
from vllm_capacity.telemetry.parts import RowsInParts, Spool
from vllm_capacity.telemetry.store import Place, put_window, require_free, reserved

_LONGEST_TIMEOUT_SECONDS = 10.0
_OURS = "vllm"  # a proxy may have written vllm_ for vllm:
NO_SERIES = "it answers, but exports no vLLM metric; is this vLLM's /metrics?"
_UNDER_WAY = "the previous scrape was still running"


def steady_seconds() -> float:
    """Seconds of a monotonic clock with an arbitrary start, which runs while the machine sleeps."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


class Keeper(Protocol):
    """Accepts scrapes as they come, each with its error or ""; called from several threads."""

    def append(self, *attempts: tuple[Scrape, str]) -> None:
        """Add these scrapes."""


class Journal(Struct):
    """Saved scrapes on disk, appended one gzip member at a time; thread-safe.

    While one thread waits for the disk, what other threads append is collected and written at once.
    """

    path: Path
    _waiting: list[bytes] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _disk: threading.Lock = field(default_factory=threading.Lock)

    def append(self, *attempts: tuple[Scrape, str]) -> None:
        """Append scrapes, each with its error or "", and wait until they are on disk."""
        members = b"".join(_member(scrape, error) for scrape, error in attempts)
        with self._lock:
            self._waiting.append(members)
        with self._disk:
            with self._lock:
                batch, self._waiting = self._waiting, []
            if not batch:
                return  # the previous writer has written it
            with self.path.open("ab") as file:
                file.write(b"".join(batch))
                file.flush()
                os.fsync(file.fileno())


def _member(scrape: Scrape, error: str) -> bytes:
    """One scrape as a gzip member; fast compression, because the journal is short-lived."""
    row: dict[str, object] = {
        "t": scrape.t_unix_seconds,
        "run": scrape.run_unix_seconds,
        "at": scrape.at_seconds,
        "dur": scrape.seconds,
        "target": scrape.target,
        "status": scrape.status,
        "text": scrape.text,
    }
    row |= {"err": error} if error else {}
    row |= {"labels": dict(scrape.labels)} if scrape.labels else {}
    line = json.dumps(row) + "\n"
    return gzip.compress(line.encode(), compresslevel=1)


class _Clock(Struct, frozen=True):
    """The time of day when a run began, and a monotonic clock of the seconds since then."""

    run_unix_seconds: float = field(default_factory=time.time)
    _began: float = field(default_factory=steady_seconds)

    @property
    def seconds(self) -> float:
        """Seconds since the run began."""
        return steady_seconds() - self._began

    def attempt(self, target: Target) -> Scrape:
        """A scrape attempt that starts now, recorded as failed until it succeeds."""
        return Scrape(
            time.time(),
            target.instance,
            0,
            "",
            run_unix_seconds=self.run_unix_seconds,
            at_seconds=self.seconds,
            labels=target.labels,
        )


class Progress(Struct, frozen=True):
    """How far a run is; `silent` maps targets that never answered to their last error."""

    points: int
    good: int
    failed: int
    last_error: str
    silent: Mapping[str, str] = field(default_factory=dict)


class _Outcome(Struct, frozen=True):
    """The outcome of an attempt: its error, or what is odd about its answer; else both empty."""

    error: str = ""
    doubt: str = ""


class _Tally(Struct):
    good: int = 0
    failed: int = 0
    last_error: str = ""
    silent: dict[str, str] = field(default_factory=dict)
    answered: set[str] = field(default_factory=set)

    def count(self, instance: str, outcome: _Outcome) -> None:
        error, trouble = outcome.error, outcome.error or outcome.doubt
        self.good, self.failed = self.good + (not error), self.failed + bool(error)
        self.last_error = error or self.last_error
        if not trouble:
            self.answered.add(instance)
            self.silent.pop(instance, None)
        elif instance not in self.answered:
            self.silent[instance] = trouble

    def progress(self, points: int) -> Progress:
        return Progress(points, self.good, self.failed, self.last_error, dict(self.silent))


def run(
    found: list[Target],
    *,
    client: httpx.Client,
    journal: Keeper,
    every_seconds: float,
    for_seconds: float | None,
    stop: threading.Event,
    on_progress: Callable[[Progress], None],
) -> Progress:
    """Scrape every target on a grid of `every_seconds` until the time is up or `stop` is set."""
    tally = _Tally()
    pending: dict[str, Future[_Outcome]] = {}
    timeout = min(_LONGEST_TIMEOUT_SECONDS, every_seconds)
    clock, point = _Clock(), 0

    with ThreadPoolExecutor(max_workers=len(found)) as pool:
        while not stop.is_set() and (for_seconds is None or point * every_seconds < for_seconds):
            missed = []
            for target in found:
                before = pending.get(target.instance)
                if before is not None and not before.done():
                    missed.append((clock.attempt(target), _UNDER_WAY))
                    continue
                if before is not None:
                    tally.count(target.instance, before.result())
                job = pool.submit(_scrape, target, client, journal, timeout, clock)
                pending[target.instance] = job
            if missed:
                journal.append(*missed)
            for scrape, error in missed:
                tally.count(scrape.target, _Outcome(error))
            point += 1
            on_progress(tally.progress(point))
            # The next point is computed from the start of the run, so delays do not add up.
            due = min(point * every_seconds, for_seconds or math.inf)
            stop.wait(max(0.0, due - clock.seconds))
    for instance, future in pending.items():
        tally.count(instance, future.result())
    return tally.progress(point)


def _scrape(
    target: Target, client: httpx.Client, journal: Keeper, timeout: float, clock: _Clock
) -> _Outcome:
    """Make one attempt and append it to the journal."""
    attempt, began = clock.attempt(target), time.monotonic()
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
    seconds = time.monotonic() - began
    journal.append((replace(attempt, status=status, text=text, seconds=seconds), error))
    return _Outcome(error, "" if error else doubt(text))


def doubt(text: str) -> str:
    """What is odd about an answer: that it has no vLLM metric; empty if it has one."""
    return "" if _OURS in text else NO_SERIES


MIN_SECONDS = 0.01
Read = Callable[[Path, Spool], RowsInParts]
"""Reads the rows of a file of saved scrapes; the `Spool` is temporary storage for them."""


class Captured(Struct, frozen=True):
    """A written window: its path, the number of its series, and the progress of its scrapes."""

    path: Path
    series: int
    progress: Progress | None = None


def capture(
    found: Sequence[Target],
    to: Path,
    *,
    every_seconds: float,
    for_seconds: float | None,
    environment: Mapping[str, str],
    read: Read,
    profile: Path | None = None,
    about: str | None = None,
    stop: threading.Event | None = None,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    scraped: Callable[[], None] = lambda: None,
) -> Captured:
    """Scrape these servers into the window `to`, until `stop` is set or `for_seconds` have passed.

    Every scrape is first appended to a journal beside the window, from which a killed run can be
    recovered. `scraped` is called after the last scrape, before the window is made. InputError if
    the window or a journal already exists, SourceError if no scrape was answered.
    """
    if every_seconds < MIN_SECONDS:
        raise InputError(
            f"Cannot scrape every {every_seconds:g} s: the shortest interval is {MIN_SECONDS:g} s."
        )
    settings = read_settings(environment, profile, prefix=METRICS, names=METRICS_SETTINGS)
    ends = stop or threading.Event()
    require_free(to)
    journal = to.with_name(f"{to.name}{JOURNAL}")
    with reserved(to) as place, _claimed(journal, to):
        with client(settings, follow_redirects=True, limits=NO_KEEPALIVE, stop=ends) as session:
            done = run(
                list(found),
                client=session,
                journal=Journal(journal),
                every_seconds=every_seconds,
                for_seconds=for_seconds,
                stop=ends,
                on_progress=on_progress,
            )
        scraped()
        if not done.points:
            raise SourceError("Stopped before the first scrape; nothing was written.")
        try:
            written = _written(journal, place, read, kind="scraped /metrics", about=about)
        except NoTelemetryError as error:
            journal.unlink()  # it has nothing to recover and would block the next run
            raise SourceError(_fruitless(error, done)) from None
        journal.unlink()
    return Captured(written.path, written.series, done)


def import_scrapes(saved: Path, to: Path, *, read: Read, about: str | None = None) -> Captured:
    """The window `to`, made from saved scrapes."""
    with reserved(to) as place:
        return _written(saved, place, read, kind="saved scrapes", about=about)


def _written(saved: Path, place: Place, read: Read, *, kind: str, about: str | None) -> Captured:
    rows = read(saved, Spool(place.incoming))
    note = provenance(rows, kind=kind, origin=saved.name)
    put_window(place, rows, note | ({"about": about} if about else {}))
    return Captured(place.path, rows.series.height)


@contextmanager
def _claimed(journal: Path, to: Path) -> Iterator[None]:
    """Create the journal; InputError if there is one already, left by a run that was killed.

    An empty journal has nothing to recover and is removed.
    """
    _remove_empty(journal)
    try:
        journal.open("xb").close()
    except FileExistsError:
        raise InputError(
            f"{journal} is left from an interrupted run. Recover it with `vllm-capacity scrape "
            f"--from {journal} --to {to}`, or remove it."
        ) from None
    try:
        yield
    finally:
        _remove_empty(journal)


def _remove_empty(journal: Path) -> None:
    if journal.exists() and journal.stat().st_size == 0:
        journal.unlink()


def _fruitless(error: NoTelemetryError, done: Progress) -> str:
    if done.good:
        return f"{error} Last error: {done.last_error}" if done.last_error else str(error)
    return (
        f"All {done.failed} scrapes failed: {done.last_error}. Is the server running, and is this "
        "its /metrics?"
    )
