"""The common parts of charts against load: two load measures, one engine's steps, its limits.

Load is either concurrency (running requests), which says how many requests a server handles at
once, or KV-cache usage, which says how much memory they take.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import altair as alt
import polars as pl
from msgspec import Struct

from vllm_capacity.analysis import Analysis
from vllm_capacity.answer import Answer
from vllm_capacity.errors import InputError
from vllm_capacity.load_curve import LoadCurve
from vllm_capacity.render.charts import theme
from vllm_capacity.render.charts.base import (
    DataColumn,
    Tip,
    is_all_zero,
    rounded,
    y_at,
)
from vllm_capacity.render.charts.time import time_tooltip, timed, with_milliseconds
from vllm_capacity.render.numbers import number, percent, plural
from vllm_capacity.render.prose import captions
from vllm_capacity.verdicts.saturation.regimes import KV_FULL_RATIO

LoadName = Literal["concurrency", "kv-usage"]

EMPTY_RATIO = 0.02  # peak KV-cache usage below this is not worth a chart
CLEAR_OF_POINTS = 8  # pixels between the labels of the y axis and a point on it
_MIN_WAITING = 0.5
_SHAPES = ("circle", "triangle-up")


class LoadAxis(Struct, frozen=True):
    """A load measure: its column in the steps, and its axis."""

    column: DataColumn
    format: str
    axis: alt.Axis
    scale: alt.Scale

    @property
    def x(self) -> alt.X:
        """The x axis; expects the load in a column named `load`."""
        return alt.X("load:Q", title=self.column.title, axis=self.axis, scale=self.scale)

    @property
    def tip(self) -> Tip:
        """The load's line in a tooltip."""
        return Tip("load", self.format, self.column.title)


CONCURRENCY = LoadAxis(
    DataColumn("running_mean", "concurrency: running requests, mean per step", number),
    format=",.1f",
    axis=alt.Axis(tickCount=8),
    scale=alt.Scale(domainMin=0, nice=True),
)
KV_USAGE = LoadAxis(
    DataColumn("kv_cache_ratio_mean", "KV-cache usage, mean per step", percent),
    format=".0%",
    axis=alt.Axis(format=".0%", tickCount=6),
    scale=alt.Scale(domain=[0, 1]),
)
_LOADS: Mapping[str, LoadAxis] = {"concurrency": CONCURRENCY, "kv-usage": KV_USAGE}


def load_axis(name: str) -> LoadAxis:
    """The axis of that name; InputError if there is none."""
    if name not in _LOADS:
        raise InputError(f"No axis {name!r} of load; give {' or '.join(map(repr, _LOADS))}.")
    return _LOADS[name]


class LoadState(Struct, frozen=True, eq=False):
    """The meaning of a point's color and shape: whether a condition held in its step."""

    is_true: pl.Expr
    no: str
    yes: str
    color: str

    @property
    def name(self) -> pl.Expr:
        """The state's name in each row."""
        return pl.when(self.is_true).then(pl.lit(self.yes)).otherwise(pl.lit(self.no))

    @property
    def colors(self) -> dict[str, str]:
        """The color of each of the two states, by name."""
        return {self.no: theme.LOAD, self.yes: self.color}


QUEUED = LoadState(
    pl.col("waiting_mean").fill_null(0.0) >= _MIN_WAITING,
    no="no requests waiting",
    yes="requests waiting",
    color=theme.LIMIT,
)
FULL = LoadState(
    pl.col("kv_cache_ratio_max").fill_null(0.0) >= KV_FULL_RATIO,
    no=f"KV under {percent(KV_FULL_RATIO)}",
    yes=f"KV {percent(KV_FULL_RATIO)} or more",
    color=theme.KV,
)


class LoadScatter(Struct, frozen=True):
    """One engine's steps against one load measure, with that engine's own figures.

    `steps` has an extra column `t`, and no steps with a gap or a restart: `left_out` counts those.
    """

    load: LoadAxis
    curve: LoadCurve
    answer: Answer
    steps: pl.DataFrame

    @classmethod
    def of(cls, analysis: Analysis, curve: LoadCurve, load: LoadAxis) -> LoadScatter:
        """The steps of the curve's engine, and the analysis' answer with that engine's figures."""
        kept = with_milliseconds(curve.points).filter(~pl.col("is_gap") & ~pl.col("is_restart"))
        return cls(load, curve, curve.of(analysis.answer, analysis.assumptions.slo), kept)

    @property
    def left_out(self) -> int:
        """The number of steps that are not drawn because of a gap or a restart."""
        return self.curve.points.height - self.steps.height

    def captioned(self, text: str) -> str:
        """The text, with the engine's name and the number of steps left out."""
        if not self.left_out:
            return f"{self._engine_prefix}{text}"
        steps = plural(self.left_out, "step")
        return f"{self._engine_prefix}{text}; {steps} with a gap or a restart left out"

    def why_empty(self, steps: pl.DataFrame, figure: str) -> str:
        """Why these steps show nothing on this axis; empty if they show something.

        An almost empty cache would put every point on the axis itself.
        """
        if is_all_zero(self.steps, CONCURRENCY.column.name):
            return f"{self._engine_prefix}No request ran in this window: there is no load to draw."
        if steps.is_empty():
            load = self.load.column.title
            return f"No data for this chart: no step has both {figure} and its load ({load})."
        ratio = self.answer.kv_cache_ratio.max
        if self.load is not KV_USAGE or ratio is None or ratio >= EMPTY_RATIO:
            return ""
        return (
            f"{self._engine_prefix}KV-cache usage peaked at {percent(ratio)}: it was no bottleneck."
        )

    @property
    def fullest_on_kv_axis(self) -> str:
        """The peak KV-cache usage, to end a sentence of a chart against usage; else empty."""
        return captions.fullest(self.answer) if self.load is KV_USAGE else ""

    @property
    def limit(self) -> list[alt.Chart]:
        """The load limit as a labeled rule: at the knee, or where the KV cache is full.

        Empty if the knee is unknown.
        """
        if self.load is KV_USAGE:
            full = KV_FULL_RATIO
            return _limit_rule(full, f"{percent(full)} full", is_right=True)
        knee = self.answer.saturation.capacity_running_requests.mid
        if knee is None:
            return []
        heaviest = max(self.steps[self.load.column.name].drop_nulls(), default=knee)
        return _limit_rule(knee, f"knee at {number(knee)}", is_right=knee > heaviest / 2)

    def points(
        self, frame: pl.DataFrame, *, y: alt.Y, colors: Mapping[str, str], tips: Sequence[Tip]
    ) -> alt.Chart:
        """A point per row; its color (by name in `colors`) and shape show its state.

        Columns used: t, load, state, those of y and of the tips.
        """
        names = list(colors)
        color = alt.Scale(domain=names, range=list(colors.values()))
        shape = alt.Scale(domain=names, range=_SHAPES)
        chart: alt.Chart = (
            timed(alt.Chart(rounded(frame)))
            .mark_point(filled=True, size=45, opacity=0.75)
            .encode(
                x=self.load.x,
                y=y,
                color=alt.Color("state:N", title=None, scale=color),
                shape=alt.Shape("state:N", title=None, scale=shape),
                tooltip=[time_tooltip(), self.load.tip.tooltip, *(tip.tooltip for tip in tips)],
            )
        )
        return chart

    @property
    def _engine_prefix(self) -> str:
        if self.curve.engines <= 1:
            return ""
        name, engines = self.curve.engine, self.curve.engines
        return f"Only engine {name} is drawn: of {engines}, it is the nearest to its limit. "


def _limit_rule(at: float, name: str, *, is_right: bool) -> list[alt.Chart]:
    """A rule over the full height, labeled above the plot, where there are no points."""
    base = alt.Chart(pl.DataFrame({"load": [at], "name": [name]})).encode(x=alt.X("load:Q"))
    align: Literal["left", "right"] = "right" if is_right else "left"
    text = base.mark_text(
        align=align, baseline="bottom", dx=0 if is_right else 2, dy=-4, color=theme.SOFT
    )
    return [
        base.mark_rule(color=theme.SOFT, strokeDash=[2, 3]),
        text.encode(y=y_at(0), text=alt.Text("name:N")),
    ]
