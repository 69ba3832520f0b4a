"""Distil the step times of `bench/kernel_steps.py` into `data/gpu_kernels.csv`.

Run it as `python bench/step_constants.py steps.csv experts.csv latent.csv [--write]`. Each kernel
of each GPU is a roofline of its own (`verdicts/hardware/step_time.py`), fitted by least squares of
logarithms: those of a mixture's experts to the layers that were timed, the others to their part of
the steps. It prints how far whole steps are off, by GPU and weight type; with --write it writes the
table.

Latent attention (DeepSeek, Kimi) was timed as whole blocks, launched without CUDA graphs on some
GPUs and with them on others (60 and 14 microseconds a layer for B300 and B200). Its roofline is
fitted to what longer contexts add to a block, which neither the launch nor the projections change;
a call adds what it does for other attention, which agrees with the latter within a tenth. Prompts
of latent attention stay with the roofline of other attention.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import polars as pl
from msgspec.structs import astuple
from scipy.optimize import least_squares

from vllm_capacity.facts.gpus import Gpu, find_gpu
from vllm_capacity.facts.kernels import Kernel
from vllm_capacity.facts.llms import BYTES_PER_WEIGHT, find_llm
from vllm_capacity.resources import shipped
from vllm_capacity.verdicts.hardware import step_time
from vllm_capacity.verdicts.hardware.serving import LATENT_ATTENTION
from vllm_capacity.verdicts.hardware.step_time import Kernels, Roof, StepWork

OLDER_TABLES = {"A100-80GB-SXM": "0.14.0"}
VERSION = "0.24.0"
SOURCE = (
    "fit of bench/step_constants.py to the kernel tables of vLLM {} in aiconfigurator-core 0.12.0 "
    "(NVIDIA, Apache-2.0)"
)
DATE = "2026-11-29"
EXPERTS = {
    "bf16": ("bf16",),
    "fp8": ("fp8",),
    "nvfp4": ("nvfp4",),
    "mxfp4": ("mxfp4 mxfp8", "mxfp4"),
    "int4": ("int4",),
}
"""The timed layers of a weight type, the first that a GPU has: MXFP4 with MXFP8 activations where
it multiplies them, as published runs were started (VLLM_USE_FLASHINFER_MOE_MXFP4_MXFP8=1)."""
WORDS = ("gpu", "dtype")
GAIN = {"bf16": 1.0, "fp8": 2.0, "nvfp4": 4.0, "mxfp4": 1.0, "int4": 1.0}
"""Over the dense 16-bit peak, where a fit starts."""
PER_TENSOR = ("Llama", "Qwen3-32B", "Mixtral")
"""Models whose FP8 has one scale per tensor. The tables of block scales time dense layers of other
kernels, and on Blackwell at half of the rate measured end to end."""
SPREAD = np.array([1.0, 1.0, 2.0, 1.0, 1.0])
"""How far, in logarithms, a rate, a time, the rows of a tile and the columns may lie from where a
fit starts."""
MAX_LAYERS = 1500
"""Of the timed layers of experts of one weight type, how many a fit takes (drawn by chance)."""
LATENT_RANK, LATENT_ROPE = 512, 64
"""Elements of a token's latent and of its rotary key, in DeepSeek and Kimi."""
MIN_CONTEXT, MIN_ADDED = 512, 0.25
"""The context that longer ones are compared with, and by which share they must lengthen a block."""
MIN_SEQUENCES = 16
"""From how many sequences on latent attention occupies a GPU; with fewer it is little of a step."""


@dataclass(frozen=True)
class Steps:
    """Steps of the tables: what they ask, and how long their parts take, in seconds."""

    rows: pl.DataFrame
    work: StepWork

    @property
    def asked(self) -> dict[str, np.ndarray]:
        names = ("prompt_tokens", "prompt_length", "sequences", "context_tokens")
        return {name: self.rows[name].to_numpy().astype(float) for name in names}

    def seconds(self, part: str) -> np.ndarray:
        return self.rows[f"{part}_ms"].to_numpy() / 1e3

    def where(self, *predicates: pl.Expr) -> Steps:
        return steps_of(self.rows.filter(*predicates))


def stacked(works: list[StepWork]) -> StepWork:
    """Arrays of the numbers of many works."""
    names = StepWork.__struct_fields__
    return StepWork(**{name: np.array([getattr(w, name) for w in works]) for name in names})


def steps_of(rows: pl.DataFrame) -> Steps:
    keys = list(rows.select("model", "dtype", "gpus").iter_rows())
    known = {key: step_time.step_work(find_llm(key[0]), *key[1:]) for key in set(keys)}
    return Steps(rows, stacked([known[key] for key in keys]))


Part = Callable[[Steps, Roof], np.ndarray]


@dataclass(frozen=True)
class Fitted:
    """A roofline, by how much it is off in logarithms (median), and of how many times."""

    roof: Roof
    error: float
    count: int


def part(kernel: str) -> Part:
    """The seconds of one kernel in steps, by its roofline."""

    def seconds(steps: Steps, roof: Roof) -> np.ndarray:
        chosen = Kernels(**dict.fromkeys(Kernels.__struct_fields__, roof))
        found = step_time.step_seconds(steps.work, chosen, **steps.asked)
        return getattr(found, kernel)

    return seconds


def fitted(predicted: Callable[[Roof], np.ndarray], truth: np.ndarray, start: Roof) -> Fitted:
    """The roofline whose seconds come nearest to those."""
    first = np.log([number for number in astuple(start) if number])

    def roof(logs: np.ndarray) -> Roof:
        return Roof(*map(float, np.exp(logs)))

    def residuals(logs: np.ndarray) -> np.ndarray:
        off = np.log(predicted(roof(logs)) / truth)
        return np.concatenate([off, 0.3 * (logs - first) / SPREAD[: len(first)]])

    found = roof(least_squares(residuals, first, loss="soft_l1", f_scale=0.3).x)
    error = float(np.median(np.abs(np.log(predicted(found) / truth))))
    return Fitted(found, error, len(truth))


def layers_of(rows: pl.DataFrame, dtype: str) -> StepWork:
    """What timed layers of experts ask, as steps of models of one layer."""
    of = {name: rows[name].to_numpy().astype(float) for name in rows.columns if name not in WORDS}
    weights = step_time.EXPERT_MATRICES * of["hidden_size"] * of["columns"] / of["gpus"]
    nothing = dict.fromkeys(StepWork.__struct_fields__, 0.0)
    own = {
        "layers": 1.0,
        "experts": of["experts"],
        "experts_per_token": of["experts_per_token"],
        "flops_per_expert_row": 2.0 * weights,
        "flops_per_expert_row_and_column": 2.0 * step_time.EXPERT_MATRICES * of["hidden_size"],
        "expert_bytes": of["experts"] * weights * BYTES_PER_WEIGHT[dtype],
    }
    return StepWork(**(nothing | own))


def experts_of(gpu: Gpu, layers: pl.DataFrame) -> Iterator[tuple[str, Fitted]]:
    """The kernels of a mixture's experts on a GPU, by weight type."""
    peak, bandwidth = gpu.tensor_tflops * 1e12, gpu.bandwidth_bytes_per_second
    for dtype, timed in EXPERTS.items():
        some = layers.filter(pl.col("gpu") == gpu.name, pl.col("dtype").is_in(timed))
        named = next((name for name in timed if name in some["dtype"]), None)
        if named is None:
            continue
        some = some.filter(pl.col("dtype") == named)
        some = some.sample(min(len(some), MAX_LAYERS), seed=1)
        work, tokens = layers_of(some, dtype), some["tokens"].to_numpy().astype(float)
        start = Roof(0.4 * GAIN[dtype] * peak, 0.6 * bandwidth, 2e-5, 32.0, 150.0)
        seconds = partial(step_time.expert_seconds, work, tokens=tokens)
        yield dtype, fitted(lambda roof, ask=seconds: ask(roof), some["ms"].to_numpy() / 1e3, start)


def kernels_of(gpu: Gpu, steps: Steps) -> Iterator[tuple[str, str, Fitted]]:
    """Every kernel of a GPU but those of experts: its name, weight type and roofline."""
    peak, bandwidth = gpu.tensor_tflops * 1e12, gpu.bandwidth_bytes_per_second
    row = gpu.architecture
    link = row.link_bytes_per_second or row.pcie_bytes_per_second
    starts = {
        "prefill_attention": Roof(0.4 * peak, 0.7 * bandwidth, 3e-6),
        "decode_attention": Roof(0.4 * peak, 0.7 * bandwidth, 3e-6),
        "elementwise": Roof(peak, 0.1 * bandwidth, 3e-6),
        "reduce": Roof(peak, 0.3 * link, 1e-5),
    }
    columns = {"elementwise": "other"}
    plain = steps.where(~pl.col("model").str.contains("DeepSeek|Kimi"))
    for kernel, start in starts.items():
        column = columns.get(kernel, kernel)
        some = plain.where(pl.col(f"{column}_ms") > 0)
        yield kernel, "", fitted(partial(part(kernel), some), some.seconds(column), start)
    for dtype in ("bf16", "fp8", "nvfp4"):
        some = plain.where(pl.col("dtype") == dtype)
        if dtype == "fp8":
            some = some.where(pl.col("model").str.contains("|".join(PER_TENSOR)))
        if len(some.rows):
            start = Roof(0.6 * GAIN[dtype] * peak, 0.7 * bandwidth, 1e-5)
            found = fitted(partial(part("dense"), some), some.seconds("dense"), start)
            yield "dense", dtype, found


def latent_attention_of(gpu: Gpu, blocks: pl.DataFrame, plain: Roof) -> Fitted | None:
    """Latent attention of decoding on a GPU, where it was timed; `plain` is other attention."""
    some = blocks.filter(pl.col("gpu") == gpu.name, pl.col("sequences") >= MIN_SEQUENCES)
    if not len(some):
        return None
    short = some.filter(pl.col("context_tokens") == MIN_CONTEXT)
    some = some.join(short, on=("heads", "sequences"), suffix="_short")
    some = some.with_columns(added=pl.col("ms") - pl.col("ms_short"))
    some = some.filter(pl.col("added") > MIN_ADDED * pl.col("ms_short"))
    longer = some["context_tokens"] - MIN_CONTEXT
    tokens = (some["sequences"] * longer).to_numpy().astype(float)
    moved = tokens * 2.0 * (LATENT_RANK + LATENT_ROPE)
    flops = tokens * some["heads"].to_numpy() * 2.0 * (2 * LATENT_RANK + LATENT_ROPE)

    def seconds(roof: Roof) -> np.ndarray:
        return roof.seconds_of(flops, moved)

    return fitted(seconds, some["added"].to_numpy() / 1e3, plain)


def check(gpu: str, steps: Steps, roofs: dict[tuple[str, str], Roof]) -> None:
    """Print how far whole steps are off."""
    for dtype in steps.rows["dtype"].unique(maintain_order=True):
        for is_latent in (False, True):
            words = pl.col("model").str.contains("DeepSeek|Kimi")
            some = steps.where(pl.col("dtype") == dtype, words if is_latent else ~words)
            if not len(some.rows):
                continue
            own = dict.fromkeys(("dense", "experts"), dtype)
            if dtype in ("mxfp4", "int4"):
                own["dense"] = "bf16"
            names = Kernels.__struct_fields__
            chosen = {name: roofs.get((name, own.get(name, "")), Roof(1, 1, 0)) for name in names}
            if is_latent and (LATENT_ATTENTION, "") in roofs:
                chosen["decode_attention"] = roofs[LATENT_ATTENTION, ""]
            found = step_time.step_seconds(some.work, Kernels(**chosen), **some.asked).total
            parts = [name[:-3] for name in some.rows.columns if name.endswith("_ms")]
            off = np.abs(np.log(found / sum(some.seconds(name) for name in parts)))
            kind = "latent attention" if is_latent else ""
            print(
                f"{gpu} {dtype} {kind}: {len(off)} steps, "
                f"off by {np.median(off):.1%} (median), {np.mean(off):.1%} (mean)"
            )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("steps")
    parser.add_argument("experts")
    parser.add_argument("latent")
    parser.add_argument("--write", action="store_true", help="write data/gpu_kernels.csv")
    asked = parser.parse_args()
    table = pl.read_csv(asked.steps, infer_schema_length=None)
    layers = pl.read_csv(asked.experts, infer_schema_length=None)
    blocks = pl.read_csv(asked.latent)
    rows = []
    for gpu in table["gpu"].unique(maintain_order=True):
        steps, row = steps_of(table.filter(pl.col("gpu") == gpu)), find_gpu(gpu).rows[0]
        found = list(kernels_of(row, steps))
        plain = next(each.roof for kernel, _, each in found if kernel == "decode_attention")
        latent = latent_attention_of(row, blocks, plain)
        found += [(LATENT_ATTENTION, "", latent)] if latent else []
        found += [("experts", dtype, each) for dtype, each in experts_of(row, layers)]
        version = OLDER_TABLES.get(gpu, VERSION)
        for kernel, dtype, each in found:
            roof = each.roof
            rows.append(
                {
                    "gpu": gpu,
                    "kernel": kernel,
                    "dtype": dtype,
                    "tflops": f"{roof.flops_per_second / 1e12:.4g}",
                    "tb_per_second": f"{roof.bytes_per_second / 1e12:.4g}",
                    "microseconds": f"{roof.seconds * 1e6:.4g}",
                    "tile_rows": f"{roof.tile_rows:.4g}" if roof.tile_rows else "",
                    "half_rate_columns": f"{roof.half_rate_columns:.4g}" if roof.tile_rows else "",
                    "median_error": f"{each.error:.3f}",
                    "steps": each.count,
                    "source": SOURCE.format(version),
                    "date": DATE,
                }
            )
        check(gpu, steps, {(kernel, dtype): each.roof for kernel, dtype, each in found})
    if asked.write:
        path = shipped("data") / "gpu_kernels.csv"
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, Kernel.__struct_fields__, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
