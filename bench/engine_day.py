"""A day of one engine, made of the recorded sweep: repeated end to end, restarted now and then.

Every repetition goes on counting where the last one stopped, so that counters and histograms grow
as those of one process; every eighteenth begins at the recording's own values, which is a restart:
its process started as much later.
"""

from functools import cache
from pathlib import Path

import numpy as np
import polars as pl

from vllm_capacity.telemetry.processes import PROCESS_START
from vllm_capacity.telemetry.rows import HISTOGRAMS_SCHEMA, SAMPLES_SCHEMA, Rows
from vllm_capacity.telemetry.store import write_window
from vllm_capacity.telemetry.window import Window, open_window

LIFE = 18  # repetitions
DAY_SECONDS = 86_400
SCRAPE_SECONDS = 2.0


@cache
def engine_day(folder: Path) -> Path:
    """The window's folder, made on first use."""
    note = {"simulated": True, "about": "The recorded sweep, repeated to fill a day."}
    return write_window(folder / "engine-day", repeated_rows(DAY_SECONDS), note)


def repeated_rows(seconds: float) -> Rows:
    """The rows of about that length of time, as a source returns them."""
    sweep = open_window("vllm-sweep")
    length_seconds = sweep.extent.seconds + SCRAPE_SECONDS
    times = round(seconds / length_seconds)
    shift = np.timedelta64(round(length_seconds * 1e6), "us")
    return Rows(
        series=sweep.sql("select * from series"),
        samples=_repeated_samples(sweep, times, shift),
        histograms=_repeated_histograms(sweep, times, shift),
        ingest_notes=sweep.sql("select * from intake"),
    )


def _repeated_samples(sweep: Window, times: int, shift: np.timedelta64) -> pl.DataFrame:
    known = (
        "select s.*, kind = 'counter' as counts_up, metric = $start as is_start "
        "from samples s join series using (series_id)"
    )
    frame = sweep.sql(f"{known} order by series_id, ts", start=PROCESS_START)
    first, last = (getattr(pl.col("value"), end)().over("series_id") for end in ("first", "last"))
    grown = frame.with_columns(growth=pl.when("counts_up").then(last - first).otherwise(0.0))
    parts = [
        grown.select(
            "series_id",
            ts=pl.col("ts") + k * shift,
            value=pl.col("value")
            + (k % LIFE) * pl.col("growth")
            + pl.when("is_start")
            .then((k - k % LIFE) * shift / np.timedelta64(1, "s"))
            .otherwise(0),
            alias_priority=pl.lit(0, pl.Int8),
            arrival=pl.lit(None, pl.Int64),
        )
        for k in range(times)
    ]
    return pl.concat(parts).cast(SAMPLES_SCHEMA)


def _repeated_histograms(sweep: Window, times: int, shift: np.timedelta64) -> pl.DataFrame:
    frame = sweep.sql("select * from histograms order by series_id, ts")
    by_series = frame.group_by("series_id", maintain_order=True)
    ends = by_series.agg(
        *(pl.col(name).last() - pl.col(name).first() for name in ("count", "sum")),
        first=pl.col("counts").first(),
        last=pl.col("counts").last(),
    )
    growth = {
        key: (count, total, np.array(last) - np.array(first))
        for key, count, total, first, last in ends.rows()
    }
    parts = []
    for (key,), part in by_series:
        count, total, buckets = growth[key]
        states = np.array(part["counts"].to_list())
        for k in range(times):
            lives = k % LIFE
            parts.append(
                part.select(
                    "series_id",
                    ts=pl.col("ts") + k * shift,
                    count=pl.col("count") + lives * count,
                    sum=pl.col("sum") + lives * total,
                    counts=pl.Series(states + lives * buckets).arr.to_list(),
                    alias_priority=pl.lit(0, pl.Int8),
                    arrival=pl.lit(None, pl.Int64),
                )
            )
    return pl.concat(parts).cast(HISTOGRAMS_SCHEMA)


def scan(path: Path) -> None:
    """The minimum for any query of a window: DuckDB reads every value once."""
    import duckdb

    db = duckdb.connect()
    for table, query in _FLOORS.items():
        hours = sorted(str(hour) for hour in (path / table).glob("*.parquet"))
        db.read_parquet(hours).to_view(table)
        db.sql(query).fetchall()


_FLOORS = {
    "samples": "select count(*), max(series_id), sum(value), max(epoch_us(ts)) from samples",
    "histograms": "select max(series_id), max(epoch_us(ts)), sum(count), sum(sum), sum(counts[1]) "
    "from histograms",
}
