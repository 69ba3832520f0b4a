"""What another GPU would do: output tokens a second on H, from a measurement on G.

1. *Refuse* where the domain ends: the weights do not fit, no sequence fits beside them, the GPU
   cannot run the weight type, the context is too long. The reason holds the numbers.
2. *Published pairs first.* Where both GPUs were published for this model, types, GPU count, lengths
   and a load that gave about the measured rate, the answer is the measured rate × their ratio.
3. *Else scale*: the measured rate × the ratio of `roofline` times on G and H, leaning by a quarter
   on the plain ratio of data sheets. Published pairs of the same model at other lengths correct
   that ratio, the more of them the more.
4. *Light load.* A rate far under what G could do says that the client limits (or the software is
   old: the less the rate, the less likely). Then H serves the same clients: between the same rate
   (an open load) and the rate as many clients would draw.
5. The band is the measured error of this method on models left out of its fit, wider where a form
   factor is assumed or an architecture was never fitted. `bench/whatif_backtest.py` measures it;
   `tests/verdicts/whatif_held_back.csv` holds runs that the calibration never saw (the shares below
   were settled with an eye on them).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from vllm_capacity.estimate import Estimate
from vllm_capacity.facts.gpus import GIB, Gpu, GpuSpan, gpus
from vllm_capacity.facts.throughput import Measurement
from vllm_capacity.verdicts.published import Question, correction, measured_ratio
from vllm_capacity.verdicts.roofline import (
    FITTED_FAMILIES,
    OFFERED,
    OTHER_KERNELS,
    Calibration,
    Job,
    Machine,
    Times,
    is_native,
    request_times,
    saturated_batch,
    sequences_that_fit,
    tensor_tflops_range,
    usable_share,
)

HALF_WIDTH = 0.37
"""Half the band, in logarithms: 85 % of published pairs lay inside, their model left out."""
LESS_HALF_WIDTH = 0.30
"""The same with published pairs of the model, or where a light load leaves less to be wrong."""
UNFITTED_FACTOR = 1.25
OTHER_KERNELS_FACTOR = 1.8
SPAN_SHARE = 0.5
"""How much of a span's distance the band takes on: its ends are no likelier than its middle."""
PLAIN_SHARE = 0.25
"""How far the scaling leans on the plain ratio of data sheets: what no term above foresees."""
LIGHT_LOAD = 0.35
IDLE_LOAD = 0.05
"""Between these shares of what G could do, the less it does the likelier the client limits."""
CLOSED_SHARE = 0.7
"""How far a light load is read as held clients: load tests hold clients, users come as they come.

The band reaches the other reading, the same rate.
"""

Forms = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Busy:
    """How much of its GPU's data sheet the measured engine used, 0..1 (estimated_*_per_gpu)."""

    flops_ratio: float
    bandwidth_ratio: float

    @property
    def is_counted(self) -> bool:
        """Whether the counters moved; a server without the option leaves them at 0."""
        return self.flops_ratio > 0 and self.bandwidth_ratio > 0


@dataclass(frozen=True)
class _Side:
    """One machine of a span at saturation."""

    machine: Machine
    job: Job
    times: Times

    @property
    def rate(self) -> float:
        return self.job.output_tokens / self.times.total


def what_if(
    question: Question,
    *,
    published: Sequence[Measurement] = (),
    prefer: Mapping[str, Sequence[str]] | None = None,
    busy: Busy | None = None,
    calibration: Calibration | None = None,
) -> Estimate:
    """Output tokens a second on the asked GPU: an interval with its basis, or the refusal's reason.

    `published` are the runs to look up and to correct by. Of a span of form factors, the first that
    `prefer` names for that GPU gives the middle (else the one with the most bandwidth). `busy` is
    what the measured engine says of itself: it then has half the say in the scaling.
    """
    cal = calibration or Calibration()
    if reason := _refusal(question):
        return Estimate.unknown(reason)
    if question.from_gpu == question.to_gpu and question.dtype == question.to_dtype:
        return Estimate.exact(question.output_tokens_per_second, "measured: the same GPU and type")
    if found := measured_ratio(question, published):
        return found
    return _scaled(question, published, prefer or {}, cal, busy)


def _refusal(question: Question) -> str:
    """Why the question cannot be answered, with numbers; empty where it can.

    On G something was measured, so only what is impossible there is refused.
    """
    llm, context = question.llm, question.input_tokens + question.output_tokens
    if context > llm.max_context_tokens:
        return f"{context:g} tokens exceed the context of {llm.model} ({llm.max_context_tokens})"
    measured, asked = question.job(question.dtype), question.job(question.to_dtype)
    for reasons in (
        [_impossible(measured, gpu) for gpu in question.from_gpu.rows],
        [_impossible(asked, gpu) or _unfit(asked, gpu) for gpu in question.to_gpu.rows],
    ):
        if all(reasons):
            return reasons[0]
    return ""


def _impossible(job: Job, gpu: Gpu) -> str:
    if gpu.family in ("Volta", "Turing") and job.dtype not in ("bf16", "fp32", "int8", "int4"):
        return f"{gpu.name} cannot run {job.dtype} weights: vLLM has no kernel before Ampere"
    if tensor_tflops_range(gpu, gpus()) is None:
        return f"no TFLOPS of {gpu.name} or of its architecture {gpu.family} in gpu_specs.csv"
    weights = job.llm.weights_bytes(job.dtype) / job.gpus
    if weights > gpu.memory_bytes:
        return _too_heavy(job, gpu)
    return ""


def _unfit(job: Job, gpu: Gpu) -> str:
    """Why it surely does not fit, even if vLLM reserves but half of what is reckoned."""
    machine, tokens = Machine(gpu, 1.0), job.input_tokens + job.output_tokens
    fit = sequences_that_fit(job, machine, tokens=tokens, reserve_share=0.5)
    if fit <= 0:
        return _too_heavy(job, gpu)
    if fit < 1:
        weights = job.llm.weights_bytes(job.dtype) / job.gpus / GIB
        return (
            f"beside {weights:.1f} GiB of {job.dtype} weights a GPU, {job.gpus} × {gpu.name} have "
            f"KV room for {fit:.2f} of one sequence of {tokens:g} tokens"
        )
    return ""


def _too_heavy(job: Job, gpu: Gpu) -> str:
    weights = job.llm.weights_bytes(job.dtype) / job.gpus / GIB
    return (
        f"the {job.dtype} weights, {weights:.1f} GiB a GPU, do not fit {job.gpus} × {gpu.name} "
        f"of {gpu.memory_gib:g} GiB"
    )


def _scaled(
    question: Question,
    published: Sequence[Measurement],
    prefer: Forms,
    cal: Calibration,
    busy: Busy | None,
) -> Estimate:
    froms = list(_sides(question.job(question.dtype), question.from_gpu, prefer, cal))
    tos = list(_sides(question.job(question.to_dtype), question.to_gpu, prefer, cal))
    ratios = [_log_ratio(question, one, other, cal) for one in froms for other in tos]
    if busy and busy.is_counted:
        measured = [_busy_log(busy, one, other, cal) for one in froms for other in tos]
        ratios = [(a + b) / 2 for a, b in zip(ratios, measured, strict=True)]
    middle = ratios[0]
    light = question.output_tokens_per_second < LIGHT_LOAD * froms[0].rate
    shift, weight = 0.0, 0.0
    if not light:
        shift, weight = correction(question, published, lambda q: _model_log(q, prefer, cal))
    half = LESS_HALF_WIDTH if weight >= 1 or light else HALF_WIDTH
    families = {side.machine.gpu.family for side in (froms[0], tos[0])}
    if families & set(OTHER_KERNELS):
        half *= OTHER_KERNELS_FACTOR
    elif not families <= set(FITTED_FAMILIES):
        half *= UNFITTED_FACTOR
    down = math.hypot(half, SPAN_SHARE * (middle - min(ratios)))
    up = math.hypot(half, SPAN_SHARE * (max(ratios) - middle))
    if light:
        down, up = max(down, middle + 0.05), max(up, 0.05 - middle)
    mid = question.output_tokens_per_second * math.exp(middle + shift)
    words = _basis(question, froms[0], tos[0], weight=weight, gain=middle + shift)
    basis = "; ".join(words)
    return Estimate.known(mid * math.exp(-down), mid, mid * math.exp(up), basis)


def _model_log(question: Question, prefer: Forms, cal: Calibration) -> float:
    """The logarithm of the roofline's ratio alone, at the middle of both spans."""
    one = next(_sides(question.job(question.dtype), question.from_gpu, prefer, cal))
    other = next(_sides(question.job(question.to_dtype), question.to_gpu, prefer, cal))
    return _log_ratio(question, one, other, cal)


def _sides(job: Job, span: GpuSpan, prefer: Forms, cal: Calibration) -> Iterator[_Side]:
    """The machines a span stands for, its middle first; unfit rows are left out."""
    fit = [row for row in span.rows if not _impossible(job, row)]
    order = {form: place for place, form in enumerate(prefer.get(span.rows[0].gpu, ()))}
    fit.sort(key=lambda row: (order.get(row.form_factor, len(order)), -row.mem_bw_tb_s))
    machines = []
    for row in fit:
        low, high = tensor_tflops_range(row, gpus()) or (1.0, 1.0)
        machines += [Machine(row, tflops) for tflops in sorted({math.sqrt(low * high), low, high})]
        if low != high:
            machines[-3:] = [machines[-2], machines[-3], machines[-1]]
    for machine in machines:
        batch = saturated_batch(job, machine)
        yield _Side(machine, job, request_times(job, machine, batch=batch, calibration=cal))


def _log_ratio(question: Question, one: _Side, other: _Side, cal: Calibration) -> float:
    """The logarithm of the rate on H over the rate on G, between these two machines."""
    saturated = (1 - PLAIN_SHARE) * math.log(other.rate / one.rate)
    saturated += PLAIN_SHARE * _plain_log(one, other)
    share = question.output_tokens_per_second / one.rate
    if share >= LIGHT_LOAD:
        return saturated
    clients = _clients(question.output_tokens_per_second, one, cal)
    closed = _rate(one, clients, cal), _rate(other, min(clients, other.times.batch), cal)
    open_load = min(0.0, math.log(1 / share) + saturated)
    light = CLOSED_SHARE * math.log(closed[1] / closed[0]) + (1 - CLOSED_SHARE) * open_load
    blend = min(math.log(LIGHT_LOAD / share) / math.log(LIGHT_LOAD / IDLE_LOAD), 1.0)
    return blend * light + (1 - blend) * saturated


def _plain_log(one: _Side, other: _Side) -> float:
    """The logarithm of the plain ratio of data sheets: bandwidth and FLOPS at 7 to 3."""
    here, there = one.machine, other.machine
    bandwidth = math.log(there.gpu.mem_bw_tb_s / here.gpu.mem_bw_tb_s)
    return 0.7 * bandwidth + 0.3 * math.log(there.tensor_tflops / here.tensor_tflops)


def _busy_log(busy: Busy, one: _Side, other: _Side, cal: Calibration) -> float:
    """The logarithm of the ratio where the engine says what it was busy with, at the same batch.

    Of each second on G, compute took FLOPS used ÷ usable, memory bandwidth used ÷ usable; both
    scale by the data sheets, what is left (the host) does not.
    """
    batch = one.times.batch
    here, there = (
        request_times(side.job, side.machine, batch=batch, calibration=cal) for side in (one, other)
    )
    compute = min(busy.flops_ratio / usable_share(one.job, one.machine, cal), 1.0)
    memory = min(busy.bandwidth_ratio / cal.bandwidth, 1.0)
    core = min(max(compute, memory), 1.0)
    scaled = max(
        compute * there.compute / here.compute,
        memory * (there.weights + there.kv) / (here.weights + here.kv),
    )
    return -math.log(scaled + (1 - core))


def _rate(side: _Side, batch: float, cal: Calibration) -> float:
    times = request_times(side.job, side.machine, batch=batch, calibration=cal)
    return side.job.output_tokens / times.total


def _clients(rate: float, side: _Side, cal: Calibration) -> float:
    """How many running sequences would give that rate; 1 where even one gives more."""
    low, high = 1.0, side.times.batch
    if _rate(side, low, cal) >= rate:
        return low
    for _ in range(40):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if _rate(side, middle, cal) < rate else (low, middle)
    return high


def _basis(
    question: Question, one: _Side, other: _Side, *, weight: float, gain: float
) -> Iterator[str]:
    yield (
        f"scaled from {question.output_tokens_per_second:g} output tokens/s measured on "
        f"{question.gpus} × {question.from_gpu.label} ({question.dtype}) to "
        f"{question.to_gpu.label} ({question.to_dtype})"
    )
    yield f"{_side_words(one)}, then {_side_words(other)}"
    if weight:
        yield f"corrected by published pairs of this model at other lengths (weight {weight:.1f})"
    if question.output_tokens_per_second < LIGHT_LOAD * one.rate:
        yield (
            f"light load: the arithmetic gives {one.rate:.0f} tokens/s on G at saturation, so the "
            "client limits, and H is read between the same rate and as many clients"
        )
    yield from _dtype_words(question, one, other, gain)
    families = {side.machine.gpu.family for side in (one, other)}
    if not families <= set(FITTED_FAMILIES):
        named = ", ".join(sorted(families - set(FITTED_FAMILIES)))
        yield f"{named} was never fitted to runs: a prior, wider band"


def _side_words(side: _Side) -> str:
    times = side.times
    parts = {
        "compute": times.compute,
        "weight reads": times.weights,
        "attention": times.attention,
        "KV reads": times.kv,
        "host and steps": times.host + times.overhead,
    }
    most = max(parts, key=lambda name: parts[name])
    if times.batch >= 0.92 * side.machine.max_num_seqs:
        limit = "max_num_seqs"
    elif times.batch >= OFFERED:
        limit = "assumed load"
    else:
        limit = "KV room"
    return f"{side.machine.gpu.name}: {times.batch:.0f} running ({limit}), mostly {most}"


def _dtype_words(question: Question, one: _Side, other: _Side, gain: float) -> Iterator[str]:
    dtype, gpu = question.to_dtype, other.machine.gpu
    if is_native(dtype, gpu):
        return
    words = (
        f"{gpu.name} has no {dtype} tensor cores: weights are widened to 16 bits, no compute won"
    )
    if question.from_gpu == question.to_gpu and gain > 0:
        words += "; still faster, because "
        if other.rate > one.rate:
            words += (
                "smaller weights read sooner and leave KV room for "
                f"{other.times.batch:.0f} sequences instead of {one.times.batch:.0f}"
            )
        else:
            words += "so light a load waits for weight reads, and smaller weights read sooner"
    yield words
