"""Answers of shipped queries from rows that are sorted in memory, without a database.

The rows of a piece of a window (pieces.py) are sorted by series and time, so the previous row is
the row above, and each stretch of time begins where the last one ended. Most of a database's work
for these queries, sorting and grouping, is already done. The results are bit-for-bit the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

import numpy as np
import polars as pl
from msgspec import Struct, field
from numpy.typing import NDArray

from vllm_capacity.telemetry.rows import microseconds
from vllm_capacity.telemetry.window import Window

Mask = NDArray[np.bool_]
Indices = NDArray[np.int64]

NAMES = ("metric", "instance", "engine", "model_name", "labels")
ORDER = ["metric", "instance", "engine", "labels"]


class SortedRows(Struct, frozen=True):
    """Samples or histograms of a piece and of its base, each sorted by series and time."""

    base: pl.DataFrame = field(default_factory=pl.DataFrame)
    own: pl.DataFrame = field(default_factory=pl.DataFrame)

    def of(self, series_ids: pl.Series) -> tuple[pl.DataFrame, Indices]:
        """The rows by series, in this order, and time; and per row, its index in `series_ids`."""
        parts, lengths = [self.own.clear()], []
        found = [_stretches(frame, series_ids) for frame in (self.base, self.own)]
        for before, own in zip(*found, strict=True):
            parts += [self.base.slice(*before), self.own.slice(*own)]
            lengths.append(before[1] + own[1])
        return pl.concat(parts), np.repeat(np.arange(len(series_ids)), lengths)

    def with_several_runs(self) -> pl.Series:
        """The series with more than one run, in order."""
        ends = []
        for frame in (self.base, self.own):
            ids, runs = frame["series_id"].to_numpy(), frame["run"].to_numpy()
            is_new = (ids[1:] != ids[:-1]) | (runs[1:] != runs[:-1])
            ends.append(
                frame.select("series_id", "run").filter(np.append(True, is_new)[: ids.size])
            )
        runs_of = pl.concat(ends).unique().group_by("series_id").len()
        return runs_of.filter(pl.col("len") > 1)["series_id"].sort()


def _stretches(frame: pl.DataFrame, series_ids: pl.Series) -> list[tuple[int, int]]:
    """The index of the first row of each series, and its number of rows."""
    ids, wanted = frame["series_id"].to_numpy(), series_ids.to_numpy()
    starts, ends = np.searchsorted(ids, wanted), np.searchsorted(ids, wanted, side="right")
    return list(zip(starts.tolist(), (ends - starts).tolist(), strict=True))


class SortedWindow(Window, frozen=True):
    """A window over a piece's rows: some queries read these directly, the rest use a database."""

    series: pl.DataFrame = field(default_factory=pl.DataFrame)
    samples: SortedRows = field(default_factory=SortedRows)
    histograms: SortedRows = field(default_factory=SortedRows)

    def shipped_sql(self, package: str, name: str, params: Mapping[str, object]) -> pl.DataFrame:
        """The result of a shipped query."""
        answered = _ANSWERED.get(name)
        if answered is None:
            return super().shipped_sql(package, name, params)
        return answered(self, params)

    def wanted(self, params: Mapping[str, Any], kinds: tuple[str, ...]) -> pl.DataFrame:
        """The series of the given metrics and kinds."""
        is_wanted = pl.col("metric").is_in(params["metrics"]) & pl.col("kind").is_in(kinds)
        return self.series.filter(is_wanted)


def _scrape_increases(window: SortedWindow, params: Mapping[str, Any]) -> pl.DataFrame:
    wanted = window.wanted(params, ("counter",)).sort(ORDER, nulls_last=True)
    rows, which = window.samples.of(wanted["series_id"])
    value, run = pl.col("value"), pl.col("run")
    first = pl.Series(is_first(which))
    counted = (
        pl.when(first & wanted["starts_at_zero"].fill_null(False).gather(which))
        .then(value)
        .when(first)
        .then(None)
        .when(run == run.shift(1))
        .then(value - value.shift(1))
        .otherwise(value)
    )
    found = _named(wanted, which).hstack(
        rows.select(
            ts_before=pl.when(~first).then(pl.col("ts").shift(1)), ts="ts", increase=counted
        )
    )
    return _in_order(found.filter(is_within(params)), wanted)


def _gauge_samples(window: SortedWindow, params: Mapping[str, Any]) -> pl.DataFrame:
    wanted = window.wanted(params, ("gauge", "info")).sort(ORDER, nulls_last=True)
    rows, which = window.samples.of(wanted["series_id"])
    found = _named(wanted, which).hstack(rows.select("ts", "value"))
    return _in_order(found.filter(is_within(params)), wanted)


def _histogram_states(window: SortedWindow, params: Mapping[str, Any]) -> pl.DataFrame:
    wanted = window.wanted(params, ("histogram",)).sort("series_id")
    rows, which = before(*window.histograms.of(wanted["series_id"]), params["end"])
    start = microseconds(params["start"])
    times = rows["ts"].dt.epoch("us").to_numpy()
    steps = np.minimum((times - start) // params["step_us"], params["last_step"])
    steps[times < start] = -1
    starts, ends = stretch_ends(which, rows["run"].to_numpy(), steps)
    first, last = rows[starts], rows[ends]
    named: pl.DataFrame = wanted.select("series_id", *NAMES[:-1], "bounds", "starts_at_zero")[
        which[ends]
    ]
    return named.hstack(
        [
            last["run"],
            pl.Series("step", steps[ends], dtype=pl.Int64),
            first["sum"].alias("first_sum"),
            first["counts"].alias("first_counts"),
            last["sum"],
            last["counts"],
            first["ts"].alias("t0"),
            last["ts"].alias("t1"),
        ]
    )


def _fastest_means(window: SortedWindow, params: Mapping[str, Any]) -> pl.DataFrame:
    least = params["least"]
    found = []
    wanted = window.wanted(params, ("histogram",)).sort("series_id")
    for (metric,), series in wanted.group_by("metric", maintain_order=True):
        rows, which = window.histograms.of(series["series_id"])
        counts, sums, runs = (rows[name].to_numpy() for name in ("count", "sum", "run"))
        if rows.height < 2:
            continue
        goes_on = (which[1:] == which[:-1]) & (runs[1:] == runs[:-1])
        observed, seconds = np.diff(counts), np.diff(sums)
        kept = np.flatnonzero(goes_on & (observed > 0) & (seconds > 0))
        if not kept.size:
            continue
        keys = (which[1:][kept], runs[1:][kept], np.floor(counts[1:][kept] / least))
        changes = np.logical_or.reduce([key[1:] != key[:-1] for key in keys])
        stretch = np.append(0, np.cumsum(changes))
        # Added sequentially, as in the query: pairwise sums would differ in their last bits.
        each = [np.bincount(stretch, of[kept]) for of in (observed, seconds)]
        is_long = each[0] >= least
        fastest = float((each[1] / each[0])[is_long].min()) if is_long.any() else None
        found.append((str(metric), fastest, *(float(np.cumsum(of)[-1]) for of in each)))
    schema = {
        "metric": pl.String,
        **dict.fromkeys(("fastest_seconds", "observed", "seconds"), pl.Float64),
    }
    return pl.DataFrame(sorted(found), schema=schema, orient="row")


def _run_starts(window: SortedWindow, params: Mapping[str, Any]) -> pl.DataFrame:
    several = window.samples.with_several_runs()
    rows, which = window.samples.of(several)
    runs = rows["run"].to_numpy()
    at = np.flatnonzero(~is_first(which)[1:] & (runs[1:] > runs[:-1])) + 1
    whose = several.to_frame().join(window.series, on="series_id", maintain_order="left")
    instances = whose["instance"].gather(which[at])
    found = pl.DataFrame(
        {"instance": instances, "ts_before": rows["ts"].gather(at - 1), "ts": rows["ts"].gather(at)}
    )
    latest = found.group_by("instance", "ts").agg(pl.col("ts_before").max())
    return latest.select("instance", "ts_before", "ts").sort("instance", "ts")


def is_first(which: Indices) -> Mask:
    """Whether each row is the first of its series."""
    return np.append(True, which[1:] != which[:-1])[: which.size]


def stretch_ends(*keys: NDArray[Any]) -> tuple[Indices, Indices]:
    """The indices of the first and the last row of each stretch of rows with equal keys."""
    rows = keys[0].size
    changes = np.logical_or.reduce([key[1:] != key[:-1] for key in keys])
    firsts = np.append(0, np.flatnonzero(changes) + 1)[: max(1, rows) if rows else 0]
    return firsts, np.append(firsts[1:], rows)[: firsts.size] - 1


def before(rows: pl.DataFrame, which: Indices, end: datetime) -> tuple[pl.DataFrame, Indices]:
    """The rows before `end`, and the series of each."""
    is_before = rows.select(pl.col("ts") < end).to_series()
    if is_before.all():
        return rows, which
    return rows.filter(is_before), which[is_before.to_numpy()]


def _named(wanted: pl.DataFrame, which: Indices) -> pl.DataFrame:
    return wanted.select(NAMES)[which]


def is_within(params: Mapping[str, Any]) -> pl.Expr:
    """Whether `ts` lies in [start, end) of the parameters."""
    start: datetime = params["start"]
    end: datetime = params["end"]
    return (pl.col("ts") >= start) & (pl.col("ts") < end)


def _in_order(found: pl.DataFrame, wanted: pl.DataFrame) -> pl.DataFrame:
    """Rows of series with equal sort keys, merged by time."""
    if wanted.select(ORDER).is_duplicated().any():
        return found.sort(*ORDER, "ts", nulls_last=True, maintain_order=True)
    return found


_ANSWERED: dict[str, Callable[[SortedWindow, Mapping[str, Any]], pl.DataFrame]] = {
    "scrape_increases": _scrape_increases,
    "gauge_samples": _gauge_samples,
    "histogram_states": _histogram_states,
    "fastest_means": _fastest_means,
    "run_starts": _run_starts,
}
