"""Arrivals over time: times in seconds, ascending. Rates are requests per second."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from tests.truth_server.model import Arrivals, Clients

Rate = Callable[[np.ndarray], np.ndarray]
DAY_SECONDS = 86_400.0


def poisson(rng: np.random.Generator, rate: float, start: float, end: float) -> Arrivals:
    count = rng.poisson(rate * (end - start))
    return Arrivals(np.sort(rng.uniform(start, end, count)))


def gamma(rng: np.random.Generator, rate: float, start: float, end: float, cv: float) -> Arrivals:
    """Gamma gaps: bursts where `cv` is above 1."""
    shape = 1 / (cv * cv)
    count = int(rate * (end - start) * 1.5 + 50 * cv * cv)
    times = start + np.cumsum(rng.gamma(shape, 1 / (rate * shape), count))
    return Arrivals(times[times < end])


def mmpp(
    rng: np.random.Generator,
    rates: tuple[float, float],
    dwell_seconds: tuple[float, float],
    start: float,
    end: float,
) -> Arrivals:
    """Two Poisson rates by turns, each for an exponential time."""
    found, at, state = [], start, 0
    while at < end:
        until = min(end, at + rng.exponential(dwell_seconds[state]))
        found.append(poisson(rng, rates[state], at, until).times)
        at, state = until, 1 - state
    return Arrivals(np.concatenate(found))


def varying(
    rng: np.random.Generator, rate: Rate, most: float, start: float, end: float
) -> Arrivals:
    """Poisson arrivals whose rate changes with time (thinned from `most`)."""
    times = poisson(rng, most, start, end).times
    return Arrivals(times[rng.random(len(times)) * most < rate(times)])


def ramp(low: float, high: float, start: float, end: float) -> Rate:
    return lambda t: low + (high - low) * np.clip((t - start) / (end - start), 0, 1)


def triangle(low: float, high: float, start: float, end: float) -> Rate:
    """Up to the middle, and down again."""
    middle, half = (start + end) / 2, (end - start) / 2
    return lambda t: high - (high - low) * np.clip(np.abs(t - middle) / half, 0, 1)


def diurnal(low: float, high: float, day_seconds: float = DAY_SECONDS) -> Rate:
    """A day's wave, or that of a shorter day: `low` at night, `high` early in the afternoon."""

    def rate(t: np.ndarray) -> np.ndarray:
        wave = 0.5 + 0.5 * np.cos(2 * math.pi * (t / day_seconds - 14 / 24))
        return low + (high - low) * wave**1.5

    return rate


def spells(base: float, high: float, stretches: list[tuple[float, float]]) -> Rate:
    """`high` within the stretches, `base` elsewhere."""

    def rate(t: np.ndarray) -> np.ndarray:
        inside = np.zeros(len(t), bool)
        for start, end in stretches:
            inside |= (t >= start) & (t < end)
        return np.where(inside, high, base)

    return rate


def at_once(times: list[float], counts: list[int]) -> Arrivals:
    """So many requests at one moment."""
    return Arrivals(np.concatenate([np.full(n, t) for t, n in zip(times, counts, strict=True)]))


def client_steps(levels: list[int], seconds: float, start: float) -> Clients:
    """A sweep: each number of clients for so long."""
    return Clients(tuple((start + i * seconds, level) for i, level in enumerate(levels)))
