"""Distil the step times of `bench/kernel_steps.py` into `data/gpu_kernels.csv`.

Run it as `python bench/step_constants.py steps.csv [--write]`. Each kernel of each GPU is a
roofline of its own (`verdicts/hardware/step_time.py`), fitted to its part of those steps by least
squares of logarithms. It prints how far whole steps are off, by GPU and weight type; with --write
it writes the table.

Latent attention (DeepSeek, Kimi) has no roofline of its own: its tables time whole blocks, which
launch without CUDA graphs on some GPUs and with them on others (60 and 14 microseconds a layer for
B300 and B200). That of other attention agrees with the latter within a tenth.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields

import numpy as np
import polars as pl
from scipy.optimize import least_squares

from vllm_capacity.facts.gpus import Gpu, find_gpu
from vllm_capacity.facts.kernels import Kernel
from vllm_capacity.facts.llms import find_llm
from vllm_capacity.resources import shipped
from vllm_capacity.verdicts.hardware import step_time
from vllm_capacity.verdicts.hardware.step_time import Kernels, Roof, StepWork

OLDER_TABLES = {"A100-80GB-SXM": "0.14.0"}
VERSION = "0.24.0"
SOURCE = (
    "fit of bench/step_constants.py to the kernel tables of vLLM {} in aiconfigurator-core 0.12.0 "
    "(NVIDIA, Apache-2.0)"
)
DATE = "2026-11-28"
GAIN = {"bf16": 1.0, "fp8": 2.0, "nvfp4": 4.0, "mxfp4": 1.0, "int4": 1.0}
"""Over the dense 16-bit peak, where a fit starts."""
PER_TENSOR = ("Llama", "Qwen3-32B", "Mixtral")
"""Whose FP8 has one scale a tensor. The tables of block scales run dense layers of other kernels,
and on Blackwell at half of what was measured end to end."""
SPREAD = np.array([1.0, 1.0, 2.0, 1.0])
"""How far, in logarithms, a rate, a time and the rows of a tile may lie from where a fit starts."""


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
    names = [field.name for field in fields(StepWork)]
    return StepWork(**{name: np.array([getattr(w, name) for w in works]) for name in names})


def steps_of(rows: pl.DataFrame) -> Steps:
    keys = list(rows.select("model", "dtype", "gpus").iter_rows())
    known = {key: step_time.step_work(find_llm(key[0]), *key[1:]) for key in set(keys)}
    return Steps(rows, stacked([known[key] for key in keys]))


Part = Callable[[Steps, Roof], np.ndarray]


def part(kernel: str) -> Part:
    """The seconds of one kernel in steps, by its roofline."""

    def seconds(steps: Steps, roof: Roof) -> np.ndarray:
        chosen = Kernels(**{field.name: roof for field in fields(Kernels)})
        found = step_time.step_seconds(steps.work, chosen, **steps.asked)
        return getattr(found, kernel)

    return seconds


def fitted(steps: Steps, predicted: Part, truth: np.ndarray, start: Roof) -> tuple[Roof, float]:
    """The roofline that comes nearest to those seconds, and by how much it is off (median)."""
    first = np.log([start.flops_per_second, start.bytes_per_second, start.seconds])
    if start.tile_rows:
        first = np.append(first, np.log(start.tile_rows))

    def roof(logs: np.ndarray) -> Roof:
        return Roof(*map(float, np.exp(logs)))

    def residuals(logs: np.ndarray) -> np.ndarray:
        off = np.log(predicted(steps, roof(logs)) / truth)
        return np.concatenate([off, 0.3 * (logs - first) / SPREAD[: len(first)]])

    found = roof(least_squares(residuals, first, loss="soft_l1", f_scale=0.3).x)
    return found, float(np.median(np.abs(np.log(predicted(steps, found) / truth))))


def kernels_of(gpu: Gpu, steps: Steps) -> Iterator[tuple[str, str, Roof, float, int]]:
    """Every kernel of a GPU: its name, weight type, roofline, error and number of steps."""
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
        roof, error = fitted(some, part(kernel), some.seconds(column), start)
        yield kernel, "", roof, error, len(some.rows)
    for dtype in ("bf16", "fp8", "nvfp4"):
        some = plain.where(pl.col("dtype") == dtype)
        if dtype == "fp8":
            some = some.where(pl.col("model").str.contains("|".join(PER_TENSOR)))
        if len(some.rows):
            start = Roof(0.6 * GAIN[dtype] * peak, 0.7 * bandwidth, 1e-5)
            roof, error = fitted(some, part("dense"), some.seconds("dense"), start)
            yield "dense", dtype, roof, error, len(some.rows)
    for dtype in GAIN:
        some = steps.where(pl.col("dtype") == dtype, pl.col("experts_ms") > 0)
        if len(some.rows):
            start = Roof(0.4 * GAIN[dtype] * peak, 0.6 * bandwidth, 2e-5, 16.0)
            roof, error = fitted(some, part("experts"), some.seconds("experts"), start)
            yield "experts", dtype, roof, error, len(some.rows)


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
            names = [field.name for field in fields(Kernels)]
            chosen = {name: roofs.get((name, own.get(name, "")), Roof(1, 1, 0)) for name in names}
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
    parser.add_argument("--write", action="store_true", help="write data/gpu_kernels.csv")
    asked = parser.parse_args()
    table = pl.read_csv(asked.steps, infer_schema_length=None)
    rows = []
    for gpu in table["gpu"].unique(maintain_order=True):
        steps = steps_of(table.filter(pl.col("gpu") == gpu))
        found = list(kernels_of(find_gpu(gpu).rows[0], steps))
        version = OLDER_TABLES.get(gpu, VERSION)
        for kernel, dtype, roof, error, count in found:
            rows.append(
                {
                    "gpu": gpu,
                    "kernel": kernel,
                    "dtype": dtype,
                    "tflops": f"{roof.flops_per_second / 1e12:.4g}",
                    "tb_per_second": f"{roof.bytes_per_second / 1e12:.4g}",
                    "microseconds": f"{roof.seconds * 1e6:.4g}",
                    "tile_rows": f"{roof.tile_rows:.4g}" if roof.tile_rows else "",
                    "median_error": f"{error:.3f}",
                    "steps": count,
                    "source": SOURCE.format(version),
                    "date": DATE,
                }
            )
        check(gpu, steps, {(kernel, dtype): roof for kernel, dtype, roof, *_ in found})
    if asked.write:
        path = shipped("data") / "gpu_kernels.csv"
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(
                file, [field.name for field in fields(Kernel)], lineterminator="\n"
            )
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
