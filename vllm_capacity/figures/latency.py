"""Latency histograms: their increase in a time range, merged over engines; quantiles with bounds.

Also how a request's time is divided into queueing, prefill and decode.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any

import numpy as np
import polars as pl
from msgspec import Struct
from numpy.typing import NDArray

from vllm_capacity.assumptions import TARGETS
from vllm_capacity.facts.metrics import (
    DECODE,
    E2E,
    ITL,
    OUTPUT_LENGTH,
    PREFILL,
    PROMPT_LENGTH,
    QUEUE,
    TTFT,
)
from vllm_capacity.figures.histogram import (
    bucket_quantile,
    merge,
    quantile_bounds,
    quantile_estimate,
)
from vllm_capacity.record import Record
from vllm_capacity.telemetry.window import Window
from vllm_capacity.timerange import TimeRange


class Shown(Struct, frozen=True):
    """A latency that is displayed: its histogram, and its title in tables."""

    metric: str
    title: str


LATENCIES: Mapping[str, Shown] = {
    "ttft": Shown(TTFT, "time to first token (TTFT)"),
    "itl": Shown(ITL, "inter-token latency (ITL)"),
    "e2e": Shown(E2E, "end-to-end latency (E2E)"),
}
"""The displayed latencies, by the prefix of their columns; each has a field in `Latency`."""

_SHOWN = tuple(shown.metric for shown in LATENCIES.values())
STEP_HISTOGRAMS = tuple(dict.fromkeys((*_SHOWN, *(one.metric for one in TARGETS.values()))))
HISTOGRAMS = tuple(dict.fromkeys((*STEP_HISTOGRAMS, QUEUE, PREFILL, DECODE)))
"""The latencies read over the whole time range; `STEP_HISTOGRAMS` are also read per step."""

LENGTHS = (PROMPT_LENGTH, OUTPUT_LENGTH)
"""The lengths of prompts and outputs, also read over the whole time range."""

MINUTE_SCHEMA: dict[str, Any] = {
    "metric": pl.String,
    "bounds": pl.List(pl.Float64),
    "ts": pl.Datetime("us", "UTC"),
    "counts": pl.List(pl.Float64),
    "sum": pl.Float64,
}
Floats = NDArray[np.float64]

QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}


class Increase(Struct, frozen=True):
    """The increase of one histogram series in one step: per bucket (overflow last), and its sum."""

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

    @property
    def engine_name(self) -> str:
        """The engine's name, as used everywhere."""
        return f"{self.instance}/{self.engine}"


def histogram_increases(
    window: Window,
    metrics: Sequence[str],
    *,
    time_range: TimeRange,
    step_seconds: float | None = None,
) -> list[Increase]:
    """The exact increase of each histogram, one entry per (series, step) with a sample in it.

    Without `step_seconds` the whole time range is one step, 0. After a restart, the full state of
    the new run counts.
    """
    states = histogram_states(window, metrics, time_range, step_seconds)
    return [increase for own in _series_steps(states, metrics) for increase in own.increases()]


class SeriesSteps(Struct, frozen=True):
    """The increases of one histogram series: one row of `counts` per step, overflow last."""

    metric: str
    instance: str
    engine: str | None
    edges: tuple[float, ...]
    steps: NDArray[np.int64]
    counts: Floats
    totals: Floats

    def increases(self) -> Iterator[Increase]:
        """Each step as an `Increase`."""
        rows = zip(self.steps.tolist(), self.counts.tolist(), self.totals.tolist(), strict=True)
        for step, counts, total in rows:
            yield Increase(
                self.metric, self.instance, self.engine, step, self.edges, tuple(counts), total
            )

    def mean_seconds(self) -> Floats:
        """The mean observation in each step; NaN if there is none or the sum is impossible.

        A sum is possible if it lies between those with every observation at the lower edge and at
        the upper edge of its bucket (vLLM #49135 adds uptime-sized values). The overflow bucket has
        no upper edge.
        """
        observed = np.cumsum(self.counts, axis=1)[:, -1]
        edges = np.asarray(self.edges)
        lowest = self.counts[:, 1:] @ edges
        highest = np.where(self.counts[:, -1] > 0, math.inf, self.counts[:, :-1] @ edges)
        slack = 1e-6 * (1 + np.abs(self.totals))
        is_sound = (lowest - slack <= self.totals) & (self.totals <= highest + slack)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(is_sound & (observed > 0), self.totals / observed, math.nan)


def step_increases(
    window: Window, metrics: Sequence[str], *, time_range: TimeRange, step_seconds: float
) -> list[SeriesSteps]:
    """`histogram_increases` per step as arrays: one entry per series that has a sample."""
    states = histogram_states(window, metrics, time_range, step_seconds)
    return [own for own in _series_steps(states, metrics) if len(own.steps)]


def minutes(window: Window, *, time_range: TimeRange) -> pl.DataFrame:
    """The increase of latency histograms per minute, all engines together (figures/pieces.py).

    One row per metric, edges and minute: metric, bounds, ts (start of the minute), counts, sum.
    """
    found = step_increases(window, STEP_HISTOGRAMS, time_range=time_range, step_seconds=60.0)
    grouped: dict[tuple[str, tuple[float, ...]], dict[int, tuple[Floats, float]]] = {}
    for own in found:
        of = grouped.setdefault((own.metric, own.edges), {})
        for step, counts, total in zip(own.steps.tolist(), own.counts, own.totals, strict=True):
            before = of.get(step)
            of[step] = (
                (counts, total) if before is None else (before[0] + counts, before[1] + total)
            )
    rows = [
        (metric, list(edges), time_range.start + timedelta(minutes=step), counts.tolist(), total)
        for (metric, edges), steps in grouped.items()
        for step, (counts, total) in sorted(steps.items())
        if counts.any()
    ]
    return pl.DataFrame(rows, schema=MINUTE_SCHEMA, orient="row")


def of_minutes(kept: pl.DataFrame) -> Iterator[Increase]:
    """The increases of latencies in each `step`, from rows of `minutes`; all engines together."""
    for (metric, step), own in kept.group_by("metric", "step", maintain_order=True):
        for (bounds,), same in own.group_by("bounds", maintain_order=True):
            counts = _matrix(same["counts"]).sum(axis=0)
            yield Increase(
                metric=str(metric),
                instance="all",
                engine=None,
                step=int(step),
                edges=tuple(bounds),
                counts=tuple(counts.tolist()),
                total=float(same["sum"].sum()),
            )


def _series_steps(states: pl.DataFrame, metrics: Sequence[str]) -> Iterator[SeriesSteps]:
    wanted = states.filter(pl.col("metric").is_in(list(metrics)))
    for _, own in wanted.group_by("series_id", maintain_order=True):
        yield _grown(own)


def _grown(states: pl.DataFrame) -> SeriesSteps:
    """The increases of one series from state to state; states must be sorted by run and step."""
    counts, runs = _matrix(states["counts"]), states["run"].to_numpy()
    sums, steps = states["sum"].to_numpy(), states["step"].to_numpy()
    base, base_sum = np.zeros(counts.shape[1]), 0.0
    if not states["starts_at_zero"][0]:
        base, base_sum = np.asarray(states["first_counts"][0], float), states["first_sum"][0]
    is_on = np.append(True, runs[1:] == runs[:-1])  # otherwise a new run counts from 0
    before = np.where(is_on[:, None], np.vstack([base, counts[:-1]]), 0.0)
    before_sum = np.where(is_on, np.append(base_sum, sums[:-1]), 0.0)
    is_inside = steps >= 0
    grown, grown_sum = (counts - before)[is_inside], (sums - before_sum)[is_inside]
    # Several runs may have increased in one step.
    each, first = np.unique(steps[is_inside], return_index=True)
    if len(each) < len(grown):
        order = np.argsort(steps[is_inside], kind="stable")
        starts = np.searchsorted(steps[is_inside][order], each)
        grown = np.add.reduceat(grown[order], starts, axis=0)
        grown_sum = np.add.reduceat(grown_sum[order], starts)
    else:
        grown, grown_sum = grown[first], grown_sum[first]
    one = states.row(0, named=True)
    return SeriesSteps(
        one["metric"], one["instance"], one["engine"], tuple(one["bounds"]), each, grown, grown_sum
    )


def _matrix(lists: pl.Series) -> Floats:
    """Lists of equal length as the rows of a matrix."""
    flat = lists.explode(empty_as_null=False).to_numpy()
    return flat.reshape(len(lists), -1).astype(np.float64)


def histogram_states(
    window: Window, metrics: Sequence[str], time_range: TimeRange, step_seconds: float | None
) -> pl.DataFrame:
    """The states of the histograms at the end of each step; one query for the usual metrics."""
    together = (*HISTOGRAMS, *LENGTHS) if step_seconds is None else STEP_HISTOGRAMS
    wanted = together if set(metrics) <= set(together) else tuple(metrics)
    return window.named_sql(
        "figures",
        "histogram_states",
        metrics=list(wanted),
        start=time_range.start,
        end=time_range.end,
        step_us=round((step_seconds or time_range.seconds + 1) * 1e6),
        last_step=time_range.steps(step_seconds) - 1 if step_seconds else 0,
    )


class Distribution(Struct, frozen=True):
    """Observations merged over series: exact counts between `edges`, and their sum if sound."""

    edges: tuple[float, ...]
    counts: tuple[float, ...]
    total: float | None

    @property
    def count(self) -> float:
        """The number of observations."""
        return sum(self.counts)


def merged(increases: Sequence[Increase]) -> Distribution | None:
    """The increases of one metric as one distribution, on the edges that they share.

    Counts at shared edges are exact whatever the other edges are. None if nothing was observed or
    no edge is shared.
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


class Quantile(Record, frozen=True):
    """A quantile in seconds: `value` is as in PromQL, None in the overflow bucket.

    `lower` and `upper` are the edges of its bucket, which contain the true quantile; `estimate`
    also uses the histogram's sum and the neighboring buckets. All are None if nothing was observed.
    """

    value: float | None = None
    lower: float | None = None
    upper: float | None = None
    estimate: float | None = None

    def __str__(self) -> str:
        """The estimate with the bounds of its bucket: `16.2 s (10 to 20 s)`."""
        if self.lower is None:
            return "nothing was observed"
        if self.estimate is None or self.upper is None:
            return f"more than {self.lower:.4g} s"
        return f"{self.estimate:.3g} s ({self.lower:.3g} to {self.upper:.3g} s)"


class Quantiles(Record, frozen=True):
    """Quantiles of one latency, in seconds."""

    p50: Quantile = Quantile()
    p95: Quantile = Quantile()
    p99: Quantile = Quantile()


class Latency(Record, frozen=True):
    """Quantiles of TTFT, inter-token and end-to-end latency, over all engines."""

    ttft_seconds: Quantiles
    itl_seconds: Quantiles
    e2e_seconds: Quantiles

    @property
    def ttft(self) -> Quantiles:
        """Time to first token."""
        return self.ttft_seconds

    @property
    def itl(self) -> Quantiles:
        """Inter-token latency."""
        return self.itl_seconds

    @property
    def e2e(self) -> Quantiles:
        """End-to-end latency of a request."""
        return self.e2e_seconds


def quantiles(distribution: Distribution | None) -> Quantiles:
    """p50, p95 and p99, in the unit of the edges; all None if nothing was observed."""
    if distribution is None:
        return Quantiles()
    edges, counts = distribution.edges, distribution.counts
    return Quantiles(
        **{
            name: Quantile(
                bucket_quantile(edges, counts, q),
                *quantile_bounds(edges, counts, q),
                quantile_estimate(edges, counts, distribution.total, q),
            )
            for name, q in QUANTILES.items()
        }
    )


def latency(increases: Sequence[Increase]) -> Latency:
    """Quantiles of TTFT, inter-token and end-to-end latency, in seconds, over all engines."""
    found = {
        f"{name}_seconds": quantiles(merged([i for i in increases if i.metric == shown.metric]))
        for name, shown in LATENCIES.items()
    }
    return Latency(**found)


def sound_total(increases: Sequence[Increase], time_range: TimeRange) -> float | None:
    """The sum of the latencies in the time range, in seconds; None if it cannot be right.

    It cannot be if it is negative, or above the length of the time range times the number of
    observations: vLLM #49135 adds uptime-sized values. 0 if a histogram exists but observed
    nothing.
    """
    if not increases:
        return None
    total = sum(increase.total for increase in increases)
    longest = sum(increase.count for increase in increases) * time_range.seconds
    return total if 0 <= total <= longest else None


class MeanLatency(Struct, frozen=True):
    """Mean TTFT and ITL over all requests and tokens, in seconds; None if unobserved or unsound."""

    ttft_seconds: float | None
    itl_seconds: float | None


def mean_latency(increases: Sequence[Increase], time_range: TimeRange) -> MeanLatency:
    """The mean TTFT and ITL from histograms: their sum ÷ their count."""
    means = []
    for metric in (TTFT, ITL):
        own = [each for each in increases if each.metric == metric]
        total, count = sound_total(own, time_range), sum(each.count for each in own)
        means.append(total / count if total is not None and count else None)
    return MeanLatency(*means)


PHASES = {"queue": QUEUE, "prefill": PREFILL, "decode": DECODE}


class Phase(Struct, frozen=True):
    """One phase of the requests that finished in a time range, summed over the requests.

    `mean_seconds` is per request; `share_ratio` is this phase's share of the time of all phases,
    0..1. All three are None if the phase was not observed; the share also if any phase was not.
    """

    name: str
    total_seconds: float | None
    mean_seconds: float | None
    share_ratio: float | None


def phases(window: Window, *, time_range: TimeRange) -> tuple[Phase, ...]:
    """Queue, prefill and decode of the requests that finished in the time range, in this order.

    Means are exact (a histogram's sum ÷ its count). The time for which a preempted request waits
    again counts in the phase in which it was preempted: vLLM ends the queue phase when a request
    is first scheduled.
    """
    increases = histogram_increases(window, list(PHASES.values()), time_range=time_range)
    totals: dict[str, float | None] = {}
    counts: dict[str, float] = {}
    for name, metric in PHASES.items():
        own = [each for each in increases if each.metric == metric]
        counts[name] = sum(each.count for each in own)
        totals[name] = sound_total(own, time_range) if counts[name] else None
    known = [total for total in totals.values() if total is not None]
    whole = sum(known) if len(known) == len(totals) else 0.0
    return tuple(
        Phase(
            name,
            total,
            None if total is None else total / counts[name],
            None if total is None or not whole else total / whole,
        )
        for name, total in totals.items()
    )
