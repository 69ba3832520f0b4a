"""Two analyses side by side: what changed at the same load and mix, and possible reasons."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import datetime
from functools import partial

import polars as pl

from vllm_capacity.analysis import Analysis
from vllm_capacity.estimate import Estimate, Figures, listed
from vllm_capacity.facts.metrics import CACHE_CONFIG
from vllm_capacity.record import SCHEMA_VERSION, Record
from vllm_capacity.verdicts.changes import (
    Change,
    change,
    comparable_steps,
    mean_change,
    ratio_of,
)

_MIX_RATIO, _PRICE_RATIO = 1.05, 1.001  # smaller differences do not count as reasons
_MAX_SETTINGS = 5
_listed = partial(listed, most=_MAX_SETTINGS)
_MEASURED = frozenset(
    ("num_gpu_blocks", "kv_cache_size_tokens", "kv_cache_max_concurrency", "num_cpu_blocks")
)
"""Values that a server determines at startup: they vary slightly between replicas."""


class Side(Figures, frozen=True):
    """One of the two sides: its time range, models, cost and throughput.

    `engine_usd_per_hour` is the cost of one engine, `output_tokens_per_second` the mean throughput
    of one; lengths are means over finished requests.
    """

    window: str
    start: datetime
    end: datetime
    engines: float
    models: tuple[str, ...]
    engine_usd_per_hour: Estimate
    usd_per_million_output_tokens: Estimate
    output_tokens_per_second: float | None
    prompt_tokens_per_request: Estimate
    output_tokens_per_request: Estimate
    restarts: int


class Reason(Record, frozen=True):
    """Another difference: its kind (price, load, mix, model, setting) and both values."""

    kind: str
    evidence: str


class Comparison(Record, frozen=True):
    """The changes from A (`before`) to B (`after`), each as the ratio B ÷ A.

    `cost_at_same_load` is the cost per output token if both had served the same load and mix: the
    price of an engine-hour × the time per token. `cost_as_billed` is the actual cost of a token,
    with its load. `itl` (mean) and `ttft` (p95 of a step) are at the same load and mix; `output`
    and `capacity`, per engine, are as measured. `reasons` are the other differences, likeliest
    first.
    """

    before: Side
    after: Side
    cost_at_same_load: Change
    cost_as_billed: Change
    itl: Change
    ttft: Change
    output: Change
    capacity: Change
    reasons: tuple[Reason, ...]
    schema_version: int = SCHEMA_VERSION

    @property
    def changes(self) -> dict[str, Change]:
        """The changes by name, in display order."""
        names = ("cost_at_same_load", "cost_as_billed", "itl", "ttft", "output", "capacity")
        return {name: getattr(self, name) for name in names}


def compare(before: Analysis, after: Analysis) -> Comparison:
    """The changes between two analyses, of two windows or of two time ranges of one.

    Each has its own price. A change that cannot be determined is unknown, with its reason.
    """
    sides = _side(before), _side(after)
    steps = _steps(before), _steps(after)
    itl = change(*steps, "itl_seconds")
    output = mean_change(before.steps, after.steps, "output_tokens_per_second")
    price = _price_ratio(*sides)
    return Comparison(
        before=sides[0],
        after=sides[1],
        cost_at_same_load=Change(_product(price, itl.ratio)),
        cost_as_billed=Change(_product(price, output.ratio.inverse())),
        itl=itl,
        ttft=change(*steps, "ttft_seconds"),
        output=output,
        capacity=ratio_of(_capacity(before), _capacity(after)),
        reasons=tuple(_reasons(before, after, sides, output)),
    )


def _steps(analysis: Analysis) -> pl.DataFrame:
    served = analysis.models_by_engine
    return comparable_steps(analysis.steps, {name: ", ".join(own) for name, own in served.items()})


def _product(price: Estimate, other: Estimate) -> Estimate:
    """The price's ratio times another; unknown with its reason if either is unknown."""
    return price if price.is_unknown else other if other.is_unknown else price.times(other)


def _price_ratio(before: Side, after: Side) -> Estimate:
    """The price of an engine-hour, B ÷ A; 1 if neither has one, as the price is then the same."""
    one, two = before.engine_usd_per_hour, after.engine_usd_per_hour
    if one.is_unknown and two.is_unknown and one.reason == two.reason:
        return Estimate.exact(1.0, "the same price for both, whatever it is")
    if one.low is not None and (one.low, one.mid, one.high) == (two.low, two.mid, two.high):
        return Estimate.exact(1.0, "the same price for both")
    return two.divided_by(one)


def _side(analysis: Analysis) -> Side:
    found, usage = analysis.answer, analysis.bill.usage
    hours, engines = usage.billed_hours, found.window.mean_engines
    whole = found.cost.total
    rate = found.throughput.output_tokens_per_second
    return Side(
        window=analysis.window.name,
        start=analysis.time_range.start,
        end=analysis.time_range.end,
        engines=engines,
        models=tuple(analysis.models),
        engine_usd_per_hour=whole.scaled(1 / hours) if hours else whole,
        usd_per_million_output_tokens=found.cost.usd_per_million_output_tokens,
        output_tokens_per_second=None if rate is None or not engines else rate / engines,
        prompt_tokens_per_request=found.prompt_tokens_per_request,
        output_tokens_per_request=found.output_tokens_per_request,
        restarts=len(analysis.restarts),
    )


def _capacity(analysis: Analysis) -> Estimate:
    """The capacity of one engine, so that a fleet that grew does not look like a faster one."""
    engines = analysis.answer.window.mean_engines
    whole = analysis.answer.saturation.capacity
    return whole.scaled(1 / engines) if engines else whole


def _reasons(
    before: Analysis, after: Analysis, sides: tuple[Side, Side], output: Change
) -> Iterator[Reason]:
    one, two = sides
    if one.models != two.models:
        yield Reason("model", f"{_listed(one.models)} → {_listed(two.models)}")
    prices = one.engine_usd_per_hour.mid, two.engine_usd_per_hour.mid
    if _differ(*prices, _PRICE_RATIO):
        yield Reason("price", f"${prices[0]:.4g} → ${prices[1]:.4g} per engine-hour")
    yield from _settings(before, after)
    if one.restarts or two.restarts:
        yield Reason("restart", f"{one.restarts} in A, {two.restarts} in B")
    yield from _mix(one, two)
    rates = one.output_tokens_per_second, two.output_tokens_per_second
    is_one_idle = None not in rates and bool(rates[0]) != bool(rates[1])
    if output.is_more_than_noise or is_one_idle:
        yield Reason("load", f"{_rate(rates[0])} → {_rate(rates[1])} output tokens/s per engine")
    if round(one.engines, 1) != round(two.engines, 1):
        yield Reason("engines", f"{one.engines:.3g} → {two.engines:.3g} on average")


def _mix(one: Side, two: Side) -> Iterator[Reason]:
    for name, length in (
        ("prompt", "prompt_tokens_per_request"),
        ("output", "output_tokens_per_request"),
    ):
        lengths = getattr(one, length).mid, getattr(two, length).mid
        if _differ(*lengths, _MIX_RATIO):
            yield Reason("mix", f"{lengths[0]:.4g} → {lengths[1]:.4g} {name} tokens per request")


def _settings(before: Analysis, after: Analysis) -> Iterator[Reason]:
    """Changes in the servers' reported settings, and in the metrics that they export."""
    one, two = _labels(before), _labels(after)
    other = [name for name in sorted(one.keys() & two.keys()) if one[name] != two[name]]
    for name in other[:_MAX_SETTINGS]:
        yield Reason("setting", f"{name}: {_listed(one[name])} → {_listed(two[name])}")
    gone, new = one.keys() - two.keys(), two.keys() - one.keys()
    families = _families(before), _families(after)
    gone, new = gone | (families[0] - families[1]), new | (families[1] - families[0])
    if one and two and (gone or new):
        changes = [f"new: {_listed(sorted(new))}"] if new else []
        changes += [f"gone: {_listed(sorted(gone))}"] if gone else []
        yield Reason(
            "version", f"another version of vLLM, by what it exports ({'; '.join(changes)})"
        )


def _labels(analysis: Analysis) -> Mapping[str, tuple[str, ...]]:
    """The values of each setting that the servers of the window export, by name."""
    rows = analysis.window.named_sql("figures", "makes", metrics=[CACHE_CONFIG])
    found: dict[str, set[str]] = {}
    for text in rows.get_column("labels"):
        for name, value in json.loads(text).items():
            if name not in _MEASURED:
                found.setdefault(name, set()).add(str(value))
    return {name: tuple(sorted(values)) for name, values in found.items()}


def _families(analysis: Analysis) -> set[str]:
    """The families of vLLM's own metrics that were exported in the window."""
    names = analysis.window.sql("select distinct metric from series")
    own = names.filter(pl.col("metric").str.starts_with("vllm:"))
    return set(own.get_column("metric"))


def _differ(one: float | None, two: float | None, ratio: float) -> bool:
    return bool(one and two) and max(one or 1, two or 1) > ratio * min(one or 1, two or 1)


def _rate(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3g}"
