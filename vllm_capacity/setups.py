"""The GPU and model of each engine: as given, from labels of its target, or from its price row."""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from vllm_capacity.assumptions import Assumptions
from vllm_capacity.bills import engine_name
from vllm_capacity.facts.gpus import GpuSpan, find_gpu
from vllm_capacity.facts.llms import kv_type_reason, shape_or_reason
from vllm_capacity.figures.latency import MeanLatency
from vllm_capacity.figures.makes import Make, speculating
from vllm_capacity.figures.traffic import prefix_cache_hit_ratio
from vllm_capacity.telemetry.window import Window
from vllm_capacity.verdicts.cost.bill import CostShare, Usage
from vllm_capacity.verdicts.hardware.unloaded import Setup

_NO_GPU = "it is not known which GPU it runs on, which vLLM does not export: name it (gpu)"


def engine_gpus(makes: Mapping[str, Make], assumptions: Assumptions) -> dict[str, GpuSpan]:
    """The GPU of each engine for which it is known, by name."""
    row, given = assumptions.pricing.row, assumptions.hardware.gpu
    if given is not None:
        return dict.fromkeys(makes, find_gpu(given))
    own_gpus = {name: make.gpu for name, make in makes.items()}
    priced = None if row is None else find_gpu(f"{row.gpu}-{row.form_factor}")
    return {name: gpu for name, own in own_gpus.items() if (gpu := own or priced) is not None}


def engine_setups(
    window: Window,
    engines: pl.DataFrame,
    *,
    makes: Mapping[str, Make],
    parts: Mapping[str, CostShare],
    counters: pl.DataFrame,
    latencies: Mapping[str, MeanLatency],
    assumptions: Assumptions,
) -> dict[str, Setup | str]:
    """The setup of each engine of `engines` (figures/scrapes.py), by name, or why it is unknown.

    `parts` are those of the bill, `counters` come from `traffic.counter_increases`.
    """
    known = engine_gpus(makes, assumptions)
    drafting = speculating(window) if known else frozenset()
    found: dict[str, Setup | str] = {}
    for row in engines.iter_rows(named=True):
        name, key = engine_name(row), (row["instance"], row["engine"])
        if name not in known:
            found[name] = _NO_GPU
            continue
        own = counters.filter((pl.col("instance") == key[0]) & (pl.col("engine") == key[1]))
        model = assumptions.hardware.model or row["model_name"]
        found[name] = _setup(
            known[name],
            model,
            parts[name].usage,
            latencies[name],
            cached_ratio=prefix_cache_hit_ratio(own) or 0.0,
            make=makes[name],
            is_speculating=key in drafting,
        )
    return found


def _setup(
    gpu: GpuSpan,
    model: str | None,
    usage: Usage,
    means: MeanLatency,
    *,
    cached_ratio: float,
    make: Make,
    is_speculating: bool,
) -> Setup | str:
    if model is None:
        return "no model is named: name it (model)"
    llm = shape_or_reason(model)
    if isinstance(llm, str):
        return llm
    if reason := kv_type_reason(make.kv_dtype):
        return reason
    requests, prompt, output = (
        usage.successful_requests,
        usage.prompt_tokens,
        usage.generation_tokens,
    )
    if not requests or not prompt or not output:
        return "no request finished whose tokens were counted"
    return Setup(
        gpu=gpu,
        gpus=max(1, round(usage.gpus_per_engine)),
        llm=llm,
        input_tokens=prompt / requests,
        output_tokens=output / requests,
        ttft_seconds=means.ttft_seconds,
        itl_seconds=means.itl_seconds,
        cached_ratio=cached_ratio,
        kv_tokens=make.kv_tokens,
        kv_dtype=make.kv_dtype,
        is_speculating=is_speculating,
    )
