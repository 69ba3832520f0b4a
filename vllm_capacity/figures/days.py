"""Days: the pieces of a finished day as one, so that figures of weeks open few files.

The frames of a day are those of its pieces (pieces.py), concatenated. Rows at the ends of a piece
that are inside a run of the day are left out: queries give the same result without them. The steps
of each engine are contiguous. The pieces remain, for ranges that end within the day, and because
late rows change only some of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from itertools import groupby

import polars as pl

from vllm_capacity.figures.pieces import LOAD, NO_BASE, Frames, Piece, is_run_end
from vllm_capacity.telemetry.processes import PROCESS_START
from vllm_capacity.telemetry.shelf import Entry
from vllm_capacity.timerange import TimeRange

_BASES = ("base_samples", "base_histograms")


def in_days(pieces: Sequence[Piece], borders: Iterable[datetime]) -> list[Piece]:
    """The pieces in order, with those of each finished day as one.

    The last day is not finished. A day with one piece, or with a border inside, is left as it is.
    """
    ends = list(borders)
    days = [tuple(own) for _, own in groupby(pieces, key=lambda one: one.time_range.start.date())]
    found: list[Piece] = []
    for day in days[:-1]:
        whole = TimeRange(day[0].time_range.start, day[-1].time_range.end)
        is_split = any(whole.start < end < whole.end for end in ends)
        if len(day) > 1 and not is_split:
            files = tuple(file for piece in day for file in piece.files)
            found.append(Piece(whole, files, parts=day))
        else:
            found += day
    return [*found, *days[-1]] if days else []


def joined(parts: Sequence[Entry], series: pl.DataFrame) -> Frames:
    """The frames of a day from the entries of its pieces, in order, at least one."""
    last = parts[-1]
    frames = {name: pl.concat([part.frame(name) for part in parts]) for name in last.names}
    frames |= {name: last.frame(name) for name in _BASES}
    frames["histograms"] = _run_ends(frames["histograms"], [])
    is_kept = pl.col("metric").is_in([*LOAD, PROCESS_START])
    kept = series.filter(is_kept).get_column("series_id").to_list()
    frames["samples"] = _run_ends(frames["samples"], kept)
    frames["steps"] = frames["steps"].sort("instance", "engine", maintain_order=True)
    return frames


def _run_ends(rows: pl.DataFrame, kept: Sequence[int]) -> pl.DataFrame:
    """The first and last row of each (series, run), and all rows of the `kept` series."""
    ordered = rows.sort("series_id", "ts")
    is_end = pl.Series(is_run_end(ordered, NO_BASE.samples))
    return ordered.filter(is_end | ordered.get_column("series_id").is_in(kept))
