"""Histograms: their increase over a part, merged over engines; quantiles with their bounds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from vllm_capacity.facts.metrics import DECODE as DECODE
from vllm_capacity.facts.metrics import E2E as E2E
from vllm_capacity.facts.metrics import ITL as ITL
from vllm_capacity.facts.metrics import PREFILL as PREFILL
from vllm_capacity.facts.metrics import TTFT as TTFT
from vllm_capacity.figures.histogram import (
    bucket_quantile,
    merge,
    quantile_bounds,
    quantile_estimate,
)
from vllm_capacity.telemetry.window import Window
from vllm_capacity.timerange import TimeRange

QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}


@dataclass(frozen=True)
class Increase:
    """How one histogram series grew in one step: per bucket, overflow last, and its sum."""

    metric: str
    instance: str
    engine: str | None
    step: int
    edges: tuple[float, ...]
    counts: tuple[float, ...]
    total: float

    @property
    def count(self) -> float:
        """Observations in the step."""
        return sum(self.counts)


def histogram_increases(
    window: Window, metrics: Sequence[str], *, part: TimeRange, step_seconds: float | None = None
) -> list[Increase]:
    """The exact increase of each histogram, one entry a (series, step) with a sample in it.

    Without `step_seconds` the part is one step, 0. Across a restart the whole state of the new run
    counts. Source: method.md §4.
    """
    states = window.named_sql(
        "figures",
        "histogram_states",
        metrics=list(metrics),
        start=part.start,
        end=part.end,
        step_us=round((step_seconds or part.seconds + 1) * 1e6),
        last_step=part.steps(step_seconds) - 1 if step_seconds else 0,
    )
    increases: list[Increase] = []
    for _, series in states.group_by("series_id", maintain_order=True):
        increases.extend(_series_increases(list(series.iter_rows(named=True))))
    return increases


def _series_increases(states: list[dict[str, Any]]) -> list[Increase]:
    first = states[0]
    zero = [0.0] * len(first["counts"])
    if first["starts_at_zero"]:
        base = {"run": first["run"], "counts": zero, "sum": 0.0}
    else:
        base = {"run": first["run"], "counts": first["first_counts"], "sum": first["first_sum"]}
    by_step: dict[int, Increase] = {}
    for before, state in pairwise([base, *states]):
        if state["step"] == -1:
            continue
        is_restart = state["run"] != before["run"]
        counts = np.subtract(state["counts"], zero if is_restart else before["counts"])
        total = state["sum"] - (0.0 if is_restart else before["sum"])
        earlier = by_step.get(state["step"])
        if earlier is not None:  # another run in the same step
            counts, total = counts + np.array(earlier.counts), total + earlier.total
        by_step[state["step"]] = Increase(
            metric=state["metric"],
            instance=state["instance"],
            engine=state["engine"],
            step=state["step"],
            edges=tuple(state["bounds"]),
            counts=tuple(float(count) for count in counts),
            total=total,
        )
    return list(by_step.values())


@dataclass(frozen=True)
class Distribution:
    """Observations merged over series: exact counts between `edges`, and their sum if sound."""

    edges: tuple[float, ...]
    counts: tuple[float, ...]
    total: float | None

    @property
    def count(self) -> float:
        """Observations."""
        return sum(self.counts)


def merged(increases: Sequence[Increase]) -> Distribution | None:
    """The increases of one metric as one distribution, on the edges they have in common.

    Counts at common edges are exact whatever the other edges are. None where nothing was observed,
    or no edge is common.
    """
    observed = [i for i in increases if i.count > 0]
    if not observed:
        return None
    both = merge([(i.edges, i.counts) for i in observed])
    if both is None:
        return None
    total = sum(i.total for i in observed)
    edges, counts = both
    return Distribution(tuple(edges), tuple(counts), total if np.isfinite(total) else None)


def quantiles(distribution: Distribution | None) -> dict[str, dict[str, float | None]]:
    """p50, p95 and p99, each {value, lower, upper, estimate}, in the unit of the edges.

    `value` is PromQL's interpolation, None in the overflow bucket; `lower` and `upper` are the
    edges of the bucket, between which the truth lies; `estimate` uses the sum and the neighbouring
    buckets too. All None where nothing was observed.
    """
    if distribution is None:
        nothing = dict.fromkeys(("value", "lower", "upper", "estimate"))
        return {name: dict(nothing) for name in QUANTILES}
    edges, counts = distribution.edges, distribution.counts
    answer: dict[str, dict[str, float | None]] = {}
    for name, q in QUANTILES.items():
        lower, upper = quantile_bounds(edges, counts, q)
        answer[name] = {
            "value": bucket_quantile(edges, counts, q),
            "lower": lower,
            "upper": upper,
            "estimate": quantile_estimate(edges, counts, distribution.total, q),
        }
    return answer


def latency(window: Window, *, part: TimeRange) -> dict[str, dict[str, dict[str, float | None]]]:
    """Quantiles of TTFT, inter-token and end-to-end latency, in seconds, over all engines."""
    names = {"ttft_seconds": TTFT, "itl_seconds": ITL, "e2e_seconds": E2E}
    increases = histogram_increases(window, list(names.values()), part=part)
    return {
        name: quantiles(merged([i for i in increases if i.metric == metric]))
        for name, metric in names.items()
    }


def mean_seconds(increase: Increase) -> float | None:
    """The mean of what was observed, from the exact sum; None for nothing, or an impossible sum.

    A sum must lie between what its own buckets allow, each observation at the lower or at the upper
    edge of its bucket (vLLM #49135 adds uptime-sized values). The overflow bucket has no upper
    edge.
    """
    if increase.count <= 0:
        return None
    counts, edges = np.asarray(increase.counts), np.asarray(increase.edges)
    lowest = float(counts[1:] @ edges)
    highest = math.inf if counts[-1] else float(counts[:-1] @ edges)
    slack = 1e-6 * (1 + abs(increase.total))
    is_sound = lowest - slack <= increase.total <= highest + slack
    return increase.total / increase.count if is_sound else None


def sound_total(increases: Sequence[Increase], part: TimeRange) -> float | None:
    """The seconds that latency histograms observed in the part; None where they cannot be right.

    They cannot below zero, nor above the part's length times the observations: vLLM #49135 adds
    uptime-sized values. Nothing observed is 0 seconds, where there is a histogram at all.
    """
    if not increases:
        return None
    total = sum(increase.total for increase in increases)
    longest = sum(increase.count for increase in increases) * part.seconds
    return total if 0 <= total <= longest else None
