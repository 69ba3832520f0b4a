"""Charts against load: how latency and preemptions grow as more requests run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import altair as alt
import polars as pl

from vllm_capacity.pages import theme, words
from vllm_capacity.pages.chart_parts import (
    Answer,
    Column,
    Label,
    Tip,
    has_values,
    labelled,
    nothing,
    rounded,
    table_of,
    titled,
)
from vllm_capacity.pages.estimate_words import reason, sure
from vllm_capacity.pages.numbers import number, percent, seconds
from vllm_capacity.pages.timeline import START, time_tooltip, with_milliseconds

HEIGHT = 280
_FAMILIES = {"ttft_p95_seconds": "first token", "itl_p95_seconds": "between tokens"}
_LATENCY_STATES = {"first token": theme.LOAD, "between tokens": theme.SOFT}
_FULL_RATIO = 0.9  # from here a regime may be called KV-cache-bound
_FULL, _ROOM = "KV 90 % full or more", "KV less full"
_MS_A_MINUTE = 60_000
_DECADES = (0.001, 0.01, 0.1, 1, 10, 100, 1000)
_RUNNING = alt.X(
    "load:Q",
    title="running requests",
    axis=alt.Axis(tickCount=8),
    scale=alt.Scale(domainMin=0, nice=True),
)
_SHAPES = ("circle", "triangle-up")


def latency_by_load(
    steps: pl.DataFrame,
    answer: Answer,
    ttft_slo_seconds: float | None = None,
    itl_slo_seconds: float | None = None,
) -> alt.TopLevelMixin:
    """p95 time to first token and between tokens against running requests, the SLOs as rules.

    Read it left to right: the knee is where the points leave the floor. The axis is logarithmic, so
    that seconds and milliseconds share it. Steps with a gap or a restart are left out, and so is a
    p95 beyond the histogram's last edge.
    Columns used: ts, is_gap, is_restart, running, ttft_p95_seconds, itl_p95_seconds.
    """
    question, definition = "At what load do users begin to wait?", "latency_by_load"
    kept = _undisturbed(steps).drop_nulls("running")
    if not has_values(kept, *_FAMILIES):
        why = "No step has both a load and a latency."
        return nothing(question=question, reason=why, definition=definition)
    targets = {"first token": ttft_slo_seconds, "between tokens": itl_slo_seconds}
    rules = [layer for name, limit in targets.items() if limit for layer in _target(name, limit)]
    columns = [
        START,
        Column("running", "running requests", number),
        *(Column(column, f"{name}, 95 % under", seconds) for column, name in _FAMILIES.items()),
    ]
    return titled(
        [*rules, *_latency_points(kept, answer)],
        question=question,
        found=f"{_held(answer)}{_left_out(steps)}",
        definition=definition,
        table=table_of(kept, columns),
        height=HEIGHT,
    )


def preemptions_by_load(steps: pl.DataFrame, answer: Answer) -> alt.TopLevelMixin:
    """Preemptions a minute against running requests; colour and shape say how full the cache was.

    A preempted request loses its place in the KV cache and is computed again: from the load where
    the points leave zero, part of the work is done twice. Steps with a gap or a restart are left
    out.
    Columns used: ts, is_gap, is_restart, running, preemptions, kv_cache_ratio_max.
    """
    question, definition = "At what load are requests preempted?", "preemptions_by_load"
    minutes = (pl.col("t_end") - pl.col("t")) / _MS_A_MINUTE
    timed = with_milliseconds(steps, answer).with_columns(
        preemptions_per_minute=pl.col("preemptions") / minutes
    )
    kept = _undisturbed(timed).drop_nulls(["running", "preemptions_per_minute"])
    if kept.is_empty():
        why = "No step has both a load and a count of preemptions."
        return nothing(question=question, reason=why, definition=definition)
    columns = [
        START,
        Column("running", "running requests", number),
        Column("preemptions_per_minute", "preemptions/min", number),
        Column("kv_cache_ratio_max", "KV cache, highest", percent),
    ]
    return titled(
        [_preemption_points(kept)],
        question=question,
        found=f"{_preempted(answer)}{_left_out(steps)}",
        definition=definition,
        table=table_of(kept, columns),
        height=HEIGHT,
    )


def scatter(
    frame: pl.DataFrame, *, x: alt.X, y: alt.Y, states: Mapping[str, str], tips: Sequence[Tip]
) -> alt.Chart:
    """A point a row, its colour (by name in `states`) and its shape saying which state it is in.

    Columns used: t, state, those of the axes and of the tips.
    """
    names = list(states)
    colours = alt.Scale(domain=names, range=list(states.values()))
    shapes = alt.Scale(domain=names, range=_SHAPES)
    chart: alt.Chart = (
        alt.Chart(rounded(frame))
        .mark_point(filled=True, size=45, opacity=0.75)
        .encode(
            x=x,
            y=y,
            color=alt.Color("state:N", title=None, scale=colours),
            shape=alt.Shape("state:N", title=None, scale=shapes),
            tooltip=[time_tooltip(), *(tip.tooltip for tip in tips)],
        )
    )
    return chart


def _latency_points(kept: pl.DataFrame, answer: Answer) -> list[alt.Chart]:
    y = alt.Y(
        "amount:Q",
        title="seconds, 95 % under (logarithmic)",
        axis=alt.Axis(format="~g", values=_DECADES),
        scale=alt.Scale(type="log", nice=True),
    )
    frame = with_milliseconds(kept, answer)
    return [
        scatter(
            frame.filter(pl.col(column) > 0).select(
                "t", load="running", amount=column, state=pl.lit(name)
            ),
            x=_RUNNING,
            y=y,
            states=_LATENCY_STATES,
            tips=[
                Tip("state", "", "wait"),
                Tip("load", ",.1f", "running requests"),
                Tip("amount", ",.3f", "95 % under (s)"),
            ],
        )
        for column, name in _FAMILIES.items()
    ]


def _preemption_points(kept: pl.DataFrame) -> alt.Chart:
    is_full = pl.col("kv_cache_ratio_max").fill_null(0.0) >= _FULL_RATIO
    return scatter(
        kept.select(
            "t",
            "kv_cache_ratio_max",
            load="running",
            amount="preemptions_per_minute",
            state=pl.when(is_full).then(pl.lit(_FULL)).otherwise(pl.lit(_ROOM)),
        ),
        x=_RUNNING,
        y=alt.Y("amount:Q", title="preemptions/min", scale=alt.Scale(domainMin=0, nice=True)),
        states={_ROOM: theme.LOAD, _FULL: theme.KV},
        tips=[
            Tip("load", ",.1f", "running requests"),
            Tip("amount", ",.1f", "preemptions/min"),
            Tip("kv_cache_ratio_max", ".0%", "KV cache, highest"),
        ],
    )


def _undisturbed(steps: pl.DataFrame) -> pl.DataFrame:
    return steps.filter(~pl.col("is_gap") & ~pl.col("is_restart"))


def _left_out(steps: pl.DataFrame) -> str:
    disturbed = steps.height - _undisturbed(steps).height
    if not disturbed:
        return ""
    return f"; {words.plural(disturbed, 'step')} with a gap or a restart left out"


def _target(name: str, limit: float) -> list[alt.Chart]:
    """A family's target as a labelled rule in the colour of its points."""
    base = alt.Chart(pl.DataFrame({"limit": [limit], "name": [f"target {seconds(limit)}, {name}"]}))
    colour, y = _LATENCY_STATES[name], alt.Y("limit:Q")
    rule = base.mark_rule(color=colour, strokeDash=[6, 3], strokeWidth=1.5).encode(y=y)
    return [rule, *labelled(base, Label(dx=4), colour=colour, x=None, y=y)]


def _held(answer: Answer) -> str:
    held = answer["slo"]["capacity_output_tokens_per_second"]
    if held["mid"] is None:
        return f"What it holds within the targets is not known: {reason(held)}"
    return f"Within the targets it holds {sure(held, number)} output tokens/s"


def _preempted(answer: Answer) -> str:
    preemptions, fullest = answer["preemptions"], answer["kv_cache_ratio"]["max"]
    if preemptions is None:
        return "Preemptions were not counted over the whole window"
    text = "No request was preempted"
    if preemptions:
        text = f"{words.plural(preemptions, 'preemption')} in all"
    return text if fullest is None else f"{text}; the KV cache was {percent(fullest)} full at most"
