"""Charts of the plan: which GPU, how many replicas, how much is coming, when money idles.

They draw the plan's own rows (planning.py). What cannot be had or known stays on the chart as a
line with its reason: a row that went missing would look like one that was never asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import polars as pl

from vllm_capacity.render.charts import theme
from vllm_capacity.render.charts.base import (
    Answer,
    Column,
    Label,
    Tip,
    clock,
    has_values,
    labelled,
    nothing,
    pointer,
    rounded,
    table_of,
    titled,
)
from vllm_capacity.render.charts.ranked_bars import Bars, ranked
from vllm_capacity.render.charts.time import (
    POINTS_AT_MOST,
    time_axis,
    time_tooltip,
    whole_window,
    with_milliseconds,
)
from vllm_capacity.render.numbers import Write, between, count, number, percent, usd
from vllm_capacity.render.prose import verdict as words

_MILLION = 1e6
_DAY_PIXELS = 26
_AMOUNTS = {key: pl.Float64 for key in ("low", "mid", "high")}
_WORDS = {key: pl.String for key in ("name", "note")}
_ROWS = {**_WORDS, **_AMOUNTS}
_OPTIONS: dict[str, Any] = {
    **{key: pl.String for key in ("gpu", "dtype", "price_row")},
    **_WORDS,
    **_AMOUNTS,
    **{key: pl.Float64 for key in ("usd_per_gpu_hour", "replicas", "usd_per_month")},
}
_CASES: dict[str, Any] = {"case": pl.String, **_WORDS, **_AMOUNTS}
_SEEN_AND_FORESEEN = {"requests": "seen", "low": "at least", "mid": "foreseen", "high": "at most"}
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_HOUR_TIPS = (
    Tip("day", "", "day"),
    Tip("hour", ".0f", "hour from"),
    Tip("idle_usd", "$,.3~r", "idle dollars an hour"),
    Tip("cost_usd", "$,.3~r", "bill an hour"),
    Tip("utilisation_ratio", ".0%", "used"),
    Tip("observed_hours", ".0f", "hours observed"),
)
_HOUR_COLUMNS = (
    Column("day", "day", str),
    Column("hour", "hour from", str),
    Column("idle_usd", "idle dollars an hour", usd),
    Column("cost_usd", "bill an hour", usd),
    Column("utilisation_ratio", "used", percent),
    Column("observed_hours", "hours observed", count),
)


def tokens_per_dollar(
    options: Sequence[Mapping[str, Any]], answer: Answer | None = None, reason: str = ""
) -> alt.TopLevelMixin:
    """Output tokens for a dollar by GPU, best first, with intervals; rejected GPUs by the reason.

    Bars whose intervals overlap may stand the other way round. `options` are the plan's rows;
    `reason` says why there are none.
    Columns used: gpu, dtype, price_row, usd_per_gpu_hour, tokens_per_usd, replicas, usd_per_month,
    reason.
    """
    question, definition = "Which GPU gives the most output for a dollar?", "whatif"
    if not options:
        why = reason or "no other GPU was compared"
        return nothing(question=question, reason=f"Not known: {why}.", definition=definition)
    rows = [_option(row) for row in options]
    known = sorted((row for row in rows if not row["note"]), key=lambda row: -float(row["mid"]))
    frame = pl.DataFrame([*known, *(row for row in rows if row["note"])], schema=_OPTIONS)
    tips = (
        Tip("gpu", "", "GPU"),
        Tip("dtype", "", "weights"),
        Tip("mid", ",.3~r", "output tokens for a dollar"),
        Tip("low", ",.3~r", "at least"),
        Tip("high", ",.3~r", "at most"),
        Tip("usd_per_gpu_hour", "$.3r", "a GPU-hour"),
        Tip("price_row", "", "price"),
        Tip("replicas", ",.0f", "replicas"),
        Tip("usd_per_month", "$,.3~r", "a month"),
    )
    columns = [
        Column("gpu", "GPU", str),
        Column("mid", "output tokens for a dollar", number),
        Column("low", "at least", number),
        Column("high", "at most", number),
        Column("usd_per_gpu_hour", "a GPU-hour", usd),
        Column("replicas", "replicas", count),
        Column("usd_per_month", "a month", usd),
        Column("price_row", "price", str),
        Column("note", "rejected because", str),
    ]
    axis = alt.Axis(labelExpr=f"datum.value / {_MILLION:.0f}", tickCount=5)
    bars = Bars("million output tokens for a dollar", "GPU", axis, theme.COST, tips)
    refused = pl.DataFrame(_refused(rows), schema=_ROWS)
    drawn = pl.concat([frame.filter(pl.col("note").is_null()), refused], how="diagonal")
    layers, height = ranked(drawn, bars)
    return titled(
        layers,
        question=question,
        found=_best_found(known, rejected=len(rows) - len(known)),
        definition=definition,
        table=table_of(frame, columns),
        height=height,
    )


def replicas_by_case(
    cases: Mapping[str, Mapping[str, Any]], answer: Answer | None = None, reason: str = ""
) -> alt.TopLevelMixin:
    """Replicas in each case asked for, with intervals; spares are among them.

    `cases`: the plan's sensitivity, an estimate by the case's name. `reason` says why there are
    none. Columns used: low, mid, high, reason.
    """
    question = "How many replicas, if things change?"
    definition = "replicas"
    rows = [_case(name, estimate) for name, estimate in cases.items()]
    if all(row["note"] for row in rows):
        why = reason or next((row["note"] for row in rows), "no case was asked for")
        return nothing(question=question, reason=f"Not known: {why}.", definition=definition)
    frame = pl.DataFrame(rows, schema=_CASES)
    tips = (
        Tip("case", "", "case"),
        Tip("mid", ",.0f", "replicas"),
        Tip("low", ",.0f", "at least"),
        Tip("high", ",.0f", "at most"),
    )
    columns = [
        Column("case", "case", str),
        Column("mid", "replicas", count),
        Column("low", "at least", count),
        Column("high", "at most", count),
        Column("note", "not known because", str),
    ]
    axis = alt.Axis(format="~d", tickCount=5, tickMinStep=1)
    bars = Bars("replicas, spares included", "case", axis, theme.LOAD, tips)
    layers, height = ranked(frame, bars)
    return titled(
        layers,
        question=question,
        found=_cases_found([row for row in rows if not row["note"]]),
        definition=definition,
        table=table_of(frame, columns),
        height=height,
    )


def demand_forecast(
    demand: pl.DataFrame, answer: Answer | None = None, reason: str = ""
) -> alt.TopLevelMixin:
    """Requests an hour: what was seen, and what is foreseen with its 90 % interval.

    A history without a forecast is drawn alone, with `reason` as what was found. At most 150 hours:
    the latest are kept. Columns used: ts, requests (seen; null where not recorded, and ahead), low,
    mid, high (foreseen; null in the past).
    """
    question, definition = "How many requests are coming?", "forecast"
    why = reason or "nothing was recorded to forecast from"
    if not has_values(demand, "requests", "mid"):
        return nothing(question=question, reason=f"Not known: {why}.", definition=definition)
    hours = demand.sort("ts").tail(POINTS_AT_MOST)
    spanned = {"window": {"start": hours["ts"].min(), "end": hours["ts"].max()}}
    x = time_axis(spanned)
    frame = rounded(with_milliseconds(hours, spanned).select("t", *_SEEN_AND_FORESEEN))
    is_foreseen = has_values(hours, "mid")
    tips = [Tip(name, ",.0f", title).tooltip for name, title in _SEEN_AND_FORESEEN.items()]
    rules = alt.Chart(frame).mark_rule(color=theme.INK).encode(x=x)
    columns = [
        Column("ts", "hour from (UTC)", clock),
        *(Column(name, title, count) for name, title in _SEEN_AND_FORESEEN.items()),
    ]
    return titled(
        [
            whole_window(spanned, x),
            *_demand_lines(frame, x, is_foreseen=is_foreseen),
            pointer(rules, [time_tooltip(), *tips], key="t", shown=0.5),
        ],
        question=question,
        found=_coming_found(hours) if is_foreseen else f"No forecast: {why}",
        definition=definition,
        table=table_of(hours, columns),
    )


def idle_by_hour(
    week: pl.DataFrame,
    answer: Answer | None = None,
    reason: str = "",
    *,
    time_zone: str = "UTC",
) -> alt.TopLevelMixin:
    """What idle time cost in each hour of the week: the stronger, the more; an outline: never seen.

    `week`: the 168 rows of `verdicts.idle.idle_by_hour_of_week`, in `time_zone`.
    Columns used: weekday, hour, observed_hours, cost_usd, utilisation_ratio, idle_usd.
    """
    question, definition = "When does the money idle?", "idle"
    if not has_values(week, "idle_usd"):
        told = (answer or {}).get("cost", {}).get("idle_usd", {}).get("reason")
        why = reason or told or "no hour has both a bill and a known use"
        return nothing(question=question, reason=f"Not known: {why}.", definition=definition)
    days = pl.col("weekday").cast(pl.Int64).replace_strict(dict(enumerate(_DAYS, start=1)))
    frame = week.with_columns(day=days)
    hours = alt.Axis(values=list(range(0, 24, 3)))
    at = {
        "x": alt.X("hour:O", title=f"hour of the day ({time_zone})", axis=hours),
        "y": alt.Y("day:O", title="day of the week", sort=list(_DAYS)),
    }
    # Opacity, not a range of colours: so the colour stays a variable, right on dark paper too.
    strength = alt.Opacity(
        "idle_usd:Q",
        title="idle dollars an hour",
        scale=alt.Scale(domainMin=0, range=[0.06, 1.0]),
        legend=alt.Legend(
            format="$,.3~r", tickCount=4, symbolType="square", symbolFillColor=theme.COST
        ),
    )
    seen = rounded(frame.filter(pl.col("idle_usd").is_not_null()))
    never = alt.Chart(frame.filter(pl.col("idle_usd").is_null()).select("day", "hour"))
    outlines = never.mark_rect(fillOpacity=0, stroke=theme.GRID, strokeWidth=1)
    cells = alt.Chart(seen).mark_rect(color=theme.COST)
    return titled(
        [
            outlines.encode(**at),
            cells.encode(**at, opacity=strength, tooltip=[tip.tooltip for tip in _HOUR_TIPS]),
        ],
        question=question,
        found=_idle_found(seen, hours=week.height),
        definition=definition,
        table=table_of(frame.filter(pl.col("observed_hours") > 0), _HOUR_COLUMNS),
        height=len(_DAYS) * _DAY_PIXELS,
    )


def _option(row: Mapping[str, Any]) -> dict[str, Any]:
    """The plan's option with its estimates flat, the words over its bar, and why it has none."""
    worth, gpu = row["tokens_per_usd"], str(row["gpu"])
    note = None if worth["mid"] is not None else str(row["reason"] or worth["reason"])
    said = note.removeprefix(gpu).strip() if note else _said(worth, _millions)
    return {
        **{key: str(row[key]) for key in ("gpu", "dtype", "price_row")},
        **{key: worth[key] for key in _AMOUNTS},
        **{key: row[key]["mid"] for key in ("usd_per_gpu_hour", "replicas", "usd_per_month")},
        "name": f"{gpu}: {said}",
        "note": note,
    }


def _refused(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row a reason, over all the GPUs that it rejects: seventeen lines would say two things."""
    by_reason: dict[str, list[str]] = {}
    for row in rows:
        if row["note"]:
            reason = str(row["note"]).removeprefix(row["gpu"]).strip().replace(row["gpu"], "it")
            by_reason.setdefault(reason, []).append(row["gpu"])
    nothing = dict.fromkeys(_AMOUNTS)
    return [
        {"name": f"Rejected, {reason}: {', '.join(gpus)}", "note": reason, **nothing}
        for reason, gpus in by_reason.items()
    ]


def _millions(amount: float, like: float | None = None) -> str:
    return number(amount / _MILLION, None if like is None else like / _MILLION)


def _case(name: str, estimate: Mapping[str, Any]) -> dict[str, Any]:
    note = None if estimate["mid"] is not None else str(estimate["reason"])
    return {
        "case": name,
        **{key: estimate[key] for key in _AMOUNTS},
        "name": f"{name}: {_said(estimate, count) if note is None else note}",
        "note": note,
    }


def _said(estimate: Mapping[str, Any], write: Write) -> str:
    interval = between(estimate, write)
    return f"{write(estimate['mid'])}{f' ({interval})' if interval else ''}"


def _demand_lines(frame: pl.DataFrame, x: alt.X, *, is_foreseen: bool) -> list[alt.Chart]:
    base = alt.Chart(frame).encode(x=x)

    def y(column: str) -> alt.Y:
        scale = alt.Scale(domainMin=0, zero=True, nice=True)
        return alt.Y(f"{column}:Q", title="requests an hour", scale=scale)

    dots = alt.OverlayMarkDef(size=8, color=theme.INK, filled=True)
    seen = base.mark_line(color=theme.INK, strokeWidth=2, point=dots).encode(y=y("requests"))
    band = base.mark_area(color=theme.LOAD, opacity=0.2).encode(y=y("high"), y2=alt.Y2("low"))
    ahead = base.mark_line(color=theme.LOAD, strokeWidth=2, strokeDash=[6, 3]).encode(y=y("mid"))
    layers = [band, ahead, seen] if is_foreseen else [seen]
    for column, colour in (("requests", theme.INK), ("mid", theme.LOAD)):
        peak = frame.drop_nulls(column).sort(column, descending=True, maintain_order=True).head(1)
        if not peak.is_empty():
            point = peak.select("t", column, name=pl.lit(_SEEN_AND_FORESEEN[column]))
            label = Label("right" if column == "mid" else "left")
            layers += labelled(alt.Chart(point), label, colour=colour, x=x, y=y(column))
    return layers


def _best_found(known: Sequence[Mapping[str, Any]], *, rejected: int) -> str:
    refused = f"{words.plural(rejected, 'GPU')} rejected, with the reason" if rejected else ""
    if not known:
        return f"None can be told: {refused}"
    best, *others = known
    rivals = sum(each["high"] >= best["low"] for each in others)
    parts = [f"{best['gpu']}: {_said(best, number)} output tokens for a dollar"]
    if others:
        parts.append(f"by the intervals {count(rivals)} of {count(len(others))} others may beat it")
    return "; ".join([*parts, refused] if refused else parts)


def _cases_found(known: Sequence[Mapping[str, Any]]) -> str:
    now = next((row for row in known if row["case"] == "now"), known[0])
    most = max(known, key=lambda row: float(row["mid"]))
    text = f"{_said(now, count)} in the case “{now['case']}”"
    if most["mid"] == now["mid"]:
        return f"{text}; no case takes more"
    return f"{text}; {_said(most, count)} in the case “{most['case']}”"


def _coming_found(hours: pl.DataFrame) -> str:
    ahead = hours.drop_nulls("mid").sort("mid", descending=True, maintain_order=True)
    peak = ahead.row(0, named=True)
    return f"Most are foreseen in the hour from {peak['ts']:%-d %b %H:%M} UTC: {_said(peak, count)}"


def _idle_found(seen: pl.DataFrame, *, hours: int) -> str:
    most = seen.sort("idle_usd", descending=True, maintain_order=True).row(0, named=True)
    text = f"Most on {most['day']} from {most['hour']:02}:00: {usd(most['idle_usd'])} in that hour"
    as_much = sum(usd(each) == usd(most["idle_usd"]) for each in seen["idle_usd"]) - 1
    if as_much:
        text += f", and as much in {words.plural(as_much, 'other')}"
    if seen.height == hours:
        return text
    return f"{text}; {count(seen.height)} of {count(hours)} hours of the week were observed"
