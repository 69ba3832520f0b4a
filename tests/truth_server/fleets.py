"""Fleets behind load balancers, with known truth: made by number, the same each time.

A fleet serves one or two models. The replicas of a model share its requests (round robin, or to
whoever has the fewest); some of them are idle, slow, or replaced under another name. `serve` runs
them, and replays the same requests on fewer: what of them kept up is seen, not computed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from tests.truth_server import loads
from tests.truth_server.cases import DAY, HOUR, LEAD, MINUTE, Targets, targets_of
from tests.truth_server.model import Engine, Feed, Request, Slow, Snapshot
from tests.truth_server.servers import MIXES, PAIRS, SERVERS
from tests.truth_server.truth import Truth, truths
from tests.truth_server.windows import Columns, us
from vllm_capacity.telemetry.rows import RowBuffer
from vllm_capacity.telemetry.store import write_window

SIZES = (1, 4, 8, 16)
LENGTHS = (10 * MINUTE, 30 * MINUTE, HOUR, 3 * HOUR, 12 * HOUR, DAY, 7 * DAY)
WIDE_SIZES = (1, 8, 40, 100)
WIDE_LENGTHS = (10 * MINUTE, 30 * MINUTE, HOUR, 3 * HOUR, 12 * HOUR, DAY, 7 * DAY, 30 * DAY)
_MAX_REQUESTS = 30_000  # per fleet: takes a minute or two to simulate
_MAX_GROWING_REQUESTS = 8_000  # per model
_MAX_WIDE_REQUESTS, _MAX_SCRAPES = 20_000, 45_000  # a wide fleet takes half a minute, too
_MAX_SLOWNESS = 10.0  # in long windows, where faster servers would serve too many
_QUARTER = 900.0
_STALLED_SECONDS = 5.0
_DRAINED_SECONDS = 60.0
NO_TARGETS = Targets(None, None)
Balancing = Literal["round robin", "least requests"]
OnScrape = Callable[["Member", float, Snapshot], None]


@dataclass(frozen=True)
class Member:
    """One replica, from `start` to `end`; `speed` 0.5 takes twice as long for every step.

    Nobody sends requests to one that is not `is_used`.
    """

    name: str
    speed: float = 1.0
    is_used: bool = True
    start: float = LEAD
    end: float = math.inf
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Service:
    """One model: its replicas, its requests, how they are shared out, and what each can do.

    `slowness` is how many times longer all of its replicas take than `truth` says.
    """

    model: str
    server: str
    mix: str
    members: tuple[Member, ...]
    balancing: Balancing
    times: np.ndarray
    prompts: np.ndarray
    outputs: np.ndarray
    slowness: float = 1.0

    @property
    def truth(self) -> Truth:
        return truths()[self.server, self.mix]

    @property
    def capacity(self) -> tuple[float, float]:
        """Output tokens/s of a replica of speed 1: the most, and what an overload gets."""
        most, least = self.truth.capacity, min(self.truth.capacity, self.truth.saturated_output)
        return most / self.slowness, least / self.slowness

    def capacities(self, seconds: float) -> tuple[float, float]:
        """Of all replicas, weighted by how long each was there."""
        there = sum(
            member.speed * (min(member.end, seconds) - max(member.start, 0.0)) / seconds
            for member in self.members
        )
        return self.capacity[0] * there, self.capacity[1] * there

    def replica_hours(self, seconds: float) -> float:
        """The hours that all replicas lived in the window."""
        lived = (min(one.end, seconds) - max(one.start, 0.0) for one in self.members)
        return sum(lived) / 3600

    def on(self, count: int) -> Service:
        """The same requests on so many of its replicas, the slowest of those there at the end."""
        there = sorted((m for m in self.members if m.end == math.inf), key=lambda one: one.speed)
        kept = [replace(member, is_used=True, start=LEAD) for member in there[:count]]
        return replace(self, members=tuple(kept))


@dataclass(frozen=True)
class Fleet:
    """A window to come: who serves, for how long, scraped how often."""

    name: str
    services: tuple[Service, ...]
    seconds: float
    scrape_seconds: float
    shape: str
    seed: int
    targets: Targets = NO_TARGETS

    @property
    def replicas(self) -> int:
        """How many there were at a time."""
        return sum(m.end == math.inf for service in self.services for m in service.members)


@dataclass(frozen=True)
class Kept:
    """The latencies of the requests in the window, in order of arrival, and its output."""

    requests: tuple[Request, ...]
    output_tokens: int
    seconds: float

    def asked(self, seconds: float = _QUARTER) -> float:
        """The most output tokens/s that requests of one round stretch of time asked for."""
        stretches: dict[int, int] = {}
        for one in self.requests:
            place = int(one.arrival // seconds)
            stretches[place] = stretches.get(place, 0) + one.output
        length = min(seconds, self.seconds)
        return max(stretches.values(), default=0) / length

    @property
    def longest_wait_seconds(self) -> float:
        """The mean time in the queue in the quarter of an hour where it was longest."""
        waits: dict[int, list[float]] = {}
        for one in self.requests:
            began = one.scheduled if one.scheduled >= 0 else self.seconds
            waits.setdefault(int(one.arrival // _QUARTER), []).append(began - one.arrival)
        return max((sum(each) / len(each) for each in waits.values()), default=0.0)

    @property
    def fell_behind(self) -> bool:
        """Whether requests of any quarter of an hour waited long."""
        return self.longest_wait_seconds > _STALLED_SECONDS

    def attained(self, targets: Targets) -> bool:
        """Whether the p95 over the window is within the target."""
        own = self.requests
        if targets.ttft_seconds is not None:
            found = [one.first - one.arrival if one.first >= 0 else math.inf for one in own]
            return _p95(found) <= targets.ttft_seconds
        if targets.itl_seconds is not None:
            return _p95(_gaps(own)) <= targets.itl_seconds
        return True


def _gaps(requests: Sequence[Request]) -> list[float]:
    """The mean time between tokens, once a token."""
    means = [(one.last - one.first) / (one.generated - 1) for one in requests if one.generated > 1]
    counts = [one.generated - 1 for one in requests if one.generated > 1]
    return np.repeat(means, counts).tolist()


def _p95(values: Sequence[float]) -> float:
    return float(np.quantile(values, 0.95, method="higher")) if len(values) else 0.0


class _Running:
    """One replica at work, as seen by its scrapes."""

    def __init__(
        self, service: Service, member: Member, seed: int, probes: Sequence[float], on: OnScrape
    ) -> None:
        self.member = member
        self.feed = Feed()
        slow = (Slow(-math.inf, math.inf, service.slowness / member.speed),)
        own = (SERVERS[service.server], MIXES[service.mix], self.feed)
        self.engine = Engine(*own, seed, member.start, slow)
        self._probes = iter(probes)
        self._next = next(self._probes, math.inf)
        self._on_scrape = on

    def takes(self, at: float) -> bool:
        """Whether the balancer sends it what comes then; one that ends is drained first."""
        return self.member.is_used and self.member.start <= at < self.member.end - _DRAINED_SECONDS

    def until(self, at: float) -> None:
        while self._next <= at:
            self.engine.advance(self._next)
            self._on_scrape(self.member, self._next, self.engine.snapshot())
            self._next = next(self._probes, math.inf)
        self.engine.advance(at)


def serve(
    service: Service,
    seconds: float,
    *,
    seed: int = 0,
    probes: Mapping[str, Sequence[float]] | None = None,
    on_scrape: OnScrape = lambda member, at, snapshot: None,
) -> Kept:
    """Run the replicas of a service over the window, its requests shared out among them.

    `on_scrape` sees each replica at its `probes`, by name.
    """
    replicas = [
        _Running(service, member, 1000 * seed + n, (probes or {}).get(member.name, ()), on_scrape)
        for n, member in enumerate(service.members)
    ]
    begun: dict[str, int] = {}
    requests, turn = [], itertools.count()
    rows = zip(
        service.times.tolist(), service.prompts.tolist(), service.outputs.tolist(), strict=True
    )
    for at, prompt, output in rows:
        for each in replicas:
            _mark(begun, each, at)
        able = [each for each in replicas if each.takes(at)]
        chosen = _chosen(able, service.balancing, next(turn), at)
        request = Request(at, prompt, output)
        requests.append(request)
        chosen.feed.send(request)
    total = 0
    for each in replicas:
        _mark(begun, each, 0.0 if each.member.start <= 0 else each.member.start, is_last=True)
        each.until(min(seconds, each.member.end))
        total += each.engine.generation_tokens - begun.get(each.member.name, 0)
    return Kept(tuple(one for one in requests if one.arrival >= 0), total, seconds)


def _mark(begun: dict[str, int], each: _Running, at: float, *, is_last: bool = False) -> None:
    """Note what a replica had generated before the window began."""
    if each.member.name not in begun and (at >= 0 or is_last):
        if each.member.start < 0:
            each.until(0.0)
        begun[each.member.name] = each.engine.generation_tokens


def _chosen(able: Sequence[_Running], balancing: Balancing, turn: int, at: float) -> _Running:
    if balancing == "round robin":
        return able[turn % len(able)]
    for each in able:
        each.until(at)
    first = turn % len(able)
    return min([*able[first:], *able[:first]], key=lambda each: each.engine.load_requests)


def write(path: Path, made: Fleet) -> dict[str, Kept]:
    """The window of a fleet, and how each model's requests fared, by model."""
    buffer, found = RowBuffer(), {}
    for number, service in enumerate(made.services):
        rng = np.random.default_rng((made.seed, number, 31))
        probes = {one.name: _probes(made, one, rng) for one in service.members}
        columns = {
            one.name: Columns(buffer, one.name, SERVERS[service.server], service.model, one.labels)
            for one in service.members
        }

        def scraped(member: Member, at: float, snapshot: Snapshot, columns=columns) -> None:
            columns[member.name].add(us(at), snapshot, member.start)
            buffer.scrape(member.name, us(at), is_up=True, seconds=0.007)

        found[service.model] = serve(
            service, made.seconds, seed=made.seed + number, probes=probes, on_scrape=scraped
        )
    write_window(path, buffer.rows(), {"simulated": True, "about": "tests/truth_server"})
    return found


def _probes(made: Fleet, member: Member, rng: np.random.Generator) -> list[float]:
    begin = max(0.0, member.start) + rng.random() * made.scrape_seconds * 0.5
    times = np.arange(begin, min(member.end, made.seconds), made.scrape_seconds)
    late = rng.uniform(0, 0.02, len(times)) * made.scrape_seconds
    return (times + late).tolist()


# --- cases ---------------------------------------------------------------------------------------


def fleet(number: int, seed: int = 0, *, longest: float = 7 * DAY) -> Fleet:
    """Fleet `number`: 1, 4, 8 or 16 replicas by turns, everything else by the dice."""
    rng = np.random.default_rng((seed, number, 41))
    size = SIZES[number % len(SIZES)]
    seconds = float(rng.choice([length for length in LENGTHS if length <= longest]))
    shares = _shares(size, rng)
    scrape = float(rng.choice((2.0, 5.0, 15.0, 15.0, 30.0))) if seconds < 3 * HOUR else 60.0
    if 3 * HOUR <= seconds < DAY:
        scrape = 15.0 if size < 8 else 30.0
    return _fleet(f"fleet-{number:03d}", 97 * seed + number, shares, seconds, scrape, rng)


def wide_fleet(number: int, seed: int = 0, *, longest: float = 30 * DAY) -> Fleet:
    """Fleet `number` of 1, 8, 40 or 100 replicas by turns, ten minutes to a month.

    Scraped every 2 to 60 s, the more of them and the longer the more rarely: `_MAX_SCRAPES`.
    """
    rng = np.random.default_rng((seed, number, 43))
    size = WIDE_SIZES[number % len(WIDE_SIZES)]
    possible = [
        (seconds, scrape)
        for seconds in WIDE_LENGTHS
        for scrape in (2.0, 5.0, 15.0, 30.0, 60.0)
        if seconds <= longest and size * seconds / scrape <= _MAX_SCRAPES
    ]
    seconds = float(rng.choice(sorted({seconds for seconds, _ in possible})))
    scrape = float(rng.choice([scrape for length, scrape in possible if length == seconds]))
    shares = _shares(size, rng)
    name, own = f"wide-{number:03d}", 97 * seed + number
    return _fleet(name, own, shares, seconds, scrape, rng, most=_MAX_WIDE_REQUESTS, slowed=0.0)


def growing_fleet(number: int, seed: int = 0) -> Fleet:
    """Fleet `number` that was one replica of each model in an overload, and then several.

    That shows what a replica can do, and afterwards all keep up, so that what fewer of them would
    do is known from a time in which nothing failed.
    """
    rng = np.random.default_rng((seed, number, 47))
    count, models = int(rng.choice((2, 3, 4, 6))), 1 + int(rng.random() < 0.35)
    seconds = float(rng.choice((40.0, 50.0))) * MINUTE
    made = [_growing_service(f"model-{'ab'[n]}", count, seconds, rng) for n in range(models)]
    is_asked = rng.random() < 0.5 and all(service.slowness == 1.0 for service in made)
    targets = targets_of(made[0].truth, rng) if is_asked else NO_TARGETS
    scrape = float(rng.choice((5.0, 10.0, 15.0, 30.0)))
    name, own = f"growing-{number:03d}", 97 * seed + number
    return Fleet(name, tuple(made), seconds, scrape, "growing", own, targets)


def _growing_service(model: str, count: int, seconds: float, rng: np.random.Generator) -> Service:
    asked = {pair: 0.5 * count * truths()[pair].requests_per_second * seconds for pair in PAIRS}
    few = [pair for pair, most in asked.items() if most <= 2 * _MAX_GROWING_REQUESTS]
    server, mix = few[rng.integers(len(few))]
    slowness = max(1.0, asked[server, mix] / _MAX_GROWING_REQUESTS)
    one = truths()[server, mix].requests_per_second / slowness
    grown_at = float(rng.uniform(9, 14)) * MINUTE
    members = tuple(
        Member(f"{model}-{place}:8000", float(rng.uniform(0.97, 1.03)),
               start=LEAD if place == 0 else grown_at)
        for place in range(count)
    )  # fmt: skip
    usual, most = float(rng.uniform(0.2, 0.4)) * count, float(rng.uniform(0.5, 0.8)) * count
    begin = grown_at + 12 * MINUTE
    spell = (begin, begin + float(rng.uniform(12, 18)) * MINUTE)
    alone = float(rng.uniform(1.5, 2.0))

    def rate(t: np.ndarray) -> np.ndarray:
        later = np.where((t >= spell[0]) & (t < spell[1]), most, usual)
        early = np.where(t > grown_at - 5 * MINUTE, alone, min(0.3, usual))
        return one * np.where(t < grown_at, early, later)

    times = loads.varying(rng, rate, one * max(most, alone), LEAD, seconds).times
    prompts, outputs = MIXES[mix].draw(rng, len(times))
    own = model, server, mix, members, "least requests", times, prompts, outputs, slowness
    return Service(*own)


def _shares(size: int, rng: np.random.Generator) -> list[int]:
    """How many replicas each model has."""
    is_one = size == 1 or rng.random() >= 0.35
    return [size] if is_one else [size - size // 4, size // 4]


def _fleet(
    name: str,
    seed: int,
    shares: Sequence[int],
    seconds: float,
    scrape: float,
    rng: np.random.Generator,
    *,
    most: float = _MAX_REQUESTS,
    slowed: float = 3 * HOUR,
) -> Fleet:
    shape = str(rng.choice(("constant", "diurnal", "spells", "bursts", "rush", "rush")))
    services = tuple(
        _service(
            f"model-{'ab'[place]}", count, seconds, shape, rng, most / len(shares), slowed=slowed
        )
        for place, count in enumerate(shares)
    )
    is_asked = rng.random() < 0.5 and all(service.slowness == 1.0 for service in services)
    targets = targets_of(services[0].truth, rng) if is_asked else NO_TARGETS
    return Fleet(name, services, seconds, scrape, shape, seed, targets)


def _service(
    model: str,
    count: int,
    seconds: float,
    shape: str,
    rng: np.random.Generator,
    most: float,
    *,
    slowed: float,
) -> Service:
    """So many replicas of a model, of which no more than `most` requests are asked.

    In windows of `slowed` seconds or more, servers are slower where they could answer more.
    """
    server, mix = PAIRS[rng.integers(len(PAIRS))]
    truth = truths()[server, mix]
    members = _members(model, count, seconds, rng)
    used = sum(member.speed for member in members if member.is_used and member.end == math.inf)
    share = float(rng.choice((0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9)))
    full = truth.requests_per_second * used
    wanted = share * full * (seconds - LEAD)
    slowness = min(_MAX_SLOWNESS, max(1.0, wanted / most)) if seconds >= slowed else 1.0
    share = min(share, share * most * slowness / wanted)
    rush = 0.0 if shape != "rush" else min(0.25 * seconds, 0.5 * most * slowness / full)
    times = _times(shape, share * full / slowness, full / slowness, seconds, rush, rng)
    prompts, outputs = MIXES[mix].draw(rng, len(times))
    balancing: Balancing = "round robin" if rng.random() < 0.5 else "least requests"
    return Service(model, server, mix, members, balancing, times, prompts, outputs, slowness)


def _members(
    model: str, count: int, seconds: float, rng: np.random.Generator
) -> tuple[Member, ...]:
    """Replicas that differ by some percent; of several, some idle, one slow, one replaced."""
    labels = {"deployment": model, "namespace": "prod"}
    members = [
        Member(f"{model}-{place}:8000", float(rng.uniform(0.96, 1.04)), labels=labels)
        for place in range(count)
    ]
    if count > 2:
        for place in range(int(rng.integers(0, 1 + count // 3))):
            members[place] = replace(members[place], is_used=False)
        if rng.random() < 0.3:
            members[-1] = replace(members[-1], speed=float(rng.uniform(0.5, 0.75)))
        if rng.random() < 0.4:
            at = float(rng.uniform(0.3, 0.7)) * seconds
            old = replace(members[-2], end=at)
            members[-2] = replace(old, name=f"{model}-{count}:8000", start=at + 30, end=math.inf)
            members.append(old)
    return tuple(members)


def _times(
    shape: str, rate: float, full: float, seconds: float, rush: float, rng: np.random.Generator
) -> np.ndarray:
    """Arrivals at `rate` requests/s on average; `full` is what the replicas in use can answer.

    A rush of so many seconds is more than they can.
    """
    if rush:
        begin = float(rng.uniform(0.2, 0.7)) * seconds
        high = float(rng.uniform(0.8, 1.3)) * full
        law = loads.spells(min(rate, 0.5 * full), high, [(begin, begin + rush)])
        return loads.varying(rng, law, max(high, full), LEAD, seconds).times
    if shape == "bursts":
        return loads.gamma(rng, rate, LEAD, seconds, cv=2.5).times
    if shape == "spells":
        wide = seconds / 6
        starts = [float(start) for start in rng.uniform(0, seconds - wide, 2)]
        high = min(full, 3 * rate)
        base = max(0.0, rate - (high - rate) * 0.4)
        law, most = loads.spells(base, high, [(at, at + wide) for at in starts]), high
    elif shape == "diurnal":
        most = min(1.2 * full, 2.2 * rate)
        law = loads.diurnal(0.1 * most, most, min(DAY, seconds))
    else:
        return loads.poisson(rng, rate, LEAD, seconds).times
    return loads.varying(rng, law, max(most, 1e-9), LEAD, seconds).times
