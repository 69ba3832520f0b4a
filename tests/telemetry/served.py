"""Servers with known truth, and what a scraper reads of them: rows for a window, and the truth.

A process serves requests in a fixed number of places, first come, first served; all it counts is
known at every moment, and so is what nobody read. Nothing here is taken from the package but the
shape of its rows.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush

import numpy as np

from vllm_capacity.telemetry.rows import RowBuffer, Rows, SeriesKey

T0 = 1_795_492_800
EDGES = (0.5, 1.0, 2.0, 5.0, 10.0)


@dataclass
class Process:
    """A server process under an address, from `start` to `end` (seconds after T0)."""

    start: float
    end: float
    arrivals: Sequence[float]
    lengths: Sequence[float]
    places: int
    begun: list[float] = field(default_factory=list)
    finished: list[float] = field(default_factory=list)
    waited: list[float] = field(default_factory=list)  # E2E seconds, in order of finishing

    def __post_init__(self) -> None:
        free: list[float] = []
        served = []
        for arrival, length in zip(self.arrivals, self.lengths, strict=True):
            begun = arrival
            if len(free) == self.places:
                begun = max(begun, heappop(free))
            heappush(free, begun + length)
            self.begun.append(begun)
            served.append((begun + length, begun + length - arrival))
        served.sort()
        self.finished = [at for at, _ in served]
        self.waited = [seconds for _, seconds in served]

    def count(self, at: float) -> int:
        """Requests that it had finished by then."""
        return bisect_right(self.finished, min(at, self.end))

    def load(self, at: float) -> tuple[int, int]:
        """Requests running and waiting."""
        begun = bisect_right(sorted(self.begun), at)
        return begun - bisect_right(self.finished, at), bisect_right(self.arrivals, at) - begun


def process(
    rng: np.random.Generator,
    start: float,
    end: float,
    rate: float,
    *,
    bursts: Sequence[tuple[float, float, float]] = (),
    places: int = 16,
    seconds: float = 2.0,
) -> Process:
    """A process with Poisson arrivals at `rate`, and more of them in bursts (from, until, rate)."""
    arrivals = [start + 1 + t for t in _poisson(rng, end - start, rate)]
    for since, until, more in bursts:
        arrivals += [since + t for t in _poisson(rng, until - since, more)]
    arrivals = sorted(a for a in arrivals if a < end)
    lengths = rng.gamma(4.0, seconds / 4.0, len(arrivals))
    return Process(start, end, arrivals, list(lengths), places)


def _poisson(rng: np.random.Generator, seconds: float, rate: float) -> list[float]:
    count = rng.poisson(max(0.0, seconds) * rate)
    return list(rng.uniform(0, max(seconds, 1e-9), count))


REQUESTS = "vllm:request_success_total"


def scraped(
    addresses: dict[str, list[Process]],
    grids: dict[str, Sequence[float]],
    *,
    tells_start: bool = True,
    jitter: np.random.Generator | None = None,
) -> Rows:
    """What scrapes at these times read: one fails where no process is there."""
    buffer = RowBuffer()
    for instance, grid in grids.items():
        for at in grid:
            alive = [p for p in addresses[instance] if p.start + 1 <= at < p.end]
            ts_us = round((T0 + at) * 1e6)
            buffer.scrape(instance, ts_us, is_up=bool(alive), seconds=0.01)
            if alive:
                _read(buffer, instance, alive[0], at, tells_start, jitter)
    return buffer.rows()


def _read(
    buffer: RowBuffer,
    instance: str,
    process: Process,
    at: float,
    tells_start: bool,
    jitter: np.random.Generator | None,
) -> None:
    ts_us = round((T0 + at) * 1e6)
    running, waiting = process.load(at)
    done = process.count(at)
    values = {
        ("vllm:num_requests_running", "gauge"): running,
        ("vllm:num_requests_waiting", "gauge"): waiting,
        ("vllm:kv_cache_usage_perc", "gauge"): 0.9 * running / process.places,
        ("vllm:generation_tokens_total", "counter"): 100 * done,
        ("vllm:prompt_tokens_total", "counter"): 200 * done,
    }
    for (metric, kind), value in values.items():
        key = SeriesKey(metric, kind, instance, "0", "m")
        buffer.sample(buffer.series(key, exposed=metric), ts_us, float(value))
    key = SeriesKey(REQUESTS, "counter", instance, "0", "m", (("finished_reason", "stop"),))
    buffer.sample(buffer.series(key, exposed=REQUESTS), ts_us, float(done))
    metric = "vllm:e2e_request_latency_seconds"
    key = SeriesKey(metric, "histogram", instance, "0", "m", bounds=EDGES)
    waited = process.waited[:done]
    counts = np.histogram(waited, [0.0, *EDGES, np.inf])[0]
    buffer.histogram(
        buffer.series(key, exposed=metric),
        ts_us,
        count=float(done),
        total=float(sum(waited)),
        counts=[float(n) for n in counts],
    )
    if tells_start:
        noise = 0.0 if jitter is None else float(jitter.normal(0, 0.2))
        key = SeriesKey("process_start_time_seconds", "gauge", instance)
        series_id = buffer.series(key, exposed="process_start_time_seconds")
        buffer.sample(series_id, ts_us, T0 + process.start + noise)
