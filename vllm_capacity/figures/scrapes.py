"""The scrapes themselves: when each target was asked, when it answered, when it started again.

Everything about time that other figures need: the scrape interval, gaps, restarts, billed hours.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import numpy as np
import polars as pl

from vllm_capacity.telemetry.window import Window
from vllm_capacity.timerange import TimeRange

GAP_FACTOR = 2.5  # method.md §2: a gap is longer than this × the median interval around it
_NEIGHBOURS = 10


@dataclass(frozen=True)
class Gap:
    """A time between two good scrapes of a target that is longer than the interval around it."""

    instance: str
    start: datetime  # the last good scrape before
    end: datetime  # the first good scrape after
    interval_seconds: float  # what was usual around it

    @property
    def seconds(self) -> float:
        """Length in seconds."""
        return (self.end - self.start).total_seconds()


@dataclass(frozen=True)
class Restart:
    """A target that started again from zero, somewhere between two good scrapes."""

    instance: str
    before: datetime  # the last good scrape of the old process
    after: datetime  # the first good scrape of the new one
    started: datetime | None  # when the new process says it started


def attempts(window: Window, *, end: datetime) -> pl.DataFrame:
    """Every scrape attempt before `end`: instance, ts, is_good; sorted by instance and time."""
    return window.named_sql("figures", "attempts", end=end)


def engines(window: Window, *, part: TimeRange, tries: pl.DataFrame) -> pl.DataFrame:
    """The engines of the part: instance, engine, model_name; one row an engine.

    An engine is a pair of target and `engine` label. It belongs to the part where its target was
    tried in it and it had been seen before its end.
    """
    seen = window.named_sql("figures", "engines", end=part.end)
    tried = tries.filter(pl.col("ts") >= part.start).select("instance").unique()
    return seen.join(tried, on="instance", how="semi").select("instance", "engine", "model_name")


def billed_hours(fleet: pl.DataFrame, tries: pl.DataFrame, *, part: TimeRange) -> pl.DataFrame:
    """Hours that each engine was there to be paid for, one row an engine.

    Columns: instance, engine, model_name, hours, billed_start, billed_end.

    From its target's last attempt before the part (else its first inside) to its last before the
    end; failed attempts and restarts count, for the GPU is paid while vLLM is down. Source:
    method.md §6.
    """
    before = (
        tries.filter(pl.col("ts") < part.start).group_by("instance").agg(base=pl.col("ts").max())
    )
    inside = (
        tries.filter(pl.col("ts") >= part.start)
        .group_by("instance")
        .agg(first=pl.col("ts").min(), last=pl.col("ts").max())
    )
    hours = inside.join(before, on="instance", how="left").select(
        "instance",
        hours=(pl.col("last") - pl.coalesce("base", "first")).dt.total_microseconds() / 3.6e9,
        billed_start=pl.coalesce("base", "first"),
        billed_end="last",
    )
    return fleet.join(hours, on="instance", how="left").with_columns(pl.col("hours").fill_null(0.0))


def usual_intervals(seconds: np.ndarray) -> np.ndarray:
    """For each step between scrapes, the median of the ten steps either side of it, in seconds.

    NaN where there is no other step to compare with.
    """
    padded = np.concatenate(
        [np.full(_NEIGHBOURS, np.nan), seconds.astype(float), np.full(_NEIGHBOURS, np.nan)]
    )
    around = np.lib.stride_tricks.sliding_window_view(padded, 2 * _NEIGHBOURS + 1).copy()
    around[:, _NEIGHBOURS] = np.nan
    usual = np.full(seconds.size, np.nan)
    is_known = ~np.isnan(around).all(axis=1)
    if is_known.any():
        usual[is_known] = np.nanmedian(around[is_known], axis=1)
    return usual


def absent(ts: pl.Series) -> int:
    """How many attempts an even grid would have had between these; judged step by step."""
    if ts.len() < 3:
        return 0
    steps = ts.diff().dt.total_microseconds().to_numpy()[1:] / 1e6
    usual = usual_intervals(steps)
    ratio = np.divide(steps, usual, out=np.ones_like(steps), where=usual > 0)
    return int(np.maximum(0, np.round(ratio) - 1).sum())


def hold_seconds(ts: pl.Series) -> pl.Series:
    """How long a value scraped at each time holds: to the next scrape, at most a gap's threshold.

    The last one holds for the usual interval; a lone one for one second.
    """
    if ts.len() < 2:
        return pl.Series([1.0] * ts.len(), dtype=pl.Float64)
    steps = ts.diff().dt.total_microseconds().to_numpy()[1:] / 1e6
    usual = usual_intervals(steps)
    capped = np.where(np.isnan(usual), steps, np.minimum(steps, GAP_FACTOR * usual))
    return pl.Series(np.concatenate([capped, [np.median(steps)]]))


def gaps(tries: pl.DataFrame, *, part: TimeRange) -> list[Gap]:
    """The gaps of every target that touch the part, in order."""
    found: list[Gap] = []
    for (instance,), own in tries.filter("is_good").group_by("instance", maintain_order=True):
        ts = own.get_column("ts")
        if ts.len() < 3:
            continue
        steps = ts.diff().dt.total_microseconds().to_numpy()[1:] / 1e6
        usual = usual_intervals(steps)
        for i in np.flatnonzero(steps > GAP_FACTOR * usual):
            gap = Gap(str(instance), ts[int(i)], ts[int(i) + 1], float(usual[i]))
            if gap.end >= part.start and gap.start < part.end:
                found.append(gap)
    return found


def restarts(window: Window, *, part: TimeRange) -> list[Restart]:
    """The restarts of every target whose first scrape after it lies in the part, in order.

    Found by value: each series that fell narrows the restart to the time since its sample before.
    Falls that one restart explains are one (a labelled child may reappear long after it).
    """
    falls = window.named_sql("figures", "run_starts")
    starts = window.sql(
        "select instance, ts, value from samples join series using (series_id) "
        "where metric = 'process_start_time_seconds' order by ts"
    )
    found: list[Restart] = []
    for (instance,), own in falls.group_by("instance", maintain_order=True):
        last_point: datetime | None = None
        for before, after in own.select("ts_before", "ts").iter_rows():
            if last_point is None or before >= last_point:
                last_point = after
                if part.start <= after < part.end:
                    found.append(Restart(str(instance), before, after, None))
    return [_with_start(r, starts) for r in found]


def _with_start(restart: Restart, starts: pl.DataFrame) -> Restart:
    told = starts.filter(
        (pl.col("instance") == restart.instance) & (pl.col("ts") >= restart.after)
    ).get_column("value")
    if told.is_empty():
        return restart
    started = datetime.fromtimestamp(told[0], tz=restart.after.tzinfo)
    is_between = restart.before <= started <= restart.after
    return Restart(restart.instance, restart.before, restart.after, started if is_between else None)
