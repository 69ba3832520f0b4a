"""Charts of limits: the load at which output levels off, and what was full there.

Output, latency and preemptions are drawn against either load measure (load_scatter.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import product

import altair as alt
import polars as pl

from vllm_capacity.analysis import Analysis
from vllm_capacity.answer import Answer
from vllm_capacity.assumptions import TARGETS
from vllm_capacity.render.charts import theme
from vllm_capacity.render.charts.base import (
    Chart,
    DataColumn,
    Label,
    Panel,
    Tip,
    has_values,
    labelled,
    rounded,
    table_of,
    tips_of,
)
from vllm_capacity.render.charts.load_scatter import (
    CLEAR_OF_POINTS,
    CONCURRENCY,
    EMPTY_RATIO,
    FULL,
    KV_USAGE,
    QUEUED,
    LoadAxis,
    LoadName,
    LoadScatter,
    load_axis,
)
from vllm_capacity.render.charts.time import (
    START,
    Limit,
    Line,
    over_time,
)
from vllm_capacity.render.numbers import count, number, percent, seconds
from vllm_capacity.render.prose import captions
from vllm_capacity.render.prose.verdict import is_extrapolated

_CURVE_HEIGHT, _SCATTER_HEIGHT = 280, 240
_NAMED_AT = 0.3  # position along the fitted curve, from the left, where it is still steep
_LABEL_SHARE, _LABEL_FACTOR = 0.5, 1.8  # a label's size: part of width, factor of amount
_DECADES = (0.001, 0.01, 0.1, 1, 10, 100, 1000)
_NO_ENGINE = "No engine reported to this window."
_LATENCIES = {name: target.label for name, target in TARGETS.items()}
_LATENCY_COLORS = dict(zip(_LATENCIES.values(), theme.LATENCY_COLORS, strict=False))
_OUTPUT_TITLES: Mapping[LoadName, str] = {
    "concurrency": "At what concurrency does output level off?",
    "kv-usage": "Does a full KV cache limit output?",
}
_LATENCY_TITLES: Mapping[LoadName, str] = {
    "concurrency": "At what concurrency does latency rise?",
    "kv-usage": "Does a full KV cache raise latency?",
}
_PREEMPTION_TITLES: Mapping[LoadName, str] = {
    "concurrency": "At what concurrency are requests preempted?",
    "kv-usage": "How full is the KV cache at preemption?",
}


def kv_cache(analysis: Analysis) -> Chart:
    """KV-cache usage over time: mean and highest engine, with full as a rule.

    A full cache is only a problem if requests wait or are preempted.
    Columns used: start, end, kv_cache_ratio_mean, kv_cache_ratio_max, preemptions.
    """
    panel, steps = Panel("How full was the KV cache?", "kv_cache_ratio"), analysis.series
    if not has_values(steps, "kv_cache_ratio_mean"):
        return panel.empty("The server did not say how full its KV cache was.")
    caption, most = captions.kv_found(analysis.answer), analysis.answer.kv_cache_ratio.max
    if most is not None and most < EMPTY_RATIO:  # the line would lie on the axis
        return panel.empty(f"{caption}.")
    columns = [
        START,
        DataColumn("kv_cache_ratio_mean", "mean", percent, ".0%"),
        DataColumn("kv_cache_ratio_max", "highest", percent, ".0%"),
        DataColumn("preemptions", "preemptions", count, ",.0f"),
    ]
    layers = over_time(
        steps,
        analysis.time_range,
        [
            Line("kv_cache_ratio_max", "highest", theme.SOFT),
            Line("kv_cache_ratio_mean", "mean", theme.KV),
        ],
        unit="KV-cache usage",
        axis=alt.Axis(format=".0%"),
        tips=tips_of(columns),
        limits=[Limit(1.0, "full")],
    )
    return panel.chart(layers, caption=caption, table=table_of(steps, columns))


def saturation(analysis: Analysis, *, axis: LoadName = "concurrency") -> Chart:
    """Output tokens per second against load, a point per step, with the capacity as a band.

    Read it left to right: at the knee, more requests stop adding tokens. Against concurrency, a
    curve is fitted to the steps, up to the capacity; its band shows the fit's uncertainty under
    resampling. There is no curve if the observed loads do not determine the capacity. Against KV
    usage, points that pile up at the right under a flat top mean that output is limited by memory.
    For several engines, only the one nearest to its limit is drawn. Steps with a gap or a restart
    are left out.
    Columns used: start, end, is_gap, is_restart, running_mean, waiting_mean, kv_cache_ratio_mean,
    output_tokens_per_second.
    """
    load = load_axis(axis)
    panel = Panel(_OUTPUT_TITLES[axis], "capacity_output_tokens_per_second", half=True)
    if analysis.load_curve is None:
        return panel.empty(_NO_ENGINE)
    scatter = LoadScatter.of(analysis, analysis.load_curve, load)
    steps = scatter.steps.drop_nulls([load.column.name, "output_tokens_per_second"])
    if why := scatter.why_empty(steps, "an output rate"):
        return panel.empty(why)
    curve = scatter.curve.curve if load is CONCURRENCY else scatter.curve.curve.clear()
    columns = [
        START,
        load.column,
        DataColumn("output_tokens_per_second", "output tokens/s", number),
        DataColumn("waiting_mean", "waiting", number),
    ]
    return panel.chart(
        [
            *_capacity(scatter.answer),
            *scatter.limit,
            *_fitted(curve, load),
            _throughput_points(scatter, steps),
        ],
        caption=f"{scatter.captioned(_saturated(scatter))}{_unfitted(curve, scatter)}",
        table=table_of(steps, columns),
        height=_CURVE_HEIGHT,
    )


def latency_by_load(analysis: Analysis, *, axis: LoadName = "concurrency") -> Chart:
    """The p95 of each latency that can have a target against load, with the targets as rules.

    Read it left to right: at the knee, the points rise from the floor. Against KV usage, points
    that rise only at the right edge mean that users wait for memory. The y axis is logarithmic, so
    that seconds and milliseconds share it. Steps with a gap or a restart are left out, and so is a
    p95 beyond the histogram's last edge. For several engines, only the one nearest to its limit is
    drawn.
    Columns used: start, end, is_gap, is_restart, running_mean, kv_cache_ratio_mean,
    ttft_p95_seconds, itl_p95_seconds.
    """
    load = load_axis(axis)
    panel = Panel(_LATENCY_TITLES[axis], "latency_by_load", half=True)
    if analysis.load_curve is None:
        return panel.empty(_NO_ENGINE)
    scatter = LoadScatter.of(analysis, analysis.load_curve, load)
    steps = scatter.steps.drop_nulls(load.column.name)
    if not has_values(steps, *_LATENCIES):
        steps = steps.clear()
    if why := scatter.why_empty(steps, "a latency"):
        return panel.empty(why)
    points = _latency_points(steps, load)
    rules = [
        layer
        for name, target_seconds in analysis.assumptions.slo.targets.items()
        for layer in _target(_LATENCIES[name], target_seconds, points)
    ]
    columns = [
        START,
        load.column,
        *(DataColumn(column, f"p95 {name}", seconds) for column, name in _LATENCIES.items()),
    ]
    return panel.chart(
        [*scatter.limit, *_latency_layers(scatter, points), *rules],
        caption=scatter.captioned(
            f"{captions.slo_throughput_found(scatter.answer)}{scatter.fullest_on_kv_axis}"
        ),
        table=table_of(steps, columns),
        height=_SCATTER_HEIGHT,
    )


def preemptions_by_load(analysis: Analysis, *, axis: LoadName = "concurrency") -> Chart:
    """Preemptions per minute against load, a point per step.

    A preempted request loses its place in the KV cache and is computed again: from the load where
    the points rise above zero, part of the work is done twice. Color and shape show how full the
    cache was; against KV usage, whether requests waited. Points above zero left of a full cache
    mean that there was no room for the next request although the mean usage was below full: usage
    varies within a step. Steps with a gap or a restart are left out. For several engines, only the
    one nearest to its limit is drawn.
    Columns used: start, end, is_gap, is_restart, running_mean, waiting_mean, kv_cache_ratio_mean,
    kv_cache_ratio_max, preemptions_per_minute.
    """
    load = load_axis(axis)
    panel = Panel(_PREEMPTION_TITLES[axis], "preemptions_by_load", half=True)
    if analysis.load_curve is None:
        return panel.empty(_NO_ENGINE)
    scatter = LoadScatter.of(analysis, analysis.load_curve, load)
    steps = scatter.steps.drop_nulls([load.column.name, "preemptions_per_minute"])
    if steps.is_empty():
        return panel.empty(scatter.why_empty(steps, "a count of preemptions"))
    caption = captions.preemptions_found(scatter.answer)
    if not (steps["preemptions_per_minute"] > 0).any():  # all points would lie on the axis
        elsewhere = (
            ", none of them in a step that can be drawn" if scatter.answer.preemptions else ""
        )
        return panel.empty(f"{scatter.captioned(f'{caption}{elsewhere}')}.")
    columns = [
        START,
        load.column,
        DataColumn("preemptions_per_minute", "preemptions/min", number),
        DataColumn("kv_cache_ratio_max", "KV-cache usage, highest", percent),
    ]
    return panel.chart(
        [*scatter.limit, _preemption_points(scatter, steps)],
        caption=scatter.captioned(caption),
        table=table_of(steps, columns),
        height=_SCATTER_HEIGHT,
    )


def _throughput_points(scatter: LoadScatter, steps: pl.DataFrame) -> alt.Chart:
    """A point per step; color and shape show whether requests waited."""
    return scatter.points(
        steps.select(
            "t",
            "output_tokens_per_second",
            "waiting_mean",
            load=scatter.load.column.name,
            state=QUEUED.name,
        ),
        y=alt.Y(
            "output_tokens_per_second:Q",
            title="output tokens/s",
            axis=alt.Axis(labelPadding=CLEAR_OF_POINTS),
            scale=alt.Scale(domainMin=0),
        ),
        colors=QUEUED.colors,
        tips=[
            Tip("output_tokens_per_second", ",.1f", "output tokens/s"),
            Tip("waiting_mean", ",.1f", "waiting"),
        ],
    )


def _fitted(curve: pl.DataFrame, load: LoadAxis) -> list[alt.Chart]:
    """The fitted curve in its band, labeled below its bend; empty without a fit."""
    if curve.is_empty():
        return []
    frame, x = rounded(curve.rename({"running_requests": "load"})), load.x
    base = alt.Chart(frame).encode(x=x)
    spot = frame[round(_NAMED_AT * frame.height)].with_columns(name=pl.lit("fitted curve"))
    label = Label(below=True, dx=8)
    return [
        base.mark_area(color=theme.INK, opacity=0.15).encode(y=alt.Y("low:Q"), y2=alt.Y2("high")),
        base.mark_line(color=theme.INK, strokeWidth=1.5).encode(y=alt.Y("mid:Q")),
        *labelled(alt.Chart(spot), label, color=theme.INK, x=x, y=alt.Y("mid:Q")),
    ]


def _capacity(answer: Answer) -> list[alt.Chart]:
    """The capacity as a labeled rule in the band of its interval; empty if unknown."""
    capacity = answer.saturation.capacity
    if capacity.mid is None:
        return []
    name = f"capacity {number(capacity.mid)} tokens/s"
    ends = {"low": [capacity.low], "mid": [capacity.mid], "high": [capacity.high]}
    base = alt.Chart(pl.DataFrame({**ends, "name": [name]}))
    rule = base.mark_rule(color=theme.LIMIT, strokeDash=[6, 3], strokeWidth=1.5)
    return [
        base.mark_rect(color=theme.LIMIT, opacity=0.15).encode(y=alt.Y("low:Q"), y2=alt.Y2("high")),
        rule.encode(y=alt.Y("mid:Q")),
        *labelled(base, Label(dx=4), color=theme.LIMIT, x=None, y=alt.Y("high:Q")),
    ]


def _saturated(scatter: LoadScatter) -> str:
    """Where output stopped rising, and that steps scatter around a measured capacity."""
    found = captions.capacity_found(scatter.answer)
    saturation = scatter.answer.saturation
    if saturation.capacity.is_known and not is_extrapolated(saturation):
        found += "; it is a mean, so that steps lie above and below it"
    return f"{found}{scatter.fullest_on_kv_axis}"


def _unfitted(curve: pl.DataFrame, scatter: LoadScatter) -> str:
    """How many of the curve's finer steps were left out; empty if equal for the drawn ones."""
    if curve.is_empty() or scatter.curve.left_out == scatter.left_out:
        return ""
    finer = count(scatter.curve.left_out)
    return f"; of the finer steps that the curve is fitted to, {finer}"


def _latency_points(steps: pl.DataFrame, load: LoadAxis) -> pl.DataFrame:
    """The points of all latencies: t, load, amount (seconds), state (which latency), at.

    `at` is a point's position on the axis, 0..1; NaN if all are at 0.
    """
    points = pl.concat(
        steps.filter(pl.col(column) > 0).select(
            "t", load=load.column.name, amount=column, state=pl.lit(name)
        )
        for column, name in _LATENCIES.items()
    )
    end = pl.lit(1.0) if load is KV_USAGE else pl.col("load").max()
    return points.with_columns(at=pl.col("load") / end)


def _latency_layers(scatter: LoadScatter, points: pl.DataFrame) -> list[alt.Chart]:
    y = alt.Y(
        "amount:Q",
        title="p95, seconds (log)",
        axis=alt.Axis(format="~g", values=_DECADES, labelPadding=CLEAR_OF_POINTS),
        scale=alt.Scale(type="log", nice=True),
    )
    return [
        scatter.points(
            points.filter(pl.col("state") == name).drop("at"),
            y=y,
            colors=_LATENCY_COLORS,
            tips=[Tip("state", "", "latency"), Tip("amount", ",.3f", "p95 (s)")],
        )
        for name in _LATENCY_COLORS
    ]


def _target(name: str, target_seconds: float, points: pl.DataFrame) -> list[alt.Chart]:
    """A latency's target as a rule, labeled at the end and side with the fewest points."""
    text = f"{name} target {seconds(target_seconds)}"
    base = alt.Chart(pl.DataFrame({"limit": [target_seconds], "name": [text]}))
    y = alt.Y("limit:Q")
    rule = base.mark_rule(color=theme.LIMIT, strokeDash=[6, 3], strokeWidth=1.5).encode(y=y)
    label = _clearest(target_seconds, points)
    return [rule, *labelled(base, label, color=theme.LIMIT, x=None, y=y)]


def _clearest(limit: float, points: pl.DataFrame) -> Label:
    """The label of a rule at `limit` that covers the fewest points. Columns used: amount, at.

    If the rule is at the end of the axis, a power of ten, a label below it would cover axis labels.
    """
    lowest = min([limit, *points["amount"]])
    has_room_below = limit / _LABEL_FACTOR >= 10 ** math.floor(math.log10(lowest))

    def hidden(place: tuple[bool, bool]) -> int:
        is_right, is_below = place
        ends = (limit / _LABEL_FACTOR, limit) if is_below else (limit, limit * _LABEL_FACTOR)
        is_near = pl.col("at") > 1 - _LABEL_SHARE if is_right else pl.col("at") < _LABEL_SHARE
        return points.filter(is_near & pl.col("amount").is_between(*ends)).height

    sides = (False, True) if has_room_below else (False,)
    is_right, is_below = min(product((False, True), sides), key=hidden)
    return Label("right" if is_right else "left", below=is_below, dx=0 if is_right else 4)


def _preemption_points(scatter: LoadScatter, steps: pl.DataFrame) -> alt.Chart:
    state = FULL if scatter.load is CONCURRENCY else QUEUED
    return scatter.points(
        steps.select(
            "t",
            "kv_cache_ratio_max",
            "waiting_mean",
            load=scatter.load.column.name,
            amount="preemptions_per_minute",
            state=state.name,
        ),
        y=alt.Y(
            "amount:Q",
            title="preemptions/min",
            axis=alt.Axis(labelPadding=CLEAR_OF_POINTS),
            scale=alt.Scale(domainMin=0, nice=True),
        ),
        colors=state.colors,
        tips=[
            Tip("amount", ",.1f", "preemptions/min"),
            Tip("kv_cache_ratio_max", ".0%", "KV-cache usage, highest"),
            Tip("waiting_mean", ",.1f", "waiting"),
        ],
    )
