"""Hardware: what each GPU, form factor and architecture has, and which rows a name stands for.

A GPU is named `gpu-form_factor`, as in `A100-80GB-SXM`. `A100-80GB-any` (and the bare
`A100-80GB`) spans every form factor of that GPU: a figure read from it is an interval, and the
answer is flagged "form factor assumed". Names never cross: an A10 is no A10G. An empty cell of
the table is unknown, not zero.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from vllm_capacity.errors import InputError
from vllm_capacity.facts.tables import (
    OWN,
    Day,
    Positive,
    Share,
    Text,
    is_own,
    own_path,
    suggest,
    table_rows,
)

GIB = 2**30
ANY_FORM = ("any", "(not stated)")
"""What a row says where the form factor is not known."""

_MEMORY = re.compile(r"\d+gb")
_FORM_WORDS = {"sxm": "SXM", "pcie": "PCIe", "nvl": "NVL", "hbm3": "SXM"}
"""What a label says of a form factor; of NVIDIA's names only SXM modules say HBM3."""
_PARTS = frozenset(("mig", "shared"))


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What the GPUs of one architecture share; a row of `data/gpu_architectures.csv`.

    The shares are what kernels reach of a data sheet: of the dense 16-bit peak for dense, MoE and
    MXFP4 layers, and of the bandwidth that kernels on NVIDIA's GPUs reach. `is_fitted`: they were
    fitted to published runs; else they are assumed. `host_speed` says how much faster the hosts
    that these GPUs are sold with are than those of Ampere. Link rates are those of one direction
    between two GPUs; None without a link faster than PCIe.
    """

    architecture: Text
    vendor: Text
    is_fitted: bool
    dense_share: Share
    moe_share: Share
    mxfp4_share: Share
    bandwidth_share: Share
    host_speed: Positive
    link_bytes_per_second: Positive | None = None
    pcie_bytes_per_second: Positive
    has_bridged_pcie_pairs: bool
    has_fp8: bool
    runs_fp8_and_fp4_weights: bool
    has_fast_attention_sinks: bool
    source: Text
    date: Day
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU in one form factor; TFLOPS are dense, None where no source gives them."""

    gpu: Text
    form_factor: Text
    arch: Text
    memory_gib: Positive
    mem_bw_tb_s: Positive
    bf16_dense_tflops: Positive | None = None
    fp16_dense_tflops: Positive | None = None
    fp8_dense_tflops: Positive | None = None
    fp4_dense_tflops: Positive | None = None
    int8_dense_tops: Positive | None = None
    tdp_w: Positive | None = None
    source: Text
    date: Day
    note: str = ""

    @property
    def name(self) -> str:
        """`gpu-form_factor`."""
        return f"{self.gpu}-{self.form_factor}"

    @property
    def family(self) -> str:
        """The architecture's first word, such as Ampere, Hopper, Ada, Blackwell or CDNA3."""
        return self.arch.split()[0]

    @property
    def architecture(self) -> Architecture:
        """What its architecture is known for; InputError where the table does not have it."""
        known = architectures()
        if self.family not in known:
            raise InputError(
                f"{self.name} has the architecture {self.family!r}, which "
                f"data/gpu_architectures.csv does not describe; known: {', '.join(sorted(known))}. "
                "Add a row for it."
            )
        return known[self.family]

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
        """Dense 16-bit TFLOPS: BF16, else FP16, else half of INT8 or FP8.

        Half, because every row that has both an 8-bit and a BF16 figure has them 2 to 1 (B300 and
        GB300, whose INT8 units are cut, state BF16). None where the row gives nothing to go by.
        """
        sixteen_bit = self.bf16_dense_tflops or self.fp16_dense_tflops
        if sixteen_bit is not None:
            return sixteen_bit
        eight_bit = self.int8_dense_tops or self.fp8_dense_tflops
        return None if eight_bit is None else eight_bit / 2

    @property
    def has_fp8(self) -> bool:
        """Whether it has FP8 tensor cores: it multiplies FP8, and need not widen it first."""
        return self.fp8_dense_tflops is not None or self.architecture.has_fp8


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
        notes = [OWN] if any(is_own(row.source) for row in self.rows) else []
        if self.is_assumed:
            forms = "/".join(row.form_factor for row in self.rows)
            notes.insert(0, f"form factor assumed: {forms}")
        name = self.name if self.is_assumed else self.rows[0].name
        return f"{name} ({'; '.join(notes)})" if notes else name


def architectures() -> Mapping[str, Architecture]:
    """Every row of `data/gpu_architectures.csv`, by its name; the user's own come first."""
    return _architectures(own_path("gpu_architectures.csv"))


@cache
def _architectures(own: Path | None) -> Mapping[str, Architecture]:
    rows = table_rows(Architecture, "gpu_architectures.csv", _architecture_name)
    return {row.architecture: row for row in rows}


def gpus() -> tuple[Gpu, ...]:
    """Every row of `data/gpu_specs.csv`, in its order; the user's own come first."""
    return table_rows(Gpu, "gpu_specs.csv", _gpu_name)


def _architecture_name(row: Architecture) -> str:
    return row.architecture


def _gpu_name(row: Gpu) -> str:
    return row.name.lower()


def find_gpu(name: str) -> GpuSpan:
    """The rows a name stands for; case is ignored. A name nobody knows is an `InputError`."""
    wanted = name.strip().lower()
    for row in gpus():
        if row.name.lower() == wanted:
            return GpuSpan(row.name, (row,))
    bare = wanted
    for form in ANY_FORM:
        bare = bare.removesuffix(f"-{form}")
    matching = tuple(row for row in gpus() if row.gpu.lower() == bare)
    if matching:
        return GpuSpan(f"{matching[0].gpu}-any", matching)
    near = suggest(wanted, (row.name for row in gpus()))
    raise InputError(
        f"No GPU {name!r} in data/gpu_specs.csv{near}. "
        "Name it gpu-form_factor, or gpu-any for every form factor."
    )


def labelled_gpu(label: str) -> GpuSpan | None:
    """The GPU that a label of a target names; None where it names none of ours, or several.

    As people write it (`A100-80GB-PCIe`), or as NVIDIA's GPU feature discovery and DCGM do
    (`NVIDIA-H100-80GB-HBM3`, `Tesla-T4`). A label without a form factor stands for all of them. A
    part of a GPU, or a shared one, is none.
    """
    try:
        return find_gpu(label)
    except InputError:
        words = re.findall(r"[a-z0-9]+", label.lower())
    if _PARTS & set(words):
        return None
    found = [row for row in gpus() if _matches(row, words)]
    longest = max((len(_chip(row)) for row in found), default=0)
    found = [row for row in found if len(_chip(row)) == longest]
    if not found or len({row.gpu for row in found}) > 1:
        return None
    return find_gpu(found[0].name if len(found) == 1 else found[0].gpu)


def _chip(row: Gpu) -> list[str]:
    """The words of a GPU's name that are not its memory: `rtx`, `pro`, `6000`."""
    words = row.gpu.lower().split("-")
    return [word for word in words if not _MEMORY.fullmatch(word)]


def _matches(row: Gpu, words: Sequence[str]) -> bool:
    """Whether a label of these words may mean the row: nothing that both say differs."""
    if not set(_chip(row)) <= set(words):
        return False
    label_sizes, named = (
        {word for word in each if _MEMORY.fullmatch(word)}
        for each in (words, row.gpu.lower().split("-"))
    )
    if label_sizes and named and not label_sizes & named:
        return False
    for word, form in _FORM_WORDS.items():
        if any(each.startswith(word) for each in words) and row.form_factor != form:
            return False
    return True


def gpu_names() -> tuple[str, ...]:
    """Every `gpu-form_factor`, sorted."""
    return tuple(sorted(row.name for row in gpus()))
