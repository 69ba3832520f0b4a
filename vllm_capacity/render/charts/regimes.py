"""The chart of each engine's bottleneck over time, in as much detail as is visible.

A few stretches are drawn as they are. If an engine alternates between two regimes all day, its
strip shows the share of time in each, step by step; many engines get a row of cells each.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import altair as alt
import polars as pl
from msgspec import Struct

from vllm_capacity.analysis import Analysis
from vllm_capacity.figures.series import MAX_POINTS, readable_step_seconds
from vllm_capacity.render.charts import theme
from vllm_capacity.render.charts.base import (
    Chart,
    DataColumn,
    Panel,
    Tip,
    clock,
    rounded,
    table_of,
    x_at,
)
from vllm_capacity.render.charts.time import (
    START,
    time_axis,
    time_tooltip,
    timed,
    whole_window,
    with_milliseconds,
)
from vllm_capacity.render.engines import short_names
from vllm_capacity.render.prose import captions
from vllm_capacity.render.prose.verdict import REGIMES
from vllm_capacity.render.report import MAX_ROWS
from vllm_capacity.verdicts.saturation import regimes as judged
from vllm_capacity.verdicts.saturation.fit import Stretch
from vllm_capacity.verdicts.saturation.regime_shares import leading_regimes, regime_shares

_COLORS = {
    judged.IDLE: theme.SHADE,
    judged.CLIENT: theme.LOAD,
    judged.SCHEDULER: theme.LIMIT,
    judged.KV: theme.KV,
    judged.PREFILL: theme.PREFILL,
    judged.UNKNOWN: theme.LINE,
}
_MAX_STRETCHES = 600  # in total; more are too thin to see
_FEW_ENGINES = 12
_MAX_MARKS = 3000  # in total; more are too slow to draw on a page
_REGIMES_A_STEP = 3
_STRIP_HEIGHT = 40  # of a single engine
_ROW_HEIGHT, _NAME_SHARE = 38, 0.45  # per engine, if several; share of it for the name
_CELL_HEIGHT = 14  # per engine, if many
_NAME_PIXELS, _LETTER_PIXELS = 120, 8  # maximum width of a name on the left; width of a letter
_LEGEND_COLUMNS = 2  # as many as fit a phone
_MIN_OPACITY = 0.35


def regimes(analysis: Analysis) -> Chart:
    """The bottleneck over time: a strip per engine, a color per bottleneck.

    For many stretches, a strip shows the share of time in each regime, step by step. More than
    twelve engines get a row of cells each, most limited first. A cell has the color of the limit
    that applied for at least a tenth of its time, else of the regime with the most time; stronger
    for longer.
    Columns used: none; the answer's regimes with their evidence.
    """
    panel = Panel("What was the bottleneck, and when?", "regime")
    stretches = analysis.answer.saturation.regimes
    if not stretches:
        return panel.empty("No step of this window could be judged.")
    picture = _picture(analysis, stretches)
    x = time_axis(analysis.time_range)
    return panel.chart(
        [whole_window(analysis.time_range, x), *picture.layers],
        caption=f"{captions.regime_found(analysis.answer)}{picture.caption}",
        table=_table(stretches),
        height=picture.height,
    )


class _Picture(Struct, frozen=True):
    """The layers of a chart, its height, and an addition to its caption."""

    layers: Sequence[alt.Chart]
    height: int
    caption: str = ""


def _picture(analysis: Analysis, stretches: Sequence[Stretch]) -> _Picture:
    x = time_axis(analysis.time_range)
    times = captions.engine_times(analysis.answer)
    ranked = [each.engine for each in times]
    if len(ranked) <= _FEW_ENGINES and len(stretches) <= _MAX_STRETCHES:
        strips = _strips(_stretch_frame(stretches), x, _engine_axis(len(ranked)))
        return _Picture([strips], _height(len(ranked)))
    is_few = len(ranked) <= _FEW_ENGINES
    cells = len(ranked) * (_REGIMES_A_STEP if is_few else 1)
    step_seconds = readable_step_seconds(
        analysis.time_range, points=max(2, min(MAX_POINTS, _MAX_MARKS // cells))
    )
    shares = regime_shares(stretches, time_range=analysis.time_range, step_seconds=step_seconds)
    per = captions.regimes_by_step(step_seconds, times, is_mixed=is_few)
    if is_few:
        return _Picture(_stacked(shares, x), _height(len(ranked)), per)
    height = _CELL_HEIGHT * len(ranked)
    return _Picture([_cells(leading_regimes(shares), ranked, x)], height, per)


def _table(stretches: Sequence[Stretch]) -> theme.VegaSpec:
    """The stretches with their evidence; if there are too many, the longest."""
    columns = [
        START,
        DataColumn("end", "to (UTC)", clock),
        DataColumn("engine", "engine", str),
        DataColumn("regime", "bottleneck", str),
        DataColumn("evidence", "evidence", str),
    ]
    left_out = max(0, len(stretches) - MAX_ROWS)
    if not left_out:
        return table_of(_stretch_frame(stretches), columns)
    # A stretch's sentence of evidence is made when it is read: only for those shown.
    longest = heapq.nlargest(
        MAX_ROWS, range(len(stretches)), key=lambda at: stretches[at].end - stretches[at].start
    )
    frame = _stretch_frame([stretches[at] for at in sorted(longest)])
    return table_of(frame, columns, caption="The longest stretches.", left_out=left_out)


def _stretch_frame(stretches: Sequence[Stretch]) -> pl.DataFrame:
    """One row per stretch: start, end, t, t_end, engine, regime (display name), evidence."""
    frame = pl.DataFrame(
        {
            "start": [each.start for each in stretches],
            "end": [each.end for each in stretches],
            "engine": [each.engine for each in stretches],
            "regime": [REGIMES[each.regime] for each in stretches],
            "evidence": [each.evidence for each in stretches],
        }
    )
    return with_milliseconds(frame)


def _height(engines: int) -> int:
    return round(_ROW_HEIGHT * (engines + _NAME_SHARE)) if engines > 1 else _STRIP_HEIGHT


def _engine_axis(engines: int) -> alt.Y:
    """A row per engine; if there are several, each has its name above its strip.

    Not beside it: engine names are long and have common beginnings.
    """
    if engines <= 1:
        return alt.Y("engine:N", title=None, axis=alt.Axis(labels=False, ticks=False, domain=False))
    names = alt.Axis(
        labelAlign="left",
        labelPadding=0,
        labelOffset=-_ROW_HEIGHT / 2,
        labelLimit=0,
        ticks=False,
        domain=False,
    )
    return alt.Y("engine:N", title="engine", axis=names, scale=alt.Scale(padding=_NAME_SHARE))


def _color(regimes: pl.Series) -> alt.Color:
    """The color of each regime that occurs, with a legend."""
    colors = {REGIMES[regime]: color for regime, color in _COLORS.items()}
    seen = [name for name in colors if name in set(regimes)]
    return alt.Color(
        "regime:N",
        title=None,
        legend=alt.Legend(columns=_LEGEND_COLUMNS),
        scale=alt.Scale(domain=seen, range=[colors[name] for name in seen]),
    )


def _strips(frame: pl.DataFrame, x: alt.X, y: alt.Y) -> alt.Chart:
    """A strip per engine, in the color of its bottleneck at the time."""
    tips = [
        Tip("regime", "", "bottleneck"),
        Tip("engine", "", "engine"),
        Tip("evidence", "", "why"),
    ]
    strips: alt.Chart = (
        timed(alt.Chart(frame.select("t", "t_end", "engine", "regime", "evidence")))
        .mark_rect()  # without a stroke, which would cover narrow marks
        .encode(
            x=x,
            x2=alt.X2("t_end"),
            y=y,
            color=_color(frame["regime"]),
            tooltip=[time_tooltip("from"), *(tip.tooltip for tip in tips)],
        )
    )
    return strips


def _merged(shares: pl.DataFrame, *same: str) -> pl.DataFrame:
    """Consecutive steps of an engine and regime with equal `same`, merged into one row."""
    group = ["engine", "regime", *same]
    ordered = shares.sort("engine", "regime", "step")
    is_next = pl.col("step").diff().over("engine", "regime").fill_null(0) == 1
    is_same = pl.all_horizontal(
        (pl.col(name) == pl.col(name).shift()).over("engine", "regime").fill_null(False)
        for name in same
    )
    return (
        ordered.with_columns(run=(~(is_next & is_same)).cum_sum())
        .group_by("run", *group, maintain_order=True)
        .agg(pl.col("start").first(), pl.col("end").last())
        .drop("run")
    )


def _stacked(shares: pl.DataFrame, x: alt.X) -> list[alt.Chart]:
    """A strip per engine, each step split by the share of time in each regime, idle on top."""
    engines = shares["engine"].unique().sort().to_list()
    is_alone = len(engines) == 1
    share = pl.col("share_ratio").round(3)
    above = share.cum_sum().over("engine", "step") - share
    stacked = _merged(shares.with_columns(share_ratio=share, above=above.round(3)), *_SHARES)
    row = pl.col("engine").replace_strict({each: at for at, each in enumerate(engines)})
    room = 0.0 if is_alone else _NAME_SHARE
    placed = _named(stacked).with_columns(
        top=row + room + (1 - room) * pl.col("above"),
        bottom=row + room + (1 - room) * (pl.col("above") + pl.col("share_ratio")),
    )
    downwards = alt.Scale(domain=[0, len(engines)], reverse=True, nice=False)
    unseen = alt.Axis(labels=False, grid=False, ticks=False, domain=False)
    title = None if is_alone else "engine"
    y = alt.Y("top:Q", title=title, scale=downwards, axis=unseen)
    strips = _marks(placed.drop("above"), x).encode(y=y, y2=alt.Y2("bottom"))
    if is_alone:
        return [strips]
    names = pl.DataFrame({"engine": engines, "top": [float(at) for at in range(len(engines))]})
    text = alt.Chart(names).mark_text(align="left", baseline="top", dy=4, color=theme.SOFT)
    return [
        strips,
        text.encode(x=x_at(-theme.LEFT_PIXELS), y=y, text=alt.Text("engine:N")),
    ]


def _cells(leading: pl.DataFrame, ranked: Sequence[str], x: alt.X) -> alt.Chart:
    """A row of cells per engine in the given order, colored by the leading regime of each step."""
    names = short_names(ranked)
    rows = _merged(leading.with_columns(pl.col("share_ratio").round(2)), "share_ratio")
    placed = _named(rows).with_columns(name=pl.col("engine").replace_strict(names))
    longest = _LETTER_PIXELS * (1 + max(map(len, names.values())))
    pixels = max(theme.LEFT_PIXELS, min(_NAME_PIXELS, longest))
    axis = alt.Axis(
        labelLimit=pixels,
        minExtent=pixels,
        maxExtent=pixels,
        titleX=-pixels,
        ticks=False,
        domain=False,
    )
    strength = alt.Scale(domain=[0, 1], range=[_MIN_OPACITY, 1.0])
    return _marks(placed, x).encode(
        y=alt.Y("name:N", title="engine", axis=axis, sort=[names[each] for each in ranked]),
        opacity=alt.Opacity("share_ratio:Q", scale=strength, legend=None),
    )


_SHARES = ("share_ratio", "above")


def _named(rows: pl.DataFrame) -> pl.DataFrame:
    """The rows with `t` and `t_end` instead of start and end, and display names of regimes."""
    named = with_milliseconds(rows).drop("start", "end")
    return named.with_columns(pl.col("regime").replace_strict(REGIMES))


def _marks(rows: pl.DataFrame, x: alt.X) -> alt.Chart:
    """A rectangle per row, without texts for screen readers: the table has them once."""
    tips = [
        Tip("engine", "", "engine"),
        Tip("regime", "", "bottleneck"),
        Tip("share_ratio", ".0%", "share of the time"),
    ]
    ends = [time_tooltip("from"), time_tooltip("to", column="t_end")]
    marks: alt.Chart = (
        timed(alt.Chart(rounded(rows)), "t", "t_end")
        .mark_rect(aria=False)
        .encode(
            x=x,
            x2=alt.X2("t_end"),
            color=_color(rows["regime"]),
            tooltip=[*ends, *(tip.tooltip for tip in tips)],
        )
    )
    return marks
