"""The window folder: rows become Parquet, whole or not at all, and `run` is settled by value.

    WINDOW/
      window.json                     provenance: source, versions, scrape intervals, counts
      series.parquet, intake.parquet
      samples/2026-11-24T08.parquet   a file an hour, sorted by series and time
      histograms/2026-11-24T08.parquet
      .rollup/                        minutes, computed on demand (rollup.py); safe to delete

`run` is the ordinal of the process life of a series: +1 where a counter drops, where a histogram's
count, sum or any bucket does, and where another process answers than before (processes.py). Inside
a run everything is monotone, so the state of a series at a moment is its last row, and an increase
over any range is a difference of two states. Settling it here, once, is what makes every later
query exact and cheap.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import polars as pl

from vllm_capacity.errors import WindowError
from vllm_capacity.telemetry.clocks import with_true_times
from vllm_capacity.telemetry.processes import (
    DIFFERENCED,
    process_changes,
    process_lives,
    with_births,
)
from vllm_capacity.telemetry.rows import Rows
from vllm_capacity.timerange import iso

FORMAT = 1
TABLES = ("samples", "histograms")
_ALIAS = "an older name of the same concept, in the same scrape"
_TWIN = "the same series and sample time, counted once"
_OTHER = "the same series and sample time with different values, of which one was kept"
_CHECK_OF = {_ALIAS: "renamed", _TWIN: "duplicate", _OTHER: "clock"}


def write_window(path: Path, rows: Rows, provenance: Mapping[str, object]) -> Path:
    """Write a window folder at `path`, which must not exist, and return it.

    Duplicates are dropped, the newest spelling of a concept wins, `run` and `starts_at_zero` are
    settled. WindowError where `path` is taken or nothing was sampled; then nothing is left behind.
    """
    if path.exists():
        raise WindowError(f"{path} exists already. Choose another name, or remove it first.")
    if rows.samples.is_empty() and rows.histograms.is_empty():
        raise WindowError(f"Nothing to write to {path}: there is not one sample.")
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        fill_folder(staging, settle(rows), provenance)
        staging.chmod(0o755)
        staging.replace(path)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    return path


def settle(rows: Rows) -> Rows:
    """The rows deduplicated and sorted by true time, `run` and `starts_at_zero` settled."""
    rows = with_true_times(rows)
    samples, dropped_samples = _deduplicate(rows.samples, "value")
    histograms, dropped_histograms = _deduplicate(rows.histograms, "count")
    series = rows.series.unique("series_id", keep="first", maintain_order=True)
    lives = process_lives(samples, series)
    samples = _with_counter_runs(samples, series, process_changes(samples, series, lives))
    histograms = _with_histogram_runs(histograms, process_changes(histograms, series, lives))
    seen = pl.concat([samples.select("series_id", "ts"), histograms.select("series_id", "ts")])
    series = with_births(series, seen, lives, begin=rows.begin)
    intake = pl.concat(
        [rows.intake, _dropped_notes(pl.concat([dropped_samples, dropped_histograms]), series)]
    )
    return Rows(series, samples, histograms, intake, rows.begin)


def fill_folder(folder: Path, rows: Rows, provenance: Mapping[str, object]) -> None:
    """Write settled rows and their provenance as the files of a window."""
    rows.series.write_parquet(folder / "series.parquet", compression="zstd")
    rows.intake.write_parquet(folder / "intake.parquet", compression="zstd")
    for name, frame in (("samples", rows.samples), ("histograms", rows.histograms)):
        (folder / name).mkdir()
        for hour, part in by_hour(frame):
            write_hour(folder / name / f"{hour}.parquet", part)
    counts = {
        "series": rows.series.height,
        "samples": rows.samples.height,
        "histograms": rows.histograms.height,
    }
    asked = {"start": iso(rows.begin)} if rows.begin else {}
    note = {"format": FORMAT, "grain": "scrape", **asked, **provenance, "counts": counts}
    (folder / "window.json").write_text(json.dumps(note, indent=2, sort_keys=True) + "\n")


def by_hour(frame: pl.DataFrame) -> list[tuple[str, pl.DataFrame]]:
    """The frame cut at UTC hours, as (2026-11-24T08, rows) in order."""
    hours = frame.with_columns(hour=pl.col("ts").dt.strftime("%Y-%m-%dT%H"))
    parts = hours.partition_by("hour", as_dict=True, include_key=False)
    return sorted((str(key[0]), part) for key, part in parts.items())


def write_hour(path: Path, part: pl.DataFrame) -> None:
    """One hour of a table, whole or not at all."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_parquet(partial, compression="zstd", compression_level=9, statistics=True)
    partial.replace(path)


def _deduplicate(frame: pl.DataFrame, value: str) -> tuple[pl.DataFrame, pl.DataFrame]:
    """One row a (series, time), the newest spelling's; and (series, time, why) of the others."""
    ordered = frame.sort("series_id", "ts", "rank", maintain_order=True)
    is_first = pl.struct("series_id", "ts").is_first_distinct()
    marked = ordered.with_columns(is_kept=is_first, is_other=pl.col(value) != pl.col(value).shift())
    best = pl.col("rank").min().over("series_id", "ts")
    why = (
        pl.when(pl.col("rank") > best)
        .then(pl.lit(_ALIAS))
        .when("is_other")
        .then(pl.lit(_OTHER))
        .otherwise(pl.lit(_TWIN))
    )
    dropped = (
        marked.with_columns(why=why).filter(~pl.col("is_kept")).select("series_id", "ts", "why")
    )
    return marked.filter("is_kept").drop("is_kept", "is_other", "rank", "arrival"), dropped


def _dropped_notes(dropped: pl.DataFrame, series: pl.DataFrame) -> pl.DataFrame:
    """A ledger row per instance, metric and reason: duplicates, and older names of a concept."""
    return (
        dropped.join(series.select("series_id", "instance", "metric"), on="series_id")
        .group_by("instance", "metric", "why", maintain_order=True)
        .agg(count=pl.len().cast(pl.Int64), ts=pl.col("ts").min())
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


def _with_counter_runs(
    samples: pl.DataFrame, series: pl.DataFrame, is_other_process: pl.Series
) -> pl.DataFrame:
    counters = series.filter(pl.col("kind").is_in(DIFFERENCED)).get_column("series_id")
    has_dropped = (
        (pl.col("value") < pl.col("value").shift(1).over("series_id"))
        & pl.col("series_id").is_in(counters.implode())
    ).fill_null(False) | is_other_process
    run = pl.col("has_dropped").cum_sum().over("series_id").cast(pl.Int32)
    # Two steps: inside `over`, polars would copy the list of counters once for every series.
    return (
        samples.with_columns(has_dropped=has_dropped)
        .with_columns(run=run)
        .select("series_id", "run", "ts", "value")
    )


def _with_histogram_runs(histograms: pl.DataFrame, is_other_process: pl.Series) -> pl.DataFrame:
    has_dropped = pl.Series("drop", _histogram_drops(histograms), dtype=pl.Boolean)
    has_dropped = (has_dropped | is_other_process).alias("drop")
    run = pl.col("drop").cum_sum().over("series_id").cast(pl.Int32)
    return (
        histograms.with_columns(has_dropped)
        .with_columns(run=run)
        .select("series_id", "run", "ts", "count", "sum", "counts")
    )


def _histogram_drops(histograms: pl.DataFrame) -> np.ndarray:
    """Per row, whether its count, sum or any bucket is below the row's before it (same series)."""
    height = histograms.height
    drops = np.zeros(height, dtype=bool)
    if height < 2:
        return drops
    ids = histograms.get_column("series_id").to_numpy()
    lengths = histograms.get_column("counts").list.len().to_numpy().astype(np.int64)
    flat = histograms.get_column("counts").explode(empty_as_null=False).to_numpy()
    ends = np.cumsum(lengths)
    for name in ("count", "sum"):
        values = histograms.get_column(name).to_numpy()
        drops[1:] |= values[1:] < values[:-1]
    # Rows of one series have equally many buckets, so a row's twin lies `length` values back.
    row_of = np.repeat(np.arange(height), lengths)
    twin = np.arange(flat.size) - lengths[row_of]
    is_comparable = twin >= 0
    fallen = np.zeros(flat.size, dtype=bool)
    fallen[is_comparable] = flat[is_comparable] < flat[twin[is_comparable]]
    drops |= np.add.reduceat(fallen, np.concatenate(([0], ends[:-1]))) > 0
    same = np.concatenate(([False], ids[1:] == ids[:-1]))
    return drops & same
