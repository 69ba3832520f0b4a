"""The minute rollup: first and last state of every series in every minute and run, hour by hour.

Each hour is computed separately and cached beside the window (shelf.py) under a hash of its files.
An hour is computed again only if its data changed or its cached files are damaged; late data affect
exactly the hours they touch. Joining hours is exact because a row is a state, not an
increase: increases are computed on read, across hours as across minutes.

An hour file is sorted by series and time, so the rows of a series in a minute and run are adjacent:
its states are the first and last of them, taken by position. That takes half the time of grouping.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from msgspec import Struct
from numpy.typing import NDArray

from vllm_capacity.telemetry.manifest import (
    MINUTES,
    TABLES,
    File,
    Manifest,
    as_pattern,
    check_hash,
    read_hour,
)
from vllm_capacity.telemetry.rows import HISTOGRAMS_SCHEMA, SAMPLES_SCHEMA, UTC_MICROSECONDS
from vllm_capacity.telemetry.shelf import Entry, Shelf

if TYPE_CHECKING:
    import duckdb

_HASH_DIGITS = 24
_KIND = "minutes-"
_NO_BASE = "0"  # an hour of minutes does not depend on another hour
_MINUTE_MICROSECONDS = 60_000_000
_NO_ROWS = {
    table: pl.DataFrame(schema={**schema, "run": pl.Int32})
    for table, schema in (("samples", SAMPLES_SCHEMA), ("histograms", HISTOGRAMS_SCHEMA))
}
Positions = NDArray[np.int64]
Columns = dict[str, pl.Series | NDArray[Any]]


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
    shelf, entries = Shelf.of(window, _KIND), []
    computed: list[str] = []
    for hour, files in _hours(window):
        hashes = " ".join(check_hash(window.path, file) for file in files)
        key = f"{_KIND}{hour}.{hashlib.sha256(hashes.encode()).hexdigest()[:_HASH_DIGITS]}"
        entry = shelf.find(key)
        if entry is None:
            entry = shelf.keep(key, _NO_BASE, _rolled(window, files))
            computed.append(key)
        entries.append(entry)
    for view in MINUTES:
        _show_entries(window, connection, view, entries)
    if computed:
        shelf.clean()
    return computed


def _hours(window: Manifest) -> Iterator[tuple[str, list[File]]]:
    """The hours of the window in order (`2026-11-24T08`), each with its files, samples first."""
    hours: dict[str, list[File]] = {}
    for table in TABLES:
        for file in window.files:
            if file.table == table:
                hours.setdefault(Path(file.plain).name, []).append(file)
    yield from sorted(hours.items())


def _rolled(window: Manifest, files: Sequence[File]) -> dict[str, pl.DataFrame]:
    """The minutes of an hour, by view; empty for a table without a file of the hour."""
    rows = _NO_ROWS | {file.table: read_hour(window.path, file) for file in files}
    return {
        "minutes": _minutes(rows["samples"]),
        "minute_histograms": _minute_histograms(rows["histograms"]),
    }


def _show_entries(
    window: Manifest, connection: duckdb.DuckDBPyConnection, view: str, entries: Sequence[Entry]
) -> None:
    """Create a view of entries in files, or a table if some entries are only in memory."""
    paths = [each.frames / f"{view}.parquet" for each in entries if isinstance(each.frames, Path)]
    if entries and len(paths) == len(entries):
        _show(connection, view, paths)
        return
    frame = pl.concat([each.frame(view) for each in entries] or [_rolled(window, [])[view]])
    connection.register("rolled", frame)
    connection.execute(f"create or replace table {view} as select * from rolled")
    connection.unregister("rolled")


def _show(connection: duckdb.DuckDBPyConnection, view: str, paths: Iterable[Path]) -> None:
    connection.read_parquet([as_pattern(path) for path in paths]).to_view(view, replace=True)


def _minutes(samples: pl.DataFrame) -> pl.DataFrame:
    """First and last state of every counter and gauge per minute, with min, max and sum.

    One row per (series, minute, run): `first` at `t0`, `last` at `t1`; n is the number of samples.
    """
    states = _states(samples)
    values = samples["value"].to_numpy()
    return pl.DataFrame(
        {
            **states.keys,
            "first": values[states.starts],
            "last": values[states.ends],
            **states.times,
            "min": np.fmin.reduceat(values, states.starts),
            "max": np.fmax.reduceat(values, states.starts),
            "sum": np.add.reduceat(values, states.starts),
        }
    )


def _minute_histograms(histograms: pl.DataFrame) -> pl.DataFrame:
    """The first and last state of every histogram in every minute.

    One row per (series, minute, run); bucket counts are per bucket and cumulative over time.
    """
    states = _states(histograms)
    columns = {name: histograms[name] for name in ("count", "sum", "counts")}
    first = {f"first_{name}": column[states.starts] for name, column in columns.items()}
    last = {name: column[states.ends] for name, column in columns.items()}
    return pl.DataFrame({**states.keys, **first, **last, **states.times})


class _States(Struct, frozen=True):
    """The positions of the first and last row of each (series, minute, run) in sorted rows.

    With columns: `keys` (series_id, minute, run) and `times` (t0, t1, n).
    """

    starts: Positions
    ends: Positions
    keys: Columns
    times: Columns


def _states(frame: pl.DataFrame) -> _States:
    ids, runs = frame["series_id"].to_numpy(), frame["run"].to_numpy()
    times = frame["ts"]
    minutes = times.to_numpy().view(np.int64) // _MINUTE_MICROSECONDS
    changes = np.logical_or.reduce([key[1:] != key[:-1] for key in (ids, minutes, runs)])
    starts = np.flatnonzero(np.append(True, changes)[: frame.height])
    ends = np.append(starts[1:], frame.height)[: starts.size] - 1
    minute = pl.Series(minutes[starts] * _MINUTE_MICROSECONDS).cast(UTC_MICROSECONDS)
    return _States(
        starts,
        ends,
        {"series_id": ids[starts], "minute": minute, "run": runs[starts]},
        {"t0": times[starts], "t1": times[ends], "n": (ends - starts + 1).astype(np.int32)},
    )
