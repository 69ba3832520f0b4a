"""The common parts of charts over time: the time axis, shaded gaps, restart marks, limits.

Charts get times in milliseconds since the epoch, and show them in the charts' time zone (`zone.py`;
UTC by default), whatever the reader's own zone.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import altair as alt
import polars as pl
from msgspec import Struct

from vllm_capacity.render.charts import theme
from vllm_capacity.render.charts.base import (
    HEIGHT,
    DataColumn,
    Label,
    Tip,
    clock,
    labelled,
    pointer,
    rounded,
    y_at,
)
from vllm_capacity.render.charts.zone import UTC_CLOCK, clock_of_charts
from vllm_capacity.timerange import TimeRange

START = DataColumn("start", "from (UTC)", clock)
_LONG_HOURS = 36.0
_TIME_LABELS = (  # midnight is labeled with its date, other times as finely as needed
    "utcFormat({at}, utcseconds({at}) ? '%H:%M:%S' : "
    "utchours({at}) || utcminutes({at}) ? '%H:%M' : '%-d %b')"
)
_LOCAL = "_local"  # suffix of columns that hold local time
_IS_UNSEEN = pl.col("is_gap") & pl.col("running_mean").is_null()  # a step without any scrape


class Line(Struct, frozen=True):
    """One line over time: its column, its name on the chart, its color; `band` adds its bounds."""

    column: str
    name: str
    color: str
    dash: tuple[int, int] | None = None
    band: bool = False


class Limit(Struct, frozen=True):
    """A labeled level that should not be crossed."""

    value: float
    name: str


def over_time(
    steps: pl.DataFrame,
    time_range: TimeRange,
    lines: Sequence[Line],
    *,
    unit: str,
    tips: Sequence[Tip],
    limits: Sequence[Limit] = (),
    axis: alt.Axis | None = None,
) -> list[alt.Chart]:
    """The layers of lines over the time range; `unit` is the title of the y axis.

    Several lines are named in a legend, because a label beside a line would cover another line.
    Columns used: start, end, is_gap, is_restart, running_mean, those of the tips, and the lines'
    (with `_lower` and `_upper` where banded).
    """
    frame = _timed(steps, lines, tips)
    x = time_axis(time_range)
    base = alt.Chart(frame).encode(x=x)
    layers = [whole_window(time_range, x), *unscraped(steps, x)]
    for line in lines:
        layers += _drawn(base, line, unit=unit, axis=axis, named=lines if len(lines) > 1 else ())
    peak = _peak(frame, lines)
    for limit in limits:
        layers += _limit(limit, is_top=limit.value >= peak)
    layers += restarts(steps, x)
    dots = base.mark_point(filled=True, size=60, color=theme.INK)
    dots = dots.encode(y=alt.Y(f"{lines[0].column}:Q"))
    return [
        *layers,
        pointer(timed(dots), [time_tooltip(), *(tip.tooltip for tip in tips)], key="t"),
    ]


def whole_window(time_range: TimeRange, x: alt.X) -> alt.Chart:
    """A hidden layer that makes the time axis span the time range, whatever the data spans.

    Why not set the domain: Vega-Lite 6.4 breaks a time scale whose domain is set by several layers.
    """
    ends = pl.DataFrame({"ts": [time_range.start, time_range.end]}).select(t=milliseconds("ts"))
    layer: alt.Chart = alt.Chart(ends).mark_point(opacity=0, size=0).encode(x=x)
    return layer


def time_axis(time_range: TimeRange) -> alt.X:
    """The x axis shared by all charts over time; `whole_window` sets its range.

    Its labels are in the charts' time zone, which its title names.
    """
    is_long = time_range.hours > _LONG_HOURS
    clock = clock_of_charts()
    first = clock.wall(time_range.start)
    # Vega's own ticks are round in UTC. Local ones are an expression: Vega-Lite would turn bare
    # numbers into dates in a way that the page's expression interpreter does not support.
    is_utc = clock == UTC_CLOCK
    at = "datum.value" if is_utc else clock.local("datum.value")
    return alt.X(
        "t:T",
        scale=alt.Scale(type="utc", nice=False),
        axis=alt.Axis(
            labelExpr=_TIME_LABELS.format(at=at),
            tickCount=6 if is_utc else alt.Undefined,  # with values, it drops every second tick
            values=alt.Undefined if is_utc else alt.ExprRef(expr=str(clock.ticks(time_range))),
            title=f"time ({clock.zone}), {'from ' if is_long else ''}{first:%-d %b %Y}",
            titleAlign="left",
            titleAnchor="start",
        ),
    )


def time_tooltip(title: str = "time", *, column: str = "t") -> alt.Tooltip:
    """The time in a tooltip of marks that went through `timed`; the title gets the zone's name.

    The time unit keeps Vega from using the reader's own zone.
    """
    clock = clock_of_charts()
    shown = column if clock == UTC_CLOCK else f"{column}{_LOCAL}"
    return alt.Tooltip(
        f"utcyearmonthdatehoursminutesseconds({shown}):T",
        format="%-d %b %H:%M:%S",
        title=f"{title} ({clock.zone})",
    )


def timed(marks: alt.Chart, *columns: str) -> alt.Chart:
    """The marks with the local times that `time_tooltip` shows for these columns (`t` if none)."""
    clock = clock_of_charts()
    if clock == UTC_CLOCK:
        return marks
    shown = {f"{name}{_LOCAL}": clock.local(f"datum.{name}") for name in columns or ("t",)}
    made: alt.Chart = marks.transform_calculate(**shown)
    return made


def milliseconds(column: str) -> pl.Expr:
    """The column's times in milliseconds since the epoch."""
    return pl.col(column).dt.epoch("ms")


def with_milliseconds(steps: pl.DataFrame) -> pl.DataFrame:
    """The frame with `t` and `t_end`: its `start` and `end` in milliseconds since the epoch."""
    return steps.with_columns(t=milliseconds("start"), t_end=milliseconds("end"))


def _timed(steps: pl.DataFrame, lines: Sequence[Line], tips: Sequence[Tip]) -> pl.DataFrame:
    named = [*(line.column for line in lines), *(tip.column for tip in tips)]
    named += [f"{line.column}{end}" for line in lines if line.band for end in ("_lower", "_upper")]
    return rounded(with_milliseconds(steps).select("t", *dict.fromkeys(named)))


def without_lost(steps: pl.DataFrame, *columns: str) -> pl.DataFrame:
    """The frame with these columns null where a restart lost counts.

    A counter keeps counting, so its mean rate over a gap is known. If the server restarts inside
    the gap, earlier counts are lost, and a rate from the new zero would be wrong.
    """
    is_lost = _IS_UNSEEN & pl.col("is_restart")
    return steps.with_columns(pl.when(~is_lost).then(pl.col(name)).alias(name) for name in columns)


def over_gaps(steps: pl.DataFrame) -> str:
    """How rates cover gaps in scraping, to end a sentence; empty if there are none."""
    is_spread = steps.select((_IS_UNSEEN & ~pl.col("is_restart")).any()).item()
    return "; where nothing was scraped, its mean over the gap" if is_spread else ""


def _drawn(
    base: alt.Chart, line: Line, *, unit: str, axis: alt.Axis | None, named: Sequence[Line]
) -> list[alt.Chart]:
    look = alt.Axis() if axis is None else axis
    scale = alt.Scale(domainMin=0, zero=True, nice=True)

    def y(column: str) -> alt.Y:
        return alt.Y(f"{column}:Q", title=unit, axis=look, scale=scale)

    stroke = base.mark_line(
        color=line.color,
        strokeWidth=2,
        strokeDash=list(line.dash) if line.dash else alt.Undefined,
        point=alt.OverlayMarkDef(size=8, color=line.color, filled=True),
    ).encode(y=y(line.column))
    if named:
        colors = alt.Scale(domain=[n.name for n in named], range=[n.color for n in named])
        legend = alt.Legend(symbolType="stroke", symbolStrokeWidth=3)
        color = alt.Color("line:N", title=None, scale=colors, legend=legend)
        stroke = stroke.transform_calculate(line=json.dumps(line.name)).encode(color=color)
    if not line.band:
        return [stroke]
    band = base.mark_area(color=line.color, opacity=0.2)
    return [band.encode(y=y(f"{line.column}_upper"), y2=alt.Y2(f"{line.column}_lower")), stroke]


def _limit(limit: Limit, *, is_top: bool) -> list[alt.Chart]:
    base = alt.Chart(pl.DataFrame({"limit": [limit.value], "name": [limit.name]}))
    y = alt.Y("limit:Q")
    rule = base.mark_rule(color=theme.LIMIT, strokeDash=[6, 3], strokeWidth=1.5).encode(y=y)
    label = Label(below=is_top, dx=4)
    return [rule, *labelled(base, label, color=theme.LIMIT, x=None, y=y)]


def _peak(frame: pl.DataFrame, lines: Sequence[Line]) -> float:
    columns = [name for line in lines for name in (line.column, f"{line.column}_upper")]
    values = [frame[name].max() for name in columns if name in frame.columns]
    return max([0.0, *(float(value) for value in values if isinstance(value, int | float))])


def unscraped(steps: pl.DataFrame, x: alt.X) -> list[alt.Chart]:
    """Spans without a scrape, shaded and labeled; a gap within a step or two shades those steps.

    A step in which a gap only begins or ends has scrapes of its own: its values are drawn,
    unshaded.
    """
    if not steps["is_gap"].any():
        return []
    has_unseen = _IS_UNSEEN.any().over(pl.col("is_gap").rle_id())
    is_short = pl.col("is_gap") & ~has_unseen
    name = pl.when(_IS_UNSEEN).then(pl.lit("not scraped")).when(is_short).then(pl.lit("gap"))
    spans = (
        with_milliseconds(steps)
        .with_columns(name=name)
        .with_columns(span=pl.col("name").rle_id())
        .drop_nulls("name")
        .group_by("span", "name", maintain_order=True)
        .agg(pl.col("t").min(), pl.col("t_end").max())
        .select("t", "t_end", "name")
    )
    base = alt.Chart(spans).encode(x=x)
    text = base.mark_text(align="left", baseline="top", dx=3, dy=3, color=theme.SOFT)
    return [
        base.mark_rect(color=theme.SHADE).encode(x2=alt.X2("t_end")),
        text.encode(y=y_at(0), text=alt.Text("name:N")),
    ]


def restarts(steps: pl.DataFrame, x: alt.X) -> list[alt.Chart]:
    """A labeled mark at each restart; a restart that spans several steps is marked at the last."""
    if not steps["is_restart"].any():
        return []
    is_last = pl.col("is_restart") & ~pl.col("is_restart").shift(-1).fill_null(False)
    spots = with_milliseconds(steps).filter(is_last)
    base = alt.Chart(spots.select("t", name=pl.lit("restart"))).encode(x=x)
    text = base.mark_text(align="left", baseline="bottom", dx=3, dy=-3, color=theme.INK)
    return [
        base.mark_rule(color=theme.INK, strokeDash=[2, 2]),
        text.encode(y=y_at(HEIGHT), text=alt.Text("name:N")),
    ]
