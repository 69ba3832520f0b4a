"""Series that continue under other labels, because a label changed while a process ran.

If a relabeling rule changes, a pod label is edited or `model_name` is spelled differently, counters
of a process vanish and others appear in the same scrape. These do not start at zero, although
earlier scrapes of the process lack them. Steps:

1. If a counter or histogram vanishes from one scrape to the next, and another of the same metric
   and target appears in that next scrape, those with the least different labels are paired.
2. A pair is one series if no scrape has both and their joint count never falls while the process
   runs. All samples then belong to the series that was seen first.
3. Any other series that appears this way counts from its first value, unless it begins below all
   that vanished. So the figures may lack what it counted in one interval, but never include
   everything that its process counted before.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import polars as pl
from msgspec import Struct, field
from msgspec.structs import replace
from numpy.typing import NDArray

from vllm_capacity.telemetry.parts import RowsInParts, Tables
from vllm_capacity.telemetry.processes import DIFFERENCED, life_of_rows
from vllm_capacity.telemetry.rows import INGEST_NOTES_SCHEMA, UTC_MICROSECONDS, Rows

SURE, UNSURE = "respelled", "relabelled"
_PLACE = ["instance", "metric", "kind", "scrape"]
_MAX_COMPARED = 10_000  # pairs of one metric in one scrape; if there are more, none is paired
_UNTIED = "counted from its first value"
_Labels = frozenset[tuple[str, str]]
_Place = tuple[str, str, str, int]
_Integers = NDArray[np.int64]
_SEEN: dict[str, Any] = {
    "series_id": pl.Int64,
    "ts": UTC_MICROSECONDS,
    "value": pl.Float64,
    "instance": pl.String,
    "metric": pl.String,
    "kind": pl.String,
    "scrape": pl.Int64,
}


def relabelling(rows: RowsInParts, presence: Presence, lives: pl.DataFrame) -> Relabelling | None:
    """Which series continue which; None if no series vanishes when another appears.

    `rows` are sorted by true time, and `presence` has seen all of them. `lives` are the processes
    (processes.py); addresses at which several processes answer in turn are not changed.
    """
    gone, come = presence.changes()
    if gone.is_empty() or come.is_empty():
        return None
    in_turn = lives.filter(pl.col("doubt") == "in turn")
    gone, come = (each.join(in_turn, on="instance", how="anti") for each in (gone, come))
    gone, come = _of_one_life(gone, come, rows.series, lives)
    if gone.is_empty():
        return None
    involved = pl.concat([gone, come]).select("series_id", "instance").unique()
    of_targets = rows.series.join(involved, on="instance", how="semi")
    numbers, seen = _Numbers(), []
    for part in rows.parts:
        own = numbers.added(counted_rows(of_targets, part()))
        seen.append(own.join(involved, on="series_id", how="semi"))
    return _relabelling(rows.series, pl.concat(seen).sort("series_id", "scrape"), gone, come, lives)


def counted_rows(series: pl.DataFrame, tables: Tables) -> pl.DataFrame:
    """The rows of counters and histograms: series_id, ts, value, instance, metric, kind.

    Sorted by series and time; the value of a histogram is its count.
    """
    return _seen(tables, series.filter(pl.col("kind").is_in(DIFFERENCED)))


class _Numbers(Struct):
    """Numbers the scrapes of each target consecutively from 1, chunk by chunk."""

    _counts: dict[str, int] = field(default_factory=dict)

    def added(self, seen: pl.DataFrame) -> pl.DataFrame:
        """The next rows (`counted_rows`), all of them later than those before, with `scrape`."""
        before = pl.col("instance").replace_strict(self._counts, default=0, return_dtype=pl.Int64)
        scrape = pl.col("ts").rank("dense").over("instance").cast(pl.Int64)
        numbered = seen.with_columns(scrape=scrape + before)
        self._counts.update(numbered.group_by("instance").agg(pl.col("scrape").max()).iter_rows())
        return numbered


class Presence(Struct):
    """Records in which scrapes of its target each series appears or vanishes, chunk by chunk."""

    _last: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=_SEEN))
    _gone: list[pl.DataFrame] = field(default_factory=list)
    _come: list[pl.DataFrame] = field(default_factory=list)
    _numbers: _Numbers = field(default_factory=_Numbers)

    def add(self, seen: pl.DataFrame) -> None:
        """Add the next rows (`counted_rows`), all of them later than those before."""
        if seen.is_empty():
            return
        seen = self._numbers.added(seen)
        both = pl.concat(
            [
                self._last.select(seen.columns).with_columns(is_new=pl.lit(False)),
                seen.with_columns(is_new=pl.lit(True)),
            ]
        ).sort("series_id", "scrape")
        following = pl.col("scrape").shift(-1).over("series_id")
        preceding = pl.col("scrape").shift(1).over("series_id")
        gone = both.filter(following > pl.col("scrape") + 1).with_columns(pl.col("scrape") + 1)
        came = pl.col("is_new") & (preceding == pl.col("scrape") - 1).fill_null(False).not_()
        self._gone.append(gone.drop("is_new"))
        self._come.append(both.filter(came).drop("is_new"))
        self._last = both.unique("series_id", keep="last", maintain_order=True).drop("is_new")

    def changes(self) -> tuple[pl.DataFrame, pl.DataFrame]:
        """The last rows before a series vanished, and the first rows when one appeared.

        `scrape` is the scrape that first lacked the series, or first had it.
        """
        end = self._last.with_columns(pl.col("scrape") + 1)
        empty = pl.DataFrame(schema=_SEEN)
        gone, come = (
            pl.concat([empty, *(each.select(list(_SEEN)) for each in found)])
            for found in ([*self._gone, end], self._come)
        )
        return gone, come


def with_relabelled_minutes(
    rows: Rows, lives: pl.DataFrame, minutes: pl.DataFrame
) -> tuple[Rows, dict[int, int]]:
    """Rows at the ends of minutes with relabeled series joined, and a map of joined series ids.

    Rows from before `begin`, carried in as a baseline, are ignored: scrapes after them are unknown.
    `minutes` has series_id, ts and until (the first and last scrape that had the series), n (how
    many had it), first and last (its counts in these two). The scrapes of a target come from `up`;
    a target with scrapes that are not in `up` is not changed. If some scrapes of a minute lack a
    series, it is assumed to be absent where another appears.
    """
    owners = _owners(rows, lives)
    seen = _seen((rows.samples, rows.histograms), owners)
    if rows.begin is not None:
        seen = seen.filter(pl.col("ts") >= rows.begin)
    scrapes = _scrapes(rows)
    untold = seen.join(scrapes, on=["instance", "ts"], how="anti").select("instance").unique()
    seen = seen.join(untold, on="instance", how="anti").join(scrapes, on=["instance", "ts"])
    spans = _spans(minutes, owners.join(untold, on="instance", how="anti"), scrapes)
    changes = _changes_of_spans(spans)
    result = _relabelling(rows.series, seen.sort("series_id", "scrape"), *changes, lives)
    return (rows, {}) if result is None else (result.applied(rows), result.moved)


def _relabelling(
    series: pl.DataFrame,
    seen: pl.DataFrame,
    gone: pl.DataFrame,
    come: pl.DataFrame,
    lives: pl.DataFrame,
) -> Relabelling | None:
    """Which series continue which; None if no series of a process vanishes as another appears."""
    gone, come = _of_one_life(gone, come, series, lives)
    if gone.is_empty():
        return None
    involved = pl.concat([gone, come]).select("series_id").unique()
    own = seen.join(involved, on="series_id", how="semi")
    own = own.with_columns(life_of_rows(own, series, lives))
    named = series.join(involved, on="series_id", how="semi")
    result = Relabelling(own, _histories(own, named))
    vanished = _by_place(gone)
    for place, appeared in sorted(_by_place(come).items(), key=lambda item: item[0][-1]):
        result.settle(place[-1], vanished[place], appeared)
    return result


def without_repeats(late: Rows, stored: Rows) -> Rows:
    """The late rows without series that `stored` already has under other labels.

    Such a series is not stored itself, but its metric has a relabeled series in `stored`, and all
    its values are stored at the same times.
    """
    noted = stored.ingest_notes.filter(pl.col("check").is_in([SURE, UNSURE]))
    keys = noted.select("instance", metric="subject").unique()
    fresh = late.series.join(stored.series, on="series_id", how="anti").join(
        keys, on=["instance", "metric"], how="semi"
    )
    if fresh.is_empty():
        return late
    owners = stored.series.join(keys, on=["instance", "metric"], how="semi")
    held = _seen((stored.samples, stored.histograms), owners)
    text = ["instance", "metric", "kind", "ts", "value"]
    own = _seen((late.samples, late.histograms), fresh)
    result = own.join(own.join(held, on=text, how="anti"), on="series_id", how="anti")
    return replace(
        late,
        series=late.series.join(result, on="series_id", how="anti"),
        samples=late.samples.join(result, on="series_id", how="anti", maintain_order="left"),
        histograms=late.histograms.join(result, on="series_id", how="anti", maintain_order="left"),
    )


def _owners(rows: Rows, lives: pl.DataFrame) -> pl.DataFrame:
    """Counters and histograms, except at addresses where several processes answer in turn."""
    in_turn = lives.filter(pl.col("doubt") == "in turn")
    counted = rows.series.filter(pl.col("kind").is_in(DIFFERENCED))
    return counted.join(in_turn, on="instance", how="anti")


def _seen(tables: Tables, owners: pl.DataFrame) -> pl.DataFrame:
    """The rows of these series with their instance, metric and kind; sorted by series and time."""
    samples, histograms = tables
    states = histograms.select("series_id", "ts", value="count")
    return (
        pl.concat([samples.select("series_id", "ts", "value"), states])
        .join(owners.select("series_id", "instance", "metric", "kind"), on="series_id")
        .sort("series_id", "ts")
    )


def _scrapes(rows: Rows) -> pl.DataFrame:
    """The successful scrapes of each target, from `up`: instance, ts, scrape (numbered from 1)."""
    up = rows.series.filter(pl.col("metric") == "up").select("series_id", "instance")
    good = rows.samples.filter(pl.col("value") > 0).join(up, on="series_id")
    times = good.select("instance", "ts").unique()
    return times.with_columns(scrape=pl.col("ts").rank("dense").over("instance").cast(pl.Int64))


def _spans(minutes: pl.DataFrame, owners: pl.DataFrame, scrapes: pl.DataFrame) -> pl.DataFrame:
    """The minutes of these series with the scrapes that they span, sorted by series and time.

    Columns: series_id, instance, metric, kind, since and until (scrapes), n, first, last. If two
    jobs scraped a target in one minute, their rows are merged.
    """
    together = (
        minutes.sort("series_id", "ts")
        .group_by("series_id", pl.col("ts").dt.truncate("1m").alias("minute"), maintain_order=True)
        .agg(
            pl.col("ts", "first").first(),
            pl.col("until").max(),
            pl.col("last").sort_by("until").last(),
            pl.col("n").sum(),
        )
    )
    ends = scrapes.rename({"ts": "until", "scrape": "until_scrape"})
    return (
        together.join(owners.select("series_id", "instance", "metric", "kind"), on="series_id")
        .join(scrapes.rename({"scrape": "since"}), on=["instance", "ts"])
        .join(ends, on=["instance", "until"])
        .drop("until", "minute")
        .rename({"until_scrape": "until"})
        .sort("series_id", "since")
    )


def _changes_of_spans(spans: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Like `Presence.changes`, from minutes.

    A series that misses scrapes within a minute counts as absent where another appears.
    """
    since, until = pl.col("since"), pl.col("until")
    goes_on = (since.shift(-1).over("series_id") == until + 1).fill_null(False)
    went_on = (until.shift(1).over("series_id") == since - 1).fill_null(False)
    columns = ["series_id", "ts", "instance", "metric", "kind", "value", "scrape"]
    come = spans.filter(~went_on).with_columns(value="first", scrape=since).select(columns)
    gone = spans.filter(~goes_on).with_columns(value="last", scrape=until + 1).select(columns)
    holed = spans.filter(pl.col("n") < until - since + 1).with_columns(value="first")
    places = come.select(_PLACE).unique()
    lacking = holed.join(places, on=_PLACE[:-1]).filter(
        (pl.col("scrape") > since) & (pl.col("scrape") < until)
    )
    return pl.concat([gone, lacking.select(columns)]), come


def _of_one_life(
    gone: pl.DataFrame, come: pl.DataFrame, series: pl.DataFrame, lives: pl.DataFrame
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The changes in which series vanish and appear in one process at one scrape.

    Changes between two processes do not count: the next process may have other series.
    """
    gone, come = gone.join(come, on=_PLACE, how="semi"), come.join(gone, on=_PLACE, how="semi")
    gone, come = (each.with_columns(life_of_rows(each, series, lives)) for each in (gone, come))
    place = [*_PLACE, "life"]
    return gone.join(come, on=place, how="semi"), come.join(gone, on=place, how="semi")


def _by_place(rows: pl.DataFrame) -> dict[_Place, dict[int, float]]:
    """Values by series, for each metric of a target in each scrape."""
    found: dict[_Place, dict[int, float]] = {}
    for *place, series_id, value in rows.select(*_PLACE, "series_id", "value").iter_rows():
        found.setdefault((place[0], place[1], place[2], place[3]), {})[series_id] = value
    return found


class _History(Struct, frozen=True):
    """The values of one series, with the ordinal of its process for each scrape, in order.

    `labels` and `bounds` distinguish it from others of its metric; `is_born` is whether it began in
    the capture, according to the source.
    """

    labels: _Labels
    bounds: tuple[float, ...]
    is_born: bool
    scrapes: _Integers
    values: NDArray[np.float64]
    lives: _Integers

    def joined(self, later: _History) -> _History | None:
        """Both as one series; None if that is impossible: a scrape has both, or a count falls."""
        if later.is_born and not self.is_born:
            return None
        scrapes = np.concatenate([self.scrapes, later.scrapes])
        order = np.argsort(scrapes, kind="stable")
        scrapes = scrapes[order]
        values = np.concatenate([self.values, later.values])[order]
        lives = np.concatenate([self.lives, later.lives])[order]
        falls = (np.diff(values) < 0) & (np.diff(lives) == 0)
        if (np.diff(scrapes) == 0).any() or falls.any():
            return None
        return replace(self, scrapes=scrapes, values=values, lives=lives)


def _histories(own: pl.DataFrame, series: pl.DataFrame) -> dict[int, _History]:
    """The history of each of these series."""
    columns = ["series_id", "engine", "model_name", "labels", "bounds", "starts_at_zero"]
    result = {row["series_id"]: row for row in series.select(columns).iter_rows(named=True)}
    found = {}
    for (series_id,), rows in own.group_by("series_id"):
        row = result[series_id]
        named = {"engine": row["engine"], "model_name": row["model_name"]}
        labels = {**json.loads(row["labels"]), **{k: v for k, v in named.items() if v is not None}}
        found[row["series_id"]] = _History(
            frozenset(labels.items()),
            tuple(row["bounds"] or ()),
            bool(row["starts_at_zero"]),
            rows["scrape"].to_numpy(),
            rows["value"].to_numpy(),
            rows["life"].cast(pl.Int64).to_numpy(),
        )
    return found


class Relabelling(Struct):
    """Which series continue which (`into`), and which count from their first value (`untied`).

    `own` are the rows of all series that vanish or appear.
    """

    own: pl.DataFrame
    histories: dict[int, _History]
    into: dict[int, int] = field(default_factory=dict)
    untied: set[int] = field(default_factory=set)

    def settle(self, scrape: int, vanished: dict[int, float], appeared: dict[int, float]) -> None:
        """Match one metric of a target in one scrape; both arguments are values by series.

        Scrapes must come in order.
        """
        for old, new in list(self._pairs(vanished, appeared)):
            self._join(self.root(old), self.root(new))
        least = min(vanished.values())
        for new, value in appeared.items():
            is_first = scrape == self.histories[new].scrapes[0]
            if new not in self.into and is_first and value >= least:
                self.untied.add(new)

    def root(self, series_id: int) -> int:
        """The series that this one continues, or itself."""
        while series_id in self.into:
            series_id = self.into[series_id]
        return series_id

    def _join(self, one: int, other: int) -> None:
        first, later = sorted((one, other), key=lambda each: self.histories[each].scrapes[0])
        joined = self.histories[first].joined(self.histories[later]) if first != later else None
        if joined is not None:
            self.into[later], self.histories[first] = first, joined

    def _pairs(
        self, vanished: dict[int, float], appeared: dict[int, float]
    ) -> Iterator[tuple[int, int]]:
        """The pairs with labels that differ less than in any other pair with either series."""
        if len(vanished) * len(appeared) > _MAX_COMPARED:
            return
        apart = {
            (old, new): len(self.histories[old].labels ^ self.histories[new].labels)
            for old in vanished
            for new in appeared
            if self.histories[old].bounds == self.histories[new].bounds
        }
        for (old, new), distance in apart.items():
            rivals = (d for (o, n), d in apart.items() if (o == old) != (n == new))
            if all(distance < rival for rival in rivals):
                yield old, new

    @property
    def moved(self) -> dict[int, int]:
        """The series that each joined series now belongs to, by id."""
        return {series_id: self.root(series_id) for series_id in self.into}

    def applied(self, rows: Rows) -> Rows:
        """The rows with these changes and notes about them."""
        return replace(
            rows,
            series=self.series(rows.series),
            samples=self.table(rows.samples),
            histograms=self.table(rows.histograms),
            ingest_notes=pl.concat([rows.ingest_notes, self.notes()]),
        )

    def series(self, series: pl.DataFrame) -> pl.DataFrame:
        """The remaining series, with `starts_at_zero` False for `untied` ones."""
        is_untied = pl.col("series_id").is_in(list(self.untied))
        is_moved = pl.col("series_id").is_in(list(self.into))
        return series.with_columns(
            starts_at_zero=pl.when(is_untied).then(False).otherwise("starts_at_zero")
        ).filter(~is_moved)

    def table(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Samples or histograms under their joined series, sorted by series and time."""
        return renumbered(frame, self.moved).sort("series_id", "ts")

    def notes(self) -> pl.DataFrame:
        """The notes for the quality report."""
        notes = [*self._joined_notes(), *self._untied_notes()]
        return pl.DataFrame(notes, schema=INGEST_NOTES_SCHEMA)

    def _joined_notes(self) -> Iterator[dict[str, Any]]:
        """A note per joined series; joining is certain if the first spelling came back later."""
        for series_id, root in self.moved.items():
            rows, before = (self._rows_of(each) for each in (series_id, root))
            other, usual = self.histories[series_id].labels, self.histories[root].labels
            came_back = before["ts"].max() > rows["ts"].max()  # type: ignore[operator]
            yield _note(
                SURE if came_back else UNSURE,
                rows,
                f"{_spelled(other - usual)} for {_spelled(usual - other)}",
            )

    def _untied_notes(self) -> Iterator[dict[str, Any]]:
        for series_id in self.untied:
            yield _note(UNSURE, self._rows_of(series_id), _UNTIED)

    def _rows_of(self, series_id: int) -> pl.DataFrame:
        return self.own.filter(pl.col("series_id") == series_id)


def _note(check: str, rows: pl.DataFrame, detail: str) -> dict[str, Any]:
    """A note about the rows of one series."""
    return {
        "check": check,
        "instance": rows["instance"][0],
        "ts": rows["ts"].min(),
        "subject": rows["metric"][0],
        "detail": detail,
        "count": rows.height,
    }


def _spelled(labels: _Labels) -> str:
    return ", ".join(f'{name}="{value}"' for name, value in sorted(labels)) or "no such label"


def renumbered(frame: pl.DataFrame, moved: Mapping[int, int]) -> pl.DataFrame:
    """The rows with the ids of the series that they were joined into."""
    return frame.with_columns(pl.col("series_id").replace(moved)) if moved else frame
