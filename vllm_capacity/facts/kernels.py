"""Performance of each GPU kernel under vLLM, as rooflines fitted to measured kernel tables."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

from msgspec import Struct

from vllm_capacity.facts.tables import Count, Day, Positive, Text, read_rows
from vllm_capacity.resources import shipped


class Kernel(Struct, frozen=True, kw_only=True):
    """One kernel of one GPU; a row of `data/gpu_kernels.csv`.

    `kernel` is a field of `verdicts.hardware.step_time.Kernels`, or `latent_attention` (that of
    decoding with multi-head latent attention); `dtype` is the weight type of a
    matrix product, empty for other kernels. `microseconds` is the overhead of one call (one layer)
    on top of compute and memory traffic. `median_error` is the roofline's distance from the tables.
    """

    gpu: Text
    kernel: Text
    dtype: str = ""
    tflops: Positive
    tb_per_second: Positive
    microseconds: Positive
    tile_rows: Positive | None = None
    half_rate_columns: Positive | None = None
    median_error: Positive
    steps: Count
    source: Text
    date: Day


@cache
def kernels() -> Mapping[str, Mapping[tuple[str, str], Kernel]]:
    """Every row of `data/gpu_kernels.csv`, by GPU, then by kernel and weight type."""
    found: dict[str, dict[tuple[str, str], Kernel]] = {}
    for row in read_rows(Kernel, shipped("data/gpu_kernels.csv")):
        found.setdefault(row.gpu, {})[row.kernel, row.dtype] = row
    return found


class KernelFactor(Struct, frozen=True, kw_only=True):
    """Corrections to a kernel, fitted to published runs; a row of `gpu_kernel_factors.csv`.

    They multiply its FLOP/s, bytes/s and microseconds. An empty `architecture` means any.
    """

    architecture: str = ""
    kernel: Text
    dtype: str = ""
    flops_factor: Positive
    bytes_factor: Positive
    seconds_factor: Positive
    source: Text
    date: Day


@cache
def kernel_factors() -> Mapping[tuple[str, str, str], tuple[float, float, float]]:
    """Every row of `data/gpu_kernel_factors.csv`, by architecture, kernel and weight type."""
    return {
        (row.architecture, row.kernel, row.dtype): (
            row.flops_factor,
            row.bytes_factor,
            row.seconds_factor,
        )
        for row in read_rows(KernelFactor, shipped("data/gpu_kernel_factors.csv"))
    }
