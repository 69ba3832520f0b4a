"""vLLM engine time per request from data sheets, for GPUs whose kernels were never timed.

1. *Steps per request* = max(O ÷ N, (I + O) ÷ tokens per step): decoding or prefilling is the limit.
2. *Core*: compute (2 × active parameters per token ÷ usable FLOPS) and weight reads (the experts
   that a step's tokens touch ÷ usable bandwidth) overlap: a 4-norm of the two.
3. Added: attention over the prompt, KV reads, step overhead, all-reduce between GPUs, and host time
   per token and request, which no GPU makes faster (but newer GPUs are in newer hosts).

Output tokens per second = O ÷ the sum. Usable shares of the data sheet come from `Shares` and
`data/gpu_architectures.csv`, fitted by `bench/whatif_shares.py` to published runs and pairs. Alone
this is right within a factor of 1.6; it is used as a *ratio* of two GPUs, in which shared errors
cancel. The weight of that ratio next to that of timed kernels: `side.SHEET_SHARE`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from msgspec import Struct, field

from vllm_capacity.facts.gpus import Gpu
from vllm_capacity.facts.llms import Llm
from vllm_capacity.verdicts.hardware.serving import Job, Machine, is_native

PLAIN_SHARE = 0.15
"""The weight of the plain ratio of data sheets, for effects that no term covers."""
_NORM = 4.0
_TILE_TOKENS = 32.0
"""Tokens an expert must get for its matrix tiles to be half full (a tile is 64 rows)."""


class Shares(Struct, frozen=True):
    """Usable shares of a data sheet, and host seconds, common to all architectures.

    `kernel_shares` replaces the dense, MoE and MXFP4 shares of `data/gpu_architectures.csv`, by
    architecture, with those of another fit.
    """

    kernel_shares: Mapping[str, tuple[float, float, float]] = field(default_factory=dict)
    widened: float = 0.853
    native_fp8: float = 0.81
    bandwidth: float = 0.748
    attention: float = 0.448
    attention_sinks: float = 0.0991
    step_seconds_per_layer: float = 8.7e-05
    token_seconds: float = 4.28e-05
    request_seconds: float = 0.00156
    link: float = 0.34


class Times(Struct, frozen=True):
    """Engine seconds per request, by component, and the batch assumed."""

    batch: float
    compute: float
    weights: float
    attention: float
    kv: float
    overhead: float
    host: float

    @property
    def core(self) -> float:
        """Compute and weight reads, overlapped."""
        return float((self.compute**_NORM + self.weights**_NORM) ** (1 / _NORM))

    @property
    def total(self) -> float:
        """The sum of all."""
        return self.core + self.attention + self.kv + self.overhead + self.host


class SheetSide(Struct, frozen=True):
    """A job on a machine with `batch` running sequences, from its data sheet."""

    job: Job
    machine: Machine
    batch: float
    shares: Shares

    @property
    def output_tokens_per_second(self) -> float:
        """The engine's output rate."""
        times = request_times(self.job, self.machine, batch=self.batch, shares=self.shares)
        return self.job.output_tokens / times.total


def log_ratio(here: SheetSide, there: SheetSide) -> float:
    """The logarithm of the rate there over the rate here."""
    by_shares = math.log(there.output_tokens_per_second / here.output_tokens_per_second)
    return (1 - PLAIN_SHARE) * by_shares + PLAIN_SHARE * _plain_log(here.machine, there.machine)


def _plain_log(here: Machine, there: Machine) -> float:
    """The logarithm of the plain ratio of data sheets: bandwidth and FLOPS weighted 7 to 3."""
    bandwidth = math.log(there.gpu.mem_bw_tb_s / here.gpu.mem_bw_tb_s)
    return 0.7 * bandwidth + 0.3 * math.log(there.tensor_tflops / here.tensor_tflops)


def request_times(job: Job, machine: Machine, *, batch: float, shares: Shares) -> Times:
    """Engine seconds per request with `batch` running sequences."""
    llm, n, cal = job.llm, job.gpus, shares
    tokens = job.input_tokens + job.output_tokens
    steps = max(job.output_tokens / batch, tokens / machine.tokens_per_step)
    bandwidth = machine.gpu.bandwidth_bytes_per_second * cal.bandwidth * n
    bandwidth *= machine.gpu.architecture.bandwidth_share
    touched = llm.weights_bytes(job.dtype) * touched_share(llm, tokens / steps)
    sequence = llm.stored_bytes(job.input_tokens + job.output_tokens / 2, n)
    host_speed = machine.gpu.architecture.host_speed
    overhead = steps * cal.step_seconds_per_layer * llm.layers / host_speed
    flops = _usable_flops(job, machine, cal)
    return Times(
        batch=batch,
        compute=tokens * 2e9 * llm.params_active_b * _tile_waste(job, tokens / steps) / flops,
        weights=steps * touched / bandwidth,
        attention=_attention_seconds(job, machine, cal),
        kv=job.output_tokens * sequence / bandwidth,
        overhead=overhead + tokens * _reduce_seconds(job, machine, cal),
        host=(job.output_tokens * cal.token_seconds + cal.request_seconds) / host_speed,
    )


def touched_share(llm: Llm, tokens: float) -> float:
    """The share of the weights that a step of `tokens` tokens reads; 1 for a dense model."""
    if not llm.is_moe:
        return 1.0
    routed = llm.experts_per_token / llm.experts
    shared = (llm.params_active_b - routed * llm.params_total_b) / (1 - routed)
    shared = max(shared, 0.0) / llm.params_total_b
    return shared + (1 - shared) * (1 - math.pow(1 - routed, max(tokens, 1.0)))


def _tile_waste(job: Job, tokens: float) -> float:
    """How much more a mixture's matrix tiles compute than its tokens require, at least 1."""
    if not job.llm.is_moe or job.dtype == "mxfp4":
        return 1.0
    each = max(tokens * job.llm.experts_per_token / job.llm.experts, 1.0)
    return 1 + _TILE_TOKENS / each


def _usable_flops(job: Job, machine: Machine, cal: Shares) -> float:
    gpu, dtype = machine.gpu, job.dtype
    peak = machine.tensor_tflops
    share = _kernel_share(job, gpu, cal)
    if dtype == "fp8" and is_native(dtype, gpu):
        peak, share = gpu.fp8_dense_tflops or 2 * peak, share * cal.native_fp8
    elif dtype == "int8" and gpu.int8_dense_tops is not None:
        peak, share = gpu.int8_dense_tops, share * cal.native_fp8
    elif dtype == "nvfp4" and gpu.fp4_dense_tflops is not None:
        peak, share = gpu.fp4_dense_tflops, share * cal.native_fp8**2
    elif dtype in ("fp8", "int8", "int4", "nvfp4"):
        share *= cal.widened
    elif dtype == "fp32":
        peak /= 2
    return peak * 1e12 * share * job.gpus


def _kernel_share(job: Job, gpu: Gpu, cal: Shares) -> float:
    """The share of the dense 16-bit peak that kernels for this kind of job reach.

    MoE kernels only reach theirs if each expert gets many tokens: see `_TILE_TOKENS`.
    """
    row = gpu.architecture
    stated = (row.dense_share, row.moe_share, row.mxfp4_share)
    dense, moe, mxfp4 = cal.kernel_shares.get(row.architecture, stated)
    if job.dtype == "mxfp4":
        return mxfp4
    return moe if job.llm.is_moe else dense


def _attention_seconds(job: Job, machine: Machine, cal: Shares) -> float:
    """Attention of the whole prompt to itself.

    Before Hopper, attention with sinks (gpt-oss) runs on a much slower kernel.
    """
    llm, mean_context = job.llm, job.input_tokens / 2
    width = 4.0 * llm.attention_heads * (llm.head_dim or 128)
    full = (llm.full_attention_layers or 0) * mean_context
    window = llm.sliding_layers * min(mean_context, llm.sliding_window_tokens or 0)
    is_slow = llm.attention_sinks and not machine.gpu.architecture.has_fast_attention_sinks
    share = cal.attention_sinks if is_slow else cal.attention
    flops = job.input_tokens * width * (full + window)
    return flops / (machine.tensor_tflops * 1e12 * share * job.gpus)


def _reduce_seconds(job: Job, machine: Machine, cal: Shares) -> float:
    """All-reduce seconds per token: two per layer, over NVLink or similar, else over PCIe."""
    if job.gpus == 1:
        return 0.0
    sent = 2 * job.llm.layers * job.llm.hidden_size * 2 * 2 * (job.gpus - 1) / job.gpus
    return sent / (_link_bytes_per_second(machine.gpu, job.gpus) * cal.link)


def _link_bytes_per_second(gpu: Gpu, gpus: int) -> float:
    """The bandwidth between two GPUs; a pair of PCIe cards may or may not have its bridge."""
    row = gpu.architecture
    fast, slow = row.link_bytes_per_second, row.pcie_bytes_per_second
    if fast is None:
        return slow
    if gpu.form_factor == "PCIe":
        return math.sqrt(fast * slow) if gpus == 2 and row.has_bridged_pcie_pairs else slow
    return fast
