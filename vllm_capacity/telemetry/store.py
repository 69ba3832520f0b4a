"""The window folder: rows become Parquet, whole or not at all, and `run` is settled by value.

    WINDOW/
      window.json                     provenance: source, versions, scrape intervals; the files
      series.parquet, intake.parquet
      samples/2026-11-24T08.parquet   a file an hour, sorted by series and time
      histograms/2026-11-24T08.parquet
      .rollup/                        minutes, computed on demand (rollup.py); safe to delete

Which files are the window's, `window.json` says (manifest.py): rows that came late are in files
with a hash in their names, `2026-11-24T08.0f3a….parquet` (late.py).

`run` is the ordinal of the process life of a series: +1 where a counter drops, where a histogram's
count, sum or any bucket does, and where another process answers than before (processes.py). Inside
a run everything is monotone, so the state of a series at a moment is its last row, and an increase
over any range is a difference of two states. Settling it here, once, is what makes every later
query exact and cheap.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl

from vllm_capacity.errors import WindowError
from vllm_capacity.holding import workplace
from vllm_capacity.telemetry.clocks import with_true_times
from vllm_capacity.telemetry.impossible import without_impossible
from vllm_capacity.telemetry.manifest import TABLES, WORKPLACE, as_listed, write_note
from vllm_capacity.telemetry.processes import (
    DIFFERENCED,
    process_changes,
    process_lives,
    with_births,
)
from vllm_capacity.telemetry.relabelled import with_relabelled
from vllm_capacity.telemetry.rows import Rows
from vllm_capacity.timerange import iso

_ALIAS = "an older name of the same concept, in the same scrape"
_TWIN = "the same series and sample time, counted once"
_OTHER = "the same series and sample time with different values, of which one was kept"
_CHECK_OF = {_ALIAS: "renamed", _TWIN: "duplicate", _OTHER: "clock"}


@dataclass(frozen=True)
class Place:
    """Where a window is to be: its path, and a hidden folder beside it to make it in.

    `answers` is for what a source has said so far: it outlives a run that did not end well.
    """

    path: Path
    folder: Path

    @property
    def answers(self) -> Path:
        """Kept until the window is there."""
        return self.folder / "answers"

    @property
    def staging(self) -> Path:
        """The window before it is whole."""
        return self.folder / "window"


@contextmanager
def reserved(path: Path) -> Iterator[Place]:
    """Hold the place of a window that is to be made at `path`, for this run alone.

    WindowError where something is there, SourceError where another run is making it. What a killed
    run left is removed, but for its answers; those go when the window is there.
    """
    require_free(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    busy = f"Another run is writing {path}; nothing was done. Try again when it has finished."
    with workplace(path.with_name(f".{path.name}{WORKPLACE}"), busy=busy) as folder:
        place = Place(path, folder)
        shutil.rmtree(place.staging, ignore_errors=True)
        try:
            require_free(path)
            yield place
        finally:
            shutil.rmtree(place.staging, ignore_errors=True)
            if path.exists():
                shutil.rmtree(place.answers, ignore_errors=True)


def require_free(path: Path) -> None:
    """WindowError if there is something at `path` already."""
    if path.exists():
        raise WindowError(f"{path} exists already. Choose another name, or remove it first.")


def write_window(path: Path, rows: Rows, provenance: Mapping[str, object]) -> Path:
    """Write a window folder at `path`, which must not exist, and return it.

    Duplicates are dropped, the newest spelling of a concept wins, `run` and `starts_at_zero` are
    settled. WindowError where `path` is taken or nothing was sampled, SourceError where another run
    is writing there; then nothing is left behind.
    """
    with reserved(path) as place:
        return put_window(place, rows, provenance)


def put_window(
    place: Place,
    rows: Rows,
    provenance: Mapping[str, object],
    minutes: Mapping[str, pl.DataFrame] | None = None,
) -> Path:
    """Write a window at a reserved place, whole or not at all, and return its path.

    As `write_window`; `minutes` are the tables that a thinned window has beside its samples.
    """
    if rows.samples.is_empty() and rows.histograms.is_empty():
        raise WindowError(f"Nothing to write to {place.path}: there is not one sample.")
    place.staging.mkdir()
    fill_folder(place.staging, settle(rows, is_thinned=bool(minutes)), provenance, minutes or {})
    return place.staging.replace(place.path)


def settle(rows: Rows, *, is_thinned: bool = False) -> Rows:
    """The rows deduplicated and sorted by true time, `run` and `starts_at_zero` settled.

    Of thinned rows, not every scrape is there: then none can be told to lack a series that goes on
    under other labels.
    """
    rows = with_true_times(without_impossible(rows))
    samples, dropped_samples = _deduplicate(rows.samples, "value")
    histograms, dropped_histograms = _deduplicate(rows.histograms, "count")
    series = rows.series.unique("series_id", keep="first", maintain_order=True)
    lives = process_lives(samples, series)
    if not is_thinned:
        result = with_relabelled(Rows(series, samples, histograms, rows.intake, rows.begin), lives)
        series, samples, histograms = result.series, result.samples, result.histograms
        rows = replace(rows, intake=result.intake)
    samples = _with_counter_runs(samples, series, process_changes(samples, series, lives))
    histograms = _with_histogram_runs(histograms, process_changes(histograms, series, lives))
    seen = pl.concat([samples.select("series_id", "ts"), histograms.select("series_id", "ts")])
    series = with_births(series, seen, lives, begin=rows.begin)
    intake = pl.concat(
        [rows.intake, _dropped_notes(pl.concat([dropped_samples, dropped_histograms]), series)]
    )
    return Rows(series, samples, histograms, intake, rows.begin)


def fill_folder(
    folder: Path,
    rows: Rows,
    provenance: Mapping[str, object],
    minutes: Mapping[str, pl.DataFrame],
) -> None:
    """Write settled rows, the minutes beside them and their provenance as the files of a window."""
    for name in TABLES:
        (folder / name).mkdir()
    parts = [*parts_of(rows), *((name, name, frame) for name, frame in minutes.items())]
    files = []
    for table, name, part in parts:
        write_part(folder / f"{name}.parquet", part)
        files.append(as_listed(folder, table, f"{name}.parquet", rows=part.height))
    wanted = {"start": iso(rows.begin)} if rows.begin else {}
    write_note(folder, {**wanted, **provenance}, files, through=folder)


def write_part(path: Path, part: pl.DataFrame) -> None:
    """One file of a window."""
    part.write_parquet(path, compression="zstd", compression_level=9, statistics=True)


def parts_of(rows: Rows) -> Iterator[tuple[str, str, pl.DataFrame]]:
    """What becomes a file: its table, its path in a window without a suffix, its rows."""
    yield from (("series", "series", rows.series), ("intake", "intake", rows.intake))
    for table, frame in (("samples", rows.samples), ("histograms", rows.histograms)):
        yield from ((table, f"{table}/{hour}", part) for hour, part in by_hour(frame))


def by_hour(frame: pl.DataFrame) -> list[tuple[str, pl.DataFrame]]:
    """The frame cut at UTC hours, as (2026-11-24T08, rows) in order."""
    hours = frame.with_columns(hour=pl.col("ts").dt.strftime("%Y-%m-%dT%H"))
    parts = hours.partition_by("hour", as_dict=True, include_key=False)
    return sorted((str(key[0]), part) for key, part in parts.items())


def _deduplicate(frame: pl.DataFrame, value: str) -> tuple[pl.DataFrame, pl.DataFrame]:
    """One row per (series, time), the newest spelling's; and (series, time, why) of the others."""
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
