"""Published measurements of vLLM's throughput, each with workload, load, source and date."""

from __future__ import annotations

import math
from functools import cache

from msgspec import Struct
from msgspec.structs import replace

from vllm_capacity.facts.gpus import find_gpu
from vllm_capacity.facts.llms import find_llm, weight_dtype
from vllm_capacity.facts.tables import Count, Day, Positive, Text, read_rows
from vllm_capacity.resources import shipped

_ENGINE = "vLLM"


class Measurement(Struct, frozen=True, kw_only=True):
    """One published run; `model` is a name in llms.csv, `gpu` a name that `find_gpu` accepts.

    An open load offered `offered_requests_per_second`; a closed one kept `clients` busy. If all
    requests arrived at once there is neither, and the offered rate is infinite. `load` says the
    same in words. `left_out` is why the row does not measure one engine; empty if it does.
    """

    model: Text
    dtype: Text
    gpu: Text
    gpus: Count
    engine: Text = _ENGINE
    engine_version: str = ""
    async_scheduling: bool = False
    workload: Text
    input_tokens: Positive
    output_tokens: Positive
    load: Text
    clients: Count | None = None
    offered_requests_per_second: Positive = math.inf
    output_tokens_per_second: Positive
    mean_ttft_ms: Positive | None = None
    mean_tpot_ms: Positive | None = None
    left_out: str = ""
    source: Text
    date: Day
    note: str = ""

    @property
    def is_burst(self) -> bool:
        """Whether all requests arrived at once, so that only the server limits throughput."""
        return self.clients is None and math.isinf(self.offered_requests_per_second)


@cache
def measurements() -> tuple[Measurement, ...]:
    """Every row of `data/published_throughput.csv` that measured one vLLM engine, in file order.

    Model and weight type are converted to the names that the rest of the package uses.
    """
    rows = read_rows(Measurement, shipped("data/published_throughput.csv"))
    return tuple(
        replace(row, model=find_llm(row.model).model, dtype=weight_dtype(row.dtype))
        for row in rows
        if row.engine == _ENGINE and not row.left_out
    )


class SiliconRow(Struct, frozen=True, kw_only=True):
    """One row of `data/silicon_vllm.csv`: a constant concurrency and its TTFT and TPOT.

    `flag` is why a row does not measure `tp` GPUs at that concurrency; empty if it does.
    """

    model: Text
    dtype: Text
    gpu: Text
    tp: Count
    isl: Positive
    osl: Positive
    concurrency: Count
    ttft_ms: Positive
    tpot_ms: Positive
    output_tok_per_s: Positive
    engine_version: Text
    date: str = ""
    flag: str = ""
    source: Text

    @property
    def measurement(self) -> Measurement:
        """The row as a published run."""
        return Measurement(
            model=find_llm(self.model).model,
            dtype=weight_dtype(self.dtype),
            gpu=self.gpu,
            gpus=self.tp,
            engine_version=self.engine_version,
            workload=f"{self.isl:g} in / {self.osl:g} out, random",
            input_tokens=self.isl,
            output_tokens=self.osl,
            load=f"{self.concurrency} clients kept busy",
            clients=self.concurrency,
            output_tokens_per_second=self.output_tok_per_s,
            mean_ttft_ms=self.ttft_ms,
            mean_tpot_ms=self.tpot_ms,
            left_out=self.flag,
            source=self.source,
            date=self.date,
        )


@cache
def silicon_measurements() -> tuple[Measurement, ...]:
    """Every usable row of `data/silicon_vllm.csv`, in file order, as a published run.

    Leaves out rows whose weights do not fit their GPUs: those runs had more GPUs than stated.
    """
    rows = read_rows(SiliconRow, shipped("data/silicon_vllm.csv"))
    return tuple(row.measurement for row in rows if not row.flag and _fits(row))


def _fits(row: SiliconRow) -> bool:
    weights = find_llm(row.model).weights_bytes(row.dtype) / row.tp
    return weights < min(gpu.memory_bytes for gpu in find_gpu(row.gpu).rows)
