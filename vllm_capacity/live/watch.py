"""The last minutes of live servers for `watch`: scraped into memory, or read from Prometheus.

Nothing is stored unless a journal is given. If a server does not answer, the cause is reported at
once, which helps with a mistyped port.
"""

from __future__ import annotations

import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

from msgspec import Struct, field

from vllm_capacity.analysis import Analysis
from vllm_capacity.assumptions import Assumptions
from vllm_capacity.errors import NoTelemetryError, SourceError
from vllm_capacity.live.access import cause
from vllm_capacity.live.scrape import Journal, doubt
from vllm_capacity.sources.exposition import Scrape, ScrapeReader
from vllm_capacity.sources.prometheus import Prometheus
from vllm_capacity.sources.prometheus_pull import read_prometheus
from vllm_capacity.telemetry.rows import Rows
from vllm_capacity.telemetry.store import write_window
from vllm_capacity.telemetry.window import open_window
from vllm_capacity.timerange import TimeRange


class Recent(Struct):
    """The scrapes of the last `seconds` from `targets` targets, in memory.

    They are also written to `journal`, if given. `append` is called from threads.
    """

    seconds: float
    targets: int
    journal: Journal | None = None
    _scrapes: deque[Scrape] = field(default_factory=deque)
    _errors: dict[str, str] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def append(self, *attempts: tuple[Scrape, str]) -> None:
        """Add scrapes, each with its error or "", and drop those that are too old."""
        if self.journal is not None:
            self.journal.append(*attempts)
        with self._lock:
            for scrape, error in attempts:
                self._scrapes.append(scrape)
                self._errors[scrape.target] = cause(error) or doubt(scrape.text)
            newest = self._scrapes[-1].t_unix_seconds
            while self._scrapes[0].t_unix_seconds < newest - self.seconds:
                self._scrapes.popleft()

    @property
    def silent(self) -> dict[str, str]:
        """By instance, why each server whose last scrape failed does not answer."""
        with self._lock:
            return {instance: why for instance, why in self._errors.items() if why}

    @property
    def held_seconds(self) -> float:
        """The time span of the scrapes in memory; 0 if there are none."""
        with self._lock:
            ends = self._scrapes and (self._scrapes[0], self._scrapes[-1])
        return ends[1].t_unix_seconds - ends[0].t_unix_seconds if ends else 0.0

    @property
    def is_hopeless(self) -> bool:
        """Whether every target was tried and every last scrape failed."""
        return len(self.silent) == self.targets

    @contextmanager
    def analysis(self, assumptions: Assumptions) -> Iterator[Analysis | None]:
        """The analysis of these scrapes, valid inside the `with`; None without telemetry.

        Also None until there are two scrapes, since a rate needs two.
        """
        with self._lock:
            scrapes = list(self._scrapes)
        reader = ScrapeReader()
        for scrape in scrapes:
            reader.add(scrape)
        times = {scrape.t_unix_seconds for scrape in scrapes if not doubt(scrape.text)}
        if len(times) < 2:
            yield None
            return
        with _analyzed(reader.rows().whole, assumptions) as found:
            yield found


class FromPrometheus(Struct):
    """The last `seconds` in a Prometheus, read again for each analysis.

    `silent`: by instance, the servers whose last scrape failed; or Prometheus itself if it fails.
    """

    server: Prometheus
    seconds: float
    silent: dict[str, str] = field(default_factory=dict)
    is_hopeless: bool = False

    @property
    def held_seconds(self) -> float:
        """The whole time span, available from the start."""
        return self.seconds

    @contextmanager
    def analysis(self, assumptions: Assumptions) -> Iterator[Analysis | None]:
        """The analysis of that time span, valid inside the `with`; None without telemetry."""
        end = datetime.now(UTC)
        time_range = TimeRange(end - timedelta(seconds=self.seconds), end)
        try:
            with _analyzed(partial(read_prometheus, self.server, time_range), assumptions) as found:
                self.is_hopeless = found is None
                why = f"no vLLM series in the last {self.seconds:g} s"
                self.silent = {self.server.address: why} if found is None else _unscraped(found)
                yield found
        except SourceError as error:
            self.is_hopeless, self.silent = True, {self.server.address: str(error)}
            yield None


def _unscraped(found: Analysis) -> dict[str, str]:
    """The targets whose last scrape failed."""
    last = found.attempts.sort("ts").group_by("instance", maintain_order=True).last()
    failed = last.filter(~last["is_good"]).get_column("instance")
    return dict.fromkeys(failed, "Prometheus cannot scrape it")


@contextmanager
def _analyzed(rows: Callable[[], Rows], assumptions: Assumptions) -> Iterator[Analysis | None]:
    """The analysis of rows, in a temporary folder; None if the rows have no telemetry."""
    with tempfile.TemporaryDirectory(prefix="vllm-capacity-") as folder:
        try:
            path = write_window(Path(folder) / "now", rows(), {"kind": "live"})
        except NoTelemetryError:
            yield None
            return
        yield Analysis.of(open_window(path), assumptions=assumptions)


def silence(found: Mapping[str, str]) -> str:
    """The servers that do not answer and why, in one line."""
    return "; ".join(f"{instance}: {why}" for instance, why in sorted(found.items()))
