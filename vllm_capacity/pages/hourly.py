"""What each hour of a window cost: the bill and the requests of every part, asked of the figures.

Each part is charged as the whole is (answers.py): its own billed hours, its own exact counts. So
the parts' bills add up to the whole's.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import polars as pl

from vllm_capacity.bills import Terms, engine_parts
from vllm_capacity.figures import scrapes
from vllm_capacity.telemetry.window import Window
from vllm_capacity.timerange import TimeRange
from vllm_capacity.verdicts.cost import bill

_PARTS_AT_MOST = 48
_HOUR_FROM_HOURS = 6.0
_READABLE_PARTS_HOURS = (1 / 12, 1 / 4, 1.0, 2.0, 4.0, 12.0, 24.0, 168.0)
_SCHEMA: dict[str, Any] = {
    "ts": pl.Datetime("us", "UTC"),
    "successful_requests": pl.Float64,
    "allocation_usd": pl.Float64,
    "usd_per_request": pl.Float64,
}


def costs_by_part(window: Window, *, part: TimeRange, terms: Terms) -> pl.DataFrame:
    """One row an hour of the part (or a round length that gives 48 rows at most), in order.

    Columns: ts (its start), successful_requests, allocation_usd, usd_per_request; null where
    unknown.
    """
    tries = scrapes.attempts(window, end=part.end)
    rows = [_row(window, cut, tries, terms) for cut in _cuts(part)]
    return pl.DataFrame(rows, schema=_SCHEMA, orient="row")


def _row(
    window: Window, cut: TimeRange, tries: pl.DataFrame, terms: Terms
) -> tuple[datetime, float | None, float | None, float | None]:
    known = tries.filter(pl.col("ts") < cut.end)
    engines = scrapes.engines(window, part=cut, tries=known)
    fleet = scrapes.billed_hours(engines, known, part=cut)
    charged = bill(engine_parts(window, fleet, part=cut, terms=terms, capacities={}))
    cost, each = (charged.whole[name].mid for name in ("allocation_usd", "usd_per_request"))
    return cut.start, charged.usage.successful_requests, cost, each


def _cuts(part: TimeRange) -> list[TimeRange]:
    """The part cut at even steps from its start; the last one perhaps shorter."""
    step = timedelta(hours=_part_hours(part.hours))
    count = max(1, -((part.start - part.end) // step))
    starts = [part.start + step * i for i in range(count)]
    return [TimeRange(start, min(start + step, part.end)) for start in starts]


def _part_hours(hours: float) -> float:
    """An hour where the window has several and not too many, else the nearest round length."""
    if _HOUR_FROM_HOURS <= hours <= _PARTS_AT_MOST:
        return 1.0
    fitting = [each for each in _READABLE_PARTS_HOURS if hours / each <= _PARTS_AT_MOST]
    return fitting[0] if fitting else _READABLE_PARTS_HOURS[-1]
