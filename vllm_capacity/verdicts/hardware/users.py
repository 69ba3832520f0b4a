"""How many users fit in a KV cache, by arithmetic.

That is not how many meet an SLO: sequences are not all at full length at once, and latency ends
before memory does.
"""

from __future__ import annotations

import math

from vllm_capacity.errors import InputError
from vllm_capacity.estimate import Estimate, Kind
from vllm_capacity.facts.gpus import GIB, GpuSpan
from vllm_capacity.facts.llms import Llm
from vllm_capacity.verdicts.hardware.refusal import uneven
from vllm_capacity.verdicts.hardware.roofline import Job, Machine, sequences_that_fit

BLOCK_TOKENS = 16


def users_that_fit(
    llm: Llm, *, dtype: str, kv_dtype: str, span: GpuSpan, gpus: int, tokens: int
) -> Estimate:
    """How many sequences of that many tokens a KV cache holds at once, whole numbers.

    Low and high take the form factors of the span and a reserve of twice and of half of what vLLM's
    profile run is reckoned to keep. Unknown where the weights do not fit or not one sequence does,
    or where the GPUs do not divide the attention heads. A context longer than the model's own is
    reckoned all the same, and said.
    """
    if tokens < 1 or gpus < 1:
        raise InputError(f"Tokens and GPUs must be 1 or more, found {tokens} and {gpus}.")
    if reason := uneven(llm, gpus):
        return Estimate.unknown(reason)
    blocks = math.ceil(tokens / BLOCK_TOKENS) * BLOCK_TOKENS
    job = Job(llm, dtype, gpus, float(blocks), 1.0)
    shrink = llm.sequence_bytes(blocks) / llm.sequence_bytes(blocks, kv_dtype)
    counts = [
        sequences_that_fit(job, Machine(row, 1.0), tokens=blocks, reserve_share=share) * shrink
        for row in span.rows
        for share in (1.0, 2.0, 0.5)
    ]
    ends = (min(counts), counts[0], max(counts))
    low, mid, high = (max(math.floor(count), 0) for count in ends)
    if high < 1:
        weights = llm.weights_bytes(dtype) / gpus / GIB
        return Estimate.unknown(
            f"{weights:.1f} GiB of {dtype} weights a GPU leave {gpus} × {span.label} no KV room "
            f"for one sequence of {tokens:,} tokens"
        )
    basis = f"KV arithmetic on {gpus} × {span.label}, all at {tokens:,} tokens at once"
    if tokens > llm.max_context_tokens:
        basis += f", which is past the model's own context of {llm.max_context_tokens:,}"
    return Estimate.known(low, mid, high, basis, kind=Kind.ASSUMED, confidence=None)
