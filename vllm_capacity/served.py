"""What a window shows of the engines of one model, for a replay of its load on fewer of them."""

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
    """What these engines (by name) served: how long prompts and outputs were, and their prefill.

    `steps` are theirs alone, `capacity` and `running` are of one of them; of `histograms`, and of
    `counters` as `traffic.counter_increases` has them, the rows of other engines are left out.
    Lengths and the prefill time are None where no histogram tells them.
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
