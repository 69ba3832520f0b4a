"""A published cost checked against a window: figures that agree, implied price, GPU utilization.

A published figure has a fixed number of digits; the telemetry agrees if it rounds to the same ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

from vllm_capacity.analysis import Analysis
from vllm_capacity.errors import InputError
from vllm_capacity.estimate import Estimate, Kind
from vllm_capacity.facts.prices import Price, find_price
from vllm_capacity.render.numbers import count, number, percent, usd, value
from vllm_capacity.render.tables import (
    Cell,
    Column,
    Figure,
    Table,
    Text,
    Value,
    figures_table,
    table,
    text,
)
from vllm_capacity.verdicts.cost.comparisons import Claim, Comparison

_NO_BOUND = "no published run has this model, GPU and mean lengths"
_SAME = 0.0005


def claim_table(analysis: Analysis, claim: Claim) -> Table:
    """Each published figure next to the same figure from the telemetry, and whether they agree."""
    answer = analysis.answer
    columns = (
        Column("figure", "figure"),
        Column("published", "published", digits, is_numeric=True),
        Column("from the telemetry", is_numeric=True),
        Column("all digits", "found", "{:,.10g}".format, is_numeric=True),
        Column("agree", "is_reproduced"),
    )
    found = (
        Comparison("hours", claim.hours, answer.window.hours),
        Comparison("successful requests", claim.requests, answer.requests.successful),
        Comparison(
            "requests per hour", claim.requests_per_hour, answer.throughput.requests_per_hour
        ),
        Comparison("cost per request", claim.usd_per_request, answer.cost.usd_per_request.mid),
    )
    rows = [
        (
            each.name,
            each.published,
            Cell("not known" if each.rounded is None else f"{each.rounded:,f}"),
            each.found,
            "yes" if each.is_reproduced else "no",
        )
        for each in found
    ]
    return table(columns, rows)


def implied_price(analysis: Analysis, claim: Claim) -> Text:
    """The GPU-hour price implied by the published cost per request; whether it is the window's."""
    implied = claim.usd_per_gpu_hour
    sentence = (
        f"${digits(claim.usd_per_request)} × {count(claim.requests)} requests ÷ "
        f"{digits(claim.hours)} h = {usd(implied)} per GPU-hour"
    )
    row = analysis.assumptions.pricing.row
    if row is None:
        return text(f"{sentence}.")
    is_same = round(implied, 2) == round(row.usd_per_gpu_hour, 2)
    return text(
        f"{sentence}, which is {'' if is_same else 'not '}the price of {_named(row)}: "
        f"{usd(row.usd_per_gpu_hour)}."
    )


def claim_at_prices(analysis: Analysis, claim: Claim, rows: Sequence[str]) -> Table:
    """The run's cost at each named row of the price list, compared with the published cost.

    An empty name is left out; InputError for a name that matches no row.
    """
    columns = (
        Column("per GPU-hour", "usd_per_gpu_hour", usd, is_numeric=True),
        Column("price list row", "price"),
        Column("date", "date"),
        Column("the run", "allocation_usd", usd, is_numeric=True),
        Column("per request", "usd_per_request", digits, is_numeric=True),
        Column("against the published", "change_ratio", _change, is_numeric=True),
        Column("source", "source", is_note=True),
    )
    found = [_at_price(analysis, claim, find_price(name)) for name in rows if name]
    return table(columns, found, empty="No row of the price list was named.")


def gpu_use_table(analysis: Analysis) -> Table:
    """GPU utilization, relative to a published run that saturated the same kind of GPU."""
    bound, full = analysis.published_bound, analysis.full_use
    if bound is None:
        empty = f"How much of the GPU was used is not known: {_NO_BOUND}."
        return figures_table((), empty=empty)
    run, answer = bound.run, analysis.answer
    where = f"{run.model} on {run.gpus} × {run.gpu}, vLLM {run.engine_version}"
    published = (
        f"published, not measured here: {where}, {run.workload}, {run.load}; {run.source}, "
        f"{run.date}"
    )
    rate = answer.throughput.requests_per_second or 0.0
    figures = [
        _figure("requests per second", rate, "this window"),
        _figure("requests per second, full", bound.requests_per_second, published),
        Figure(
            "utilization",
            Estimate.exact(bound.used_ratio, "the first ÷ the second", kind=Kind.EXTRAPOLATED),
            percent,
        ),
        Figure("prompt tokens per request", answer.prompt_tokens_per_request, number),
        _figure("the same, published run", run.input_tokens, ""),
        Figure("output tokens per request", answer.output_tokens_per_request, number),
        _figure("the same, published run", run.output_tokens, ""),
    ]
    if full is not None and full.usd_per_request.is_known:
        figures += [
            Figure("cost per request", answer.cost.usd_per_request, _usd_digits),
            Figure("cost per request, full", full.usd_per_request, _usd_digits),
            Figure("full, times less", full.times_less, number),
        ]
    return figures_table(figures)


def claim_verdict(analysis: Analysis, claim: Claim, *, other_price: str) -> Text:
    """How well the published cost agrees with the telemetry, in one sentence.

    InputError if the window's own price is not a row of the price list.
    """
    row, other = analysis.assumptions.pricing.row, find_price(other_price)
    own = analysis.answer.cost.usd_per_request.mid
    if row is None or own is None:
        raise InputError("A claim is judged at a row of the price list: name one by price.")
    elsewhere = analysis.bill_at(other.usd).whole.usd_per_request.mid
    ratio = Comparison("", claim.usd_per_request, elsewhere).change_ratio or 0.0
    sentence = (
        f"{count(analysis.answer.requests.successful or 0)} requests cost ${digits(own)} each at "
        f"the {usd(row.usd_per_gpu_hour)} per GPU-hour of {_named(row)}, and "
        f"${digits(elsewhere or 0.0)} ({_change(ratio)}) at the {usd(other.usd_per_gpu_hour)} of "
        f"{_named(other)}"
    )
    bound, full = analysis.published_bound, analysis.full_use
    if bound is None or full is None:
        sentence += f"; how much of the GPU was used is not known: {_NO_BOUND}"
    else:
        sentence += (
            f"; either way about {percent(bound.used_ratio)} of the GPU was used, going by a "
            f"published run that filled one, and a request on a full one costs "
            f"{value(full.times_less, number)} times less"
        )
    simulated = "in this simulation, " if analysis.window.is_simulated else ""
    return text(f"{simulated}{sentence}.")


def digits(amount: float) -> str:
    """A number in the style of publications: up to four significant digits, no exponent."""
    return f"{Decimal(f'{amount:.4g}'):,f}"


def _usd_digits(amount: float, like: float | None = None) -> str:
    return f"${digits(amount)}"


def _figure(label: str, amount: float, basis: str) -> Figure:
    return Figure(label, Estimate.exact(amount, *([basis] if basis else [])), number)


def _at_price(analysis: Analysis, claim: Claim, row: Price) -> tuple[Value | Cell, ...]:
    cost = analysis.bill_at(row.usd).whole
    each = cost.usd_per_request
    return (
        row.usd_per_gpu_hour,
        _named(row),
        row.date,
        cost.allocation_usd,
        each,
        Comparison("", claim.usd_per_request, each.mid).change_ratio,
        f"{row.source}{f'; {row.note}' if row.note else ''}",
    )


def _named(row: Price) -> str:
    return f"{row.provider} {row.tier}"


def _change(ratio: float) -> str:
    if abs(ratio) < _SAME:
        return "the same"
    return f"{'+' if ratio > 0 else ''}{percent(ratio)}"
