"""Charts of money: what it cost over time, and how that hangs on how full the server is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import altair as alt
import polars as pl

from vllm_capacity.render.charts import theme
from vllm_capacity.render.charts.base import (
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
from vllm_capacity.render.charts.time import (
    START,
    time_axis,
    time_tooltip,
    whole_window,
    with_milliseconds,
)
from vllm_capacity.render.numbers import count, percent, usd
from vllm_capacity.render.prose import verdict as words

_BARS_AT_LEAST = 3
_CURVE_POINTS = 60
_TABLE_EVERY = 6
_ROOM_AT_RIGHT = 0.5  # of the width, for a name to the right of its point
_PER_THOUSAND = "format(datum.value * 1000, '$,.3~r')"


def cost_per_request(costs: pl.DataFrame, answer: Answer) -> alt.TopLevelMixin:
    """Cost of a request hour by hour (or minutes by minutes in a short window).

    An hour is billed whether it was busy or not: tall bars are quiet hours. An hour without a
    successful request has no cost each, and no bar; nor has a last one cut to less than half of
    the others, whose cost a handful of requests decides. The table has all of them.
    Columns used: ts, usd_per_request, allocation_usd, successful_requests.
    """
    question, definition = "What did a request cost as time went on?", "usd_per_request"
    if not has_values(costs, "usd_per_request"):
        reason = answer["cost"]["usd_per_request"]["reason"] or "no hour of it has a cost each"
        return nothing(question=question, reason=f"Not known: {reason}.", definition=definition)
    whole = _without_stub(with_milliseconds(costs, answer))
    if whole["usd_per_request"].count() < _BARS_AT_LEAST:
        reason = f"{words.cost_per_request_found(answer)}; too short a window to tell its course."
        return nothing(question=question, reason=reason, definition=definition)
    x = time_axis(answer)
    y = alt.Y(
        "usd_per_request:Q",
        title="dollars per 1,000 requests",
        axis=alt.Axis(labelExpr=_PER_THOUSAND),
    )
    tips = (
        Tip("usd_per_request", "$.3r", "a request"),
        Tip("successful_requests", ",.0f", "successful requests"),
        Tip("allocation_usd", "$.3r", "bill"),
    )
    named = [tip.column for tip in tips]
    frame = whole.select("t", "t_end", *named, zero=pl.lit(0.0))
    bars = (
        alt.Chart(rounded(frame))
        .mark_rect(color=theme.COST, stroke=theme.PAPER, strokeWidth=1)
        .encode(x=x, x2=alt.X2("t_end"), y=y, y2=alt.Y2("zero"))
        .encode(tooltip=[time_tooltip("from (UTC)"), *(tip.tooltip for tip in tips)])
    )
    columns = [
        START,
        Column("successful_requests", "successful requests", count),
        Column("allocation_usd", "bill", usd),
        Column("usd_per_request", "a request", usd),
    ]
    return titled(
        [whole_window(answer, x), bars],
        question=question,
        found=words.cost_per_request_found(answer),
        definition=definition,
        table=table_of(costs, columns),
    )


def cost_by_utilisation(steps: pl.DataFrame, answer: Answer) -> alt.TopLevelMixin:
    """Cost of a million output tokens against utilisation: here, and at the knee.

    The curve is the same bill spread over fewer or more tokens; how wide "here" is says how well
    the capacity is known. Columns used: none of `steps`; the answer's cost figures.
    """
    question, definition = "What would fuller use save?", "utilisation"
    cost = answer["cost"]
    now, used = cost["usd_per_million_output_tokens"], cost["utilisation"]
    knee = cost["usd_per_million_output_tokens_at_knee"]
    unknown = [figure["reason"] for figure in (now, used, knee) if figure["mid"] is None]
    if unknown or not used["low"]:
        reason = unknown[0] if unknown else "nothing was generated"
        return nothing(question=question, reason=f"Not known: {reason}.", definition=definition)
    x = alt.X(
        "utilisation:Q",
        title="share of capacity used",
        axis=alt.Axis(format=".0%", tickCount=6),
        scale=alt.Scale(domain=[0, 1.0]),
    )
    y = alt.Y(
        "usd:Q",
        title="dollars per million output tokens",
        axis=alt.Axis(format="$,.3~r"),
        scale=alt.Scale(domainMin=0),
    )
    curve = _same_bill(knee["mid"], lightest=used["low"])
    line = alt.Chart(curve).mark_line(color=theme.COST, strokeWidth=2).encode(x=x, y=y)
    name = f"you are here: {usd(now['mid'])}"
    is_right = used["mid"] > _ROOM_AT_RIGHT
    # The curve falls to the right: right above it or left below it a name is clear of it.
    label = Label("right", below=True) if is_right else Label("left", dx=8)
    here = _place(now["mid"], used, name, label, x=x, y=y)
    full = {"low": 1.0, "mid": 1.0, "high": 1.0}
    name = f"full: {usd(knee['mid'])}"
    there = _place(knee["mid"], full, name, Label("right", below=True), x=x, y=y)
    columns = [
        Column("utilisation", "share of capacity used", percent),
        Column("usd", "a million output tokens", usd),
    ]
    return titled(
        [line, *here, *there],
        question=question,
        found=words.cost_found(answer),
        definition=definition,
        table=table_of(curve[::_TABLE_EVERY], columns),
        height=260,
    )


def _without_stub(costs: pl.DataFrame) -> pl.DataFrame:
    """The rows without a last one that is shorter than half of the longest."""
    length = pl.col("t_end") - pl.col("t")
    is_last = pl.int_range(pl.len()) == pl.len() - 1
    return costs.filter(~is_last | (2 * length >= length.max()))


def _place(
    dollars: float, used: Mapping[str, Any], name: str, label: Label, *, x: alt.X, y: alt.Y
) -> list[alt.Chart]:
    """A named point on the curve, with the interval of its utilisation as a bar."""
    frame = pl.DataFrame(
        {
            "utilisation": [used["mid"]],
            "usd": [dollars],
            "low": [used["low"]],
            "high": [used["high"]],
            "name": [name],
        }
    )
    tips = [
        Tip("name", "", "where"),
        Tip("utilisation", ".1%", "used"),
        Tip("usd", "$.3r", "a million output tokens"),
    ]
    base = alt.Chart(frame)
    bar = base.mark_rule(color=theme.COST, strokeWidth=5, opacity=0.35)
    dot = base.mark_point(filled=True, size=90, color=theme.COST, opacity=1)
    return [
        bar.encode(x=alt.X("low:Q"), x2=alt.X2("high"), y=y),
        dot.encode(x=x, y=y, tooltip=[tip.tooltip for tip in tips]),
        *labelled(base, label, colour=theme.INK, x=x, y=y),
    ]


def _same_bill(usd_when_full: float, *, lightest: float) -> pl.DataFrame:
    """The curve: the cost when full ÷ utilisation, from half the lightest use seen up to full."""
    first = min(0.5, max(lightest / 2, 0.005))
    ratio = (1 / first) ** (1 / (_CURVE_POINTS - 1))
    used = [first * ratio**i for i in range(_CURVE_POINTS)]
    dollars = [usd_when_full / each for each in used]
    return rounded(pl.DataFrame({"utilisation": used, "usd": dollars}))
