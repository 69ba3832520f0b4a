"""Step times of vLLM, asked of the measured kernel tables of `aiconfigurator-core`: CSVs of them.

Run it in an environment of its own (`pip install aiconfigurator-core==0.12.0`, Python 3.11 to 3.13,
Linux x86-64); it needs nothing of this project:
`python bench/kernel_steps.py steps.csv experts.csv latent.csv`. Then
`python bench/step_constants.py steps.csv experts.csv latent.csv --write` distills them into
`data/gpu_kernels.csv`.

*Steps*: one row per GPU, model, weight type, tensor parallelism and step: milliseconds by what
takes them. A step decodes `sequences` at `context_tokens` each, beside `prompt_tokens` of prefill.
*Experts*: one row per GPU, weight type, shape of a mixture's layer, tensor parallelism and tokens:
milliseconds of the layer, as timed. They are of 24 shapes of published models, not only those of
the steps. *Latent*: one row per GPU, heads on it, sequences and context: milliseconds of a block of
multi-head latent attention (projections and attention) that decodes one token per sequence from a
16-bit KV cache, as timed. Only kernel tables are read; the end-to-end samples that the package
ships stay closed.
"""

from __future__ import annotations

import csv
import logging
import sys
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import aiconfigurator_core
import pandas as pd
from aiconfigurator_core.sdk.engine import EngineHandle

SYSTEMS = {
    "a100_sxm": "A100-80GB-SXM",
    "h100_sxm": "H100-80GB-SXM",
    "h200_sxm": "H200-141GB-SXM",
    "b200_sxm": "B200-180GB-SXM",
    "b300_sxm": "B300-SXM",
    "gb200": "GB200-NVL72",
    "gb300": "GB300-NVL72",
    "l40s": "L40S-PCIe",
    "rtx_pro_6000_server": "RTX-PRO-6000-Server-PCIe",
}
MODELS = (
    # our name, name there, weight type, options, tensor parallelism
    ("Qwen/Qwen3-1.7B", "Qwen/Qwen3-1.7B", "bf16", {}, (1,)),
    ("meta-llama/Llama-3.1-8B-Instruct", "meta-llama/Meta-Llama-3.1-8B", "bf16", {}, (1, 2, 4)),
    (
        "meta-llama/Llama-3.1-8B-Instruct",
        "meta-llama/Meta-Llama-3.1-8B",
        "fp8",
        {"gemm_quant_mode": "fp8"},
        (1, 2, 4),
    ),
    ("Qwen/Qwen3-8B", "Qwen/Qwen3-8B", "bf16", {}, (1, 2)),
    ("Qwen/Qwen3-32B", "Qwen/Qwen3-32B", "bf16", {}, (1, 2, 4, 8)),
    ("Qwen/Qwen3-32B", "Qwen/Qwen3-32B-FP8-Static-PerTensor", "fp8", {}, (1, 2, 4)),
    (
        "meta-llama/Llama-3.1-70B-Instruct",
        "meta-llama/Meta-Llama-3.1-70B",
        "bf16",
        {},
        (1, 2, 4, 8),
    ),
    (
        "meta-llama/Llama-3.1-70B-Instruct",
        "meta-llama/Meta-Llama-3.1-70B",
        "fp8",
        {"gemm_quant_mode": "fp8"},
        (1, 2, 4, 8),
    ),
    (
        "meta-llama/Llama-3.1-70B-Instruct",
        "meta-llama/Meta-Llama-3.1-70B",
        "nvfp4",
        {"gemm_quant_mode": "nvfp4"},
        (1, 2, 4, 8),
    ),
    ("Qwen/Qwen3-32B", "Qwen/Qwen3-32B", "nvfp4", {"gemm_quant_mode": "nvfp4"}, (1, 2)),
    ("Qwen/Qwen3-30B-A3B", "Qwen/Qwen3-30B-A3B", "bf16", {}, (1, 2, 4)),
    ("Qwen/Qwen3-30B-A3B", "Qwen/Qwen3-30B-A3B-FP8", "fp8", {}, (1, 2)),
    ("Qwen/Qwen3-235B-A22B", "Qwen/Qwen3-235B-A22B", "bf16", {}, (4, 8)),
    ("Qwen/Qwen3-235B-A22B", "Qwen/Qwen3-235B-A22B-FP8", "fp8", {}, (2, 4, 8)),
    ("Qwen/Qwen3-235B-A22B", "nvidia/Qwen3-235B-A22B-NVFP4", "nvfp4", {}, (1, 2, 4, 8)),
    ("MiniMaxAI/MiniMax-M2.5", "MiniMaxAI/MiniMax-M2.5", "fp8", {}, (2, 4, 8)),
    ("MiniMaxAI/MiniMax-M2.5", "nvidia/MiniMax-M2.5-NVFP4", "nvfp4", {}, (1, 2, 4, 8)),
    ("mistralai/Mixtral-8x7B-Instruct-v0.1", "mistralai/Mixtral-8x7B-v0.1", "bf16", {}, (1, 2, 4)),
    (
        "mistralai/Mixtral-8x7B-Instruct-v0.1",
        "mistralai/Mixtral-8x7B-v0.1",
        "fp8",
        {"gemm_quant_mode": "fp8", "moe_quant_mode": "fp8"},
        (1, 2, 4),
    ),
    ("mistralai/Mixtral-8x22B-Instruct-v0.1", "mistralai/Mixtral-8x22B-v0.1", "bf16", {}, (4, 8)),
    ("openai/gpt-oss-20b", "openai/gpt-oss-20b", "mxfp4", {}, (1, 2, 4)),
    ("openai/gpt-oss-120b", "openai/gpt-oss-120b", "mxfp4", {}, (1, 2, 4, 8)),
    ("deepseek-ai/DeepSeek-V3", "deepseek-ai/DeepSeek-V3", "fp8", {}, (4, 8)),
    ("deepseek-ai/DeepSeek-V3", "nvidia/DeepSeek-V3.1-NVFP4", "nvfp4", {}, (4, 8)),
    ("moonshotai/Kimi-K2.5", "moonshotai/Kimi-K2.5", "int4", {}, (4, 8)),
    ("moonshotai/Kimi-K2.5", "nvidia/Kimi-K2.5-NVFP4", "nvfp4", {}, (4, 8)),
)
SEQUENCES = (1, 4, 16, 64, 256)
CONTEXTS = (512, 2048, 8192, 32768)
PROMPTS = ((512, 512), (2048, 1024), (8192, 1024), (8192, 8192))
"""Tokens of prefill in a step, and tokens of the prompt they are of."""
COLUMNS = ("gpu", "model", "dtype", "gpus", "prompt_tokens", "prompt_length", "sequences")
COLUMNS += ("context_tokens", "dense_ms", "experts_ms", "prefill_attention_ms")
COLUMNS += ("decode_attention_ms", "latent_attention_ms", "reduce_ms", "other_ms")

EXPERTS = {
    "bfloat16": "bf16",
    "fp8_block": "fp8",
    "nvfp4": "nvfp4",
    "w4a16_mxfp4": "mxfp4",
    "w4a8_mxfp4_mxfp8": "mxfp4 mxfp8",
    "int4_wo": "int4",
}
"""Weight types of the tables: FP8 mixtures are published with block scales."""
ROUTING = "power_law_1.2"
"""How uneven the choice of experts is in the rows that are taken: what the package itself asks."""
EXPERT_VERSION = {"a100_sxm": "0.14.0"}
VERSION = "0.24.0"
LATENT_HEADS = 8
"""The fewest attention heads per GPU that are taken: published models run with 8 to 128."""

logging.disable(logging.CRITICAL)


def main() -> None:
    with open(sys.argv[1], "w", newline="") as file:  # noqa: PTH123
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for system, gpu in SYSTEMS.items():
            found = Counter()
            for model, theirs, dtype, options, splits in MODELS:
                for gpus in splits:
                    rows = list(_asked(theirs, system, options, gpus))
                    writer.writerows((gpu, model, dtype, gpus, *row) for row in rows)
                    found[dtype] += len(rows)
            print(gpu, dict(found), flush=True)
    tables = [_experts(system, gpu) for system, gpu in SYSTEMS.items()]
    pd.concat(tables).to_csv(sys.argv[2], index=False, float_format="%.5g")
    tables = [_latent(system, gpu) for system, gpu in SYSTEMS.items()]
    pd.concat(tables).to_csv(sys.argv[3], index=False, float_format="%.5g")


def _latent(system: str, gpu: str) -> pd.DataFrame | None:
    folder = Path(aiconfigurator_core.__file__).parent / "systems" / "data" / system / "mla"
    table = folder / "vllm" / VERSION / "mla_generation_module_perf.parquet"
    if not table.exists():
        return None
    rows = pd.read_parquet(table)
    rows = rows[(rows.kv_cache_dtype == "bfloat16") & (rows.gemm_type == "bfloat16")]
    rows = rows[rows.num_heads >= LATENT_HEADS]
    return pd.DataFrame(
        {
            "gpu": gpu,
            "heads": rows.num_heads,
            "sequences": rows.batch_size,
            "context_tokens": rows.step,
            "ms": rows.latency,
        }
    )


def _experts(system: str, gpu: str) -> pd.DataFrame:
    folder = Path(aiconfigurator_core.__file__).parent / "systems" / "data" / system / "moe"
    table = folder / "vllm" / EXPERT_VERSION.get(system, VERSION) / "moe_perf.parquet"
    rows = pd.read_parquet(table)
    rows = rows[(rows.distribution == ROUTING) & (rows.moe_ep_size == 1) & (rows.moe_tp_size <= 8)]
    rows = rows[rows.moe_dtype.isin(EXPERTS) & (rows.num_tokens <= 16384)]
    if "w4a16_mxfp4" in set(rows.moe_dtype):
        is_other = (rows.moe_dtype == "w4a16_mxfp4") & ~rows.kernel_source.str.contains("gptoss")
        rows = rows[~is_other]
    return pd.DataFrame(
        {
            "gpu": gpu,
            "dtype": rows.moe_dtype.map(EXPERTS),
            "hidden_size": rows.hidden_size,
            "columns": rows.inter_size,
            "experts": rows.num_experts,
            "experts_per_token": rows.topk,
            "gpus": rows.moe_tp_size,
            "tokens": rows.num_tokens,
            "ms": rows.latency,
        }
    )


def _asked(model: str, system: str, options: dict[str, str], gpus: int) -> Iterator[tuple]:
    try:
        engine = EngineHandle.compile(
            model, system, "vllm", tp_size=gpus, moe_tp_size=gpus, **options
        )
        engine.decode_step_latency(4, 512, 2)
    except Exception:  # no table of this kind for this GPU
        return
    for sequences in SEQUENCES:
        for context in CONTEXTS:
            ops = _ops(partial(_decode, engine, sequences, context))
            if ops is not None:
                yield (0, 0, sequences, context, *_parts(ops))
    for prompt, length in PROMPTS:
        for sequences in (1, 64):
            ops = _ops(partial(engine.mixed_step_breakdown_per_op, prompt, sequences, length, 256))
            if ops is not None:
                yield (prompt, length, sequences, length + 128, *_parts(ops))


def _decode(engine: EngineHandle, sequences: int, context: int) -> list[list[tuple]]:
    return [engine.decode_step_per_op(sequences, context - 1, 2)]


def _ops(ask) -> list | None:
    try:
        return [op for group in ask() for op in group]
    except Exception:
        return None


def _parts(ops: list[tuple]) -> tuple[float, ...]:
    parts = Counter()
    for name, ms, _, _ in ops:
        parts[_part(name)] += ms
    return tuple(f"{parts[name.removesuffix('_ms')]:.5g}" for name in COLUMNS[8:])


def _part(name: str) -> str:
    phase, _, rest = name.partition("_")
    if "mla_block" in rest:
        return "latent_attention"
    if "attention" in rest:
        return "decode_attention" if phase == "generation" else "prefill_attention"
    if any(word in rest for word in ("dispatch", "allreduce", "_ar", "ar_", "p2p")):
        return "reduce"
    if "moe" in rest:
        return "experts"
    return "dense" if "gemm" in rest else "other"


if __name__ == "__main__":
    main()
