"""Other GPUs from one measured rate: all known ones as options, and their cost at the same ITL."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial

from vllm_capacity.estimate import Estimate, Kind
from vllm_capacity.facts.gpus import GpuSpan, find_gpu, gpu_names
from vllm_capacity.facts.llms import find_llm
from vllm_capacity.facts.prices import choose_price, usual_forms
from vllm_capacity.verdicts.hardware.compare import Candidate, Option, whatif_table
from vllm_capacity.verdicts.hardware.interactivity import (
    MAX_CURVES,
    MEAN,
    Interactivity,
    ItlLoad,
    gpu_curves,
)
from vllm_capacity.verdicts.hardware.question import Load, Question
from vllm_capacity.verdicts.hardware.what_if import GpuUtilization, published_runs, what_if
from vllm_capacity.verdicts.saturation.slo import SloLoad
from vllm_capacity.verdicts.sizing import Policy


def gpu_options(
    *,
    model: str,
    gpu: str,
    output_tokens_per_second: float,
    input_tokens: float,
    output_tokens: float,
    measured_by: str,
    requests_per_second: float,
    policy: Policy | None = None,
    gpus: int = 1,
) -> tuple[Option, ...]:
    """Every known GPU as an option, from an externally measured rate, like a plan's `options`.

    The rate is of `gpus` GPUs of that type serving requests of those mean lengths; `measured_by`
    names its source and load, and is in the basis of every option. InputError for unknown names.
    """
    here = find_gpu(gpu)
    basis = f"{output_tokens_per_second:,.4g} output tokens/s on {here.label}: {measured_by}"
    demand = f"{requests_per_second:,.4g} requests/s × {output_tokens:,.4g} output tokens"
    return compared_gpus(
        measured_question(
            model,
            here,
            gpus=gpus,
            output_tokens_per_second=output_tokens_per_second,
            input_tokens=input_tokens,
            output_tokens=output_tokens,
        ),
        gpu_names(),
        capacity=Estimate.exact(output_tokens_per_second, basis, kind=Kind.GIVEN),
        demand=Estimate.exact(requests_per_second * output_tokens, demand, kind=Kind.GIVEN),
        policy=policy or Policy(),
    )


def gpu_interactivity(
    options: Sequence[Option],
    *,
    model: str,
    gpu: str,
    output_tokens_per_second: float,
    input_tokens: float,
    output_tokens: float,
    gpus: int = 1,
    itl_target_seconds: float | None = None,
) -> Interactivity:
    """The cost per million output tokens at the same ITL on the best of the options.

    It uses the same rate as `gpu_options`, and has one curve per GPU. InputError for unknown names.
    """
    here = find_gpu(gpu)
    measured = measured_question(
        model,
        here,
        gpus=gpus,
        output_tokens_per_second=output_tokens_per_second,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
    )
    return interactivity_of(measured, options, here.label, target=itl_target_seconds)


def measured_question(
    model: str,
    here: GpuSpan,
    *,
    gpus: int,
    output_tokens_per_second: float,
    input_tokens: float,
    output_tokens: float,
    kv_dtype: str = "auto",
) -> Question:
    """The measurement, at capacity, as a question about another GPU."""
    llm = find_llm(model)
    return Question(
        llm=llm,
        dtype=llm.weights_dtype,
        to_dtype=llm.weights_dtype,
        from_gpu=here,
        to_gpu=here,
        gpus=gpus,
        output_tokens_per_second=output_tokens_per_second,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        load=Load(is_capacity=True),
        kv_dtype=kv_dtype,
    )


def compared_gpus(
    measured: Question,
    names: Iterable[str],
    *,
    capacity: Estimate,
    demand: Estimate,
    policy: Policy,
    own_price: Estimate | None = None,
    busy: GpuUtilization | None = None,
    loads: tuple[SloLoad, ...] = (),
) -> tuple[Option, ...]:
    """The GPUs of these names as options; `own_price` is that of the measured GPU."""
    spans = list({span.name: span for span in map(find_gpu, names)}.values())
    return whatif_table(
        measured,
        [
            _candidate(span, measured.dtype, own_price if span == measured.from_gpu else None)
            for span in spans
        ],
        slo_capacity=capacity,
        demand=demand,
        policy=policy,
        published=published_runs(),
        prefer=_forms(spans),
        busy=busy,
        loads=loads,
    )


def interactivity_of(
    question: Question,
    options: Sequence[Option],
    here: str,
    *,
    loads: Sequence[ItlLoad] = (),
    itl: str = MEAN,
    target: float | None = None,
) -> Interactivity:
    """The curves of the GPU in use and of the best others."""
    known = [option for option in options if option.is_comparable]
    own = [option for option in known if option.gpu == here]
    others = [option for option in known if option.gpu != here]
    spans = {span.label: span for span in map(find_gpu, gpu_names())}
    spans[here] = question.from_gpu
    priced = [
        (spans[option.gpu], option.usd_per_gpu_hour)
        for option in (*own, *others[: MAX_CURVES - len(own)])
        if option.gpu in spans
    ]
    ask = partial(what_if, published=published_runs(), prefer=_forms(span for span, _ in priced))
    curves = gpu_curves(question, priced, ask, loads=loads, itl=itl)
    reason = "" if curves else "no GPU has a price and latencies under two loads"
    return Interactivity(curves, reason, target)


def _forms(spans: Iterable[GpuSpan]) -> dict[str, tuple[str, ...]]:
    return {span.rows[0].gpu: usual_forms(span.rows[0].gpu) for span in spans}


def _candidate(span: GpuSpan, dtype: str, own: Estimate | None) -> Candidate:
    """A GPU as an option, at the window's own price if the window ran on it."""
    price = own or choose_price(gpu=span.name)
    return Candidate(span, dtype, price.sources or price.reason, price)
