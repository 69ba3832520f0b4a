"""One target scraped by several jobs: whose attempts tell how often, and when, it was asked.

A PodMonitor and a ServiceMonitor may both find a pod. Its counters are none the wiser, but the two
grids lie between each other, and taken as one their steps are long and short in turn: the short
ones would be the usual interval, and the long ones gaps. So one job's grid is the target's, that of
the job with most answers, and another's scrape counts only where that one has none near it.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from datetime import datetime

import numpy as np
import polars as pl

_LEAST_STEPS = 6
_EVEN = 0.75  # steps in turn closer than that are jitter of one grid
_STEADY = 0.1  # two steps together differ by less than that from the interval of one job


def median_seconds(ts: pl.Series) -> float:
    """The median time between these scrapes, in seconds; 0 where there is only one."""
    steps = ts.diff().drop_nulls().dt.total_microseconds() / 1e6
    return float(steps.median() or 0.0)  # type: ignore[arg-type]


def merged(attempts: pl.DataFrame) -> pl.DataFrame:
    """Attempts (instance, ts, is_good, source) on one grid a target: instance, ts, is_good."""
    frames = [attempts.select("instance", "ts", "is_good").clear()]
    for _, own in attempts.group_by("instance", maintain_order=True):
        result = own if own.get_column("source").n_unique() > 1 else _by_turns(own)
        kept = _one_grid(result) if result.get_column("source").n_unique() > 1 else result
        frames.append(kept.select("instance", "ts", "is_good"))
    return pl.concat(frames)


def _by_turns(own: pl.DataFrame) -> pl.DataFrame:
    """The attempts as of two sources where long and short steps alternate: two grids, unnamed."""
    steps = own.get_column("ts").diff().dt.total_microseconds().to_numpy()[1:].astype(float)
    if steps.size < _LEAST_STEPS:
        return own
    pairs = steps[1:] + steps[:-1]
    short, long = sorted((float(np.median(steps[0::2])), float(np.median(steps[1::2]))))
    is_steady = np.abs(pairs - np.median(pairs)) <= _STEADY * np.median(pairs)
    if short >= _EVEN * long or np.mean(is_steady) < 0.8:
        return own
    turn = pl.int_range(pl.len()) % 2
    return own.with_columns(source=turn.cast(pl.String))


def _one_grid(own: pl.DataFrame) -> pl.DataFrame:
    """The attempts of the source with most answers, and what others add where it has none."""
    answers = (
        own.group_by("source")
        .agg(good=pl.col("is_good").sum(), first=pl.col("ts").min())
        .sort("good", "first", "source", descending=[True, False, False])
    )
    is_main = pl.col("source") == answers.get_column("source")[0]
    main = own.filter(is_main)
    near = median_seconds(main.get_column("ts")) / 2
    good = main.filter("is_good").get_column("ts").to_list()
    for ts in own.filter(pl.col("is_good") & ~is_main).get_column("ts").to_list():
        if not _is_near(good, ts, near):
            insort(good, ts)
    failed = [
        ts
        for ts in main.filter(~pl.col("is_good")).get_column("ts").to_list()
        if not _is_near(good, ts, near)
    ]
    is_good = [True] * len(good) + [False] * len(failed)
    kept = pl.DataFrame({"ts": [*good, *failed], "is_good": is_good})
    return kept.select(
        pl.lit(own.get_column("instance")[0]).alias("instance"),
        pl.col("ts").cast(own.schema["ts"]),
        "is_good",
    ).sort("ts")


def _is_near(sorted_times: list[datetime], ts: datetime, seconds: float) -> bool:
    """Whether one of the times lies closer to `ts` than that."""
    at = bisect_left(sorted_times, ts)
    around = sorted_times[max(0, at - 1) : at + 1]
    return any(abs((other - ts).total_seconds()) < max(seconds, 1e-9) for other in around)
