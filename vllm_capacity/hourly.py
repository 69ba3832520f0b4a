"""What each hour of a window brought and cost: the ground of its idle hours of the week."""

from __future__ import annotations

from typing import Any

import polars as pl

from vllm_capacity.bills import Terms, engine_name
from vllm_capacity.estimate import Estimate
from vllm_capacity.figures import scrapes
from vllm_capacity.figures.hours import HOUR, engine_hours, whole_hours
from vllm_capacity.telemetry.window import Window
from vllm_capacity.timerange import TimeRange
from vllm_capacity.verdicts.cost import Usage, bill

_HOURS: dict[str, Any] = {
    "ts": pl.Datetime("us", "UTC"),
    **{name: pl.Float64 for name in ("requests", "cost_usd", "utilisation_ratio")},
}


def hours_seen(
    window: Window, *, part: TimeRange, terms: Terms, told: dict[str, Any]
) -> pl.DataFrame:
    """What each whole hour of the clock (UTC) in the part brought, and what it cost; in order.

    Columns: ts (its start), requests (finished), cost_usd, utilisation_ratio (0..1). Cost and use
    are the bill's (verdicts/cost.py), an engine's capacity an even share of what `told`, the part's
    answer, says of all. Null where an engine was not seen through the hour (figures/hours.py), or
    where there is no price or no capacity. Empty where the part holds no whole hour.
    """
    tries = scrapes.attempts(window, end=part.end)
    fleet = scrapes.engines(window, part=part, tries=tries)
    capacity = Estimate(**told["saturation"]["capacity_output_tokens_per_second"])
    each = capacity.scaled(1 / (told["window"]["mean_engines"] or 1.0))
    by_hour = engine_hours(window, fleet, tries, part=part).partition_by("ts", as_dict=True)
    rows = []
    for start in whole_hours(part, tries):
        engines = by_hour.get((start,))
        is_seen = engines is not None and bool(engines["is_seen"].all())
        found = _hour_seen(engines, terms, each) if is_seen and engines is not None else None
        rows.append((start, *(found or (None, None, None))))
    return pl.DataFrame(rows, schema=_HOURS, orient="row")


def _hour_seen(
    engines: pl.DataFrame, terms: Terms, capacity: Estimate
) -> tuple[float, float | None, float | None]:
    """Requests, cost and use of one hour: its rows of figures/hours.py, `capacity` an engine's."""
    parts = {}
    for row in engines.iter_rows(named=True):
        hours, tokens = row["billed_hours"], row["generation_tokens"]
        usage = Usage(
            billed_hours=hours,
            successful_requests=None,
            prompt_tokens=None,
            generation_tokens=tokens,
            output_tokens_per_second=tokens / 3600,
        )
        times = {"billed_start": row["ts"], "billed_end": row["ts"] + HOUR}
        parts[engine_name(row)] = terms.part({**row, **times}, usage, capacity.scaled(hours))
    whole = bill(parts).whole
    return float(engines["requests"].sum()), whole["allocation_usd"].mid, whole["utilisation"].mid
