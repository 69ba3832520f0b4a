"""Latency charts: how long users waited, and how many requests were queued."""

from __future__ import annotations

import altair as alt
from msgspec import Struct

from vllm_capacity.analysis import Analysis
from vllm_capacity.figures.latency import Quantiles
from vllm_capacity.render.charts import theme
from vllm_capacity.render.charts.base import (
    Chart,
    DataColumn,
    Panel,
    Tip,
    has_values,
    is_all_zero,
    table_of,
    tips_of,
)
from vllm_capacity.render.charts.time import START, Limit, Line, over_time
from vllm_capacity.render.numbers import number, seconds
from vllm_capacity.render.prose import captions

_MILLISECONDS = "format(datum.value * 1000, ',')"


class _Latency(Struct, frozen=True):
    """A latency: its name in columns, its title, and its quantiles over the window."""

    name: str
    title: str
    quantiles: Quantiles
    is_in_ms: bool = False


def ttft(analysis: Analysis) -> Chart:
    """Time to first token over time: p50, p95 with its bounds as a band, and the target as a rule.

    The true value lies inside the band; a histogram only has counts between bucket edges.
    Columns used: start, end, ttft_p50_seconds, ttft_p95_seconds and its _lower and _upper.
    """
    latency = _Latency(
        "ttft",
        "Time to first token (TTFT) over time",
        analysis.answer.latency.ttft,
    )
    return _over_time(analysis, latency)


def itl(analysis: Analysis) -> Chart:
    """Inter-token latency over time: p50, p95 with its bounds as a band, and the target as a rule.

    Columns used: start, end, itl_p50_seconds, itl_p95_seconds and its _lower and _upper.
    """
    latency = _Latency(
        "itl",
        "Inter-token latency (ITL) over time",
        analysis.answer.latency.itl,
        # Tokens are tens of milliseconds apart: in seconds, all axis labels would read 0.0.
        is_in_ms=True,
    )
    return _over_time(analysis, latency)


def e2e_latency(analysis: Analysis) -> Chart:
    """End-to-end latency over time: p50, and p95 with its bounds as a band.

    Columns used: start, end, e2e_p50_seconds, e2e_p95_seconds and its _lower and _upper.
    """
    title = "End-to-end (E2E) latency over time"
    return _over_time(analysis, _Latency("e2e", title, analysis.answer.latency.e2e))


def queue(analysis: Analysis) -> Chart:
    """Requests running and waiting over time, summed over engines.

    The capacity is reached when running levels off and waiting begins.
    Columns used: start, end, running_mean, waiting_mean.
    """
    panel = Panel("Did requests queue?", "queue")
    steps = analysis.series
    if not has_values(steps, "running_mean", "waiting_mean"):
        return panel.empty("The server did not say how many requests ran or waited.")
    caption = captions.queue_found(analysis.answer)
    if is_all_zero(steps, "running_mean", "waiting_mean"):
        return panel.empty(f"{caption}.")
    columns = [
        START,
        DataColumn("running_mean", "running", number, ",.1f"),
        DataColumn("waiting_mean", "waiting", number, ",.1f"),
    ]
    layers = over_time(
        steps,
        analysis.time_range,
        [
            Line("running_mean", "running", theme.LOAD),
            Line("waiting_mean", "waiting", theme.LIMIT, dash=(4, 3)),
        ],
        unit="requests",
        tips=tips_of(columns),
    )
    return panel.chart(layers, caption=caption, table=table_of(steps, columns))


def _over_time(analysis: Analysis, latency: _Latency) -> Chart:
    panel, steps = Panel(latency.title, f"{latency.name}_seconds"), analysis.series
    p50, p95 = f"{latency.name}_p50_seconds", f"{latency.name}_p95_seconds"
    if not has_values(steps, p50, p95, f"{p95}_lower"):
        return panel.empty("Nothing was observed: its histogram did not grow in this window.")
    named = {
        p50: "p50",
        p95: "p95",
        f"{p95}_lower": "p95, at least",
        f"{p95}_upper": "p95, at most",
    }
    target = analysis.assumptions.slo.targets.get(p95)
    layers = over_time(
        steps,
        analysis.time_range,
        [Line(p95, "p95", theme.LOAD, band=True), Line(p50, "p50", theme.SOFT)],
        unit="milliseconds" if latency.is_in_ms else "seconds",
        axis=alt.Axis(labelExpr=_MILLISECONDS) if latency.is_in_ms else None,
        tips=[Tip(column, ",.3f", f"{name} (s)") for column, name in named.items()],
        limits=[] if target is None else [Limit(target, f"p95 target {seconds(target)}")],
    )
    attained = analysis.answer.slo.attainments.get(p95)
    caption = captions.latency_found(latency.quantiles, attained, write=seconds)
    columns = [START, *(DataColumn(name, title, seconds) for name, title in named.items())]
    return panel.chart(layers, caption=caption, table=table_of(steps, columns))
