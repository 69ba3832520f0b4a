"""A published cost, held against a window: what is reproduced, whose price it was, what was used.

A published figure has as many digits as it was printed with; the telemetry agrees where it rounds
to the same digits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

from vllm_capacity.errors import InputError
from vllm_capacity.facts.llms import find_llm
from vllm_capacity.facts.prices import Price, find_price
from vllm_capacity.facts.throughput import measurements
from vllm_capacity.render.numbers import count, number, percent, usd
from vllm_capacity.render.sections.elements import Piece, table
from vllm_capacity.render.study import Study
from vllm_capacity.render.text import Said, said
from vllm_capacity.verdicts.claim import (
    Bound,
    implied_usd_per_gpu_hour,
    published_bound,
    usd_per_request_at,
)


@dataclass(frozen=True)
class Claim:
    """What was published of a run: its length, its requests, their rate, and what one cost."""

    hours: float
    requests: float
    requests_per_hour: float
    usd_per_request: float


def reproduced(asked: Study, claim: Claim) -> Piece:
    """Each published figure beside the same figure from the telemetry, and whether they agree."""
    answer = asked.answer
    rate = answer["throughput"]["requests_per_second"]
    rows = [
        ("hours", claim.hours, answer["window"]["hours"]),
        ("successful requests", claim.requests, answer["requests"]["successful"]),
        ("requests an hour", claim.requests_per_hour, None if rate is None else 3600 * rate),
        ("dollars a request", claim.usd_per_request, answer["cost"]["usd_per_request"]["mid"]),
    ]
    return table(
        ["figure", "published", "from the telemetry", "in all its digits", "agree"],
        [_compared(name, published, found) for name, published, found in rows],
        numeric=(1, 2, 3),
    )


def implied_price(asked: Study, claim: Claim) -> Said:
    """The hourly price that the published cost of a request rests on, and whose that is."""
    implied = implied_usd_per_gpu_hour(claim.usd_per_request, claim.requests, claim.hours)
    text = (
        f"{_digits(claim.usd_per_request)} dollars × {count(claim.requests)} requests ÷ "
        f"{_digits(claim.hours)} h = {usd(implied)} for an hour of one GPU"
    )
    row = asked.price_row
    if row is None:
        return said(f"{text}.")
    is_same = round(implied, 2) == round(row.usd_per_gpu_hour, 2)
    return said(
        f"{text}, which is {'' if is_same else 'not '}what {_named(row)} asked: "
        f"{usd(row.usd_per_gpu_hour)}."
    )


def at_prices(asked: Study, claim: Claim, rows: Sequence[str]) -> Piece:
    """The same run under each named row of the price list, against the published cost."""
    return table(
        [
            "a GPU-hour",
            "price list row",
            "date",
            "the run",
            "a request",
            "against the published",
            "source and note",
        ],
        [_at_price(asked, claim, find_price(name)) for name in rows],
        numeric=(0, 3, 4, 5),
    )


def use_of_gpu(asked: Study) -> Piece:
    """How much of the GPU was used, against a published run that filled one like it."""
    bound = _bound(asked)
    if bound is None:
        return table(["figure"], [], empty=f"How much of it was used is not known: {_NO_BOUND}.")
    now = asked.answer["throughput"]["requests_per_second"]
    cost = asked.answer["cost"]["usd_per_request"]["mid"]
    full = _usd_when_full(asked, bound)
    run = bound.run
    where = f"{run.model} on {run.gpus} × {run.gpu}, vLLM {run.engine_version}"
    rows = [
        ["requests a second", number(now), "this window"],
        [
            "requests a second, full",
            f"{bound.requests_per_second:.4g}",
            f"published, not measured here: {where}, {run.workload}, {run.load}; "
            f"{run.source}, {run.date}",
        ],
        ["used", percent(bound.used_ratio), "the first ÷ the second"],
        [
            "tokens a request",
            _lengths(asked),
            f"published run: {_tokens(run.input_tokens, run.output_tokens)}",
        ],
    ]
    if cost is not None and full is not None:
        rows += [
            ["dollars a request", _digits(cost), "this window, idle time included"],
            ["dollars a request, full", _digits(full), "the same price at the published rate"],
            ["full, times less", number(cost / full), "what idle time costs"],
        ]
    return table(["figure", "value", "what it rests on"], rows, numeric=(1,))


def claim_verdict(asked: Study, claim: Claim, *, other_price: str) -> Said:
    """What the published cost is worth, in one sentence."""
    row, other = asked.price_row, find_price(other_price)
    own = asked.answer["cost"]["usd_per_request"]["mid"]
    if row is None or own is None:
        raise InputError("A claim is judged at a row of the price list: name one by price.")
    dearer = _each_at(asked, other)
    text = (
        f"{count(asked.answer['requests']['successful'])} requests cost {_digits(own)} dollars "
        f"each at the {usd(row.usd_per_gpu_hour)} an hour of {_named(row)}, and {_digits(dearer)} "
        f"({_change(dearer, claim.usd_per_request)}) at the {usd(other.usd_per_gpu_hour)} of "
        f"{_named(other)}"
    )
    bound = _bound(asked)
    full = None if bound is None else _usd_when_full(asked, bound)
    if bound is None or full is None:
        text += f"; how much of the GPU that used is not known: {_NO_BOUND}"
    else:
        text += (
            f"; either way about {percent(bound.used_ratio)} of the GPU was used, going by a "
            f"published run that filled one, and a full one costs {own / full:.0f} times less a "
            "request"
        )
    simulated = "in this simulation " if asked.opened.is_simulated else ""
    return said(f"{simulated}{text}.")


_NO_BOUND = "no published run has this model, GPU and such lengths"


def _bound(asked: Study) -> Bound | None:
    """The published run like this window; None without one, or without a price row's GPU."""
    row, answer = asked.price_row, asked.answer
    models, rate = _models(asked), answer["throughput"]["requests_per_second"]
    lengths = _mean_lengths(asked)
    if row is None or len(models) != 1 or not rate or lengths is None:
        return None
    try:
        model = find_llm(models[0]).model
    except InputError:
        return None
    return published_bound(
        measurements(),
        model=model,
        gpu=row.gpu,
        input_tokens=lengths[0],
        output_tokens=lengths[1],
        requests_per_second=rate,
    )


def _usd_when_full(asked: Study, bound: Bound) -> float | None:
    price = asked.terms.usd_per_gpu_hour
    return None if price is None else usd_per_request_at(bound, price).mid


def _models(asked: Study) -> list[str]:
    found = asked.opened.sql(
        "select distinct model_name from series where model_name is not null order by model_name"
    )
    return [str(name) for name in found["model_name"].to_list()]


def _mean_lengths(asked: Study) -> tuple[float, float] | None:
    tokens, finished = asked.answer["tokens"], asked.answer["requests"]["finished"]
    if not finished or None in (tokens["prompt"], tokens["generation"]):
        return None
    return tokens["prompt"] / finished, tokens["generation"] / finished


def _lengths(asked: Study) -> str:
    lengths = _mean_lengths(asked)
    return "not known" if lengths is None else _tokens(*lengths)


def _tokens(inputs: float, outputs: float) -> str:
    return f"{number(inputs)} in, {number(outputs)} out"


def _at_price(asked: Study, claim: Claim, row: Price) -> list[str]:
    each = _each_at(asked, row)
    run = asked.answer["cost"]["allocation_usd"]["mid"]
    own = asked.terms.usd_per_gpu_hour
    factor = row.usd_per_gpu_hour / own.mid if own and own.mid else None
    return [
        usd(row.usd_per_gpu_hour),
        _named(row),
        row.date,
        "not known" if run is None or factor is None else usd(run * factor),
        _digits(each),
        _change(each, claim.usd_per_request),
        f"{row.source}{f'; {row.note}' if row.note else ''}",
    ]


def _each_at(asked: Study, row: Price) -> float:
    """Dollars a request at a row's price: the bill is in proportion to it."""
    own = asked.answer["cost"]["usd_per_request"]["mid"]
    price = asked.terms.usd_per_gpu_hour
    if own is None or price is None or not price.mid:
        raise InputError("No cost of a request to price anew: give the window a price first.")
    return float(own * row.usd_per_gpu_hour / price.mid)


def _named(row: Price) -> str:
    return f"{row.provider} {row.tier}"


def _change(value: float, published: float) -> str:
    ratio = value / published - 1
    return (
        f"{'+' if ratio >= 0.0005 else ''}{percent(ratio)}" if abs(ratio) >= 0.0005 else "the same"
    )


def _compared(name: str, published: float, found: float | None) -> list[str]:
    if found is None:
        return [name, _digits(published), "not known", "", "no"]
    printed = Decimal(repr(float(published))).normalize()
    exponent = Decimal(1).scaleb(min(int(printed.as_tuple().exponent), 0))
    rounded = Decimal(repr(float(found))).quantize(exponent)
    return [
        name,
        _digits(published),
        f"{rounded:,f}",
        f"{found:,.10g}",
        "yes" if rounded == printed else "no",
    ]


def _digits(value: float) -> str:
    """A published kind of number: up to four significant digits, never in powers of ten."""
    return f"{Decimal(f'{value:.4g}'):,f}"
