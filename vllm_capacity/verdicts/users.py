"""How many users fit in a KV cache: by arithmetic, and by what the running server says.

The two differ, and both differ from what meets an SLO: sequences are not all at full length at
once, and latency ends before memory does. So each is named for what it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from vllm_capacity.errors import InputError
from vllm_capacity.estimate import Estimate, Kind
from vllm_capacity.facts.gpus import GIB, GpuSpan
from vllm_capacity.facts.llms import Llm
from vllm_capacity.verdicts.roofline import Job, Machine, sequences_that_fit
from vllm_capacity.verdicts.whatif_refusal import uneven

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


def reconciled_kv_tokens(cache_config: Mapping[str, str]) -> Estimate:
    """KV-cache tokens that a running server says it has, from `cache_config_info`'s labels.

    `kv_cache_size_tokens` where the release has it, else `num_gpu_blocks` × `block_size` (which
    counts a hybrid model's groups apart). Unknown, with what was found, where neither is a number.
    """
    stated = _count(cache_config.get("kv_cache_size_tokens"))
    if stated is not None:
        return Estimate.exact(stated, "kv_cache_size_tokens of the running server")
    blocks, size_ = (_count(cache_config.get(key)) for key in ("num_gpu_blocks", "block_size"))
    if blocks is None or size_ is None:
        found = ", ".join(sorted(cache_config)) or "nothing"
        return Estimate.unknown(f"cache_config_info has no KV size; it has {found}")
    return Estimate.exact(blocks * size_, "num_gpu_blocks × block_size of the running server")


def reconciled_users(
    cache_config: Mapping[str, str],
    *,
    tokens: float,
    reckoned: Estimate,
    slo_running: Estimate | None = None,
) -> dict[str, Estimate]:
    """Users by the running server's cache size, by arithmetic, and by the SLO, and their ratios.

    `slo_running` is how many requests ran at the SLO capacity. The ratios are over `reckoned`.
    """
    if tokens <= 0:
        raise InputError(f"Tokens a user must be above 0, found {tokens}.")
    server = reconciled_kv_tokens(cache_config).scaled(1 / tokens)
    slo = slo_running or Estimate.unknown("no SLO capacity was found in this window")
    return {
        "server": server,
        "reckoned": reckoned,
        "slo": slo,
        "server_ratio": server.divided_by(reckoned, "users by the server ÷ by arithmetic"),
        "slo_ratio": slo.divided_by(reckoned, "users within the SLO ÷ by arithmetic"),
    }


def _count(cell: str | None) -> float | None:
    try:
        value = float(cell) if cell not in (None, "", "None") else None
    except ValueError:
        return None
    return value if value is not None and value > 0 else None
