"""Steps of simulated servers, by laws that the comparison does not know.

Demand follows the hour, wanders by an Ornstein-Uhlenbeck process and has bursts; token times follow
a power law of the load, prompts slow them, and the machine has slow weather of its own (a neighbor,
heat) that lasts for a quarter of an hour or so, comes and goes, or follows the hour of the day.
"""

from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl

START = datetime(2026, 11, 2, tzinfo=UTC)
_EXPONENT, _PREFILL = 0.55, 0.06


def wandering(rng, count, *, minutes, scale):
    """A process that forgets in so many minutes, with this standard deviation."""
    from scipy.signal import lfilter  # slow to import: not on every collection

    kept = np.exp(-1 / minutes)
    steps = rng.standard_normal(count) * scale * np.sqrt(1 - kept**2)
    steps[0] = rng.standard_normal() * scale
    return lfilter([1.0], [1.0, -kept], steps)


def coming_and_going(rng, count, *, minutes, scale):
    """A neighbor that is there half of the time, for so many minutes on average."""
    leaves = rng.random(count) < 1 / minutes
    is_there = (np.cumsum(leaves) + rng.integers(2)) % 2
    return 2 * scale * (is_there - 0.5)


def daily(rng, count, *, minutes, scale):
    """Heat by the hour of the day, no two days alike, over weather that lasts so many minutes."""
    at = np.arange(count)
    days = 1 + 0.5 * rng.standard_normal(count // 1440 + 1)
    heat = days[at // 1440] * np.sin(2 * np.pi * at / 1440)
    return scale * heat + wandering(rng, count, minutes=minutes, scale=scale / 2)


def made_steps(
    rng,
    *,
    hours=24,
    engines=2,
    demand=6.0,
    prompt_ratio=3.0,
    speed=1.0,
    weather_minutes=15,
    weather=0.03,
    weather_law=wandering,
    heavy=False,
    long_share=0.0,
    day=0,
):
    """One row per engine and minute, as engine_steps gives them; `speed` divides token times.

    `heavy` noise has Student's tails; in `long_share` of the minutes prompts are eight times as
    long.
    """
    count = hours * 60
    at = np.arange(count)
    common = wandering(rng, count, minutes=20, scale=0.35)
    slow = weather_law(rng, count, minutes=weather_minutes, scale=weather)
    hourly = 0.6 * np.sin(2 * np.pi * (at / 1440 - 0.3))
    frames = []
    for engine in range(engines):
        burst = np.where(rng.random(count) < 0.01, 1.2, 0.0)
        load = demand * np.exp(hourly + common + burst + 0.15 * rng.standard_normal(count))
        prompts = prompt_ratio * np.exp(0.2 * rng.standard_normal(count))
        if long_share:
            prompts = np.where(rng.random(count) < long_share, 8 * prompts, prompts)
        noise = rng.standard_t(3, count) if heavy else rng.standard_normal(count)
        own = slow + 0.02 * noise
        itl = 0.012 * (1 + (load / 10) ** _EXPONENT) * (1 + _PREFILL * prompts) * np.exp(own)
        itl /= speed
        output = load / itl
        frames.append(
            pl.DataFrame(
                {
                    "instance": "a",
                    "engine": str(engine),
                    "start": pl.datetime_range(
                        START + timedelta(days=day),
                        START + timedelta(days=day, minutes=count - 1),
                        "1m",
                        eager=True,
                    ).dt.cast_time_unit("us"),
                    "output_tokens_per_second": output,
                    "itl_mean_seconds": itl,
                    "ttft_p95_seconds": 0.2 * (1 + load / 8) * np.exp(own * 2) / speed,
                    "prompt_tokens_per_second": output * prompts,
                    "requests_per_second": output / 180,
                    "is_gap": False,
                    "is_restart": False,
                }
            )
        )
    return pl.concat(frames)


def _both(**same):
    return same, same


PAIRS = {
    "the same demand": _both(),
    "40 % more demand": ({}, {"demand": 8.4}),
    "prompts twice as long": ({}, {"prompt_ratio": 6.0}),
    "mostly idle, and half of that": ({"demand": 0.2}, {"demand": 0.1}),
    "noise that lasts an hour": _both(weather_minutes=60),
    "noise that lasts two hours": _both(weather_minutes=120),
    "noise that lasts four hours": _both(weather_minutes=240),
    "noise that lasts four hours, a week each": _both(weather_minutes=240, hours=168),
    "four hours each": _both(hours=4),
    "four hours, noise of an hour": _both(hours=4, weather_minutes=60),
    "a day against four hours": ({}, {"hours": 4}),
    "a neighbor that comes and goes": _both(weather_law=coming_and_going, weather_minutes=60),
    "heat by the hour of the day": _both(weather_law=daily, weather_minutes=20),
    "heat, three days each": _both(weather_law=daily, weather_minutes=20, hours=72),
    "noise with heavy tails": _both(heavy=True),
    "a quarter of the prompts eight times as long": ({}, {"long_share": 0.25}),
    "four engines under the same weather": _both(engines=4),
    "a quiet machine": _both(weather=0.003),
}
"""Pairs of sides between which the servers did not change, by name: what each is made with."""
