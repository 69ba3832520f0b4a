"""Rows of bars, best first: a row's words over its bar, or alone where it has none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from textwrap import wrap

import altair as alt
import polars as pl

from vllm_capacity.render.charts import theme
from vllm_capacity.render.charts.base import Tip, rounded

_LINE_PIXELS, _BAR_PIXELS, _ROOM_PIXELS = 15, 15, 4  # of a line of words, of a bar, under a row
_BAR_BELOW_WORDS = 9
_LINE_LETTERS = 52  # what a line of words has room for on a phone


@dataclass(frozen=True)
class Bars:
    """How rows of bars are drawn: the amount and what has it, the axis' labels, colour, tips."""

    amount: str
    what: str
    axis: alt.Axis
    colour: str
    tips: Sequence[Tip]


def ranked(frame: pl.DataFrame, bars: Bars) -> tuple[list[alt.Chart], int]:
    """Downwards, a row of words over a bar with its interval, or of words alone; and the height.

    Words stand over bars, not beside them, so that long names leave the bars room on a phone; and
    in lines that a phone has room for.
    Columns used: name, low, mid, high (null where there is no bar), and those of the tips.
    """
    is_known = frame["mid"].is_not_null()
    lines = [wrap(name, _LINE_LETTERS, break_on_hyphens=False) for name in frame["name"]]
    words_pixels = [len(each) * _LINE_PIXELS for each in lines]
    pixels = [
        words + _ROOM_PIXELS + (_BAR_PIXELS if known else 0)
        for words, known in zip(words_pixels, is_known, strict=True)
    ]
    tops = pl.Series([float(sum(pixels[:place])) for place in range(len(pixels))])
    placed = rounded(frame).with_columns(
        lines=pl.Series(["\n".join(each) for each in lines]),
        zero=pl.lit(0.0),
        words_at=tops,
        bar_at=tops + pl.Series(words_pixels) + _BAR_BELOW_WORDS,
    )
    downwards = alt.Scale(domain=[0, sum(pixels)], reverse=True, nice=False)
    unseen = alt.Axis(labels=False, grid=False, ticks=False, domain=False)

    def x(column: str) -> alt.X:
        scale = alt.Scale(domainMin=0, nice=True)
        return alt.X(f"{column}:Q", title=bars.amount, axis=bars.axis, scale=scale)

    def y(column: str) -> alt.Y:
        return alt.Y(f"{column}:Q", title=bars.what, scale=downwards, axis=unseen)

    at = {"y": y("bar_at"), "tooltip": [tip.tooltip for tip in bars.tips]}
    known = alt.Chart(placed.filter(is_known))
    whole = known.mark_rule(color=bars.colour, strokeWidth=10, opacity=0.55)
    interval = known.mark_rule(color=theme.INK, strokeWidth=1.5)
    middle = known.mark_point(filled=True, size=40, color=theme.INK, opacity=1)
    layers = [
        whole.encode(x=x("zero"), x2=alt.X2("mid"), **at),
        interval.encode(x=x("low"), x2=alt.X2("high"), **at),
        middle.encode(x=x("mid"), **at),
        _words(placed.filter(is_known), y, colour=theme.INK),
        _words(placed.filter(~is_known), y, colour=theme.SOFT),
    ]
    return layers, sum(pixels)


def _words(rows: pl.DataFrame, y: Callable[[str], alt.Y], *, colour: str) -> alt.Chart:
    """The rows' words, from the left edge of the picture on: left of the bars, too, is room."""
    made: alt.Chart = (
        alt.Chart(rows.select("lines", "words_at"))
        .mark_text(align="left", baseline="top", dy=3, color=colour, lineBreak="\n")
        .encode(x=alt.value(-theme.LEFT_PIXELS), y=y("words_at"), text=alt.Text("lines:N"))
    )
    return made
