"""Who asks, when, and how much: open and closed loops, lengths sampled or given."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from vllm_capacity.errors import InputError
from vllm_simulator.config import Request


class Workload(Protocol):
    """The requests there are from the start, and what follows when one ends."""

    def initial(self) -> Iterable[Request]:
        """The requests known from the start."""
        ...

    def follow_up(self, request: Request, ended_seconds: float) -> Request | None:
        """What the same client sends next; None: nothing."""
        ...


@dataclass(frozen=True)
class Prefix:
    """A beginning that `share_ratio` of the requests have in common, `tokens` long."""

    share_ratio: float
    tokens: int


@dataclass(frozen=True)
class Lengths:
    """Log-normal prompt and output lengths, tokens, cut to their limits.

    A prompt holds at least 8 tokens beyond its shared prefix. Where `asks_maximum`, every request's
    `max_tokens` is `max_output_tokens`, and it stops where its length was drawn; else it asks for
    that length, and `early_stop_ratio` of the requests stop somewhere before it. `cancel_ratio` are
    given up by the client, after a time uniform in `cancel_seconds`.
    """

    prompt_median: float
    prompt_sigma: float
    output_median: float
    output_sigma: float
    max_prompt_tokens: int
    max_output_tokens: int
    prefixes: tuple[Prefix, ...] = ()
    asks_maximum: bool = False
    early_stop_ratio: float = 0.0
    cancel_ratio: float = 0.0
    cancel_seconds: tuple[float, float] = (0.05, 4.0)

    def draw(self, rng: np.random.Generator) -> Request:
        """One request, arriving at 0."""
        prompt = self._length(rng, self.prompt_median, self.prompt_sigma)
        drawn = self._length(rng, self.output_median, self.output_sigma)
        drawn = min(drawn, self.max_output_tokens)
        prefix = self._prefix(float(rng.random()))
        prefix_tokens = 0 if prefix is None else self.prefixes[prefix].tokens
        is_early, is_cancelled = rng.random(2) < (self.early_stop_ratio, self.cancel_ratio)
        patience = float(rng.uniform(*self.cancel_seconds))
        return Request(
            arrival_seconds=0.0,
            prompt_tokens=min(max(prompt, prefix_tokens + 8), self.max_prompt_tokens),
            output_tokens=int(rng.integers(1, drawn + 1)) if is_early else drawn,
            prefix=prefix,
            prefix_tokens=prefix_tokens,
            max_tokens=self.max_output_tokens if self.asks_maximum else drawn,
            cancel_after_seconds=patience if is_cancelled else None,
        )

    @staticmethod
    def _length(rng: np.random.Generator, median: float, sigma: float) -> int:
        return max(1, round(median * math.exp(sigma * float(rng.normal()))))

    def _prefix(self, chance: float) -> int | None:
        for index, prefix in enumerate(self.prefixes):
            if chance < prefix.share_ratio:
                return index
            chance -= prefix.share_ratio
        return None


@dataclass(frozen=True)
class OpenLoop:
    """Requests that come when they come, whatever the server does."""

    requests: Sequence[Request]

    def initial(self) -> Iterable[Request]:
        """All of them."""
        return self.requests

    def follow_up(self, request: Request, ended_seconds: float) -> Request | None:
        """Nothing."""
        return None


@dataclass(frozen=True)
class Phase:
    """A stretch of a closed loop with that many clients."""

    clients: int
    seconds: float


@dataclass(frozen=True)
class ClosedLoop:
    """Clients that each send their next request when the one before has ended.

    `draw` gives the next request of a phase (by its ordinal). A client that is one too many in the
    current phase pauses until a phase with room for it, or for good.
    """

    phases: tuple[Phase, ...]
    draw: Callable[[int], Request]
    think_seconds: float = 0.0

    def initial(self) -> Iterable[Request]:
        """The first request of every client, at the beginning of the first phase it is in."""
        clients = range(max(phase.clients for phase in self.phases))
        firsts = (self._next(client, 0.0) for client in clients)
        return [first for first in firsts if first is not None]

    def follow_up(self, request: Request, ended_seconds: float) -> Request | None:
        """The same client's next request."""
        if request.client is None:
            raise InputError("A closed loop was handed a request without a client.")
        return self._next(request.client, ended_seconds + self.think_seconds)

    def _next(self, client: int, at_seconds: float) -> Request | None:
        begin = 0.0
        for ordinal, phase in enumerate(self.phases):
            end = begin + phase.seconds
            arrival = max(at_seconds, begin)
            if arrival < end and client < phase.clients:
                return replace(self.draw(ordinal), arrival_seconds=arrival, client=client)
            begin = end
        return None


def sampled(lengths: Lengths, seed: int) -> Callable[[int], Request]:
    """A `draw` for closed loops: lengths by seed, the same for every phase."""
    rng = np.random.default_rng(seed)
    return lambda phase: lengths.draw(rng)


def recorded(requests_of_phase: Sequence[Sequence[Request]]) -> Callable[[int], Request]:
    """A `draw` that replays each phase's recorded requests in order, over and over."""
    used = [0] * len(requests_of_phase)

    def draw(phase: int) -> Request:
        requests = requests_of_phase[phase]
        if not requests:
            raise InputError(f"Phase {phase} of the recording has no requests to replay.")
        used[phase] += 1
        return requests[(used[phase] - 1) % len(requests)]

    return draw


@dataclass(frozen=True)
class Arrivals:
    """Poisson arrivals in [first, last] seconds, with a mild wave of load over the time.

    The rate is proportional to 1 + `wave_ratio` x sin over `wave_seconds`. With a fixed `count` the
    arrivals of a Poisson process are independent draws from that density.
    """

    count: int
    first_seconds: float
    last_seconds: float
    wave_ratio: float = 0.0
    wave_seconds: float = 3600.0

    def times(self, rng: np.random.Generator) -> np.ndarray:
        """The arrival times in seconds, ascending."""
        kept: list[float] = []
        while len(kept) < self.count:
            at = float(rng.uniform(self.first_seconds, self.last_seconds))
            rate = 1.0 + self.wave_ratio * math.sin(2 * math.pi * at / self.wave_seconds)
            if rng.random() * (1.0 + self.wave_ratio) < rate:
                kept.append(at)
        return np.sort(np.array(kept))


def poisson_requests(arrivals: Arrivals, lengths: Lengths, seed: int) -> list[Request]:
    """An open loop's requests, by seed."""
    rng = np.random.default_rng(seed)
    times = arrivals.times(rng)
    return [replace(lengths.draw(rng), arrival_seconds=float(at)) for at in times]
