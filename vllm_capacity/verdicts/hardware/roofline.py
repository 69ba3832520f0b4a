"""How long a saturated vLLM engine takes for one request, by arithmetic: what scales a what-if.

1. *Room*. Device memory × 0.9, less the weights and what the profile run reserves (its logits for
   `max_num_seqs` rows, its activations for `max_num_batched_tokens`), is KV cache. KV cache ÷ the
   bytes of a sequence of the mean length is how many sequences run.
2. *Batch* N = the least of that, of `max_num_seqs` and of the offered concurrency. vLLM's own
   defaults: 1,024 sequences and 8,192 tokens per step on GPUs from 70 GiB that are no A100, else
   256 and 2,048. This is why an H100 admits a burst that an A100 queues.
3. *Steps per request* = max(O ÷ N, (I + O) ÷ tokens per step): decoding or prefilling limits.
4. *Core*: compute (2 × active parameters per token ÷ usable FLOPS) and weight reads (the experts
   that a step's tokens touch ÷ usable bandwidth) overlap: a 4-norm of the two.
5. Added: attention over the prompt, KV reads, step overhead, all-reduce between GPUs, and what the
   host does per token and request, which no GPU makes faster (but newer GPUs stand in newer hosts).

Output tokens per second = O ÷ the sum. Usable shares of the data sheet come from `Calibration` and
`data/gpu_architectures.csv`, fitted by `bench/whatif_calibration.py` to published runs and pairs.
Alone this is right within a factor of 1.6; it serves as a *ratio* of two GPUs, in which shared
errors cancel.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from vllm_capacity.facts.gpus import GIB, Gpu
from vllm_capacity.facts.llms import Llm

USABLE_MEMORY = 0.89
"""`gpu_memory_utilization` 0.9 of what the driver shows, which is 1 % under the nominal size."""
FIXED_RESERVE_BYTES = 0.5 * GIB
"""What the driver's context and the libraries take of that, whatever the model.

By Little's law (rate × time per output token) the published runs of gpt-oss-120b that KV room
limits had 28 and 52 sequences running on an A100 and 157, 28 and 15 on an H100: this gives 27, 53
and 152, 32, 17.
"""
LEAST_ROOM_SHARE = 0.25
"""Of what the weights leave: a server that is short of room is started with smaller reserves."""
OFFERED = 512.0
"""Sequences a load keeps in flight where the question does not say."""
_NORM = 4.0
_TILE_TOKENS = 32.0
"""Tokens an expert must get for its matrix tiles to be half full (a tile is 64 rows)."""


@dataclass(frozen=True)
class Calibration:
    """Usable shares of a data sheet, and host seconds, that hold on every architecture.

    `kernel_shares` replaces the dense, MoE and MXFP4 shares of `data/gpu_architectures.csv`, by
    architecture: those of another fit.
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


@dataclass(frozen=True)
class Job:
    """What is served: a model at a weight type on some GPUs, with mean token counts."""

    llm: Llm
    dtype: str
    gpus: int
    input_tokens: float
    output_tokens: float


@dataclass(frozen=True)
class Machine:
    """A GPU as the arithmetic needs it; `tensor_tflops` is never unknown here."""

    gpu: Gpu
    tensor_tflops: float

    @property
    def is_large(self) -> bool:
        """Whether vLLM's defaults take it for a large GPU: from 70 GiB, and no A100."""
        return self.gpu.memory_gib >= 70 and not self.gpu.gpu.startswith("A100")

    @property
    def max_num_seqs(self) -> int:
        """The default of vLLM."""
        return 1024 if self.is_large else 256

    @property
    def tokens_per_step(self) -> int:
        """The default `max_num_batched_tokens` of vLLM's API server."""
        return 8192 if self.is_large else 2048


@dataclass(frozen=True)
class Times:
    """Seconds one request takes of the engine, by what takes them, and the batch it assumes."""

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
        """All of it."""
        return self.core + self.attention + self.kv + self.overhead + self.host


def kv_room_bytes(job: Job, machine: Machine, *, reserve_share: float = 1.0) -> float:
    """Bytes a GPU has left for KV cache; negative where the weights do not fit.

    `reserve_share` scales what the profile run is reckoned to keep, known to a factor of two.
    """
    llm = job.llm
    weights = llm.weights_bytes(job.dtype)
    if job.dtype == "mxfp4":
        weights *= 1.02 * math.ceil(llm.hidden_size / 256) * 256 / llm.hidden_size
    reserve = FIXED_RESERVE_BYTES + 8 * machine.max_num_seqs * llm.vocab_size
    reserve += 32 * machine.tokens_per_step * llm.hidden_size
    beside_weights = machine.gpu.memory_bytes * USABLE_MEMORY - weights / job.gpus
    room = beside_weights - reserve_share * reserve
    return max(room, LEAST_ROOM_SHARE * beside_weights) if beside_weights > 0 else beside_weights


def sequences_that_fit(
    job: Job, machine: Machine, *, tokens: float, reserve_share: float = 1.0
) -> float:
    """How many sequences of that many tokens the KV cache holds; 0 or less: none."""
    each = job.llm.stored_bytes(tokens, job.gpus) / job.gpus
    return kv_room_bytes(job, machine, reserve_share=reserve_share) / each


def saturated_batch(job: Job, machine: Machine, *, offered: float = OFFERED) -> float:
    """Sequences running at saturation, at least 1."""
    fit = sequences_that_fit(job, machine, tokens=job.input_tokens + job.output_tokens / 2)
    return max(1.0, min(0.92 * machine.max_num_seqs, offered, fit))


def request_times(job: Job, machine: Machine, *, batch: float, calibration: Calibration) -> Times:
    """Engine seconds a request takes when `batch` sequences run."""
    llm, n, cal = job.llm, job.gpus, calibration
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
    """The share of the weights that a step of so many tokens reads; 1 for a dense model."""
    if not llm.is_moe:
        return 1.0
    routed = llm.experts_per_token / llm.experts
    shared = (llm.params_active_b - routed * llm.params_total_b) / (1 - routed)
    shared = max(shared, 0.0) / llm.params_total_b
    return shared + (1 - shared) * (1 - math.pow(1 - routed, max(tokens, 1.0)))


def _tile_waste(job: Job, tokens: float) -> float:
    """How much more a mixture's matrix tiles compute than its tokens ask for, at least 1."""
    if not job.llm.is_moe or job.dtype == "mxfp4":
        return 1.0
    each = max(tokens * job.llm.experts_per_token / job.llm.experts, 1.0)
    return 1 + _TILE_TOKENS / each


def tensor_tflops_range(gpu: Gpu, peers: tuple[Gpu, ...]) -> tuple[float, float] | None:
    """Dense 16-bit TFLOPS, low and high; a span of its architecture's where its row has none.

    The span is the least and most TFLOPS per byte of bandwidth among `peers` of its architecture,
    times its bandwidth. None where the architecture has no figure either.
    """
    if gpu.tensor_tflops is not None:
        return gpu.tensor_tflops, gpu.tensor_tflops
    ratios = [
        peer.tensor_tflops / peer.mem_bw_tb_s
        for peer in peers
        if peer.family == gpu.family and peer.tensor_tflops is not None
    ]
    if not ratios:
        return None
    return min(ratios) * gpu.mem_bw_tb_s, max(ratios) * gpu.mem_bw_tb_s


def is_native(dtype: str, gpu: Gpu) -> bool:
    """Whether the GPU multiplies that weight type itself, and need not widen it to 16 bits."""
    if dtype == "fp8":
        return gpu.has_fp8
    if dtype == "int8":
        return gpu.int8_dense_tops is not None
    if dtype == "nvfp4":
        return gpu.fp4_dense_tflops is not None
    return dtype in ("bf16", "fp32", "mxfp4")


def _usable_flops(job: Job, machine: Machine, cal: Calibration) -> float:
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


def usable_share(job: Job, machine: Machine, cal: Calibration) -> float:
    """Usable FLOPS over the dense 16-bit peak of the data sheet; above 1 for native FP8."""
    return _usable_flops(job, machine, cal) / (machine.tensor_tflops * 1e12 * job.gpus)


def _kernel_share(job: Job, gpu: Gpu, cal: Calibration) -> float:
    """The share of the dense 16-bit peak that kernels of the job's kind reach.

    MoE kernels reach theirs only where each expert gets many tokens: see `_TILE_TOKENS`.
    """
    row = gpu.architecture
    stated = (row.dense_share, row.moe_share, row.mxfp4_share)
    dense, moe, mxfp4 = cal.kernel_shares.get(row.architecture, stated)
    if job.dtype == "mxfp4":
        return mxfp4
    return moe if job.llm.is_moe else dense


def _attention_seconds(job: Job, machine: Machine, cal: Calibration) -> float:
    """Attention of the whole prompt to itself.

    Attention with sinks (gpt-oss) runs before Hopper on a kernel that reaches far less.
    """
    llm, mean_context = job.llm, job.input_tokens / 2
    width = 4.0 * llm.attention_heads * (llm.head_dim or 128)
    full = (llm.full_attention_layers or 0) * mean_context
    window = llm.sliding_layers * min(mean_context, llm.sliding_window_tokens or 0)
    is_slow = llm.attention_sinks and not machine.gpu.architecture.has_fast_attention_sinks
    share = cal.attention_sinks if is_slow else cal.attention
    flops = job.input_tokens * width * (full + window)
    return flops / (machine.tensor_tflops * 1e12 * share * job.gpus)


def _reduce_seconds(job: Job, machine: Machine, cal: Calibration) -> float:
    """All-reduce seconds per token: two per layer, over NVLink or its like, else over PCIe."""
    if job.gpus == 1:
        return 0.0
    sent = 2 * job.llm.layers * job.llm.hidden_size * 2 * 2 * (job.gpus - 1) / job.gpus
    return sent / (_link_bytes_per_second(machine.gpu, job.gpus) * cal.link)


def _link_bytes_per_second(gpu: Gpu, gpus: int) -> float:
    """What two GPUs exchange; a pair of PCIe cards that take a bridge may or may not have one."""
    row = gpu.architecture
    fast, slow = row.link_bytes_per_second, row.pcie_bytes_per_second
    if fast is None:
        return slow
    if gpu.form_factor == "PCIe":
        return math.sqrt(fast * slow) if gpus == 2 and row.has_bridged_pcie_pairs else slow
    return fast
