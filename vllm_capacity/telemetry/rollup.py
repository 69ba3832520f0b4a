"""The minute rollup: the last state of every series in every minute and run, an hour at a time.

Hours are computed apart and kept beside the window in `.rollup/`, each under the hash of the hour
file it came from and its own: an hour whose data did not change is never computed again, late data
makes exactly the hours it touches new, and a kept hour that was damaged is computed anew. Stitching
is exact because a row is a state, not an increase: increases are taken on read, across hour borders
like across minutes.

An hour file lies sorted by series and time, so a minute of a series and run is a stretch of rows:
its states are the rows at both ends, taken by position. That is half the work of grouping them.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import duckdb
import numpy as np
import polars as pl

from vllm_capacity.holding import Pin
from vllm_capacity.telemetry.manifest import (
    MINUTES,
    TABLES,
    File,
    Manifest,
    as_pattern,
    check_hash,
    digest,
    read_part,
)
from vllm_capacity.telemetry.shelf import kept_folder, remove_partials

_HASH_DIGITS = 24
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


def make_views(window: Manifest, connection: duckdb.DuckDBPyConnection) -> list[Path]:
    """Create the views `minutes` and `minute_histograms`; returns the hours computed just now.

    WindowError where a file is not as it was written: here each is read whole anyway.
    """
    if window.provenance["grain"] == "minute":  # a thinned window came with its minutes
        for file in window.files:
            if file.table in MINUTES:
                check_hash(window.path, file)
                _show(connection, file.table, [window.path / file.name])
        return []
    folder = kept_folder(window.path)
    computed: list[Path] = []
    for table, view in zip(TABLES, MINUTES, strict=True):
        hours = [file for file in window.files if file.table == table]
        if folder is not None:
            shown, new = _kept_hours(window, hours, view, folder)
            _show(connection, view, shown)
            computed += new
        else:
            _show_in_memory(connection, view, [_rolled(window, hour, view) for hour in hours])
    return computed


def _show(connection: duckdb.DuckDBPyConnection, view: str, paths: Iterable[Path]) -> None:
    names = [as_pattern(path) for path in paths]
    shown = connection.read_parquet(names) if names else connection.sql(_EMPTY[view])
    shown.to_view(view, replace=True)


def _show_in_memory(
    connection: duckdb.DuckDBPyConnection, view: str, hours: list[pl.DataFrame]
) -> None:
    empty = pl.DataFrame(connection.sql(_EMPTY[view]))
    frame = pl.concat(hours) if hours else empty
    connection.register("rolled", frame)
    connection.execute(f"create or replace table {view} as select * from rolled")
    connection.unregister("rolled")


def _kept_hours(
    window: Manifest, hours: list[File], view: str, folder: Path
) -> tuple[list[Path], list[Path]]:
    """The rolled hours as files in `folder`, in order; and those of them that were computed now."""
    there: dict[str, list[Path]] = {}
    for path in folder.glob(f"{view}-*.*.parquet"):
        there.setdefault(path.name.partition(".")[0], []).append(path)
    shown, computed = [], []
    pin = None
    for hour in hours:
        source = check_hash(window.path, hour)[:_HASH_DIGITS]
        name = f"{view}-{Path(hour.plain).name}-{source}"
        good = next((path for path in there.get(name, ()) if _is_whole(path)), None)
        if good is None:
            pin = pin or _begin(folder)
            good = _keep(folder, name, _rolled(window, hour, view))
            computed.append(good)
        shown.append(good)
    return shown, computed


def _is_whole(kept: Path) -> bool:
    """Whether a kept hour is as it was written: the end of its name is its hash."""
    with suppress(OSError):
        return kept.is_file() and digest(kept)[:_HASH_DIGITS] == kept.name.split(".")[-2]
    return False


def _begin(folder: Path) -> Pin:
    """Say that hours are being written; where nobody else does, remove what killed runs left."""
    remove_partials(folder)
    return Pin(folder)


def _keep(folder: Path, name: str, rolled: pl.DataFrame) -> Path:
    handle, partial = tempfile.mkstemp(prefix=f".{name}.", suffix=".partial", dir=folder)
    os.close(handle)
    try:
        rolled.write_parquet(partial, compression="zstd")
        target = folder / f"{name}.{digest(Path(partial))[:_HASH_DIGITS]}.parquet"
        Path(partial).replace(target)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise
    return target


def _rolled(window: Manifest, hour: File, view: str) -> pl.DataFrame:
    frame = read_part(window.path, window.path / hour.name)
    return _minutes(frame) if view == "minutes" else _minute_histograms(frame)


def _minutes(samples: pl.DataFrame) -> pl.DataFrame:
    """The state of every counter and gauge at both ends of every minute, what a gauge did in it.

    A row a (series, minute, run): `first` and `last` at `t0` and `t1`; n samples.
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

    A row a (series, minute, run); bucket counts are per bucket and cumulative over time.
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
    """The first and last row of every (series, minute, run), of rows sorted by series and time."""
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
