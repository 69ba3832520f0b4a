"""Published measurements of vLLM's throughput, a row each, with workload, load, source and date."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import Any

import polars as pl

from vllm_capacity.facts.gpus import ANY_FORM
from vllm_capacity.facts.llms import find_llm, weight_dtype
from vllm_capacity.resources import shipped

_RATE = re.compile(r"(?:Poisson|constant) ([\d.]+)")
_CLIENTS = re.compile(r"batch size (\d+)|^(\d+) concurrent")
_UNFIT = ("-pp ", "page shows served model")
"""Notes of rows that measured something else: pipeline parallelism, a model in doubt."""


@dataclass(frozen=True)
class Measurement:
    """One published run. `model` is its name in llms.csv, `gpu` a name that `find_gpu` takes."""

    model: str
    dtype: str
    gpu: str
    gpus: int
    engine_version: str
    workload: str
    input_tokens: float
    output_tokens: float
    load: str
    output_tokens_per_second: float
    source: str
    date: str
    note: str

    @property
    def offered_per_second(self) -> float:
        """The requests a second its load offered; infinite for a burst or held clients."""
        rate = _RATE.search(self.load)
        return float(rate.group(1)) if rate else float("inf")

    @property
    def clients(self) -> int | None:
        """How many clients it held busy; None for an open load."""
        found = _CLIENTS.search(self.load)
        return int(found.group(1) or found.group(2)) if found else None

    @property
    def is_burst(self) -> bool:
        """Whether every request came at once: the server alone limits."""
        return self.load.startswith("all at once")


@cache
def measurements() -> tuple[Measurement, ...]:
    """Every row of `data/published_throughput.csv` that measured one vLLM engine, in its order."""
    frame = pl.read_csv(shipped("data/published_throughput.csv"), infer_schema=False)
    rows = (row for row in frame.iter_rows(named=True) if row["engine"] == "vLLM")
    return tuple(
        _measurement(row) for row in rows if not any(word in f"{row['note']} " for word in _UNFIT)
    )


def _measurement(row: dict[str, Any]) -> Measurement:
    form = "any" if row["form_factor"] in ANY_FORM else row["form_factor"]
    return Measurement(
        model=find_llm(row["model"]).model,
        dtype=weight_dtype(row["precision"]),
        gpu=f"{row['gpu']}-{form}",
        gpus=int(row["n_gpus"]),
        engine_version=row["engine_version"] or "",
        workload=row["workload"],
        input_tokens=float(row["mean_input_tokens"]),
        output_tokens=float(row["mean_output_tokens"]),
        load=row["load"],
        output_tokens_per_second=float(row["output_tok_per_s"]),
        source=row["source"],
        date=row["date"],
        note=row["note"] or "",
    )
