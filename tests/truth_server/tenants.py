"""Windows of several tenants whose marginal cost is known: the same requests, one tenant left out.

A server answers a list of requests at a given number at a time (which changes along the list). What
a tenant cost is by how much sooner the list is done without its requests, at the same numbers at a
time: the server's own laws say it, no formula of shares.

Leaving each tenant out takes as long as making the window, so tenant_truths.json keeps what
it gave; it holds for a window that takes exactly as long as it did then, and is computed again for
any other. `python -m tests.truth_server.tenants` writes the file anew.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import numpy as np
import polars as pl

from tests.truth_server import loads
from tests.truth_server.laws import Affine
from tests.truth_server.model import HISTOGRAMS, Engine, Feed, Histogram, Request
from tests.truth_server.servers import MIXES, PAIRS, SERVERS, Mix, Server
from tests.truth_server.truth import truths
from tests.truth_server.windows import EPOCH, Columns, us
from vllm_capacity.sources.usage import USAGE_SCHEMA
from vllm_capacity.telemetry.rows import RowBuffer
from vllm_capacity.telemetry.store import write_window

OneEngine = TypeVar("OneEngine", bound=Engine)

SEEDS = range(2000, 2012)
"""The cases of tests/verdicts/test_tenant_truth.py, whose truths are kept."""
_FILE = Path(__file__).with_name("tenant_truths.json")

_INTERVALS = (5.0, 10.0, 15.0, 15.0, 30.0)
_LENGTHS = (900.0, 1800.0, 1800.0, 3600.0)
_MIN_JOBS = 2_000  # so that what is under way at the end hardly counts


@dataclass(frozen=True)
class Job:
    """A request of the list: whose it is, its lengths, and how many are answered at a time."""

    tenant: str
    prompt: int
    output: int
    level: int


@dataclass(frozen=True)
class Spell:
    """A part of a window: so long, so many requests at a time, the tenants' shares of requests."""

    seconds: float
    level: int
    shares: tuple[float, ...]


@dataclass(frozen=True)
class TenantCase:
    """A window to come: its server, its tenants by name with their mixes, its spells."""

    seed: int
    server: Server
    tenants: dict[str, Mix]
    spells: tuple[Spell, ...]
    scrape_seconds: float

    @property
    def name(self) -> str:
        mixes = "+".join(mix.name for mix in self.tenants.values())
        return f"{self.seed}:{self.server.name}:{mixes}:{[one.level for one in self.spells]}"


@dataclass(frozen=True)
class TenantTruth:
    """What was used, as a gateway would log it, and what each tenant's requests took, seconds.

    `prefill_ratio` is how much shorter all steps would have been without the prompts in them.
    """

    usage: pl.DataFrame
    seconds: float
    without: dict[str, float]
    prefill_ratio: float

    @property
    def marginal_seconds(self) -> dict[str, float]:
        """By how much sooner the list is done without each tenant."""
        return {name: self.seconds - other for name, other in self.without.items()}

    @property
    def shares(self) -> dict[str, float]:
        """Each tenant's part of all marginal seconds; they add up to 1."""
        found = self.marginal_seconds
        whole = sum(found.values())
        return {name: seconds / whole for name, seconds in found.items()}


def tenant_case(seed: int) -> TenantCase:
    """The case of that number, the same each time."""
    rng = np.random.default_rng((seed, 77))
    server = list(SERVERS.values())[seed % len(SERVERS)]
    own = [mix for name, mix in PAIRS if name == server.name]
    if server.name != "cpu-small":
        own = sorted(
            {*own, "classify", "chat", "rag", "reason"}
            - ({"long"} if rng.random() < 0.5 else set())
        )
    count = min(len(own), int(rng.integers(2, 5)))
    mixes = [str(name) for name in rng.choice(own, count, replace=False)]
    tenants = {f"tenant-{i}": MIXES[name] for i, name in enumerate(mixes)}
    length = float(rng.choice(_LENGTHS))
    pair = next(pair for pair in PAIRS if pair[0] == server.name)
    knee = truths()[pair].running_at_95
    spells = int(rng.choice([1, 1, 2, 3, 6]))
    most = float(rng.choice([0.1, 0.5, 1.0, 1.3]))
    levels = [max(1, round(knee * most * rng.uniform(0.15, 1.0))) for _ in range(spells)]
    each = max(_seconds_each(server, MIXES[name], max(levels)) for name in mixes)
    length = max(600.0, length, _MIN_JOBS * each)
    base = rng.dirichlet(np.full(count, 2.0))
    return TenantCase(
        seed,
        server,
        tenants,
        tuple(Spell(length / spells, level, tuple(_tilted(rng, base))) for level in levels),
        float(rng.choice(_INTERVALS)),
    )


def _seconds_each(server: Server, mix: Mix, level: int) -> float:
    """About how long the server takes for a request, so many at a time."""
    prompt, output = mix.means()
    kv = level * (prompt + output / 2)
    step = float(server.law.seconds(level, 0, kv))
    mixed = float(server.law.seconds(level, min(round(prompt), server.step_tokens), kv))
    return output * step / level + (mixed - step) * max(1.0, prompt / server.step_tokens)


def _tilted(rng: np.random.Generator, base: np.ndarray) -> np.ndarray:
    tilted = base * rng.lognormal(0, 0.6, len(base))
    return tilted / tilted.sum()


class _Pool(Feed):
    """Requests of a list, so many at a time; without a list, drawn until the spells are over."""

    def __init__(self, case: TenantCase, jobs: Sequence[Job] | None) -> None:
        super().__init__()
        self._case, self._jobs = case, jobs
        self._rng = np.random.default_rng((case.seed, 78))
        self._ends = np.cumsum([spell.seconds for spell in case.spells]).tolist()
        self._names = list(case.tenants)
        self._shares = [(np.cumsum(one.shares) / sum(one.shares)).tolist() for one in case.spells]
        self._drawn: dict[str, list[tuple[int, int]]] = {name: [] for name in case.tenants}
        self._active = 0
        self.sent: list[tuple[Job, Request]] = []
        self.done_at: float | None = None
        self.refill(0.0)

    def finished(self, request: Request, now: float) -> None:
        self._active -= 1
        self.refill(now)

    def refill(self, now: float) -> None:
        while (job := self._next(now)) is not None and self._active < job.level:
            request = Request(now, job.prompt, job.output, client=len(self.sent))
            self.sent.append((job, request))
            self._pending = None
            self._active += 1
            self.send(request)
        if job is None and self.done_at is None:
            self.done_at = now

    _pending: Job | None = None

    def _next(self, now: float) -> Job | None:
        if self._jobs is not None:
            return self._jobs[len(self.sent)] if len(self.sent) < len(self._jobs) else None
        spell = bisect_right(self._ends, now)
        if spell >= len(self._ends):
            return None
        if self._pending is None:
            name = self._names[bisect_right(self._shares[spell], self._rng.random())]
            self._pending = Job(name, *self._lengths(name), self._case.spells[spell].level)
        return self._pending

    def _lengths(self, name: str) -> tuple[int, int]:
        if not self._drawn[name]:
            prompts, outputs = self._case.tenants[name].draw(self._rng, 512)
            self._drawn[name] = list(zip(prompts.tolist(), outputs.tolist(), strict=True))
        return self._drawn[name].pop()


class _Timed(Engine):
    """An engine that knows what prompts added to its steps."""

    prefill_seconds = 0.0

    def _finish_step(self, seconds: float, prompt_tokens: int) -> None:
        law, kv = self.server.law, float(self._kv)
        alone = float(law.seconds(self._decoding, 0, kv))
        both = float(law.seconds(self._decoding, prompt_tokens, kv))
        self.prefill_seconds += seconds * (1 - alone / both)
        super()._finish_step(seconds, prompt_tokens)


class _Nothing(Histogram):
    """A histogram that nobody will read."""

    __slots__ = ()

    def add(self, value: float, times: int = 1) -> None:
        pass

    def add_each(self, values: np.ndarray, times: int) -> None:
        pass


class _Replaying(Engine):
    """An engine of which nothing is asked but when it is done."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.histograms = dict.fromkeys(HISTOGRAMS, _Nothing(()))
        self._ttft = self._itl = self._iteration = _Nothing(())

    def _finish(self, request: Request) -> None:
        del self.running[id(request)]
        self._source.finished(request, self.now)

    def _set_gauges(self) -> None:
        pass


def _engine(
    case: TenantCase, jobs: Sequence[Job] | None, kind: type[OneEngine]
) -> tuple[OneEngine, _Pool]:
    pool = _Pool(case, jobs)
    mix = next(iter(case.tenants.values()))
    return kind(case.server, mix, pool, case.seed), pool


def _run(engine: Engine, pool: _Pool) -> float:
    """Until the last request of the list has been sent; the time that took."""
    until = 0.0
    while pool.done_at is None:
        until += 60.0
        engine.advance(until)
    return pool.done_at


def write(case: TenantCase, path: Path, *, is_kept: bool = True) -> TenantTruth:
    """Serve the case, scrape it into a window at `path`, and leave out each tenant in turn.

    What leaving them out gave is taken from the kept truths unless `is_kept` is False.
    """
    engine, pool = _engine(case, None, _Timed)
    buffer = RowBuffer()
    columns = Columns(buffer, "gpu-0:8000", case.server)
    at = 0.0
    while pool.done_at is None:
        at += case.scrape_seconds
        engine.advance(at)
        columns.add(us(at), engine.snapshot(), -1.0)
        buffer.scrape("gpu-0:8000", us(at), is_up=True, seconds=0.005)
    write_window(path, buffer.rows(), {"simulated": True, "about": "tests/truth_server"})
    jobs = [job for job, _ in pool.sent]
    seconds = pool.done_at
    prefill_ratio = engine.prefill_seconds / engine.busy_seconds
    engine.advance(seconds + 3600.0)
    kept = _kept_truths().get(str(case.seed)) if is_kept else None
    if kept is not None and kept["seconds"] == seconds and case == tenant_case(case.seed):
        without = kept["without"]
    else:
        without = {name: _without(name, case, jobs) for name in case.tenants}
    return TenantTruth(_usage(pool.sent), seconds, without, prefill_ratio)


def _without(name: str, case: TenantCase, jobs: Sequence[Job]) -> float:
    """The seconds that the requests of the other tenants take."""
    others = [job for job in jobs if job.tenant != name]
    return _run(*_engine(case, others, _Replaying)) if others else 0.0


@cache
def _kept_truths() -> dict[str, Any]:
    return json.loads(_FILE.read_text()) if _FILE.exists() else {}


def _usage(sent: Sequence[tuple[Job, Request]]) -> pl.DataFrame:
    """A row per request, as a gateway logs it (`USAGE_SCHEMA`)."""
    rows = [
        (
            job.tenant,
            None,
            EPOCH + timedelta(seconds=one.arrival),
            EPOCH + timedelta(seconds=max(one.arrival, one.last)),
            float(one.prompt),
            None,
            float(one.output),
            1.0,
        )
        for job, one in sent
    ]
    return pl.DataFrame(rows, schema=USAGE_SCHEMA, orient="row")


# --- open load: the time of each step attributed, not replayed ---


class _Attributing(Engine):
    """An engine of an affine law that books each step's time with the requests that ran in it.

    The fixed part in equal parts, the rest with whoever caused it; noise in proportion.
    """

    def book(self, owners: dict[int, str]) -> None:
        self.owners = owners
        self.seconds_of = dict.fromkeys(owners.values(), 0.0)

    def _finish_step(self, seconds: float, prompt_tokens: int) -> None:
        law, running = self.server.law, list(self.running.values())
        assert isinstance(law, Affine)
        left = sum(one.target - one.computed for one in running if one.decode_from < 0) or 1
        whole = float(law.seconds(self._decoding, prompt_tokens, float(self._kv)))
        for one in running:
            if one.decode_from >= 0:
                own = law.per_request + law.per_kv_token * (
                    one.target + self._step - one.decode_from
                )
            else:
                chunk = prompt_tokens * (one.target - one.computed) / left
                own = law.per_prompt_token * chunk + law.per_kv_token * one.computed
            self._book(one, seconds / whole * (law.fixed / len(running) + own))
        super()._finish_step(seconds, prompt_tokens)

    def _many(self, count: int, first: float, until: float, news: float) -> None:
        law, running = self.server.law, list(self.running.values())
        assert isinstance(law, Affine)
        busy, step, kv = self.busy_seconds, self._step, self._kv
        super()._many(count, first, until, news)
        grown = (self._step - step - 1) / 2
        whole = float(law.seconds(len(running), 0, kv + len(running) * grown))
        each = (self.busy_seconds - busy) / whole
        alike = each * (law.fixed / len(running) + law.per_request)
        a_token, owners, booked = each * law.per_kv_token, self.owners, self.seconds_of
        since = step + grown
        for one in running:
            held = one.target - one.decode_from + since
            booked[owners[id(one)]] += alike + a_token * held

    def _book(self, request: Request, seconds: float) -> None:
        self.seconds_of[self.owners[id(request)]] += seconds


_AFFINE = tuple(one for one in SERVERS.values() if isinstance(one.law, Affine))
_OPEN_SECONDS = 3600.0


def write_open(seed: int, path: Path) -> tuple[pl.DataFrame, dict[str, float]]:
    """A window of tenants who come by chance, each at other times: its usage, and true shares."""
    rng = np.random.default_rng((seed, 79))
    server = _AFFINE[seed % len(_AFFINE)]
    own = [mix for name, mix in PAIRS if name == server.name]
    if server.name != "cpu-small":
        own = sorted({*own, "classify", "chat", "rag"})
    mixes = [str(name) for name in rng.choice(own, min(3, len(own)), replace=False)]
    shares = rng.dirichlet(np.full(len(mixes), 2.0))
    each = max(_seconds_each(server, MIXES[name], server.max_num_seqs) for name in mixes)
    rate = float(rng.choice([0.05, 0.1, 0.3, 0.6, 0.8])) / each
    came = []
    for place, (mix, share) in enumerate(zip(mixes, shares, strict=True)):
        law = loads.diurnal(0.0, 2 * rate * share, _OPEN_SECONDS)
        shift = _OPEN_SECONDS * place / len(mixes)
        times = loads.varying(
            rng, lambda t, law=law, s=shift: law(t + s), 2 * rate * share, 0.0, _OPEN_SECONDS
        ).times
        lengths = zip(*MIXES[mix].draw(rng, len(times)), strict=True)
        came += [
            (
                Job(f"tenant-{place}", int(prompt), int(output), 0),
                Request(at, int(prompt), int(output)),
            )
            for at, (prompt, output) in zip(times.tolist(), lengths, strict=True)
        ]
    came.sort(key=lambda one: one[1].arrival)
    feed = Feed()
    for _, request in came:
        feed.send(request)
    engine = _Attributing(server, MIXES[mixes[0]], feed, seed)
    engine.book({id(request): job.tenant for job, request in came})
    _scrape(engine, server, float(rng.choice(_INTERVALS)), path)
    seconds = dict(engine.seconds_of)
    engine.advance(2 * _OPEN_SECONDS)
    whole = sum(seconds.values())
    return _usage(came), {name: own / whole for name, own in seconds.items()}


def _scrape(engine: Engine, server: Server, interval: float, path: Path) -> None:
    buffer = RowBuffer()
    columns = Columns(buffer, "gpu-0:8000", server)
    for at in np.arange(interval, _OPEN_SECONDS + interval, interval).tolist():
        engine.advance(at)
        columns.add(us(at), engine.snapshot(), -1.0)
        buffer.scrape("gpu-0:8000", us(at), is_up=True, seconds=0.005)
    write_window(path, buffer.rows(), {"simulated": True, "about": "tests/truth_server"})


def main() -> None:
    """Leave out each tenant of the cases of the tests, and keep what that gave."""
    with ProcessPoolExecutor(2) as pool:
        lines = ",\n".join(pool.map(_kept, SEEDS))
    _FILE.write_text(f"{{\n{lines}\n}}\n")


def _kept(seed: int) -> str:
    """A line of tenant_truths.json."""
    with TemporaryDirectory() as folder:
        truth = write(tenant_case(seed), Path(folder) / "window", is_kept=False)
    return f'"{seed}": ' + json.dumps({"seconds": truth.seconds, "without": truth.without})


if __name__ == "__main__":
    main()
