"""Hardware: what each GPU and form factor has, and which rows a name stands for.

A GPU is named `gpu-form_factor`, as in `A100-80GB-SXM`. `A100-80GB-any` (and the bare
`A100-80GB`) spans every form factor of that GPU: a figure read from it is an interval, and the
answer is flagged "form factor assumed". Names never cross: an A10 is no A10G. An empty cell of
the table is unknown, not zero.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import Any

import polars as pl

from vllm_capacity.errors import InputError
from vllm_capacity.estimate import Estimate
from vllm_capacity.facts.nearest import nearest
from vllm_capacity.resources import shipped

GIB = 2**30
_FP16_NOTE = re.compile(r"FP16 tensor (\d+) TFLOPS")
ANY_FORM = ("any", "(not stated)")
"""What a row says where the form factor is not known."""


@dataclass(frozen=True)
class Gpu:
    """One GPU in one form factor; TFLOPS are dense, None where no source gives them."""

    gpu: str
    form_factor: str
    arch: str
    memory_gib: float
    mem_bw_tb_s: float
    bf16_dense_tflops: float | None
    fp8_dense_tflops: float | None
    fp4_dense_tflops: float | None
    int8_dense_tops: float | None
    tdp_w: float | None
    source: str
    date: str
    note: str

    @property
    def name(self) -> str:
        """`gpu-form_factor`."""
        return f"{self.gpu}-{self.form_factor}"

    @property
    def family(self) -> str:
        """The architecture's first word, such as Ampere, Hopper, Ada, Blackwell or CDNA3."""
        return self.arch.split()[0]

    @property
    def memory_bytes(self) -> float:
        """Device memory in bytes."""
        return self.memory_gib * GIB

    @property
    def bandwidth_bytes_per_second(self) -> float:
        """Peak memory bandwidth."""
        return self.mem_bw_tb_s * 1e12

    @property
    def tensor_tflops(self) -> float | None:
        """Dense 16-bit TFLOPS: BF16, else FP16 from the row's note, else half of INT8 or FP8.

        Half, because every row that has both an 8-bit and a BF16 figure has them 2 to 1 (B300 and
        GB300, whose INT8 units are cut, state BF16). None where the row gives nothing to go by.
        """
        if self.bf16_dense_tflops is not None:
            return self.bf16_dense_tflops
        if noted := _FP16_NOTE.search(self.note):
            return float(noted.group(1))
        eight_bit = self.int8_dense_tops or self.fp8_dense_tflops
        return None if eight_bit is None else eight_bit / 2

    @property
    def has_fp8(self) -> bool:
        """Whether it has FP8 tensor cores: it multiplies FP8, and need not widen it first."""
        return self.fp8_dense_tflops is not None or self.family in ("Hopper", "Ada", "Blackwell")


@dataclass(frozen=True)
class GpuSpan:
    """The rows a GPU name stands for: one, or every form factor of a GPU."""

    name: str
    rows: tuple[Gpu, ...]

    @property
    def is_assumed(self) -> bool:
        """Whether the form factor is assumed: several rows could be meant."""
        return len(self.rows) > 1

    @property
    def label(self) -> str:
        """The name, and that the form factor is assumed where it is."""
        if not self.is_assumed:
            return self.rows[0].name
        forms = "/".join(row.form_factor for row in self.rows)
        return f"{self.name} (form factor assumed: {forms})"

    def figure(self, column: str) -> Estimate:
        """A column over the span as an interval, its middle the mean of the two ends.

        Unknown where no row has it; where only some have it, over those that do.
        """
        found = [v for row in self.rows if (v := getattr(row, column)) is not None]
        if not found:
            return Estimate.unknown(f"{column} of {self.label} is in no source")
        low, high = min(found), max(found)
        return Estimate.known(low, (low + high) / 2, high, f"gpu_specs.csv, {self.label}")


@cache
def gpus() -> tuple[Gpu, ...]:
    """Every row of `data/gpu_specs.csv`, in its order."""
    frame = pl.read_csv(shipped("data/gpu_specs.csv"), infer_schema=False)
    return tuple(_gpu(row) for row in frame.iter_rows(named=True))


def find_gpu(name: str) -> GpuSpan:
    """The rows a name stands for; case is ignored. A name nobody knows is an `InputError`."""
    asked = name.strip().lower()
    for row in gpus():
        if row.name.lower() == asked:
            return GpuSpan(row.name, (row,))
    bare = asked
    for form in ANY_FORM:
        bare = bare.removesuffix(f"-{form}")
    matching = tuple(row for row in gpus() if row.gpu.lower() == bare)
    if matching:
        return GpuSpan(f"{matching[0].gpu}-any", matching)
    known = {row.name.lower(): row.name for row in gpus()}
    near = [known[each] for each in nearest(asked, known)]
    hint = f"; nearest: {', '.join(near)}" if near else ", and no name near it"
    raise InputError(
        f"No GPU {name!r} in data/gpu_specs.csv{hint}. "
        "Name it gpu-form_factor, or gpu-any for every form factor."
    )


def gpu_names() -> tuple[str, ...]:
    """Every `gpu-form_factor`, sorted."""
    return tuple(sorted(row.name for row in gpus()))


def _gpu(row: dict[str, Any]) -> Gpu:
    return Gpu(
        gpu=row["gpu"],
        form_factor=row["form_factor"],
        arch=row["arch"],
        memory_gib=float(row["memory_gib"]),
        mem_bw_tb_s=float(row["mem_bw_tb_s"]),
        bf16_dense_tflops=_number(row["bf16_dense_tflops"]),
        fp8_dense_tflops=_number(row["fp8_dense_tflops"]),
        fp4_dense_tflops=_number(row["fp4_dense_tflops"]),
        int8_dense_tops=_number(row["int8_dense_tops"]),
        tdp_w=_number(row["tdp_w"]),
        source=row["source"] or "",
        date=row["date"] or "",
        note=row["note"] or "",
    )


def _number(cell: str | None) -> float | None:
    return float(cell) if cell else None
