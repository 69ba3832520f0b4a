"""Where a what-if ends: questions that no arithmetic should answer, each with its numbers."""

from __future__ import annotations

from vllm_capacity.errors import InputError
from vllm_capacity.facts.gpus import GIB, Gpu, gpus
from vllm_capacity.facts.llms import Llm
from vllm_capacity.verdicts.hardware.question import Question
from vllm_capacity.verdicts.hardware.roofline import (
    Job,
    Machine,
    sequences_that_fit,
    tensor_tflops_range,
)


def refusal(question: Question) -> str:
    """Why the question cannot be answered, with numbers; empty where it can.

    On G something was measured, so only what is impossible there is refused.
    """
    llm, context = question.llm, question.input_tokens + question.output_tokens
    if context > llm.max_context_tokens:
        return (
            f"{context:,.0f} tokens exceed the context of {llm.model} ({llm.max_context_tokens:,})"
        )
    if reason := uneven(llm, question.gpus):
        return reason
    measured, wanted = question.job(question.dtype), question.job(question.to_dtype)
    for reasons in (
        [impossible(measured, gpu) for gpu in question.from_gpu.rows],
        [impossible(wanted, gpu) or _unfit(wanted, gpu) for gpu in question.to_gpu.rows],
    ):
        if all(reasons):
            return reasons[0]
    return ""


def uneven(llm: Llm, gpus: int) -> str:
    """Why vLLM would not start on so many GPUs, with numbers; empty where it may."""
    if gpus <= llm.attention_heads and llm.attention_heads % gpus == 0:
        return ""
    return (
        f"{gpus} GPUs do not divide the {llm.attention_heads} attention heads of {llm.model}: "
        "vLLM splits them evenly"
    )


def impossible(job: Job, gpu: Gpu) -> str:
    """Why a GPU cannot run a job at all, with numbers; empty where it may."""
    try:
        architecture = gpu.architecture
    except InputError as unknown:  # a reason in the table of options, not the end of the table
        return str(unknown).rstrip(".")
    is_narrow_float = job.dtype in ("fp8", "mxfp4", "nvfp4")
    if is_narrow_float and not architecture.runs_fp8_and_fp4_weights:
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
            f"KV room for {fit:.2f} of one sequence of {tokens:,.0f} tokens"
        )
    return ""


def _too_heavy(job: Job, gpu: Gpu) -> str:
    weights = job.llm.weights_bytes(job.dtype) / job.gpus / GIB
    return (
        f"the {job.dtype} weights, {weights:.1f} GiB a GPU, do not fit {job.gpus} × {gpu.name} "
        f"of {gpu.memory_gib:g} GiB"
    )
