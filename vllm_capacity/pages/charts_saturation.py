"""Charts of limits: what the server was short of, and at what load."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import polars as pl

from vllm_capacity.pages import theme, words
from vllm_capacity.pages.chart_parts import (
    Answer,
    Column,
    Label,
    Tip,
    clock,
    has_values,
    labelled,
    nothing,
    rounded,
    table_of,
    titled,
)
from vllm_capacity.pages.numbers import count, instant, number, percent
from vllm_capacity.pages.timeline import (
    START,
    Limit,
    Line,
    milliseconds,
    over_time,
    time_axis,
    time_tooltip,
    whole_window,
    with_milliseconds,
)

_REGIME_COLOURS = {
    "idle": theme.SHADE,
    "client-bound": theme.LOAD,
    "scheduler-bound": theme.LIMIT,
    "kv-bound": theme.KV,
    "prefill-bound": theme.PREFILL,
    "unknown": theme.LINE,
}
_CURVE_HEIGHT = 280
_WAITING_AT_LEAST = 0.5
_STATES = ("none waiting", "requests waiting")
_ROW_HEIGHT = 28


def kv_cache(steps: pl.DataFrame, answer: Answer) -> alt.TopLevelMixin:
    """How full the KV cache was over time: mean and highest engine, with full as a rule.

    Full alone is no trouble; full while requests wait or are preempted is.
    Columns used: ts, kv_cache_ratio_mean, kv_cache_ratio_max, preemptions.
    """
    question, definition = "How full was the KV cache?", "kv_cache_ratio"
    if not has_values(steps, "kv_cache_ratio_mean"):
        reason = "The server did not say how full its KV cache was."
        return nothing(question=question, reason=reason, definition=definition)
    layers = over_time(
        steps,
        answer,
        [
            Line("kv_cache_ratio_max", "highest", theme.SOFT),
            Line("kv_cache_ratio_mean", "mean", theme.KV, below=True),
        ],
        unit="KV cache in use",
        axis=alt.Axis(format=".0%"),
        tips=[
            Tip("kv_cache_ratio_mean", ".0%", "mean"),
            Tip("kv_cache_ratio_max", ".0%", "highest"),
            Tip("preemptions", ",.0f", "preemptions"),
        ],
        limits=[Limit(1.0, "full")],
    )
    columns = [
        START,
        Column("kv_cache_ratio_mean", "mean", percent),
        Column("kv_cache_ratio_max", "highest", percent),
        Column("preemptions", "preemptions", count),
    ]
    return titled(
        layers,
        question=question,
        found=words.kv_found(answer),
        definition=definition,
        table=table_of(steps, columns),
    )


def saturation_curve(steps: pl.DataFrame, answer: Answer) -> alt.TopLevelMixin:
    """Output tokens a second against running requests, a point a step, with the capacity as a band.

    Read it left to right: the knee is where more requests bring no more tokens.
    Columns used: ts, running, output_tokens_per_second, waiting.
    """
    knee = answer["saturation"]["capacity_running_requests"]["mid"]
    return _against(
        steps,
        answer,
        Column("running", "running requests", number),
        question="At what load does output stop rising?",
        axis=alt.Axis(tickCount=8),
        scale=alt.Scale(domainMin=0),
        knee=knee,
    )


def kv_saturation_curve(steps: pl.DataFrame, answer: Answer) -> alt.TopLevelMixin:
    """Output tokens a second against KV-cache use, a point a step, with the capacity as a band.

    Where points pile up at the right under a flat top, memory is what output waits for.
    Columns used: ts, kv_cache_ratio_mean, output_tokens_per_second, waiting.
    """
    return _against(
        steps,
        answer,
        Column("kv_cache_ratio_mean", "KV cache in use", percent),
        question="Does output stop rising when the KV cache is full?",
        axis=alt.Axis(format=".0%", tickCount=6),
        scale=alt.Scale(domain=[0, 1]),
        knee=None,
    )


def regimes(steps: pl.DataFrame, answer: Answer) -> alt.TopLevelMixin:
    """What held each engine back, over time: a strip an engine, a colour and a word a regime.

    Columns used: none of `steps`; the answer's regimes with their evidence.
    """
    question, definition = "What held it back, and when?", "regime"
    found = answer["saturation"]["regimes"]
    if not found:
        reason = "No step of this window could be judged."
        return nothing(question=question, reason=reason, definition=definition)
    frame = _regime_frame(found)
    colours = {words.REGIMES[key]: colour for key, colour in _REGIME_COLOURS.items()}
    seen = [name for name in colours if name in frame["regime"].to_list()]
    engines = frame["engine"].n_unique()
    x = time_axis(answer)
    rows = alt.Axis(labels=engines > 1, labelLimit=44, ticks=False, domain=False)
    tips = [Tip("regime", "", "regime"), Tip("engine", "", "engine"), Tip("evidence", "", "why")]
    strip = (
        alt.Chart(frame)
        .mark_rect(stroke=theme.PAPER, strokeWidth=1)
        .encode(
            x=x,
            x2=alt.X2("t_end"),
            y=alt.Y("engine:N", title="engine" if engines > 1 else None, axis=rows),
            color=alt.Color(
                "regime:N",
                title=None,
                scale=alt.Scale(domain=seen, range=[colours[name] for name in seen]),
            ),
            tooltip=[time_tooltip("from (UTC)"), *(tip.tooltip for tip in tips)],
        )
    )
    return titled(
        [whole_window(answer, x), strip],
        question=question,
        found=words.regime_found(answer),
        definition=definition,
        table=_regime_table(found),
        height=_ROW_HEIGHT * engines + 12,
    )


def _regime_frame(found: Sequence[Mapping[str, Any]]) -> pl.DataFrame:
    rows = [
        {
            "t": milliseconds(instant(each["start"])),
            "t_end": milliseconds(instant(each["end"])),
            "engine": str(each["engine"]),
            "regime": words.REGIMES[each["regime"]],
            "evidence": str(each["evidence"]),
        }
        for each in found
    ]
    return pl.DataFrame(rows)


def _regime_table(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    heads = ("from (UTC)", "to (UTC)", "engine", "regime", "evidence")
    rows = [
        [
            clock(instant(each["start"])),
            clock(instant(each["end"])),
            str(each["engine"]),
            words.REGIMES[each["regime"]],
            str(each["evidence"]),
        ]
        for each in found
    ]
    columns = [{"title": head, "numeric": False} for head in heads]
    return {"columns": columns, "rows": rows, "caption": "", "empty": "No rows."}


def _against(
    steps: pl.DataFrame,
    answer: Answer,
    load: Column,
    *,
    question: str,
    axis: alt.Axis,
    scale: alt.Scale,
    knee: float | None,
) -> alt.TopLevelMixin:
    definition = "capacity_output_tokens_per_second"
    usable = steps.drop_nulls([load.name, "output_tokens_per_second"])
    if usable.is_empty():
        reason = "No step has both a load and an output rate."
        return nothing(question=question, reason=reason, definition=definition)
    x = alt.X("load:Q", title=load.title, axis=axis, scale=scale)
    columns = [
        START,
        load,
        Column("output_tokens_per_second", "output tokens/s", number),
        Column("waiting", "waiting", number),
    ]
    return titled(
        [*_capacity(answer), *_knee(knee), _points(usable, answer, load, x)],
        question=question,
        found=words.capacity_found(answer),
        definition=definition,
        table=table_of(usable, columns),
        height=_CURVE_HEIGHT,
    )


def _points(usable: pl.DataFrame, answer: Answer, load: Column, x: alt.X) -> alt.Chart:
    """A point a step, its colour and shape saying whether requests waited."""
    waits = pl.col("waiting").fill_null(0.0) >= _WAITING_AT_LEAST
    frame = with_milliseconds(usable, answer).select(
        "t",
        "output_tokens_per_second",
        "waiting",
        load=pl.col(load.name),
        state=pl.when(waits).then(pl.lit(_STATES[1])).otherwise(pl.lit(_STATES[0])),
    )
    tips = [
        Tip("load", ".0%" if load.write is percent else ",.1f", load.title),
        Tip("output_tokens_per_second", ",.1f", "output tokens/s"),
        Tip("waiting", ",.1f", "waiting"),
    ]
    colours = alt.Scale(domain=_STATES, range=[theme.LOAD, theme.LIMIT])
    shapes = alt.Scale(domain=_STATES, range=["circle", "triangle-up"])
    chart: alt.Chart = (
        alt.Chart(rounded(frame))
        .mark_point(filled=True, size=45, opacity=0.75)
        .encode(
            x=x,
            y=alt.Y(
                "output_tokens_per_second:Q",
                title="output tokens/s",
                scale=alt.Scale(domainMin=0),
            ),
            color=alt.Color("state:N", title=None, scale=colours),
            shape=alt.Shape("state:N", title=None, scale=shapes),
            tooltip=[time_tooltip(), *(tip.tooltip for tip in tips)],
        )
    )
    return chart


def _capacity(answer: Answer) -> list[alt.Chart]:
    """The capacity as a labelled rule in the band of its interval; nothing where unknown."""
    capacity = answer["saturation"]["capacity_output_tokens_per_second"]
    if capacity["mid"] is None:
        return []
    name = f"capacity {number(capacity['mid'])} tokens/s"
    ends = {key: [capacity[key]] for key in ("low", "mid", "high")}
    base = alt.Chart(pl.DataFrame({**ends, "name": [name]}))
    rule = base.mark_rule(color=theme.LIMIT, strokeDash=[6, 3], strokeWidth=1.5)
    return [
        base.mark_rect(color=theme.LIMIT, opacity=0.15).encode(y=alt.Y("low:Q"), y2=alt.Y2("high")),
        rule.encode(y=alt.Y("mid:Q")),
        *labelled(base, Label(dx=4), colour=theme.LIMIT, x=None, y=alt.Y("high:Q")),
    ]


def _knee(running: float | None) -> list[alt.Chart]:
    if running is None:
        return []
    base = alt.Chart(pl.DataFrame({"load": [running], "name": [f"knee at {number(running)}"]}))
    text = base.mark_text(align="left", baseline="bottom", dx=4, dy=-6, color=theme.SOFT)
    return [
        base.mark_rule(color=theme.SOFT, strokeDash=[2, 3]).encode(x=alt.X("load:Q")),
        text.encode(x=alt.X("load:Q"), y=alt.value(_CURVE_HEIGHT), text=alt.Text("name:N")),
    ]
