"""What the clock behind the scrape times did wrong, and what is done about it.

Rows are sorted by the time they were stamped with. Across a clock that was set back that order is
wrong, and every counter that seems to fall would be taken for a restart. In words:

1. *Stray stamps*, a handful of scrapes far from all others (1970, a year ahead), are left out.
2. The scrapes of a target are cut where no stamp before lies after a stamp behind: inside such a
   block alone, the order by stamps and the order of arrival differ. Where the source does not know
   the order of arrival, the counters of one process tell it: they never fall.
3. In each block the order that contradicts the counters less is right. A contradiction is a counter
   that falls while its process did not start anew, or a process start that goes back. So rows that
   came late are sorted by their stamps, which are right, and nothing more happens to them.
   Where rows came late and a clock was set in one block, both orders are wrong, and the counters
   tell the third.
4. Where the order by stamps is wrong, the clock was set. The scrapes on the shorter side of the
   step are moved by its size, the usual interval taken to have passed between the two scrapes
   around it. A step forward that a step back undoes is undone in both places.
5. Where the order of arrival is not known and the counters do not settle it, most scrapes that
   agree are kept and the others left out.

A target whose process start is not known and whose order of arrival is not known either is left as
it is: nothing tells its restarts from a clock.
"""

from __future__ import annotations

import polars as pl

from vllm_capacity.telemetry.parts import RowsInParts
from vllm_capacity.telemetry.processes import SAME_START
from vllm_capacity.telemetry.rows import INGEST_NOTES_SCHEMA, Rows
from vllm_capacity.telemetry.scrape_order import judged
from vllm_capacity.telemetry.stamps import (
    KEY,
    PROCESS_START,
    Correction,
    Frames,
    pulses_of,
    with_arrival,
)
from vllm_capacity.telemetry.strays import on_time, stray_notes, strays_of


def correction(rows: Rows) -> Correction:
    """What has to change in the stamps of these rows."""
    return correction_in_parts(RowsInParts.of(rows))


def correction_in_parts(rows: RowsInParts) -> Correction:
    """What has to change in the stamps of these rows.

    Of a target in doubt all its counters are in memory at once, of others one series. Where the
    source does not know the order of arrival, parts follow each other in time.
    """
    named = rows.series.select("series_id", "metric", "kind", "instance").unique("series_id")
    known = _frequent(rows, named)
    pulses = pulses_of(known)
    strays = strays_of(known, pulses)
    if not strays.is_empty():
        pulses = pulses.join(strays, on=KEY, how="anti")
    without_strays = Correction(named, strays, pl.DataFrame(schema=INGEST_NOTES_SCHEMA))
    changes, notes = [strays, on_time(pulses, strays)], stray_notes(strays)
    for instance in _suspects(rows, without_strays, pulses):
        change, found = judged(instance, _own(rows, without_strays, instance))
        changes.append(change)
        notes += found
    return Correction(named, pl.concat(changes), pl.DataFrame(notes, schema=INGEST_NOTES_SCHEMA))


def _frequent(rows: RowsInParts, named: pl.DataFrame) -> Frames:
    """The series of each target that was sampled most often, and those of its process start."""
    lengths = pl.concat(
        [samples.group_by("series_id").len() for samples, _ in (part() for part in rows.parts)]
    )
    often = (
        lengths.group_by("series_id")
        .agg(pl.col("len").sum())
        .join(named, on="series_id")
        .sort("len", "metric", descending=True)
        .unique("instance", keep="first", maintain_order=True)
    )
    starts = named.filter(pl.col("metric") == PROCESS_START)
    wanted = pl.concat([each.select("series_id") for each in (often, starts)]).unique()
    return _gathered(rows, named, wanted)


def _gathered(rows: RowsInParts, named: pl.DataFrame, wanted: pl.DataFrame) -> Frames:
    """The rows of these series, of histograms without their buckets."""
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
    """The rows of one target, but for strays."""
    named = without_strays.series.filter(pl.col("instance") == instance)
    own = _gathered(rows, named, named.select("series_id"))
    samples, histograms = map(without_strays.applied, (own.samples, own.histograms))
    return Frames(named, samples, histograms)


def _suspects(rows: RowsInParts, without_strays: Correction, pulses: pl.DataFrame) -> list[str]:
    """The targets whose scrapes are stamped in another order than they came, or might be."""
    orders = pulses.group_by("instance").agg(
        is_back=(pl.col("ts").diff().dt.total_microseconds() <= 0).any(),
        is_known=pl.col("arrival").n_unique() > 1,
    )
    unsure = orders.filter(~pl.col("is_known")).select("instance")
    back = orders.filter(pl.col("is_known") & pl.col("is_back"))["instance"].to_list()
    return sorted({*back, *_falling(rows, without_strays, unsure)})


def _falling(rows: RowsInParts, without_strays: Correction, instances: pl.DataFrame) -> list[str]:
    """Those of the targets that tell their process start and have a counter, or it, that falls."""
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
