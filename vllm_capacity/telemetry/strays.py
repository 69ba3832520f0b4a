"""Stray timestamps: a few scrapes stamped far from all others, such as 1970 or a year ahead."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from vllm_capacity.telemetry.stamps import CHANGE_SCHEMA, KEY, PROCESS_START, Frames, note, span_of

_DAY_SECONDS = 86_400
_DISTANCE_US = 7 * _DAY_SECONDS * 1_000_000
_HOUR_US = 3_600_000_000
_SPANS = 10  # a stray is further away than this many times the time span of the others
_MAX, _MAX_SHARE = 10, 0.25


def may_have_strays(hours: pl.Series) -> bool:
    """Whether stamps in these UTC hours may be far from all others."""
    gaps = np.diff(hours.sort().to_physical().to_numpy())
    return bool((gaps > _DISTANCE_US - _HOUR_US).any())


def strays_of(known: Frames, pulses: pl.DataFrame) -> pl.DataFrame:
    """Changes that leave out the scrapes with stamps far from all others.

    Either there are few of these, or their own process start is more than a day after their stamp.
    """
    nothing = pl.DataFrame(schema=CHANGE_SCHEMA)
    times = pulses.sort("ts")
    stamps = times["ts"].dt.epoch("us").to_numpy()
    island = np.cumsum(np.diff(stamps, prepend=stamps[:1]) > _DISTANCE_US)
    if not island.size or not island[-1]:
        return nothing
    main = stamps[island == np.bincount(island).argmax()]
    distance = np.maximum(main[0] - stamps, stamps - main[-1])
    far = times.with_columns(island=pl.Series(island)).filter(
        pl.Series(distance > max(_DISTANCE_US, _SPANS * int(main[-1] - main[0])))
    )
    crowds = far.group_by("island", "instance").len().filter(pl.col("len") > _MAX)
    few = far.join(crowds.select("island").unique(), on="island", how="anti")
    strays = pl.concat([few, far.join(_before_birth(known), on=KEY, how="semi")]).unique()
    if strays.height > _MAX_SHARE * times.height:
        return nothing
    return strays.select(*KEY, moved_us=pl.lit(None, pl.Int64)).sort(KEY)


def _before_birth(known: Frames) -> pl.DataFrame:
    """The scrapes stamped more than a day before the reported start of their process."""
    starts = known.series.filter(pl.col("metric") == PROCESS_START).select("series_id", "instance")
    result = known.samples.join(starts, on="series_id")
    return result.filter(pl.col("ts").dt.epoch("s") + _DAY_SECONDS < pl.col("value")).select(KEY)


def on_time(pulses: pl.DataFrame, strays: pl.DataFrame) -> pl.DataFrame:
    """Scrapes that are not late, except compared with a stray of their target; moved by 0."""
    own = pulses.join(strays, on="instance", how="semi")
    is_on_time = pl.col("ts") >= pl.col("ts").cum_max().over("instance")
    return own.filter(is_on_time).select(*KEY, moved_us=pl.lit(0, pl.Int64))


def stray_notes(strays: pl.DataFrame) -> list[dict[str, Any]]:
    """Notes on strays for the quality report, one per target."""
    notes = []
    for (instance,), own in strays.group_by("instance", maintain_order=True):
        stamps = own["ts"].sort().to_list()
        span = span_of(stamps[0], stamps[-1])
        detail = f"scrapes stamped {span}, more than a week from all others, were left out"
        # Their stamps are outside the window, so the note has no time.
        notes.append(note(str(instance), None, own.height, detail))
    return notes
