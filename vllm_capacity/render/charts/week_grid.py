"""A week as a grid of cells, a row per day and a column per hour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import altair as alt
import polars as pl
from msgspec import Struct

from vllm_capacity.render.charts import theme
from vllm_capacity.render.charts.base import Tip, rounded

DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
DAY_PIXELS = 26


class Cells(Struct, frozen=True):
    """How cells are drawn: column, legend title, D3 format, color and tips."""

    column: str
    title: str
    format: str
    color: str
    tips: Sequence[Tip]


def week_cells(week: pl.DataFrame, shown: Cells, time_zone: str) -> list[alt.Chart]:
    """A cell per hour of the week, shaded by its value in the column; an outline if that is null.

    Columns used: day, hour, the column, and those of the tips.
    """
    hours = alt.Axis(values=list(range(0, 24, 3)))
    at: Mapping[str, alt.X | alt.Y] = {
        "x": alt.X("hour:O", title=f"hour of the day ({time_zone})", axis=hours),
        "y": alt.Y("day:O", title="day of the week", sort=list(DAYS)),
    }
    # Opacity, not a color range: the color stays a CSS variable, which also suits dark paper.
    strength = alt.Opacity(
        f"{shown.column}:Q",
        title=shown.title,
        scale=alt.Scale(domainMin=0, range=[0.06, 1.0]),
        legend=alt.Legend(
            format=shown.format, tickCount=4, symbolType="square", symbolFillColor=shown.color
        ),
    )
    never = alt.Chart(week.filter(pl.col(shown.column).is_null()).select("day", "hour"))
    outlines = never.mark_rect(fillOpacity=0, stroke=theme.GRID, strokeWidth=1)
    cells = alt.Chart(rounded(week.drop_nulls(shown.column))).mark_rect(color=shown.color)
    tips = [tip.tooltip for tip in shown.tips]
    return [outlines.encode(**at), cells.encode(**at, opacity=strength, tooltip=tips)]
