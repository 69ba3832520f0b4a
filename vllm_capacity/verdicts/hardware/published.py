"""Published runs as evidence for a what-if: a pair that answers it, or corrections from pairs.

A *pair* is two runs of one model, on the two GPUs and at the two weight types of a question, with
the same GPU count, workload and load. Bursts and sweeps pair by the description of their load. A
pair answers a question about its lengths (within 15 %) at about its rate (within 10 %); any other
saturated pair of the model shows how far the arithmetic is off for it. Every answer names the
nearest published case, whatever its model (`nearest_case`).
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache

from msgspec import Struct
from msgspec.structs import replace

from vllm_capacity.estimate import Estimate, Figures
from vllm_capacity.facts.gpus import GpuSpan, find_gpu
from vllm_capacity.facts.llms import Llm, find_llm
from vllm_capacity.facts.throughput import Measurement
from vllm_capacity.verdicts.hardware.question import KEPT_UP_RATIO, Load, Question

SAME_LENGTHS = math.log(1.15)
SAME_RATE = math.log(1.10)
MEASURED_HALF_WIDTH = 0.08
"""Half the band of a measured pair, in logarithms: runs of one setup repeat within a few %."""
NEAR = 1.5
"""The largest distance of a near case: another model of its kind at similar lengths."""


class Case(Figures, frozen=True):
    """A published pair of runs and its distance from a question; `description` is its text.

    `distance` is 0 for the same setup. Added to it: another GPU 0.5 (of another architecture 1.5);
    another model 0.3; dense instead of a mixture of experts or vice versa 0.7; another weight type
    0.5; per factor e of each length 0.25, of the GPU count 0.4; another kind of load 0.3.
    """

    model: str
    from_gpu: str
    to_gpu: str
    dtype: str
    gpus: int
    input_tokens: float
    output_tokens: float
    load: str
    from_output_tokens_per_second: float
    to_output_tokens_per_second: float
    distance: float
    source: str

    @property
    def description(self) -> str:
        """The case with its figures, its distance and its source."""
        return (
            f"the nearest published case (distance {self.distance:.1f}) is {self.model} "
            f"({self.dtype}) on {self.gpus} × {self.from_gpu} with "
            f"{self.from_output_tokens_per_second:,.0f} and {self.to_gpu} with "
            f"{self.to_output_tokens_per_second:,.0f} output tokens/s, {self.input_tokens:,.0f} "
            f"prompt and {self.output_tokens:,.0f} output tokens per request, {self.load}"
        )


class Pair(Struct, frozen=True):
    """The median runs of one workload and load on both GPUs, and how much repeats differ."""

    one: Measurement
    other: Measurement
    log_ratio: float
    log_spread: float


def pairs(wanted: Question, published: Sequence[Measurement]) -> Iterator[Pair]:
    """The published pairs of a question's model, GPUs, types and count, heaviest load first.

    One pair per workload and load, from the medians over all flags that both sides were run with.
    """
    froms = _grouped(wanted, wanted.from_gpu, wanted.dtype, published)
    tos = _grouped(wanted, wanted.to_gpu, wanted.to_dtype, published)
    for key in _shared(froms, tos):
        yield _pair(froms[key], tos[key])


def measured_ratio(wanted: Question, published: Sequence[Measurement]) -> Estimate | None:
    """The measured rate × the ratio of a published pair that answers the question; else None.

    Of several loads at that rate, the heaviest is used: there the server is the limit, not the
    clients. Of runs with other flags, those that both sides were run with and that are nearest to
    the rate.
    """
    froms = _grouped(wanted, wanted.from_gpu, wanted.dtype, published)
    tos = _grouped(wanted, wanted.to_gpu, wanted.to_dtype, published)
    for key in _shared(froms, tos):
        alike = [
            _pair(*(_with_async(side[key], flag) for side in (froms, tos)))
            for flag in (True, False)
            if all(_with_async(side[key], flag) for side in (froms, tos))
        ]
        every = (*alike, _pair(froms[key], tos[key]))
        near = [pair for pair in every if _answers(pair, wanted) and _is_under(pair, wanted.load)]
        if near:
            return _measured(min(near, key=lambda pair: _apart(pair, wanted)), wanted)
    return None


def correction(
    wanted: Question, published: Sequence[Measurement], model_log: Callable[[Question], float]
) -> tuple[float, float]:
    """The correction by the model's published pairs to the logarithm of its ratio, and a weight.

    It is the mean error of `model_log` on saturated pairs, each weighted by how close its lengths
    are, and shrunk as if one more pair had shown no error. Without pairs: (0, 0).
    """
    total = weight = 0.0
    seen: set[str] = set()
    for pair in pairs(wanted, published):
        if pair.one.clients is not None or pair.one.workload in seen:
            continue
        seen.add(pair.one.workload)
        run = pair.one
        there = replace(
            wanted,
            output_tokens_per_second=run.output_tokens_per_second,
            input_tokens=run.input_tokens,
            output_tokens=run.output_tokens,
            load=Load(),
        )
        mix = math.log(wanted.input_tokens / wanted.output_tokens)
        apart = abs(mix - math.log(run.input_tokens / run.output_tokens))
        near = math.exp(-apart / 2)
        total += near * (pair.log_ratio - model_log(there))
        weight += near
    return total / (weight + 1.0), weight


def _grouped(
    wanted: Question, span: GpuSpan, dtype: str, published: Sequence[Measurement]
) -> dict[tuple[str, str], list[Measurement]]:
    """The runs that apply to one side of a question, by workload and load."""
    groups: dict[tuple[str, str], list[Measurement]] = defaultdict(list)
    for run in published:
        same = (run.model, run.dtype, run.gpus) == (wanted.llm.model, dtype, wanted.gpus)
        if same and _overlap(find_gpu(run.gpu), span):
            groups[run.workload, run.load].append(run)
    return groups


def _shared(
    froms: Mapping[tuple[str, str], list[Measurement]],
    tos: Mapping[tuple[str, str], list[Measurement]],
) -> list[tuple[str, str]]:
    """The workloads and loads of both sides, heaviest load first."""
    return sorted(
        set(froms) & set(tos), key=lambda key: (-froms[key][0].offered_requests_per_second, key)
    )


def _pair(froms: Sequence[Measurement], tos: Sequence[Measurement]) -> Pair:
    rates = [sorted(run.output_tokens_per_second for run in side) for side in (froms, tos)]
    middles = [statistics.median(side) for side in rates]
    return Pair(
        one=replace(froms[0], output_tokens_per_second=middles[0]),
        other=replace(tos[0], output_tokens_per_second=middles[1]),
        log_ratio=math.log(middles[1] / middles[0]),
        log_spread=max(math.log(side[-1] / side[0]) for side in rates),
    )


def _with_async(runs: Sequence[Measurement], flag: bool) -> list[Measurement]:
    """The runs with (or without) asynchronous scheduling, which affects throughput most."""
    return [run for run in runs if run.async_scheduling == flag]


def _answers(pair: Pair, wanted: Question) -> bool:
    lengths = (
        math.log(wanted.input_tokens / pair.one.input_tokens),
        math.log(wanted.output_tokens / pair.one.output_tokens),
    )
    near = SAME_RATE + pair.log_spread / 2
    return _apart(pair, wanted) <= near and all(abs(length) <= SAME_LENGTHS for length in lengths)


def _is_under(pair: Pair, load: Load) -> bool:
    """Whether a pair was under the question's load; True if the question has none."""
    if load.clients is not None:
        return pair.one.clients == load.clients
    if load.requests_per_second is not None:
        return pair.one.offered_requests_per_second == load.requests_per_second
    return not load.is_capacity or (_is_behind(pair.one) and _is_behind(pair.other))


def _is_behind(run: Measurement) -> bool:
    """Whether more was offered than served: then the rate is the GPU's capacity."""
    offered = run.offered_requests_per_second * run.output_tokens
    return run.clients is None and run.output_tokens_per_second < KEPT_UP_RATIO * offered


def _apart(pair: Pair, wanted: Question) -> float:
    """The distance between the question's rate and the pair's, in logarithms."""
    return abs(math.log(wanted.output_tokens_per_second / pair.one.output_tokens_per_second))


def _measured(pair: Pair, wanted: Question) -> Estimate:
    half = math.hypot(MEASURED_HALF_WIDTH, pair.log_spread / 2)
    ratio = math.exp(pair.log_ratio)
    mid = wanted.output_tokens_per_second * ratio
    return Estimate.known(mid * math.exp(-half), mid, mid * math.exp(half), _words(pair, ratio))


def _overlap(one: GpuSpan, other: GpuSpan) -> bool:
    return bool(set(one.rows) & set(other.rows))


def _words(pair: Pair, ratio: float) -> str:
    one, other = pair.one, pair.other
    return (
        f"measured: {one.model} {one.dtype} on {one.gpus} × {one.gpu} produced "
        f"{one.output_tokens_per_second:.0f} and {other.dtype} on {other.gpu} "
        f"{other.output_tokens_per_second:.0f} output tokens/s (ratio {ratio:.2f}); "
        f"{one.workload}, {one.input_tokens:g} prompt and {one.output_tokens:g} output tokens per "
        f"request, {one.load}; "
        f"vLLM {one.engine_version or 'version not stated'} and "
        f"{other.engine_version or 'version not stated'}; {one.source} ({one.date})"
    )


def nearest_case(wanted: Question, published: Sequence[Measurement]) -> Case | None:
    """The published pair of two GPUs that is nearest to a question; None without any pair."""
    pairs_known = _every_pair(tuple(published))
    if not pairs_known:
        return None
    apart, one, other = min(
        ((_distance(wanted, one, other), one, other) for one, other in pairs_known),
        key=lambda found: found[0],
    )
    return Case(
        model=one.model,
        from_gpu=one.gpu,
        to_gpu=other.gpu,
        dtype=one.dtype,
        gpus=one.gpus,
        input_tokens=one.input_tokens,
        output_tokens=one.output_tokens,
        load=one.load,
        from_output_tokens_per_second=one.output_tokens_per_second,
        to_output_tokens_per_second=other.output_tokens_per_second,
        distance=apart,
        source=one.source,
    )


@cache
def _every_pair(published: tuple[Measurement, ...]) -> tuple[tuple[Measurement, Measurement], ...]:
    """Every ordered pair of runs on two GPUs with one model, type, count, workload and load.

    One run per GPU: repeats are alike.
    """
    groups: dict[tuple[object, ...], dict[str, Measurement]] = defaultdict(dict)
    for run in published:
        key = (run.model, run.dtype, run.gpus, run.workload, run.load)
        groups[key].setdefault(run.gpu, run)
    return tuple(
        (one, other)
        for found in groups.values()
        for one in found.values()
        for other in found.values()
        if one is not other
    )


def _distance(wanted: Question, one: Measurement, other: Measurement) -> float:
    """The distance of a published pair from a question: see `Case`."""
    apart = _gpu_distance(wanted.from_gpu, one.gpu) + _gpu_distance(wanted.to_gpu, other.gpu)
    if one.model != wanted.llm.model:
        apart += 0.3 + 0.7 * (_llm(one.model).is_moe != wanted.llm.is_moe)
    apart += 0.5 * (one.dtype != wanted.dtype) + 0.5 * (other.dtype != wanted.to_dtype)
    apart += 0.25 * abs(math.log(one.input_tokens / wanted.input_tokens))
    apart += 0.25 * abs(math.log(one.output_tokens / wanted.output_tokens))
    apart += 0.4 * abs(math.log(one.gpus / wanted.gpus))
    return apart + 0.3 * ((one.clients is None) != (wanted.load.clients is None))


@cache
def _llm(model: str) -> Llm:
    return find_llm(model)


@cache
def _gpu_distance(span: GpuSpan, name: str) -> float:
    rows = find_gpu(name).rows
    if set(rows) & set(span.rows):
        return 0.0
    return 0.5 if rows[0].family == span.rows[0].family else 1.5
