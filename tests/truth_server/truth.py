"""The capacity of each server with each mix, found by running it.

Capacity: the highest output rate that a constant number of clients, each asking again as soon as it
is answered, sustains for 25 minutes. Within latency targets: the highest rate of Poisson arrivals
whose p95 meet them, and that of a constant number of clients, which is calmer.
`python -m tests.truth_server.truth` writes truths.json anew.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import astuple, dataclass
from functools import cache
from pathlib import Path

import numpy as np

from tests.truth_server import loads
from tests.truth_server.model import HISTOGRAMS, Arrivals, Clients, Engine
from tests.truth_server.servers import MIXES, PAIRS, SERVERS, Mix, Server

_FILE = Path(__file__).with_name("truths.json")
_WARM, _GLANCE, _MEASURED = 200.0, 200.0, 1500.0
_NEAR, _ALIKE = 0.93, 0.985
_SHARES, _OPEN = (0.1, 0.2, 0.3, 0.45, 0.6, 0.7, 0.8, 0.9, 1.0), 900.0
_MIN_WARM, _CLOSED = 30.0, 120.0
_FINE = tuple(0.001 * 1.02**k for k in range(740))  # bounds 2 % apart, to 2,300 s
_LATENCIES = ("time_to_first_token_seconds", "inter_token_latency_seconds")


@dataclass(frozen=True)
class Level:
    """What so many clients got."""

    clients: int
    running: float
    output: float
    requests: float


@dataclass(frozen=True)
class LatencyLevel:
    """What a load at about a share of the capacity got: output tokens/s, p95 in seconds."""

    share: float
    output: float
    ttft_p95: float
    itl_p95: float


@dataclass(frozen=True)
class Truth:
    """Capacity in output tokens/s and requests/s, and running requests at 95 % of it."""

    capacity: float
    running_at_95: float
    requests_per_second: float
    levels: tuple[Level, ...]
    open_levels: tuple[LatencyLevel, ...] = ()
    closed_levels: tuple[LatencyLevel, ...] = ()

    @property
    def saturated_output(self) -> float:
        """What any overload gets; less than the capacity where throughput falls with load."""
        return self.levels[-1].output

    def within(
        self,
        ttft_seconds: float | None = None,
        itl_seconds: float | None = None,
        *,
        is_closed: bool = False,
    ) -> float:
        """Output tokens/s at which a p95 first misses its target; the capacity where none does.

        Straight lines between levels, over the logarithm of the p95; below the lightest level, 0.
        Of Poisson arrivals, or of a constant number of clients (`is_closed`).
        """
        levels = self.closed_levels if is_closed else self.open_levels
        found = [self.capacity]
        for target, name in ((ttft_seconds, "ttft_p95"), (itl_seconds, "itl_p95")):
            if target is not None:
                found.append(self._first_miss(levels, target, name))
        return min(found)

    def _first_miss(self, levels: Sequence[LatencyLevel], target: float, name: str) -> float:
        before: tuple[float, float] | None = None
        for level in levels:
            p95 = getattr(level, name)
            if p95 > target:
                if before is None:
                    return 0.0
                share = math.log(target / before[1]) / math.log(p95 / before[1])
                return before[0] + share * (level.output - before[0])
            before = level.output, p95
        return self.capacity


def measured(server: Server, mix: Mix, seed: int = 101) -> Truth:
    """The truth by a sweep of clients, to one and a half times as many as there are slots.

    Quickly first, then for long where the output is near its highest, and for the most clients.
    """
    count, levels = 1.0, []
    while count <= 1.6 * server.max_num_seqs:
        levels.append(level_of(server, mix, round(count), seed, _GLANCE))
        count = max(count + 1, count * 1.3)
    most = max(level.output for level in levels)
    levels = [
        level_of(server, mix, level.clients, seed, _MEASURED)
        if level.output >= _NEAR * most or level is levels[-1]
        else level
        for level in levels
    ]
    best = max(level.output for level in levels)
    alike = [level for level in levels if level.output >= _ALIKE * best]
    capacity = sum(level.output for level in alike) / len(alike)
    requests = sum(level.requests for level in alike) / len(alike)
    return Truth(
        capacity,
        _running_at(levels, 0.95 * capacity),
        requests,
        tuple(levels),
        tuple(_open_level(server, mix, share, requests, seed) for share in _SHARES),
        tuple(_closed_level(server, mix, level, capacity, seed) for level in levels[::2]),
    )


def _open_level(server: Server, mix: Mix, share: float, full: float, seed: int) -> LatencyLevel:
    rng = np.random.default_rng((seed, round(100 * share)))
    arrivals = loads.poisson(rng, share * full, 0.0, _WARM + _OPEN)
    return _latencies(server, mix, arrivals, (_WARM, _OPEN), share, seed)


def _closed_level(
    server: Server, mix: Mix, level: Level, capacity: float, seed: int
) -> LatencyLevel:
    lifetime = level.running / level.requests
    spans = (min(_WARM, max(_MIN_WARM, 3 * lifetime)), _CLOSED)
    load = Clients(((0.0, level.clients),), stagger_seconds=5.0)
    return _latencies(server, mix, load, spans, level.output / capacity, seed)


def _latencies(
    server: Server,
    mix: Mix,
    load: Arrivals | Clients,
    spans: tuple[float, float],
    share: float,
    seed: int,
) -> LatencyLevel:
    """What a load got after a warm-up; `spans` are the seconds of both."""
    engine = Engine(server, mix, [load], seed, bounds=dict.fromkeys(HISTOGRAMS, _FINE))
    before, after = engine.run([spans[0], sum(spans)])
    ttft, itl = (
        _p95(before.histograms[i][0], after.histograms[i][0])
        for i in map(HISTOGRAMS.index, _LATENCIES)
    )
    output = (after.generation_tokens - before.generation_tokens) / spans[1]
    return LatencyLevel(share, output, ttft, itl)


def _p95(before: Sequence[int], after: Sequence[int]) -> float:
    counts = np.cumsum(np.subtract(after, before))
    return _FINE[min(int(np.searchsorted(counts, 0.95 * counts[-1])), len(_FINE) - 1)]


def level_of(
    server: Server, mix: Mix, clients: int, seed: int = 101, measured_seconds: float = _MEASURED
) -> Level:
    """What so many clients get, after a warm-up."""
    load = Clients(((0.0, clients),), stagger_seconds=5.0)
    engine = Engine(server, mix, [load], seed)
    next(iter(engine.run([_WARM])))
    before = (engine.running_seconds, engine.generation_tokens, engine.finished, engine.now)
    next(iter(engine.run([_WARM + measured_seconds])))
    seconds = engine.now - before[3]
    return Level(
        clients,
        (engine.running_seconds - before[0]) / seconds,
        (engine.generation_tokens - before[1]) / seconds,
        (engine.finished - before[2]) / seconds,
    )


def _running_at(levels: list[Level], output: float) -> float:
    """Running requests where the output is first reached, on straight lines between levels."""
    below = None
    for level in levels:
        if level.output >= output:
            if below is None:
                return level.running
            share = (output - below.output) / (level.output - below.output)
            return below.running + share * (level.running - below.running)
        below = level
    raise ValueError("no level reaches the output")


@cache
def truths() -> dict[tuple[str, str], Truth]:
    """The kept truths of all pairs, by names of server and mix."""
    kept = json.loads(_FILE.read_text())
    return {
        (one["server"], one["mix"]): Truth(
            one["capacity"],
            one["running_at_95"],
            one["requests_per_second"],
            tuple(Level(*level) for level in one["levels"]),
            tuple(LatencyLevel(*level) for level in one["open_levels"]),
            tuple(LatencyLevel(*level) for level in one["closed_levels"]),
        )
        for one in kept
    }


def main() -> None:
    """Measure all pairs and keep them."""
    with ProcessPoolExecutor(2) as pool:
        lines = ",\n".join(pool.map(_kept, PAIRS))
    _FILE.write_text(f"[\n{lines}\n]\n")


def _kept(pair: tuple[str, str]) -> str:
    """A line of truths.json."""
    truth = measured(SERVERS[pair[0]], MIXES[pair[1]])
    line = {
        "server": pair[0],
        "mix": pair[1],
        "capacity": round(truth.capacity, 2),
        "running_at_95": round(truth.running_at_95, 2),
        "requests_per_second": round(truth.requests_per_second, 4),
        "levels": _rounded(truth.levels),
        "open_levels": _rounded(truth.open_levels),
        "closed_levels": _rounded(truth.closed_levels),
    }
    print(*pair, line["capacity"], line["running_at_95"], flush=True)
    return json.dumps(line)


def _rounded(levels: Sequence[Level | LatencyLevel]) -> list[list[float]]:
    return [[round(value, 4) for value in astuple(level)] for level in levels]


if __name__ == "__main__":
    main()
