"""Charts of limits: what the server was short of, and at what load."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import polars as pl

from vllm_capacity.load_curve import LoadCurve
from vllm_capacity.render.charts import theme
from vllm_capacity.render.charts.against_load import (
    CLEAR_OF_POINTS,
    EMPTY_RATIO,
    KV_CACHE,
    QUEUED,
    RUNNING,
    Load,
    Shown,
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
    clock,
    has_values,
    labelled,
    nothing,
    rounded,
    table_of,
    titled,
)
from vllm_capacity.render.charts.time import (
    START,
    Limit,
    Line,
    milliseconds,
    over_time,
    time_axis,
    time_tooltip,
    whole_window,
)
from vllm_capacity.render.numbers import count, instant, number, percent
from vllm_capacity.render.prose import verdict as words

_REGIME_COLOURS = {
    "idle": theme.SHADE,
    "client-bound": theme.LOAD,
    "scheduler-bound": theme.LIMIT,
    "kv-bound": theme.KV,
    "prefill-bound": theme.PREFILL,
    "unknown": theme.LINE,
}
HEIGHT = 280
_NAMED_AT = 0.3
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
    most = answer["kv_cache_ratio"]["max"]
    if most is not None and most < EMPTY_RATIO:  # a line that lies on the axis
        reason = f"{words.kv_found(answer)}."
        return nothing(question=question, reason=reason, definition=definition)
    layers = over_time(
        steps,
        answer,
        [
            Line("kv_cache_ratio_max", "highest", theme.SOFT),
            Line("kv_cache_ratio_mean", "mean", theme.KV),
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


def saturation_curve(
    steps: pl.DataFrame, answer: Answer, engine: LoadCurve | None = None
) -> alt.TopLevelMixin:
    """Output tokens a second against running requests, a point a step, with the capacity as a band.

    Read it left to right: the knee is where more requests bring no more tokens. The curve is fitted
    to the steps, its shade is where it would lie on other draws of them; it ends at the capacity.
    Of several engines `engine` is drawn, alone; without it, or where the loads seen let no capacity
    be told, there is no curve. Steps with a gap or a restart are left out.
    Columns used: ts, is_gap, is_restart, running, output_tokens_per_second, waiting.
    """
    return _output(
        shown(steps, answer, engine),
        RUNNING,
        question="At what load does output stop rising?",
        fitted=engine,
    )


def kv_saturation_curve(
    steps: pl.DataFrame, answer: Answer, engine: LoadCurve | None = None
) -> alt.TopLevelMixin:
    """Output tokens a second against KV-cache use, a point a step, with the capacity as a band.

    Where points pile up at the right under a flat top, memory is what output waits for. Steps with
    a gap or a restart are left out. Of several engines `engine` is drawn, alone.
    Columns used: ts, is_gap, is_restart, kv_cache_ratio_mean, output_tokens_per_second, waiting.
    """
    question = "Does output stop rising when the KV cache is full?"
    return _output(shown(steps, answer, engine), KV_CACHE, question=question)


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


def _output(
    of: Shown, load: Load, *, question: str, fitted: LoadCurve | None = None
) -> alt.TopLevelMixin:
    definition = "capacity_output_tokens_per_second"
    usable = of.steps.drop_nulls([load.column.name, "output_tokens_per_second"])
    if usable.is_empty():
        reason = f"No step tells both an output rate and this load ({load.column.title})."
        return nothing(question=question, reason=reason, definition=definition, half=True)
    if why := too_empty(load, of):
        return nothing(question=question, reason=why, definition=definition, half=True)
    found = f"{words.capacity_found(of.answer)}{_scattered(of.answer)}"
    found += fullest(of.answer) if load is KV_CACHE else ""
    columns = [
        START,
        load.column,
        Column("output_tokens_per_second", "output tokens/s", number),
        Column("waiting", "waiting", number),
    ]
    return titled(
        [
            *_capacity(of.answer),
            *limit_of(load, of),
            *_curve(fitted, load.x),
            _points(usable, load),
        ],
        question=question,
        found=f"{of.found(found)}{_unfitted(fitted, of)}",
        definition=definition,
        table=table_of(usable, columns),
        height=HEIGHT,
        half=True,
    )


def _points(usable: pl.DataFrame, load: Load) -> alt.Chart:
    """A point a step, its colour and shape saying whether requests waited."""
    return scatter(
        usable.select(
            "t",
            "output_tokens_per_second",
            "waiting",
            load=load.column.name,
            state=QUEUED.name,
        ),
        load,
        y=alt.Y(
            "output_tokens_per_second:Q",
            title="output tokens/s",
            axis=alt.Axis(labelPadding=CLEAR_OF_POINTS),
            scale=alt.Scale(domainMin=0),
        ),
        states=QUEUED.colours,
        tips=[
            Tip("output_tokens_per_second", ",.1f", "output tokens/s"),
            Tip("waiting", ",.1f", "waiting"),
        ],
    )


def _curve(fitted: LoadCurve | None, x: alt.X) -> list[alt.Chart]:
    """The fitted curve in its band, named below its bend; nothing where there is no fit."""
    if fitted is None or fitted.curve.is_empty():
        return []
    frame = rounded(fitted.curve.rename({"running_requests": "load"}))
    base = alt.Chart(frame).encode(x=x)
    spot = frame[round(_NAMED_AT * frame.height)].with_columns(name=pl.lit("fitted curve"))
    label = Label(below=True, dx=8)
    return [
        base.mark_area(color=theme.INK, opacity=0.15).encode(y=alt.Y("low:Q"), y2=alt.Y2("high")),
        base.mark_line(color=theme.INK, strokeWidth=1.5).encode(y=alt.Y("mid:Q")),
        *labelled(alt.Chart(spot), label, colour=theme.INK, x=x, y=alt.Y("mid:Q")),
    ]


def _scattered(answer: Answer) -> str:
    """Why points lie outside the band of a capacity that was seen: it is that of their mean."""
    capacity = answer["saturation"]["capacity_output_tokens_per_second"]
    if capacity["mid"] is None or words.is_extrapolated(answer["saturation"]):
        return ""
    return ", the mean of steps that scatter about it"


def _unfitted(fitted: LoadCurve | None, of: Shown) -> str:
    """What the curve was not fitted to, where its steps are finer than those drawn."""
    if fitted is None or fitted.curve.is_empty() or fitted.left_out == of.left_out:
        return ""
    return f"; the curve's own finer steps leave out {count(fitted.left_out)}"


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
