"""What charts against load share: the two loads, whose points are drawn, what those leave out.

Load is told by the requests that run and by how full the KV cache is: the first says how many a
server serves at once, the second how much memory they take. Every figure is drawn against both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import altair as alt
import polars as pl

from vllm_capacity.load_curve import LoadCurve
from vllm_capacity.render.charts import theme
from vllm_capacity.render.charts.base import Answer, Column, Tip, rounded
from vllm_capacity.render.charts.time import time_tooltip, with_milliseconds
from vllm_capacity.render.numbers import number, percent
from vllm_capacity.render.prose import verdict as words

EMPTY_RATIO = 0.02  # below it, points against a full cache's scale are all on the axis
_FULL_RATIO = 0.9  # from here a regime may be called KV-cache-bound
_WAITING_AT_LEAST = 0.5
_SHAPES = ("circle", "triangle-up")
CLEAR_OF_POINTS = 8  # pixels between the labels of the y axis and a point on it


@dataclass(frozen=True)
class Load:
    """What a chart is drawn against: a column of the steps, and the axis it makes."""

    column: Column
    format: str
    axis: alt.Axis
    scale: alt.Scale

    @property
    def x(self) -> alt.X:
        """The axis; the frame has the column as `load`."""
        return alt.X("load:Q", title=self.column.title, axis=self.axis, scale=self.scale)

    @property
    def tip(self) -> Tip:
        """Its line in a tooltip."""
        return Tip("load", self.format, self.column.title)


RUNNING = Load(
    Column("running", "running requests, mean of a step", number),
    format=",.1f",
    axis=alt.Axis(tickCount=8),
    scale=alt.Scale(domainMin=0, nice=True),
)
KV_CACHE = Load(
    Column("kv_cache_ratio_mean", "KV cache in use, mean of a step", percent),
    format=".0%",
    axis=alt.Axis(format=".0%", tickCount=6),
    scale=alt.Scale(domain=[0, 1]),
)


@dataclass(frozen=True, eq=False)
class State:
    """What the colour and the shape of a point tell: whether something held in its step."""

    holds: pl.Expr
    no: str
    yes: str
    colour: str

    @property
    def name(self) -> pl.Expr:
        """Its name in each row."""
        return pl.when(self.holds).then(pl.lit(self.yes)).otherwise(pl.lit(self.no))

    @property
    def colours(self) -> dict[str, str]:
        """The colour of each of the two, by name."""
        return {self.no: theme.LOAD, self.yes: self.colour}


QUEUED = State(
    pl.col("waiting").fill_null(0.0) >= _WAITING_AT_LEAST,
    no="none waiting",
    yes="requests waiting",
    colour=theme.LIMIT,
)
FULL = State(
    pl.col("kv_cache_ratio_max").fill_null(0.0) >= _FULL_RATIO,
    no="KV less full",
    yes=f"KV {percent(_FULL_RATIO)} full or more",
    colour=theme.KV,
)


@dataclass(frozen=True)
class Shown:
    """The steps drawn against a load, and the answer of those whose they are.

    `steps` has `t` and `t_end` besides its own columns, and neither gaps nor restarts: `left_out`
    counts those. `whose` says whose steps they are, where the window has several engines.
    """

    steps: pl.DataFrame
    answer: Answer
    whose: str
    left_out: int

    def told(self, text: str) -> str:
        """The text, told of whom."""
        return f"{self.whose}{text}"

    def found(self, text: str) -> str:
        """What was found, told of whom, and how many steps that leaves out."""
        if not self.left_out:
            return self.told(text)
        steps = words.plural(self.left_out, "step")
        return f"{self.whose}{text}; {steps} with a gap or a restart left out"


def shown(
    steps: pl.DataFrame,
    answer: Answer,
    engine: LoadCurve | None,
    targets: Sequence[float | None] = (),
) -> Shown:
    """The given engine's steps and figures; without one, those of the whole window.

    `targets` are those that what is held within them is told for: of the first token and between
    tokens, in seconds.
    """
    drawn, told = steps, answer
    if engine is not None:
        drawn, told = engine.points, engine.told(answer, *targets)
    kept = with_milliseconds(drawn, answer).filter(~pl.col("is_gap") & ~pl.col("is_restart"))
    return Shown(kept, told, _whose(answer, engine), drawn.height - kept.height)


def scatter(
    frame: pl.DataFrame, load: Load, *, y: alt.Y, states: dict[str, str], tips: Sequence[Tip]
) -> alt.Chart:
    """A point a row, its colour (by name in `states`) and its shape saying which state it is in.

    Columns used: t, load, state, those of y and of the tips.
    """
    names = list(states)
    colours = alt.Scale(domain=names, range=list(states.values()))
    shapes = alt.Scale(domain=names, range=_SHAPES)
    chart: alt.Chart = (
        alt.Chart(rounded(frame))
        .mark_point(filled=True, size=45, opacity=0.75)
        .encode(
            x=load.x,
            y=y,
            color=alt.Color("state:N", title=None, scale=colours),
            shape=alt.Shape("state:N", title=None, scale=shapes),
            tooltip=[time_tooltip(), load.tip.tooltip, *(tip.tooltip for tip in tips)],
        )
    )
    return chart


def limit_of(load: Load, of: Shown) -> list[alt.Chart]:
    """Where a load is at its limit, as a named rule: at the knee, and where the cache is full.

    Nothing where the knee is not known.
    """
    if load is KV_CACHE:
        return _rule(_FULL_RATIO, f"{percent(_FULL_RATIO)} full", is_right=True)
    knee = of.answer["saturation"]["capacity_running_requests"]["mid"]
    if knee is None:
        return []
    heaviest = max(of.steps[load.column.name].drop_nulls(), default=knee)
    return _rule(knee, f"knee at {number(knee)}", is_right=knee > heaviest / 2)


def too_empty(load: Load, of: Shown) -> str:
    """Why nothing can be read off an axis of this load; empty where something can.

    A cache all but empty puts every point on the axis itself.
    """
    ratio = of.answer["kv_cache_ratio"]["max"]
    if load is not KV_CACHE or ratio is None or ratio >= EMPTY_RATIO:
        return ""
    return of.told(f"The KV cache was {percent(ratio)} full at most: it held nothing back.")


def fullest(answer: Answer) -> str:
    """How full the KV cache was at most, to end a sentence; nothing where that is not known."""
    ratio = answer["kv_cache_ratio"]["max"]
    return "" if ratio is None else f"; the KV cache was {percent(ratio)} full at most"


def _rule(at: float, name: str, *, is_right: bool) -> list[alt.Chart]:
    """A rule over the whole height, its name above the plot, where no point lies."""
    base = alt.Chart(pl.DataFrame({"load": [at], "name": [name]})).encode(x=alt.X("load:Q"))
    align: Literal["left", "right"] = "right" if is_right else "left"
    text = base.mark_text(
        align=align, baseline="bottom", dx=0 if is_right else 2, dy=-4, color=theme.SOFT
    )
    return [
        base.mark_rule(color=theme.SOFT, strokeDash=[2, 3]),
        text.encode(y=alt.value(0), text=alt.Text("name:N")),
    ]


def _whose(answer: Answer, engine: LoadCurve | None) -> str:
    engines = answer["window"]["engines"] if engine is None else engine.engines
    if engines <= 1:
        return ""
    if engine is None:
        return f"All {engines} engines added up. "
    return f"Engine {engine.engine} alone, of {engines} the nearest to its limit. "
