"""How long one vLLM step takes on a GPU, from measured rooflines of its kernels.

1. A *kernel* takes the longer of its arithmetic and its memory traffic (a 4-norm of the two) plus a
   constant: `data/gpu_kernels.csv` has what each kernel of each GPU reaches.
2. A step runs, per layer, the *dense* products (attention projections, shared or dense layers), the
   *experts* of a mixture, *attention* of prompts and of decoding sequences, the *elementwise* rest,
   and with several GPUs two *all-reduces*; then the output head.
3. A mixture reads the experts that its tokens touch and computes whole tiles of rows for each. With
   even routing that share is 1 - (1 - k/E)^tokens. Tokens prefer some experts, and
   1 - (1 - k/E)^(tokens^0.8) is nearest to the tables, which were measured with such tokens. The
   narrower an expert's layer is on each GPU, the less of the FLOP/s its rows reach: this is why
   twice the GPUs do not halve its time.

All functions accept numbers or NumPy arrays, so that a fit can compute thousands of steps at once.
"""

from __future__ import annotations

from msgspec import Struct

from vllm_capacity.facts.llms import BYTES_PER_WEIGHT, Llm

_NORM = 4.0
_ROUTING = 0.8
"""How even the choice of experts is (1: completely).

The value in 0.6 to 1 with the smallest error for the tables' experts on every GPU
(`bench/step_constants.py`).
"""
EXPERT_MATRICES = 3.0
"""Gate, up and down: each as wide as the expert's layer, and as high as the model's hidden size."""
_LATENT_FLOPS = 320.0
"""Per head, prompt token and context token of multi-head latent attention (DeepSeek-V3).

A query and key of 192 and a value of 128 elements.
"""


class Roof(Struct, frozen=True):
    """What one kernel reaches: FLOP/s, bytes/s, and the additional seconds of every call.

    For a mixture's kernel, `tile_rows` are the rows that it computes for an expert beyond its
    tokens, and `half_rate_columns` is the width of an expert's layer on each GPU at which rows
    reach half of the FLOP/s (their other traffic, in units of the width).
    """

    flops_per_second: float
    bytes_per_second: float
    seconds: float
    tile_rows: float = 0.0
    half_rate_columns: float = 0.0

    def seconds_of(self, flops: float, bytes_moved: float) -> float:
        """Seconds for that much work, without those of the call."""
        compute, memory = flops / self.flops_per_second, bytes_moved / self.bytes_per_second
        both: float = (compute**_NORM + memory**_NORM) ** (1 / _NORM)
        return both


class Kernels(Struct, frozen=True):
    """The kernels of one GPU at one weight type."""

    dense: Roof
    experts: Roof
    prefill_attention: Roof
    decode_attention: Roof
    elementwise: Roof
    reduce: Roof


class StepWork(Struct, frozen=True):
    """The work of a step on each GPU of a group, per token, sequence or step; FLOPs and bytes."""

    layers: float
    gpus: float
    dense_flops_per_token: float
    dense_bytes: float
    head_flops_per_row: float
    head_bytes: float
    experts: float
    experts_per_token: float
    flops_per_expert_row: float
    flops_per_expert_row_and_column: float
    expert_bytes: float
    prefill_flops_per_context: float
    sliding_prefill_flops_per_context: float
    decode_flops_per_context: float
    kv_bytes_per_token: float
    kv_fixed_bytes: float
    window_tokens: float
    hidden_bytes: float


class StepSeconds(Struct, frozen=True):
    """Seconds of one step, by component."""

    dense: float
    experts: float
    prefill_attention: float
    decode_attention: float
    reduce: float
    elementwise: float

    @property
    def total(self) -> float:
        """The sum of all."""
        attention = self.prefill_attention + self.decode_attention
        return self.dense + self.experts + attention + self.reduce + self.elementwise


def step_work(llm: Llm, dtype: str, gpus: int) -> StepWork:
    """The work of a step of a model at a weight type, on each GPU (tensor parallelism)."""
    embedding = llm.vocab_size * llm.hidden_size
    routed, dense = _split(llm)
    dense_bytes = BYTES_PER_WEIGHT["bf16" if dense_dtype(llm, dtype) == "bf16" else dtype]
    width = 4.0 * llm.attention_heads * (llm.head_dim or 128)
    decode_width = width
    if llm.kv_lora_rank:
        width = 2.0 * llm.attention_heads * _LATENT_FLOPS
        latent = 2 * llm.kv_lora_rank + (llm.qk_rope_head_dim or 0)
        decode_width = 2.0 * llm.attention_heads * latent
    full = llm.full_attention_layers or 0
    copies = llm.kv_copies(gpus)
    fixed_copies = 1.0 if llm.attention == "linear-hybrid" else copies
    return StepWork(
        layers=llm.layers,
        gpus=gpus,
        dense_flops_per_token=2.0 * dense / gpus,
        dense_bytes=dense * dense_bytes / gpus,
        head_flops_per_row=2.0 * embedding / gpus,
        head_bytes=2.0 * embedding / gpus,
        experts=float(max(llm.experts, 1)),
        experts_per_token=float(llm.experts_per_token),
        flops_per_expert_row=2.0 * routed / max(llm.experts, 1) / gpus,
        flops_per_expert_row_and_column=EXPERT_MATRICES * 2.0 * llm.hidden_size * llm.layers,
        expert_bytes=routed * BYTES_PER_WEIGHT[dtype] / gpus,
        prefill_flops_per_context=width * full / gpus,
        sliding_prefill_flops_per_context=width * llm.sliding_layers / gpus,
        decode_flops_per_context=decode_width * full / gpus,
        kv_bytes_per_token=llm.kv_bytes_per_token() * copies / gpus,
        kv_fixed_bytes=llm.kv_fixed_bytes_per_sequence() * fixed_copies / gpus,
        window_tokens=float(llm.sliding_window_tokens or 0),
        hidden_bytes=2.0 * llm.hidden_size,
    )


def dense_dtype(llm: Llm, dtype: str) -> str:
    """The type of the layers that every token passes: 16 bits if only experts are quantized."""
    return "bf16" if llm.is_moe and dtype in ("mxfp4", "int4") else dtype


def _split(llm: Llm) -> tuple[float, float]:
    """Parameters of all routed experts, and of the layers that every token passes.

    Embedding and output head are in neither. The second is at least attention's own.
    """
    embeddings = llm.embedding_params
    total, active = llm.params_total_b * 1e9, llm.params_active_b * 1e9
    if not llm.is_moe:
        return 0.0, max(total - embeddings, 0.0)
    share = llm.experts_per_token / llm.experts
    dense = max((active - share * total) / (1 - share) - embeddings, _attention_params(llm))
    return max(total - dense - embeddings, 0.0), dense


def _attention_params(llm: Llm) -> float:
    heads = 2.0 * llm.attention_heads + 2.0 * (llm.kv_heads or llm.attention_heads)
    return llm.layers * llm.hidden_size * (llm.head_dim or 128) * heads


def step_seconds(
    work: StepWork,
    kernels: Kernels,
    *,
    prompt_tokens: float,
    prompt_length: float,
    sequences: float,
    context_tokens: float,
) -> StepSeconds:
    """Seconds of a step that decodes sequences and also computes prompt tokens.

    `context_tokens` is the context of each sequence, `prompt_length` the length of the prompt that
    the prompt tokens belong to. Without prompt tokens: a pure decode step.
    """
    tokens = prompt_tokens + sequences
    return StepSeconds(
        dense=_dense(work, kernels.dense, tokens, sequences),
        experts=expert_seconds(work, kernels.experts, tokens=tokens),
        prefill_attention=_prefill(work, kernels.prefill_attention, prompt_tokens, prompt_length),
        decode_attention=_decode(work, kernels.decode_attention, sequences, context_tokens),
        reduce=_reduce(work, kernels.reduce, tokens),
        elementwise=_elementwise(work, kernels.elementwise, tokens),
    )


def _dense(work: StepWork, roof: Roof, tokens: float, rows: float) -> float:
    flops = tokens * work.dense_flops_per_token + rows * work.head_flops_per_row
    return work.layers * roof.seconds + roof.seconds_of(flops, work.dense_bytes + work.head_bytes)


def expert_seconds(work: StepWork, roof: Roof, *, tokens: float) -> float:
    """Seconds that a step of `tokens` tokens takes in a mixture's experts; 0 for a dense model."""
    touched = touched_share(work.experts, work.experts_per_token, tokens)
    rows = tokens * work.experts_per_token + roof.tile_rows * work.experts * touched
    narrow = roof.half_rate_columns * work.flops_per_expert_row_and_column
    flops = rows * (work.flops_per_expert_row + narrow)
    busy = roof.seconds_of(flops, touched * work.expert_bytes)
    return busy + (work.experts_per_token > 0) * work.layers * roof.seconds


def touched_share(experts: float, experts_per_token: float, tokens: float) -> float:
    """The share of a mixture's experts that a step of `tokens` reads; 0 for a dense model."""
    missed: float = (1 - experts_per_token / experts) ** (tokens**_ROUTING)
    return 1 - missed


def _prefill(work: StepWork, roof: Roof, tokens: float, length: float) -> float:
    context = length / 2
    flops = tokens * context * work.prefill_flops_per_context
    flops += tokens * _least(context, work.window_tokens) * work.sliding_prefill_flops_per_context
    return (tokens > 0) * (work.layers * roof.seconds + flops / roof.flops_per_second)


def _decode(work: StepWork, roof: Roof, sequences: float, context: float) -> float:
    windows = _least(context, work.window_tokens) / (work.window_tokens + (work.window_tokens == 0))
    fixed = work.kv_fixed_bytes * (windows + (work.window_tokens == 0))
    moved = sequences * (context * work.kv_bytes_per_token + fixed)
    busy = roof.seconds_of(sequences * context * work.decode_flops_per_context, moved)
    return (sequences > 0) * (work.layers * roof.seconds + busy)


def _reduce(work: StepWork, roof: Roof, tokens: float) -> float:
    others = work.gpus - 1
    sent = tokens * work.hidden_bytes * 2 * others / work.gpus
    return (others > 0) * 2 * work.layers * (roof.seconds + sent / roof.bytes_per_second)


def _elementwise(work: StepWork, roof: Roof, tokens: float) -> float:
    moved = tokens * work.hidden_bytes * work.layers
    return work.layers * roof.seconds + moved / roof.bytes_per_second


def _least(one: float, other: float) -> float:
    """The smaller of two numbers or arrays."""
    return (one + other - abs(one - other)) / 2
