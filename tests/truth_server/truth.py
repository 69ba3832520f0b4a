"""What each server holds at most with each mix: found by running it, not by looking at its law.

Capacity: the highest output rate that a constant number of clients, each asking again as soon as it
is answered, sustains for 25 minutes. `python -m tests.truth_server.truth` writes truths.json anew.
"""

from __future__ import annotations

import json
from concurrent.futures import ProcessPoolExecutor
from dataclasses import astuple, dataclass
from functools import cache
from pathlib import Path

from tests.truth_server.model import Clients, Engine
from tests.truth_server.servers import MIXES, PAIRS, SERVERS, Mix, Server

_FILE = Path(__file__).with_name("truths.json")
_WARM, _GLANCE, _MEASURED = 200.0, 200.0, 1500.0
_NEAR, _ALIKE = 0.93, 0.985


@dataclass(frozen=True)
class Level:
    """What so many clients got."""

    clients: int
    running: float
    output: float
    requests: float


@dataclass(frozen=True)
class Truth:
    """Capacity in output tokens/s and requests/s, and running requests at 95 % of it."""

    capacity: float
    running_at_95: float
    requests_per_second: float
    levels: tuple[Level, ...]

    @property
    def saturated_output(self) -> float:
        """What any overload gets; less than the capacity where throughput falls with load."""
        return self.levels[-1].output


def measured(server: Server, mix: Mix, seed: int = 101) -> Truth:
    """The truth by a sweep of clients, to one and a half times as many as there are slots.

    Quickly first, then for long where the output is near its highest.
    """
    count, levels = 1.0, []
    while count <= 1.6 * server.max_num_seqs:
        levels.append(_level(server, mix, round(count), seed, _GLANCE))
        count = max(count + 1, count * 1.3)
    most = max(level.output for level in levels)
    levels = [
        _level(server, mix, level.clients, seed, _MEASURED)
        if level.output >= _NEAR * most
        else level
        for level in levels
    ]
    best = max(level.output for level in levels)
    alike = [level for level in levels if level.output >= _ALIKE * best]
    capacity = sum(level.output for level in alike) / len(alike)
    requests = sum(level.requests for level in alike) / len(alike)
    return Truth(capacity, _running_at(levels, 0.95 * capacity), requests, tuple(levels))


def _level(server: Server, mix: Mix, clients: int, seed: int, measured_seconds: float) -> Level:
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
        "levels": [[round(value, 3) for value in astuple(level)] for level in truth.levels],
    }
    print(*pair, line["capacity"], line["running_at_95"], flush=True)
    return json.dumps(line)


if __name__ == "__main__":
    main()
