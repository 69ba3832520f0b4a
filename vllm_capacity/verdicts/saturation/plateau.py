"""What a server sustained at its limit, and the steps in which something slowed it.

A plateau is measured, not fitted: the mean throughput of the steps in which the server, not the
clients, set the pace. Its interval is a bootstrap in blocks of a minute: steps are correlated for
as long as a request lives, so resampling single steps would give too narrow an interval. It is
never narrower than the scatter of minutes on recorded servers: 10 % ÷ √minutes, at least 3 %.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from vllm_capacity.estimate import Estimate
from vllm_capacity.verdicts.saturation import regimes
from vllm_capacity.verdicts.saturation.arrays import (
    Floats,
    Indices,
    Mask,
    group_sums,
    or_zero,
    summed,
    total,
)
from vllm_capacity.verdicts.saturation.best_minute import MINUTE_SECONDS, SLOWED, BestMinute
from vllm_capacity.verdicts.saturation.loads import MINUTE_SCATTER
from vllm_capacity.verdicts.saturation.regimes import EngineSteps

MIN_PLATEAU_SECONDS = 60.0
_MIN_PLATEAU_STEPS = 2
_BLOCK_SECONDS = 60.0
_MIN_HALF_WIDTH = 0.03
_RESAMPLES, _PICKS_AT_ONCE = 1000, 2**17
_MAX_BLOCKS = 2000
_DENYING_SCATTERS = 2.0
_QUEUE_OF_RUNNING, _LASTING_SCRAPES = 0.1, 6
_KV_FULL_RATIO, _ALWAYS = 0.9, 0.9
_MANY_PREEMPTED, _PREEMPTION_LOSS = 1.0, 0.10


class Plateau(Struct, frozen=True):
    """What the server sustained at its limit: output tokens/s, running requests, and its steps."""

    output: Estimate
    running: Estimate
    steps: int
    seconds: float


def plateau(
    steps: EngineSteps, *, best: BestMinute | None, slow: Mask, seed: int = 0
) -> Plateau | None:
    """The plateau of the steps with the server at its limit; None for less than a minute of them.

    Steps at the ends of a stretch (`_clean_stretches`) are left out, and so are `slow` ones, in
    which the server was slower than usual (`slowed`). The high end is at least what its `best`
    minute shows (`BestMinute.sure`), and a tenth above the mean if most requests were preempted: a
    load that just fits into the cache avoids that repeated work.
    """
    clean = _clean_stretches(steps)
    clean = clean.at(~slow[clean.steps])
    limited = clean.steps
    seconds = summed(steps.seconds[limited])
    if len(limited) < _MIN_PLATEAU_STEPS or seconds < MIN_PLATEAU_SECONDS:
        return _brief_plateau(steps, best)
    if not _has_queue(steps, clean):
        return None
    basis = (
        f"mean of {len(limited)} steps ({seconds:.0f} s) in which the server was the limit; "
        "90 % interval by block bootstrap"
    )
    output, running = _with_intervals(steps, limited, basis, seed)
    return Plateau(_no_less(output, steps, limited, best), running, len(limited), seconds)


def _no_less(
    output: Estimate, steps: EngineSteps, limited: Indices, best: BestMinute | None
) -> Estimate:
    """The plateau's output, with its high end raised to what a lighter or luckier load achieved."""
    mid, high = output.mid or 0.0, output.high or 0.0
    preempted = summed(or_zero(steps.preemptions[limited]))
    requests = total(steps.requests_per_second[limited], steps.seconds[limited])
    if preempted >= _MANY_PREEMPTED * requests:
        high = max(high, mid * (1 + _PREEMPTION_LOSS))
    return replace(output, high=high if best is None else max(high, best.sure))


def is_denied(plateau: Plateau, best: BestMinute | None) -> bool:
    """Whether the best minute exceeds what a server with this plateau can do, allowing for chance.

    If so, the server was slower at its limit than before or after, perhaps because of a neighbor on
    its machine or different requests. The plateau's high end includes one scatter; an excess of
    more than two is not chance.
    """
    if best is None or plateau.output.mid is None:
        return False
    return best.output * (1 - _DENYING_SCATTERS * best.scatter) > plateau.output.mid


def _brief_plateau(steps: EngineSteps, best: BestMinute | None) -> Plateau | None:
    """The best minute, if the server was at its limit for a continuous minute including its edges.

    The edges would lower a mean, and the best of only one or two minutes is hardly luck.
    """
    if best is None or not best.is_limited:
        return None
    spans = _spanned(*_limited_spans(steps))
    lengths = group_sums(steps.seconds[spans.steps], spans.own)
    if not len(lengths) or lengths.max() < MIN_PLATEAU_SECONDS:
        return None
    longest = spans.at(spans.own == np.argmax(lengths))
    end = np.datetime64(best.end.replace(tzinfo=None))
    is_within = ((steps.start < end) & (end <= steps.end))[longest.steps].any()
    if not is_within or not _has_queue(steps, longest):
        return None
    seconds = float(lengths.max())
    basis = f"the best minute of {seconds:.0f} s in which the server was the limit"
    spread = max(best.scatter, MINUTE_SCATTER)
    low, high = best.output * (1 - spread), best.peak * (1 + spread)
    output = Estimate.known(low, (best.output + best.peak) / 2, high, basis)
    least, most = (best.running * (1 + sign * MINUTE_SCATTER) for sign in (-1, 1))
    running = Estimate.known(least, best.running, most, basis)
    return Plateau(output, running, len(longest.steps), seconds)


def _has_queue(steps: EngineSteps, stretches: _Stretches) -> bool:
    """Whether the queue was more than chance: deep, lasting, or due to the KV cache.

    Near its limit a server has a few waiting requests now and then, while its throughput still
    rises. Deep means a tenth of the running requests; lasting means in at least six consecutive
    scrapes, for half of the time.
    """
    limited = stretches.steps
    seconds = steps.seconds[limited]
    waiting = total(steps.waiting_mean[limited], seconds)
    running = total(steps.running_mean[limited], seconds)
    scrapes = group_sums(steps.scrapes[limited], stretches.own)
    is_kv_bound = steps.is_in(regimes.KV)[limited]
    is_long = (scrapes >= _LASTING_SCRAPES)[stretches.own]
    sure = np.concatenate([seconds[is_kv_bound], seconds[is_long & ~is_kv_bound]])
    is_lasting = summed(sure) >= summed(seconds) / 2
    return waiting >= _QUEUE_OF_RUNNING * running or is_lasting


def slowed(steps: EngineSteps, best: BestMinute | None) -> Mask:
    """The steps in which the server was at its limit, yet gave far less than in its best minute.

    These are minutes below three quarters of that output: two in a row, one that is a whole
    stretch, or one next to a step below that threshold. Steps below it in a minute next to such a
    minute count, too. Something outside slowed the server, or the requests were different. Either
    way they do not show its capacity.
    """
    found = np.zeros(len(steps), bool)
    if best is None:
        return found
    clean = _clean_stretches(steps)
    output, seconds = steps.output_tokens_per_second[clean.steps], steps.seconds[clean.steps]
    is_below = output < SLOWED * best.peak
    if not is_below.any():
        return found
    minutes = _minutes(seconds, clean.own)
    mean = group_sums(output * seconds, minutes) / group_sums(seconds, minutes)
    is_low = np.pad(mean < SLOWED * best.peak, 1)
    is_on = _is_on(minutes, clean.own)
    is_low_beside = (is_low[:-2] & is_on[:-1]) | (is_low[2:] & is_on[1:])
    is_lone = ~(is_on[:-1] | is_on[1:])
    is_slow = is_low[1:-1] & (is_low_beside | _is_lasting(is_below, minutes, is_on) | is_lone)
    found[clean.steps] = is_slow[minutes] | (is_low_beside[minutes] & is_below)
    return found


class _Stretches(Struct, frozen=True):
    """The steps of several stretches in order, and the stretch number of each step."""

    steps: Indices
    own: Indices

    def at(self, which: Mask) -> _Stretches:
        """A subset of their steps."""
        return _Stretches(self.steps[which], self.own[which])


def _spanned(firsts: Indices, ends: Indices) -> _Stretches:
    """The steps of each span, from its first to the one before its end; none if that is earlier."""
    lengths = np.maximum(ends - firsts, 0)
    offsets = firsts - (np.cumsum(lengths) - lengths)
    own = np.repeat(np.arange(len(firsts)), lengths)
    return _Stretches(np.arange(len(own)) + offsets[own], own)


def _clean_stretches(steps: EngineSteps) -> _Stretches:
    """The usable steps of each stretch in which the server was at its limit throughout.

    Steps at the ends of a stretch are left out: requests waited in their scrapes, but not
    necessarily before the first or after the last of these. If the observation itself begins or
    ends there, the stretch may continue, and the step is kept if there is no full minute without
    it.
    """
    firsts, ends = _limited_spans(steps)
    inner = _spanned(firsts + 1, ends - 1)
    seconds = group_sums(steps.seconds[inner.steps], inner.own, len(firsts))
    is_brief = seconds < MIN_PLATEAU_SECONDS
    chosen = _spanned(
        firsts + np.where(is_brief, steps.is_next[firsts], 1),
        ends - np.where(is_brief, steps.is_next[ends], 1),
    )
    return chosen.at(steps.is_usable[chosen.steps])


def _minutes(seconds: Floats, stretches: Indices) -> Indices:
    """The number of each step's minute: steps of a stretch in groups of at least a minute.

    The remainder of a stretch joins its last minute.
    """
    numbers: list[int] = []
    number, elapsed, current = -1, 0.0, -1
    for length, stretch in zip(seconds.tolist(), stretches.tolist(), strict=True):
        if stretch != current or elapsed >= MINUTE_SECONDS:
            number, elapsed, current = number + 1, 0.0, stretch
        elapsed += length
        numbers.append(number)
    minutes = np.asarray(numbers)
    is_on = _is_on(minutes, stretches)
    is_rest = (group_sums(seconds, minutes) < MINUTE_SECONDS) & is_on[:-1] & ~is_on[1:]
    merged = np.cumsum(~is_rest) - 1
    return np.asarray(merged[minutes])


def _is_lasting(is_below: Mask, minutes: Indices, is_on: Mask) -> Mask:
    """Whether, for each minute, an adjacent step in its stretch is also below the threshold."""
    borders = np.flatnonzero(np.diff(minutes, prepend=-1, append=-1))
    beside = np.pad(is_below, 1)
    before, after = beside[borders[:-1]], beside[borders[1:] + 1]
    return (before & is_on[:-1]) | (after & is_on[1:])


def _is_on(minutes: Indices, stretches: Indices) -> Mask:
    """Whether each minute is in the previous one's stretch; one item longer, False at both ends."""
    own = stretches[np.flatnonzero(np.diff(minutes, prepend=-1))]
    return np.pad(own[1:] == own[:-1], 1)


def _limited_spans(steps: EngineSteps) -> tuple[Indices, Indices]:
    """Spans of consecutive steps at the limit in every scrape: first step, and last step + 1.

    A single step in between, with the server at its limit for part of it, does not end a span.
    """
    limited = np.flatnonzero(_is_limited_throughout(steps))
    later, distance, is_next = limited[1:], np.diff(limited), steps.is_next
    is_bridged = (distance == 2) & is_next[later - 1] & steps.is_limited[later - 1]
    is_border = ~(is_next[later] & ((distance == 1) | is_bridged))
    is_first, is_last = np.ones((2, len(limited)), bool)
    is_first[1:], is_last[:-1] = is_border, is_border
    return limited[is_first], limited[is_last] + 1


def ceiling(steps: EngineSteps) -> float | None:
    """The most requests that ran while scheduler or cache held others back; None if never."""
    is_ceiling = steps.is_in(regimes.SCHEDULER) | steps.is_in(regimes.KV)
    most = steps.running_max[is_ceiling & _is_limited_throughout(steps)]
    return float(most.max()) if len(most) else None


def _is_limited_throughout(steps: EngineSteps) -> Mask:
    """Whether the server, by any limit, set the pace during all of each step.

    A full cache is sufficient: the queue then flickers as requests leave.
    """
    is_full = steps.is_in(regimes.KV) & (steps.kv_cache_ratio_mean >= _KV_FULL_RATIO)
    return steps.is_limited & (is_full | (steps.waiting_share >= _ALWAYS))


def _with_intervals(
    steps: EngineSteps, limited: Indices, basis: str, seed: int
) -> tuple[Estimate, Estimate]:
    """Mean output and running requests over steps at the limit.

    Long-lived requests mean fewer independent minutes: blocks are as long as a request lives, at
    least a minute.
    """
    columns = (steps.output_tokens_per_second[limited], steps.running_mean[limited])
    weights = steps.seconds[limited]
    seconds = float(weights.sum())
    requests = total(steps.requests_per_second[limited], weights)
    lifetime = total(steps.running_mean[limited], weights) / requests if requests else 0.0
    block_seconds = min(seconds, max(_BLOCK_SECONDS, lifetime))
    block = min(max(1, math.ceil(block_seconds / float(np.median(weights)))), len(weights))
    ends = block_bootstrap(columns, weights, block=block, seed=seed)
    share = max(_MIN_HALF_WIDTH, MINUTE_SCATTER / math.sqrt(seconds / block_seconds))
    output, running = (
        _wide_enough(float(np.average(column, weights=weights)), low, high, share, basis)
        for column, (low, high) in zip(columns, ends, strict=True)
    )
    return output, running


def _wide_enough(mean: float, low: float, high: float, share: float, basis: str) -> Estimate:
    """The mean with its interval, widened to at least that share of it on either side."""
    return Estimate.known(
        min(low, mean - mean * share), mean, max(high, mean + mean * share), basis
    )


def block_bootstrap(
    columns: Sequence[Floats], weights: Floats, *, block: int, seed: int = 0
) -> list[tuple[float, float]]:
    """The 5 and 95 % quantiles of the weighted mean of each column.

    Uses circular blocks of consecutive values, the same for all columns. Over a long time the
    blocks are longer, so that a resample has at most 2,000 of them; each is then summed once, and
    none is cut.
    """
    count = len(weights)
    is_long = count > _MAX_BLOCKS * block
    if is_long:
        block = math.ceil(count / _MAX_BLOCKS)
    rng, blocks = np.random.default_rng(seed), math.ceil(count / block)
    # Each array wraps around, so that a block may start anywhere.
    around = [
        np.append(one, one[: block - 1]) for one in (weights, *(c * weights for c in columns))
    ]
    if is_long:
        around = [np.lib.stride_tricks.sliding_window_view(one, block).sum(1) for one in around]
    at_once = max(1, _PICKS_AT_ONCE // (blocks if is_long else count))
    means = []
    for first in range(0, _RESAMPLES, at_once):
        starts = rng.integers(0, count, (min(at_once, _RESAMPLES - first), blocks))
        picks = starts
        if not is_long:
            picks = (starts[:, :, None] + np.arange(block)).reshape(len(starts), -1)[:, :count]
        weight, *totals = (one.take(picks).sum(1) for one in around)
        means.append([each / weight for each in totals])
    quantiles = np.quantile(np.concatenate(means, axis=1), [0.05, 0.95], axis=1)
    return [(float(low), float(high)) for low, high in quantiles.T]
