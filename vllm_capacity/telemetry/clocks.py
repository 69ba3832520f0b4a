"""Detects and corrects errors of the clock that stamped the scrapes.

Rows are sorted by their stamps. If the clock was set back, that order is wrong, and every counter
that seems to fall would be taken for a restart. Steps:

1. *Stray stamps*, a few scrapes far from all others (1970, a year ahead), are left out.
2. The scrapes of a target are cut into blocks at every point where all earlier stamps are before
   all later ones, so the order by stamps and the order of arrival differ only within blocks. If the
   source does not know the order of arrival, the counters of one process show it: they never fall.
3. In each block, the order that contradicts the counters less is right. A contradiction is a
   counter that falls although its process did not restart, or a process start that goes back. So
   rows that arrived late are sorted by their stamps, which are right, and not changed otherwise. If
   rows arrived late and a clock was set in the same block, both orders are wrong, and the counters
   show the right one.
4. If the order by stamps is wrong, the clock was set. The scrapes on the shorter side of the step
   are moved by its size, assuming that the median interval passed between the two scrapes around
   it. A step forward that a later step back undoes is corrected in both places.
5. If the order of arrival is unknown and the counters do not show it, the largest set of scrapes
   that agree is kept, and the others are left out.

A target is not changed if both its process start and its order of arrival are unknown: its restarts
and clock changes cannot be distinguished.
"""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from vllm_capacity.telemetry.parts import RowsInParts
from vllm_capacity.telemetry.processes import SAME_START
from vllm_capacity.telemetry.rows import INGEST_NOTES_SCHEMA, UTC_MICROSECONDS, Rows
from vllm_capacity.telemetry.scrape_order import judged
from vllm_capacity.telemetry.stamps import (
    CHANGE_SCHEMA,
    KEY,
    PROCESS_START,
    Correction,
    Frames,
    pulses_of,
    with_arrival,
)
from vllm_capacity.telemetry.strays import may_have_strays, on_time, stray_notes, strays_of


def correction(rows: Rows) -> Correction:
    """The correction of the stamps of these rows."""
    return correction_in_parts(RowsInParts.of(rows))


def correction_in_parts(rows: RowsInParts) -> Correction:
    """The correction of the stamps of these rows.

    Keeps in memory all counters of one doubtful target at a time, and one series of each target if
    some stamps are far from others. If the source does not know the order of arrival, parts must be
    in order of time.
    """
    named = rows.series.select("series_id", "metric", "kind", "instance").unique("series_id")
    often = _frequent(rows, named)
    orders, hours = _orders(rows, often)
    strays = pl.DataFrame(schema=CHANGE_SCHEMA)
    changes = [strays]
    if may_have_strays(hours):
        known = _with_starts(rows, named, often)
        pulses = pulses_of(known)
        strays = strays_of(known, pulses)
        if not strays.is_empty():
            pulses = pulses.join(strays, on=KEY, how="anti")
        changes = [strays, on_time(pulses, strays)]
        orders = _order(pulses)
    without_strays = Correction(named, strays, pl.DataFrame(schema=INGEST_NOTES_SCHEMA))
    notes = stray_notes(strays)
    for instance in _suspects(rows, without_strays, orders):
        change, found = judged(instance, _own(rows, without_strays, instance))
        changes.append(change)
        notes += found
    return Correction(named, pl.concat(changes), pl.DataFrame(notes, schema=INGEST_NOTES_SCHEMA))


def _frequent(rows: RowsInParts, named: pl.DataFrame) -> pl.DataFrame:
    """The most frequently sampled series of each target: series_id, instance."""
    lengths: pl.DataFrame | None = None
    for samples, _ in (part() for part in rows.parts):
        own = samples.group_by("series_id").agg(pl.len().cast(pl.Int64))
        both = own if lengths is None else pl.concat([lengths, own])
        lengths = both.group_by("series_id").agg(pl.col("len").sum())
    assert lengths is not None
    return (
        lengths.join(named, on="series_id")
        .sort("len", "metric", descending=True)
        .unique("instance", keep="first", maintain_order=True)
        .select("series_id", "instance")
    )


def _orders(rows: RowsInParts, often: pl.DataFrame) -> tuple[pl.DataFrame, pl.Series]:
    """The order of the scrapes of each target (`_order`), and the UTC hours of all stamps.

    Keeps one scrape of each target from part to part. If parts are not in order of arrival, stamps
    count as going back: whether they do is then judged by all rows of the target.
    """
    found: list[pl.DataFrame] = []
    hours = pl.Series("ts", [], UTC_MICROSECONDS)
    last = pl.DataFrame(schema={name: CHANGE_SCHEMA[name] for name in KEY})
    for samples, _ in (part() for part in rows.parts):
        own = with_arrival(samples).join(often, on="series_id").select(KEY).sort(KEY)
        hours = pl.concat([hours, own["ts"].dt.truncate("1h").unique()]).unique()
        both = pl.concat([last, own])
        arrived = both.sort("instance", maintain_order=True).group_by("instance")
        is_early = pl.col("arrival").diff() < 0
        is_early |= (pl.col("arrival").diff() == 0) & (pl.col("ts").diff() < 0)
        early = arrived.agg(is_early=is_early.any()).filter("is_early")
        order = _order(both.sort(KEY))
        is_back = pl.col("is_back") | pl.col("instance").is_in(early["instance"].implode())
        found = [_together([*found, order.with_columns(is_back=is_back)])]
        last = both.sort(KEY).unique("instance", keep="last", maintain_order=True)
    return found[0], hours


def _order(pulses: pl.DataFrame) -> pl.DataFrame:
    """Whether stamps go back in order of arrival, from scrapes sorted by instance and arrival.

    One row per target: instance, is_back, and `first` and `last` arrival (equal if unknown).
    """
    return pulses.group_by("instance").agg(
        is_back=(pl.col("ts").diff().dt.total_microseconds() <= 0).any(),
        first=pl.col("arrival").min(),
        last=pl.col("arrival").max(),
    )


def _together(orders: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """The orders of consecutive parts (`_order`) as one."""
    return (
        pl.concat(orders)
        .group_by("instance")
        .agg(pl.col("is_back").any(), pl.col("first").min(), pl.col("last").max())
    )


def _with_starts(rows: RowsInParts, named: pl.DataFrame, often: pl.DataFrame) -> Frames:
    """The rows of these series, and of the process start series."""
    starts = named.filter(pl.col("metric") == PROCESS_START)
    wanted = pl.concat([each.select("series_id") for each in (often, starts)]).unique()
    return _gathered(rows, named, wanted)


def _gathered(rows: RowsInParts, named: pl.DataFrame, wanted: pl.DataFrame) -> Frames:
    """The rows of these series; histograms without sum and buckets."""
    samples, histograms = [], []
    for part in rows.parts:
        own_samples, own_histograms = (
            frame.join(wanted, on="series_id", how="semi", maintain_order="left")
            for frame in part()
        )
        samples.append(own_samples)
        histograms.append(own_histograms.drop("sum", "counts"))
    return Frames(
        named.join(wanted, on="series_id", how="semi"),
        with_arrival(pl.concat(samples)),
        with_arrival(pl.concat(histograms)),
    )


def _own(rows: RowsInParts, without_strays: Correction, instance: str) -> Frames:
    """The rows of one target without strays."""
    named = without_strays.series.filter(pl.col("instance") == instance)
    own = _gathered(rows, named, named.select("series_id"))
    samples, histograms = map(without_strays.applied, (own.samples, own.histograms))
    return Frames(named, samples, histograms)


def _suspects(rows: RowsInParts, without_strays: Correction, orders: pl.DataFrame) -> list[str]:
    """The targets with stamps that are, or may be, in another order than their scrapes."""
    is_known = pl.col("first") < pl.col("last")
    unsure = orders.filter(~is_known).select("instance")
    back = orders.filter(is_known & pl.col("is_back"))["instance"].to_list()
    return sorted({*back, *_falling(rows, without_strays, unsure)})


def _falling(rows: RowsInParts, without_strays: Correction, instances: pl.DataFrame) -> list[str]:
    """The targets that report a process start and have a counter or process start that falls."""
    named, is_start = without_strays.series, pl.col("metric") == PROCESS_START
    result = named.filter(is_start).join(instances, on="instance")
    grows = named.filter((pl.col("kind") == "counter") | is_start)
    grows = grows.join(result, on="instance", how="semi").select("series_id", "instance", "metric")
    if grows.is_empty():
        return []
    jitter = pl.when(is_start).then(SAME_START.total_seconds()).otherwise(0.0)
    before = grows.clear().with_columns(value=pl.lit(None, pl.Float64))
    found: set[str] = set()
    for part in rows.parts:
        samples, _ = part()
        own = without_strays.applied(with_arrival(samples)).join(grows, on="series_id")
        own = own.sort("series_id", "ts", "alias_priority").select(before.columns)
        own = pl.concat([before, own]).sort("series_id", maintain_order=True)
        falls = pl.col("value") + jitter < pl.col("value").shift().over("series_id")
        found.update(own.filter(falls)["instance"].unique())
        before = own.unique("series_id", keep="last", maintain_order=True)
    return sorted(found)
