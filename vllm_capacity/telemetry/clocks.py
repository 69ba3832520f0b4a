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

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from vllm_capacity.telemetry.rows import INTAKE_SCHEMA, Rows
from vllm_capacity.timerange import iso

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

SteadyTime = tuple[str, int, int, int, int]
"""Target, arrival, stamp, start of the run, and the seconds since by a steady clock, all in µs."""

_CHECK = "clock"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_STEADY_US = 100_000  # how far the two clocks of a scraper may be apart
_DAY_US = 86_400_000_000
_STRAY_DISTANCE_US = 7 * _DAY_US
_STRAY_SPANS = 10  # a stray lies this many times further off than the others span
_MOST_STRAYS, _MOST_STRAY_SHARE = 10, 0.25
_LONGER_RATIO = 1.25  # of the usual interval: what may be a step forward
_UNDONE_RATIO = 0.02  # how well a step back undoes a step forward, as a share of the step
_START = "process_start_time_seconds"
_KEY = ["instance", "arrival", "ts"]


@dataclass(frozen=True)
class Correction:
    """What to change in the stamps of scrapes, and the notes about it.

    `changed`: instance, arrival, ts (as stamped), moved_us; null there where the scrape is left
    out. A scrape that does not move is in it only if it is no late one, as its stamp has it.
    """

    series: pl.DataFrame
    changed: pl.DataFrame
    notes: pl.DataFrame

    def corrected(self, rows: Rows) -> Rows:
        """The rows with this done, and noted."""
        return replace(
            rows,
            samples=self.applied(rows.samples),
            histograms=self.applied(rows.histograms),
            intake=pl.concat([_still_late(rows.intake, self.changed), self.notes]),
        )

    def applied(self, frame: pl.DataFrame) -> pl.DataFrame:
        """The rows (with series_id, arrival, ts) moved to their true times, or gone."""
        if self.changed.is_empty():
            return frame
        marked = (
            frame.with_columns(arrival=pl.col("arrival").fill_null(0))
            .join(self.series.select("series_id", "instance"), on="series_id", how="left")
            .join(
                self.changed.with_columns(is_out=pl.col("moved_us").is_null()),
                on=_KEY,
                how="left",
                maintain_order="left",
            )
        )
        kept = marked.filter(pl.col("is_out").fill_null(False).not_())
        moved = pl.col("ts") + pl.duration(microseconds=pl.col("moved_us").fill_null(0))
        return kept.with_columns(ts=moved).select(frame.columns)


def by_steady_clock(rows: Rows, told: Sequence[SteadyTime]) -> Rows:
    """The rows at the times that a steady clock beside the one that was set tells of the scrapes.

    `told`: target, arrival, stamp, when its run began, and what the steady clock counted since, in
    microseconds. Where both agree to a tenth of a second the stamps stay; most others keep theirs.
    """
    schema = {"instance": pl.String, "arrival": pl.Int64, "ts": pl.Int64}
    schema |= {"run_us": pl.Int64, "at_us": pl.Int64}
    off = pl.col("run_us") + pl.col("at_us") - pl.col("ts")
    usual_off = off.quantile(0.5, interpolation="lower").over("run_us").cast(pl.Int64)
    counts_on = (pl.col("at_us").diff().over("run_us", "instance") > 0).fill_null(True)
    moved = (
        pl.DataFrame(told, schema=schema, orient="row")
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
    notes = pl.DataFrame(_steady_notes(changed), schema=INTAKE_SCHEMA)
    return Correction(named, changed, notes).corrected(rows)


def _steady_notes(changed: pl.DataFrame) -> list[dict[str, Any]]:
    moved = changed.filter(pl.col("moved_us") != 0)
    return [
        _note(
            instance,
            own["ts"].sort()[0],
            own.height,
            "the scraper's clock was set; scrapes it stamped up to "
            f"{_seconds(own['moved_us'].abs().max())} s off were moved to where a clock that "
            "nobody sets has them; no figure moves",
        )
        for (instance,), own in moved.group_by("instance", maintain_order=True)
    ]


def _seconds(microseconds: object) -> str:
    return f"{int(str(microseconds)) / 1e6:,.1f}"


def with_true_times(rows: Rows) -> Rows:
    """The rows in their true order, strays and contradictions left out, each with a note.

    Rows whose order of arrival and stamps agree come back as they are.
    """
    return correction(rows).corrected(rows)


def correction(rows: Rows) -> Correction:
    """What has to change in the stamps of these rows."""
    named = rows.series.select("series_id", "metric", "kind", "instance").unique("series_id")
    known = _Frames(named, _with_arrival(rows.samples), _with_arrival(rows.histograms))
    pulses = _pulses(known)
    strays = _strays(known, pulses)
    if not strays.is_empty():
        known = known.without(strays)
        pulses = pulses.join(strays, on=_KEY, how="anti")
    changes, notes = [strays, _on_time(pulses, strays)], _stray_notes(strays)
    for instance in _suspects(known, pulses):
        change, found = _judged(instance, known.of(instance))
        changes.append(change)
        notes += found
    return Correction(named, pl.concat(changes), pl.DataFrame(notes, schema=INTAKE_SCHEMA))


_CHANGE_SCHEMA: dict[str, Any] = {
    "instance": pl.String,
    "arrival": pl.Int64,
    "ts": pl.Datetime("us", "UTC"),
    "moved_us": pl.Int64,  # null: left out
}


@dataclass(frozen=True)
class _Frames:
    """Samples and histograms with the order of their arrival, and what their series are."""

    series: pl.DataFrame
    samples: pl.DataFrame
    histograms: pl.DataFrame

    def of(self, instance: str) -> _Frames:
        own = self.series.filter(pl.col("instance") == instance)
        return _Frames(
            own,
            self.samples.join(own.select("series_id"), on="series_id", how="semi"),
            self.histograms.join(own.select("series_id"), on="series_id", how="semi"),
        )

    def without(self, scrapes: pl.DataFrame) -> _Frames:
        samples, histograms = (
            frame.join(self.series.select("series_id", "instance"), on="series_id")
            .join(scrapes, on=_KEY, how="anti")
            .drop("instance")
            for frame in (self.samples, self.histograms)
        )
        return _Frames(self.series, samples, histograms)


def _with_arrival(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.with_columns(pl.col("arrival").fill_null(0))


def _pulses(known: _Frames) -> pl.DataFrame:
    """The scrapes of every target, as its most frequent series tells them: instance, arrival, ts.

    That is `up` where the source has it. In order of arrival, then of stamps.
    """
    frequent = (
        known.samples.group_by("series_id")
        .len()
        .join(known.series, on="series_id")
        .sort("len", "metric", descending=True)
        .unique("instance", keep="first", maintain_order=True)
    )
    own = known.samples.join(frequent.select("series_id", "instance"), on="series_id")
    return own.select(_KEY).sort("instance", "arrival", "ts")


def _strays(known: _Frames, pulses: pl.DataFrame) -> pl.DataFrame:
    """The scrapes whose stamps lie far from all others, as changes that leave them out.

    They are few, or say themselves that their process started days after them.
    """
    nothing = pl.DataFrame(schema=_CHANGE_SCHEMA)
    times = pulses.sort("ts")
    stamps = times["ts"].dt.epoch("us").to_numpy()
    island = np.cumsum(np.diff(stamps, prepend=stamps[:1]) > _STRAY_DISTANCE_US)
    if not island.size or not island[-1]:
        return nothing
    main = stamps[island == np.bincount(island).argmax()]
    distance = np.maximum(main[0] - stamps, stamps - main[-1])
    far = times.with_columns(island=pl.Series(island)).filter(
        pl.Series(distance > max(_STRAY_DISTANCE_US, _STRAY_SPANS * int(main[-1] - main[0])))
    )
    crowds = far.group_by("island", "instance").len().filter(pl.col("len") > _MOST_STRAYS)
    few = far.join(crowds.select("island").unique(), on="island", how="anti")
    strays = pl.concat([few, far.join(_before_birth(known), on=_KEY, how="semi")]).unique()
    if strays.height > _MOST_STRAY_SHARE * times.height:
        return nothing
    return strays.select(*_KEY, moved_us=pl.lit(None, pl.Int64)).sort(_KEY)


def _before_birth(known: _Frames) -> pl.DataFrame:
    """The scrapes stamped days before the process they scraped says it started."""
    starts = known.series.filter(pl.col("metric") == _START).select("series_id", "instance")
    told = known.samples.join(starts, on="series_id")
    born_us = (pl.col("value") * 1e6).cast(pl.Int64)
    return told.filter(pl.col("ts").dt.epoch("us") + _DAY_US < born_us).select(_KEY)


def _on_time(pulses: pl.DataFrame, strays: pl.DataFrame) -> pl.DataFrame:
    """The scrapes of targets with strays that came late after none but a stray."""
    own = pulses.join(strays, on="instance", how="semi")
    is_on_time = pl.col("ts") >= pl.col("ts").cum_max().over("instance")
    return own.filter(is_on_time).select(*_KEY, moved_us=pl.lit(0, pl.Int64))


def _stray_notes(strays: pl.DataFrame) -> list[dict[str, Any]]:
    notes = []
    for (instance,), own in strays.group_by("instance", maintain_order=True):
        stamps = own["ts"].sort().to_list()
        detail = f"scrapes stamped {_span(stamps[0], stamps[-1])}, more than a week from all others"
        # Where they are stamped is no part of the window: the note has no time.
        notes.append(_note(instance, None, own.height, f"{detail}, were left out"))
    return notes


def _note(instance: object, ts: datetime | None, count: int, detail: str) -> dict[str, Any]:
    return {
        "check": _CHECK,
        "instance": instance,
        "ts": ts,
        "subject": instance,
        "detail": detail,
        "count": count,
    }


def _suspects(known: _Frames, pulses: pl.DataFrame) -> list[str]:
    """The targets whose scrapes are stamped in another order than they came, or might be."""
    orders = pulses.group_by("instance").agg(
        is_back=(pl.col("ts").diff().dt.total_microseconds() <= 0).any(),
        is_known=pl.col("arrival").n_unique() > 1,
    )
    unsure = orders.filter(~pl.col("is_known")).select("instance")
    back = orders.filter(pl.col("is_known") & pl.col("is_back"))["instance"].to_list()
    return sorted({*back, *_falling(known, unsure)})


def _falling(known: _Frames, instances: pl.DataFrame) -> list[str]:
    """Those of the targets that tell their process start, and have a counter that falls."""
    told = known.series.filter(pl.col("metric") == _START).join(instances, on="instance")
    counters = known.series.filter(pl.col("kind") == "counter")
    counters = counters.join(told, on="instance", how="semi")
    falls = (
        known.samples.join(counters.select("series_id", "instance"), on="series_id")
        .sort("series_id", "ts", "rank")
        .filter(pl.col("value") < pl.col("value").shift().over("series_id"))
    )
    return falls["instance"].unique().to_list()


@dataclass(frozen=True)
class _Scrapes:
    """The scrapes of one target by their stamps, and what its counters say of their order.

    `total` is the sum of the counters that every scrape has, `start` that of its process; a failed
    scrape has those of the one before, nan where none tells. The readings are one a row: series,
    scrape (its place here) and value, the process start among them.
    """

    ts_us: Integers
    arrival: Integers
    start: Floats
    total: Floats
    series: Integers
    scrape: Integers
    value: Floats

    @classmethod
    def of(cls, own: _Frames) -> _Scrapes:
        """The scrapes of the target; failed ones only where the order of arrival is known."""
        readings = _readings(own)
        totals = _totals(readings)
        attempts = pl.concat([f.select("arrival", "ts") for f in (own.samples, own.histograms)])
        if attempts["arrival"].n_unique() == 1:
            attempts = totals.select("arrival", "ts")
        scrapes = attempts.unique().sort("ts", "arrival").with_row_index("scrape")
        starts = readings.filter(pl.col("metric") == _START).unique(["arrival", "ts"])
        told = (
            scrapes.join(totals, on=["arrival", "ts"], how="left")
            .join(starts.select("arrival", "ts", start="value"), on=["arrival", "ts"], how="left")
            .sort("scrape")
            .with_columns(pl.col("total", "start").forward_fill().backward_fill().over("arrival"))
        )
        placed = readings.join(scrapes, on=["arrival", "ts"])
        return cls(
            told["ts"].dt.epoch("us").to_numpy(),
            told["arrival"].to_numpy(),
            told["start"].fill_null(np.nan).to_numpy(),
            told["total"].fill_null(np.nan).to_numpy(),
            placed["series_id"].to_numpy(),
            placed["scrape"].cast(pl.Int64).to_numpy(),
            placed["value"].to_numpy(),
        )

    @property
    def _count(self) -> tuple[Floats, ...]:
        """What grows with time in every scrape, the least first; nothing where not all tell."""
        is_told = not (np.isnan(self.start).any() or np.isnan(self.total).any())
        return (self.total, self.start) if is_told else ()

    def told_order(self) -> Integers:
        """The scrapes in order of arrival; of one arrival, as the counters of a process tell."""
        return np.lexsort((self.ts_us, *self._count, self.arrival))

    def counted_order(self, told: Integers, blocks: list[tuple[int, int]]) -> Integers:
        """The told order, but in every block as the counters of a process tell."""
        if not self._count:
            return told
        block = np.arange(told.size)
        for start, end in blocks:
            block[start:end] = start
        return np.lexsort((self.ts_us, *self._count, block))

    def contradictions(self, order: Integers) -> Flags:
        """Whether a counter contradicts each scrape's place in the order, after the one before."""
        place = np.empty(order.size, dtype=np.int64)
        place[order] = np.arange(order.size)
        rows = np.lexsort((place[self.scrape], self.series))
        series, scrape, value = self.series[rows], self.scrape[rows], self.value[rows]
        is_new = self.start[scrape[1:]] > self.start[scrape[:-1]]
        fell = (series[1:] == series[:-1]) & (value[1:] < value[:-1]) & ~is_new
        found = np.zeros(order.size + 1, dtype=bool)
        found[place[scrape[1:][fell]]] = True
        return found


def _readings(own: _Frames) -> pl.DataFrame:
    """What only grows in a process: metric, series_id, arrival, ts, value; the newest spelling."""
    grows = (pl.col("kind") == "counter") | (pl.col("metric") == _START)
    columns = ["series_id", "arrival", "ts", "rank", "value"]
    states = own.histograms.rename({"count": "value"}).select(columns)
    return (
        pl.concat([own.samples.select(columns), states])
        .join(
            own.series.filter(grows | (pl.col("kind") == "histogram")).select(
                "series_id", "metric"
            ),
            on="series_id",
        )
        .sort("rank")
        .unique(["series_id", "arrival", "ts"], keep="first", maintain_order=True)
        .drop("rank")
    )


def _totals(readings: pl.DataFrame) -> pl.DataFrame:
    """The sum of those counters that every scrape has: arrival, ts, total."""
    counters = readings.filter(pl.col("metric") != _START)
    often = pl.len().over("series_id")
    everywhere = counters.filter(often == often.max())
    return everywhere.group_by("arrival", "ts").agg(total=pl.col("value").sum())


def _judged(instance: str, own: _Frames) -> tuple[pl.DataFrame, list[dict[str, Any]]]:
    """What has to change in the scrapes of one target, and the notes about it."""
    scrapes = _Scrapes.of(own)
    told = scrapes.told_order()
    blocks = _blocks(scrapes.ts_us, told)
    orders = (np.arange(told.size), told, scrapes.counted_order(told, blocks))
    against = [scrapes.contradictions(each) for each in orders]
    order, is_out = orders[0].copy(), np.zeros(told.size, dtype=bool)
    is_stepped = np.zeros(told.size, dtype=bool)
    for start, end in blocks:
        found = [int(each[start : end + 1].sum()) for each in against]
        best = _best(scrapes, found, start, end)
        if best is None:
            is_out[_fewest_contradicting(scrapes, start, end)] = True
        elif best > 0:
            members = orders[best][start:end]
            order[start:end], is_stepped[members] = members, True
    moved = np.zeros(told.size, dtype=np.int64)
    moved[order] = _moves(scrapes.ts_us[order], is_stepped[order])
    changes = _changes(instance, scrapes, moved, is_out, is_stepped)
    return changes, _notes(instance, scrapes, moved, is_out)


def _best(scrapes: _Scrapes, found: list[int], start: int, end: int) -> int | None:
    """Which order of a block is right: 0 by stamps, 1 as told, 2 as counted; None if none is.

    `found` are the contradictions of each. Counters alone are believed where a scrape before the
    block shows how far they were.
    """
    stamped, told, counted = found
    is_known = np.unique(scrapes.arrival[start:end]).size > 1
    if not is_known:
        if stamped <= told:
            return 0
        return 1 if not told and start > 0 and scrapes.total[start - 1] > 0 else None
    if not counted < min(stamped, told):
        is_tie = stamped == told == 0 and _has_twins(scrapes, start, end)
        return 1 if told < stamped or is_tie else 0
    return 2


def _blocks(ts_us: Integers, told: Integers) -> list[tuple[int, int]]:
    """Where the told order and the stamps disagree: [start, end) of places in either order."""
    stamps = ts_us[told]
    newest = np.maximum.accumulate(stamps)
    oldest_behind = np.minimum.accumulate(stamps[::-1])[::-1]
    cuts = np.flatnonzero(newest[:-1] < oldest_behind[1:]) + 1
    edges = [0, *cuts.tolist(), told.size]
    return [(start, end) for start, end in pairwise(edges) if end - start > 1]


def _has_twins(scrapes: _Scrapes, start: int, end: int) -> bool:
    """Whether two scrapes of different counts have one stamp: the clock ran over it twice."""
    stamps, totals = scrapes.ts_us[start:end], scrapes.total[start:end]
    return bool(((np.diff(stamps) == 0) & (np.diff(totals) != 0)).any())


def _fewest_contradicting(scrapes: _Scrapes, start: int, end: int) -> Integers:
    """The scrapes of a block to leave out, so that those left agree with their stamps."""
    keys = list(zip(scrapes.start[start:end], scrapes.total[start:end], strict=True))
    return start + np.setdiff1d(np.arange(end - start), _longest_rise(keys))


def _longest_rise(keys: list[tuple[float, float]]) -> Integers:
    """The places of a longest run of keys, not all adjacent, in which none falls."""
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


def _moves(ts_us: Integers, is_stepped: Flags) -> Integers:
    """By how much to move each stamp, of scrapes in their true order, so that time never falls.

    0 for all where no clock was set. Most scrapes stay where they are.
    """
    steps = np.diff(ts_us)
    back = np.flatnonzero((steps <= 0) & is_stepped[1:] & is_stepped[:-1])
    if not back.size:
        return np.zeros(ts_us.size, dtype=np.int64)
    usual = int(np.median(steps[steps > 0])) if (steps > 0).any() else 0
    excess = np.zeros(ts_us.size, dtype=np.int64)
    ahead = [int(i) for i in np.flatnonzero(steps > _LONGER_RATIO * usual)]
    for i in back:
        size = usual - int(steps[i])
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


def _changes(
    instance: str, scrapes: _Scrapes, moved: Integers, is_out: Flags, is_stepped: Flags
) -> pl.DataFrame:
    """The scrapes that are moved, left out, or no longer to be called late."""
    frame = pl.DataFrame(
        {
            "instance": [instance] * moved.size,
            "arrival": scrapes.arrival,
            "ts": pl.Series(scrapes.ts_us).cast(pl.Datetime("us")).dt.replace_time_zone("UTC"),
            "moved_us": moved,
        },
        schema=_CHANGE_SCHEMA,
    ).with_columns(moved_us=pl.when(~pl.Series(is_out)).then("moved_us"))
    return frame.filter(pl.Series(is_out | is_stepped | (moved != 0)))


def _notes(
    instance: str, scrapes: _Scrapes, moved: Integers, is_out: Flags
) -> list[dict[str, Any]]:
    notes = []
    for size in sorted({int(size) for size in moved} - {0}):
        own = scrapes.ts_us[moved == size] + size
        side = "behind" if size > 0 else "ahead of"
        detail = (
            f"scrapes stamped by a clock that stood {_seconds(abs(size))} s {side} that of the "
            "others were moved by as much; counts are exact; times may be off by what passed at "
            "the step beyond one interval"
        )
        notes.append(_note(instance, _instant(own.min()), own.size, detail))
    if is_out.any():
        own = scrapes.ts_us[is_out]
        detail = (
            f"scrapes stamped {_span(_instant(own.min()), _instant(own.max()))} in an order that "
            "the counters of their process contradict (a clock was set) were left out; what these "
            "alone counted is in no figure"
        )
        notes.append(_note(instance, None, own.size, detail))
    return notes


def _instant(ts_us: int) -> datetime:
    return _EPOCH + timedelta(microseconds=int(ts_us))


def _span(first: datetime, last: datetime) -> str:
    return iso(first) if first == last else f"{iso(first)} … {iso(last)}"


def _still_late(intake: pl.DataFrame, changed: pl.DataFrame) -> pl.DataFrame:
    """The notes of the border, but for scrapes that did not come late: their clock was set."""
    own = changed.select("instance", "ts").unique()
    is_about_scrape = (pl.col("check") == "late") & (pl.col("subject") == pl.col("instance"))
    mistaken = intake.filter(is_about_scrape).join(own, on=["instance", "ts"], how="semi")
    return intake.join(
        mistaken.select("check", "instance", "ts"), on=["check", "instance", "ts"], how="anti"
    )
