"""A vLLM engine on some GPUs: what fits, how many requests run, and how long their tokens take.

1. *Room*. Device memory × 0.9, minus the weights and what the profile run reserves (its logits for
   `max_num_seqs` rows, its activations for `max_num_batched_tokens`), is KV cache. KV cache ÷ the
   bytes of a sequence of the mean length is the number of sequences that fit.
2. *Batch* = the minimum of that, `max_num_seqs` and the offered concurrency. vLLM's own defaults:
   1,024 sequences and 8,192 tokens per step on GPUs from 70 GiB except A100, else 256 and 2,048.
   This is why an H100 admits a burst that an A100 queues.
3. *Cycle*. While a sequence writes its output, every other one is served too: a batch of b needs b
   prompts computed in that time, in mixed steps of up to a prompt or of what the limit allows; the
   other steps only decode. Seconds per token = those steps ÷ output tokens (`step_time`).
4. *Kernels* are those measured for the GPU (`data/gpu_kernels.csv`). A GPU without any gets the
   rates of the nearest one of its architecture, scaled by the two data sheets; the basis says so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache

from msgspec import Struct, field
from msgspec.structs import replace

from vllm_capacity.errors import InputError
from vllm_capacity.estimate import Estimate, Kind
from vllm_capacity.facts.gpus import GIB, Gpu, GpuSpan, find_gpu
from vllm_capacity.facts.kernels import Kernel, kernel_factors, kernels
from vllm_capacity.facts.llms import Llm
from vllm_capacity.verdicts.hardware.step_time import (
    Kernels,
    Roof,
    StepWork,
    dense_dtype,
    step_seconds,
    step_work,
)

USABLE_MEMORY = 0.89
"""`gpu_memory_utilization` 0.9 of what the driver reports, which is 1 % below the nominal size."""
FIXED_RESERVE_BYTES = 0.5 * GIB
"""What the driver's context and the libraries take of that, for any model.

By Little's law (rate × time per output token) the published runs of gpt-oss-120b limited by KV room
had 28 and 52 sequences running on an A100 and 157, 28 and 15 on an H100: this gives 27, 53 and 152,
32, 17.
"""
MIN_ROOM_SHARE = 0.25
"""Minimum KV share of what the weights leave: servers short of room start with smaller reserves."""
CLIENTS_OFFERED = 512.0
"""Sequences that a load keeps in flight, if the question does not say."""
BLOCK_TOKENS = 16


class Job(Struct, frozen=True):
    """What is served: a model at a weight type on some GPUs, with mean token counts."""

    llm: Llm
    dtype: str
    gpus: int
    input_tokens: float
    output_tokens: float

    @property
    def work(self) -> StepWork:
        """The work of its steps on each GPU."""
        return step_work(self.llm, self.dtype, self.gpus)


class Machine(Struct, frozen=True):
    """A GPU as the calculation needs it; `tensor_tflops` is never unknown here."""

    gpu: Gpu
    tensor_tflops: float

    @property
    def is_large(self) -> bool:
        """Whether vLLM's defaults treat it as a large GPU: from 70 GiB, except A100."""
        return self.gpu.memory_gib >= 70 and not self.gpu.gpu.startswith("A100")

    @property
    def max_num_seqs(self) -> int:
        """The default of vLLM."""
        return 1024 if self.is_large else 256

    @property
    def tokens_per_step(self) -> int:
        """The default `max_num_batched_tokens` of vLLM's API server."""
        return 8192 if self.is_large else 2048


class Host(Struct, frozen=True):
    """Seconds that no kernel explains: per step, per sequence in it, per request.

    Fitted by `bench/whatif_calibration.py`, like `data/gpu_kernel_factors.csv`.
    """

    step_seconds: float = 1.16e-4
    sequence_seconds: float = 9.87e-6
    request_seconds: float = 1.18e-3


class Calibration(Struct, frozen=True):
    """What published runs add to the kernel tables.

    `factors` multiply the FLOP/s, the bytes/s and the seconds per call of a kernel, by
    architecture, kernel and weight type (empty: every type).
    """

    factors: Mapping[tuple[str, str, str], tuple[float, float, float]] = field(default_factory=dict)
    host: Host = field(default_factory=Host)


@cache
def shipped_calibration() -> Calibration:
    """The result of `bench/whatif_calibration.py`."""
    return Calibration(kernel_factors())


class Cycle(Struct, frozen=True):
    """The seconds per output token of each sequence, and their components."""

    seconds_per_token: float
    mixed_seconds: float
    decode_seconds: float
    mixed_steps: float


def kv_room_bytes(job: Job, machine: Machine, *, reserve_share: float = 1.0) -> float:
    """Bytes that a GPU has left for KV cache; negative if the weights do not fit.

    `reserve_share` scales the estimated reserve of the profile run, known to a factor of two.
    """
    llm = job.llm
    weights = llm.weights_bytes(job.dtype)
    if job.dtype == "mxfp4":
        weights *= 1.02 * math.ceil(llm.hidden_size / 256) * 256 / llm.hidden_size
    reserve = FIXED_RESERVE_BYTES + 8 * machine.max_num_seqs * llm.vocab_size
    reserve += 32 * machine.tokens_per_step * llm.hidden_size
    beside_weights = machine.gpu.memory_bytes * USABLE_MEMORY - weights / job.gpus
    room = beside_weights - reserve_share * reserve
    return max(room, MIN_ROOM_SHARE * beside_weights) if beside_weights > 0 else beside_weights


def sequences_that_fit(
    job: Job, machine: Machine, *, tokens: float, reserve_share: float = 1.0
) -> float:
    """How many sequences of that many tokens the KV cache holds; 0 or less: none."""
    each = job.llm.stored_bytes(tokens, job.gpus) / job.gpus
    return kv_room_bytes(job, machine, reserve_share=reserve_share) / each


def saturated_batch(job: Job, machine: Machine, *, offered: float = CLIENTS_OFFERED) -> float:
    """Running sequences at saturation, at least 1."""
    fit = sequences_that_fit(job, machine, tokens=job.input_tokens + job.output_tokens / 2)
    return max(1.0, min(0.92 * machine.max_num_seqs, offered, fit))


def cycle(
    work: StepWork,
    chosen: Kernels,
    host: Host,
    *,
    batch: float,
    input_tokens: float,
    output_tokens: float,
    tokens_per_step: float,
) -> Cycle:
    """The steady state of a batch in which new requests follow finished ones.

    Accepts numbers or NumPy arrays. A mixed step computes a whole prompt, or as much as the limit
    allows, or as much of several prompts as is needed to compute all in time.
    """
    share = batch * input_tokens / output_tokens
    prompt = _least(_most(_least(input_tokens, tokens_per_step), share), tokens_per_step)
    mixed_steps = batch * input_tokens / prompt
    context = input_tokens + output_tokens / 2
    each = host.step_seconds + host.sequence_seconds * batch
    mixed = (
        each
        + step_seconds(
            work,
            chosen,
            prompt_tokens=prompt,
            prompt_length=input_tokens,
            sequences=_most(batch - prompt / input_tokens, 0.0 * batch),
            context_tokens=context,
        ).total
    )
    decode = (
        each
        + step_seconds(
            work,
            chosen,
            prompt_tokens=0.0 * batch,
            prompt_length=0.0 * batch,
            sequences=batch,
            context_tokens=context,
        ).total
    )
    seconds = mixed_steps * mixed + _most(output_tokens - mixed_steps, 0.0 * batch) * decode
    seconds = seconds + host.request_seconds * batch
    return Cycle(seconds / output_tokens, mixed, decode, mixed_steps)


def _least(one: float, other: float) -> float:
    return (one + other - abs(one - other)) / 2


def _most(one: float, other: float) -> float:
    return (one + other + abs(one - other)) / 2


class Rates(Struct, frozen=True):
    """The kernels of a GPU at a weight type, and their origin.

    `peer` is the GPU whose tables stand in for one without any, empty if it has its own. `lent`:
    products of that weight type were never timed on it. `is_timed`: every kernel was timed on that
    chip, or on its other form factor, or its rate was fitted to published runs. `is_validated`:
    runs of that weight type on its architecture contributed to the rate.
    """

    kernels: Kernels
    peer: str
    lent: bool
    is_timed: bool
    is_validated: bool


WEIGHT_ONLY = "H100-80GB-SXM"
"""The GPU whose 4-bit weight kernels stand in for GPUs without tables of them: 16-bit compute."""
WIDENED = 0.85
"""The share of the 16-bit rate that products with widened weights reach."""
HOPPER_WIDENED = 0.63
"""The share of Hopper's data sheet that kernels reach that widen weights in registers.

They issue `mma.sync`, which reaches 62.9 % there (Luo et al., arXiv 2402.13499), on Ampere all of
it.
"""
OTHER_VENDOR = "H100-80GB-SXM"
LATENT_ATTENTION = "latent_attention"
"""The kernel of multi-head latent attention while decoding, in tables that have one."""
SINKS = "sinks"
"""The factor key of attention with learned sinks on GPUs where it runs on a slow kernel."""
_GAIN = {"fp8": "fp8_dense_tflops", "int8": "int8_dense_tops", "nvfp4": "fp4_dense_tflops"}


def rates(machine: Machine, llm: Llm, dtype: str, calibration: Calibration) -> Rates:
    """The kernels that a model at a weight type runs on a GPU, after calibration."""
    gpu = machine.gpu
    peer = peer_of(gpu)
    table = kernels()[peer.name]
    scale = _Scale.between(machine, peer)
    plain = dense_dtype(llm, dtype)
    dense, dense_lent = _product(machine, peer, "dense", plain)
    experts, experts_lent = _product(machine, peer, "experts", dtype)
    has_latent = llm.attention == "mla" and (LATENT_ATTENTION, "") in table
    decode_attention = LATENT_ATTENTION if has_latent else "decode_attention"
    found = {
        "dense": dense,
        "experts": experts,
        "prefill_attention": scale.of(_roof(table["prefill_attention", ""])),
        "decode_attention": scale.of(_roof(table[decode_attention, ""])),
        "elementwise": scale.of(_roof(table["elementwise", ""])),
        "reduce": scale.link(_roof(table["reduce", ""])),
    }
    types = {"dense": plain, "experts": dtype}
    chosen = {
        name: _calibrated(
            roof,
            calibration,
            ("", name, ""),
            (gpu.family, name, ""),
            (gpu.family, name, types[name]),
        )
        if name in types
        else _calibrated(roof, calibration, ("", name, ""), (gpu.family, name, ""))
        for name, roof in found.items()
    }
    if llm.attention_sinks and not gpu.architecture.has_fast_attention_sinks:
        slow = ("", "prefill_attention", SINKS)
        chosen["prefill_attention"] = _calibrated(chosen["prefill_attention"], calibration, slow)
    product = ("experts", dtype) if llm.is_moe else ("dense", plain)
    is_lent = dense_lent or (llm.is_moe and experts_lent)
    is_validated = (gpu.family, *product) in calibration.factors
    own = peer.name == gpu.name
    return Rates(
        Kernels(**chosen),
        "" if own else peer.name,
        is_lent,
        is_timed=(is_validated or not is_lent) and peer.gpu == gpu.gpu,
        is_validated=is_validated,
    )


@cache
def peer_of(gpu: Gpu) -> Gpu:
    """The GPU whose kernel tables stand in for one: its own, else the nearest of its architecture.

    Nearest in FLOPS per byte of bandwidth, among those of its compute capability if any. For an
    architecture without tables: Ampere's for older ones, else Hopper's.
    """
    measured = [find_gpu(name).rows[0] for name in kernels()]
    if own := [row for row in measured if row.name == gpu.name]:
        return own[0]
    alike = [row for row in measured if row.arch == gpu.arch]
    family = [row for row in measured if row.family == gpu.family]
    older = "A100-80GB-SXM" if gpu.architecture.vendor == "NVIDIA" else OTHER_VENDOR
    others = alike or family or [row for row in measured if row.name == older]
    return min(others, key=lambda row: abs(math.log(_balance(row) / _balance(gpu))))


def _balance(gpu: Gpu) -> float:
    return (gpu.tensor_tflops or gpu.mem_bw_tb_s) / gpu.mem_bw_tb_s


class _Scale(Struct, frozen=True):
    """The ratios of one GPU's data sheet to another's."""

    flops: float
    bandwidth: float
    links: float

    @classmethod
    def between(cls, machine: Machine, peer: Gpu) -> _Scale:
        """A GPU relative to the one whose tables stand in for it; another vendor's reach less."""
        gpu, share, bandwidth_share = machine.gpu, 1.0, 1.0
        if gpu.architecture.vendor != peer.architecture.vendor:
            share = gpu.architecture.dense_share / peer.architecture.dense_share
            bandwidth_share = gpu.architecture.bandwidth_share
        return cls(
            share * machine.tensor_tflops / (peer.tensor_tflops or machine.tensor_tflops),
            bandwidth_share * gpu.mem_bw_tb_s / peer.mem_bw_tb_s,
            _link(gpu) / _link(peer),
        )

    def of(self, roof: Roof) -> Roof:
        return replace(
            roof,
            flops_per_second=roof.flops_per_second * self.flops,
            bytes_per_second=roof.bytes_per_second * self.bandwidth,
        )

    def link(self, roof: Roof) -> Roof:
        return replace(roof, bytes_per_second=roof.bytes_per_second * self.links)


def _link(gpu: Gpu) -> float:
    """Bytes per second between two GPUs, in one direction."""
    row = gpu.architecture
    fast, slow = row.link_bytes_per_second, row.pcie_bytes_per_second
    if fast is None:
        return slow
    if gpu.form_factor == "PCIe":
        return math.sqrt(fast * slow) if row.has_bridged_pcie_pairs else slow
    return fast


def _product(machine: Machine, peer: Gpu, kernel: str, dtype: str) -> tuple[Roof, bool]:
    """The roofline of a kernel that multiplies, and whether it was never timed at that type."""
    table, scale = kernels()[peer.name], _Scale.between(machine, peer)
    if (kernel, dtype) in table and _runs_natively(dtype, machine.gpu, peer):
        return scale.of(_roof(table[kernel, dtype])), False
    if kernel == "experts" and dtype in ("int4", "mxfp4"):
        lender = find_gpu(WEIGHT_ONLY).rows[0]
        lent = _Scale.between(machine, lender).of(_roof(kernels()[lender.name][kernel, dtype]))
        gain = _widening_share(machine.gpu) / _widening_share(lender)
        return replace(lent, flops_per_second=lent.flops_per_second * gain), True
    wide = scale.of(_roof(table[kernel, "bf16"]))
    if dtype == "bf16":
        return wide, False
    gain = _gain(machine, dtype)
    return replace(wide, flops_per_second=wide.flops_per_second * gain), True


def tensor_tflops_range(gpu: Gpu, peers: tuple[Gpu, ...]) -> tuple[float, float] | None:
    """Dense 16-bit TFLOPS, low and high; a range from its architecture if its row has none.

    The range is the minimum and maximum TFLOPS per byte of bandwidth among `peers` of its
    architecture, times its bandwidth. None if the architecture has no figure either.
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


def _widening_share(gpu: Gpu) -> float:
    """The share of a GPU's data sheet that kernels can reach that widen weights in registers."""
    return HOPPER_WIDENED if gpu.family == "Hopper" else 1.0


def _runs_natively(dtype: str, gpu: Gpu, peer: Gpu) -> bool:
    """Whether a GPU multiplies a type the same way as its peer."""
    return dtype not in _GAIN or is_native(dtype, gpu) == is_native(dtype, peer)


def _gain(machine: Machine, dtype: str) -> float:
    """The rate over 16-bit products, by the data sheet; below 1 if weights are widened first."""
    sheet = getattr(machine.gpu, _GAIN[dtype]) if dtype in _GAIN else None
    if dtype == "fp32":
        return 0.5
    if dtype in _GAIN and is_native(dtype, machine.gpu):
        return WIDENED * (sheet or 2 * machine.tensor_tflops) / machine.tensor_tflops
    return WIDENED


def is_native(dtype: str, gpu: Gpu) -> bool:
    """Whether the GPU multiplies that weight type itself, without widening it to 16 bits."""
    if dtype == "fp8":
        return gpu.has_fp8
    if dtype == "int8":
        return gpu.int8_dense_tops is not None
    if dtype == "nvfp4":
        return gpu.fp4_dense_tflops is not None
    return dtype in ("bf16", "fp32", "mxfp4")


def _roof(row: Kernel) -> Roof:
    return Roof(
        row.tflops * 1e12,
        row.tb_per_second * 1e12,
        row.microseconds * 1e-6,
        row.tile_rows or 0.0,
        row.half_rate_columns or 0.0,
    )


def _calibrated(roof: Roof, calibration: Calibration, *keys: tuple[str, str, str]) -> Roof:
    for key in keys:
        flops, moved, seconds = calibration.factors.get(key, (1.0, 1.0, 1.0))
        roof = replace(
            roof,
            flops_per_second=roof.flops_per_second * flops,
            bytes_per_second=roof.bytes_per_second * moved,
            seconds=roof.seconds * seconds,
        )
    return roof


def users_that_fit(
    llm: Llm, *, dtype: str, kv_dtype: str, span: GpuSpan, gpus: int, tokens: int
) -> Estimate:
    """How many sequences of that many tokens a KV cache holds at once, whole numbers.

    This is not how many meet an SLO: sequences are not all at full length at once, and latency runs
    out before memory does. Low and high cover the form factors of the span and a reserve of twice
    and half of that estimated for vLLM's profile run. Unknown if the weights or a single sequence
    do not fit, or if the GPUs do not divide the attention heads. A context longer than the model's
    own is calculated all the same, and the basis says so.
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
            f"{weights:.1f} GiB of {dtype} weights per GPU leave {gpus} × {span.label} too little "
            f"KV cache for one sequence of {tokens:,} tokens"
        )
    basis = f"KV cache of {gpus} × {span.label}, with all users at {tokens:,} tokens at once"
    if tokens > llm.max_context_tokens:
        basis += f", which exceeds the model's own context of {llm.max_context_tokens:,}"
    return Estimate.known(low, mid, high, basis, kind=Kind.ASSUMED, confidence=None)


def uneven(llm: Llm, gpus: int) -> str:
    """Why vLLM would not start on that many GPUs, with numbers; empty if it can."""
    if gpus <= llm.attention_heads and llm.attention_heads % gpus == 0:
        return ""
    return (
        f"the {llm.attention_heads} attention heads of {llm.model} cannot be split evenly over "
        f"{gpus} GPUs, as vLLM requires"
    )
