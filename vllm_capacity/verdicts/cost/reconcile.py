"""Compares the bill with the cloud's invoice: the difference, and its causes."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import polars as pl

from vllm_capacity.errors import NoTelemetryError
from vllm_capacity.estimate import Estimate
from vllm_capacity.record import SCHEMA_VERSION, Record
from vllm_capacity.timerange import TimeRange, iso

_DAY = timedelta(days=1)
_COVERED_SECONDS = 1.0


class Reconciliation(Record, frozen=True):
    """What was charged for the time range, the bill, and the difference in parts.

    USD. `difference_usd` is charged minus billed, the sum of `missing_usd` (time in the range that
    no charge covers), `hours_usd` (the difference in hours, at the bill's price) and `price_usd`
    (the difference in prices per hour). If charges have no hours, the last two are unknown, and
    `unexplained_usd` is their sum. Charges that extend beyond the range count by their time in it;
    `outside_usd` is the rest. `hours_of` says whether charged hours are comparable to those of
    engines or of GPUs; prices are per such hour.
    """

    charged_usd: float
    billed_usd: Estimate
    difference_usd: float | None
    missing_usd: float | None
    hours_usd: float | None
    price_usd: float | None
    unexplained_usd: float | None
    hours_of: str
    charged_hours: float | None
    billed_hours: float
    charged_usd_per_hour: float | None
    billed_usd_per_hour: float | None
    missing_days: tuple[str, ...]
    missing_hours: float
    outside_usd: float
    schema_version: int = SCHEMA_VERSION


def reconciled(
    charges: pl.DataFrame,
    time_range: TimeRange,
    *,
    billed_usd: Estimate,
    engine_hours: float,
    gpu_hours: float,
) -> Reconciliation:
    """Compare the charges (sources/invoices.py) in the time range with its bill.

    If the bill is unknown (no price), only the charges are given. NoTelemetryError if no charge is
    in the time range.
    """
    start, end = pl.lit(time_range.start), pl.lit(time_range.end)
    overlap = pl.min_horizontal("end", end) - pl.max_horizontal("start", start)
    length = pl.col("end") - pl.col("start")
    part = (overlap.dt.total_microseconds() / length.dt.total_microseconds()).clip(0.0, 1.0)
    own = charges.with_columns(part=part)
    inside = own.filter(pl.col("part") > 0)
    if inside.is_empty():
        first, last = charges["start"].min(), charges["end"].max()
        assert isinstance(first, datetime)
        assert isinstance(last, datetime)
        raise NoTelemetryError(
            f"No charge of the invoice is of the time from {iso(time_range.start)} to "
            f"{iso(time_range.end)}; they are from {iso(first)} to {iso(last)}."
        )
    charged = float((inside["usd"] * inside["part"]).sum())
    has_hours = bool(inside["hours"].is_not_null().all())
    hours = float((inside["hours"] * inside["part"]).sum()) if has_hours else None
    gaps = _gaps(inside, time_range)
    missing_seconds = sum((b - a).total_seconds() for a, b in gaps)
    covered = 1 - missing_seconds / time_range.seconds
    is_of_gpus = _is_of_gpus(hours, engine_hours * covered, gpu_hours * covered)
    billed_hours = gpu_hours if is_of_gpus else engine_hours
    billed = billed_usd.mid
    each = None if billed is None or not billed_hours else billed / billed_hours
    missing = None if billed is None else (covered - 1) * billed
    hours_usd = price_usd = rest = None
    if billed is not None and missing is not None:
        rest = charged - billed - missing
        if hours is not None and each is not None:
            hours_usd = (hours - covered * billed_hours) * each
            price_usd, rest = rest - hours_usd, None
    return Reconciliation(
        charged_usd=charged,
        billed_usd=billed_usd,
        difference_usd=None if billed is None else charged - billed,
        missing_usd=missing,
        hours_usd=hours_usd,
        price_usd=price_usd,
        unexplained_usd=rest,
        hours_of="GPUs" if is_of_gpus else "engines",
        charged_hours=hours,
        billed_hours=billed_hours,
        charged_usd_per_hour=charged / hours if hours else None,
        billed_usd_per_hour=each,
        missing_days=tuple(_days(gaps)),
        missing_hours=missing_seconds / 3600,
        outside_usd=float(charges["usd"].sum()) - charged,
    )


def _is_of_gpus(hours: float | None, engine_hours: float, gpu_hours: float) -> bool:
    """Whether charged hours are nearer to the hours of GPUs than to those of engines."""
    return hours is not None and abs(hours - gpu_hours) < abs(hours - engine_hours)


def _gaps(inside: pl.DataFrame, time_range: TimeRange) -> list[tuple[datetime, datetime]]:
    """The times in the range that no charge covers, in order."""
    at, found = time_range.start, []
    for start, end in inside.sort("start").select("start", "end").iter_rows():
        if (start - at).total_seconds() > _COVERED_SECONDS:
            found.append((at, start))
        at = max(at, end)
    if (time_range.end - at).total_seconds() > _COVERED_SECONDS:
        found.append((at, time_range.end))
    return found


def _days(gaps: list[tuple[datetime, datetime]]) -> list[str]:
    """The days (UTC) that gaps touch, in order."""
    days: dict[date, None] = {}
    for start, end in gaps:
        day = start.astimezone(UTC).date()
        while day < (end - timedelta(microseconds=1)).astimezone(UTC).date() + _DAY:
            days[day] = None
            day += _DAY
    return [day.isoformat() for day in days]
