"""Charts of the plan: GPU choice, number of replicas, forecast demand, and hours of idle GPUs.

An option that is rejected or unknown stays on the chart as a line with its reason: a missing row
would look as if it had not been considered.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import altair as alt
import polars as pl

from vllm_capacity.analysis import Analysis
from vllm_capacity.estimate import Estimate
from vllm_capacity.figures.series import MAX_POINTS
from vllm_capacity.plan import Plan
from vllm_capacity.render.charts import theme
from vllm_capacity.render.charts.base import (
    Bars,
    Chart,
    DataColumn,
    Label,
    Panel,
    Tip,
    clock,
    is_all_zero,
    labelled,
    pointer,
    ranked,
    rounded,
    table_of,
    tips_of,
)
from vllm_capacity.render.charts.time import (
    milliseconds,
    time_axis,
    time_tooltip,
    timed,
    whole_window,
)
from vllm_capacity.render.charts.week_grid import DAY_PIXELS, DAYS, Cells, week_cells
from vllm_capacity.render.numbers import Write, count, number, percent, plural, reason, sure, usd
from vllm_capacity.render.prose import captions
from vllm_capacity.timerange import TimeRange
from vllm_capacity.verdicts.cost.idle import idle_by_hour_of_week
from vllm_capacity.verdicts.demand.forecast import DemandAhead
from vllm_capacity.verdicts.hardware.compare import Option

_MILLION = 1e6
_MIN_HOURS = 24
_TOO_SHORT = "Needs at least 24 h of data; this window has {}."
_ENDS = {"low": pl.Float64, "mid": pl.Float64, "high": pl.Float64}
_OPTIONS = {
    **{name: pl.String for name in ("gpu", "dtype", "price_row", "label", "name", "note")},
    **_ENDS,
    **{name: pl.Float64 for name in ("usd_per_gpu_hour", "replicas", "usd_per_month")},
}
_CASES = {**{name: pl.String for name in ("case", "name", "note")}, **_ENDS}
_DEMAND = {"requests": "observed", "low": "at least", "mid": "expected", "high": "at most"}
_HOUR_COLUMNS = (
    DataColumn("day", "day", str, ""),
    DataColumn("hour", "hour from", str, ".0f"),
    DataColumn("idle_usd", "idle dollars per hour", usd, "$,.3~r"),
    DataColumn("cost_usd", "bill per hour", usd, "$,.3~r"),
    DataColumn("utilization_ratio", "utilization", percent, ".0%"),
    DataColumn("observed_hours", "hours observed", count, ".0f"),
)
_IDLE_CELLS = Cells(
    "idle_usd", "idle dollars per hour", "$,.3~r", theme.COST, tips_of(_HOUR_COLUMNS)
)


def tokens_per_dollar(plan: Plan | Sequence[Option]) -> Chart:
    """Output tokens per dollar by GPU, best first, with intervals; rejected GPUs grouped by reason.

    It draws a plan, or options alone. The order of bars with overlapping intervals is uncertain.
    Columns used: none; the options.
    """
    panel = Panel("Which GPU gives the most output tokens per dollar?", "whatif")
    options, why = (plan.options, plan.options_reason) if isinstance(plan, Plan) else (plan, "")
    if not options:
        return panel.empty(f"Not known: {(why or 'no other GPU was compared').rstrip('.')}.")
    known = [each for each in options if each.is_comparable]
    rejected = [each for each in options if not each.is_comparable]
    ranking = _option_frame([*known, *rejected])
    drawn = pl.concat([ranking.head(len(known)), _grouped(rejected)], how="diagonal")
    columns = [
        DataColumn("gpu", "GPU", str, ""),
        *_ends_columns("output tokens per dollar", number, ",.3~r"),
        DataColumn("usd_per_gpu_hour", "per GPU-hour", usd, "$.3r"),
        DataColumn("replicas", "replicas", count, ",.0f"),
        DataColumn("usd_per_month", "per month", usd, "$,.3~r"),
        DataColumn("label", "label", str, ""),
        DataColumn("price_row", "price", str, ""),
        DataColumn("note", "rejected because", str),
    ]
    axis = alt.Axis(labelExpr=f"datum.value / {_MILLION:.0f}", tickCount=5)
    tips = tips_of(columns)
    tips.insert(1, Tip("dtype", "", "weights"))
    bars = Bars("million output tokens per dollar", "GPU", axis, theme.COST, tips)
    layers, height = ranked(drawn, bars)
    return panel.chart(
        layers,
        caption=captions.options_found(known, rejected=len(rejected)),
        table=table_of(ranking, columns),
        height=height,
    )


def replicas_by_case(plan: Plan) -> Chart:
    """Replicas in each case of the plan's sensitivity, with intervals; spares are included.

    Columns used: none; the plan's sensitivity.
    """
    panel, cases = (
        Panel("How many replicas are needed if things change?", "replicas"),
        plan.sensitivity,
    )
    known = {name: needed for name, needed in cases.items() if needed.is_known}
    if not known:
        why = next((reason(each) for each in cases.values()), "no case was asked for")
        return panel.empty(f"Not known: {why}.")
    frame = pl.DataFrame(
        {
            "case": list(cases),
            "name": [f"{name}: {_figure_or_reason(each)}" for name, each in cases.items()],
            "note": [None if each.is_known else reason(each) for each in cases.values()],
            **_ends(cases.values()),
        },
        schema=_CASES,
    )
    columns = [
        DataColumn("case", "case", str, ""),
        *_ends_columns("replicas", count, ",.0f"),
        DataColumn("note", "not known because", str),
    ]
    axis = alt.Axis(format="~d", tickCount=5, tickMinStep=1)
    bars = Bars("replicas, spares included", "case", axis, theme.LOAD, tips_of(columns))
    layers, height = ranked(frame, bars)
    return panel.chart(
        layers, caption=captions.cases_found(known), table=table_of(frame, columns), height=height
    )


def demand_forecast(analysis: Analysis) -> Chart:
    """Requests per hour: observed, and forecast with its 90 % interval.

    If there is no forecast, the history is drawn alone, with the reason. The chart has at most the
    latest 150 hours, and is empty for less than a day of whole hours.
    Columns used: ts, requests (of the analysis' hours); ts, low, mid, high (of the forecast).
    """
    panel = Panel("Demand forecast: requests per hour", "forecast")
    hours, ahead = analysis.hours, analysis.demand_ahead
    if hours.height < _MIN_HOURS:
        return panel.empty(_TOO_SHORT.format(plural(hours.height, "whole hour")))
    demand = _demand(hours, ahead).tail(MAX_POINTS)
    if not demand["requests"].count() and not ahead.forecast:
        return panel.empty(f"Not known: {ahead.reason.rstrip('.')}.")
    if is_all_zero(demand, *_DEMAND):
        return panel.empty(f"No request came in {plural(hours.height, 'whole hour')}.")
    times = demand["ts"].to_list()
    time_range = TimeRange(times[0], times[-1])
    x = time_axis(time_range)
    frame = rounded(demand.select(*_DEMAND, t=milliseconds("ts")))
    rules = alt.Chart(frame).mark_rule(color=theme.INK).encode(x=x)
    columns = [
        DataColumn("ts", "hour from (UTC)", clock),
        *(DataColumn(name, title, count, ",.0f") for name, title in _DEMAND.items()),
    ]
    tips = [tip.tooltip for tip in tips_of(columns)]
    return panel.chart(
        [
            whole_window(time_range, x),
            *_demand_lines(frame, x),
            pointer(timed(rules), [time_tooltip(), *tips], key="t", shown=0.5),
        ],
        caption=captions.forecast_found(ahead),
        table=table_of(demand, columns),
    )


def idle_by_hour(analysis: Analysis, *, time_zone: str = "UTC") -> Chart:
    """Cost of idle time by hour of the week: stronger color for more, outline if unobserved.

    The hours of the week are those of `time_zone`. The chart is empty for less than a day of whole
    hours.
    Columns used: weekday, hour, observed_hours, cost_usd, utilization_ratio, idle_usd.
    """
    panel, hours = Panel("When are paid GPUs idle?", "idle"), analysis.hours
    if hours.height < _MIN_HOURS:
        return panel.empty(_TOO_SHORT.format(plural(hours.height, "whole hour")))
    week = idle_by_hour_of_week(hours, time_zone=time_zone).with_columns(
        day=pl.col("weekday").cast(pl.Int64).replace_strict(dict(enumerate(DAYS, start=1)))
    )
    seen = week.drop_nulls("idle_usd")
    if seen.is_empty():
        why = analysis.answer.cost.idle_usd.reason or "no hour has both a bill and a utilization"
        return panel.empty(f"Not known: {why.rstrip('.')}.")
    return panel.chart(
        week_cells(week, _IDLE_CELLS, time_zone),
        caption=captions.idle_found(seen, hours=week.height),
        table=table_of(week.filter(pl.col("observed_hours") > 0), _HOUR_COLUMNS),
        height=len(DAYS) * DAY_PIXELS,
    )


def _option_frame(options: Sequence[Option]) -> pl.DataFrame:
    """One row per option: its estimates, the text above its bar, or why it has no bar."""
    columns = {
        "gpu": [each.gpu for each in options],
        "dtype": [each.dtype for each in options],
        "price_row": [each.price_row for each in options],
        "usd_per_gpu_hour": [each.usd_per_gpu_hour.mid for each in options],
        "replicas": [each.replicas.mid for each in options],
        "usd_per_month": [each.usd_per_month.mid for each in options],
        "label": [each.label or None for each in options],
        "name": [f"{_named(each)}: {sure(each.tokens_per_usd, _millions)}" for each in options],
        "note": [None if each.is_comparable else _why_rejected(each) for each in options],
        **_ends(each.tokens_per_usd for each in options),
    }
    return pl.DataFrame(columns, schema_overrides=_OPTIONS)


def _named(option: Option) -> str:
    """The GPU, and how closely the measurement matches it."""
    return f"{option.gpu}, {option.label}" if option.label else option.gpu


def _grouped(rejected: Iterable[Option]) -> pl.DataFrame:
    """One row per reason with all GPUs rejected for it, because many share a reason."""
    by_reason: dict[str, list[str]] = {}
    for each in rejected:
        why = _why_rejected(each).removeprefix(each.gpu).strip().replace(each.gpu, "it")
        by_reason.setdefault(why, []).append(each.gpu)
    names = [f"Rejected, {why}: {', '.join(gpus)}" for why, gpus in by_reason.items()]
    return pl.DataFrame({"name": names}, schema={"name": pl.String})


def _why_rejected(option: Option) -> str:
    return option.reason or reason(option.tokens_per_usd)


def _ends_columns(title: str, write: Write, form: str) -> list[DataColumn]:
    """The columns of an estimate's middle, low and high value."""
    titles = {"mid": title, "low": "at least", "high": "at most"}
    return [DataColumn(end, title, write, form) for end, title in titles.items()]


def _ends(estimates: Iterable[Estimate]) -> dict[str, list[float | None]]:
    """The low, mid and high values of the estimates, by column."""
    rows = [(each.low, each.mid, each.high) for each in estimates]
    return {end: [row[place] for row in rows] for place, end in enumerate(_ENDS)}


def _millions(amount: float, like: float | None = None) -> str:
    return number(amount / _MILLION, None if like is None else like / _MILLION)


def _figure_or_reason(estimate: Estimate) -> str:
    return sure(estimate, count) if estimate.is_known else reason(estimate)


def _demand(hours: pl.DataFrame, ahead: DemandAhead) -> pl.DataFrame:
    """The observed and forecast hours in order: ts, requests, low, mid, high."""
    rows = [(each.ts, each.low, each.mid, each.high) for each in ahead.forecast or ()]
    expected = pl.DataFrame(rows, schema={"ts": hours.schema["ts"], **_ENDS}, orient="row")
    observed = hours.select("ts", "requests")
    return observed.join(expected, on="ts", how="full", coalesce=True).sort("ts")


def _demand_lines(frame: pl.DataFrame, x: alt.X) -> list[alt.Chart]:
    """Observed demand as a line, the forecast dashed in its band; each labeled at its peak."""
    base = alt.Chart(frame).encode(x=x)

    def y(column: str) -> alt.Y:
        scale = alt.Scale(domainMin=0, zero=True, nice=True)
        return alt.Y(f"{column}:Q", title="requests per hour", scale=scale)

    dots = alt.OverlayMarkDef(size=8, color=theme.INK, filled=True)
    seen = base.mark_line(color=theme.INK, strokeWidth=2, point=dots).encode(y=y("requests"))
    band = base.mark_area(color=theme.LOAD, opacity=0.2).encode(y=y("high"), y2=alt.Y2("low"))
    ahead = base.mark_line(color=theme.LOAD, strokeWidth=2, strokeDash=[6, 3]).encode(y=y("mid"))
    layers = [band, ahead, seen] if frame["mid"].count() else [seen]
    for column, color in (("requests", theme.INK), ("mid", theme.LOAD)):
        peak = frame.drop_nulls(column).sort(column, descending=True, maintain_order=True).head(1)
        if not peak.is_empty():
            point = peak.select("t", column, name=pl.lit(_DEMAND[column]))
            label = Label("right" if column == "mid" else "left")
            layers += labelled(alt.Chart(point), label, color=color, x=x, y=y(column))
    return layers
