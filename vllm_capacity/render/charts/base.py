"""The parts of every chart: title, caption, data table and definition, or the reason for no chart.

A chart's title, caption (the finding) and table travel with the spec, in `title` and `usermeta`, so
that the page can write them as text: Vega does not wrap lines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from textwrap import wrap
from typing import Any, Literal

import altair as alt
import polars as pl
from msgspec import Struct

from vllm_capacity.render.charts import theme
from vllm_capacity.render.charts.theme import VegaSpec
from vllm_capacity.render.report import CHART_NOTES, HOVER, MAX_ROWS, NOTEBOOK_WIDTH

Chart = alt.TopLevelMixin

HEIGHT = 200
_REASON_PIXELS = 20  # height of a line of the reason
_SIGNIFICANT = 6
_LINE_PIXELS, _BAR_PIXELS, _ROOM_PIXELS = 15, 15, 4  # text line, bar, space below a row
_BAR_BELOW_TEXT = 9
_LINE_LETTERS = 52  # letters that fit on a line on a phone
_CAPTION_LETTERS = 105  # and in a notebook


class Panel(Struct, frozen=True):
    """A chart's place in the report: its title, and the figure whose definition it links to.

    If there is room, a `half` panel shares its row with another.
    """

    title: str
    definition: str
    half: bool = False

    def chart(
        self,
        layers: Sequence[alt.Chart],
        *,
        caption: str,
        table: VegaSpec,
        height: int = HEIGHT,
    ) -> Chart:
        """The layers as one chart, with its caption and the table behind it."""
        title = alt.TitleParams(text=self.title, subtitle=_lines(caption))
        return alt.layer(*layers, **self._place(height, title, {"table": table}))

    def empty(self, reason: str) -> Chart:
        """A placeholder for a chart without data: the reason, a sentence."""
        lines = _lines(reason)
        height, title = _REASON_PIXELS * len(lines), alt.TitleParams(text=self.title)
        frame = pl.DataFrame({"reason": ["\n".join(lines)]})
        placed: Chart = (
            alt.Chart(frame, **self._place(height, title, {"empty": reason}))
            .mark_text(align="left", baseline="top", color=theme.SOFT, fontSize=14, lineBreak="\n")
            .encode(x=x_at(0), y=y_at(0), text=alt.Text("reason:N"))
        )
        return placed

    def _place(self, height: int, title: alt.TitleParams, notes: VegaSpec) -> dict[str, Any]:
        """The properties of a chart of this panel.

        Passed on creation: Altair's `properties` would copy all layers and validate each again.
        """
        own = {"definition": self.definition, "half": self.half, **notes}
        usermeta = {CHART_NOTES: own}
        return {"width": NOTEBOOK_WIDTH, "height": height, "title": title, "usermeta": usermeta}


class DataColumn(Struct, frozen=True):
    """A column of the table under a chart: frame column, title with unit, and writer of its values.

    A column with a D3 `format` (empty for text) is also a line of the chart's tooltips.
    """

    name: str
    title: str
    write: Callable[..., str]
    format: str | None = None


class Tip(Struct, frozen=True):
    """A line of a tooltip: frame column, D3 format (empty for text) and label."""

    column: str
    format: str
    title: str

    @property
    def tooltip(self) -> alt.Tooltip:
        """The Altair tooltip. Without an empty format, Vega-Lite 6.4 shows text as `undefined`."""
        kind = "Q" if self.format else "N"
        return alt.Tooltip(f"{self.column}:{kind}", format=self.format, title=self.title)


def tips_of(columns: Iterable[DataColumn]) -> list[Tip]:
    """Tooltip lines for the columns that have a format, in their order."""
    return [Tip(one.name, one.format, one.title) for one in columns if one.format is not None]


class Label(Struct, frozen=True):
    """The position of a text relative to its point."""

    align: Literal["left", "right"] = "left"
    below: bool = False
    dx: float = 0


def x_at(pixels: float | alt.ExprRef) -> alt.XValue:
    """A fixed distance from the left; `alt.value` would hash the whole Vega-Lite schema."""
    return alt.XValue(pixels)  # type: ignore[no-untyped-call]


def y_at(pixels: float) -> alt.YValue:
    """A fixed distance from the top, like `x_at`."""
    return alt.YValue(pixels)  # type: ignore[no-untyped-call]


def labelled(
    base: alt.Chart, label: Label, *, color: str, x: alt.X | None, y: alt.Y
) -> list[alt.Chart]:
    """The column `name` as text, over a wider copy in the paper color that hides lines behind it.

    Without `x`, the text stands at the edge that it is aligned to.
    """
    edge = alt.ExprRef("width") if label.align == "right" else 0
    at = x_at(edge) if x is None else x
    encoded = base.encode(x=at, y=y, text=alt.Text("name:N"))
    baseline: Literal["top", "bottom"] = "top" if label.below else "bottom"
    dy = 6 if label.below else -4

    def text(color: str, halo_pixels: float = 0) -> alt.Chart:
        made: alt.Chart = encoded.mark_text(
            align=label.align,
            baseline=baseline,
            dx=label.dx,
            dy=dy,
            fontWeight=600,
            color=color,
            stroke=color if halo_pixels else alt.Undefined,
            strokeWidth=halo_pixels or alt.Undefined,
        )
        return made

    return [text(theme.PAPER, halo_pixels=4), text(color)]


def pointer(
    marks: alt.Chart, tips: Sequence[alt.Tooltip], *, key: str, shown: float = 1.0
) -> alt.Chart:
    """The marks, hidden except the one nearest to the pointer, with the tips in its tooltip.

    A pointer cannot hit a line, so line charts have this layer of points on top.
    """
    near = alt.selection_point(
        name=f"{HOVER}_near", nearest=True, on="pointerover", fields=[key], empty=False
    )
    is_near = [{"param": near.name, "value": shown, "empty": False}]
    seen: alt.Chart = (
        marks.encode(
            opacity=alt.OpacityValue(0, condition=is_near),
            tooltip=list(tips),
        )
        .add_params(near)
        .properties(name=f"{HOVER}_points")
    )
    return seen


def _lines(text: str) -> list[str]:
    """The text wrapped for a notebook, because Vega does not wrap; the page wraps it itself."""
    return wrap(text, _CAPTION_LETTERS, break_on_hyphens=False)


def has_values(frame: pl.DataFrame, *columns: str) -> bool:
    """Whether any of the columns has a value."""
    return any(frame[name].count() > 0 for name in columns if name in frame.columns)


def is_all_zero(frame: pl.DataFrame, *columns: str) -> bool:
    """Whether the columns have values, all of them zero: their lines would lie on the axis."""
    values = [frame[name].drop_nulls() for name in columns]
    return any(len(each) for each in values) and not any((each != 0).any() for each in values)


def rounded(frame: pl.DataFrame) -> pl.DataFrame:
    """The frame at six significant digits: enough for a screen, at half the page size."""
    return frame.with_columns(pl.col(pl.Float64).round_sig_figs(_SIGNIFICANT))


def table_of(
    frame: pl.DataFrame, columns: Sequence[DataColumn], *, caption: str = "", left_out: int = 0
) -> VegaSpec:
    """The table behind a chart as text cells, with a dash for missing values.

    It has the first 200 rows; `left_out` counts rows that the frame itself already lacks.
    """
    cells = [
        [
            "–" if value is None else column.write(value)
            for column, value in zip(columns, row, strict=True)
        ]
        for row in frame.select([column.name for column in columns]).head(MAX_ROWS).iter_rows()
    ]
    left_out += frame.height - len(cells)
    heads = [
        {"title": column.title, "numeric": frame.schema[column.name].is_numeric()}
        for column in columns
    ]
    return {
        "columns": heads,
        "rows": cells,
        "left_out": left_out,
        "caption": caption,
        "empty": "No rows.",
    }


def clock(value: datetime) -> str:
    """A step's start as a table shows it."""
    return f"{value:%-d %b %H:%M:%S}"


class Bars(Struct, frozen=True):
    """How ranked bars are drawn: titles of both axes, axis labels, color and tips."""

    amount: str
    what: str
    axis: alt.Axis
    color: str
    tips: Sequence[Tip]


def ranked(frame: pl.DataFrame, bars: Bars) -> tuple[list[alt.Chart], int]:
    """Ranked rows, each a text above a bar with its interval or a text alone; and the height.

    Text stands above the bars, not beside them, so that long names leave the bars room on a phone;
    it is wrapped to a phone's width.
    Columns used: name, low, mid, high (null if there is no bar), and those of the tips.
    """
    is_known = frame["mid"].is_not_null()
    lines = [wrap(name, _LINE_LETTERS, break_on_hyphens=False) for name in frame["name"]]
    text_pixels = [len(each) * _LINE_PIXELS for each in lines]
    pixels = [
        text + _ROOM_PIXELS + (_BAR_PIXELS if known else 0)
        for text, known in zip(text_pixels, is_known, strict=True)
    ]
    tops = pl.Series([float(sum(pixels[:place])) for place in range(len(pixels))])
    placed = rounded(frame).with_columns(
        lines=pl.Series(["\n".join(each) for each in lines]),
        zero=pl.lit(0.0),
        text_at=tops,
        bar_at=tops + pl.Series(text_pixels) + _BAR_BELOW_TEXT,
    )
    downwards = alt.Scale(domain=[0, sum(pixels)], reverse=True, nice=False)
    unseen = alt.Axis(labels=False, grid=False, ticks=False, domain=False)

    def y(column: str) -> alt.Y:
        return alt.Y(f"{column}:Q", title=bars.what, scale=downwards, axis=unseen)

    layers = [
        *_bars(placed.filter(is_known), bars, y("bar_at")),
        _bar_text(placed.filter(is_known), y("text_at"), color=theme.INK),
        _bar_text(placed.filter(~is_known), y("text_at"), color=theme.SOFT),
    ]
    return layers, sum(pixels)


def _bars(rows: pl.DataFrame, bars: Bars, y: alt.Y) -> list[alt.Chart]:
    """A bar per row up to its middle, with its interval as a line and its middle as a point."""

    def x(column: str) -> alt.X:
        scale = alt.Scale(domainMin=0, nice=True)
        return alt.X(f"{column}:Q", title=bars.amount, axis=bars.axis, scale=scale)

    base = alt.Chart(rows).encode(y=y, tooltip=[tip.tooltip for tip in bars.tips])
    whole = base.mark_rule(color=bars.color, strokeWidth=10, opacity=0.55)
    interval = base.mark_rule(color=theme.INK, strokeWidth=1.5)
    middle = base.mark_point(filled=True, size=40, color=theme.INK, opacity=1)
    return [
        whole.encode(x=x("zero"), x2=alt.X2("mid")),
        interval.encode(x=x("low"), x2=alt.X2("high")),
        middle.encode(x=x("mid")),
    ]


def _bar_text(rows: pl.DataFrame, y: alt.Y, *, color: str) -> alt.Chart:
    """The rows' text, starting at the picture's edge to use the space left of the bars."""
    made: alt.Chart = (
        alt.Chart(rows.select("lines", "text_at"))
        .mark_text(align="left", baseline="top", dy=3, color=color, lineBreak="\n")
        .encode(x=x_at(-theme.LEFT_PIXELS), y=y, text=alt.Text("lines:N"))
    )
    return made
