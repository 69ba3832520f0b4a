"""The best minute of an engine: its highest observed output, corrected for luck.

How the certain minimum of a server's capacity (`Held`) is found:

1. Output continues for a while after prompts stop: without prefills, earlier requests get their
   tokens faster than any load sustains. So the output of a stretch is capped at what its prompts
   account for, at the window's ratio of output to prompt tokens. A server at its limit can do more
   of one only at the expense of the other, so luck hardly raises both.
2. Any further excess is luck, and the best of many minutes has most of it. At the limit, the output
   of a stretch of m minutes with n requests scatters by 0.3 ÷ √n because of the lengths of its
   requests (found on simulated servers, including heavy tails and preemptions), and by 0.06 ÷ √m
   because of everything else (on recorded servers 90 % of minutes are within a tenth), as shares of
   it. Below the limit it scatters by half of the first alone, because the output is what was
   demanded. With a chance of 95 %, the best of N stretches exceeds the truth by no more than that
   scatter times the normal quantile of 1 − 0.05 ÷ N.
3. Longer stretches have more requests and less luck, but there are fewer of them: a minute, two,
   four, up to an hour are tried, and the one with the highest result counts.
4. A minute without waiting requests, in which tokens took at most 1.3 × as long as they would under
   half the load, is far from the limit. It counts in full if it read at least half of the prompts
   that its output implies.
"""

from __future__ import annotations

import math
from datetime import datetime
from statistics import NormalDist

import numpy as np
from msgspec import Struct

from vllm_capacity.verdicts.saturation.arrays import (
    Floats,
    Indices,
    Mask,
    instant,
    is_nonzero,
    is_seen,
    or_zero,
    summed,
    total,
)
from vllm_capacity.verdicts.saturation.regimes import EngineSteps

MINUTE_SECONDS = 60.0
SLOWED = 0.75
"""Below this share of its best minute, a server at its limit was slowed by something."""
_MIN_SCATTER, _MAX_SCATTER = 0.05, 0.2
_NEAR_LIMIT = 0.9
_STRETCHES = tuple(MINUTE_SECONDS * 2**k for k in range(7))
_REQUEST_SCATTER, _SERVER_SCATTER = 0.3, 0.06
_MISSED = 0.05  # chance that any stretch was luckier than corrected for
_AS_GOOD = 1 - _MAX_SCATTER
_KV_TIGHT_RATIO = 0.67  # at a scrape; it is fuller between scrapes
_LIGHTEST, _MIN_LIGHT = 0.1, 3
_UNSLOWED, _LIGHTER = 1.3, 0.9
_FEWEST_PROMPTS = 0.5


class Held(Struct, frozen=True):
    """The output that a stretch of time proves the server capable of: tokens/s, without luck.

    `luck` is the share that was deducted, 0..1; the stretch took `seconds` and ended at `end`.
    """

    output: float
    luck: float
    seconds: float
    end: datetime


class BestMinute(Struct, frozen=True):
    """The averages of a minute, and the latest time at which it ended.

    `output` is tokens/s, at most what matches the prompts read in that minute; `peak` is the same
    for a minute that begins anywhere, `requests` the number that finished in it. `is_limited`:
    requests waited in part of it, or its output was no lower than while they did. `held` is what
    this minute or a longer stretch proves the server capable of.
    """

    output: float
    running: float
    end: datetime
    is_limited: bool
    requests: float
    peak: float
    held: Held

    @property
    def sure(self) -> float:
        """What the server can certainly do, output tokens/s."""
        return self.held.output

    @property
    def scatter(self) -> float:
        """How far one minute at the limit may lie above the mean, as a share of it."""
        scatter = 1 / math.sqrt(self.requests) if self.requests else _MAX_SCATTER
        return min(_MAX_SCATTER, max(_MIN_SCATTER, scatter))


def best_minute(steps: EngineSteps) -> BestMinute | None:
    """The minute with the highest output, from steps in time order; None without a clean one.

    At the limit it consists of whole steps: the best minute that may begin anywhere is luck.
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
    is_light = ~is_limited & _is_unslowed(steps, counts)
    ratio = _ratio(steps)
    balance = _balance(steps, counts, np.where(is_light, ratio / _FEWEST_PROMPTS, ratio))
    output = np.where(is_limited, np.minimum(peak, mean), peak) * balance
    best = int(np.argmax(np.where(is_end, output, -math.inf)))
    found = [*_stretches(steps, ratio), *_lightest_best(steps, is_end & is_light, output)]
    return BestMinute(
        output=float(output[best]),
        peak=float(peak[best] * balance[best]),
        running=float(_trailing_totals(steps, "running", counts)[best] / seconds[best]),
        end=instant(steps.end[best]),
        is_limited=bool(is_limited[best]),
        requests=float(requests[best]),
        held=max(
            found,
            key=lambda one: one.output,
            default=Held(
                float(output[best] * (1 - _MAX_SCATTER)),
                _MAX_SCATTER,
                MINUTE_SECONDS,
                instant(steps.end[best]),
            ),
        ),
    )


def _lightest_best(steps: EngineSteps, is_light: Mask, output: Floats) -> list[Held]:
    """The best minute far from the limit, in full; empty if there is no such minute."""
    if not is_light.any():
        return []
    best = int(np.argmax(np.where(is_light, output, -math.inf)))
    return [Held(float(output[best]), 0.0, MINUTE_SECONDS, instant(steps.end[best]))]


def _stretches(steps: EngineSteps, ratio: float) -> list[Held]:
    """The best stretch of each length, corrected for luck; of consecutive whole usable steps."""
    seconds = steps.seconds
    ends = _sums_before(seconds)
    output = _sums_before(or_zero(steps.output_tokens_per_second) * seconds)
    prompts = _sums_before(or_zero(steps.prompt_tokens_per_second) * seconds)
    requests = _sums_before(or_zero(steps.requests_per_second) * seconds)
    is_tight = is_nonzero(steps.waiting_max) | _is_near_limit(steps) | _is_cache_tight(steps)
    tight = _sums_before(is_tight.astype(float))
    clean_from = _clean_from(steps)
    found = []
    for length in _STRETCHES:
        shortest = max(1, int(np.searchsorted(ends, length)))  # no stretch ends before it
        whole = slice(shortest, None)
        first = _last_at(ends, ends[whole] - length)
        is_clean = first >= clean_from[shortest - 1 :]
        if not is_clean.any():
            break
        spans = ends[whole] - ends[first]
        held = output[whole] - output[first]
        if not math.isinf(ratio):
            held = np.minimum(held, ratio * (prompts[whole] - prompts[first]))
        held = np.where(is_clean, held / spans, -math.inf)
        # The others cannot be the best, even after the correction for luck.
        is_as_good = held >= _AS_GOOD * held.max()
        last, first = shortest + np.flatnonzero(is_as_good), first[is_as_good]
        held, spans = held[is_as_good], spans[is_as_good]
        count = max(1.0, float(seconds[last - 1].sum()) / length)
        errors = NormalDist().inv_cdf(1 - _MISSED / count)
        finished = np.maximum(1.0, requests[last] - requests[first])
        of_requests = _REQUEST_SCATTER / np.sqrt(finished)
        of_server = _SERVER_SCATTER / np.sqrt(spans / MINUTE_SECONDS)
        is_limited = tight[last] > tight[first]
        scatter = np.where(is_limited, np.hypot(of_requests, of_server), of_requests / 2)
        luck = np.minimum(_MAX_SCATTER, errors * scatter)
        best = int(np.argmax(held * (1 - luck)))
        found.append(
            Held(
                output=float(held[best] * (1 - luck[best])),
                luck=float(luck[best]),
                seconds=float(spans[best]),
                end=instant(steps.end[last[best] - 1]),
            )
        )
    return found


def _last_at(ends: Floats, times: Floats) -> Indices:
    """The index of the last of `ends` that is at or before each time; both ascend.

    If all steps are equally long, each time lies one step after the one before, and no search is
    needed.
    """
    count = len(times)
    guess = np.arange(count)
    is_last = (ends[:count] <= times) & (times < ends[1 : count + 1])
    return guess if is_last.all() else np.searchsorted(ends, times, side="right") - 1


def _clean_from(steps: EngineSteps) -> Indices:
    """For each step, the first one from which all up to it are usable and without a hole."""
    numbers = np.arange(len(steps))
    after_unusable = np.where(steps.is_usable, 0, numbers + 1)
    after_hole = np.where(steps.is_next[:-1], 0, numbers)
    return np.maximum.accumulate(np.maximum(after_unusable, after_hole))


def _sums_before(values: Floats) -> Floats:
    """The sum of all values before each, and finally of all of them."""
    return np.concatenate([[0.0], np.cumsum(values)])


def _steps_of_minute(steps: EngineSteps) -> Indices:
    """The number of steps, up to and including each, covered by a minute that ends in it."""
    since = steps.start - np.timedelta64(int(MINUTE_SECONDS), "s")
    before = np.searchsorted(steps.end.view(np.int64), since.view(np.int64), side="right")
    return np.arange(1, len(steps) + 1) - before


def _shortest(seconds: Floats, whole: Indices) -> Indices:
    """How many of those steps, up to and including each, suffice for a minute."""
    counts, elapsed = np.ones(len(seconds), np.int64), np.zeros(len(seconds))
    for back in range(int(whole.max()) - 1):
        elapsed[back:] += seconds[: len(seconds) - back]
        counts += (elapsed < MINUTE_SECONDS) & (back < whole - 1)
    return counts


def _trailing_totals(steps: EngineSteps, rate: str, counts: Indices) -> Floats:
    return _trailing_sums(or_zero(steps.column(rate)) * steps.seconds, counts)


def _trailing_sums(values: Floats, counts: Indices) -> Floats:
    """The sum over the last `counts` steps up to each step, in time order."""
    sums = np.zeros(len(values))
    for back in reversed(range(int(counts.max(initial=0)))):
        sums[back:] += np.where(back < counts[back:], values[: len(values) - back], 0.0)
    return sums


def _is_near_limit(steps: EngineSteps) -> Mask:
    """Whether a minute's output was no lower than while requests waited, but not far higher.

    If it was far higher, the server was slowed while they waited.
    """
    limited = steps.is_usable & steps.is_limited
    if not limited.any():
        return np.zeros(len(steps), bool)
    seconds = steps.seconds[limited]
    at_limit = total(steps.output_tokens_per_second[limited], seconds) / summed(seconds)
    peak = steps.best_minute_tokens_per_second
    return (peak >= _NEAR_LIMIT * at_limit) & (peak <= at_limit / SLOWED)


def _is_cache_tight(steps: EngineSteps) -> Mask:
    return np.asarray(or_zero(steps.kv_cache_ratio_max) >= _KV_TIGHT_RATIO)


def _is_unslowed(steps: EngineSteps, counts: Indices) -> Mask:
    """Whether tokens came about as fast in each minute as they would under half the load.

    Judged by the lightest loads seen without a queue, extrapolated linearly if these are heavier
    than half, in running requests or in prompts. One request at a time always counts as light.
    False if the cache filled up, or if no load is clearly lighter.
    """
    timed = np.flatnonzero(
        steps.is_usable
        & is_seen(steps.running)
        & (steps.output_tokens_per_second > 0)
        & ~is_nonzero(steps.waiting_max)
    )
    if len(timed) < _MIN_LIGHT:
        return np.zeros(len(steps), bool)
    order = timed[np.argsort(steps.running[timed], kind="stable")]
    light = order[: max(_MIN_LIGHT, int(len(order) * _LIGHTEST))]
    ran, tokens, prompts = (
        total(steps.column(name)[light], steps.seconds[light])
        for name in ("running", "output_tokens_per_second", "prompt_tokens_per_second")
    )
    elapsed = summed(steps.seconds[light])
    own_ran, own_tokens, own_prompts = (
        _trailing_totals(steps, name, counts)
        for name in ("running", "output_tokens_per_second", "prompt_tokens_per_second")
    )
    own_elapsed = _trailing_sums(steps.seconds, counts)
    with np.errstate(divide="ignore", invalid="ignore"):  # a minute in which nothing ran
        load = (ran / elapsed) / (own_ran / own_elapsed)
        prompt_load = (prompts / elapsed) / (own_prompts / own_elapsed)
        pace = (ran / tokens) * own_tokens / own_ran
    if ran <= elapsed:
        load = np.zeros(len(steps))
    load = np.fmax(load, prompt_load)  # NaN without prompts in the whole window
    fixed = 2 / _UNSLOWED - 1  # the share of a step's time that does not grow with load
    least = np.maximum(1 / _UNSLOWED, fixed + (1 - fixed) * load)
    least = np.where(load <= _LIGHTER, least, math.inf)
    is_tight = _is_cache_tight(steps).astype(float)
    return np.asarray((pace >= least) & (_trailing_sums(is_tight, counts) == 0))


def _ratio(steps: EngineSteps) -> float:
    """Output tokens per prompt token of all usable steps; infinite without either."""
    usable = steps.is_usable
    seconds = steps.seconds[usable]
    prompts = total(steps.prompt_tokens_per_second[usable], seconds)
    output = total(steps.output_tokens_per_second[usable], seconds)
    return output / prompts if prompts and output else math.inf


def _balance(steps: EngineSteps, counts: Indices, ratio: Floats) -> Floats:
    """The share of a minute's output, 0..1, that its prompts account for at that token ratio."""
    prompts, tokens = (
        _trailing_totals(steps, name, counts)
        for name in ("prompt_tokens_per_second", "output_tokens_per_second")
    )
    own = np.divide(prompts, tokens, out=np.zeros(len(steps)), where=tokens != 0)
    with np.errstate(invalid="ignore"):  # no prompts in the whole window
        return np.fmin(1.0, own * ratio)
