"""Scrapes of made-up servers as a window folder: vLLM 0.32's names, labels and bounds.

A `Life` is one process; an instance has one or several, one after the other. Times are seconds from
`EPOCH`; a life that begins before the window has counted before it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from tests.truth_server.model import (
    BOUNDS,
    HISTOGRAMS,
    Arrivals,
    Clients,
    Engine,
    Slow,
    Snapshot,
)
from tests.truth_server.servers import Mix, Server
from vllm_capacity.telemetry.rows import RowBuffer, SeriesKey, microseconds
from vllm_capacity.telemetry.store import write_window

EPOCH = datetime(2026, 11, 24, 0, 0, tzinfo=UTC)
_MINUTE = 55.0


@dataclass(frozen=True)
class Life:
    """One process of `instance`, from `start` to `end` (None: it outlives the window)."""

    instance: str
    server: Server
    mix: Mix
    load: tuple[Arrivals | Clients, ...]
    seed: int
    start: float
    end: float | None = None
    slow: tuple[Slow, ...] = ()


@dataclass(frozen=True)
class Scraping:
    """Every `interval` seconds, each late or early by up to `jitter` of it, some missed."""

    interval: float = 15.0
    jitter: float = 0.02
    missed: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class Served:
    """What one window's servers did: the truth that a count can be held against."""

    seconds: float
    output_tokens: int
    requests: int
    best_minute: float  # the most output tokens/s of one instance over about a minute of scrapes
    best_minute_fleet: float
    running_mean: float
    lives_seconds: float  # summed over lives, within the window
    counted_tokens: int | None = None  # from each instance's first good scrape to its last
    counted_requests: int | None = None


def write(
    path: Path, lives: Sequence[Life], *, seconds: float, scraping: Scraping = Scraping()
) -> Served:
    """Run the lives, scrape them over [0, seconds], write the window, and say what was served."""
    buffer = RowBuffer()
    known = []
    for number, instance in enumerate(dict.fromkeys(life.instance for life in lives)):
        own = [life for life in lives if life.instance == instance]
        known.append(_scrape_instance(buffer, own, seconds, scraping, number))
    write_window(path, buffer.rows(), {"simulated": True, "about": "tests/truth_server"})
    return _served(known, lives, seconds)


@dataclass(frozen=True)
class _Seen:
    """The true counts of one instance at its scrapes, restarts added up, and at its ends."""

    times: np.ndarray
    tokens: np.ndarray
    output_tokens: int
    requests: int
    running_seconds: float
    counted: tuple[int, int]


def _scrape_instance(
    buffer: RowBuffer, lives: Sequence[Life], seconds: float, scraping: Scraping, number: int
) -> _Seen:
    rng = np.random.default_rng((scraping.seed, number, 5))
    until = lives[-1].end if lives[-1].end is not None else seconds
    begin = max(0.0, lives[0].start)
    grid = begin + rng.random() * scraping.interval * 0.5
    times = np.arange(grid, min(until, seconds), scraping.interval)
    times = times + rng.uniform(-1, 1, len(times)) * scraping.jitter * scraping.interval
    times = np.maximum(times, begin)
    missed = rng.random(len(times)) < scraping.missed
    columns = Columns(buffer, lives[0].instance, lives[0].server)
    is_up = np.zeros(len(times), bool)
    seen_at, seen_tokens, good = [], [], []
    before, ended, output, requests, running = 0, 0, 0, 0, 0.0
    for life in lives:
        end = seconds if life.end is None else min(life.end, seconds)
        inside = (times >= life.start) & (times < end)
        is_up |= inside
        engine = Engine(life.server, life.mix, life.load, life.seed, life.start, life.slow)
        first = max(life.start, 0.0)
        engine_start = next(iter(engine.run([first])))
        base = (engine_start.generation_tokens, engine.finished, engine.running_seconds)
        for at, lost, snapshot in zip(
            times[inside], missed[inside], engine.run(times[inside]), strict=True
        ):
            seen_at.append(float(at))
            seen_tokens.append(before + snapshot.generation_tokens)
            if not lost:
                done = snapshot.stopped + snapshot.cut
                good.append((before + snapshot.generation_tokens, ended + done))
                columns.add(us(float(at)), snapshot, life.start)
        last = next(iter(engine.run([end])))
        before += last.generation_tokens
        ended += engine.finished
        output += last.generation_tokens - base[0]
        requests += engine.finished - base[1]
        running += engine.running_seconds - base[2]
    for at, up, lost in zip(times, is_up, missed, strict=True):
        is_good = bool(up) and not lost
        buffer.scrape(
            lives[0].instance, us(float(at)), is_up=is_good, seconds=0.006 + 0.004 * rng.random()
        )
    first_count = good[0] if good and lives[0].start < 0 else (0, 0)
    last_count = (before, ended) if until < seconds or not good else good[-1]
    counted = (last_count[0] - first_count[0], last_count[1] - first_count[1])
    return _Seen(
        np.array(seen_at), np.array(seen_tokens, float), output, requests, running, counted
    )


def _served(known: Sequence[_Seen], lives: Sequence[Life], seconds: float) -> Served:
    alive = sum(
        (seconds if life.end is None else min(life.end, seconds)) - max(life.start, 0.0)
        for life in lives
    )
    grid = np.arange(0.0, seconds, 15.0)
    together = np.zeros(len(grid))
    for seen in known:
        if len(seen.times):
            together += np.interp(grid, seen.times, seen.tokens)
    return Served(
        seconds,
        sum(seen.output_tokens for seen in known),
        sum(seen.requests for seen in known),
        max((_best_minute(seen.times, seen.tokens) for seen in known), default=0.0),
        _best_minute(grid, together),
        sum(seen.running_seconds for seen in known) / seconds,
        alive,
        sum(seen.counted[0] for seen in known),
        sum(seen.counted[1] for seen in known),
    )


def _best_minute(times: np.ndarray, tokens: np.ndarray) -> float:
    """The highest rate between two scrapes about a minute apart or, if rarer, neighbours."""
    if len(times) < 2:
        return 0.0
    later = np.searchsorted(times, times + _MINUTE)
    whole = later < len(times)
    if not whole.any():
        return float((tokens[-1] - tokens[0]) / (times[-1] - times[0]))
    start, end = np.flatnonzero(whole), later[whole]
    return float(((tokens[end] - tokens[start]) / (times[end] - times[start])).max())


class Columns:
    """The series of one instance, registered once. `labels` are the target's, on every series."""

    def __init__(
        self,
        buffer: RowBuffer,
        instance: str,
        server: Server,
        model: str = "made-up",
        labels: Mapping[str, str] | None = None,
    ) -> None:
        self._buffer = buffer
        self._instance = instance
        self._model = model
        self._labels = dict(labels or {})
        self._start = buffer.series(
            SeriesKey("process_start_time_seconds", "gauge", instance),
            exposed="process_start_time_seconds",
        )
        gauge, counter = "gauge", "counter"
        self._running = self._series("num_requests_running", gauge)
        self._waiting = self._series("num_requests_waiting", gauge)
        self._kv = self._series("kv_cache_usage_perc", gauge)
        self._generation = self._series("generation_tokens_total", counter)
        self._prompt = self._series("prompt_tokens_total", counter)
        self._preemptions = self._series("num_preemptions_total", counter)
        self._zero = [
            self._series("prefix_cache_queries_total", counter),
            self._series("prefix_cache_hits_total", counter),
        ]
        self._finished = {
            reason: self._series("request_success_total", counter, ("finished_reason", reason))
            for reason in ("stop", "length", "abort", "error", "repetition")
        }
        self._histograms = [self._histogram(name) for name in HISTOGRAMS]
        self._config = self._info(server)

    def add(self, ts_us: int, snapshot: Snapshot, start: float) -> None:
        sample = self._buffer.sample
        sample(self._start, ts_us, EPOCH.timestamp() + start)
        sample(self._running, ts_us, snapshot.running)
        sample(self._waiting, ts_us, snapshot.waiting)
        sample(self._kv, ts_us, snapshot.kv_ratio)
        sample(self._generation, ts_us, snapshot.generation_tokens)
        sample(self._prompt, ts_us, snapshot.prompt_tokens)
        sample(self._preemptions, ts_us, snapshot.preemptions)
        for series_id in self._zero:
            sample(series_id, ts_us, 0.0)
        ends = {"stop": snapshot.stopped, "length": snapshot.cut}
        for reason, series_id in self._finished.items():
            sample(series_id, ts_us, ends.get(reason, 0))
        sample(self._config, ts_us, 1.0)
        for series_id, (counts, total) in zip(self._histograms, snapshot.histograms, strict=True):
            self._buffer.histogram(series_id, ts_us, count=sum(counts), total=total, counts=counts)

    def _series(self, name: str, kind: str, *labels: tuple[str, str]) -> int:
        every = tuple(sorted({**self._labels, **dict(labels)}.items()))
        key = SeriesKey(f"vllm:{name}", kind, self._instance, "0", self._model, every)
        return self._buffer.series(key, exposed=f"vllm:{name}")

    def _histogram(self, name: str) -> int:
        own = tuple(sorted(self._labels.items()))
        key = SeriesKey(
            f"vllm:{name}", "histogram", self._instance, "0", self._model, own, tuple(BOUNDS[name])
        )
        return self._buffer.series(key, exposed=f"vllm:{name}")

    def _info(self, server: Server) -> int:
        labels = {
            "block_size": "16",
            "cache_dtype": "auto",
            "effective_attention_block_size": "16",
            "enable_prefix_caching": "False",
            "gpu_memory_utilization": "0.92",
            "kv_cache_max_concurrency": f"{server.kv_tokens / server.max_model_len:.2f}",
            "kv_cache_size_tokens": str(server.kv_tokens),
            "num_cpu_blocks": "None",
            "num_gpu_blocks": str(server.blocks),
            "num_gpu_blocks_override": "None",
            "sliding_window": "None",
        }
        key = SeriesKey(
            "vllm:cache_config_info",
            "info",
            self._instance,
            "0",
            None,
            tuple(sorted({**self._labels, **labels}.items())),
        )
        return self._buffer.series(key, exposed="vllm:cache_config_info")


def us(seconds: float) -> int:
    return microseconds(EPOCH) + round(seconds * 1e6)
