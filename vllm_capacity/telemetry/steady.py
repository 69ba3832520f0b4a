"""Corrects scrape times by a monotonic clock, if the scraper recorded one beside its own clock."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import polars as pl

from vllm_capacity.telemetry.parts import RowsInParts
from vllm_capacity.telemetry.rows import INGEST_NOTES_SCHEMA
from vllm_capacity.telemetry.stamps import Correction, note, seconds

SteadyTime = tuple[str, int, int, int, int]
"""Target, arrival, stamp, start of the run, and monotonic time since that start; times in µs."""

_STEADY_US = 100_000  # maximum difference between the two clocks of a scraper


def by_steady_clock(rows: RowsInParts, result: Sequence[SteadyTime]) -> RowsInParts:
    """The rows with scrape times corrected by the monotonic clock of the scraper.

    Stamps are kept in runs in which both clocks agree to 0.1 s. In the others, a stamp is moved if
    it is more than 0.1 s off the run's median offset between the clocks.
    """
    schema = {"instance": pl.String, "arrival": pl.Int64, "ts": pl.Int64}
    schema |= {"run_us": pl.Int64, "at_us": pl.Int64}
    off = pl.col("run_us") + pl.col("at_us") - pl.col("ts")
    usual_off = off.quantile(0.5, interpolation="lower").over("run_us").cast(pl.Int64)
    counts_on = (pl.col("at_us").diff().over("run_us", "instance") > 0).fill_null(True)
    moved = (
        pl.DataFrame(result, schema=schema, orient="row")
        .filter(counts_on.all().over("run_us"))
        .with_columns(moved_us=off - usual_off)
        .with_columns(is_off=pl.col("moved_us").abs() > _STEADY_US)
        .filter(pl.col("is_off").any().over("run_us"))
    )
    if moved.is_empty():
        return rows
    changed = moved.select(
        "instance",
        "arrival",
        pl.from_epoch("ts", time_unit="us").dt.replace_time_zone("UTC"),
        moved_us=pl.when("is_off").then("moved_us").otherwise(0),
    )
    named = rows.series.select("series_id", "metric", "kind", "instance").unique("series_id")
    notes = pl.DataFrame(_steady_notes(changed), schema=INGEST_NOTES_SCHEMA)
    return rows.corrected(Correction(named, changed, notes))


def _steady_notes(changed: pl.DataFrame) -> list[dict[str, Any]]:
    moved = changed.filter(pl.col("moved_us") != 0)
    return [
        note(
            str(instance),
            own["ts"].sort()[0],
            own.height,
            "the scraper's clock was set, or its machine was paused; scrapes it stamped up to "
            f"{seconds(own['moved_us'].abs().sort()[-1])} s off were moved to the times of a clock "
            "that was never set; counts are exact; if the machine was paused, the pause is "
            "missing from the hours and rates are too high by that much",
        )
        for (instance,), own in moved.group_by("instance", maintain_order=True)
    ]
