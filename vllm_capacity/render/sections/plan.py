"""Which GPUs, how many, and for how long: a plan (planning.py) as tables and a sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import polars as pl

from vllm_capacity.estimate import Estimate
from vllm_capacity.facts.gpus import GpuSpan, find_gpu, gpu_names
from vllm_capacity.facts.llms import find_llm
from vllm_capacity.facts.prices import choose_price, usual_forms
from vllm_capacity.facts.throughput import measurements
from vllm_capacity.render.charts.plan import demand_forecast, idle_by_hour
from vllm_capacity.render.numbers import (
    Write,
    between,
    count,
    instant,
    number,
    percent,
    seconds,
    usd,
)
from vllm_capacity.render.prose import verdict as words
from vllm_capacity.render.prose.estimates import (
    NOT_KNOWN,
    is_unknown,
    line,
    reason,
    sure,
    value,
)
from vllm_capacity.render.sections.elements import Piece, table
from vllm_capacity.render.study import Study
from vllm_capacity.render.text import Said, said
from vllm_capacity.verdicts.idle import idle_by_hour_of_week, savings
from vllm_capacity.verdicts.options import Candidate, whatif_table
from vllm_capacity.verdicts.question import Load, Question
from vllm_capacity.verdicts.runway import runways
from vllm_capacity.verdicts.sizing import Policy

Told = Mapping[str, Any]

_NEEDS: Sequence[tuple[str, str, Write]] = (
    ("requests a second to serve", "demand_requests_per_second", number),
    ("output tokens a second, that is", "demand_output_tokens_per_second", number),
    ("output tokens a second of one replica", "capacity_output_tokens_per_second", number),
    ("replicas, spares included", "replicas", count),
    ("GPUs", "gpus", count),
    ("dollars a month", "usd_per_month", usd),
)
_MORE_REPLICAS = 2
_LEAST_HOURS = 24
_WAYS = {
    "off in the hours of the day that always idle": "schedule",
    "off whenever nothing comes": "scale_to_zero",
    "fewer replicas, always on": "consolidation",
}


def needs(plan: Told) -> Piece:
    """What is asked, what one replica holds, and how many of them that takes."""
    rows, above = [], ""
    for name, figure, write in _NEEDS:
        *shown, why = line(name, plan[figure], write)
        rows.append([*shown, why.replace(above, "the line above") if above else why])
        above = why
    return table(["what", "value", "", "what it rests on"], rows, numeric=(1,))


def queueing(plan: Told) -> Said:
    """What a queue says of these replicas without their spares, in a sentence."""
    check = plan["queue_check"]
    if check is None:
        return said("A queue cannot be asked: demand, capacity or running requests are not known.")
    limit = seconds(check["wait_limit_seconds"])
    busy = f"without their spares they are {percent(check['utilisation_ratio'])} busy"
    if check["wait_seconds"] is None:
        waits = "and the queue never settles"
    else:
        waits = f"and 95 % of requests wait {seconds(check['wait_seconds'])} for a place at most"
    verdict = "within" if check["is_within_limit"] else "not within"
    return said(f"{busy} {waits}, {verdict} the limit of {limit}. Assumed: {check['assumes']}.")


def cases(plan: Told) -> Piece:
    """How many replicas it takes if demand, prompts or caching turn out otherwise."""
    rows = [
        [name, value(each, count), between(each, count), "" if each["mid"] else reason(each)]
        for name, each in plan["sensitivity"].items()
    ]
    return table(["if", "replicas", "", ""], rows, numeric=(1,))


def enough_until(plan: Told, policy: Policy, *, growth_ratio_per_month: float) -> Piece:
    """What a number of replicas carries, as a multiple of the demand, and until when."""
    needed = plan["replicas"]["mid"]
    if needed is None:
        return table(["replicas"], [], empty=f"Not known: {reason(plan['replicas'])}.")
    found = runways(
        Estimate(**plan["demand_output_tokens_per_second"]),
        Estimate(**plan["capacity_output_tokens_per_second"]),
        policy=policy,
        counts=range(policy.spare_replicas + 1, round(needed) + _MORE_REPLICAS + 1),
        growth_ratio_per_month=growth_ratio_per_month,
    )
    rows = []
    for each in found:
        times, months = each.times_demand.as_dict(), each.months.as_dict()
        rows.append(
            [
                count(each.replicas),
                value(each.carried.as_dict(), number),
                f"{value(times, number)} times",
                between(times, number),
                _months(months),
            ]
        )
    growth = percent(growth_ratio_per_month)
    spares = words.plural(policy.spare_replicas, "spare")
    return table(
        ["replicas", "carried", "of the demand", "", f"enough, growing {growth} a month"],
        rows,
        numeric=(0, 1, 2),
        caption=f"Carried: output tokens/s without the {spares} and with "
        f"{percent(policy.headroom_ratio)} of each other replica kept free.",
    )


def demand_ahead(plan: Told) -> Piece:
    """Requests of the next day, hour by hour with measured intervals; or why there is none."""
    told = plan["forecast"]
    rows = [
        [
            f"{instant(each['ts']):%-d %b %H:%M}",
            *(number(each[end]) for end in ("low", "mid", "high")),
        ]
        for each in told["forecast"] or ()
    ]
    coverage = told["coverage_measured"]
    held = ""
    if coverage is not None:
        held = f" Coverage expected from the back-test: {percent(coverage)} of hours."
    return table(
        ["hour (UTC)", "at least", "requests", "at most"],
        rows,
        numeric=(1, 2, 3),
        caption=f"{told['method']}.{held}" if rows else "",
        empty=f"No forecast: {str(told['reason']).rstrip('.')}.",
    )


def demand_seen_and_ahead(asked: Study, plan: Told) -> alt.TopLevelMixin | None:
    """Requests an hour as a chart: those of the window, then those of the plan's forecast.

    None under a day of whole hours: `demand_ahead` says in a line why there is no forecast.
    """
    told, seen = plan["forecast"], asked.hours.select("ts", "requests")
    if seen.height < _LEAST_HOURS:
        return None
    ahead = pl.DataFrame(
        told["forecast"] or [],
        schema={"ts": pl.String, **{end: pl.Float64 for end in ("low", "mid", "high")}},
    ).with_columns(pl.col("ts").str.to_datetime("%Y-%m-%dT%H:%M:%SZ", time_zone="UTC"))
    joined = seen.join(ahead, on="ts", how="full", coalesce=True).sort("ts")
    return demand_forecast(joined, asked.answer, str(told["reason"]))


def idle_hours(asked: Study) -> alt.TopLevelMixin | Said:
    """What idle time cost by hour of the week as a chart; a line that says why under a day."""
    if asked.hours.height < _LEAST_HOURS:
        seen = words.plural(asked.hours.height, "whole hour")
        return said(f"No picture of idle hours: {seen} in this window, a day of them is the least.")
    return idle_by_hour(idle_by_hour_of_week(asked.hours), asked.answer)


def idle_savings(asked: Study, policy: Policy) -> Piece | Said:
    """Dollars a month that three ways out of idle time would have saved, or why nobody knows."""
    found = savings(
        asked.hours,
        replicas=max(1, asked.answer["window"]["engines"]),
        startup_lead_seconds=policy.startup_seconds,
    )
    ways = {name: getattr(found, way).as_dict() for name, way in _WAYS.items()}
    if not any(each["mid"] is not None for each in ways.values()):
        return said(f"What that would save is not known: {reason(ways[next(iter(ways))])}.")
    rows = [line(name, each, usd) for name, each in ways.items()]
    return table(["way", "dollars a month saved", "", "what it rests on"], rows, numeric=(1,))


def gpu_options(
    *,
    model: str,
    gpu: str,
    output_tokens_per_second: float,
    input_tokens: float,
    output_tokens: float,
    measured_by: str,
    requests_per_second: float,
    policy: Policy,
    gpus: int = 1,
) -> list[dict[str, Any]]:
    """Every GPU known as an option, from a rate that somebody measured; rows as a plan's `options`.

    The rate is of `gpus` GPUs of that type serving requests of those mean lengths; `measured_by`
    says whose it is and under what load, and stands in what every option rests on.
    """
    llm, here = find_llm(model), find_gpu(gpu)
    spans = [find_gpu(name) for name in gpu_names()]
    basis = f"{number(output_tokens_per_second)} output tokens/s on {here.label}: {measured_by}"
    asked = f"{number(requests_per_second)} requests/s × {number(output_tokens)} output tokens"
    found = whatif_table(
        Question(
            llm=llm,
            dtype=llm.weights_dtype,
            to_dtype=llm.weights_dtype,
            from_gpu=here,
            to_gpu=here,
            gpus=gpus,
            output_tokens_per_second=output_tokens_per_second,
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            load=Load(is_capacity=True),
        ),
        [_candidate(span, llm.weights_dtype) for span in spans],
        slo_capacity=Estimate.exact(output_tokens_per_second, basis),
        demand=Estimate.exact(requests_per_second * output_tokens, asked),
        policy=policy,
        published=measurements(),
        prefer={span.rows[0].gpu: usual_forms(span.rows[0].gpu) for span in spans},
    )
    return [each.as_dict() for each in found]


def options(rows: Sequence[Told], *, reason_for_none: str = "") -> Piece:
    """The options of a plan, best tokens per dollar first; rejected ones last, with the reason."""
    return table(
        [
            "GPU",
            "output tokens/s",
            "dollars a GPU-hour",
            "million output tokens for a dollar",
            "replicas",
            "a month",
            "why not, or whose price",
        ],
        [_option(row) for row in rows],
        numeric=(4, 5),
        empty=f"No other GPU is compared: {reason_for_none.rstrip('.')}.",
    )


def plan_verdict(
    plan: Told, rows: Sequence[Told], *, model: str, requests_per_second: float
) -> Said:
    """How many replicas the window's load takes, then which GPU for a model; each with its load.

    `rows` are options of `model` for `requests_per_second`: from a rate somebody measured, so known
    where the window's own capacity is not.
    """
    return said(" ".join(filter(None, (_enough(plan), _best(rows, model, requests_per_second)))))


def _enough(plan: Told) -> str:
    replicas, rate = plan["replicas"], plan["demand_requests_per_second"]
    load = [plan["model"] or "no model named"]
    load += [] if rate["mid"] is None else [f"{number(rate['mid'])} requests/s"]
    text = f"for this window's load ({', '.join(load)}) "
    if is_unknown(replicas):
        return f"{text}it is not known how many replicas it takes: {reason(replicas)}."
    text += f"it takes {sure(replicas, count)} replicas, spares included"
    if not is_unknown(plan["usd_per_month"]):
        text += f", for {sure(plan['usd_per_month'], usd)} a month"
    told = plan["forecast"]
    if told["forecast"] is None:
        text += f"; for how long that is enough nobody can say from this window, {told['reason']}"
    return f"{text}."


def _best(rows: Sequence[Told], model: str, requests_per_second: float) -> str:
    known = [row for row in rows if row["tokens_per_usd"]["mid"] is not None]
    if not known:
        return ""
    best, *others = known
    rivals = [row for row in others if _overlaps(row, best)]
    text = (
        f"Apart from this window, for {model} at {number(requests_per_second)} requests/s and from "
        f"the rate measured elsewhere, most output for a dollar comes from {best['gpu']}"
    )
    if best["replicas"]["mid"] is not None:
        text += f", {sure(best['replicas'], count)} of them, spares included"
    if rivals:
        text += f", though {words.plural(len(rivals), 'other type')} may give as much"
    return f"{text}."


def _overlaps(row: Told, best: Told) -> bool:
    return bool(row["tokens_per_usd"]["high"] >= best["tokens_per_usd"]["low"])


def _option(row: Told) -> list[str]:
    shown: Sequence[tuple[str, Write]] = (
        ("slo_output_tokens_per_second", number),
        ("usd_per_gpu_hour", usd),
        ("tokens_per_usd", _millions),
    )
    return [
        str(row["gpu"]),
        *(sure(row[figure], write) for figure, write in shown),
        value(row["replicas"], count),
        value(row["usd_per_month"], usd),
        str(row["reason"] or row["price_row"]),
    ]


def _millions(tokens: float, like: float | None = None) -> str:
    return number(tokens / 1e6, None if like is None else like / 1e6)


def _candidate(span: GpuSpan, dtype: str) -> Candidate:
    price = choose_price(gpu=span.name)
    return Candidate(span, dtype, price.basis or price.reason, price)


def _months(months: Told) -> str:
    if months["mid"] is None:
        return NOT_KNOWN if not months["reason"] else reason(months)
    if months["high"] < 0:
        return "not today"
    if months["low"] < 0:
        return f"perhaps not today, {number(months['high'])} months at most"
    return f"{number(months['mid'])} months ({between(months, number)})"
