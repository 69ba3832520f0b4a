"""The minute rollup: the last state of every series in every minute and run, an hour at a time.

Hours are computed apart and kept beside the window in `.rollup/`, each under the hash of the hour
file it came from: an hour whose data did not change is never computed again, and late data makes
exactly the hours it touches new. Stitching is exact because a row is a state, not an increase:
increases are taken on read, across hour borders like across minutes.

An hour file lies sorted by series and time, so a minute of a series and run is a stretch of rows:
its states are the rows at both ends, taken by position. That is half the work of grouping them.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

import duckdb
import numpy as np
import polars as pl

_MINUTE_MICROSECONDS = 60_000_000
_SHAPES = {"samples": "minutes", "histograms": "minute_histograms"}
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


def make_views(path: Path, connection: duckdb.DuckDBPyConnection) -> list[Path]:
    """Create the views `minutes` and `minute_histograms`; returns the hours computed just now."""
    computed: list[Path] = []
    for table, view in _SHAPES.items():
        pulled = path / f"{view}.parquet"
        if pulled.exists():  # a thinned window came with its minutes
            connection.read_parquet(str(pulled)).to_view(view, replace=True)
            continue
        hours = []
        for source in sorted((path / table).glob("*.parquet")):
            target = _cache(path) / f"{view}-{source.stem}-{_digest(source)}.parquet"
            if not target.exists():
                _roll_hour(source, target, view)
                computed.append(target)
            hours.append(str(target))
        if hours:
            connection.read_parquet(hours).to_view(view, replace=True)
        else:
            connection.sql(_EMPTY[view]).to_view(view, replace=True)
    return computed


def _cache(path: Path) -> Path:
    """Beside the window; where that cannot be written, a folder of the user's own."""
    beside = path / ".rollup"
    try:
        beside.mkdir(exist_ok=True)
    except OSError:
        beside = Path(tempfile.gettempdir()) / f"vllm-capacity-rollup-{os.getuid()}"
        beside.mkdir(exist_ok=True, mode=0o700)
    return beside


def _digest(source: Path) -> str:
    return hashlib.blake2b(source.read_bytes(), digest_size=12).hexdigest()


def _roll_hour(source: Path, target: Path, view: str) -> None:
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    frame = pl.read_parquet(source, glob=False)
    rolled = _minutes(frame) if view == "minutes" else _minute_histograms(frame)
    rolled.write_parquet(partial, compression="zstd")
    partial.replace(target)


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
