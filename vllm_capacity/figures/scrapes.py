"""The scrapes themselves: when each target was scraped, when it answered, when it restarted.

Everything about time that other figures need: the scrape interval, gaps, restarts, billed hours.

If several jobs scrape one target, one of them defines its scrape times.

A PodMonitor and a ServiceMonitor may both find a pod. Its counters are not affected, but the two
scrape grids interleave. Taken as one, their steps alternate between long and short: the short ones
would look like the normal interval, and the long ones like gaps. So the target's grid is that of
the job with most answers, and a scrape of another job counts only where that job has none nearby:
an answer where it has no answer, a failure where it made no attempt.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from itertools import accumulate
from typing import TypeVar

import numpy as np
import polars as pl
from msgspec import Struct
from polars.datatypes import DataTypeClass

from vllm_capacity.figures.attempts import Attempts, Instants, Mask, Target, hourly_attempts
from vllm_capacity.telemetry import processes
from vllm_capacity.telemetry.window import Window
from vllm_capacity.timerange import TimeRange

Schema = dict[str, DataTypeClass | pl.DataType]

_OfTarget = TypeVar("_OfTarget", "Gap", "Restart")

_INSTANT_SECONDS = 1e-9  # two attempts at one time are near each other, whatever the interval
_MIN_STEPS = 6
_EVEN = 0.75  # alternating steps closer in length than this ratio are jitter of one grid
_STEADY = 0.1  # every two steps together must be within this share of their median


def median_seconds(ts: pl.Series) -> float:
    """The median time between these scrapes, in seconds; 0 where there is only one."""
    steps = ts.diff().drop_nulls().dt.total_microseconds() / 1e6
    return float(steps.median() or 0.0)  # type: ignore[arg-type]


def merged(attempts: pl.DataFrame) -> pl.DataFrame:
    """Attempts (instance, ts, is_good, source) on one grid per target: instance, ts, is_good."""
    frames = [attempts.select("instance", "ts", "is_good").clear()]
    for (_,), own in attempts.group_by("instance", maintain_order=True):
        result = own if own.get_column("source").n_unique() > 1 else _by_turns(own)
        kept = _one_grid(result) if result.get_column("source").n_unique() > 1 else result
        frames.append(kept.select("instance", "ts", "is_good"))
    return pl.concat(frames)


def _by_turns(own: pl.DataFrame) -> pl.DataFrame:
    """The attempts, split into two unnamed sources if long and short steps alternate."""
    steps = own.get_column("ts").diff().dt.total_microseconds().to_numpy()[1:].astype(float)
    if not _is_alternating(steps):
        return own
    turn = pl.int_range(pl.len()) % 2
    return own.with_columns(source=turn.cast(pl.String))


def _is_alternating(steps: np.ndarray) -> bool:
    """Whether long and short steps (µs) alternate."""
    if steps.size < _MIN_STEPS:
        return False
    pairs = steps[1:] + steps[:-1]
    short, long = sorted((float(np.median(steps[0::2])), float(np.median(steps[1::2]))))
    if short >= _EVEN * long:
        return False
    is_steady = np.abs(pairs - np.median(pairs)) <= _STEADY * np.median(pairs)
    return bool(np.mean(is_steady) >= 0.8)


def _one_grid(own: pl.DataFrame) -> pl.DataFrame:
    """The attempts of the source with most answers, plus those of others where it has none."""
    answers = (
        own.group_by("source")
        .agg(good=pl.col("is_good").sum(), first=pl.col("ts").min())
        .sort("good", "first", "source", descending=[True, False, False])
    )
    is_main = own.get_column("source") == answers.get_column("source")[0]
    near = median_seconds(own.filter(is_main).get_column("ts")) / 2
    parts = {
        (main, good): own.filter((is_main == main) & (pl.col("is_good") == good)).get_column("ts")
        for main in (True, False)
        for good in (True, False)
    }
    times = {which: ts.to_physical().to_numpy() for which, ts in parts.items()}
    good = _with_distant(times[True, True], times[False, True], near)
    failed = times[True, False]
    failed = failed[~_is_near(good, failed, near)]
    tried = _with_distant(np.union1d(good, failed), times[False, False], near)
    kept = pl.DataFrame({"ts": pl.Series(tried).cast(own.schema["ts"])})
    return kept.select(
        pl.lit(own.get_column("instance")[0]).alias("instance"),
        "ts",
        is_good=pl.Series(np.isin(tried, good)),
    )


def _with_distant(known: Instants, more: Instants, seconds: float) -> Instants:
    """The known instants, plus those of `more` that have no kept one within `seconds`; sorted."""
    kept: list[int] = []
    for each in more[~_is_near(known, more, seconds)].tolist():
        if not (kept and (each - kept[-1]) / 1e6 < max(seconds, _INSTANT_SECONDS)):
            kept.append(each)
    return np.sort(np.append(known, np.array(kept, np.int64)))


def _is_near(known: Instants, instants: Instants, seconds: float) -> Mask:
    """Whether any known instant (sorted) is within `seconds` of each instant."""
    if not known.size:
        return np.zeros(instants.size, bool)
    after = np.searchsorted(known, instants)
    neighbors = np.stack(
        [known[np.maximum(after - 1, 0)], known[np.minimum(after, known.size - 1)]]
    )
    distance = np.abs(neighbors - instants).min(axis=0)
    return np.asarray(distance / 1e6 < max(seconds, _INSTANT_SECONDS))


GAP_FACTOR = 2.5  # a gap is longer than this × the median interval around it
_NEIGHBOURS = 10


class Gap(Struct, frozen=True):
    """A time between two good scrapes of a target, much longer than the interval around it."""

    instance: str
    start: datetime  # the last good scrape before
    end: datetime  # the first good scrape after
    interval_seconds: float  # the median interval around it

    @property
    def seconds(self) -> float:
        """Length in seconds."""
        return (self.end - self.start).total_seconds()


class Restart(Struct, frozen=True):
    """A target that restarted from zero, somewhere between two good scrapes."""

    instance: str
    before: datetime  # the last good scrape of the old process
    after: datetime  # the first good scrape of the new one
    started: datetime | None  # as the new process reports it


class Outage(Struct, frozen=True):
    """A target with no further good scrape until the end of a time range."""

    instance: str
    last_good: datetime
    end: datetime  # the latest time until which it may have run
    failed: int  # failed scrapes since; 0 if scraping stopped
    median_seconds: float  # between its scrapes

    @property
    def seconds(self) -> float:
        """Length in seconds."""
        return (self.end - self.last_good).total_seconds()


class Interruption(Struct, frozen=True):
    """A gap, or a restart without a missed scrape, between two good scrapes of a target.

    `failed` attempts were made in between, 0 if it was not scraped. `started` is when the new
    process started, if it reports that.
    """

    instance: str
    start: datetime
    end: datetime
    failed: int
    is_gap: bool
    is_restart: bool
    started: datetime | None

    @property
    def seconds(self) -> float:
        """Length in seconds."""
        return (self.end - self.start).total_seconds()


class ScrapeCount(Struct, frozen=True):
    """How often a target was scraped and answered; an even grid would have `missed` more."""

    instance: str
    attempts: int
    good: int
    missed: int
    median_seconds: float

    @property
    def expected(self) -> int:
        """The attempts that an even grid would have."""
        return self.attempts + self.missed

    @property
    def failed(self) -> int:
        """Attempts without an answer."""
        return self.attempts - self.good

    @property
    def good_ratio(self) -> float | None:
        """Answered ÷ expected, 0..1; None if none was expected."""
        return self.good / self.expected if self.expected else None


def attempts(window: Window, *, end: datetime) -> pl.DataFrame:
    """Every scrape attempt before `end`: instance, ts, is_good; sorted by instance and time.

    If several jobs scrape a target, these are the attempts of one job; those of the others count
    only where that one had no answer (see the module docstring).
    """
    return merged(window.named_sql("figures", "attempts", end=end))


def attempt_stretches(window: Window, *, end: datetime) -> Attempts:
    """The same attempts as stretches, which are fewer than rows for weeks of many targets."""
    return Attempts.of(known_attempts(window, end=end))


def known_attempts(window: Window, *, end: datetime) -> pl.DataFrame | Attempts:
    """The same attempts as stretches if hourly summaries have them, else as rows."""
    kept = hourly_attempts(window)
    return attempts(window, end=end) if kept is None else _on_one_grid(kept, end)


def _on_one_grid(kept: Attempts, end: datetime) -> Attempts:
    """The attempts of every source before `end`, on one grid per target, as by `merged`.

    Only the targets that may have several grids are unpacked.
    """
    before = kept.before(end)
    several = [own for own in before.targets.values() if _may_have_several_grids(own)]
    return before.with_one_source([merged(own.rows_by_source()) for own in several])


def _may_have_several_grids(own: Target) -> bool:
    """Whether a target's attempts have several sources, or alternate between long and short steps.

    Steps do not alternate if nine in ten are about equally long: then most of every second step
    are, too.
    """
    if own.stretches.get_column("source").n_unique() > 1:
        return True
    ends = own.most_steps()
    return ends is not None and ends[0] < _EVEN * ends[1] and _is_alternating(own.steps_us())


def engines(
    window: Window, *, time_range: TimeRange, attempts: pl.DataFrame | Attempts
) -> pl.DataFrame:
    """The engines of the time range: instance, engine, model_name; one row per engine.

    An engine is a pair of target and `engine` label. It belongs to the time range if its target was
    scraped in it and the engine was seen before its end.
    """
    seen = window.named_sql("figures", "engines", end=time_range.end)
    targets = Attempts.of(attempts).targets
    names = [name for name, own in targets.items() if own.last >= time_range.start]
    tried = pl.DataFrame({"instance": names}, schema={"instance": pl.String})
    return seen.join(tried, on="instance", how="semi").select("instance", "engine", "model_name")


def billed_hours(
    engines: pl.DataFrame, attempts: pl.DataFrame | Attempts, *, time_range: TimeRange
) -> pl.DataFrame:
    """The hours for which each engine is billed, one row per engine.

    Columns: instance, engine, model_name, hours, billed_start, billed_end.

    Billed from the target's last attempt before the time range (else its first one inside) to its
    last one before the end. Failed attempts and restarts count, because the GPU is paid for while
    vLLM is down.
    """
    known = Attempts.of(attempts)
    base = {name: own.last for name, own in known.before(time_range.start).targets.items()}
    inside = known.since(time_range.start).targets
    rows = [(name, base.get(name, own.first), own.last) for name, own in inside.items()]
    instant = pl.Datetime("us", "UTC")
    schema: Schema = {"instance": pl.String, "billed_start": instant, "billed_end": instant}
    hours = pl.DataFrame(rows, schema=schema, orient="row").select(
        "instance",
        hours=(pl.col("billed_end") - pl.col("billed_start")).dt.total_microseconds() / 3.6e9,
        billed_start="billed_start",
        billed_end="billed_end",
    )
    return engines.join(hours, on="instance", how="left").with_columns(
        pl.col("hours").fill_null(0.0)
    )


def long_steps(seconds: np.ndarray, factor: float) -> tuple[np.ndarray, np.ndarray]:
    """The steps between scrapes that are at least `factor` × the median around them, in order.

    Two arrays: the position of each, and the median of the ten steps on either side of it, in
    seconds.
    """
    if seconds.size < 2 or seconds.max() < factor * seconds.min():
        return np.empty(0, np.int64), np.empty(0)
    width = 2 * _NEIGHBOURS + 1
    shortest = pl.Series(seconds).rolling_min(width, min_samples=1, center=True).to_numpy()
    # A median is at least the shortest step, so only few steps need theirs computed.
    found = np.flatnonzero(seconds >= factor * shortest)
    around = found[:, None] + np.arange(-_NEIGHBOURS, _NEIGHBOURS + 1)
    is_other = (around >= 0) & (around < seconds.size) & (around != found[:, None])
    neighbours = np.where(is_other, seconds[np.clip(around, 0, seconds.size - 1)], np.inf)
    usual = _medians(np.sort(neighbours, axis=1), is_other.sum(axis=1))
    is_long = seconds[found] >= factor * usual
    return found[is_long], usual[is_long]


def _medians(ascending: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The median of the first `counts` values of each row; `nanmedian` is slow to import."""
    rows = np.arange(counts.size)
    low, high = ascending[rows, (counts - 1) // 2], ascending[rows, counts // 2]
    return np.asarray((low + high) / 2)


def scrape_counts(attempts: pl.DataFrame | Attempts, *, time_range: TimeRange) -> list[ScrapeCount]:
    """Scrape counts of each target in the time range, by target; only of scraped targets."""
    return [
        ScrapeCount(name, own.tried, own.good, missed(own), own.median_seconds())
        for name, own in Attempts.of(attempts).since(time_range.start).targets.items()
    ]


def missed(target: Target) -> int:
    """How many more attempts an even grid would have between these, counted step by step."""
    if target.tried < 3:
        return 0
    found = 0
    for times, in_question in target.excerpts(1.5, neighbors=_NEIGHBOURS):
        steps = np.diff(times) / 1e6
        long, usual = long_steps(steps, 1.5)
        is_own = (usual > 0) & in_question[long]
        long, usual = long[is_own], usual[is_own]
        found += int(np.maximum(0, np.round(steps[long] / usual) - 1).sum())
    return found


def hold_seconds(ts: pl.Series) -> pl.Series:
    """How long each scraped value is valid: to the next scrape, at most for the gap threshold.

    The last value is valid for the median interval; a single one for one second.
    """
    if ts.len() < 2:
        return pl.Series([1.0] * ts.len(), dtype=pl.Float64)
    steps = ts.diff().dt.total_microseconds().to_numpy()[1:] / 1e6
    long, usual = long_steps(steps, GAP_FACTOR)
    median = np.median(steps)
    steps[long] = GAP_FACTOR * usual
    return pl.Series(np.append(steps, median))


def gaps(attempts: pl.DataFrame | Attempts, *, time_range: TimeRange) -> list[Gap]:
    """The gaps of every target that overlap the time range, in order."""
    found: list[Gap] = []
    for instance, own in Attempts.of(attempts).targets.items():
        if own.good < 3:
            continue
        for times, in_question in own.excerpts(GAP_FACTOR, neighbors=_NEIGHBOURS, is_good=True):
            steps = np.diff(times) / 1e6
            ends = pl.Series(times).cast(pl.Datetime("us", "UTC"))
            for i, usual in zip(*long_steps(steps, GAP_FACTOR), strict=True):
                if not (in_question[i] and steps[i] > GAP_FACTOR * usual):
                    continue
                gap = Gap(instance, ends[int(i)], ends[int(i) + 1], float(usual))
                if gap.end >= time_range.start and gap.start < time_range.end:
                    found.append(gap)
    return found


def interruptions(
    attempts: pl.DataFrame | Attempts, found_gaps: Sequence[Gap], found: Sequence[Restart]
) -> list[Interruption]:
    """The gaps of every target and the restarts outside gaps, by target and time."""
    targets = Attempts.of(attempts).targets
    failed = {  # a gap lies between two good attempts
        name: targets[name].rows().filter(~pl.col("is_good")).get_column("ts")
        for name in {gap.instance for gap in found_gaps}
    }
    restarts_at, gaps_at = by_instance(found), by_instance(found_gaps)
    rows = []
    for gap in found_gaps:
        inside = int(failed[gap.instance].is_between(gap.start, gap.end, closed="none").sum())
        own = [each for each in restarts_at.get(gap.instance, []) if _covers(gap, each)]
        started = own[0].started if own else None
        ends = gap.instance, gap.start, gap.end
        rows.append(Interruption(*ends, inside, True, bool(own), started))
    rows += [
        Interruption(each.instance, each.before, each.after, 0, False, True, each.started)
        for each in found
        if not any(_covers(gap, each) for gap in gaps_at.get(each.instance, []))
    ]
    return sorted(rows, key=lambda each: (each.instance, each.start, each.end))


def by_instance(found: Iterable[_OfTarget]) -> dict[str, list[_OfTarget]]:
    """What was found at each target, by the name of the target."""
    own: dict[str, list[_OfTarget]] = {}
    for one in found:
        own.setdefault(one.instance, []).append(one)
    return dict(sorted(own.items()))


def _covers(gap: Gap, restart: Restart) -> bool:
    """Whether a restart happened within a gap of the same target."""
    return gap.start <= restart.before and restart.after <= gap.end


def outages(
    window: Window, *, time_range: TimeRange, attempts: pl.DataFrame | Attempts
) -> list[Outage]:
    """The targets that answered in the time range and then not again until its end, in order.

    A target with failed scrapes to the end may have run until then; one that was no longer scraped,
    while others were, for the gap threshold. If the same process answers after the time range, the
    target only has a gap.
    """
    returned = _returned(window, time_range)
    targets = Attempts.of(attempts).targets
    found = []
    for instance, own in targets.items():
        last_good = own.last_good
        if last_good is None or last_good < time_range.start or instance in returned:
            continue
        silent_seconds = (time_range.end - last_good).total_seconds()
        if own.last == last_good and not _may_be_long(silent_seconds, own):
            continue
        median = own.median_seconds() or longest_median(targets.values())
        failed = own.rows().filter(pl.col("ts") > last_good).height
        end = time_range.end
        if not failed:
            end = min(end, last_good + timedelta(seconds=GAP_FACTOR * median))
        if failed or (median > 0 and silent_seconds > GAP_FACTOR * median):
            found.append(Outage(instance, last_good, end, failed, median))
    return found


def _may_be_long(seconds: float, own: Target) -> bool:
    """Whether a silence may be a gap; avoids the costly median over a long time."""
    ends = own.extreme_steps()
    return ends is None or seconds > GAP_FACTOR * ends[0]


def longest_median(targets: Iterable[Target]) -> float:
    """The longest of the targets' median intervals, in seconds; 0 without targets."""
    return max((own.median_seconds() for own in targets), default=0.0)


def _returned(window: Window, time_range: TimeRange) -> set[str]:
    """The targets that answer after the time range with the same process as at its end."""
    later = window.named_sql("figures", "good_after", end=time_range.end).get_column("instance")
    if later.is_empty():
        return set()
    replaced = {r.instance for r in restarts(window) if r.before < time_range.end <= r.after}
    return set(later.to_list()) - replaced


def restarts(window: Window, *, time_range: TimeRange | None = None) -> list[Restart]:
    """The restarts with their next scrape in the time range (None: all), by target, in order.

    Found by falling counters (a restart lies between the fall and the sample before it), and by the
    start times that processes report. Falls that one restart explains count as one restart: a
    labeled child may reappear long afterwards.
    """
    falls: dict[str, list[tuple[datetime, datetime]]] = {}
    for instance, before, after in window.named_sql("figures", "run_starts").iter_rows():
        falls.setdefault(instance, []).append((before, after))
    found: list[Restart] = []
    known = _lives(window).drop_nulls("started").sort("instance", "life")
    lives = {str(name): own for (name,), own in known.group_by("instance")}
    for instance in sorted({*falls, *lives}):
        fallen = falls.get(instance, [])
        own = lives.get(instance)
        result = [] if own is None else _process_restarts(instance, own, fallen)
        afters = sorted(restart.after for restart in result)
        rest = [fall for fall in fallen if not _is_explained(fall, afters)]
        found += sorted([*result, *_fallen(instance, rest)], key=lambda restart: restart.after)
    return [r for r in found if time_range is None or time_range.start <= r.after < time_range.end]


def doubtful_addresses(window: Window) -> dict[str, str]:
    """The targets with start times that do not show the order of processes, and why."""
    lives = _lives(window).drop_nulls("doubt")
    return dict(lives.select("instance", "doubt").iter_rows())


def _lives(window: Window) -> pl.DataFrame:
    """The processes of each target, by the start times that they report (processes.py)."""

    def found() -> pl.DataFrame:
        starts, series = (window.named_sql("figures", n) for n in ("process_starts", "series"))
        return processes.process_lives(starts, series)

    return window.derived("figures", "process_lives", found)


def _process_restarts(
    instance: str, lives: pl.DataFrame, falls: list[tuple[datetime, datetime]]
) -> list[Restart]:
    """The restarts between processes; one before the first process only if a counter fell."""
    found = []
    ordered = sorted(falls)
    latest = list(accumulate((after for _, after in ordered), max))
    ended: datetime | None = None
    for since, until, started in lives.select("since", "until", "started").iter_rows():
        fall = _last_before(since if ended else min(since, started), since, ordered, latest)
        bases = [each for each in (fall, ended) if each is not None]
        if bases:
            before = max(bases)
            is_between = before <= started <= since
            found.append(Restart(instance, before, since, started if is_between else None))
        ended = until
    return found


def _last_before(
    instant: datetime,
    since: datetime,
    falls: Sequence[tuple[datetime, datetime]],
    latest: Sequence[datetime],
) -> datetime | None:
    """The last fall that begins before `instant` and lasts until `since`: its start, or None.

    `falls` are in order; `latest` has, for each, the latest end among it and those before it.
    """
    for at in range(bisect_left(falls, (instant,)) - 1, -1, -1):
        if latest[at] < since:
            return None
        if falls[at][1] >= since:
            return falls[at][0]
    return None


def _is_explained(fall: tuple[datetime, datetime], afters: Sequence[datetime]) -> bool:
    """Whether a restart lies within the fall; `afters` are those of all restarts, in order."""
    at = bisect_right(afters, fall[0])
    return at < len(afters) and afters[at] <= fall[1]


def _fallen(instance: str, falls: list[tuple[datetime, datetime]]) -> list[Restart]:
    """The minimum set of restarts that explains these falls, each in (before, after]."""
    found: list[Restart] = []
    for before, after in sorted(falls, key=lambda fall: (fall[1], fall[0])):
        if found and before < found[-1].after:
            last = found[-1]
            found[-1] = Restart(instance, max(last.before, before), last.after, None)
        else:
            found.append(Restart(instance, before, after, None))
    return found
