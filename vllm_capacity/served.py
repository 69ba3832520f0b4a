"""The traffic of one model's engines, as input for a replay of their load on fewer of them."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import polars as pl

from vllm_capacity.assumptions import Slo
from vllm_capacity.estimate import Estimate
from vllm_capacity.facts.metrics import OUTPUT_LENGTH, PREFILL, PROMPT_LENGTH, PROMPT_TOKENS
from vllm_capacity.figures import latency, traffic
from vllm_capacity.figures.makes import of_engines
from vllm_capacity.timerange import TimeRange
from vllm_capacity.verdicts.replay import Served


def served(
    engines: Collection[str],
    *,
    steps: pl.DataFrame,
    capacity: Estimate,
    running: float | None,
    histograms: Sequence[latency.Increase],
    counters: pl.DataFrame,
    time_range: TimeRange,
    slo: Slo,
) -> Served:
    """The traffic of these engines (by name): lengths of prompts and outputs, and prefill time.

    `steps` are theirs alone, `capacity` and `running` are of one of them; rows of other engines in
    `histograms`, and in `counters` (from `traffic.counter_increases`), are left out. Lengths and
    the prefill time are None if no histogram has them.
    """
    names = set(engines)
    own = [one for one in histograms if one.engine_name in names]

    def of(metric: str) -> latency.Distribution | None:
        return latency.merged([one for one in own if one.metric == metric])

    prefills = [one for one in own if one.metric == PREFILL]
    prefill = latency.sound_total(prefills, time_range)
    counted = sum(one.count for one in prefills)
    theirs = of_engines(counters, engines)
    prompt = traffic.total(theirs, PROMPT_TOKENS)
    computed = traffic.prompt_tokens_computed(theirs)
    return Served(
        steps=steps,
        capacity=capacity,
        prompts=of(PROMPT_LENGTH),
        outputs=of(OUTPUT_LENGTH),
        prefill_seconds=prefill / counted if prefill is not None and counted else None,
        running=running,
        computed_ratio=min(1.0, computed / prompt) if prompt and computed is not None else 1.0,
        slo=slo,
    )
