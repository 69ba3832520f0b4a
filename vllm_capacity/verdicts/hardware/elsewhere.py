"""Questions about another GPU beyond one rate: its whole curve, its splits, its engine version.

*Curve*: every measured load is moved separately, with as many clients on the other GPU; throughput
within targets is read where the moved curve crosses them. A capacity within targets does not scale
like the maximum throughput: a faster GPU is nearer to its limit when it meets them. *Splits*: the
tensor parallelisms that a number of GPUs can be split into, and their replicas. *Engine*: the
effect of another version of vLLM on published runs of the same model on the same GPU; if there are
none, a wider band, because no effect of a version was found that holds for several models.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

from msgspec import Struct
from msgspec.structs import replace

from vllm_capacity.errors import InputError
from vllm_capacity.estimate import Estimate, Kind
from vllm_capacity.facts.gpus import find_gpu
from vllm_capacity.facts.prices import choose_price
from vllm_capacity.facts.throughput import Measurement
from vllm_capacity.verdicts.hardware.band import wider
from vllm_capacity.verdicts.hardware.choice import Choice, choice
from vllm_capacity.verdicts.hardware.question import MAX_GPUS, Load, Question
from vllm_capacity.verdicts.hardware.serving import Machine, saturated_batch
from vllm_capacity.verdicts.hardware.what_if import (
    Split,
    WhatIf,
    published_runs,
    shipped_what_if,
)
from vllm_capacity.verdicts.saturation.slo import SloLoad

Ask = Callable[[Question], WhatIf]
MIN_VERSION_HALF_WIDTH = 0.05
"""Minimum half band of a version's effect, in logarithms: how well two runs of one setup agree."""
UNKNOWN_VERSION_HALF_WIDTH = 0.15
"""What two versions of unknown effect add to half a band, in logarithms.

Of 270 silicon pairs of two GPUs and two versions 84 % lie inside the band of one version, with this
94 % (of either model 93 % or more; models left out).
"""
PAIRED_VERSIONS = (0, 10), (0, 19)
"""The oldest and the newest version of those pairs."""
MAX_TIMES = 32.0
"""How far silicon sweeps validate the step from a light load to a heavier one.

From 4 clients to 128 nine in ten lie inside, from 4 to 256 fewer.
"""
_ALL_MISSED = 1e9
_SHORT_SECONDS = 1e-9
"""A latency so short that the GPU explains all of it: then that on the other GPU is in proportion.

A curve has latencies over their targets, not seconds of which a part could be carried over.
"""


def answer_elsewhere(
    question: Question,
    *,
    to_gpus: int | None = None,
    engine_version: str | None = None,
    to_engine_version: str | None = None,
    usd_per_gpu_hour: Estimate | None = None,
    to_usd_per_gpu_hour: Estimate | None = None,
) -> WhatIf:
    """What the other GPUs achieve, by the shipped tables: their best split, with that engine.

    `to_gpus` None: one engine of the measured count. `to_engine_version` None: the measured one.
    Prices None: the offers of the price list. InputError if another version is asked about without
    the measured one.
    """
    if to_gpus is None:
        found = shipped_what_if(question)
    else:
        found = best_split(question, to_gpus, shipped_what_if)
    if engine_version is not None or to_engine_version is not None:
        versions = {"here": engine_version, "there": to_engine_version}
        found = of_version(question, found, published_runs(), **versions)
    here = usd_per_gpu_hour or choose_price(gpu=question.from_gpu.name)
    there = to_usd_per_gpu_hour or choose_price(gpu=question.to_gpu.name)
    return replace(found, choice=_choice(question, found, here, there, to_gpus=to_gpus))


class _Offer(Struct, frozen=True):
    """One side of a question at its price."""

    gpu: str
    usd_per_gpu_hour: Estimate
    throughput_ratio: Estimate

    @property
    def is_comparable(self) -> bool:
        return all(
            each.is_known and each.low for each in (self.usd_per_gpu_hour, self.throughput_ratio)
        )


def _choice(
    question: Question, found: WhatIf, here: Estimate, there: Estimate, *, to_gpus: int | None
) -> Choice | None:
    """Which side gives more tokens per dollar; None for another load, or for a single GPU type."""
    gpus = question.gpus_there if to_gpus is None else to_gpus
    if question.load_there != question.load or question.from_gpu == question.to_gpu:
        return None
    ratio = found.output_tokens_per_second.scaled(1 / question.output_tokens_per_second)
    other = _Offer(question.to_gpu.label, there, ratio)
    own = _Offer(question.from_gpu.label, here, Estimate.exact(1.0))
    return choice(other, own, gpus=gpus, other_gpus=question.gpus)


def of_version(
    question: Question,
    found: WhatIf,
    published: Sequence[Measurement],
    *,
    here: str | None,
    there: str | None,
) -> WhatIf:
    """The answer for another version of the engine than the measured one; `there` None: the same.

    With the effect on `published` runs of the model, else with a wider band. Unknown if there are
    none and no published pair of two GPUs was of versions like these, or if both sides have the
    same GPUs. InputError if the measured version is not given.
    """
    if here is None:
        raise InputError(
            "To estimate for another version of the engine, also give the measured one "
            "(engine_version)."
        )
    if there is None:
        return _widened(found, 0.0, f"assuming vLLM {here} on both sides")
    if there == here:
        return _widened(found, 0.0, f"vLLM {here} on both sides")
    effect = version_effect(question, published, here=here, there=there)
    if effect.is_known or question.is_same_setup or not (_is_paired(here) and _is_paired(there)):
        return with_version(found, effect)
    return _widened(found, UNKNOWN_VERSION_HALF_WIDTH, f"{effect.reason}; hence the wider band")


def _is_paired(version: str) -> bool:
    """Whether published pairs show how far versions like that one lie apart."""
    oldest, newest = PAIRED_VERSIONS
    numbers = re.match(r"v?(\d+)\.(\d+)", version)
    return numbers is not None and oldest <= tuple(map(int, numbers.groups())) <= newest


def _widened(found: WhatIf, more: float, words: str) -> WhatIf:
    """The answer with wider bands, in logarithms, and the reason in its basis."""
    return replace(
        found,
        output_tokens_per_second=wider(found.output_tokens_per_second, more, words),
        itl_seconds=wider(found.itl_seconds, more, words),
        ttft_seconds=wider(found.ttft_seconds, more, words),
    )


def best_split(question: Question, gpus: int, ask: Ask) -> WhatIf:
    """The split of `gpus` into engines that gives most, with all splits in `splits`.

    The load is shared evenly over replicas. Most output tokens per second first; splits that cannot
    serve come last, with their reason. InputError for an invalid number of GPUs.
    """
    if not 1 <= gpus <= MAX_GPUS:
        raise InputError(f"There must be 1 to {MAX_GPUS} GPUs; found {gpus}.")
    found = [_split(question, each, gpus // each, ask) for each in _divisors(gpus)]
    found.sort(key=lambda pair: -(pair[0].output_tokens_per_second.mid or 0.0))
    (best, answer), every = found[0], tuple(split for split, _ in found)
    return replace(answer, output_tokens_per_second=best.output_tokens_per_second, splits=every)


def _divisors(gpus: int) -> Iterator[int]:
    return (each for each in range(1, gpus + 1) if gpus % each == 0)


def _split(question: Question, each: int, replicas: int, ask: Ask) -> tuple[Split, WhatIf]:
    asked = replace(question, to_gpus=each)
    if question.load_there.is_known:
        asked = replace(asked, at=_share(question.load_there, replicas))
    found = ask(asked)
    words = f"× {replicas} replicas" if replicas > 1 else f"one engine of {each} GPUs"
    whole = found.output_tokens_per_second.scaled(replicas, words)
    return Split(each, replicas, whole, found.itl_seconds, found.ttft_seconds), found


def _share(load: Load, replicas: int) -> Load:
    """Each replica's share of a load; with fewer clients than replicas, one each."""
    if load.clients is not None:
        return Load(clients=max(load.clients / replicas, 1.0))
    if load.requests_per_second is not None:
        return Load(requests_per_second=load.requests_per_second / replicas)
    return load


def moved_curve(question: Question, loads: Sequence[SloLoad], ask: Ask) -> tuple[SloLoad, ...]:
    """Measured loads as the other GPU would serve them, lightest first.

    `question` gives model, GPUs and lengths; rate and load are those of each measured load. A load
    with unknown latencies there counts as missing its targets.
    """
    return tuple(_moved(question, load, ask) for load in loads)


def _moved(question: Question, load: SloLoad, ask: Ask) -> SloLoad:
    asked = replace(
        question,
        output_tokens_per_second=load.output_tokens_per_second,
        load=Load(clients=max(load.running, 1.0)),
        at=None,
        itl_seconds=_SHORT_SECONDS,
        ttft_seconds=_SHORT_SECONDS,
    )
    found = ask(asked)
    itl, ttft = (
        each.scaled(1 / _SHORT_SECONDS).mid for each in (found.itl_seconds, found.ttft_seconds)
    )
    return replace(
        load,
        output_tokens_per_second=found.mid or 0.0,
        itl_ratio=None if load.itl_ratio is None else load.itl_ratio * (itl or _ALL_MISSED),
        ttft_ratio=None if load.ttft_ratio is None else load.ttft_ratio * (ttft or _ALL_MISSED),
    )


def within_targets(loads: Sequence[SloLoad]) -> tuple[float, bool] | None:
    """The output tokens per second at which a curve meets its targets, and whether they end it.

    Interpolated between the heaviest load below which none misses them and the next, by the
    logarithms of the rate and of the latency furthest from its target, because loads are a factor
    apart. Not ended: no load missed them. None: the lightest did.
    """
    ordered = sorted(loads, key=lambda load: load.running)
    if not ordered or ordered[0].worst > 1:
        return None
    best = ordered[0].output_tokens_per_second
    for met, missed in pairwise(ordered):
        best = max(best, met.output_tokens_per_second)
        if missed.worst > 1:
            span = math.log(missed.worst / met.worst)
            share = -math.log(met.worst) / span if span > 0 else 0.0
            return max(best, _between(met, missed, share)), True
    return max(best, ordered[-1].output_tokens_per_second), False


def _between(met: SloLoad, missed: SloLoad, share: float) -> float:
    """The rate at that share of the way from a load to the next; its own if one gives nothing."""
    here, there = met.output_tokens_per_second, missed.output_tokens_per_second
    if min(here, there) <= 0:
        return here
    return math.exp((1 - share) * math.log(here) + share * math.log(there))


def slo_gain(question: Question, loads: Sequence[SloLoad], ask: Ask) -> float | None:
    """How many times the throughput within targets is on the other GPU, by moving the curve.

    If no load misses the targets there, the gain at the heaviest measured load, as a minimum. None
    if the curve cannot show it: no target ends it here, or every load misses there.
    """
    here = within_targets(loads)
    there = within_targets(moved_curve(question, loads, ask)) if here else None
    if here is None or there is None:
        return None
    return there[0] / here[0]


def heaviest_load(question: Question, *, admitted: float | None = None) -> tuple[float, bool]:
    """The running requests that a light load can predict, and whether the same GPUs admit no more.

    `question` has the measured running requests as its clients; `admitted` is the most that run, if
    the server reports it (by its KV cache). At least as many as were seen.
    """
    here, running = question.from_gpu.rows[0], question.load.clients or 1.0
    most = saturated_batch(question.job_here, Machine(here, here.tensor_tflops or 1.0))
    most = max(most if admitted is None else min(most, admitted), running)
    heaviest = min(most, MAX_TIMES * running)
    return heaviest, heaviest == most


def full_from_light(question: Question, ask: Ask, *, admitted: float | None = None) -> WhatIf:
    """What the same GPUs do with as many requests as they admit, from a measured light load.

    Calculated, and corrected by the measured time per token. At most `MAX_TIMES` the measured
    requests are estimated for (`heaviest_load`). It is an extrapolation, shown next to a measured
    bound.
    """
    same = replace(
        question,
        to_gpu=question.from_gpu,
        to_dtype=question.dtype,
        to_gpus=question.gpus,
        to_kv_dtype=None,
    )
    asked, is_full = heaviest_load(same, admitted=admitted)
    found = ask(replace(same, at=Load(clients=asked)))
    words = (
        f"calculated for {question.gpus} × {question.from_gpu.label} at a concurrency of "
        f"{asked:.3g}, corrected by the time per token measured at {same.load.clients or 1.0:.3g}"
    )
    if not is_full:
        words += "; it admits more, but so light a load does not support an estimate for them"
    whole = found.output_tokens_per_second
    return replace(found, output_tokens_per_second=whole.scaled(1.0, words))


def version_effect(
    question: Question, published: Sequence[Measurement], *, here: str, there: str
) -> Estimate:
    """The output tokens per second of one version of vLLM over those of another.

    From published runs of the model with both versions on one GPU of the other side's architecture,
    at one weight type, GPU count, workload and load: their median, and their scatter. Unknown, with
    the published versions, if there are none.
    """
    family = question.to_gpu.rows[0].family
    own = [run for run in published if run.model == question.llm.model and run.engine_version]
    ratios = [
        other.output_tokens_per_second / one.output_tokens_per_second
        for one in own
        for other in own
        if (one.engine_version, other.engine_version) == (here, there)
        and (one.gpu, one.dtype, one.gpus) == (other.gpu, other.dtype, other.gpus)
        and (one.workload, one.load) == (other.workload, other.load)
        and _family(one) == family
        and one.async_scheduling == other.async_scheduling
    ]
    if not ratios:
        versions = ", ".join(sorted({run.engine_version for run in own})) or "none"
        return Estimate.unknown(
            f"no published pair of vLLM {here} and {there} for {question.llm.model} on a "
            f"{family} GPU (published versions: {versions})"
        )
    logs = [math.log(ratio) for ratio in ratios]
    middle = statistics.median(logs)
    spread = statistics.quantiles(logs, n=20)[-1] - middle if len(logs) > 1 else 0.0
    half = max(MIN_VERSION_HALF_WIDTH, abs(spread))
    words = (
        f"vLLM {there} relative to {here}: {math.exp(middle):.2f} × in {len(ratios)} published "
        "pairs of "
        f"{question.llm.model} on {family} GPUs"
    )
    low, mid, high = (math.exp(middle + shift) for shift in (-half, 0.0, half))
    return Estimate.known(low, mid, high, words, kind=Kind.EXTRAPOLATED)


def _family(run: Measurement) -> str:
    return find_gpu(run.gpu).rows[0].family


def with_version(found: WhatIf, effect: Estimate) -> WhatIf:
    """The answer for another version of the engine; unknown if its effect is."""
    if not effect.is_known:
        unknown = Estimate.unknown(effect.reason)
        return replace(
            found, output_tokens_per_second=unknown, itl_seconds=unknown, ttft_seconds=unknown
        )
    slower = effect.inverse()
    return replace(
        found,
        output_tokens_per_second=found.output_tokens_per_second.times(effect),
        itl_seconds=found.itl_seconds.times(slower),
        ttft_seconds=found.ttft_seconds.times(slower),
    )
