"""The bill of a window: the use and cost of each engine, and of each group of engines.

Engines are priced one by one (their GPUs and prices may differ, and change within the window) and
added: the parts of every grouping add up to the same whole.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import polars as pl
from msgspec.structs import replace

from vllm_capacity.assumptions import Pricing
from vllm_capacity.billed import Billed, BilledUse, priced, rate_of
from vllm_capacity.errors import InputError
from vllm_capacity.estimate import Estimate, Figures
from vllm_capacity.facts.metrics import GENERATION_TOKENS, PROMPT_TOKENS, REQUESTS
from vllm_capacity.figures import traffic
from vllm_capacity.figures.makes import target_labels
from vllm_capacity.record import Record
from vllm_capacity.telemetry.window import Window
from vllm_capacity.timerange import TimeRange
from vllm_capacity.verdicts.cost.bill import (
    Bill,
    Costs,
    CostShare,
    Usage,
    shared_engine,
)

_THROUGHOUT = 0.995
COUNTERS = (REQUESTS, PROMPT_TOKENS, GENERATION_TOKENS)


def engine_rates(engines: pl.DataFrame, pricing: Pricing) -> dict[str, tuple[float, float]]:
    """GPUs and USD per GPU-hour of each instance from a mapping file: they distinguish GPUs.

    Empty without a file; instances that it does not cover are left out.
    """
    if not pricing.rules:
        return {}
    found = {str(row["instance"]): rate_of(row, pricing) for row in engines.iter_rows(named=True)}
    return {
        instance: (rate.gpus_per_engine, rate.usd_per_gpu_hour.mid)
        for instance, rate in found.items()
        if rate.usd_per_gpu_hour.mid is not None
    }


def engine_name(row: Mapping[str, object]) -> str:
    """An engine's name everywhere: `instance/engine`."""
    return f"{row['instance']}/{row['engine']}"


def engine_parts(
    window: Window,
    engines: pl.DataFrame,
    *,
    time_range: TimeRange,
    pricing: Pricing,
    capacities: Mapping[str, Estimate],
    prefill_time_ratios: Mapping[str, Estimate],
) -> dict[str, CostShare]:
    """The part of the bill for each engine of `engines` (figures/scrapes.py), by name.

    An engine's capacity and rate are weighted by its share of the time range (`presence`), so that
    they add up over engines that replaced each other.
    """
    increases = traffic.counter_increases(window, COUNTERS, time_range=time_range)
    unknown = Estimate.unknown("the capacity of this engine was not judged")
    there = presence(engines)
    parts = {}
    for row in engines.iter_rows(named=True):
        own = increases.filter(
            (pl.col("instance") == row["instance"]) & (pl.col("engine") == row["engine"])
        )
        name = engine_name(row)
        usage = _usage(own, row["hours"], prefill_time_ratios.get(name))
        share, rate = there[name], usage.output_tokens_per_second
        parts[name] = priced(
            row,
            replace(usage, output_tokens_per_second=None if rate is None else rate * share),
            capacities.get(name, unknown).scaled(share),
            pricing,
        )
    return parts


def billed_use(
    engines: pl.DataFrame, parts: Mapping[str, CostShare], *, pricing: Pricing, lost_reason: str
) -> BilledUse:
    """The bill's parts with the times of the engines (figures/scrapes.py), to keep in a report."""
    rows = {engine_name(row): row for row in engines.iter_rows(named=True)}
    kept = {
        name: Billed(
            rows[name]["instance"],
            rows[name]["billed_start"],
            rows[name]["billed_end"],
            part.usage,
            part.usd_per_gpu_hour,
            part.capacity_output_tokens_per_second,
            rows[name]["model_name"],
            rate_of(rows[name], pricing).host,
        )
        for name, part in parts.items()
    }
    return BilledUse(kept, lost_reason)


def presence(engines: pl.DataFrame) -> dict[str, float]:
    """Each engine's share of the fleet's billed time, 0..1, by name.

    The fleet's time is from the first engine's billed start to the last one's billed end: an engine
    present throughout has a share of 1, give or take a scrape. Empty without engines.
    """
    if engines.is_empty():
        return {}
    span = pl.col("billed_end").max() - pl.col("billed_start").min()
    hours = engines.select(span.dt.total_microseconds()).item() / 3.6e9
    shares = {
        engine_name(row): row["hours"] / hours if hours else 1.0
        for row in engines.iter_rows(named=True)
    }
    return {name: 1.0 if share > _THROUGHOUT else share for name, share in shares.items()}


def _usage(increases: pl.DataFrame, hours: float, prefill_time_ratio: Estimate | None) -> Usage:
    by_reason = traffic.total_by_label(increases, REQUESTS, "finished_reason")
    return Usage(
        billed_hours=hours,
        successful_requests=traffic.successful(by_reason),
        prompt_tokens=traffic.total(increases, PROMPT_TOKENS),
        generation_tokens=traffic.total(increases, GENERATION_TOKENS),
        prefill_time_ratio=prefill_time_ratio,
        output_tokens_per_second=traffic.rate_per_second(increases, GENERATION_TOKENS),
    )


def grouped(
    window: Window, parts: Mapping[str, CostShare], *, by: str, time_range: TimeRange
) -> dict[str, dict[str, CostShare]]:
    """The parts of the bill for each group: by `engine`, `instance`, `model`, or any label.

    The label may be of a counter or of a target. By group, then by engine: an engine with several
    values of the label is split by the use of each value (verdicts/cost/bill.py). InputError,
    naming the existing labels, if nothing has the label.
    """
    if by == "engine":
        return {name: {name: part} for name, part in parts.items()}
    labelled = _labelled(window, by, time_range).drop_nulls("by")
    if labelled.is_empty():
        known = ", ".join(("engine", "instance", "model", *_label_names(window, time_range)))
        raise InputError(
            f"Cannot group by {by!r}: neither a counter nor a target has that label. There are "
            f"{known}."
        )
    found: dict[str, dict[str, CostShare]] = {}
    for name, whole in parts.items():
        for key, share in _shares(labelled, name, whole).items():
            found.setdefault(key, {})[name] = share
    return dict(sorted(found.items()))


def _label_names(window: Window, time_range: TimeRange) -> list[str]:
    """The labels of the bill's counters and of the targets, by name."""
    increases = traffic.counter_increases(window, COUNTERS, time_range=time_range)
    own = {name for labels in increases.get_column("labels") for name in json.loads(labels)}
    return sorted(own.union(*target_labels(window).values()))


class Group(Figures, frozen=True):
    """One group's use in the time range, and its part of the bill.

    Counts and hours of groups add up to those of the whole; None if not counted by the label.
    `output_tokens_per_second` is the mean over the fleet's time.
    """

    billed_hours: float
    successful_requests: float | None
    prompt_tokens: float | None
    generation_tokens: float | None
    output_tokens_per_second: float | None
    capacity_output_tokens_per_second: Estimate
    cost: Costs


class Groups(Record, frozen=True):
    """The figures of each group, by its value of `by`, and of the whole (their sum)."""

    by: str
    whole: Group
    parts: Mapping[str, Group]


def groups(whole: Bill, parts: Mapping[str, Bill], *, by: str) -> Groups:
    """The figures of the whole and of each group, from their bills."""
    return Groups(by, _group(whole), {name: _group(part) for name, part in parts.items()})


def _group(found: Bill) -> Group:
    usage = found.usage
    return Group(
        billed_hours=usage.billed_hours,
        successful_requests=usage.successful_requests,
        prompt_tokens=usage.prompt_tokens,
        generation_tokens=usage.generation_tokens,
        output_tokens_per_second=usage.output_tokens_per_second,
        capacity_output_tokens_per_second=found.capacity,
        cost=found.whole,
    )


def unlabelled(window: Window, *, by: str, time_range: TimeRange) -> list[str]:
    """The bill's counters that the server has without the label: these cannot be split."""
    if by == "engine":
        return []
    each = _labelled(window, by, time_range).group_by("metric").agg(pl.col("by").is_null().all())
    return sorted(each.filter("by").get_column("metric"))


def _labelled(window: Window, by: str, time_range: TimeRange) -> pl.DataFrame:
    """The increases of the bill's counters, with their value of the label in `by`, or null."""
    increases = traffic.counter_increases(window, COUNTERS, time_range=time_range)
    instances = increases.get_column("instance").to_list()
    if by in ("model", "instance"):
        values = increases.get_column("model_name").to_list() if by == "model" else instances
    else:
        targets = target_labels(window)
        values = [
            json.loads(labels).get(by) or targets.get(instance, {}).get(by)
            for instance, labels in zip(instances, increases.get_column("labels"), strict=True)
        ]
    return increases.with_columns(pl.Series("by", values, dtype=pl.String))


def _shares(labelled: pl.DataFrame, name: str, whole: CostShare) -> dict[str, CostShare]:
    instance, _, engine = name.rpartition("/")
    own = labelled.filter((pl.col("instance") == instance) & (pl.col("engine") == engine))
    values = own.get_column("by").unique().sort().to_list()
    if len(values) < 2:
        return {values[0] if values else "(none)": whole}
    used = {value: _usage(own.filter(pl.col("by") == value), 0.0, None) for value in values}
    shared = shared_engine(whole.usage, used)
    return {value: replace(whole, usage=usage) for value, usage in shared.items()}
