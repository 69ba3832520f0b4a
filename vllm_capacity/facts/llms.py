"""Model shapes: bytes per token of context, and bytes per copy of the weights.

KV cache per token, at 2 bytes per element: 2 × layers × kv_heads × head_dim × 2 for (grouped-query)
attention; layers × (kv_lora_rank + qk_rope_head_dim) × 2 for MLA. Sliding-window layers stop
growing at the window, and linear layers hold a state: both count as fixed bytes per sequence, not
as bytes per token. `data/llms.csv` holds the results with their shape and source; the tests
recompute them. The size of the weights is that of the published files at the published type, else
parameters × the type's bytes, with the embedding and the output head at 2 bytes per element, as in
quantized checkpoints.
"""

from __future__ import annotations

import re
from functools import cache

from msgspec import Struct
from msgspec.structs import replace

from vllm_capacity.errors import InputError
from vllm_capacity.facts.gpus import GIB
from vllm_capacity.facts.tables import Count, Day, Positive, Text, suggest, table_rows

BYTES_PER_WEIGHT = {
    "fp32": 4.0,
    "bf16": 2.0,
    "fp8": 1.0,
    "int8": 1.0,
    "mxfp4": 0.53125,
    "nvfp4": 0.5625,
    "int4": 0.52,
}
"""Bytes per element of a linear layer, including its group scales."""

_DTYPES = (
    ("fp32", ("fp32", "float32")),
    ("mxfp4", ("mxfp4",)),
    ("nvfp4", ("nvfp4", "fp4")),
    ("fp8", ("fp8", "float8", "e4m3", "e5m2")),
    ("int8", ("int8", "w8a8", "w8a16")),
    ("int4", ("int4", "awq", "gptq", "w4a16", "4bit")),
    ("bf16", ("bf16", "bfloat16", "fp16", "float16", "half")),
)
_SUFFIXES = re.compile(
    r"-(instruct|it|chat|thinking|hf|bf16|fp8|fp8-dynamic|awq|gptq|int4|int8|nvfp4|mxfp4"
    r"|w4a16|w8a8|\d{4}|quantized\.w4a16|quantized\.w8a8|v0\.1)$"
)


class Llm(Struct, frozen=True, kw_only=True):
    """One model's shape, with parameters in billions; a row of `data/llms.csv`.

    `attention_sinks` marks models whose attention has learned sinks. A build whose name contains
    `dated_variant` has a context of `dated_variant_context_tokens`.
    """

    model: Text
    params_total_b: Positive
    params_active_b: Positive
    layers: Count
    hidden_size: Count
    attention_heads: Count
    kv_heads: Count | None = None
    head_dim: Count | None = None
    attention: Text
    attention_sinks: bool
    full_attention_layers: Count | None = None
    sliding_layers: Count = 0
    sliding_window_tokens: Count | None = None
    kv_lora_rank: Count | None = None
    qk_rope_head_dim: Count | None = None
    experts: Count = 0
    experts_per_token: Count = 0
    vocab_size: Count
    tied_embeddings: bool
    published_dtype: Text
    published_weight_gib: Positive | None = None
    kv_bytes_per_token_bf16: Count
    kv_fixed_bytes_per_sequence_bf16: Count = 0
    max_context_tokens: Count
    dated_variant: str = ""
    dated_variant_context_tokens: Count | None = None
    source: Text
    date: Day
    note: str = ""

    @property
    def weights_dtype(self) -> str:
        """The published weight type, as a key of `BYTES_PER_WEIGHT`."""
        return weight_dtype(self.published_dtype)

    @property
    def is_moe(self) -> bool:
        """Whether each token passes through only some of the experts."""
        return self.experts > 0

    @property
    def embedding_params(self) -> float:
        """Number of elements of the embedding, plus the output head if untied."""
        return (1 if self.tied_embeddings else 2) * self.vocab_size * self.hidden_size

    def weights_bytes(self, dtype: str = "auto") -> float:
        """Bytes of one copy of the weights in a type; `auto` is the published one."""
        chosen = self.weights_dtype if dtype == "auto" else weight_dtype(dtype)
        if chosen == self.weights_dtype and self.published_weight_gib is not None:
            return self.published_weight_gib * GIB
        each = BYTES_PER_WEIGHT[chosen]
        kept = max(each, 2.0)
        linear = max(self.params_total_b * 1e9 - self.embedding_params, 0.0)
        return linear * each + self.embedding_params * kept

    def kv_bytes_per_token(self, kv_dtype: str = "auto") -> float:
        """Bytes by which the KV cache grows per token of context."""
        return self.kv_bytes_per_token_bf16 * kv_scale(kv_dtype)

    def kv_fixed_bytes_per_sequence(self, kv_dtype: str = "auto") -> float:
        """Bytes per sequence of any length: full windows, or the state of linear layers.

        An FP8 cache halves the windows; the state of linear layers keeps its type.
        """
        scale = 1.0 if self.attention == "linear-hybrid" else kv_scale(kv_dtype)
        return self.kv_fixed_bytes_per_sequence_bf16 * scale

    def with_kv_cache(self, kv_dtype: str) -> Llm:
        """The model with KV bytes as of a cache of that type; InputError for an unknown one."""
        if kv_scale(kv_dtype) == 1.0:
            return self
        return replace(
            self,
            kv_bytes_per_token_bf16=round(self.kv_bytes_per_token(kv_dtype)),
            kv_fixed_bytes_per_sequence_bf16=round(self.kv_fixed_bytes_per_sequence(kv_dtype)),
        )

    def sequence_bytes(self, tokens: float, kv_dtype: str = "auto") -> float:
        """KV bytes of one sequence of `tokens` tokens; windows count only as far as filled."""
        fixed = self.kv_fixed_bytes_per_sequence(kv_dtype)
        if self.sliding_window_tokens and self.attention == "mixed":
            fixed *= min(tokens / self.sliding_window_tokens, 1.0)
        return tokens * self.kv_bytes_per_token(kv_dtype) + fixed

    def stored_bytes(self, tokens: float, gpus: int) -> float:
        """`sequence_bytes` summed over all GPUs under tensor parallelism.

        KV heads and latents may be replicated; the state of linear layers is split instead.
        """
        whole, growing = self.sequence_bytes(tokens), tokens * self.kv_bytes_per_token()
        repeated = growing if self.attention == "linear-hybrid" else whole
        return whole + repeated * (self.kv_copies(gpus) - 1)

    def kv_copies(self, gpus: int) -> float:
        """How many copies of each KV byte tensor parallelism over `gpus` GPUs stores.

        Every GPU holds a whole MLA cache; KV heads are replicated if there are fewer than GPUs.
        """
        if self.kv_lora_rank:
            return float(gpus)
        return max(1.0, gpus / self.kv_heads) if self.kv_heads else 1.0


def llms() -> tuple[Llm, ...]:
    """Every row of `data/llms.csv` in file order, after the user's own."""
    return table_rows(Llm, "llms.csv", _model_name)


def _model_name(row: Llm) -> str:
    return row.model.lower()


def find_llm(name: str) -> Llm:
    """The model of a name: as in the table, without its owner, or one of its builds.

    "Qwen/Qwen3-30B-A3B-Instruct-2507" and "qwen3-30b-a3b" are one shape. If the name of a build
    states a weight type (…-FP8, …-AWQ), that is its published type; a dated variant has its own
    context. Raises InputError, with the nearest names if any, for an unknown name.
    """
    wanted = name.strip().lower()
    tests = (
        lambda row: row.model.lower() == wanted,
        lambda row: _bare(row.model) == _bare(wanted),
        lambda row: _plain(row.model) == _plain(wanted),
    )
    for matches in tests:
        found = [row for row in llms() if matches(row)]
        if found:
            return _build(found[0], wanted)
    near = suggest(wanted, (row.model for row in llms()), compared=_bare)
    raise InputError(f"No model {name!r} in data/llms.csv{near}.")


def shape_or_reason(name: str) -> Llm | str:
    """The model of a name, else why its shape is unknown and what to do."""
    try:
        return find_llm(name)
    except InputError as error:
        return (
            f"the shape of {name!r} is unknown: {error} Name a model whose shape is known (model)."
        )


@cache
def weight_dtype(text: str) -> str:
    """The key of `BYTES_PER_WEIGHT` for a weight type: "float16" gives "bf16" (2 bytes)."""
    wanted = text.strip().lower()
    for dtype, words in _DTYPES:
        if any(word in wanted for word in words):
            return dtype
    raise InputError(f"No weight type {text!r}; use one of {', '.join(BYTES_PER_WEIGHT)} or auto.")


def kv_scale(kv_dtype: str) -> float:
    """Bytes per KV element relative to 2 bytes: 1 for auto and 16 bits, 0.5 for FP8 or INT8."""
    if kv_dtype.strip().lower() == "auto":
        return 1.0
    dtype = weight_dtype(kv_dtype)
    if dtype not in ("fp32", "bf16", "fp8", "int8"):
        raise InputError(f"No KV-cache type {kv_dtype!r}; use auto, bf16 or fp8.")
    return BYTES_PER_WEIGHT[dtype] / 2.0


def kv_type_reason(kv_dtype: str) -> str:
    """Why nothing can be calculated for a KV cache of that type; empty if it is known."""
    try:
        kv_scale(kv_dtype)
    except InputError:
        return f"the size of a KV cache of type {kv_dtype!r} is unknown"
    return ""


def _build(row: Llm, wanted: str) -> Llm:
    """The row adapted to the build of that name."""
    if _bare(row.model) == _bare(wanted):
        return row
    own = _bare(wanted).removeprefix(_plain(row.model))
    dtype = next((each for each, words in _DTYPES if any(word in own for word in words)), "")
    if dtype and dtype != row.weights_dtype:
        row = replace(row, published_dtype=dtype, published_weight_gib=None)
    context = row.dated_variant_context_tokens
    if context is not None and row.dated_variant in own:
        row = replace(row, max_context_tokens=context)
    return row


def _bare(model: str) -> str:
    return model.lower().rsplit("/", 1)[-1].removeprefix("meta-")


def _plain(model: str) -> str:
    """The name without owner and without suffixes that do not change the shape."""
    bare = _bare(model)
    while (shorter := _SUFFIXES.sub("", bare)) != bare:
        bare = shorter
    return bare
