"""The stamps of scrapes, corrections to them, and notes about these for the quality report.

A scrape is identified by its target, its order of arrival (0 if the source does not know it) and
its stamp.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
from msgspec import Struct
from msgspec.structs import replace

from vllm_capacity.telemetry.rows import UTC_MICROSECONDS, Rows
from vllm_capacity.timerange import iso

KEY = ["instance", "arrival", "ts"]
PROCESS_START = "process_start_time_seconds"
CHANGE_SCHEMA: dict[str, Any] = {
    "instance": pl.String,
    "arrival": pl.Int64,
    "ts": UTC_MICROSECONDS,
    "moved_us": pl.Int64,  # null: left out
}
CONTRADICTED = "contradicted"
"""The check of a note about scrapes left out because counters contradict their stamps."""
UNCOUNTED = "uncounted"
"""The check of a note about how much a counter grew in scrapes that were left out."""
UNTIMED = "untimed"
"""The check of a note that a process counted an unknown amount after its last scrape, and why.

It is about the process that ended right before the scrape stamped `ts`, or the target if null."""
_CHECK = "clock"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Correction(Struct, frozen=True):
    """Changes to the stamps of scrapes, and the notes about them.

    `changed` has instance, arrival, ts (as stamped) and moved_us, which is null if the scrape is
    left out. It lists an unmoved scrape only if its stamp wrongly makes it look late.
    """

    series: pl.DataFrame
    changed: pl.DataFrame
    notes: pl.DataFrame

    def corrected(self, rows: Rows) -> Rows:
        """The rows with these changes and notes about them."""
        return replace(
            rows,
            samples=self.applied(rows.samples),
            histograms=self.applied(rows.histograms),
            ingest_notes=pl.concat([_still_late(rows.ingest_notes, self.changed), self.notes]),
        )

    def applied(self, frame: pl.DataFrame) -> pl.DataFrame:
        """The rows (with series_id, arrival, ts) at their true times, without those left out."""
        if self.changed.is_empty():
            return frame
        marked = (
            frame.with_columns(arrival=pl.col("arrival").fill_null(0))
            .join(self.series.select("series_id", "instance"), on="series_id", how="left")
            .join(
                self.changed.with_columns(is_out=pl.col("moved_us").is_null()),
                on=KEY,
                how="left",
                maintain_order="left",
            )
        )
        kept = marked.filter(pl.col("is_out").fill_null(False).not_())
        moved = pl.col("ts") + pl.duration(microseconds=pl.col("moved_us").fill_null(0))
        return kept.with_columns(ts=moved).select(frame.columns)


class Frames(Struct, frozen=True):
    """Samples and histograms with their order of arrival, and their series."""

    series: pl.DataFrame
    samples: pl.DataFrame
    histograms: pl.DataFrame

    def of(self, instance: str) -> Frames:
        """The frames of one target."""
        own = self.series.filter(pl.col("instance") == instance)
        return Frames(
            own,
            self.samples.join(own.select("series_id"), on="series_id", how="semi"),
            self.histograms.join(own.select("series_id"), on="series_id", how="semi"),
        )

    def without(self, scrapes: pl.DataFrame) -> Frames:
        """The frames without some scrapes (instance, arrival, ts)."""
        samples, histograms = (
            frame.join(self.series.select("series_id", "instance"), on="series_id")
            .join(scrapes, on=KEY, how="anti")
            .drop("instance")
            for frame in (self.samples, self.histograms)
        )
        return Frames(self.series, samples, histograms)


def with_arrival(frame: pl.DataFrame) -> pl.DataFrame:
    """The rows with an order of arrival, 0 if the source does not know it."""
    return frame.with_columns(pl.col("arrival").fill_null(0))


def pulses_of(known: Frames) -> pl.DataFrame:
    """The scrapes of every target, from its most frequent series: instance, arrival, ts.

    That series is `up` if the source has it. Sorted by instance, arrival, ts.
    """
    frequent = (
        known.samples.group_by("series_id")
        .len()
        .join(known.series, on="series_id")
        .sort("len", "metric", descending=True)
        .unique("instance", keep="first", maintain_order=True)
    )
    own = known.samples.join(frequent.select("series_id", "instance"), on="series_id")
    return own.select(KEY).sort("instance", "arrival", "ts")


def note(instance: str, ts: datetime | None, count: int, detail: str) -> dict[str, Any]:
    """An ingest note about scrapes of a target."""
    return {
        "check": _CHECK,
        "instance": instance,
        "ts": ts,
        "subject": instance,
        "detail": detail,
        "count": count,
    }


def instant_of(ts_us: int) -> datetime:
    """The time that is this many microseconds after the epoch."""
    return _EPOCH + timedelta(microseconds=int(ts_us))


def span_of(first: datetime, last: datetime) -> str:
    """A range of stamps, or a single one, as text for the quality report."""
    return iso(first) if first == last else f"{iso(first)} … {iso(last)}"


def seconds(microseconds: int) -> str:
    """A duration in seconds as text for the quality report."""
    return f"{microseconds / 1e6:,.1f}"


def _still_late(ingest_notes: pl.DataFrame, changed: pl.DataFrame) -> pl.DataFrame:
    """The ingest notes, without "late" notes on scrapes that only a clock change made look late."""
    own = changed.select("instance", "ts").unique()
    is_about_scrape = (pl.col("check") == "late") & (pl.col("subject") == pl.col("instance"))
    mistaken = ingest_notes.filter(is_about_scrape).join(own, on=["instance", "ts"], how="semi")
    return ingest_notes.join(
        mistaken.select("check", "instance", "ts"), on=["check", "instance", "ts"], how="anti"
    )
