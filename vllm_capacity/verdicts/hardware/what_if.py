"""What another GPU would do: output tokens per second on H, from a measurement on G.

1. *Refuse* where the domain ends (`whatif_refusal`): the weights do not fit, no sequence fits
   beside them, the GPU cannot run the weight type, the context is too long.
2. *Published pairs first* (`published`). Where both GPUs were published for this model, types, GPU
   count, lengths and a load that gave about the measured rate, the answer is the measured rate ×
   their ratio.
3. *Else scale* (`whatif_scaling`): the measured rate × the ratio of `roofline` times on G and H.
   Published pairs of the same model at other lengths correct that ratio, the more of them the more.
   A rate far under what G could do says that the client limits, and is read as such.
4. The band is the measured error of this method on models left out of its fit, by what drives that
   error: see the constants. `bench/whatif_backtest.py` measures it;
   `tests/verdicts/whatif_held_back.csv` holds runs that nothing here was fitted to.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from vllm_capacity.estimate import Estimate, Kind
from vllm_capacity.facts.prices import usual_forms
from vllm_capacity.facts.throughput import Measurement, measurements
from vllm_capacity.verdicts.hardware.published import correction, measured_ratio
from vllm_capacity.verdicts.hardware.question import Load, Question
from vllm_capacity.verdicts.hardware.refusal import refusal
from vllm_capacity.verdicts.hardware.roofline import (
    OFFERED,
    Calibration,
    is_native,
    kv_room_bytes,
)
from vllm_capacity.verdicts.hardware.scaling import (
    Forms,
    Side,
    excess,
    light_load_weight,
    loaded_side,
    log_ratio,
    sides,
    utilization_log,
)

HALF_WIDTH = 0.37
"""Half the band, in logarithms, at saturation: it held 95 % of published pairs, model left out.

Half that width would hold most: the few that lie far off are short of KV room, or all prompt.
"""
CORRECTED_HALF_WIDTH = 0.30
"""The same where published pairs of the model correct the ratio."""
LIGHT_HALF_WIDTH = 0.22
"""The same under a light load, besides that the band then reaches to the same rate."""
FULLY_LIGHT = 0.08
"""The lightness from which the band is that of a light load; from 0 it fades into it."""
SERVED_HALF_WIDTH = 0.08
"""Half the band, in logarithms, where all that comes is served: so far runs of one load differ."""
UNFITTED_FACTOR = 1.25
"""How much wider where an architecture was never fitted."""
MOST_BELIEVED = 10.0
"""A rate of more times the arithmetic is no such set-up; cached prompts can make up some of it."""
_MAY_BE_NATIVE = ("fp8", "int8", "nvfp4")
FITTED_VENDOR = "NVIDIA"
OTHER_VENDOR_HALF_WIDTH = 0.60
"""The same with another vendor's kernels, whatever the load."""
SPAN_SHARE = 0.5
"""How much of a span's distance the band takes on: its ends are no likelier than its middle."""


@dataclass(frozen=True)
class GpuUtilization:
    """How much of its GPU's data sheet the measured engine used, 0..1 (estimated_*_per_gpu)."""

    flops_ratio: float
    bandwidth_ratio: float

    @property
    def is_counted(self) -> bool:
        """Whether the counters moved; a server without the option leaves them at 0."""
        return self.flops_ratio > 0 and self.bandwidth_ratio > 0


def shipped_what_if(question: Question) -> Estimate:
    """`what_if` by the published runs and the form factors that the shipped tables have."""
    spans = question.from_gpu, question.to_gpu
    prefer = {span.rows[0].gpu: usual_forms(span.name) for span in spans}
    return what_if(question, published=measurements(), prefer=prefer)


def what_if(
    question: Question,
    *,
    published: Sequence[Measurement] = (),
    prefer: Mapping[str, Sequence[str]] | None = None,
    busy: GpuUtilization | None = None,
    calibration: Calibration | None = None,
) -> Estimate:
    """Output tokens per second on the asked GPU: an interval with its basis, or why not.

    `published` are the runs to look up and to correct by. Of a span of form factors, the first that
    `prefer` names for that GPU gives the middle (else the one with the most bandwidth). `busy` is
    what the measured engine says of itself: it then has half the say in the scaling.
    """
    cal = calibration or Calibration()
    if reason := refusal(question) or _unbelievable(question, prefer or {}, cal):
        return Estimate.unknown(reason)
    if question.from_gpu == question.to_gpu and question.dtype == question.to_dtype:
        return Estimate.exact(question.output_tokens_per_second, "measured: the same GPU and type")
    found = _uncapped(question, published, prefer or {}, cal, busy)
    if not is_native(question.to_dtype, question.to_gpu.rows[0]):
        wide = replace(question, to_dtype="bf16")
        sixteen = what_if(wide, published=published, prefer=prefer, busy=busy, calibration=cal)
        words = _widened_words(question, found, sixteen, prefer or {}, cal)
        found = replace(found, basis=(*found.basis, *words))
    return _capped(found, question)


def _unbelievable(question: Question, prefer: Forms, cal: Calibration) -> str:
    """Why nothing can be scaled from a rate that G surely cannot give; empty where it may."""
    measured = question.output_tokens_per_second
    rate = max(side.rate for side in _both_sides(question, prefer, cal)[0])
    if measured <= MOST_BELIEVED * rate:
        return ""
    return (
        f"{measured:,.6g} output tokens/s is more than {MOST_BELIEVED:g} × the {rate:,.3g} that "
        f"arithmetic gives on {question.gpus} × {question.from_gpu.label}: nothing can be scaled "
        "from it. Check the GPU and its count, the weight type, the token counts and the clients"
    )


def _uncapped(
    question: Question,
    published: Sequence[Measurement],
    prefer: Forms,
    cal: Calibration,
    busy: GpuUtilization | None,
) -> Estimate:
    found = measured_ratio(question, published)
    if found and question.load.is_known:
        return found
    scaled = _scaled(question, published, prefer, cal, busy)
    return _unless_light(found, question, published, scaled) if found else scaled


def _unless_light(
    found: Estimate, question: Question, published: Sequence[Measurement], scaled: Estimate
) -> Estimate:
    """A measured pair; where its load was a light one, so far as to hold what scaling gives.

    Nobody said that the question's load is that one.
    """
    full = replace(question, load=Load(is_capacity=True))
    if measured_ratio(full, published) or scaled.mid is None or found.low is None:
        return found
    low, mid, high = found.low, found.mid or found.low, found.high or found.low
    words = "a light load; another one of that rate may scale as the arithmetic does"
    return replace(
        found,
        low=min(low, scaled.mid),
        mid=mid,
        high=max(high, scaled.mid),
        basis=(*found.basis, words),
    )


def _scaled(
    question: Question,
    published: Sequence[Measurement],
    prefer: Forms,
    cal: Calibration,
    busy: GpuUtilization | None,
) -> Estimate:
    froms, tos = _both_sides(question, prefer, cal)
    same = question.from_gpu == question.to_gpu
    machines = [
        (one, other) for one in froms for other in tos if not same or one.machine == other.machine
    ]
    ratios = [log_ratio(question, one, other, cal) for one, other in machines]
    if busy and busy.is_counted:
        used = busy.flops_ratio, busy.bandwidth_ratio
        counted = [utilization_log(*used, one, other, cal) for one, other in machines]
        ratios = [(a + b) / 2 for a, b in zip(ratios, counted, strict=True)]
    middle = ratios[0]
    lightness = light_load_weight(question, froms[0])
    shift, weight = correction(question, published, lambda q: _model_log(q, prefer, cal))
    shift *= 1 - lightness
    saturated = CORRECTED_HALF_WIDTH if weight >= 1 else HALF_WIDTH
    fade = min(lightness / FULLY_LIGHT, 1.0)
    half = (1 - fade) * saturated + fade * LIGHT_HALF_WIDTH + math.log(excess(question, froms[0]))
    down, up = _band(_widened(half, froms[0], tos[0]), ratios, gain=middle + shift, fade=fade)
    mid = question.output_tokens_per_second * math.exp(middle + shift)
    words = _basis(question, froms[0], tos[0], weight=weight)
    low, high = mid * math.exp(-down), mid * math.exp(up)
    return Estimate.known(low, mid, high, *words, kind=Kind.EXTRAPOLATED)


def _band(half: float, ratios: Sequence[float], *, gain: float, fade: float) -> tuple[float, float]:
    """How far the band reaches down and up from a gain, in logarithms.

    It takes on part of a span (the first ratio is its middle) and holds each end of it, and reaches
    to the same rate as far as the load is light.
    """
    below, above = ratios[0] - min(ratios), max(ratios) - ratios[0]
    down = max(math.hypot(half, SPAN_SHARE * below), below)
    up = max(math.hypot(half, SPAN_SHARE * above), above)
    return down + fade * max(gain + 0.05 - down, 0.0), up + fade * max(0.05 - gain - up, 0.0)


def _widened(half: float, one: Side, other: Side) -> float:
    """Half a band, wider for an architecture that no run was fitted to."""
    architectures = [side.machine.gpu.architecture for side in (one, other)]
    if any(row.vendor != FITTED_VENDOR for row in architectures):
        return max(half, OTHER_VENDOR_HALF_WIDTH)
    return half if all(row.is_fitted for row in architectures) else half * UNFITTED_FACTOR


def _model_log(question: Question, prefer: Forms, cal: Calibration) -> float:
    """The logarithm of the roofline's ratio alone, at the middle of both spans."""
    froms, tos = _both_sides(question, prefer, cal)
    return log_ratio(question, froms[0], tos[0], cal)


def _both_sides(
    question: Question, prefer: Forms, cal: Calibration
) -> tuple[list[Side], list[Side]]:
    """The machines that G and H stand for, at the clients that the question tells."""
    wanted = (question.dtype, question.from_gpu), (question.to_dtype, question.to_gpu)
    clients = question.load.clients
    here, there = (
        list(sides(question.job(dtype), gpu, prefer, cal, clients=clients)) for dtype, gpu in wanted
    )
    return here, there


def _capped(found: Estimate, question: Question) -> Estimate:
    """No more than an open load asks for, where the question tells one."""
    offered = question.offered_tokens_per_second
    if offered is None or found.low is None or found.mid is None or found.high is None:
        return found
    cap = question.output_tokens_per_second if question.is_kept_up else offered
    if found.high <= cap:
        return found
    low, mid = min(found.low, cap * math.exp(-SERVED_HALF_WIDTH)), min(found.mid, cap)
    words = (
        f"{question.load.requests_per_second:g} requests/s ask for no more than {cap:.4g} tokens/s"
    )
    if found.low > cap:
        words += f", and H could give {found.low:.3g} to {found.high:.3g}"
    high = cap * math.exp(SERVED_HALF_WIDTH)
    return replace(found, low=low, mid=mid, high=high, basis=(words, *found.basis))


def _basis(question: Question, one: Side, other: Side, *, weight: float) -> Iterator[str]:
    yield (
        f"scaled from {question.output_tokens_per_second:,.6g} output tokens/s measured on "
        f"{question.gpus} × {question.from_gpu.label} ({question.dtype}) to "
        f"{question.to_gpu.label} ({question.to_dtype})"
    )
    clients = question.load.clients
    yield f"{_side_words(one, clients)}, then {_side_words(other, clients)}"
    if weight:
        yield f"corrected by published pairs of this model (weight {weight:.1f})"
    if light_load_weight(question, one):
        yield _light_words(question, one)
    if excess(question, one) > 1:
        yield (
            f"that is {question.output_tokens_per_second / one.rate:.1f} × what the arithmetic "
            "gives on G: cached prompts, or another set-up than told? Hence the wider band"
        )
    architectures = (side.machine.gpu.architecture for side in (one, other))
    unfitted = {row.architecture for row in architectures if not row.is_fitted}
    if unfitted:
        yield f"{', '.join(sorted(unfitted))} was never fitted to runs: a prior, wider band"


def _light_words(question: Question, one: Side) -> str:
    if not question.load.is_known:
        return (
            f"light load: the arithmetic gives {one.rate:.0f} tokens/s on G at saturation, so the "
            "client limits, and H is read between the same rate and as many clients"
        )
    return (
        f"the arithmetic gives {one.rate:.0f} tokens/s on G under that load: what else limits is "
        "not known, and H is read between the same rate and the gain"
    )


def _side_words(side: Side, clients: float | None) -> str:
    times = side.times
    parts = {
        "compute": times.compute,
        "weight reads": times.weights,
        "attention": times.attention,
        "KV reads": times.kv,
        "host and steps": times.host + times.overhead,
    }
    most = max(parts, key=lambda name: parts[name])
    if times.batch == clients:
        limit = "clients"
    elif times.batch >= 0.92 * side.machine.max_num_seqs:
        limit = "max_num_seqs"
    elif times.batch >= OFFERED:
        limit = "assumed load"
    else:
        limit = "KV room"
    return f"{side.machine.gpu.name}: {times.batch:.0f} running ({limit}), mostly {most}"


def _widened_words(
    question: Question, found: Estimate, sixteen: Estimate, prefer: Forms, cal: Calibration
) -> Iterator[str]:
    """What a weight type does on a GPU that cannot multiply it, and why it is faster where it is.

    Faster than `sixteen`, the answer for 16 bits on that GPU (or what was measured there).
    """
    dtype = question.to_dtype
    froms, tos = _both_sides(question, prefer, cal)
    one, other = froms[0], tos[0]
    gpu = other.machine.gpu
    if dtype in _MAY_BE_NATIVE:
        yield f"{gpu.name} has no {dtype} tensor cores: weights widen to 16 bits, no compute won"
    else:
        yield f"vLLM widens {dtype} weights to 16 bits: no compute won"
    wide = question.job("bf16")
    if kv_room_bytes(wide, other.machine) <= 0:
        yield "still faster than 16 bits, because those leave no KV room"
    elif sixteen.mid is not None and found.mid is not None and found.mid > sixteen.mid:
        side = loaded_side(wide, other.machine, cal, clients=question.load.clients)
        is_reckoned = log_ratio(question, one, other, cal) > log_ratio(question, one, side, cal)
        why = "published pairs of this model say so"
        if is_reckoned:
            why = _why_smaller_is_faster(side, other)
        yield f"still faster than 16 bits, because {why}"


def _why_smaller_is_faster(sixteen: Side, other: Side) -> str:
    if other.times.batch > sixteen.times.batch:
        return (
            "smaller weights read sooner and leave KV room for "
            f"{other.times.batch:.0f} sequences instead of {sixteen.times.batch:.0f}"
        )
    return "reading weights takes much of the time, and smaller weights read sooner"
