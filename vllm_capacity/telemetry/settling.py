"""Finalizes rows in consecutive chunks of time, so that memory does not grow with the window.

All decisions need only a few of the rows: when scrapes happened, when processes started, which
counters fell, which series appeared and vanished, and the last row of each series so far. Steps:

1. *Clocks.* One series of each target shows the times of its scrapes. All counters are read only
   for targets with a doubtful order of scrapes (clocks.py).
2. Rows are processed in chunks, in order of true time. In each chunk, duplicates are dropped, and
   the few rows are collected that show which processes there were (processes.py) and which series
   continue under other labels (relabelled.py).
3. Then each row gets its `run`, and each series its `starts_at_zero`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
from msgspec import Struct, field
from msgspec.structs import replace

from vllm_capacity.telemetry.clocks import correction_in_parts
from vllm_capacity.telemetry.impossible import without_impossible_in_parts
from vllm_capacity.telemetry.parts import Held, RowsInParts, Spool, Tables
from vllm_capacity.telemetry.processes import (
    DIFFERENCED,
    falls_in,
    joined_spans,
    joined_starts,
    lives_of,
    process_changes,
    spans_in,
    starts_in,
    with_series_starts,
)
from vllm_capacity.telemetry.relabelled import Presence, counted_rows, relabelling
from vllm_capacity.telemetry.rows import INGEST_NOTES_SCHEMA, UTC_MICROSECONDS, Rows
from vllm_capacity.telemetry.stamps import UNTIMED, note

_ALIAS = "an older name of the same concept, in the same scrape"
_TWIN = "the same series and sample time, counted once"
_OTHER = "the same series and sample time with different values, of which one was kept"
_TWINS = "a clock was set, and which of two scrapes with the same time came first is unknown"
_DROPPED: dict[str, Any] = {"series_id": pl.Int64, "ts": UTC_MICROSECONDS, "why": pl.String}
_CHECK_OF = {_ALIAS: "renamed", _TWIN: "duplicate", _OTHER: "clock"}
_HOUR = timedelta(hours=1)
STRETCH_ROWS = 200_000
"""Rows per chunk; an hour is never split."""


def settle(rows: Rows, *, is_downsampled: bool = False) -> Rows:
    """The rows deduplicated and sorted by true time, with `run` and `starts_at_zero` set.

    Downsampled rows lack some scrapes, so relabeled series cannot be detected in them.
    """
    stretches: list[Tables] = []
    in_parts = RowsInParts.of(rows)
    series, ingest_notes = settle_stretches(
        in_parts, Held(), stretches.append, is_downsampled=is_downsampled, stretch_rows=None
    )
    ((samples, histograms),) = stretches
    return Rows(series, samples, histograms, ingest_notes, rows.begin)


def settle_stretches(
    rows: RowsInParts,
    ordered: Held | Spool,
    write: Callable[[Tables], None],
    *,
    is_downsampled: bool = False,
    stretch_rows: int | None = STRETCH_ROWS,
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Finalize rows as `settle` does, in chunks; returns the series and the ingest notes.

    `write` receives the rows in order of time, in chunks of whole UTC hours; `ordered` stores them
    until then. If `stretch_rows` is None there is one chunk. The result depends only on the rows,
    not on where parts or chunks end.
    """
    rows = without_impossible_in_parts(rows)
    rows = rows.corrected(correction_in_parts(rows))
    facts = _Facts(rows.series.unique("series_id", keep="first", maintain_order=True))
    for stretch in _stretches(rows, stretch_rows):
        facts.add(ordered, stretch)
    sorted_rows = replace(rows, series=facts.series, parts=ordered.parts)
    return _written(sorted_rows, facts, write, is_downsampled=is_downsampled)


def _written(
    rows: RowsInParts, facts: _Facts, write: Callable[[Tables], None], *, is_downsampled: bool
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Write the sorted rows with their `run`; returns the series, finalized, and the notes."""
    series, ingest_notes, lives = rows.series, rows.ingest_notes, facts.lives()
    moved = None if is_downsampled else relabelling(rows, facts.presence, lives)
    if moved is not None:
        series, ingest_notes = moved.series(series), pl.concat([ingest_notes, moved.notes()])
    counted, spans = _Runs(series, lives), None
    since = rows.begin or facts.begin()
    for part in rows.parts:
        tables = part()
        if moved is not None:
            tables = (moved.table(tables[0]), moved.table(tables[1]))
        seen = pl.concat([frame.select("series_id", "ts") for frame in tables])
        own = spans_in(seen, series, lives, since=since)
        spans = own if spans is None else joined_spans(pl.concat([spans, own]))
        write(counted.settled(tables))
    assert spans is not None
    series = with_series_starts(series, spans, lives, since=since)
    return series, pl.concat([ingest_notes, facts.dropped_notes(series)])


def _stretches(rows: RowsInParts, most: int | None) -> Iterator[Tables]:
    """The rows chunk by chunk, within a chunk in order of arrival."""
    if most is None:
        yield _joined([part() for part in rows.parts])
        return
    heights = [_heights(part()) for part in rows.parts]
    last: tuple[int, Tables] | None = None
    for start, end in _bounds(heights, most):
        found = []
        for index, own in enumerate(heights):
            if not any(start <= hour < end for hour in own):
                continue
            if last is None or last[0] != index:  # reuse the part: most chunks end within one
                last = (index, rows.parts[index]())
            is_in = pl.col("ts").is_between(start, end, closed="left")
            found.append((last[1][0].filter(is_in), last[1][1].filter(is_in)))
        yield _joined(found)


def _joined(tables: Sequence[Tables]) -> Tables:
    return pl.concat([each[0] for each in tables]), pl.concat([each[1] for each in tables])


def _heights(tables: Tables) -> Counter[datetime]:
    """Number of rows in each UTC hour."""
    found: Counter[datetime] = Counter()
    for frame in tables:
        hours = frame.group_by(pl.col("ts").dt.truncate("1h")).len()
        found.update(dict(hours.iter_rows()))
    return found


def _bounds(heights: Sequence[Counter[datetime]], most: int) -> Iterator[tuple[datetime, datetime]]:
    """Bounds of chunks of whole hours; a chunk ends with the hour that brings it to `most` rows."""
    whole = sum(heights, Counter())
    start, rows = None, 0
    hour = None
    for hour in sorted(whole):
        start, rows = start or hour, rows + whole[hour]
        if rows >= most:
            yield start, hour + _HOUR
            start, rows = None, 0
    if start is not None and hour is not None:
        yield start, hour + _HOUR


class _Facts(Struct):
    """Facts about all rows that must be known before any row can be finalized.

    They grow with series, restarts and relabeled series, but not with time.
    """

    series: pl.DataFrame
    presence: Presence = field(default_factory=Presence)
    _first: pl.DataFrame | None = None
    _starts: pl.DataFrame | None = None
    _falls: list[pl.DataFrame] = field(default_factory=list)
    _dropped: pl.DataFrame | None = None
    _begin: datetime | None = None
    _last: pl.DataFrame | None = None

    def add(self, ordered: Held | Spool, stretch: Tables) -> None:
        """Collect facts from the next chunk, and add it to `ordered` without duplicates."""
        samples, twins = _deduplicated(stretch[0], "value")
        histograms, other_twins = _deduplicated(stretch[1], "count")
        ordered.add(samples, histograms)
        dropped = _counted(pl.concat([twins, other_twins]).with_columns(count=1))
        self._dropped = _counted(_both(self._dropped, dropped))
        first = samples.select("series_id", since="ts")
        self._first = _both(self._first, first).group_by("series_id").agg(pl.col("since").min())
        begins = [f["ts"].min() for f in (samples, histograms) if f.height]
        self._begin = min(each for each in (self._begin, *begins) if each is not None)  # type: ignore[assignment]
        starts = _both(self._starts, starts_in(samples, self.series))
        self._starts = joined_starts(starts.sort("instance", "first"))
        known = _both(self._last, samples).sort("series_id", maintain_order=True)
        self._falls.append(falls_in(known, self.series))
        self._last = known.unique("series_id", keep="last", maintain_order=True)
        self.presence.add(counted_rows(self.series, (samples, histograms)))

    def lives(self) -> pl.DataFrame:
        """The processes that ran at each address."""
        assert self._first is not None
        assert self._starts is not None
        return lives_of(self.series, self._first, self._starts, pl.concat(self._falls))

    def begin(self) -> datetime:
        """The time of the first sample."""
        assert self._begin is not None
        return self._begin

    def dropped_notes(self, series: pl.DataFrame) -> pl.DataFrame:
        """An ingest note per instance, metric and reason: duplicates, older names of a concept.

        One more for each target that has a dropped counter sample with a different value.
        """
        assert self._dropped is not None
        if self._dropped.is_empty():
            return pl.DataFrame(schema=INGEST_NOTES_SCHEMA)
        dropped = self._dropped.join(
            series.select("series_id", "instance", "metric", "kind"), on="series_id"
        )
        is_uncounted = (pl.col("why") == _OTHER) & pl.col("kind").is_in(DIFFERENCED)
        targets = dropped.filter(is_uncounted).get_column("instance").unique().sort()
        twins = [{**note(target, None, 1, _TWINS), "check": UNTIMED} for target in targets]
        notes = (
            dropped.group_by("instance", "metric", "why", maintain_order=True)
            .agg(pl.col("count").sum(), pl.col("ts").min())
            .select(
                check=pl.col("why").replace_strict(_CHECK_OF),
                instance="instance",
                ts="ts",
                subject="metric",
                detail="why",
                count="count",
            )
            .sort("instance", "subject", "check")
        )
        return pl.concat([notes, pl.DataFrame(twins, schema=INGEST_NOTES_SCHEMA)])


def _deduplicated(frame: pl.DataFrame, value: str) -> Tables:
    """One row per (series, time), of the newest spelling; and (series, time, why) of the others."""
    ordered = frame.sort("series_id", "ts", "alias_priority", maintain_order=True)
    marked = ordered.with_columns(is_kept=pl.struct("series_id", "ts").is_first_distinct())
    if marked.get_column("is_kept").all():
        return ordered.drop("alias_priority", "arrival"), pl.DataFrame(schema=_DROPPED)
    marked = marked.with_columns(is_other=pl.col(value) != pl.col(value).shift())
    best = pl.col("alias_priority").min().over("series_id", "ts")
    why = (
        pl.when(pl.col("alias_priority") > best)
        .then(pl.lit(_ALIAS))
        .when("is_other")
        .then(pl.lit(_OTHER))
        .otherwise(pl.lit(_TWIN))
    )
    dropped = (
        marked.with_columns(why=why).filter(~pl.col("is_kept")).select("series_id", "ts", "why")
    )
    return marked.filter("is_kept").drop(
        "is_kept", "is_other", "alias_priority", "arrival"
    ), dropped


def _counted(dropped: pl.DataFrame) -> pl.DataFrame:
    """Per series and reason, the number of dropped rows and the time of the first."""
    return dropped.group_by("series_id", "why", maintain_order=True).agg(
        pl.col("count").sum().cast(pl.Int64), pl.col("ts").min()
    )


def _both(before: pl.DataFrame | None, own: pl.DataFrame) -> pl.DataFrame:
    return own if before is None else pl.concat([before, own])


class _Runs(Struct):
    """Numbers the runs of each series, chunk by chunk.

    It keeps the last row of every series so far, with its run.
    """

    series: pl.DataFrame
    lives: pl.DataFrame
    _samples: pl.DataFrame | None = None
    _histograms: pl.DataFrame | None = None

    def settled(self, tables: Tables) -> Tables:
        """The rows of the next chunk, each with its run."""
        samples, histograms = tables
        samples = self._with_runs(_after(self._samples, samples), self._counter_drops)
        histograms = self._with_runs(_after(self._histograms, histograms), _histogram_drops)
        self._samples, self._histograms = map(_last_rows, (samples, histograms))
        samples, histograms = (
            each.filter("is_new").drop("is_new") for each in (samples, histograms)
        )
        return (
            samples.select("series_id", "run", "ts", "value"),
            histograms.select("series_id", "run", "ts", "count", "sum", "counts"),
        )

    def _with_runs(
        self, rows: pl.DataFrame, drops: Callable[[pl.DataFrame], pl.Series]
    ) -> pl.DataFrame:
        is_other_process = process_changes(rows, self.series, self.lives)
        # In two steps: inside `over`, polars would copy the list of counters once per series.
        marked = rows.with_columns(has_dropped=drops(rows) | is_other_process)
        before = pl.col("run").first().over("series_id").fill_null(0)
        run = pl.col("has_dropped").cum_sum().over("series_id") + before
        return marked.with_columns(run=run.cast(pl.Int32)).drop("has_dropped")

    def _counter_drops(self, samples: pl.DataFrame) -> pl.Series:
        counters = self.series.filter(pl.col("kind").is_in(DIFFERENCED)).get_column("series_id")
        has_dropped = pl.col("value") < pl.col("value").shift(1).over("series_id")
        is_counter = pl.col("series_id").is_in(counters.implode())
        return samples.select(drop=(has_dropped & is_counter).fill_null(False)).to_series()


def _after(last: pl.DataFrame | None, rows: pl.DataFrame) -> pl.DataFrame:
    """The rows, preceded by the last earlier row of each series; sorted by series and time."""
    own = rows.with_columns(run=pl.lit(None, pl.Int32), is_new=pl.lit(True))
    if last is None:
        return own
    both = pl.concat([last.with_columns(is_new=pl.lit(False)).select(own.columns), own])
    return both.sort("series_id", maintain_order=True)


def _last_rows(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.unique("series_id", keep="last", maintain_order=True)


def _histogram_drops(histograms: pl.DataFrame) -> pl.Series:
    """Per row, whether its count, sum or any bucket fell since the previous row of its series."""
    height = histograms.height
    drops = np.zeros(height, dtype=bool)
    if height < 2:
        return pl.Series("drop", drops)
    ids = histograms.get_column("series_id").to_numpy()
    lengths = histograms.get_column("counts").list.len().to_numpy().astype(np.int64)
    flat = histograms.get_column("counts").explode(empty_as_null=False).to_numpy()
    ends = np.cumsum(lengths)
    for name in ("count", "sum"):
        values = histograms.get_column(name).to_numpy()
        drops[1:] |= values[1:] < values[:-1]
    # Rows of one series have equally many buckets: the previous value is `length` values back.
    row_of = np.repeat(np.arange(height), lengths)
    twin = np.arange(flat.size) - lengths[row_of]
    is_comparable = twin >= 0
    fallen = np.zeros(flat.size, dtype=bool)
    fallen[is_comparable] = flat[is_comparable] < flat[twin[is_comparable]]
    drops |= np.add.reduceat(fallen, np.concatenate(([0], ends[:-1]))) > 0
    same = np.concatenate(([False], ids[1:] == ids[:-1]))
    return pl.Series("drop", drops & same, dtype=pl.Boolean)
