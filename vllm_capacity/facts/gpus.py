"""Hardware: specifications of each GPU, form factor and architecture, and lookup by name.

A GPU is named `gpu-form_factor`, as in `A100-80GB-SXM`. `A100-80GB-any` (and the bare
`A100-80GB`) covers every form factor of that GPU: a figure based on it is an interval, and the
answer is flagged "form factor assumed". Similar names are different GPUs: an A10 is not an A10G.
An empty cell of the table means unknown, not zero.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from msgspec import Struct

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
"""Values of `form_factor` that mean unknown."""

_MEMORY = re.compile(r"\d+gb")
_FORM_WORDS = {"sxm": "SXM", "pcie": "PCIe", "nvl": "NVL", "hbm3": "SXM"}
"""Form factor by word in a label; in NVIDIA's names only SXM modules contain HBM3."""
_PARTS = frozenset(("mig", "shared"))


class Architecture(Struct, frozen=True, kw_only=True):
    """Properties common to the GPUs of one architecture; a row of `data/gpu_architectures.csv`.

    The shares are the fractions of data sheet peaks that kernels reach: of dense 16-bit compute for
    dense, MoE and MXFP4 layers, and of the bandwidth that kernels on NVIDIA's GPUs reach. They were
    fitted to published runs if `is_fitted`, otherwise assumed. `host_speed` is the speed of the
    hosts that these GPUs are sold with, relative to those of Ampere GPUs. Link rates are for one
    direction between two GPUs; None without a link faster than PCIe.
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


class Gpu(Struct, frozen=True, kw_only=True):
    """One GPU in one form factor; TFLOPS are dense, and None if no source gives them."""

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
        """The row of its architecture; raises InputError if the table has none."""
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

        Half, because in every row with both figures the 8-bit one is twice the BF16 one (B300 and
        GB300, whose INT8 units are cut down, state BF16). None if the row has none of these.
        """
        sixteen_bit = self.bf16_dense_tflops or self.fp16_dense_tflops
        if sixteen_bit is not None:
            return sixteen_bit
        eight_bit = self.int8_dense_tops or self.fp8_dense_tflops
        return None if eight_bit is None else eight_bit / 2

    @property
    def has_fp8(self) -> bool:
        """Whether it has FP8 tensor cores, which multiply FP8 without widening it first."""
        return self.fp8_dense_tflops is not None or self.architecture.has_fp8


class GpuSpan(Struct, frozen=True):
    """The rows that a GPU name refers to: one, or every form factor of a GPU."""

    name: str
    rows: tuple[Gpu, ...]

    @property
    def is_assumed(self) -> bool:
        """Whether the form factor is assumed, because the name matches several rows."""
        return len(self.rows) > 1

    @property
    def label(self) -> str:
        """The name, noting an assumed form factor and rows of the user's own."""
        notes = [OWN] if any(is_own(row.source) for row in self.rows) else []
        if self.is_assumed:
            forms = "/".join(row.form_factor for row in self.rows)
            notes.insert(0, f"form factor assumed: {forms}")
        name = self.name if self.is_assumed else self.rows[0].name
        return f"{name} ({'; '.join(notes)})" if notes else name


def architectures() -> Mapping[str, Architecture]:
    """Every row of `data/gpu_architectures.csv` by name, the user's own first."""
    return _architectures(own_path("gpu_architectures.csv"))


@cache
def _architectures(own: Path | None) -> Mapping[str, Architecture]:
    rows = table_rows(Architecture, "gpu_architectures.csv", _architecture_name)
    return {row.architecture: row for row in rows}


def gpus() -> tuple[Gpu, ...]:
    """Every row of `data/gpu_specs.csv` in file order, after the user's own."""
    return table_rows(Gpu, "gpu_specs.csv", _gpu_name)


def _architecture_name(row: Architecture) -> str:
    return row.architecture


def _gpu_name(row: Gpu) -> str:
    return row.name.lower()


def find_gpu(name: str) -> GpuSpan:
    """The rows that a name refers to, ignoring case; raises InputError for an unknown name."""
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
    """The GPU that a target's label names; None if it matches no GPU in the table, or several.

    Reads names as people write them (`A100-80GB-PCIe`), and as NVIDIA's GPU feature discovery and
    DCGM do (`NVIDIA-H100-80GB-HBM3`, `Tesla-T4`). A label without a form factor covers all of them.
    None for a part of a GPU (MIG) or a shared one.
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
    """The words of a GPU's name without its memory size: `rtx`, `pro`, `6000`."""
    words = row.gpu.lower().split("-")
    return [word for word in words if not _MEMORY.fullmatch(word)]


def _matches(row: Gpu, words: Sequence[str]) -> bool:
    """Whether a label with these words may refer to the row: nothing stated by both differs."""
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
    """Every GPU name (`gpu-form_factor`), sorted."""
    return tuple(sorted(row.name for row in gpus()))
