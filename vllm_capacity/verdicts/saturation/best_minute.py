"""The best minute of an engine: the most that it was seen to do, told from luck and from chance."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime

import numpy as np

from vllm_capacity.verdicts.saturation.arrays import (
    Floats,
    Indices,
    Mask,
    instant,
    is_nonzero,
    or_zero,
    summed,
    total,
)
from vllm_capacity.verdicts.saturation.regimes import EngineSteps

MINUTE_SECONDS = 60.0
SLOWED = 0.75
"""Under this share of its best minute, a server at its limit was slowed by something."""
_LEAST_SCATTER, _MOST_SCATTER = 0.05, 0.2
_NEAR_LIMIT = 0.9


@dataclass(frozen=True)
class BestMinute:
    """What a minute held on average, and when it ended at the latest.

    `output` is tokens/s, no more than the prompts read in that minute go with (`best_minute`);
    `peak` is that of the minute wherever it begins, `requests` how many finished in it.
    `is_limited`: requests waited in part of it, or no less came out than while they did.
    """

    output: float
    running: float
    end: datetime
    is_limited: bool
    requests: float
    peak: float

    @property
    def sure(self) -> float:
        """What the server can do at least, output tokens/s.

        Of minutes below the limit the best one is what was asked. At the limit it is the luckiest
        of many: they scatter as their requests do, one ÷ √requests, 5 % at least.
        """
        if not self.is_limited:
            return self.output
        return self.output * (1 - self.scatter)

    @property
    def scatter(self) -> float:
        """How far one minute at the limit may lie above the mean, as a share of it."""
        scatter = 1 / math.sqrt(self.requests) if self.requests else _MOST_SCATTER
        return min(_MOST_SCATTER, max(_LEAST_SCATTER, scatter))


def best_minute(steps: EngineSteps) -> BestMinute | None:
    """The minute in which most was held, of steps in time order; None without a clean one.

    Output goes on for a while when prompts no longer come: answers of prompts that were read before
    come faster than any load sustains. So a minute counts for no more output than its prompts go
    with, at the window's ratio of prompt to output tokens; where no request waited, for no less
    than chance explains (prompts scatter as 2 √(2 ÷ requests)). At the limit it is a minute of
    whole steps: of all that begin anywhere the best is luck.
    """
    peak = steps.best_minute_tokens_per_second
    is_end = steps.is_usable & is_nonzero(peak)
    if not is_end.any():
        return None
    whole = _steps_of_minute(steps)
    seconds = _trailing_sums(steps.seconds, whole)
    requests = _trailing_totals(steps, "requests_per_second", whole) * MINUTE_SECONDS / seconds
    is_limited = _is_near_limit(steps) | (
        _trailing_sums(is_nonzero(steps.waiting_max).astype(float), whole) > 0
    )
    counts = np.where(is_limited, _shortest(steps.seconds, whole), whole)
    seconds = _trailing_sums(steps.seconds, counts)
    mean = _trailing_totals(steps, "output_tokens_per_second", counts) / seconds
    balance = _balance(steps, counts, np.where(is_limited, 0.0, _chance(requests)))
    output = np.where(is_limited, np.minimum(peak, mean), peak) * balance
    best = int(np.argmax(np.where(is_end, output, -math.inf)))
    return BestMinute(
        output=float(output[best]),
        peak=float(peak[best] * balance[best]),
        running=float(_trailing_totals(steps, "running", counts)[best] / seconds[best]),
        end=instant(steps.end[best]),
        is_limited=bool(is_limited[best]),
        requests=float(requests[best]),
    )


def _steps_of_minute(steps: EngineSteps) -> Indices:
    """How many steps, up to each with it, the minute takes in that ends anywhere in that step."""
    since = steps.start - np.timedelta64(int(MINUTE_SECONDS), "s")
    before = np.searchsorted(steps.end.view(np.int64), since.view(np.int64), side="right")
    return np.arange(1, len(steps) + 1) - before


def _shortest(seconds: Floats, whole: Indices) -> Indices:
    """How many of the last of those steps, up to each, make up a minute."""
    counts, elapsed = np.ones(len(seconds), np.int64), np.zeros(len(seconds))
    for back in range(int(whole.max()) - 1):
        elapsed[back:] += seconds[: len(seconds) - back]
        counts += (elapsed < MINUTE_SECONDS) & (back < whole - 1)
    return counts


def _trailing_totals(steps: EngineSteps, rate: str, counts: Indices) -> Floats:
    return _trailing_sums(or_zero(steps.column(rate)) * steps.seconds, counts)


def _trailing_sums(values: Floats, counts: Indices) -> Floats:
    """The sum over as many last steps up to each step, in time order."""
    sums = np.zeros(len(values))
    for back in reversed(range(int(counts.max(initial=0)))):
        sums[back:] += np.where(back < counts[back:], values[: len(values) - back], 0.0)
    return sums


def _is_near_limit(steps: EngineSteps) -> Mask:
    """Whether no less came out in a minute than while requests waited, yet not far more.

    Where far more came out, the server was slowed while they waited.
    """
    limited = steps.is_usable & steps.is_limited
    if not limited.any():
        return np.zeros(len(steps), bool)
    seconds = steps.seconds[limited]
    at_limit = total(steps.output_tokens_per_second[limited], seconds) / summed(seconds)
    peak = steps.best_minute_tokens_per_second
    return (peak >= _NEAR_LIMIT * at_limit) & (peak <= at_limit / SLOWED)


def _chance(requests: Floats) -> Floats:
    """How far the prompts of that many requests may be off by chance, as a share of them."""
    chance = np.full(len(requests), math.inf)
    is_some = requests > 0
    chance[is_some] = 2 * np.sqrt(2 / requests[is_some])
    return chance


def _balance(steps: EngineSteps, counts: Indices, chance: Floats) -> Floats:
    """The share of a minute's output, 0..1, that its prompts go with."""
    names, usable = ("prompt_tokens_per_second", "output_tokens_per_second"), steps.is_usable
    prompts, tokens = (total(steps.column(name)[usable], steps.seconds[usable]) for name in names)
    if not prompts or not tokens:
        return np.ones(len(steps))
    own_prompts, own_tokens = (_trailing_totals(steps, name, counts) for name in names)
    own = np.divide(own_prompts, own_tokens, out=np.zeros(len(steps)), where=own_tokens != 0)
    with np.errstate(invalid="ignore"):  # no prompt at all, and any number explained by chance
        return np.fmin(1.0, own / (prompts / tokens) * (1 + chance))
