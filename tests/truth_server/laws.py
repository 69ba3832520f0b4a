"""How long one engine step takes: laws that differ in shape, as real servers do.

Each gives seconds for a step of `batch` decoding requests, `prefill` prompt tokens and `kv` tokens
held in the cache. `kv` may be an array: so many steps are advanced at once.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np

Kv = TypeVar("Kv", float, np.ndarray)

GRAPH_SIZES = (1, 2, 4, *range(8, 513, 8))


class Law(Protocol):
    """Seconds of one step."""

    def seconds(self, batch: int, prefill: int, kv: Kv) -> Kv: ...


@dataclass(frozen=True)
class Affine:
    """A fixed part, and parts per request, per prompt token and per token read from the cache."""

    fixed: float
    per_request: float
    per_prompt_token: float
    per_kv_token: float = 0.0

    def seconds(self, batch: int, prefill: int, kv: Kv) -> Kv:
        own = self.fixed + self.per_request * batch + self.per_prompt_token * prefill
        return own + self.per_kv_token * kv


@dataclass(frozen=True)
class Roofline:
    """The larger of moving the bytes and doing the sums, the batch padded to a graph's size."""

    weight_seconds: float  # reading the weights once
    per_kv_token: float
    per_token_compute: float
    overhead: float
    per_request: float = 0.0

    def seconds(self, batch: int, prefill: int, kv: Kv) -> Kv:
        padded = GRAPH_SIZES[bisect.bisect_left(GRAPH_SIZES, batch)] if batch else 0
        moved = self.weight_seconds + self.per_kv_token * kv
        summed = self.per_token_compute * (prefill + padded)
        return self.overhead + self.per_request * batch + np.maximum(moved, summed)


@dataclass(frozen=True)
class Retrograde:
    """A part that grows with the square of the batch: throughput falls past a peak."""

    fixed: float
    per_request: float
    per_square: float
    per_prompt_token: float

    def seconds(self, batch: int, prefill: int, kv: Kv) -> Kv:
        grown = self.per_request * batch + self.per_square * batch * batch
        return self.fixed + grown + self.per_prompt_token * prefill + 0.0 * kv


@dataclass(frozen=True)
class Experts:
    """A mixture of experts: a step reads those that any of its tokens chose."""

    overhead: float
    all_experts_seconds: float
    experts: int
    chosen: int
    per_request: float
    per_prompt_token: float
    per_kv_token: float = 0.0

    def seconds(self, batch: int, prefill: int, kv: Kv) -> Kv:
        touched = 1 - (1 - self.chosen / self.experts) ** (batch + prefill)
        own = self.overhead + touched * self.all_experts_seconds
        own += self.per_request * batch + self.per_prompt_token * prefill
        return own + self.per_kv_token * kv


@dataclass(frozen=True)
class Jitter:
    """Noise of the host: each step times a lognormal of mean 1; now and then a pause."""

    sigma: float = 0.0
    pause_share: float = 0.0
    pause_seconds: tuple[float, float] = (0.05, 0.3)

    def factors(self, rng: np.random.Generator, count: int) -> np.ndarray:
        if not self.sigma:
            return np.ones(count)
        return np.exp(rng.normal(-0.5 * self.sigma**2, self.sigma, count))

    def pauses(self, rng: np.random.Generator, count: int) -> np.ndarray:
        if not self.pause_share:
            return np.zeros(count)
        lengths = rng.uniform(*self.pause_seconds, count)
        return np.where(rng.random(count) < self.pause_share, lengths, 0.0)
