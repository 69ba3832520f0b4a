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

from vllm_capacity.telemetry.processes import SAME_START
from vllm_capacity.telemetry.rows import INTAKE_SCHEMA, Rows
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


def with_true_times(rows: Rows) -> Rows:
    """The rows in their true order, strays and contradictions left out, each with a note.

    Rows whose order of arrival and stamps agree come back as they are.
    """
    return correction(rows).corrected(rows)


def correction(rows: Rows) -> Correction:
    """What has to change in the stamps of these rows."""
    named = rows.series.select("series_id", "metric", "kind", "instance").unique("series_id")
    known = Frames(named, with_arrival(rows.samples), with_arrival(rows.histograms))
    pulses = pulses_of(known)
    strays = strays_of(known, pulses)
    if not strays.is_empty():
        known = known.without(strays)
        pulses = pulses.join(strays, on=KEY, how="anti")
    changes, notes = [strays, on_time(pulses, strays)], stray_notes(strays)
    for instance in _suspects(known, pulses):
        change, found = judged(instance, known.of(instance))
        changes.append(change)
        notes += found
    return Correction(named, pl.concat(changes), pl.DataFrame(notes, schema=INTAKE_SCHEMA))


def _suspects(known: Frames, pulses: pl.DataFrame) -> list[str]:
    """The targets whose scrapes are stamped in another order than they came, or might be."""
    orders = pulses.group_by("instance").agg(
        is_back=(pl.col("ts").diff().dt.total_microseconds() <= 0).any(),
        is_known=pl.col("arrival").n_unique() > 1,
    )
    unsure = orders.filter(~pl.col("is_known")).select("instance")
    back = orders.filter(pl.col("is_known") & pl.col("is_back"))["instance"].to_list()
    return sorted({*back, *_falling(known, unsure)})


def _falling(known: Frames, instances: pl.DataFrame) -> list[str]:
    """Those of the targets that tell their process start and have a counter, or it, that falls."""
    is_start = pl.col("metric") == PROCESS_START
    result = known.series.filter(is_start).join(instances, on="instance")
    grows = known.series.filter((pl.col("kind") == "counter") | is_start)
    grows = grows.join(result, on="instance", how="semi")
    jitter = pl.when(is_start).then(SAME_START.total_seconds()).otherwise(0.0)
    falls = (
        known.samples.join(grows.select("series_id", "instance", "metric"), on="series_id")
        .sort("series_id", "ts", "rank")
        .filter(pl.col("value") + jitter < pl.col("value").shift().over("series_id"))
    )
    return falls["instance"].unique().to_list()
