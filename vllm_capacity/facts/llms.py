"""Model shapes: what a token of context and a copy of the weights take, in bytes.

KV cache a token, at 2 bytes an element: 2 × layers × kv_heads × head_dim × 2 for (grouped-query)
attention; layers × (kv_lora_rank + qk_rope_head_dim) × 2 for MLA. Sliding-window layers stop
growing at the window, and linear layers hold a state: both are the fixed bytes per sequence, not
bytes per token. `data/llms.csv` holds the results with their shape and source; the tests recompute
them. Weights are the published files at the published type, else parameters × the type's bytes,
with the embedding and the output head at 2 bytes an element, as quantised checkpoints keep them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import polars as pl

from vllm_capacity.errors import InputError
from vllm_capacity.facts.gpus import GIB
from vllm_capacity.facts.nearest import nearest
from vllm_capacity.resources import shipped

BYTES_PER_WEIGHT = {
    "fp32": 4.0,
    "bf16": 2.0,
    "fp8": 1.0,
    "int8": 1.0,
    "mxfp4": 0.53125,
    "nvfp4": 0.5625,
    "int4": 0.52,
}
"""Bytes an element of a linear layer, scales of its groups included."""

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

_VARIANT_CONTEXT = re.compile(r"(\d{4}) variants: (\d+) context")


@dataclass(frozen=True)
class Llm:
    """One model's shape; a row of `data/llms.csv`. Parameters are in billions."""

    model: str
    params_total_b: float
    params_active_b: float
    layers: int
    hidden_size: int
    attention_heads: int
    kv_heads: int | None
    head_dim: int | None
    attention: str
    full_attention_layers: int | None
    sliding_layers: int
    sliding_window_tokens: int | None
    kv_lora_rank: int | None
    qk_rope_head_dim: int | None
    experts: int
    experts_per_token: int
    vocab_size: int
    published_dtype: str
    published_weight_gib: float | None
    kv_bytes_per_token_bf16: int
    kv_fixed_bytes_per_sequence_bf16: int
    max_context_tokens: int
    source: str
    date: str
    note: str

    @property
    def weights_dtype(self) -> str:
        """The published type, in the names of `BYTES_PER_WEIGHT`."""
        return weight_dtype(self.published_dtype)

    @property
    def is_moe(self) -> bool:
        """Whether a token passes only some experts."""
        return self.experts > 0

    @property
    def embedding_params(self) -> float:
        """Elements of the embedding and of an untied output head together."""
        tied = "tied embedding" in self.note
        return (1 if tied else 2) * self.vocab_size * self.hidden_size

    def weights_bytes(self, dtype: str = "auto") -> float:
        """Bytes of one copy of the weights at a type; `auto` is the published one."""
        chosen = self.weights_dtype if dtype == "auto" else weight_dtype(dtype)
        if chosen == self.weights_dtype and self.published_weight_gib is not None:
            return self.published_weight_gib * GIB
        each = BYTES_PER_WEIGHT[chosen]
        kept = max(each, 2.0)
        linear = max(self.params_total_b * 1e9 - self.embedding_params, 0.0)
        return linear * each + self.embedding_params * kept

    def kv_bytes_per_token(self, kv_dtype: str = "auto") -> float:
        """Bytes the KV cache grows by with each token of context."""
        return self.kv_bytes_per_token_bf16 * kv_scale(kv_dtype)

    def kv_fixed_bytes_per_sequence(self, kv_dtype: str = "auto") -> float:
        """Bytes a sequence holds whatever its length: full windows, or the state of linear layers.

        An FP8 cache halves windows; the state of linear layers keeps its type.
        """
        scale = 1.0 if self.attention == "linear-hybrid" else kv_scale(kv_dtype)
        return self.kv_fixed_bytes_per_sequence_bf16 * scale

    def sequence_bytes(self, tokens: float, kv_dtype: str = "auto") -> float:
        """KV bytes of one sequence of that many tokens; windows count only as far as filled."""
        fixed = self.kv_fixed_bytes_per_sequence(kv_dtype)
        if self.sliding_window_tokens and self.attention == "mixed":
            fixed *= min(tokens / self.sliding_window_tokens, 1.0)
        return tokens * self.kv_bytes_per_token(kv_dtype) + fixed

    def stored_bytes(self, tokens: float, gpus: int) -> float:
        """`sequence_bytes` as tensor parallelism over that many GPUs stores it, over all of them.

        KV heads and latents may be repeated; the state of linear layers is split, never repeated.
        """
        whole, growing = self.sequence_bytes(tokens), tokens * self.kv_bytes_per_token()
        repeated = growing if self.attention == "linear-hybrid" else whole
        return whole + repeated * (self.kv_copies(gpus) - 1)

    def kv_copies(self, gpus: int) -> float:
        """How often tensor parallelism over that many GPUs stores each KV byte.

        An MLA cache is whole on every GPU; KV heads fewer than GPUs are repeated.
        """
        if self.kv_lora_rank:
            return float(gpus)
        return max(1.0, gpus / self.kv_heads) if self.kv_heads else 1.0


@cache
def llms() -> tuple[Llm, ...]:
    """Every row of `data/llms.csv`, in its order."""
    frame = pl.read_csv(shipped("data/llms.csv"), infer_schema=False)
    return tuple(_llm(row) for row in frame.iter_rows(named=True))


def find_llm(name: str) -> Llm:
    """The model of a name: as in the table, without its owner, or another of its builds.

    "Qwen/Qwen3-30B-A3B-Instruct-2507" and "qwen3-30b-a3b" are one shape. A build whose name says
    its weight type (…-FP8, …-AWQ) has that type as its published one, and a dated variant the
    context that the row's note gives it. A name that no row or two rows answer to is an
    `InputError` with the nearest, where any is near.
    """
    asked = name.strip().lower()
    tests = (
        lambda row: row.model.lower() == asked,
        lambda row: _bare(row.model) == _bare(asked),
        lambda row: _plain(row.model) == _plain(asked),
    )
    for matches in tests:
        found = [row for row in llms() if matches(row)]
        if found:
            return _build(found[0], asked)
    known = {_bare(row.model): row.model for row in llms()}
    near = [known[each] for each in nearest(_bare(asked), known)]
    hint = f"; nearest: {', '.join(near)}" if near else ", and no name near it"
    raise InputError(f"No model {name!r} in data/llms.csv{hint}.")


@cache
def weight_dtype(text: str) -> str:
    """The weight type a text names, as in `BYTES_PER_WEIGHT`: "float16" is "bf16" (2 bytes)."""
    asked = text.strip().lower()
    for dtype, words in _DTYPES:
        if any(word in asked for word in words):
            return dtype
    raise InputError(f"No weight type {text!r}; use one of {', '.join(BYTES_PER_WEIGHT)} or auto.")


def kv_scale(kv_dtype: str) -> float:
    """Bytes of a KV element relative to 2 bytes: 1 for auto and 16 bits, 0.5 for FP8 or INT8."""
    if kv_dtype.strip().lower() == "auto":
        return 1.0
    dtype = weight_dtype(kv_dtype)
    if dtype not in ("fp32", "bf16", "fp8", "int8"):
        raise InputError(f"vLLM keeps no KV cache as {kv_dtype!r}; use auto, bf16 or fp8.")
    return BYTES_PER_WEIGHT[dtype] / 2.0


def _build(row: Llm, asked: str) -> Llm:
    """The row as the build of that name has it."""
    if _bare(row.model) == _bare(asked):
        return row
    own = _bare(asked).removeprefix(_plain(row.model))
    dtype = next((each for each, words in _DTYPES if any(word in own for word in words)), "")
    if dtype and dtype != row.weights_dtype:
        row = replace(row, published_dtype=dtype, published_weight_gib=None)
    for variant, tokens in _VARIANT_CONTEXT.findall(row.note):
        if variant in own:
            row = replace(row, max_context_tokens=int(tokens))
    return row


def _bare(model: str) -> str:
    return model.lower().rsplit("/", 1)[-1].removeprefix("meta-")


def _plain(model: str) -> str:
    """The name without owner and without the suffixes that leave the shape alone."""
    bare = _bare(model)
    while (shorter := _SUFFIXES.sub("", bare)) != bare:
        bare = shorter
    return bare


def _llm(row: dict[str, Any]) -> Llm:
    return Llm(
        model=row["model"],
        params_total_b=float(row["params_total_b"]),
        params_active_b=float(row["params_active_b"]),
        layers=int(row["layers"]),
        hidden_size=int(row["hidden_size"]),
        attention_heads=int(row["attention_heads"]),
        kv_heads=_count(row["kv_heads"]),
        head_dim=_count(row["head_dim"]),
        attention=row["attention"],
        full_attention_layers=_count(row["full_attention_layers"]),
        sliding_layers=_count(row["sliding_layers"]) or 0,
        sliding_window_tokens=_count(row["sliding_window_tokens"]),
        kv_lora_rank=_count(row["kv_lora_rank"]),
        qk_rope_head_dim=_count(row["qk_rope_head_dim"]),
        experts=_count(row["experts"]) or 0,
        experts_per_token=_count(row["experts_per_token"]) or 0,
        vocab_size=int(row["vocab_size"]),
        published_dtype=row["weight_dtype_as_published"],
        published_weight_gib=_amount(row["weight_gib_as_published"]),
        kv_bytes_per_token_bf16=int(row["kv_bytes_per_token_bf16"]),
        kv_fixed_bytes_per_sequence_bf16=_count(row["kv_fixed_bytes_per_sequence_bf16"]) or 0,
        max_context_tokens=int(row["max_context_tokens"]),
        source=row["source"],
        date=row["date"],
        note=row["note"] or "",
    )


def _count(cell: str | None) -> int | None:
    return int(cell) if cell else None


def _amount(cell: str | None) -> float | None:
    return float(cell) if cell else None
