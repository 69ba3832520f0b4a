"""The minute rollup: first and last state of every series in every minute and run, hour by hour.

Each hour is computed separately and cached beside the window (shelf.py) under the hash of its hour
file. An hour is computed again only if its data changed or its cached file is damaged; late data
affects exactly the hours it touches. Joining hours is exact because a row is a state, not an
increase: increases are computed on read, across hours as across minutes.

An hour file is sorted by series and time, so the rows of a series in a minute and run are adjacent:
its states are the first and last of them, taken by position. That takes half the time of grouping.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import duckdb
import numpy as np
import polars as pl

from vllm_capacity.telemetry.manifest import (
    MINUTES,
    TABLES,
    File,
    Manifest,
    as_pattern,
    check_hash,
    read_part,
)
from vllm_capacity.telemetry.shelf import Entry, Shelf

_HASH_DIGITS = 24
_ROWS = "rows"
_NO_BASE = "0"  # an hour of minutes does not depend on another hour
_MINUTE_MICROSECONDS = 60_000_000
_EMPTY = {
    "minutes": "select 0::bigint as series_id, now()::timestamptz as minute, 0::int as run, "
    "0::double as first, 0::double as last, now()::timestamptz as t0, now()::timestamptz as t1, "
    "0::int as n, 0::double as min, 0::double as max, 0::double as sum where false",
    "minute_histograms": "select 0::bigint as series_id, now()::timestamptz as minute, 0::int as "
    "run, "
    "0::double as first_count, 0::double as first_sum, []::double[] as first_counts, "
    "0::double as count, 0::double as sum, []::double[] as counts, "
    "now()::timestamptz as t0, now()::timestamptz as t1, 0::int as n where false",
}


def make_views(window: Manifest, connection: duckdb.DuckDBPyConnection) -> list[str]:
    """Create the views `minutes` and `minute_histograms`; returns the keys of hours just computed.

    Raises WindowError if a file's hash does not match; files are read whole here anyway.
    """
    if window.provenance["grain"] == "minute":  # a downsampled window contains its minutes
        for file in window.files:
            if file.table in MINUTES:
                check_hash(window.path, file)
                _show(connection, file.table, [window.path / file.name])
        return []
    computed: list[str] = []
    for table, view in zip(TABLES, MINUTES, strict=True):
        shelf = Shelf.of(window, f"{view}-")
        entries = []
        for hour in (file for file in window.files if file.table == table):
            key = f"{view}-{Path(hour.plain).name}.{check_hash(window.path, hour)[:_HASH_DIGITS]}"
            entry = shelf.find(key)
            if entry is None:
                entry = shelf.keep(key, _NO_BASE, {_ROWS: _rolled(window, hour, view)})
                computed.append(key)
            entries.append(entry)
        _show_entries(connection, view, entries)
        if computed:
            shelf.clean()
    return computed


def _show_entries(
    connection: duckdb.DuckDBPyConnection, view: str, entries: Sequence[Entry]
) -> None:
    """Create a view of entries in files, or a table if some entries are only in memory."""
    paths = [each.frames / f"{_ROWS}.parquet" for each in entries if isinstance(each.frames, Path)]
    if len(paths) == len(entries):
        _show(connection, view, paths)
        return
    frame = pl.concat([each.frame(_ROWS) for each in entries])
    connection.register("rolled", frame)
    connection.execute(f"create or replace table {view} as select * from rolled")
    connection.unregister("rolled")


def _show(connection: duckdb.DuckDBPyConnection, view: str, paths: Iterable[Path]) -> None:
    names = [as_pattern(path) for path in paths]
    shown = connection.read_parquet(names) if names else connection.sql(_EMPTY[view])
    shown.to_view(view, replace=True)


def _rolled(window: Manifest, hour: File, view: str) -> pl.DataFrame:
    frame = read_part(window.path, window.path / hour.name)
    return _minutes(frame) if view == "minutes" else _minute_histograms(frame)


def _minutes(samples: pl.DataFrame) -> pl.DataFrame:
    """First and last state of every counter and gauge per minute, with min, max and sum.

    One row per (series, minute, run): `first` at `t0`, `last` at `t1`; n is the number of samples.
    """
    starts, ends = _stretches(samples)
    first, last, values = samples[starts], samples[ends], samples["value"].to_numpy()
    return _keys(first).with_columns(
        first=first["value"],
        last=last["value"],
        t0=first["ts"],
        t1=last["ts"],
        n=pl.Series(ends - starts + 1, dtype=pl.Int32),
        min=pl.Series(np.fmin.reduceat(values, starts)),
        max=pl.Series(np.fmax.reduceat(values, starts)),
        sum=pl.Series(np.add.reduceat(values, starts)),
    )


def _minute_histograms(histograms: pl.DataFrame) -> pl.DataFrame:
    """The first and last state of every histogram in every minute.

    One row per (series, minute, run); bucket counts are per bucket and cumulative over time.
    """
    starts, ends = _stretches(histograms)
    first, last = histograms[starts], histograms[ends]
    return _keys(first).with_columns(
        first_count=first["count"],
        first_sum=first["sum"],
        first_counts=first["counts"],
        count=last["count"],
        sum=last["sum"],
        counts=last["counts"],
        t0=first["ts"],
        t1=last["ts"],
        n=pl.Series(ends - starts + 1, dtype=pl.Int32),
    )


def _stretches(frame: pl.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the first and last row of each (series, minute, run), in sorted rows."""
    keys = (
        frame["series_id"].to_numpy(),
        frame["ts"].dt.epoch("us").to_numpy() // _MINUTE_MICROSECONDS,
        frame["run"].to_numpy(),
    )
    changes = np.logical_or.reduce([key[1:] != key[:-1] for key in keys])
    starts = np.concatenate(([0], np.flatnonzero(changes) + 1))
    return starts, np.append(starts[1:], frame.height) - 1


def _keys(first: pl.DataFrame) -> pl.DataFrame:
    return first.select("series_id", pl.col("ts").dt.truncate("1m").alias("minute"), "run")
