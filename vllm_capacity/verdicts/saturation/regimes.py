"""What limits throughput in each step: the clients, the scheduler, the KV cache, or prefill.

A step of one engine is judged by the first rule that fits:

1. No scrape reported how many requests ran: unknown.
2. Nothing ran, waited or was generated: idle.
3. The KV cache is full (mean ratio ≥ 0.9) while requests wait or are preempted: kv-bound. A mean of
   0.75 is enough if its peak reached 0.9 and requests were preempted, or waited below the ceiling:
   there is no room for the next request, and usage fluctuates. If they wait below the ceiling and
   are preempted, a peak of 0.75 is enough: the cache filled within the step.
4. Requests wait in at least half of the scrapes, and running is at its own ceiling (within one of
   the window's maximum in ≥ 80 % of those scrapes, or at 95 % of it on average): scheduler-bound.
   `max_num_seqs` is not exported, but its effect is visible. If prompt tokens are ten times the
   output and running is small or not steadily at the ceiling, the ceiling is chance, and the step
   is prefill-bound. A step of fewer than five scrapes is judged with the two steps before and after
   it.
5. Requests wait, the cache is not full, running is below its ceiling: prefill-bound.
6. Requests ran but no tokens were generated: unknown (a frozen gauge or a hung engine).
7. The queue is empty, output has not grown although running has, by 1.4 ×, and tokens came more
   slowly: unknown, with decode-compute-bound in the evidence, because no vLLM metric distinguishes
   that from a change of workload. If tokens came as fast as ever, more requests ran by chance.
8. Otherwise the clients decide how much runs: client-bound.

A single step with a queue, between two steps with the same limit, is counted with them. Why not KV
usage alone: queues are known to grow without bound at 32 % KV. Why not the queue alone: a queue has
three causes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from enum import IntEnum
from functools import cached_property

import numpy as np
import polars as pl
from msgspec import Struct
from msgspec.structs import replace

from vllm_capacity.assumptions import TARGETS
from vllm_capacity.figures.steps import STEP_SCHEMA
from vllm_capacity.verdicts.saturation.arrays import (
    Codes,
    Floats,
    Indices,
    Instants,
    Mask,
    group_middles,
    group_sums,
    highest,
    is_nonzero,
    is_seen,
    numbered,
    or_zero,
    summed,
    sums_around,
    upper_median,
)

IDLE = "idle"
CLIENT = "client-bound"
SCHEDULER = "scheduler-bound"
KV = "kv-bound"
PREFILL = "prefill-bound"
UNKNOWN = "unknown"
LIMITS = (KV, PREFILL, SCHEDULER)
"""The regimes in which the server, not its clients, sets the throughput."""

KV_FULL_RATIO = 0.9
"""From this usage on, the KV cache counts as full if requests wait or are preempted."""

BY_SEVERITY = (IDLE, CLIENT, UNKNOWN, SCHEDULER, PREFILL, KV)
"""The regimes, the most limiting last."""

_KV_TIGHT_RATIO = 0.75
_QUEUE_SHARE = 0.5
_CEILING_SHARE = 0.8
_NEAR_CEILING_RATIO, _HARD_CEILING = 0.95, 0.9
_SMALL_CEILING = 3
_ENOUGH_SCRAPES, _NEAR_STEPS = 5, 2
_PROMPT_HEAVY = 10.0
_FLAT_GROWTH = 1.05
_SLOWER = 1.15
_LIGHTER = 1.4
_BAND = 1.2
_MIN_BAND_STEPS = 3
_MIN_LIMITED_SHARE = 0.1
_MIN_FLAT_BAND = round(math.log(2.0) / math.log(_BAND))
MAX_RUNNING_NOISE = 0.15
"""Above this `running_noise_ratio`, a step's load is too uncertain for a point of a curve."""


class Cause(IntEnum):
    """Why a step is in its regime: which of the module's rules fits."""

    UNOBSERVED = 0
    IDLE = 1
    KV = 2
    SCHEDULER = 3
    PREFILL = 4
    KV_UNOBSERVED = 5
    THINNED = 6
    STALLED = 7
    DECODE = 8
    CLIENT = 9


_REGIMES: Mapping[Cause, str] = {
    Cause.UNOBSERVED: UNKNOWN,
    Cause.IDLE: IDLE,
    Cause.KV: KV,
    Cause.SCHEDULER: SCHEDULER,
    Cause.PREFILL: PREFILL,
    Cause.KV_UNOBSERVED: UNKNOWN,
    Cause.THINNED: UNKNOWN,
    Cause.STALLED: UNKNOWN,
    Cause.DECODE: UNKNOWN,
    Cause.CLIENT: CLIENT,
}
_SEVERITIES = np.array([BY_SEVERITY.index(_REGIMES[cause]) for cause in Cause], np.int8)
_MIN_LIMIT = min(map(BY_SEVERITY.index, LIMITS))


class EngineSteps(Struct, frozen=True, eq=False, dict=True):
    """The judged steps of one engine in time order, an array per column of `STEP_SCHEMA`.

    `p95_seconds` are the p95s of the latencies that can have a target, by name. Values that were
    not observed are nan. `cause` holds a `Cause` per step. `running` is the mean number of running
    requests, by Little's law if available (`is_running_exact`, `running_loads`), else the mean of
    the gauge.
    """

    start: Instants
    end: Instants
    scrapes: Indices
    running_mean: Floats
    running_max: Floats
    waiting_mean: Floats
    waiting_max: Floats
    waiting_share: Floats
    at_ceiling_share: Floats
    kv_cache_ratio_mean: Floats
    kv_cache_ratio_max: Floats
    output_tokens_per_second: Floats
    best_minute_tokens_per_second: Floats
    requests_per_second: Floats
    prompt_tokens_per_second: Floats
    preemptions: Floats
    itl_mean_seconds: Floats
    is_gap: Mask
    is_restart: Mask
    seconds: Floats
    running: Floats
    is_running_exact: Mask
    cause: Codes
    p95_seconds: Mapping[str, Floats]

    def __len__(self) -> int:
        return len(self.start)

    def column(self, name: str) -> Floats:
        """A column by its name in `STEP_SCHEMA`."""
        found: Floats = self.p95_seconds[name] if name in TARGETS else getattr(self, name)
        return found

    @cached_property
    def severity(self) -> Codes:
        """The rank of each step's regime, the most limiting last."""
        return _SEVERITIES[self.cause]

    @property
    def is_limited(self) -> Mask:
        """The steps in which the server was at its limit."""
        return np.asarray(self.severity >= _MIN_LIMIT)

    @cached_property
    def is_next(self) -> Mask:
        """Whether each step directly follows the previous; one item longer, False at both ends."""
        found = np.zeros(len(self) + 1, bool)
        found[1:-1] = self.end[:-1] == self.start[1:]
        return found

    @cached_property
    def is_usable(self) -> Mask:
        """The whole and clean steps: no gap or restart, not cut short, load and output observed."""
        return np.asarray(
            ~(self.is_gap | self.is_restart)
            & (self.scrapes > 0)
            & (self.seconds >= upper_median(self.seconds) / 2)
            & is_seen(self.running_mean)
            & is_seen(self.output_tokens_per_second)
        )

    def is_in(self, regime: str) -> Mask:
        """The steps in that regime."""
        return np.asarray(self.severity == BY_SEVERITY.index(regime))


def judged_steps(steps: pl.DataFrame) -> EngineSteps:
    """The steps of one engine with their regimes; rows of `STEP_SCHEMA` in time order."""
    judged = _unjudged(steps)
    judged = replace(judged, cause=_causes(judged))
    return replace(judged, cause=_joined_flickers(judged))


def _unjudged(steps: pl.DataFrame) -> EngineSteps:
    """The columns, every cause `UNOBSERVED`."""
    steps = steps.with_columns(pl.col(pl.Int64).fill_null(0), pl.col(pl.Boolean).fill_null(False))
    columns = {
        name: steps[name].to_numpy() for name, dtype in STEP_SCHEMA.items() if dtype != pl.String
    }
    decoding = columns["output_tokens_per_second"] * columns["itl_mean_seconds"]
    loads = running_loads(decoding, columns["running_mean"], columns["scrapes"])
    is_exact = is_seen(loads)
    p95s = {name: columns.pop(name) for name in TARGETS}
    return EngineSteps(
        **columns,
        p95_seconds=p95s,
        seconds=(columns["end"] - columns["start"]) / np.timedelta64(1, "s"),
        running=np.where(is_exact, loads, columns["running_mean"]),
        is_running_exact=is_exact,
        cause=np.full(steps.height, Cause.UNOBSERVED, np.int8),
    )


def running_loads(decoding: Floats, running_mean: Floats, scrapes: Indices) -> Floats:
    """The mean running requests of each step by Little's law; nan if it cannot be computed.

    `decoding` is output tokens/s × mean inter-token latency: exactly the mean number of decoding
    requests, because both are sums over tokens, while the gauge has only a few samples. It is
    multiplied by the ratio of running to decoding requests (from the gauges of all steps), to
    include those in prefill.
    """
    seen = is_seen(decoding) & is_seen(running_mean) & (scrapes > 0)
    ran = summed(running_mean[seen] * scrapes[seen])
    decoded = summed(decoding[seen] * scrapes[seen])
    if not ran or not decoded:
        return np.full(len(decoding), math.nan)
    return decoding * ran / decoded


def window_regime(steps: EngineSteps) -> str:
    """The regime of most non-idle time of one engine; idle if nothing ever ran.

    Unobserved time does not count, unless there is no other.
    """
    seen = steps.cause != Cause.UNOBSERVED
    if len(steps) and not seen.any():
        return UNKNOWN
    return _most_time(steps, seen & ~steps.is_in(IDLE)) or IDLE


def bottleneck(steps: EngineSteps) -> str | None:
    """The longest limit in the busiest quarter of one engine's steps; None if limits are rare.

    Rare means under a tenth of that quarter's time. Busy is running plus waiting; idle and
    unobserved steps are left out first.
    """
    (seen,) = np.nonzero(~steps.is_in(IDLE) & is_seen(steps.running_mean))
    requests = steps.running_mean[seen] + or_zero(steps.waiting_mean[seen])
    busiest = seen[_is_among_highest(requests, math.ceil(len(seen) / 4))]
    limited = busiest[steps.is_limited[busiest]]
    seconds = summed(steps.seconds[limited])
    is_brief = seconds < _MIN_LIMITED_SHARE * summed(steps.seconds[busiest])
    return None if is_brief else _most_time(steps, limited)


def _is_among_highest(values: Floats, count: int) -> Mask:
    """Which are the `count` highest values; the first ones if some are equal."""
    if not count:
        return np.zeros(len(values), bool)
    least = np.partition(values, -count)[-count]
    found = values > least
    found[np.flatnonzero(values == least)[: count - found.sum()]] = True
    return np.asarray(found)


def worst(names: Sequence[str]) -> str:
    """The most limiting of several engines' regimes; idle for none."""
    return max(names, key=BY_SEVERITY.index, default=IDLE)


def _causes(steps: EngineSteps) -> Codes:
    """The cause of each step, before joining."""
    output, queue = steps.output_tokens_per_second, is_nonzero(steps.waiting_max)
    is_quiet = ~(is_nonzero(steps.running_max) | queue) & (or_zero(output) <= 0)
    is_queued = steps.waiting_share >= _QUEUE_SHARE
    shares = _ceiling_shares(steps)
    is_light = ~is_nonzero(steps.waiting_share)
    rules = {
        Cause.UNOBSERVED: (steps.scrapes == 0) | ~is_seen(steps.running_mean),
        Cause.IDLE: is_quiet,
        Cause.KV: _is_kv_bound(steps, shares),
        Cause.KV_UNOBSERVED: is_queued & ~is_seen(steps.kv_cache_ratio_mean),
        Cause.SCHEDULER: is_queued & _is_at_ceiling(steps, shares),
        Cause.PREFILL: is_queued,
        Cause.THINNED: ~is_seen(steps.waiting_share) & queue,
        Cause.STALLED: (output <= 0) & (steps.running_mean >= 1),
        Cause.DECODE: is_light & np.isin(_bands(steps.running_mean), _flat_bands(steps)),
    }
    causes = np.select(list(rules.values()), list(rules), default=Cause.CLIENT)
    return causes.astype(np.int8)


def _is_kv_bound(steps: EngineSteps, ceiling_shares: Floats) -> Mask:
    mean, peak = steps.kv_cache_ratio_mean, steps.kv_cache_ratio_max
    is_preempting = is_nonzero(steps.preemptions)
    is_below_ceiling = or_zero(ceiling_shares) < _CEILING_SHARE
    is_held_back = (steps.waiting_share >= _QUEUE_SHARE) & is_below_ceiling
    is_tight, is_full = mean >= _KV_TIGHT_RATIO, mean >= KV_FULL_RATIO
    return (peak >= _KV_TIGHT_RATIO) & (
        (is_full & (is_preempting | is_nonzero(steps.waiting_max)))
        | (~is_full & is_tight & (peak >= KV_FULL_RATIO) & (is_preempting | is_held_back))
        | (~is_full & is_seen(mean) & is_preempting & is_held_back)
    )


def _is_at_ceiling(steps: EngineSteps, ceiling_shares: Floats) -> Mask:
    """Whether running is at a ceiling of the scheduler.

    Such a ceiling is hard: with a queue behind it, running stays on it, except for requests that
    finished in the last engine step (many, if many run and answers are short). "Within one" means
    little if the maximum is two or three: long prompts alone keep it that low.
    """
    ceiling = highest(steps.running_max)
    is_near = or_zero(ceiling_shares) >= _CEILING_SHARE
    is_prompt_heavy = (
        steps.prompt_tokens_per_second >= _PROMPT_HEAVY * steps.output_tokens_per_second
    )
    is_hard = is_near & (steps.running_mean >= _HARD_CEILING * ceiling)
    is_there = is_near | (steps.running_mean >= _NEAR_CEILING_RATIO * ceiling)
    return np.where(is_prompt_heavy, is_hard & (ceiling > _SMALL_CEILING), is_there)


def _ceiling_shares(steps: EngineSteps) -> Floats:
    """`at_ceiling_share` of each step; with few scrapes, including the queued steps around it."""
    shares = steps.at_ceiling_share
    queued = or_zero(steps.waiting_share) * steps.scrapes
    at_ceiling = or_zero(shares) * queued
    is_thin = is_seen(shares) & (steps.scrapes < _ENOUGH_SCRAPES)
    if is_thin.any():
        near = sums_around(np.where(is_seen(shares), queued, 0.0), _NEAR_STEPS)
        queued = np.where(is_thin, near, queued)
        at_ceiling = np.where(is_thin, sums_around(at_ceiling, _NEAR_STEPS), at_ceiling)
    return np.divide(at_ceiling, queued, out=shares.copy(), where=queued > 0)


def _joined_flickers(steps: EngineSteps) -> Codes:
    """The causes, with single steps with a queue or a full cache joined to the limit on both sides.

    A joined step can be a neighbor of the next one: of several in a row that each lie between two
    steps of one limit, every other one is joined.
    """
    before, this, after = steps.cause[:-2], steps.cause[1:-1], steps.cause[2:]
    is_full = (before == Cause.KV) & (steps.kv_cache_ratio_max[1:-1] >= KV_FULL_RATIO)
    is_limited = is_nonzero(steps.waiting_share[1:-1]) | is_full
    is_lone = (before == after) & (this != before) & steps.is_limited[:-2]
    is_lone &= is_limited & ((this == Cause.CLIENT) | steps.is_limited[1:-1])
    places = np.arange(len(this))
    in_a_row = places - np.maximum.accumulate(np.where(is_lone, -1, places))
    joined = steps.cause.copy()
    joined[1:-1] = np.where(is_lone & (in_a_row % 2 == 1), before, this)
    return joined


def running_noise_ratio(mean: Floats, most: Floats, scrapes: Indices) -> Floats:
    """The possible error of a step's mean of running due to few scrapes, relative to the mean.

    (Maximum − mean) ÷ √scrapes approximates the standard error: close to zero if clients keep the
    load constant, most of the mean if a few requests come and go. Infinite if unknown.
    """
    is_known = is_nonzero(mean) & is_seen(most) & (scrapes > 0)
    noise = np.full(len(mean), math.inf)
    spread = most[is_known] - mean[is_known]
    noise[is_known] = spread / np.sqrt(scrapes[is_known]) / mean[is_known]
    return noise


def _bands(running: Floats) -> Floats:
    """The number of each load's band, 1.2 × wide; nan if nothing ran."""
    return np.rint(np.log(np.where(running > 0, running, math.nan)) / math.log(_BAND))


def _flat_bands(steps: EngineSteps) -> list[int]:
    """The loads that, without a queue, gave no more than a lighter one.

    A load is a band of running, 1.2 × wide, of at least three clear steps. The median of its output
    is compared with the best of those at least 1.4 × lighter, from two running requests on. If the
    time between tokens was observed at both, it must have grown too.
    """
    noise = running_noise_ratio(steps.running_mean, steps.running_max, steps.scrapes)
    is_clear = (noise <= MAX_RUNNING_NOISE) & is_nonzero(steps.output_tokens_per_second)
    clear = np.flatnonzero(is_clear & ~is_nonzero(steps.waiting_share) & (steps.running_mean > 0))
    bands, own, counts = numbered(_bands(steps.running_mean[clear]))
    (_, output), (_, itl) = (
        group_middles(column[clear], own, len(bands))
        for column in (steps.output_tokens_per_second, steps.p95_seconds["itl_p95_seconds"])
    )
    loads = {
        int(bands[k]): (float(output[k]), float(itl[k]))
        for k in np.flatnonzero(counts >= _MIN_BAND_STEPS)
    }
    return [band for band in loads if _is_flat(band, loads)]


def _is_flat(band: int, loads: Mapping[int, tuple[float, float]]) -> bool:
    distance = math.log(_LIGHTER) / math.log(_BAND)
    lighter = [load for other, load in loads.items() if band - other >= distance]
    if not lighter or band < _MIN_FLAT_BAND:
        return False
    output, itl = loads[band]
    best, best_itl = max(lighter)
    is_slower = math.isnan(itl) or math.isnan(best_itl) or itl >= _SLOWER * best_itl
    return output <= _FLAT_GROWTH * best and is_slower


def _most_time(steps: EngineSteps, which: Indices | Mask) -> str | None:
    """The regime of most of that time; the most limiting if some are equal; None without a step."""
    severity = steps.severity[which]
    if not len(severity):
        return None
    seconds = group_sums(steps.seconds[which], severity, len(BY_SEVERITY))
    return max(
        BY_SEVERITY, key=lambda name: (seconds[BY_SEVERITY.index(name)], BY_SEVERITY.index(name))
    )
