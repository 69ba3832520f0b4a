"""Charts against load: how latency and preemptions grow with running requests and KV-cache use."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product

import altair as alt
import polars as pl

from vllm_capacity.load_curve import LoadCurve
from vllm_capacity.render.charts import theme
from vllm_capacity.render.charts.against_load import (
    CLEAR_OF_POINTS,
    FULL,
    KV_CACHE,
    QUEUED,
    RUNNING,
    Load,
    Shown,
    State,
    fullest,
    limit_of,
    scatter,
    shown,
    too_empty,
)
from vllm_capacity.render.charts.base import (
    Answer,
    Column,
    Label,
    Tip,
    has_values,
    labelled,
    nothing,
    table_of,
    titled,
)
from vllm_capacity.render.charts.time import START
from vllm_capacity.render.numbers import number, percent, seconds
from vllm_capacity.render.prose import verdict as words
from vllm_capacity.render.prose.estimates import is_unknown, reason, sure

HEIGHT = 240
_FAMILIES = {"ttft_p95_seconds": "first token", "itl_p95_seconds": "between tokens"}
_LATENCY_STATES = {"first token": theme.LOAD, "between tokens": theme.SOFT}
_MS_A_MINUTE = 60_000
_LABEL_SHARE, _LABEL_FACTOR = 0.5, 1.8  # what a label covers: of the width, of the amounts
_DECADES = (0.001, 0.01, 0.1, 1, 10, 100, 1000)


def latency_by_load(
    steps: pl.DataFrame,
    answer: Answer,
    ttft_slo_seconds: float | None = None,
    itl_slo_seconds: float | None = None,
    engine: LoadCurve | None = None,
) -> alt.TopLevelMixin:
    """p95 time to first token and between tokens against running requests, the SLOs as rules.

    Read it left to right: the knee is where the points leave the floor. The axis is logarithmic, so
    that seconds and milliseconds share it. Steps with a gap or a restart are left out, and so is a
    p95 beyond the histogram's last edge. Of several engines `engine` is drawn, alone.
    Columns used: ts, is_gap, is_restart, running, ttft_p95_seconds, itl_p95_seconds.
    """
    targets = (ttft_slo_seconds, itl_slo_seconds)
    of = shown(steps, answer, engine, targets)
    return _latency(of, RUNNING, targets, question="At what load do users begin to wait?")


def latency_by_kv(
    steps: pl.DataFrame,
    answer: Answer,
    ttft_slo_seconds: float | None = None,
    itl_slo_seconds: float | None = None,
    engine: LoadCurve | None = None,
) -> alt.TopLevelMixin:
    """The same waits against KV-cache use: whether they grow where memory runs out, or before.

    Points that leave the floor at the right edge alone say that memory is what users wait for.
    Columns used: ts, is_gap, is_restart, kv_cache_ratio_mean, ttft_p95_seconds, itl_p95_seconds.
    """
    targets = (ttft_slo_seconds, itl_slo_seconds)
    of = shown(steps, answer, engine, targets)
    return _latency(of, KV_CACHE, targets, question="How full is the KV cache when users wait?")


def preemptions_by_load(
    steps: pl.DataFrame, answer: Answer, engine: LoadCurve | None = None
) -> alt.TopLevelMixin:
    """Preemptions a minute against running requests; colour and shape say how full the cache was.

    A preempted request loses its place in the KV cache and is computed again: from the load where
    the points leave zero, part of the work is done twice. Steps with a gap or a restart are left
    out. Of several engines `engine` is drawn, alone.
    Columns used: ts, is_gap, is_restart, running, preemptions, kv_cache_ratio_max, waiting.
    """
    question = "At what load are requests preempted?"
    return _preemptions(shown(steps, answer, engine), RUNNING, FULL, question=question)


def preemptions_by_kv(
    steps: pl.DataFrame, answer: Answer, engine: LoadCurve | None = None
) -> alt.TopLevelMixin:
    """Preemptions a minute against KV-cache use; colour and shape say whether requests waited.

    Points above zero left of a full cache say that room for the next request ran out before the
    cache was full on average: it flickers within a step.
    Columns used: ts, is_gap, is_restart, kv_cache_ratio_mean, kv_cache_ratio_max, preemptions,
    waiting.
    """
    question = "How full is the KV cache when requests are preempted?"
    return _preemptions(shown(steps, answer, engine), KV_CACHE, QUEUED, question=question)


def _latency(
    of: Shown, load: Load, targets: tuple[float | None, float | None], *, question: str
) -> alt.TopLevelMixin:
    definition = "latency_by_load"
    kept = of.steps.drop_nulls(load.column.name)
    if not has_values(kept, *_FAMILIES):
        why = f"No step tells both a latency and this load ({load.column.title})."
        return nothing(question=question, reason=why, definition=definition, half=True)
    if why := too_empty(load, of):
        return nothing(question=question, reason=why, definition=definition, half=True)
    waits = _waits(kept, load)
    limits = zip(_LATENCY_STATES, targets, strict=True)
    points = pl.concat(waits.values())
    end = 1.0 if load is KV_CACHE else points["load"].max()
    points = points.with_columns(at=pl.col("load") / end)
    rules = [layer for name, limit in limits if limit for layer in _target(name, limit, points)]
    columns = [
        START,
        load.column,
        *(Column(column, f"{name}, 95 % under", seconds) for column, name in _FAMILIES.items()),
    ]
    return titled(
        [*_latency_points(waits, load), *rules, *limit_of(load, of)],
        question=question,
        found=of.found(f"{_held(of.answer)}{fullest(of.answer) if load is KV_CACHE else ''}"),
        definition=definition,
        table=table_of(kept, columns),
        height=HEIGHT,
        half=True,
    )


def _preemptions(of: Shown, load: Load, state: State, *, question: str) -> alt.TopLevelMixin:
    definition = "preemptions_by_load"
    minutes = (pl.col("t_end") - pl.col("t")) / _MS_A_MINUTE
    counted = of.steps.with_columns(preemptions_per_minute=pl.col("preemptions") / minutes)
    kept = counted.drop_nulls([load.column.name, "preemptions_per_minute"])
    if kept.is_empty():
        why = f"No step tells both a count of preemptions and this load ({load.column.title})."
        return nothing(question=question, reason=why, definition=definition, half=True)
    if kept["preemptions_per_minute"].sum() == 0:  # every point would lie on the axis
        elsewhere = ", none of them in a step that can be drawn" if of.answer["preemptions"] else ""
        reason = of.found(f"{_preempted(of.answer)}{elsewhere}")
        return nothing(question=question, reason=f"{reason}.", definition=definition, half=True)
    columns = [
        START,
        load.column,
        Column("preemptions_per_minute", "preemptions/min", number),
        Column("kv_cache_ratio_max", "KV cache, highest", percent),
    ]
    return titled(
        [*limit_of(load, of), _preemption_points(kept, load, state)],
        question=question,
        found=of.found(_preempted(of.answer)),
        definition=definition,
        table=table_of(kept, columns),
        height=HEIGHT,
        half=True,
    )


def _waits(kept: pl.DataFrame, load: Load) -> dict[str, pl.DataFrame]:
    """The points of each family of waits, by its name: t, load, amount (seconds), state."""
    return {
        name: kept.filter(pl.col(column) > 0).select(
            "t", load=load.column.name, amount=column, state=pl.lit(name)
        )
        for column, name in _FAMILIES.items()
    }


def _latency_points(waits: Mapping[str, pl.DataFrame], load: Load) -> list[alt.Chart]:
    y = alt.Y(
        "amount:Q",
        title="seconds, 95 % under (log)",
        axis=alt.Axis(format="~g", values=_DECADES, labelPadding=CLEAR_OF_POINTS),
        scale=alt.Scale(type="log", nice=True),
    )
    return [
        scatter(
            points,
            load,
            y=y,
            states=_LATENCY_STATES,
            tips=[Tip("state", "", "wait"), Tip("amount", ",.3f", "95 % under (s)")],
        )
        for points in waits.values()
    ]


def _preemption_points(kept: pl.DataFrame, load: Load, state: State) -> alt.Chart:
    return scatter(
        kept.select(
            "t",
            "kv_cache_ratio_max",
            "waiting",
            load=load.column.name,
            amount="preemptions_per_minute",
            state=state.name,
        ),
        load,
        y=alt.Y(
            "amount:Q",
            title="preemptions/min",
            axis=alt.Axis(labelPadding=CLEAR_OF_POINTS),
            scale=alt.Scale(domainMin=0, nice=True),
        ),
        states=state.colours,
        tips=[
            Tip("amount", ",.1f", "preemptions/min"),
            Tip("kv_cache_ratio_max", ".0%", "KV cache, highest"),
            Tip("waiting", ",.1f", "waiting"),
        ],
    )


def _target(name: str, limit: float, points: pl.DataFrame) -> list[alt.Chart]:
    """A family's target as a rule, labelled at the end and on the side where fewest points lie."""
    base = alt.Chart(pl.DataFrame({"limit": [limit], "name": [f"target {seconds(limit)}, {name}"]}))
    y = alt.Y("limit:Q")
    rule = base.mark_rule(color=theme.LIMIT, strokeDash=[6, 3], strokeWidth=1.5).encode(y=y)
    label = _clearest(limit, points)
    return [rule, *labelled(base, label, colour=theme.LIMIT, x=None, y=y)]


def _clearest(limit: float, points: pl.DataFrame) -> Label:
    """The label of a rule at `limit` that hides the fewest points.

    Columns used: amount, at (where on the axis, 0..1; nothing is near where that is no number).
    """

    def hidden(place: tuple[bool, bool]) -> int:
        is_right, is_below = place
        ends = (limit / _LABEL_FACTOR, limit) if is_below else (limit, limit * _LABEL_FACTOR)
        is_near = pl.col("at") > 1 - _LABEL_SHARE if is_right else pl.col("at") < _LABEL_SHARE
        return points.filter(is_near & pl.col("amount").is_between(*ends)).height

    is_right, is_below = min(product((False, True), (False, True)), key=hidden)
    return Label("right" if is_right else "left", below=is_below, dx=0 if is_right else 4)


def _held(answer: Answer) -> str:
    held = answer["slo"]["capacity_output_tokens_per_second"]
    if is_unknown(held):
        return f"What it holds within the targets is not known: {reason(held)}"
    return f"Within the targets it holds {sure(held, number)} output tokens/s"


def _preempted(answer: Answer) -> str:
    preemptions = answer["preemptions"]
    if preemptions is None:
        return "Preemptions were not counted over the whole window"
    text = "No request was preempted"
    if preemptions:
        text = f"{words.plural(preemptions, 'preemption')} in all"
    return f"{text}{fullest(answer)}"
