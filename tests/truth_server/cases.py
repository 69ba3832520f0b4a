"""Windows with a known truth, of every kind of load: made by number, the same each time.

Shares are of the requests/s that the server answers when saturated. A case is small until it is
written: `Case.write` runs the servers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.truth_server import loads
from tests.truth_server.model import ITL, TTFT, Arrivals, Clients, Slow
from tests.truth_server.servers import MIXES, PAIRS, SERVERS
from tests.truth_server.truth import Truth, truths
from tests.truth_server.windows import Life, Scraping, Served, write

MINUTE, HOUR, DAY = 60.0, 3600.0, 86_400.0
LEAD = -900.0  # servers run before the window begins
_MAX_REQUESTS = 60_000  # per window of days
_INTERVALS = (1.0, 2.0, 5.0, 5.0, 10.0, 15.0, 15.0, 15.0, 30.0, 60.0)
Load = tuple[Arrivals | Clients, ...]


@dataclass(frozen=True)
class Targets:
    """Latency targets on p95, seconds; None: none of that kind."""

    ttft_seconds: float | None
    itl_seconds: float | None


@dataclass(frozen=True)
class Case:
    """One window to come, and its truth: `capacity` is of one engine, output tokens/s."""

    name: str
    kind: str
    shape: str
    server: str
    mix: str
    seconds: float
    scraping: Scraping
    lives: tuple[Life, ...]
    truth: Truth
    targets: Targets
    engines: float = 1.0  # on average over the window

    @property
    def fleet_capacity(self) -> float:
        """Output tokens/s of all engines, weighted by how long each was there."""
        return self.truth.capacity * self.engines

    def fleet_within(self, *, is_closed: bool) -> float:
        """Output tokens/s of all engines at which the first target is missed.

        By Poisson arrivals, or by a constant number of clients, which is calmer.
        """
        ttft, itl = self.targets.ttft_seconds, self.targets.itl_seconds
        return self.truth.within(ttft, itl, is_closed=is_closed) * self.engines

    def write(self, path: Path) -> Served:
        return write(path, self.lives, seconds=self.seconds, scraping=self.scraping)


@dataclass(frozen=True)
class _Draft:
    """Inputs of a shape: the server, its capacity, and the random numbers."""

    server: str
    mix: str
    truth: Truth
    targets: Targets
    rng: np.random.Generator
    seed: int

    @property
    def full(self) -> float:
        """Requests per second at capacity."""
        return self.truth.requests_per_second

    @property
    def answer_seconds(self) -> float:
        """How long a request takes, by Little's law, at half the running requests of capacity."""
        level = min(self.truth.levels, key=lambda one: abs(one.running - self.knee / 2))
        return level.running / level.requests

    @property
    def knee(self) -> float:
        return self.truth.running_at_95

    def within_reason(self, seconds: float, mean_share: float) -> float:
        """So long, or shorter where that would be too many requests to simulate."""
        return min(seconds, _MAX_REQUESTS / (mean_share * self.full))

    def pick(self, *values: float) -> float:
        return float(self.rng.choice(values))

    def between(self, low: float, high: float) -> float:
        return float(self.rng.uniform(low, high))

    def poisson(self, share: float, seconds: float) -> Load:
        return (loads.poisson(self.rng, share * self.full, LEAD, seconds),)

    def varying(self, rate: loads.Rate, most: float, seconds: float, start: float = LEAD) -> Load:
        """`rate` in shares of the full rate."""
        scaled = lambda t: self.full * rate(t)  # noqa: E731
        return (loads.varying(self.rng, scaled, self.full * most, start, seconds),)


@dataclass(frozen=True)
class _Shaped:
    shape: str
    seconds: float
    load: Load
    slow: tuple[Slow, ...] = ()


def _constant(draft: _Draft) -> _Shaped:
    share = draft.pick(0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45)
    seconds = draft.pick(0.5, 1.0, 1.5, 2.0) * HOUR
    return _Shaped(f"poisson {share:.0%}", seconds, draft.poisson(share, seconds))


def _light(draft: _Draft) -> _Shaped:
    """Days at next to nothing."""
    share = draft.pick(0.003, 0.01, 0.03, 0.05)
    seconds = draft.within_reason(draft.pick(0.25, 0.5, 1.0, 2.5) * DAY, share)
    return _Shaped(f"poisson {share:.1%}", seconds, draft.poisson(share, seconds))


def _heavy(draft: _Draft) -> _Shaped:
    share = draft.pick(0.6, 0.7, 0.8, 0.9, 0.95)
    seconds = draft.pick(0.5, 1.0, 2.0) * HOUR
    return _Shaped(f"poisson {share:.0%}", seconds, draft.poisson(share, seconds))


def _bursty(draft: _Draft) -> _Shaped:
    share, seconds = draft.pick(0.1, 0.2, 0.3, 0.45), draft.pick(0.5, 1.0, 2.0) * HOUR
    if draft.rng.random() < 0.5:
        cv = draft.pick(2.0, 3.0, 4.0)
        load = loads.gamma(draft.rng, share * draft.full, LEAD, seconds, cv)
        return _Shaped(f"gamma {share:.0%} cv {cv:g}", seconds, (load,))
    rates = (0.4 * share * draft.full, 2.2 * share * draft.full)
    load = loads.mmpp(draft.rng, rates, (120.0, 60.0), LEAD, seconds)
    return _Shaped(f"mmpp {share:.0%}", seconds, (load,))


def _users(draft: _Draft) -> _Shaped:
    """A constant number of clients, thinking or not, well below the knee."""
    clients = max(1, round(draft.pick(0.05, 0.1, 0.2, 0.3) * draft.knee))
    think = draft.pick(0.0, 1.0, 4.0) * draft.answer_seconds
    seconds = draft.pick(0.5, 1.0, 2.0) * HOUR
    load = Clients(((LEAD, clients),), think, 10.0)
    return _Shaped(f"{clients} clients, thinking {think:.0f} s", seconds, (load,))


def _varied(draft: _Draft) -> _Shaped:
    """Ramps, waves and days, from light to near or past the knee."""
    low, high = draft.between(0.02, 0.15), draft.pick(0.5, 0.7, 0.9, 1.1)
    form = draft.rng.choice(["ramp", "triangle", "diurnal", "clients"])
    if form == "diurnal":
        days = draft.pick(1.0, 2.0)
        seconds = draft.within_reason(days * DAY, 0.4 * high)
        load = draft.varying(loads.diurnal(low, high, seconds / days), high, seconds)
    elif form == "clients":
        levels = _levels(max(2.0, high * draft.knee))
        step = max(120.0, 4 * draft.answer_seconds)
        seconds = step * len(levels)
        load = (loads.client_steps(levels, step, 0.0),)
    else:
        seconds = draft.pick(0.5, 1.0, 2.0) * HOUR
        rate = (loads.ramp if form == "ramp" else loads.triangle)(low, high, 0.0, seconds)
        load = draft.varying(rate, high, seconds)
    return _Shaped(f"{form} to {high:.0%}", seconds, load)


def _waves(draft: _Draft) -> _Shaped:
    """Loads that vary as `_varied` ones do, far below what the server can."""
    low, high = draft.between(0.01, 0.05), draft.pick(0.08, 0.12, 0.2, 0.3, 0.4)
    form = draft.rng.choice(["ramp", "triangle", "diurnal", "diurnal", "clients"])
    if form == "clients":
        levels = _levels(max(3.0, high * draft.knee))
        step = max(120.0, 4 * draft.answer_seconds)
        load: Load = (loads.client_steps(levels, step, 0.0),)
        return _Shaped(f"clients to {high:.0%}", step * len(levels), load)
    if form == "diurnal":
        days = draft.pick(1.0, 2.0, 7.0)
        seconds = draft.within_reason(days * DAY, 0.4 * high)
        rate = loads.diurnal(low, high, seconds / days)
    else:
        seconds = draft.pick(0.5, 1.0, 2.0) * HOUR
        rate = (loads.ramp if form == "ramp" else loads.triangle)(low, high, 0.0, seconds)
    return _Shaped(f"{form} to {high:.0%}", seconds, draft.varying(rate, high, seconds))


def _levels(most: float) -> list[int]:
    found, level = [1], 1.0
    while level < most:
        level *= 1.6
        found.append(max(found[-1] + 1, round(min(level, most))))
    return found


def _saturated(draft: _Draft) -> _Shaped:
    """Overload for most of the window, with or without a light start."""
    seconds = draft.pick(15.0, 30.0, 60.0) * MINUTE
    form = draft.rng.choice(["overload", "clients", "light, then overload", "sweep past the knee"])
    if form == "overload":
        return _Shaped("overload 130%", seconds, draft.poisson(1.3, seconds))
    if form == "clients":
        clients = round(draft.pick(1.1, 1.5) * SERVERS[draft.server].max_num_seqs)
        load = Clients(((LEAD, clients),), 0.0, 30.0)
        return _Shaped(f"{clients} clients", seconds, (load,))
    if form == "light, then overload":
        at = seconds / 3
        rate = loads.spells(0.15, 1.4, [(at, seconds)])
        return _Shaped(form, seconds, draft.varying(rate, 1.4, seconds))
    levels = _levels(1.3 * SERVERS[draft.server].max_num_seqs)
    step = max(150.0, 4 * draft.answer_seconds)
    return _Shaped(form, step * len(levels), (loads.client_steps(levels, step, 0.0),))


def _spells(draft: _Draft) -> _Shaped:
    """Light load with spells of one to five minutes in which the server is the limit."""
    seconds = draft.pick(1.0, 2.0, 4.0) * HOUR
    count = int(draft.pick(1, 2, 4, 6))
    base = draft.between(0.05, 0.35)
    starts = np.sort(draft.rng.uniform(0.05, 0.85, count)) * seconds
    form = draft.rng.choice(["overload", "at once", "clients"])
    if form == "at once":
        counts = [round(draft.between(60, 240) * draft.full) for _ in starts]
        load = (*draft.poisson(base, seconds), loads.at_once(list(starts), counts))
        return _Shaped(f"{count} × all at once", seconds, load)
    lengths = [draft.between(60, 300) for _ in starts]
    if form == "clients":
        clients = round(1.3 * SERVERS[draft.server].max_num_seqs)
        schedule = [
            change
            for at, length in zip(starts, lengths, strict=True)
            for change in ((float(at), clients), (float(at + length), 0))
        ]
        schedule = sorted(schedule)
        load = (*draft.poisson(base, seconds), Clients(tuple(schedule), 0.0, 5.0))
        return _Shaped(f"{count} × {clients} clients", seconds, load)
    high = draft.pick(1.4, 2.0, 3.0)
    rate = loads.spells(base, high, list(zip(starts, starts + lengths, strict=True)))
    return _Shaped(f"{count} × overload {high:.0%}", seconds, draft.varying(rate, high, seconds))


def _batch(draft: _Draft) -> _Shaped:
    """A job every night beside a light day; the nights are nearer where requests are many."""
    high = draft.pick(0.7, 1.3)
    seconds = draft.within_reason(2 * DAY, 0.1 + 0.08 * high)
    night = seconds / 48  # one hour: a day is half the window
    spans = [(2 * night, draft.pick(3.0, 4.0) * night), (26 * night, 28 * night)]
    day, job = loads.diurnal(0.01, 0.2, seconds / 2), loads.spells(0.0, high, spans)
    rate = lambda t: np.maximum(day(t), job(t))  # noqa: E731
    return _Shaped(f"nightly job {high:.0%}", seconds, draft.varying(rate, high, seconds))


def _neighbor(draft: _Draft) -> _Shaped:
    """A load of any kind; for a while every step takes longer."""
    made = [_constant, _varied, _saturated, _spells][draft.rng.integers(4)](draft)
    at, length = draft.between(0.1, 0.7), draft.between(0.1, 0.3)
    if draft.rng.random() < 0.4:
        at = 1.0 - length  # lasts to the end
    factor = draft.pick(1.5, 2.0, 3.0)
    slow = Slow(at * made.seconds, (at + length) * made.seconds, factor)
    return _Shaped(f"{made.shape}; slowed × {factor:g}", made.seconds, made.load, (slow,))


_SHAPES: dict[str, Callable[[_Draft], _Shaped]] = {
    "constant": _constant,
    "light": _light,
    "heavy": _heavy,
    "bursty": _bursty,
    "users": _users,
    "varied": _varied,
    "saturated": _saturated,
    "spells": _spells,
    "batch": _batch,
    "neighbor": _neighbor,
}
KINDS = (*_SHAPES, "fleets", "waves")
"""The dice of a case depend on its kind's place here: new ones go to the end."""
_SHAPES["waves"] = _waves


def cases(kind: str, count: int, seed: int = 0) -> list[Case]:
    """So many cases of a kind; the first n of them are the same for every count."""
    return [case(kind, number, seed) for number in range(count)]


def case(kind: str, number: int, seed: int = 0) -> Case:
    """The case of that number: server and mix by turns, everything else by dice."""
    rng = np.random.default_rng((seed, KINDS.index(kind), number))
    order = np.random.default_rng((seed, KINDS.index(kind), 10**6 + number // len(PAIRS)))
    server, mix = PAIRS[int(order.permutation(len(PAIRS))[number % len(PAIRS)])]
    own = int(rng.integers(2**31))
    truth = truths()[server, mix]
    targets = targets_of(truth, np.random.default_rng((seed, own)))
    draft = _Draft(server, mix, truth, targets, rng, own)
    if kind == "fleets":
        return _fleet(f"{kind}-{number:03d}", draft)
    made = _SHAPES[kind](draft)
    life = Life("gpu-0:8000", SERVERS[server], MIXES[mix], made.load, own, LEAD, None, made.slow)
    return Case(
        f"{kind}-{number:03d}",
        kind,
        made.shape,
        server,
        mix,
        made.seconds,
        _scraping(draft, made.seconds),
        (life,),
        draft.truth,
        draft.targets,
    )


def targets_of(truth: Truth, rng: np.random.Generator) -> Targets:
    """A target of either latency, on an edge of vLLM's buckets, that a load clearly begins to miss.

    Clearly: a target 8 % stricter or looser is missed at about the same load. The loosest edge,
    which nothing misses, where there is no such one.
    """
    made, edges = [(_ttft_target, TTFT), (_itl_target, ITL)][rng.integers(2)]
    clear = [edge for edge in edges if _is_clear(truth, made, edge)]
    return made(float(rng.choice(clear)) if clear else edges[-1])


def _ttft_target(seconds: float) -> Targets:
    return Targets(seconds, None)


def _itl_target(seconds: float) -> Targets:
    return Targets(None, seconds)


def _is_clear(truth: Truth, made: Callable[[float], Targets], edge: float) -> bool:
    strict, loose = (
        truth.within(targets.ttft_seconds, targets.itl_seconds)
        for targets in (made(edge / 1.08), made(edge * 1.08))
    )
    return strict > 0 and loose <= min(1.3 * strict, 0.97 * truth.capacity)


def _scraping(draft: _Draft, seconds: float) -> Scraping:
    interval = draft.pick(*_INTERVALS)
    if seconds >= 5 * HOUR:
        interval = max(interval, 15.0)
    missed = draft.pick(0.0, 0.0, 0.02, 0.1)
    return Scraping(interval, draft.pick(0.0, 0.02, 0.1), missed, draft.seed)


def _fleet(name: str, draft: _Draft) -> Case:
    """Two or three engines, of which some come, go, or start again."""
    form = str(draft.rng.choice(["steady", "replaced", "autoscaled", "restarted"]))
    kind = [_constant, _varied, _saturated][draft.rng.integers(3)]
    shapes = [kind(draft)]
    seconds = min(shapes[0].seconds, 4 * HOUR)
    base = int(draft.rng.integers(1, 3))
    spans: list[tuple[str, float, float | None]] = [(f"pod-{i}", LEAD, None) for i in range(base)]
    middle = draft.between(0.3, 0.7) * seconds
    if form == "steady":
        spans.append((f"pod-{base}", LEAD, None))
    elif form == "replaced":
        spans[-1] = (spans[-1][0], LEAD, middle)
        spans.append((f"pod-{base}", middle + 20.0, None))
    elif form == "autoscaled":
        spans.append((f"pod-{base}", middle, middle + draft.between(0.15, 0.3) * seconds))
    else:
        spans[-1] = (spans[-1][0], LEAD, middle)
        spans.append((spans[-1][0], middle + draft.pick(20.0, 60.0, 150.0), None))
    lives = []
    for number, (pod, start, end) in enumerate(spans):
        made = shapes[0] if number == 0 else kind(draft)
        load = tuple(_from(one, start) for one in made.load)
        lives.append(
            Life(
                f"{pod}:8000",
                SERVERS[draft.server],
                MIXES[draft.mix],
                load,
                draft.seed + number,
                start,
                end,
            )
        )
    alive = sum((seconds if one.end is None else one.end) - max(0.0, one.start) for one in lives)
    return Case(
        name, "fleets", f"{form}: {shapes[0].shape}", draft.server, draft.mix, seconds,
        _scraping(draft, seconds), tuple(lives), draft.truth, draft.targets, alive / seconds,
    )  # fmt: skip


def _from(load: Arrivals | Clients, start: float) -> Arrivals | Clients:
    """The load from `start` on."""
    if isinstance(load, Arrivals):
        return Arrivals(load.times[load.times >= start])
    held = [clients for at, clients in load.schedule if at < start]
    later = tuple(change for change in load.schedule if change[0] >= start)
    first = ((start, held[-1]),) if held else ()
    return Clients((*first, *later), load.think_seconds, load.stagger_seconds)
