"""Published measurements of vLLM's throughput, a row each, with workload, load, source and date."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache

from vllm_capacity.facts.llms import find_llm, weight_dtype
from vllm_capacity.facts.tables import Count, Day, Positive, Text, read_rows
from vllm_capacity.resources import shipped

_ENGINE = "vLLM"


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One published run. `model` is its name in llms.csv, `gpu` a name that `find_gpu` takes.

    An open load offered `offered_requests_per_second`, a closed one held `clients` busy; where all
    requests came at once there is neither, and what was offered counts as infinite. `load` says the
    same in words. `left_out` is why the row is no measurement of one engine; empty: it is one.
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
    left_out: str = ""
    source: Text
    date: Day
    note: str = ""

    @property
    def is_burst(self) -> bool:
        """Whether every request came at once: the server alone limits."""
        return self.clients is None and math.isinf(self.offered_requests_per_second)


@cache
def measurements() -> tuple[Measurement, ...]:
    """Every row of `data/published_throughput.csv` that measured one vLLM engine, in its order.

    Model and weight type are given the names that the rest of the package knows them by.
    """
    rows = read_rows(Measurement, shipped("data/published_throughput.csv"))
    return tuple(
        replace(row, model=find_llm(row.model).model, dtype=weight_dtype(row.dtype))
        for row in rows
        if row.engine == _ENGINE and not row.left_out
    )
