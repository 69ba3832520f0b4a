"""What every chart of ours has: a question, what was found, a table, a pointer; or a reason.

A chart's title (its question), subtitle (what was found) and the table behind it travel with the
spec, in `title` and in `usermeta`, so that the page can write them as text: Vega does not wrap
lines.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import altair as alt
import polars as pl

from vllm_capacity.render.charts import theme
from vllm_capacity.render.report.contract import HOVER, NOTEBOOK_WIDTH

Answer = Mapping[str, Any]

HEIGHT = 200
_SIGNIFICANT = 6


@dataclass(frozen=True)
class Column:
    """A column of the table under a chart: the frame's, its head with the unit, its writing."""

    name: str
    title: str
    write: Callable[[Any], str]


@dataclass(frozen=True)
class Tip:
    """A line of a tooltip: the frame's column, a D3 format (none for text), its words."""

    column: str
    format: str
    title: str

    @property
    def tooltip(self) -> alt.Tooltip:
        """The tooltip. Text gets an empty format, or Vega-Lite 6.4 prints `undefined` for it."""
        kind = "Q" if self.format else "N"
        return alt.Tooltip(f"{self.column}:{kind}", format=self.format, title=self.title)


@dataclass(frozen=True)
class Label:
    """Where a text stands beside its point."""

    align: Literal["left", "right"] = "left"
    below: bool = False
    dx: float = 0


def titled(
    layers: Sequence[alt.Chart],
    *,
    question: str,
    found: str,
    definition: str,
    table: dict[str, Any] | None,
    height: int = HEIGHT,
    half: bool = False,
) -> alt.TopLevelMixin:
    """The layers as a chart with its question, what was found, its table, and its definition.

    Where there is room, a `half` chart stands beside another.
    """
    chart: alt.TopLevelMixin = alt.layer(*layers).properties(
        width=NOTEBOOK_WIDTH,
        height=height,
        title=alt.TitleParams(text=question, subtitle=found),
        usermeta={"vllm_capacity": {"definition": definition, "table": table, "half": half}},
    )
    return chart


def nothing(
    *, question: str, reason: str, definition: str, half: bool = False
) -> alt.TopLevelMixin:
    """In the place of a chart that has nothing to draw: why."""
    chart: alt.TopLevelMixin = (
        alt.Chart(pl.DataFrame({"reason": [reason]}))
        .mark_text(align="left", color=theme.SOFT, fontSize=14)
        .encode(x=alt.value(0), text=alt.Text("reason:N"))
        .properties(
            width=NOTEBOOK_WIDTH,
            height=40,
            title=alt.TitleParams(text=question),
            usermeta={"vllm_capacity": {"definition": definition, "empty": reason, "half": half}},
        )
    )
    return chart


def labelled(
    base: alt.Chart, label: Label, *, colour: str, x: alt.X | None, y: alt.Y
) -> list[alt.Chart]:
    """The column `name` as text, over a wider copy in the paper's colour that no line crosses.

    Without `x` the text stands at the edge that it is aligned to.
    """
    edge = alt.ExprRef("width") if label.align == "right" else 0
    at = alt.value(edge) if x is None else x
    encoded = base.encode(x=at, y=y, text=alt.Text("name:N"))
    baseline: Literal["top", "bottom"] = "top" if label.below else "bottom"
    dy = 6 if label.below else -4

    def text(**look: Any) -> alt.Chart:  # noqa: ANN401  a mark's many options
        made: alt.Chart = encoded.mark_text(
            align=label.align, baseline=baseline, dx=label.dx, dy=dy, fontWeight=600, **look
        )
        return made

    return [text(color=theme.PAPER, stroke=theme.PAPER, strokeWidth=4), text(color=colour)]


def pointer(
    marks: alt.Chart, tips: Sequence[alt.Tooltip], *, key: str, shown: float = 1.0
) -> alt.Chart:
    """The marks, unseen but for the one nearest to the pointer, with the tips in its tooltip.

    A line cannot be hit with a pointer, so a chart of lines has this layer of points over it.
    """
    near = alt.selection_point(
        name=f"{HOVER}_near", nearest=True, on="pointerover", fields=[key], empty=False
    )
    seen: alt.Chart = (
        marks.encode(
            opacity=alt.when(near).then(alt.value(shown)).otherwise(alt.value(0)),
            tooltip=list(tips),
        )
        .add_params(near)
        .properties(name=f"{HOVER}_points")
    )
    return seen


def has_values(frame: pl.DataFrame, *columns: str) -> bool:
    """Whether any of the columns holds a value."""
    return any(frame[name].count() > 0 for name in columns if name in frame.columns)


def rounded(frame: pl.DataFrame) -> pl.DataFrame:
    """The frame with six significant digits: what a screen can show, and half the page."""
    return frame.with_columns(pl.col(pl.Float64).round_sig_figs(_SIGNIFICANT))


def table_of(frame: pl.DataFrame, columns: Sequence[Column]) -> dict[str, Any]:
    """The table behind a chart, as text cells; what was not observed is a dash."""
    cells = [
        [
            "–" if value is None else column.write(value)
            for column, value in zip(columns, row, strict=True)
        ]
        for row in frame.select([column.name for column in columns]).iter_rows()
    ]
    heads = [{"title": column.title, "numeric": i > 0} for i, column in enumerate(columns)]
    return {"columns": heads, "rows": cells, "caption": "", "empty": "No rows."}


def clock(value: datetime) -> str:
    """A step's start in a table."""
    return f"{value:%-d %b %H:%M:%S}"
