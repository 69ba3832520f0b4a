"""Steps of made servers, by laws that the comparison does not know.

Demand follows the hour, wanders by an Ornstein-Uhlenbeck process and has bursts; token times follow
a power law of the load, prompts slow them, and the machine has slow weather of its own (a neighbor,
heat) that lasts for a quarter of an hour or so.
"""

from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
from scipy.signal import lfilter

START = datetime(2026, 11, 2, tzinfo=UTC)
_EXPONENT, _PREFILL = 0.55, 0.06


def wandering(rng, count, *, minutes, scale):
    """A process that forgets in so many minutes, with this standard deviation."""
    kept = np.exp(-1 / minutes)
    steps = rng.standard_normal(count) * scale * np.sqrt(1 - kept**2)
    steps[0] = rng.standard_normal() * scale
    return lfilter([1.0], [1.0, -kept], steps)


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
    day=0,
):
    """One row per engine and minute, as engine_steps gives them; `speed` divides token times."""
    count = hours * 60
    at = np.arange(count)
    common = wandering(rng, count, minutes=20, scale=0.35)
    slow = wandering(rng, count, minutes=weather_minutes, scale=weather)
    hourly = 0.6 * np.sin(2 * np.pi * (at / 1440 - 0.3))
    frames = []
    for engine in range(engines):
        burst = np.where(rng.random(count) < 0.01, 1.2, 0.0)
        load = demand * np.exp(hourly + common + burst + 0.15 * rng.standard_normal(count))
        prompts = prompt_ratio * np.exp(0.2 * rng.standard_normal(count))
        own = slow + 0.02 * rng.standard_normal(count)
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
