"""Late data: rows that arrive after a window was written change exactly the hours they touch."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from datetime import datetime
from pathlib import Path

import polars as pl

from vllm_capacity.errors import WindowError
from vllm_capacity.telemetry.rows import HISTOGRAMS_SCHEMA, SAMPLES_SCHEMA, Rows
from vllm_capacity.telemetry.store import TABLES, fill_folder, settle
from vllm_capacity.telemetry.window import asked_instant


def extend_window(path: Path, late: Rows) -> list[str]:
    """Add rows that came late to the window at `path`; the hours whose data changed, in order.

    The window is replaced by a new one, whole: hours that did not change are the same files, and so
    keep their rollup. A window pulled by the minute takes no samples: WindowError.
    """
    note = json.loads((path / "window.json").read_text())
    if note.get("grain", "scrape") != "scrape":
        raise WindowError(f"{path} holds minutes, not samples: pull it again instead.")
    settled = settle(_joined(stored_rows(path), late, begin=asked_instant(note, "start")))
    staging = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    before = staging.with_name(f"{staging.name}.before")
    try:
        fill_folder(staging, settled, {k: v for k, v in note.items() if k != "counts"})
        changed = _keep_unchanged(path, staging)
        staging.chmod(0o755)
        path.replace(before)
        staging.replace(path)
    except BaseException:
        if before.exists() and not path.exists():
            before.replace(path)
        shutil.rmtree(staging, ignore_errors=True)
        raise
    shutil.rmtree(before)
    return changed


def stored_rows(path: Path) -> Rows:
    """The rows of a window, as a source would hand them over that had them all at once."""
    frames = {
        name: pl.read_parquet(path / name / "*.parquet")
        if any((path / name).glob("*.parquet"))
        else None
        for name in TABLES
    }
    empty = {"samples": SAMPLES_SCHEMA, "histograms": HISTOGRAMS_SCHEMA}
    samples, histograms = (
        pl.DataFrame(schema=empty[name])
        if frame is None
        else frame.drop("run").with_columns(rank=pl.lit(0, pl.Int8), arrival=pl.lit(0, pl.Int64))
        for name, frame in frames.items()
    )
    return Rows(
        pl.read_parquet(path / "series.parquet"),
        samples,
        histograms,
        pl.read_parquet(path / "intake.parquet"),
    )


def _joined(stored: Rows, late: Rows, *, begin: datetime | None) -> Rows:
    """Both together. Where a late row is a series' first, its birth is to be settled anew."""
    older = pl.concat(
        [late.samples.select("series_id", "ts"), late.histograms.select("series_id", "ts")]
    )
    first = pl.concat(
        [stored.samples.select("series_id", "ts"), stored.histograms.select("series_id", "ts")]
    )
    earliest = first.group_by("series_id").agg(first=pl.col("ts").min())
    moved = (
        older.join(earliest, on="series_id")
        .filter(pl.col("ts") < pl.col("first"))["series_id"]
        .unique()
    )
    is_moved = pl.col("series_id").is_in(moved.implode())
    series = stored.series.with_columns(
        starts_at_zero=pl.when(is_moved).then(None).otherwise("starts_at_zero")
    )
    return Rows(
        pl.concat([series, late.series]),
        pl.concat([stored.samples.select(list(SAMPLES_SCHEMA)), late.samples]),
        pl.concat([stored.histograms.select(list(HISTOGRAMS_SCHEMA)), late.histograms]),
        pl.concat([stored.intake, late.intake]),
        begin,
    )


def _keep_unchanged(path: Path, staging: Path) -> list[str]:
    """Put the old file back wherever an hour holds the same rows; the hours that do not."""
    changed = []
    for new in sorted(staging.glob("*/*.parquet")):
        old = path / new.parent.name / new.name
        if old.exists() and pl.read_parquet(old).equals(pl.read_parquet(new)):
            new.unlink()
            os.link(old, new)
        else:
            changed.append(new.stem)
    if (path / ".rollup").is_dir():
        shutil.copytree(path / ".rollup", staging / ".rollup", copy_function=os.link)
    return sorted(set(changed))
