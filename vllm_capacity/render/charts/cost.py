"""Cost charts: cost over time, and how it depends on utilization."""

from __future__ import annotations

import altair as alt
import polars as pl

from vllm_capacity.analysis import Analysis
from vllm_capacity.estimate import Estimate
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
)
from vllm_capacity.render.charts.time import (
    START,
    time_axis,
    time_tooltip,
    timed,
    whole_window,
    with_milliseconds,
)
from vllm_capacity.render.numbers import count, percent, reason, usd, value
from vllm_capacity.render.prose import captions
from vllm_capacity.verdicts.cost.by_utilization import cost_by_utilization as same_bill

_MIN_BARS = 3
_CURVE_HEIGHT = 260
_TABLE_EVERY = 6
_ROOM_AT_RIGHT = 0.5  # above this utilization, a name goes to the left of its point
_PER_THOUSAND = "format(datum.value * 1000, '$,.3~r')"
_MILLION = "usd_per_million_output_tokens"


def cost_per_request(analysis: Analysis) -> Chart:
    """Cost per request by hour (or by minutes in a short window).

    An hour is billed whether it was busy or not: tall bars are quiet hours. An hour without a
    successful request has no cost per request, so no bar. The last hour has no bar if the window
    cuts it to less than half of the others, because a few requests decide its cost. The table has
    all hours.
    Columns used: start, end, usd_per_request, allocation_usd, successful_requests, is_stub.
    """
    panel, costs = Panel("Cost per request over time", "cost_over_time"), analysis.costs
    if not has_values(costs, "usd_per_request"):
        per_request = analysis.answer.cost.per_request
        why = per_request.reason or "there is no part of the window for which it is known"
        return panel.empty(f"Not known: {why}.")
    caption = captions.cost_per_request_found(analysis.answer)
    whole = costs.filter(~pl.col("is_stub"))
    if whole["usd_per_request"].count() < _MIN_BARS:
        return panel.empty(f"{caption}; the window is too short to show how it changed.")
    x = time_axis(analysis.time_range)
    columns = [
        START,
        DataColumn("successful_requests", "successful requests", count),
        DataColumn("allocation_usd", "bill", usd),
        DataColumn("usd_per_request", "cost per request", usd),
    ]
    return panel.chart(
        [whole_window(analysis.time_range, x), _cost_bars(whole, x)],
        caption=caption,
        table=table_of(costs, columns),
    )


def cost_by_utilization(analysis: Analysis) -> Chart:
    """Cost per million output tokens against utilization: in this window and at full capacity.

    The curve spreads the same bill over fewer or more tokens. The width of this window's interval
    shows how well the capacity is known. Columns used: none; the answer's cost figures.
    """
    panel, cost = Panel("Savings at higher utilization", "utilization"), analysis.answer.cost
    now, full = cost.usd_per_million_output_tokens, cost.usd_per_million_output_tokens_at_knee
    curve = same_bill(cost)
    unknown = [figure for figure in (now, cost.utilization, full) if not figure.is_known]
    if unknown or curve.is_empty():
        why = reason(unknown[0]) if unknown else "nothing was generated"
        return panel.empty(f"Not known: {why}.")
    x = alt.X(
        "utilization:Q",
        title="utilization (share of capacity)",
        axis=alt.Axis(format=".0%", tickCount=6),
        scale=alt.Scale(domain=[0, 1.0]),
    )
    y = alt.Y(
        f"{_MILLION}:Q",
        title="dollars per million output tokens",
        axis=alt.Axis(format="$,.3~r"),
        scale=alt.Scale(domainMin=0),
    )
    line = alt.Chart(rounded(curve)).mark_line(color=theme.COST, strokeWidth=2).encode(x=x, y=y)
    is_right = (cost.utilization.mid or 0.0) > _ROOM_AT_RIGHT
    # The curve falls to the right, so a label above right or below left of a point is clear of it.
    label = Label("right", below=True) if is_right else Label("left", dx=8)
    here = _place("this window", now, cost.utilization, label, x=x, y=y)
    there = _place("full", full, Estimate.exact(1.0), Label("right", below=True), x=x, y=y)
    columns = [
        DataColumn("utilization", "utilization", percent),
        DataColumn(_MILLION, "per million output tokens", usd),
    ]
    return panel.chart(
        [line, *here, *there],
        caption=captions.cost_found(analysis.answer),
        table=table_of(curve[::_TABLE_EVERY], columns),
        height=_CURVE_HEIGHT,
    )


def _cost_bars(costs: pl.DataFrame, x: alt.X) -> alt.Chart:
    """A bar per row, as wide as it lasted; no bar if its cost per request is unknown."""
    y = alt.Y(
        "usd_per_request:Q",
        title="dollars per 1,000 requests",
        axis=alt.Axis(labelExpr=_PER_THOUSAND),
    )
    tips = (
        Tip("usd_per_request", "$.3r", "cost per request"),
        Tip("successful_requests", ",.0f", "successful requests"),
        Tip("allocation_usd", "$.3r", "bill"),
    )
    named = [tip.column for tip in tips]
    frame = with_milliseconds(costs).select("t", "t_end", *named, zero=pl.lit(0.0))
    bars: alt.Chart = (
        timed(alt.Chart(rounded(frame)))
        .mark_rect(color=theme.COST, stroke=theme.PAPER, strokeWidth=1)
        .encode(x=x, x2=alt.X2("t_end"), y=y, y2=alt.Y2("zero"))
        .encode(tooltip=[time_tooltip("from"), *(tip.tooltip for tip in tips)])
    )
    return bars


def _place(
    where: str, cost: Estimate, used: Estimate, label: Label, *, x: alt.X, y: alt.Y
) -> list[alt.Chart]:
    """A labeled point on the curve, with the interval of its utilization as a bar."""
    frame = pl.DataFrame(
        {
            "utilization": [used.mid],
            _MILLION: [cost.mid],
            "low": [used.low],
            "high": [used.high],
            "name": [f"{where}: {value(cost, usd)}"],
        }
    )
    tips = [
        Tip("name", "", "where"),
        Tip("utilization", ".1%", "utilization"),
        Tip(_MILLION, "$.3r", "per million output tokens"),
    ]
    base = alt.Chart(frame)
    bar = base.mark_rule(color=theme.COST, strokeWidth=5, opacity=0.35)
    dot = base.mark_point(filled=True, size=90, color=theme.COST, opacity=1)
    return [
        bar.encode(x=alt.X("low:Q"), x2=alt.X2("high"), y=y),
        dot.encode(x=x, y=y, tooltip=[tip.tooltip for tip in tips]),
        *labelled(base, label, color=theme.INK, x=x, y=y),
    ]
