"""Which process each sample came from, and which series started within the capture.

An address outlives its process: a server is restarted, a pod is replaced. A process reports when it
started (`process_start_time_seconds`). If that changes, all counters at the address restart from 0,
whether or not any of them was seen to fall. These are not restarts:

- a start time of 0, or more than a year after the scrape that reported it: it is meaningless;
- a change within 2 s: some exporters compute the start from two clocks, so it jitters;
- a start long before the last sample of the previous process: that process had not ended then, so
  a clock was set, or another process took over that was already running;
- a start that comes back: several processes answer at one address in turn.

In the last two cases the order of processes is unknown, and counters are used unchanged: the
quality report names such an address (verdicts/quality/losses.py).

Some servers do not report their start (vLLM with several API servers does not). For these, counters
of two or more metrics that fall in one scrape indicate a new process.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl

from vllm_capacity.telemetry.rows import UTC_MICROSECONDS

PROCESS_START = "process_start_time_seconds"
TARGET_INFO = "target_info"
"""OpenTelemetry's info family with the labels of the target itself: one series per target."""
BOOKKEEPING = ("up", "scrape_duration_seconds", TARGET_INFO)
DIFFERENCED = ("counter", "histogram")
SAME_START = timedelta(seconds=2)
_NO_START = 366 * 86_400  # seconds; a start this long after its scrape is meaningless
_CLOCKS_APART = timedelta(minutes=5)  # maximum difference between target and scraper clocks
_LIVES: dict[str, Any] = {
    "instance": pl.String,
    "life": pl.Int32,
    "since": UTC_MICROSECONDS,
    "until": UTC_MICROSECONDS,
    "started": UTC_MICROSECONDS,
    "doubt": pl.String,
}
_Stretch = tuple[datetime, datetime, datetime]
_Life = tuple[str, int, datetime, datetime | None, datetime | None, str | None]
_AT_ONCE = 2  # counters; a single one that falls does not indicate a restart


def process_lives(samples: pl.DataFrame, series: pl.DataFrame) -> pl.DataFrame:
    """The successive processes at each address; one row per process.

    `samples` are sorted by series and time.

    Columns: instance, life (its ordinal, from 0), since (when its samples begin), until (the last
    scrape that reported its start), started (as reported), doubt (`in turn`: several processes
    answer there in turn, taken as one; `no order`: a later start is before its end). until and
    started are null if a process does not report its start.
    """
    first = samples.group_by("series_id").agg(since=pl.col("ts").min())
    return lives_of(series, first, starts_in(samples, series), falls_in(samples, series))


def starts_in(samples: pl.DataFrame, series: pl.DataFrame) -> pl.DataFrame:
    """The starts that each instance reported, in order: one row per stretch of equal ones.

    Columns: instance, first and last (scrapes of the stretch), first_started and started (what
    these two reported). One scrape may report several starts (of a server and its workers): the
    oldest counts.
    """
    own = series.filter(pl.col("metric") == PROCESS_START).select("series_id", "instance")
    starts = (
        samples.join(own.unique(), on="series_id")
        .filter((pl.col("value") > 0) & (pl.col("value") < pl.col("ts").dt.epoch("s") + _NO_START))
        .group_by("instance", "ts")
        .agg(started=pl.col("value").min())
        .with_columns(started=_instant("started"))
    )
    alone = starts.select(
        "instance", first="ts", last="ts", first_started="started", started="started"
    )
    return joined_starts(alone.sort("instance", "first"))


def joined_starts(stretches: pl.DataFrame) -> pl.DataFrame:
    """The stretches of `starts_in`, sorted by instance and time, with equal neighbors joined."""
    jump = pl.col("first_started") - pl.col("started").shift(1)
    is_new = (jump.abs() > SAME_START).over("instance").fill_null(False)
    return (
        stretches.with_columns(part=is_new.cum_sum().over("instance"))
        .group_by("instance", "part", maintain_order=True)
        .agg(
            pl.col("first", "first_started").first(),
            pl.col("last", "started").last(),
        )
        .select(stretches.columns)
    )


def falls_in(samples: pl.DataFrame, series: pl.DataFrame) -> pl.DataFrame:
    """The counter samples that are below the previous one: series_id, ts.

    `samples` are sorted by series and time.
    """
    counters = series.filter(pl.col("kind") == "counter").select("series_id").unique()
    fell = samples.filter(pl.col("value") < pl.col("value").shift(1).over("series_id"))
    return fell.join(counters, on="series_id", how="semi").select("series_id", "ts")


def lives_of(
    series: pl.DataFrame, first: pl.DataFrame, starts: pl.DataFrame, falls: pl.DataFrame
) -> pl.DataFrame:
    """Like `process_lives`, from facts already extracted from the samples.

    `first` is the first sample time of each series (series_id, since); `starts` and `falls` come
    from `starts_in` and `falls_in`.
    """
    known = series.select("series_id", "instance", "metric").unique("series_id")
    begun = first.join(known, on="series_id").group_by("instance").agg(pl.col("since").min())
    result: dict[str, list[_Stretch]] = {}
    for instance, *stretch in starts.select("instance", "first", "last", "started").iter_rows():
        result.setdefault(instance, []).append(tuple(stretch))
    silent = series.filter(~pl.col("instance").is_in(list(result)))
    fallen = _falls(falls, silent)
    rows = [
        row
        for instance, since in begun.iter_rows()
        for row in (
            _lives(instance, since, result[instance])
            if instance in result
            else _silent_lives(instance, [since, *fallen.get(instance, [])])
        )
    ]
    return pl.DataFrame(rows, schema=_LIVES, orient="row").sort("instance", "life")


def _instant(seconds: str) -> pl.Expr:
    micros = (pl.col(seconds) * 1e6).round().cast(pl.Int64, strict=False)
    return pl.from_epoch(micros, time_unit="us").dt.replace_time_zone("UTC")


def _falls(falls: pl.DataFrame, series: pl.DataFrame) -> dict[str, list[datetime]]:
    """When counters of two or more metrics fell in one scrape, by instance, in order."""
    named = series.select("series_id", "instance", "metric").unique("series_id")
    fell = (
        falls.join(named, on="series_id")
        .group_by("instance", "ts")
        .agg(pl.col("metric").n_unique())
        .filter(pl.col("metric") >= _AT_ONCE)
        .sort("instance", "ts")
    )
    found: dict[str, list[datetime]] = {}
    for instance, ts in fell.select("instance", "ts").iter_rows():
        found.setdefault(instance, []).append(ts)
    return found


def _silent_lives(instance: str, begins: list[datetime]) -> Iterator[_Life]:
    """The rows of an address that reports no start: a new process begins at each of these times."""
    for life, since in enumerate(begins):
        yield instance, life, since, None, None, None


def _lives(instance: str, since: datetime, stretches: list[_Stretch]) -> Iterator[_Life]:
    """The rows of one address; samples before its first reported start count as a process, too."""
    if _comes_back([started for _, _, started in stretches]):
        yield instance, 0, since, None, None, "in turn"
        return
    life = 0
    if min(stretches[0][0], stretches[0][2]) > since:
        yield instance, 0, since, None, None, None
        life = 1
        since = min(stretches[0][0], stretches[0][2])
    kept = [(since, *stretches[0][1:])]
    is_ordered = True
    for first, last, started in stretches[1:]:
        if started >= kept[-1][1] - _CLOCKS_APART:
            kept.append((first, last, started))
        else:
            is_ordered = False
            kept[-1] = (kept[-1][0], last, kept[-1][2])
    for begun, last, started in kept:
        yield instance, life, begun, last, started, None if is_ordered else "no order"
        life += 1


def _comes_back(starts: list[datetime]) -> bool:
    """Whether two of these starts are equal up to jitter: an earlier process answers again."""
    ordered = sorted(starts)
    return any(later - earlier <= SAME_START for earlier, later in pairwise(ordered))


def life_of_rows(frame: pl.DataFrame, series: pl.DataFrame, lives: pl.DataFrame) -> pl.Series:
    """The ordinal of the process (`life`) of each row (series_id, ts), in row order."""
    found = np.zeros(frame.height, dtype=np.int32)
    later = lives.filter(pl.col("life") > 0)
    if not later.is_empty():
        owners = series.select("series_id", "instance").unique("series_id")
        keyed = (
            frame.select("series_id", "ts")
            .with_row_index("row")
            .join(owners.join(later, on="instance", how="semi"), on="series_id")
            .sort("ts")
        )
        begun = later.select("instance", "life", ts="since").sort("ts")
        lived = keyed.join_asof(
            begun, on="ts", by="instance", strategy="backward", check_sortedness=False
        )
        found[lived.get_column("row").to_numpy()] = lived.get_column("life").fill_null(0).to_numpy()
    return pl.Series("life", found)


def process_changes(frame: pl.DataFrame, series: pl.DataFrame, lives: pl.DataFrame) -> pl.Series:
    """Whether the process of each row differs from that of the previous row of its series.

    Rows are sorted by series and time. Always false for gauges.
    """
    changed = np.zeros(frame.height, dtype=bool)
    if not (lives.get_column("life") > 0).any():
        return pl.Series("changed", changed)
    life = life_of_rows(frame, series, lives).to_numpy()
    ids = frame.get_column("series_id")
    counted = series.filter(pl.col("kind").is_in(DIFFERENCED)).get_column("series_id")
    changed[1:] = (life[1:] != life[:-1]) & (ids.to_numpy()[1:] == ids.to_numpy()[:-1])
    return pl.Series("changed", changed) & ids.is_in(counted.implode())


def joined_spans(spans: pl.DataFrame) -> pl.DataFrame:
    """Spans of `spans_in` from several chunks, joined to one per series and process."""
    return spans.group_by("series_id", "life").agg(
        pl.col("first", "inside").min(), pl.col("last").max()
    )


def spans_in(
    rows: pl.DataFrame, series: pl.DataFrame, lives: pl.DataFrame, *, since: datetime
) -> pl.DataFrame:
    """The time span over which each series was sampled in each process, from rows (series_id, ts).

    Columns: series_id, life, first, inside (the first that is not before `since`), last.
    """
    return (
        rows.with_columns(life_of_rows(rows, series, lives))
        .group_by("series_id", "life")
        .agg(
            first=pl.col("ts").min(),
            inside=pl.col("ts").filter(pl.col("ts") >= since).min(),
            last=pl.col("ts").max(),
        )
    )


def with_series_starts(
    series: pl.DataFrame, spans: pl.DataFrame, lives: pl.DataFrame, *, since: datetime
) -> pl.DataFrame:
    """The series with `starts_at_zero` set: whether the first sample counts from 0.

    `spans` are those of `spans_in`, for all samples. Series sampled before `since` were carried in
    as a baseline and do not start at zero. The others do if the source reports it, if their process
    started in the capture, or if an earlier successful scrape of the same process lacked them
    (labeled children appear on first use).
    """
    begin = pl.lit(since, UTC_MICROSECONDS)
    spans = spans.join(series.select("series_id", "metric", "instance", "kind"), on="series_id")
    process = _scraped(spans).join(lives, on=["instance", "life"], how="left")
    born = (
        spans.select("series_id", "instance", "life", "kind", "first")
        .sort("first")
        .unique("series_id", keep="first", maintain_order=True)
        .join(process, on=["instance", "life"], how="left")
        .select("series_id", is_carried=pl.col("first") < begin, is_born=_is_born(begin))
    )
    return (
        series.join(born, on="series_id", how="left")
        .with_columns(
            starts_at_zero=~pl.col("is_carried").fill_null(False)
            & pl.coalesce("starts_at_zero", "is_born").fill_null(False)
        )
        .drop("is_carried", "is_born")
    )


def _scraped(spans: pl.DataFrame) -> pl.DataFrame:
    """When each process was scraped, and when its predecessor was last scraped; a row per process.

    Columns: instance, life, good (its first successful scrape), good_inside (the first in the
    capture), ended (the predecessor's last scrape).
    """
    return (
        spans.filter(~pl.col("metric").is_in(BOOKKEEPING))
        .group_by("instance", "life")
        .agg(
            good=pl.col("first").min(),
            good_inside=pl.col("inside").min(),
            last=pl.col("last").max(),
        )
        .sort("instance", "life")
        .with_columns(ended=pl.col("last").shift(1).over("instance"))
        .drop("last")
    )


def _is_born(begin: pl.Expr) -> pl.Expr:
    """Whether a first sample (kind, first) of a process (`_scraped`, started) counts from 0."""
    # A sample carried in is a scrape of this process only if the reported start confirms it.
    was_without = (pl.col("good_inside") < pl.col("first")).fill_null(False) | (
        (pl.col("started") <= pl.col("good")) & (pl.col("good") < pl.col("first"))
    ).fill_null(False)
    is_young = (pl.col("started") >= begin) & (pl.col("started") <= pl.col("first") + SAME_START)
    follows = pl.col("ended") >= begin
    return pl.col("kind").is_in(DIFFERENCED) & (
        was_without | is_young.fill_null(False) | follows.fill_null(False)
    )
