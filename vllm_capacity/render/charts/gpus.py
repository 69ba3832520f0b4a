"""Token cost on other GPUs at the same interactivity: a curve per GPU, a point per load."""

from __future__ import annotations

import altair as alt
import polars as pl

from vllm_capacity.plan import Plan
from vllm_capacity.render.charts import theme
from vllm_capacity.render.charts.base import (
    Chart,
    DataColumn,
    Panel,
    pointer,
    rounded,
    table_of,
    tips_of,
    y_at,
)
from vllm_capacity.render.numbers import number, seconds, usd
from vllm_capacity.render.prose import captions
from vllm_capacity.verdicts.hardware.interactivity import GpuCurve, Interactivity

_HEIGHT = 260
_COLORS = (theme.INK, theme.LOAD, theme.COST, theme.KV, theme.PREFILL)
_SHAPES = ("circle", "square", "triangle-up", "diamond", "cross")
_SCHEMA = {
    "gpu": pl.String,
    **dict.fromkeys(
        ("running", "itl", "itl_low", "itl_high", "usd", "usd_low", "usd_high", "output"),
        pl.Float64,
    ),
}


def cost_by_itl(plan: Plan | Interactivity) -> Chart:
    """Dollars per million output tokens against ITL, a line per GPU, the ITL target as a rule.

    It draws a plan, or curves alone. Each point is a load: at the ITL that users are promised, the
    lowest curve is the cheapest GPU. Thin lines, at three loads of each, span the best and worst
    case of throughput and price. Columns used: none; the curves.
    """
    panel = Panel("What do tokens cost at the same interactivity?", "interactivity")
    found = plan.interactivity if isinstance(plan, Plan) else plan
    if not found.curves:
        return panel.empty(f"Not known: {(found.reason or 'no GPU was compared').rstrip('.')}.")
    frame, first = _frame(found.curves), found.curves[0]
    columns = [
        DataColumn("gpu", "GPU", str, ""),
        DataColumn("running", "running requests", number, ",.3~r"),
        DataColumn("itl", first.itl, seconds, ".3~s"),
        DataColumn("itl_low", "at least", seconds, ".3~s"),
        DataColumn("itl_high", "at most", seconds, ".3~s"),
        DataColumn("usd", "per million output tokens", usd, "$.3~r"),
        DataColumn("usd_low", "at least", usd, "$.3~r"),
        DataColumn("usd_high", "at most", usd, "$.3~r"),
        DataColumn("output", "output tokens/s", number, ",.3~r"),
    ]
    layers = [
        *_lines(frame, found.curves),
        *_target(found),
        pointer(
            _base(frame, found.curves).mark_point(filled=True, size=90, opacity=1),
            [tip.tooltip for tip in tips_of(columns)],
            key="place",
        ),
    ]
    return panel.chart(
        layers,
        caption=captions.interactivity_found(found),
        table=table_of(frame, columns),
        height=_HEIGHT,
    )


def _frame(curves: tuple[GpuCurve, ...]) -> pl.DataFrame:
    """A row per load of each curve, lightest first."""
    rows = [
        (
            curve.gpu,
            load.running_requests,
            *(load.itl_seconds.mid, load.itl_seconds.low, load.itl_seconds.high),
            *(getattr(load.usd_per_million_output_tokens, end) for end in ("mid", "low", "high")),
            load.output_tokens_per_second.mid,
        )
        for curve in curves
        for load in curve.loads
    ]
    return pl.DataFrame(rows, schema=_SCHEMA, orient="row").with_row_index("place")


def _x(column: str, title: str) -> alt.X:
    axis = alt.Axis(labelExpr="format(datum.value * 1000, ',')", tickCount=6, grid=True)
    return alt.X(f"{column}:Q", title=title, axis=axis, scale=alt.Scale(type="log", nice=False))


def _y(column: str) -> alt.Y:
    axis = alt.Axis(format="$,.2~r", tickCount=6)
    title = "dollars per million output tokens (log scale)"
    return alt.Y(f"{column}:Q", title=title, axis=axis, scale=alt.Scale(type="log", nice=False))


def _base(frame: pl.DataFrame, curves: tuple[GpuCurve, ...]) -> alt.Chart:
    names = [curve.gpu for curve in curves]
    colors = alt.Scale(domain=names, range=list(_COLORS[: len(names)]))
    shapes = alt.Scale(domain=names, range=list(_SHAPES[: len(names)]))
    legend = alt.Legend(columns=1, labelLimit=320)
    title = _title(curves[0])
    made: alt.Chart = alt.Chart(rounded(frame)).encode(
        x=_x("itl", title),
        y=_y("usd"),
        color=alt.Color("gpu:N", title=None, scale=colors, legend=legend),
        shape=alt.Shape("gpu:N", title=None, scale=shapes, legend=legend),
    )
    return made


def _lines(frame: pl.DataFrame, curves: tuple[GpuCurve, ...]) -> list[alt.Chart]:
    base = _base(frame, curves)
    title = _title(curves[0])
    bare = alt.Chart(rounded(frame)).encode(color=base.encoding.color)
    some = alt.Chart(rounded(_some(frame))).encode(color=base.encoding.color)
    return [
        some.mark_rule(strokeWidth=1, opacity=0.45).encode(
            x=_x("itl_low", title), x2=alt.X2("itl_high"), y=_y("usd_low"), y2=alt.Y2("usd_high")
        ),
        bare.mark_line(strokeWidth=2).encode(
            x=_x("itl", title), y=_y("usd"), order=alt.Order("running:Q")
        ),
        base.mark_point(filled=True, size=40, opacity=1),
    ]


def _some(frame: pl.DataFrame) -> pl.DataFrame:
    """The lightest, middle and heaviest load of each GPU; more intervals would overlap."""
    place, count = pl.int_range(pl.len()).over("gpu"), pl.len().over("gpu")
    return frame.filter((place == 0) | (place == count // 2) | (place == count - 1))


def _title(curve: GpuCurve) -> str:
    return f"{curve.itl}, milliseconds (log scale)"


def _target(found: Interactivity) -> list[alt.Chart]:
    """The ITL target, if there is one and the curves were made for its statistic."""
    target, curve = found.itl_target_seconds, found.curves[0]
    if target is None:
        return []
    title = _title(curve)
    frame = pl.DataFrame({"target": [target], "name": [f"p95 target {seconds(target)}"]})
    base = alt.Chart(frame).encode(x=_x("target", title))
    text = base.mark_text(align="right", baseline="top", dx=-4, dy=4, color=theme.LIMIT)
    return [
        base.mark_rule(color=theme.LIMIT, strokeDash=[6, 3], strokeWidth=1.5),
        text.encode(y=y_at(0), text=alt.Text("name:N")),
    ]
