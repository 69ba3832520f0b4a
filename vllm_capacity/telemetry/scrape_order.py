"""The true order of one target's scrapes, from their stamps, arrival order and counters."""

from __future__ import annotations

from bisect import bisect_right
from itertools import pairwise
from math import ceil
from typing import Any

import numpy as np
import polars as pl
from msgspec import Struct
from numpy.typing import NDArray

from vllm_capacity.telemetry.processes import SAME_START
from vllm_capacity.telemetry.stamps import (
    CHANGE_SCHEMA,
    CONTRADICTED,
    PROCESS_START,
    UNCOUNTED,
    UNTIMED,
    Frames,
    instant_of,
    note,
    seconds,
    span_of,
)

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

_LONGER_RATIO = 1.25  # times the median interval: a longer one may be a forward clock step
_LEAP_RATIO = 3.0  # times the largest increase in one interval: more took several intervals
_ONE_READING = ("series_id", "arrival", "ts")
_UNDONE_RATIO = 0.02  # tolerance for a step back to undo a step forward, as a share of the step


def judged(instance: str, own: Frames) -> tuple[pl.DataFrame, list[dict[str, Any]]]:
    """Changes to the stamps of one target's scrapes, and the notes about them."""
    scrapes = Scrapes.of(own)
    result = scrapes.known_order()
    blocks = _blocks(scrapes.ts_us, result)
    orders = (np.arange(result.size), result, scrapes.counted_order(result, blocks))
    against = [scrapes.contradictions(each) for each in orders]
    order, is_out = orders[0].copy(), np.zeros(result.size, dtype=bool)
    is_stepped = np.zeros(result.size, dtype=bool)
    for start, end in blocks:
        found = [int(each[start : end + 1].sum()) for each in against]
        best = _best(scrapes, found, start, end)
        if best is None:
            is_out[_fewest_contradicting(scrapes, start, end)] = True
        elif best > 0:
            members = orders[best][start:end]
            order[start:end], is_stepped[members] = members, True
    moved = np.zeros(result.size, dtype=np.int64)
    moved[order] = _moves(scrapes.ts_us[order], is_stepped[order], scrapes.grown(order))
    is_unsure = any(
        is_out[start:end].any() and scrapes.processes(start, end) > 1 for start, end in blocks
    )
    notes = [
        *_notes(instance, scrapes, moved, is_out),
        *_uncounted_notes(instance, own.series, scrapes, is_out),
        *_untimed_notes(instance, scrapes.ts_us[order], moved[order], is_unsure=is_unsure),
    ]
    return _changes(instance, scrapes, moved, is_out, is_stepped), notes


def _best(scrapes: Scrapes, found: list[int], start: int, end: int) -> int | None:
    """The right order of a block: 0 by stamps, 1 by arrival, 2 by counters; None if none is.

    `found` is the number of contradictions of each. Without an order of arrival, counters decide
    only if a scrape before the block shows how far they had counted, or if they grow as usual at
    every backward clock step; never if several processes may be in another order than their starts,
    which may come from two clocks.
    """
    stamped, result, counted = found
    is_known = np.unique(scrapes.arrival[start:end]).size > 1
    if not is_known:
        if stamped <= result:
            return 0
        if scrapes.is_older_than_its_process(start, end):
            return None
        is_later = start > 0 and scrapes.total[start - 1] > 0
        return 1 if not result and (is_later or _goes_on(scrapes, start, end)) else None
    if not counted < min(stamped, result):
        is_tie = stamped == result == 0 and _has_twins(scrapes, start, end)
        return 1 if result < stamped or is_tie else 0
    return 2


class Scrapes(Struct, frozen=True):
    """The scrapes of one target, sorted by stamp, with the counters that show their order.

    Per scrape: `total` is the sum of the counters that every scrape has, `start` its process start.
    A failed scrape has those of the scrape before it; nan if unknown. Per reading, process starts
    included: `series`, `scrape` (its index here) and `value`. `twins` (series_id, value) are
    readings of scrapes with the stamp and arrival of another, which cannot be distinguished.
    """

    ts_us: Integers
    arrival: Integers
    start: Floats
    total: Floats
    series: Integers
    scrape: Integers
    value: Floats
    twins: pl.DataFrame

    @classmethod
    def of(cls, own: Frames) -> Scrapes:
        """The scrapes of the target; failed ones only if the order of arrival is known."""
        every = _readings(own)
        readings = every.unique(_ONE_READING, keep="first", maintain_order=True)
        totals = _totals(readings)
        attempts = pl.concat([f.select("arrival", "ts") for f in (own.samples, own.histograms)])
        if attempts["arrival"].n_unique() == 1:
            attempts = totals.select("arrival", "ts")
        scrapes = attempts.unique().sort("ts", "arrival").with_row_index("scrape")
        starts = readings.filter(pl.col("metric") == PROCESS_START).unique(["arrival", "ts"])
        result = (
            scrapes.join(totals, on=["arrival", "ts"], how="left")
            .join(starts.select("arrival", "ts", start="value"), on=["arrival", "ts"], how="left")
            .sort("scrape")
            .with_columns(pl.col("total", "start").forward_fill().backward_fill().over("arrival"))
        )
        placed = readings.join(scrapes, on=["arrival", "ts"])
        return cls(
            result["ts"].dt.epoch("us").to_numpy(),
            result["arrival"].to_numpy(),
            result["start"].fill_null(np.nan).to_numpy(),
            result["total"].fill_null(np.nan).to_numpy(),
            placed["series_id"].to_numpy(),
            placed["scrape"].cast(pl.Int64).to_numpy(),
            placed["value"].to_numpy(),
            every.join(readings, on=[*_ONE_READING, "value"], how="anti").select(
                "series_id", "value"
            ),
        )

    @property
    def _count(self) -> tuple[Floats, ...]:
        """Sort keys that grow with time, least significant first; empty if a scrape lacks one."""
        is_whole = not (np.isnan(self.start).any() or np.isnan(self.total).any())
        return (self.total, self.start) if is_whole else ()

    def processes(self, start: int, end: int) -> int:
        """The number of processes in a block, by their start times."""
        starts = np.sort(self.start[start:end])
        return 1 + int((np.diff(starts) > SAME_START.total_seconds()).sum())

    def is_older_than_its_process(self, start: int, end: int) -> bool:
        """Whether a block has several processes and a scrape stamped before its process started."""
        begun_us = (self.start[start:end] - SAME_START.total_seconds()) * 1e6
        return self.processes(start, end) > 1 and bool((self.ts_us[start:end] < begun_us).any())

    def grown(self, order: Integers) -> Floats:
        """The increases of `total` between scrapes in that order; nan if the process changed."""
        grown = np.diff(self.total[order])
        return np.where(np.diff(self.start[order]) == 0, grown, np.nan)

    def known_order(self) -> Integers:
        """The scrapes in order of arrival; within one arrival, by process start and counters."""
        return np.lexsort((self.ts_us, *self._count, self.arrival))

    def counted_order(self, result: Integers, blocks: list[tuple[int, int]]) -> Integers:
        """The order `result`, but with every block sorted by process start and counters."""
        if not self._count:
            return result
        block = np.arange(result.size)
        for start, end in blocks:
            block[start:end] = start
        return np.lexsort((self.ts_us, *self._count, block))

    def contradictions(self, order: Integers) -> Flags:
        """Per place in the order, whether a counter falls there without a new process."""
        place = np.empty(order.size, dtype=np.int64)
        place[order] = np.arange(order.size)
        rows = np.lexsort((place[self.scrape], self.series))
        series, scrape, value = self.series[rows], self.scrape[rows], self.value[rows]
        is_new = self.start[scrape[1:]] > self.start[scrape[:-1]]
        fell = (series[1:] == series[:-1]) & (value[1:] < value[:-1]) & ~is_new
        found = np.zeros(order.size + 1, dtype=bool)
        found[place[scrape[1:][fell]]] = True
        return found


def _readings(own: Frames) -> pl.DataFrame:
    """Readings of values that only grow within a process, in their newest spelling.

    Columns: metric, series_id, arrival, ts, value. Scrapes with equal stamp and arrival have one
    row each, in table order.
    """
    grows = (pl.col("kind") == "counter") | (pl.col("metric") == PROCESS_START)
    columns = ["series_id", "arrival", "ts", "alias_priority", "value"]
    states = own.histograms.rename({"count": "value"}).select(columns)
    return (
        pl.concat([own.samples.select(columns), states])
        .join(
            own.series.filter(grows | (pl.col("kind") == "histogram")).select(
                "series_id", "metric"
            ),
            on="series_id",
        )
        .filter(pl.col("alias_priority") == pl.col("alias_priority").min().over(_ONE_READING))
        .drop("alias_priority")
    )


def _totals(readings: pl.DataFrame) -> pl.DataFrame:
    """The sum of the counters that every scrape has; columns: arrival, ts, total."""
    counters = readings.filter(pl.col("metric") != PROCESS_START)
    often = pl.len().over("series_id")
    everywhere = counters.filter(often == often.max())
    return everywhere.group_by("arrival", "ts").agg(total=pl.col("value").sum())


def _blocks(ts_us: Integers, result: Integers) -> list[tuple[int, int]]:
    """Blocks [start, end) in which the order `result` and the order by stamps differ."""
    stamps = ts_us[result]
    newest = np.maximum.accumulate(stamps)
    oldest_behind = np.minimum.accumulate(stamps[::-1])[::-1]
    cuts = np.flatnonzero(newest[:-1] < oldest_behind[1:]) + 1
    edges = [0, *cuts.tolist(), result.size]
    return [(start, end) for start, end in pairwise(edges) if end - start > 1]


def _has_twins(scrapes: Scrapes, start: int, end: int) -> bool:
    """Whether two scrapes with different totals share a stamp: the clock showed it twice."""
    stamps, totals = scrapes.ts_us[start:end], scrapes.total[start:end]
    return bool(((np.diff(stamps) == 0) & (np.diff(totals) != 0)).any())


def _goes_on(scrapes: Scrapes, start: int, end: int) -> bool:
    """Whether one process counted a block, and its counters sorted by value show no leap.

    No leap means that the increases at backward stamps are not larger than those elsewhere. After a
    restart this could only happen by chance: if the old counters began where the new ones ended.
    """
    order = start + np.lexsort((scrapes.ts_us[start:end], scrapes.total[start:end]))
    is_one_process = np.unique(scrapes.start[start:end]).size == 1
    grown = np.diff(scrapes.total[order])
    is_back = np.diff(scrapes.ts_us[order]) <= 0
    if not is_one_process or is_back.all() or not is_back.any():
        return False
    return bool(grown[is_back].max() <= grown[~is_back].max())


def _fewest_contradicting(scrapes: Scrapes, start: int, end: int) -> Integers:
    """The fewest scrapes of a block to leave out so that the rest agree with their stamps.

    If starts do not show the order of several processes, only the one with the most scrapes stays:
    a process after it would be taken to have counted from 0.
    """
    starts, totals = scrapes.start[start:end], scrapes.total[start:end]
    members = np.arange(end - start)
    if scrapes.is_older_than_its_process(start, end):
        own, lengths = np.unique(starts, return_counts=True)
        members = np.flatnonzero(starts == own[lengths.argmax()])
    keys = list(zip(starts[members], totals[members], strict=True))
    return start + np.setdiff1d(np.arange(end - start), members[_longest_rise(keys)])


def _longest_rise(keys: list[tuple[float, float]]) -> Integers:
    """The indices of a longest non-decreasing subsequence of keys."""
    tops: list[tuple[float, float]] = []
    ends: list[int] = []
    before = [-1] * len(keys)
    for place, key in enumerate(keys):
        length = bisect_right(tops, key)
        before[place] = ends[length - 1] if length else -1
        tops[length:], ends[length:] = [key, *tops[length + 1 :]], [place, *ends[length + 1 :]]
    found, place = [], ends[-1] if ends else -1
    while place >= 0:
        found.append(place)
        place = before[place]
    return np.array(found[::-1], dtype=np.int64)


def _moves(ts_us: Integers, is_stepped: Flags, grown: Floats) -> Integers:
    """By how many µs to move each stamp so that time never goes back; scrapes in true order.

    All 0 if no clock was set; most scrapes are not moved. A backward step is taken to have lasted
    the median interval, or longer if the counters increased (`grown`) far more than ever in one
    interval, because then scrapes are missing.
    """
    steps = np.diff(ts_us)
    back = np.flatnonzero((steps <= 0) & is_stepped[1:] & is_stepped[:-1])
    if not back.size:
        return np.zeros(ts_us.size, dtype=np.int64)
    usual = int(np.median(steps[steps > 0])) if (steps > 0).any() else 0
    most = np.nanmax(grown, initial=0.0, where=(steps > 0) & (steps <= _LONGER_RATIO * usual))
    excess = np.zeros(ts_us.size, dtype=np.int64)
    ahead = [int(i) for i in np.flatnonzero(steps > _LONGER_RATIO * usual)]
    for i in back:
        size = _passed(usual, float(grown[i]), float(most)) - int(steps[i])
        excess[i + 1] = size
        slack = max(usual, int(_UNDONE_RATIO * size))
        undone = [j for j in ahead if abs(int(steps[j]) - usual - size) <= slack]
        if undone:
            j = min(undone, key=lambda place: abs(place - i))
            ahead.remove(j)
            excess[j + 1] = -size if steps[j] > size else usual - int(steps[j])
    moved = np.cumsum(excess)
    sizes, members = np.unique(moved, return_counts=True)
    return np.asarray(moved - sizes[members.argmax()])


def _passed(usual: int, grown: float, most: float) -> int:
    """Duration of a step: the median interval, or the time to count `grown` at the highest rate."""
    if not most > 0 or not grown > _LEAP_RATIO * most:
        return usual
    return int(usual * grown / most)


def _changes(
    instance: str, scrapes: Scrapes, moved: Integers, is_out: Flags, is_stepped: Flags
) -> pl.DataFrame:
    """The scrapes to move, to leave out, or to no longer report as late."""
    frame = pl.DataFrame(
        {
            "instance": [instance] * moved.size,
            "arrival": scrapes.arrival,
            "ts": pl.Series(scrapes.ts_us).cast(pl.Datetime("us")).dt.replace_time_zone("UTC"),
            "moved_us": moved,
        },
        schema=CHANGE_SCHEMA,
    ).with_columns(moved_us=pl.when(~pl.Series(is_out)).then("moved_us"))
    return frame.filter(pl.Series(is_out | is_stepped | (moved != 0)))


def _notes(instance: str, scrapes: Scrapes, moved: Integers, is_out: Flags) -> list[dict[str, Any]]:
    notes = []
    for size in sorted({int(size) for size in moved} - {0}):
        own = scrapes.ts_us[moved == size] + size
        side = "behind" if size > 0 else "ahead of"
        detail = (
            f"scrapes whose clock was {seconds(abs(size))} s {side} that of the others were moved "
            "by that much; counts are exact; times may be off by a pause in scraping when the "
            "clock was set"
        )
        notes.append(note(instance, instant_of(own.min()), own.size, detail))
    if is_out.any():
        own = scrapes.ts_us[is_out]
        span = span_of(instant_of(own.min()), instant_of(own.max()))
        detail = (
            f"scrapes stamped {span} were left out: a clock was set, and the counters contradict "
            "the order of their times"
        )
        notes.append({**note(instance, None, own.size, detail), "check": CONTRADICTED})
    return notes


def _uncounted_notes(
    instance: str, series: pl.DataFrame, scrapes: Scrapes, is_out: Flags
) -> list[dict[str, Any]]:
    """Notes on the increase of counters that the kept scrapes do not show, one per metric.

    In any order of the scrapes, a process counted from its minimum to its maximum, and every
    process but the first (the oldest start) from 0.
    """
    if not is_out.any():
        return []
    values = pl.DataFrame(
        {
            "series_id": scrapes.series,
            "start": scrapes.start[scrapes.scrape],
            "value": scrapes.value,
            "is_out": is_out[scrapes.scrape],
        }
    )
    oldest = float(np.nanmin(scrapes.start))
    twins = scrapes.twins.with_columns(start=pl.lit(oldest), is_out=pl.lit(value=True))
    values = pl.concat([values, twins.select(values.columns)])
    counters = series.filter(pl.col("kind") == "counter").select("series_id", "metric")
    value, is_first = pl.col("value"), pl.col("start") == oldest
    ends = (
        values.join(counters, on="series_id")
        .group_by("metric", "series_id", is_first=is_first)
        .agg(
            least=value.min(),
            most=value.max(),
            kept_least=value.filter(~pl.col("is_out")).min(),
            kept_most=value.filter(~pl.col("is_out")).max(),
        )
    )
    unseen = pl.when("is_first").then(pl.col("kept_least") - pl.col("least")).otherwise(0.0)
    whole = pl.col("most") - pl.when("is_first").then("least").otherwise(0.0)
    grown = (
        ends.group_by("metric")
        .agg(pl.coalesce(pl.col("most") - pl.col("kept_most") + unseen, whole).sum().alias("grown"))
        .filter(pl.col("grown") > 0)
        .sort("metric")
    )
    detail = "grew in scrapes that were left out"
    return [
        {**note(instance, None, ceil(amount), detail), "check": UNCOUNTED, "subject": metric}
        for metric, amount in grown.iter_rows()
    ]


def _untimed_notes(
    instance: str, ts_us: Integers, moved: Integers, *, is_unsure: bool
) -> list[dict[str, Any]]:
    """Notes on processes whose end cannot be determined; scrapes in true order."""
    behind = np.flatnonzero(np.diff(moved)) + 1
    times = [instant_of(stamp) for stamp in ts_us[behind] + moved[behind]]
    detail = (
        "a clock was set while a server restarted, so how long the old process kept running is "
        "unknown"
    )
    unsure = "a server restarted at an unknown time, among scrapes that were left out"
    notes = [{**note(instance, ts, 1, detail), "check": UNTIMED} for ts in times]
    return [*notes, *([{**note(instance, None, 1, unsure), "check": UNTIMED}] * is_unsure)]
