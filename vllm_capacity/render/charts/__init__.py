"""Every chart we draw: one function, one question each. To add one, write it and name it in CHARTS.

A chart is drawn from a small tidy frame and the window's answer. `frame` says which one: `steps`
(`figures.series.per_step`) or `costs` (the cost of each hour). None of them computes a figure.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import altair as alt

from vllm_capacity.render.charts.base import Answer
from vllm_capacity.render.charts.cost import cost_by_utilisation, cost_per_request
from vllm_capacity.render.charts.latency import between_tokens, first_token, queue, whole_answer
from vllm_capacity.render.charts.load import (
    latency_by_kv,
    latency_by_load,
    preemptions_by_kv,
    preemptions_by_load,
)
from vllm_capacity.render.charts.saturation import (
    kv_cache,
    kv_saturation_curve,
    regimes,
    saturation_curve,
)
from vllm_capacity.render.charts.time import readable_step_seconds
from vllm_capacity.render.charts.traffic import outcomes, request_rate, throughput, tokens

__all__ = [
    "CHARTS",
    "Chart",
    "between_tokens",
    "cost_by_utilisation",
    "cost_per_request",
    "first_token",
    "kv_cache",
    "kv_saturation_curve",
    "latency_by_kv",
    "latency_by_load",
    "outcomes",
    "preemptions_by_kv",
    "preemptions_by_load",
    "queue",
    "readable_step_seconds",
    "regimes",
    "request_rate",
    "saturation_curve",
    "throughput",
    "tokens",
    "whole_answer",
]


@dataclass(frozen=True)
class Chart:
    """A chart in the registry: its name, the function that draws it, the frame it draws."""

    name: str
    draw: Callable[..., alt.TopLevelMixin]
    frame: Literal["steps", "costs"] = "steps"

    def __call__(self, frames: dict[str, Any], answer: Answer) -> alt.TopLevelMixin:
        """The chart of these frames (by name) and this answer."""
        return self.draw(frames[self.frame], answer)


CHARTS: tuple[Chart, ...] = (
    Chart("throughput", throughput),
    Chart("request_rate", request_rate),
    Chart("tokens", tokens),
    Chart("outcomes", outcomes),
    Chart("first_token", first_token),
    Chart("between_tokens", between_tokens),
    Chart("whole_answer", whole_answer),
    Chart("queue", queue),
    Chart("kv_cache", kv_cache),
    Chart("saturation_curve", saturation_curve),
    Chart("kv_saturation_curve", kv_saturation_curve),
    Chart("latency_by_load", latency_by_load),
    Chart("latency_by_kv", latency_by_kv),
    Chart("preemptions_by_load", preemptions_by_load),
    Chart("preemptions_by_kv", preemptions_by_kv),
    Chart("regimes", regimes),
    Chart("cost_per_request", cost_per_request, frame="costs"),
    Chart("cost_by_utilisation", cost_by_utilisation),
)
