"""Workloads: open and closed loops of requests, with sampled or recorded lengths."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from vllm_capacity.errors import InputError
from vllm_simulator.config import Request


class Workload(Protocol):
    """The initial requests, and the follow-up of each request that ends."""

    def initial(self) -> Iterable[Request]:
        """The requests known from the start."""
        ...

    def follow_up(self, request: Request, ended_seconds: float) -> Request | None:
        """The next request of the same client, or None."""
        ...


class Prefix(Struct, frozen=True):
    """A prompt prefix of `tokens` tokens that `share_ratio` of the requests share."""

    share_ratio: float
    tokens: int


class Lengths(Struct, frozen=True):
    """Log-normal prompt and output lengths in tokens, capped at their limits.

    A prompt has at least 8 tokens beyond its shared prefix. With `asks_maximum`, every request has
    `max_output_tokens` as its `max_tokens` and stops at the drawn length. Otherwise it asks for
    the drawn length, and `early_stop_ratio` of the requests stop earlier. Clients cancel
    `cancel_ratio` of the requests, after a time uniform in `cancel_seconds`.
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


class OpenLoop(Struct, frozen=True):
    """Requests whose arrival times do not depend on the server."""

    requests: Sequence[Request]

    def initial(self) -> Iterable[Request]:
        """All requests."""
        return self.requests

    def follow_up(self, request: Request, ended_seconds: float) -> Request | None:
        """None: an open loop has no follow-ups."""
        return None


class Phase(Struct, frozen=True):
    """A period of a closed loop with a fixed number of clients."""

    clients: int
    seconds: float


class ClosedLoop(Struct, frozen=True):
    """Clients that each send their next request when the previous one has ended.

    `draw` returns the next request for a phase (by its index). Clients beyond the number of the
    current phase pause until a phase that has more clients, or for good.
    """

    phases: tuple[Phase, ...]
    draw: Callable[[int], Request]
    think_seconds: float = 0.0

    def initial(self) -> Iterable[Request]:
        """The first request of every client, at the beginning of its first phase."""
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
    """A `draw` for closed loops: lengths sampled by seed, from one distribution for all phases."""
    rng = np.random.default_rng(seed)
    return lambda phase: lengths.draw(rng)


def recorded(requests_of_phase: Sequence[Sequence[Request]]) -> Callable[[int], Request]:
    """A `draw` for closed loops that cycles through each phase's recorded requests in order."""
    used = [0] * len(requests_of_phase)

    def draw(phase: int) -> Request:
        requests = requests_of_phase[phase]
        if not requests:
            raise InputError(f"Phase {phase} of the recording has no requests to replay.")
        used[phase] += 1
        return requests[(used[phase] - 1) % len(requests)]

    return draw


class Arrivals(Struct, frozen=True):
    """Poisson arrivals between two times in seconds, at a rate that varies as a sine wave.

    The rate is proportional to 1 + `wave_ratio` x sin, with the period `wave_seconds`. Given the
    `count`, the arrivals of a Poisson process are independent draws from that density.
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
    """The requests of an open loop, drawn by seed, ascending by arrival."""
    rng = np.random.default_rng(seed)
    times = arrivals.times(rng)
    return [replace(lengths.draw(rng), arrival_seconds=float(at)) for at in times]
