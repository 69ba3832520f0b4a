"""Charts of load, utilization and cost by hour of the week."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import polars as pl
from msgspec import Struct

from vllm_capacity.analysis import Analysis
from vllm_capacity.render.charts import theme
from vllm_capacity.render.charts.base import Chart, DataColumn, Panel, Tip, is_all_zero, table_of
from vllm_capacity.render.charts.week_grid import DAY_PIXELS, DAYS, Cells, week_cells
from vllm_capacity.render.numbers import count, number, percent, plural, usd
from vllm_capacity.verdicts.demand.weeks import MIN_HOURS, hours_of_week

Of = Literal["requests", "utilization", "cost"]


class _Shown(Struct, frozen=True):
    """How cells are drawn: their title, column, unit, number format and color."""

    title: str
    column: str
    unit: str
    write: Callable[..., str]
    format: str
    color: str


_SHOWN: Mapping[str, _Shown] = {
    "requests": _Shown(
        "When do requests come?", "requests", "requests per hour", number, ",.3~r", theme.LOAD
    ),
    "utilization": _Shown(
        "When is capacity used?", "utilization_ratio", "utilization", percent, ".0%", theme.SECOND
    ),
    "cost": _Shown(
        "When is a request expensive?",
        "usd_per_request",
        "dollars per request",
        usd,
        "$,.3~r",
        theme.COST,
    ),
}
_COLUMNS = (
    DataColumn("day", "day", str),
    DataColumn("hour", "hour from", str),
    DataColumn("requests", "requests per hour", number),
    DataColumn("utilization_ratio", "utilization", percent),
    DataColumn("usd_per_request", "dollars per request", usd),
    DataColumn("observed_hours", "hours observed", count),
)


def hour_of_week(analysis: Analysis, *, of: Of = "requests", time_zone: str = "UTC") -> Chart:
    """A cell per hour of the week, stronger for a higher mean; `of` is load, utilization or cost.

    Outlines mark unobserved hours. The hours are those of `time_zone`. The chart is empty for less
    than a day of whole hours.
    Columns used: weekday, hour, observed_hours, requests, utilization_ratio, usd_per_request.
    """
    shown, hours = _SHOWN[of], analysis.hours
    panel = Panel(shown.title, "hour_of_week", half=True)
    if hours.height < MIN_HOURS:
        got = plural(hours.height, "whole hour")
        return panel.empty(f"Needs at least {MIN_HOURS} h of data; this window has {got}.")
    week = hours_of_week(hours, time_zone=time_zone).with_columns(
        day=pl.col("weekday").cast(pl.Int64).replace_strict(dict(enumerate(DAYS, start=1)))
    )
    seen = week.drop_nulls(shown.column)
    if seen.is_empty():
        return panel.empty(f"Not known: {_why(analysis, of)}.")
    caption = _found(seen, shown)
    if is_all_zero(seen, shown.column):
        return panel.empty(f"{caption}.")
    tips = [Tip("day", "", "day"), Tip("hour", ".0f", "hour from")]
    tips += [Tip(each.column, each.format, each.unit) for each in _SHOWN.values()]
    tips += [Tip("observed_hours", ".0f", "hours observed")]
    return panel.chart(
        week_cells(
            week, Cells(shown.column, shown.unit, shown.format, shown.color, tips), time_zone
        ),
        caption=caption,
        table=table_of(week.filter(pl.col("observed_hours") > 0), _COLUMNS),
        height=len(DAYS) * DAY_PIXELS,
    )


def _why(analysis: Analysis, of: Of) -> str:
    """Why no hour has this figure."""
    cost = analysis.answer.cost
    reason = cost.utilization.reason if of == "utilization" else cost.usd_per_request.reason
    return (reason or "no hour of the week has it").rstrip(".")


def _found(seen: pl.DataFrame, shown: _Shown) -> str:
    """The highest and the lowest hour of the week."""
    ordered = seen.sort(shown.column, descending=True, maintain_order=True)
    most, least = ordered.row(0, named=True), ordered.row(-1, named=True)

    def hour(row: Mapping[str, object]) -> str:
        value = shown.write(row[shown.column])
        return f"{row['day']} from {row['hour']:02}:00, {value}"

    if shown.write(most[shown.column]) == shown.write(least[shown.column]):
        return f"The same in every hour: {shown.write(most[shown.column])} ({shown.unit})"
    return f"Highest on {hour(most)}; lowest on {hour(least)} ({shown.unit})"
