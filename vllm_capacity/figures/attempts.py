"""When each target was scraped and when it answered, as stretches instead of a row per attempt.

Weeks of many targets have a hundred million attempts, but most figures need only the first and the
last one, and how many were made and answered. Figures that depend on the steps between attempts (a
median, a gap) unpack them, but only as far as necessary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import cached_property

import numpy as np
import polars as pl
from msgspec import Struct
from msgspec.structs import replace
from numpy.typing import NDArray

from vllm_capacity.telemetry.window import Window
from vllm_capacity.timerange import TimeRange

_LONGEST_US = 3_600_000_000  # a longer step ends a stretch, so that steps fit into 32 bits
_INSTANT = pl.Datetime("us", "UTC")
_LOW, _HIGH = 0.05, 0.95
_ROUNDING = 1e-12  # DuckDB and NumPy may differ in the last bit of a division

STRETCH_COLUMNS = (
    *("instance", "start", "end", "tried", "good", "last_good"),
    *("shortest", "longest", "low", "high", "failed"),
)
"""A stretch: its first, last and last good attempt, and the numbers of attempts and good ones.

Also the minimum, maximum, p5 (`low`) and p95 (`high`) of the steps between them (µs, null for a
single attempt), and the indices of failed attempts. Its `steps` (µs) are kept separately.
"""

_KEY = ("instance", "source")

Steps = NDArray[np.uint32]
Instants = NDArray[np.int64]  # µs
Mask = NDArray[np.bool_]


def packed(attempts: pl.DataFrame) -> pl.DataFrame:
    """Attempts (instance, ts, is_good; sorted by both) as stretches, in order.

    Columns: `STRETCH_COLUMNS` and `steps`. If there is a column `source`, attempts must be sorted
    by it after `instance`; each stretch then has the attempts of one source, given in that column.
    """
    key = [name for name in _KEY if name in attempts.columns]
    step = pl.col("ts").diff().dt.total_microseconds()
    is_other = pl.any_horizontal(pl.col(key).ne_missing(pl.col(key).shift()))
    numbered = attempts.select(
        *(*key, "ts", "is_good"),
        step=step,
        number=(is_other | (step > _LONGEST_US)).fill_null(True).cum_sum(),
    )
    own = pl.col("step").slice(1)
    return (
        numbered.group_by("number", maintain_order=True)
        .agg(
            pl.col(key).first(),
            start=pl.col("ts").first(),
            end=pl.col("ts").last(),
            tried=pl.len().cast(pl.Int64),
            good=pl.col("is_good").sum().cast(pl.Int64),
            last_good=pl.col("ts").filter("is_good").last(),
            shortest=own.min(),
            longest=own.max(),
            low=own.quantile(_LOW, "lower").cast(pl.Int64),
            high=own.quantile(_HIGH, "higher").cast(pl.Int64),
            failed=(~pl.col("is_good")).arg_true().cast(pl.UInt32),
            steps=own.cast(pl.UInt32),
        )
        .drop("number")
    )


class Attempts(Struct, frozen=True, dict=True):
    """The attempts of several targets as stretches, by target and time.

    `steps_of` gives the steps of a stretch by its `place`.
    """

    stretches: pl.DataFrame
    steps_of: Callable[[int], Steps]

    @classmethod
    def of(cls, attempts: pl.DataFrame | Attempts) -> Attempts:
        """The attempts from rows: instance, ts, is_good; sorted by instance and time."""
        if isinstance(attempts, Attempts):
            return attempts
        found = packed(attempts)
        return cls.put_together(found.drop("steps"), lambda: found.get_column("steps"))

    @classmethod
    def put_together(cls, stretches: pl.DataFrame, read_steps: Callable[[], pl.Series]) -> Attempts:
        """The attempts from stretches: targets in any order, the stretches of each in time order.

        `read_steps` is called once, when steps are first needed, and returns them in that order.
        """
        placed = stretches.with_columns(place=pl.int_range(pl.len()))
        return cls(placed.sort("instance", maintain_order=True), _Steps(read_steps).of)

    @cached_property
    def targets(self) -> dict[str, Target]:
        """The attempts of each target by name, sorted by name."""
        runs = self.stretches.get_column("instance").rle().struct.unnest()
        found, begin = {}, 0
        for length, instance in runs.select("len", "value").iter_rows():
            found[instance] = Target(self.stretches.slice(begin, length), self.steps_of)
            begin += length
        return found

    def median_step_seconds(self) -> float:
        """The median step between attempts of one target, in seconds; 0 without any."""
        steps = pl.concat(
            [
                pl.Series([], dtype=pl.Float64),
                *(own.step_seconds() for own in self.targets.values()),
            ]
        )
        return float(steps.median() or 0.0)  # type: ignore[arg-type]

    def since(self, start: datetime) -> Attempts:
        """The attempts from `start` on."""
        return self._cut(pl.col("start") >= start, pl.col("end") >= start, pl.col("ts") >= start)

    def before(self, end: datetime) -> Attempts:
        """The attempts before `end`."""
        return self._cut(pl.col("end") < end, pl.col("start") < end, pl.col("ts") < end)

    def _cut(self, whole: pl.Expr, some: pl.Expr, own: pl.Expr) -> Attempts:
        """The stretches that are `whole`, plus the `own` attempts of stretches with only `some`."""
        kept = self.stretches.filter(whole)
        cut = self.stretches.filter(some & ~whole)
        if cut.is_empty():
            return self if kept.height == self.stretches.height else replace(self, stretches=kept)
        sources = [name for name in ("source",) if name in cut.columns]
        halves = [
            packed(Target(each, self.steps_of).rows().filter(own)).with_columns(
                pl.lit(each.get_column(name).item(), pl.String).alias(name) for name in sources
            )
            for each in cut.iter_slices(1)
        ]
        return self._with(kept, pl.concat(halves))

    def with_one_source(self, merged: Sequence[pl.DataFrame]) -> Attempts:
        """The attempts without `source`; `merged` (instance, ts, is_good) replaces its targets."""
        stretches = self.stretches.drop("source")
        if not merged:
            return replace(self, stretches=stretches)
        rows = pl.concat(merged)
        is_merged = pl.col("instance").is_in(rows.get_column("instance").unique().implode())
        return self._with(stretches.filter(~is_merged), packed(rows))

    def _with(self, kept: pl.DataFrame, found: pl.DataFrame) -> Attempts:
        """The `kept` ones of these stretches, plus `found` ones, which come with their steps."""
        least = int(self.stretches.get_column("place").min() or 0)  # type: ignore[arg-type]
        places = pl.Series("place", min(least, 0) - 1 - np.arange(found.height))
        steps = dict(zip(places, found.get_column("steps"), strict=True))
        both = pl.concat([kept, found.with_columns(places).select(kept.columns)])
        inherited = self.steps_of

        def steps_of(place: int) -> Steps:
            return steps[place].to_numpy() if place in steps else inherited(place)

        return Attempts(both.sort("instance", "start"), steps_of)

    def beside(self, borders: Sequence[datetime]) -> pl.DataFrame:
        """Each target's last attempt before each border (ascending), and the first from it on.

        One row per attempt: instance, ts; sorted by both.
        """
        instants = pl.Series(borders, dtype=_INSTANT).to_physical().to_numpy()
        found = {name: own.beside(instants) for name, own in self.targets.items()}
        return _instants(found, {"ts": found})

    def silences(self, seconds: float) -> pl.DataFrame:
        """The times longer than that between two good attempts, with none in between.

        One row each: instance, start, end; sorted by target and time.
        """
        ends = {name: own.silences(round(seconds * 1e6)) for name, own in self.targets.items()}
        starts, lasts = ({name: of[at] for name, of in ends.items()} for at in (0, 1))
        return _instants(starts, {"start": starts, "end": lasts})

    def first_rows_by_source(self, count: int) -> tuple[pl.DataFrame, int]:
        """The first rows of all targets' `rows_by_source`, and the number of all rows."""
        chosen = [own.of_sources() for own in self.targets.values()]
        found: list[pl.DataFrame] = []
        left = count
        for own in chosen:
            if left:
                found.append(own.begin(left).rows_by_source().head(left))
                left -= found[-1].height
        return pl.concat(found), sum(own.tried for own in chosen)

    def rows(self) -> pl.DataFrame:
        """One row per attempt: instance, ts, is_good; sorted by target and time."""
        none = pl.DataFrame(schema={"instance": pl.String, "ts": _INSTANT, "is_good": pl.Boolean})
        return pl.concat([none, *(own.rows() for own in self.targets.values())], rechunk=True)


def rows_in(attempts: pl.DataFrame | Attempts, time_range: TimeRange) -> pl.DataFrame:
    """One row per attempt in the time range: instance, ts, is_good; sorted by both."""
    if isinstance(attempts, Attempts):
        return attempts.since(time_range.start).before(time_range.end).rows()
    return attempts.filter((pl.col("ts") >= time_range.start) & (pl.col("ts") < time_range.end))


def _instants(
    of: Mapping[str, Instants], columns: Mapping[str, Mapping[str, Instants]]
) -> pl.DataFrame:
    """Columns of instants in a row each, after the `instance` that they are of."""
    none = np.empty(0, np.int64)
    names = pl.Series(list(of), dtype=pl.String)
    counts = pl.Series([len(own) for own in of.values()], dtype=pl.UInt32)
    instance = names.gather(np.repeat(np.arange(len(of)), counts))
    each = {
        name: pl.Series(np.concatenate([none, *own.values()])).cast(_INSTANT)
        for name, own in columns.items()
    }
    return pl.DataFrame({"instance": instance, **each})


def hourly_attempts(window: Window) -> Attempts | None:
    """All attempts of every source from hourly summaries; None if rows must be read."""
    stretches = window.hourly("attempts", everywhere=True)
    if stretches is None:
        return None

    def read_steps() -> pl.Series:
        steps = window.hourly("attempt_steps", everywhere=True)
        assert steps is not None
        return steps.get_column("steps")

    return Attempts.put_together(stretches, read_steps)


class _Steps:
    """The steps of many stretches, all read when any are first needed."""

    def __init__(self, read: Callable[[], pl.Series]) -> None:
        self._read = read

    @cached_property
    def _flat(self) -> tuple[Steps, Instants]:
        """All steps in sequence, and where those of each stretch begin."""
        lists = self._read()
        lengths = lists.list.len().to_numpy().astype(np.int64)
        flat = lists.explode(empty_as_null=False).to_numpy()
        return flat, np.append(0, np.cumsum(lengths))

    def of(self, place: int) -> Steps:
        """The steps of the stretch at that index."""
        flat, begins = self._flat
        return flat[begins[place] : begins[place + 1]]


class Target(Struct, frozen=True, dict=True):
    """The attempts of one target, at least one."""

    stretches: pl.DataFrame
    steps_of: Callable[[int], Steps]

    @property
    def instance(self) -> str:
        """The target's name."""
        return str(self.stretches.item(0, "instance"))

    @property
    def first(self) -> datetime:
        """The time of the first attempt."""
        return self.stretches.item(0, "start")  # type: ignore[no-any-return]

    @property
    def last(self) -> datetime:
        """The time of the last attempt."""
        return self.stretches.item(-1, "end")  # type: ignore[no-any-return]

    @property
    def tried(self) -> int:
        """The number of attempts."""
        return int(self.stretches.get_column("tried").sum())

    @property
    def good(self) -> int:
        """The number of answered attempts."""
        return int(self.stretches.get_column("good").sum())

    @property
    def last_good(self) -> datetime | None:
        """The time of the last answered attempt; None if none was answered."""
        return self.stretches.get_column("last_good").max()  # type: ignore[return-value]

    def _us(self, name: str) -> Instants:
        return self.stretches.get_column(name).to_physical().to_numpy()

    @cached_property
    def _borders(self) -> Instants:
        """The steps from each stretch to the next."""
        return self._us("start")[1:] - self._us("end")[:-1]

    def extreme_steps(self) -> tuple[float, float] | None:
        """The shortest and the longest step, in seconds; None for a single attempt."""
        return self._ends("shortest", "longest")

    def most_steps(self) -> tuple[float, float] | None:
        """A range with at least 90 % of the steps, in seconds; None for a single attempt."""
        return self._ends("low", "high")

    def _ends(self, least: str, most: str) -> tuple[float, float] | None:
        low, high = self.stretches.select(pl.col(least).min(), pl.col(most).max()).row(0)
        borders = [self._borders.min(), self._borders.max()] if self._borders.size else []
        known = [int(each) for each in (low, high, *borders) if each is not None]
        if not known:
            return None
        return min(known) / 1e6 * (1 - _ROUNDING), max(known) / 1e6 * (1 + _ROUNDING)

    def rows(self) -> pl.DataFrame:
        """One row per attempt: instance, ts, is_good."""
        times, is_good, _ = self._unpacked(0, self.stretches.height)
        ts = pl.Series(times).cast(_INSTANT)
        instance = pl.lit(self.instance, pl.String).alias("instance")
        return pl.DataFrame({"ts": ts, "is_good": is_good}).select(instance, "ts", "is_good")

    def beside(self, borders: Instants) -> Instants:
        """The times of the last attempt before each border (ascending), and the first from it on.

        Only stretches with a border inside are unpacked.
        """
        starts, ends = self._us("start"), self._us("end")
        at = np.searchsorted(starts, borders) - 1  # the last stretch that starts before the border
        is_inside = (at >= 0) & (ends[at] >= borders)
        before, after = at[(at >= 0) & ~is_inside], at[~is_inside] + 1
        found = [ends[before], starts[after[after < starts.size]]]
        for stretch in np.unique(at[is_inside]).tolist():
            times, _, _ = self._unpacked(stretch, stretch + 1)
            place = np.searchsorted(times, borders[is_inside & (at == stretch)])
            found += [times[place - 1], times[place]]
        return np.unique(np.concatenate(found))

    def silences(self, least: int) -> tuple[Instants, Instants]:
        """Start and end of each time longer than `least` (µs) between consecutive good attempts.

        Only stretches that may have one inside are unpacked.
        """
        failed, longest = (
            self.stretches.select(own).to_series().to_numpy()
            for own in (pl.col("tried") - pl.col("good"), pl.col("longest").fill_null(0))
        )
        is_first_good = self.stretches.get_column("failed").list.first().fill_null(1).to_numpy() > 0
        is_answered = self._us("good") > 0
        is_plain = is_answered & is_first_good & ((failed + 1) * longest <= least)
        spans = [np.stack([self._us("start"), self._us("last_good")], axis=1)[is_plain]]
        for stretch in np.flatnonzero(is_answered & ~is_plain).tolist():
            times, is_good, _ = self._unpacked(stretch, stretch + 1)
            good = times[is_good]
            last = np.append(np.flatnonzero(np.diff(good) > least), good.size - 1)
            first = np.append(0, last[:-1] + 1)
            spans.append(np.stack([good[first], good[last]], axis=1))
        each = np.concatenate(spans)
        each = each[np.argsort(each[:, 0])]
        starts, ends = each[:-1, 1], each[1:, 0]
        is_long = ends - starts > least
        return starts[is_long], ends[is_long]

    def rows_by_source(self) -> pl.DataFrame:
        """One row per attempt as attempts.sql gives them: instance, ts, is_good, source.

        Sorted by ts and source. Times of samples (source null) count only if no `up` was scraped.
        """
        found = [
            Target(own, self.steps_of).rows().with_columns(source=pl.lit(source or "", pl.String))
            for (source,), own in self.of_sources().stretches.group_by(
                "source", maintain_order=True
            )
        ]
        return pl.concat(found).sort("ts", "source")

    def of_sources(self) -> Target:
        """Only the attempts that `rows_by_source` gives."""
        known = self.stretches.filter(pl.col("source").is_not_null())
        return self if known.is_empty() else replace(self, stretches=known)

    def begin(self, count: int) -> Target:
        """The stretches with the first `count` attempts of each source."""
        earlier = pl.col("tried").cum_sum().over("source") - pl.col("tried")
        return replace(self, stretches=self.stretches.filter(earlier < count))

    def steps_us(self) -> Instants:
        """Every step, in microseconds."""
        times, _, _ = self._unpacked(0, self.stretches.height)
        return np.diff(times)

    def step_seconds(self) -> pl.Series:
        """Every step, in seconds."""
        return pl.Series(self.steps_us()) / 1e6

    def median_seconds(self) -> float:
        """The median step, in seconds; 0 for a single attempt."""
        return float(self.step_seconds().median() or 0.0)  # type: ignore[arg-type]

    def _unpacked(self, first: int, end: int) -> tuple[Instants, Mask, Instants]:
        """The attempts of some stretches: time (µs), whether good, and the stretch of each."""
        own = self.stretches.slice(first, end - first)
        times, good = [], []
        rows = own.select("place", "failed", pl.col("start").to_physical(), "good", "tried")
        for place, failed, start, answered, tried in rows.iter_rows():
            times.append(start + np.append(0, np.cumsum(self.steps_of(place), dtype=np.int64)))
            is_good = np.ones(tried, bool)
            if answered < tried:
                is_good[failed] = False
            good.append(is_good)
        whose = np.repeat(np.arange(first, end), own.get_column("tried").to_numpy())
        return np.concatenate(times), np.concatenate(good), whose

    def excerpts(
        self, factor: float, *, neighbors: int, is_good: bool = False
    ) -> Iterator[tuple[Instants, Mask]]:
        """The attempts (or the good ones) around steps that may be at least `factor` × the median.

        Each excerpt has `neighbors` on either side, as far as they exist, and a mask of whether the
        step to the next attempt must be checked; the others are certainly shorter, or are checked
        in another excerpt.
        """
        count = self.stretches.height
        answers = self._us("good" if is_good else "tried")
        reach = 1
        while reach < count and _sums(answers, reach).min() <= neighbors:
            reach += 1
        infinite = np.iinfo(np.int64).max
        shortest, longest = (
            self.stretches.get_column(name).fill_null(other).to_numpy()
            for name, other in (("shortest", infinite), ("longest", 0))
        )
        least = np.minimum(shortest, np.append(infinite, self._borders))
        most = np.maximum(longest, np.append(0, self._borders))
        around = pl.Series(least).rolling_min(2 * reach + 1, min_samples=1, center=True).to_numpy()
        in_question = most >= 0.999 * factor * around
        if is_good:
            has_failed = self._us("good") < self._us("tried")
            in_question |= has_failed | np.append(False, has_failed[:-1])
        near = np.flatnonzero(in_question)
        for first, end in _merged(np.maximum(0, near - reach), np.minimum(count, near + reach + 1)):
            times, good, whose = self._unpacked(first, end)
            if is_good:
                times, whose = times[good], whose[good]
            yield times, in_question[whose[1:]]


def _sums(values: Instants, width: int) -> Instants:
    """The sums of each `width` consecutive values."""
    sums = np.append(0, np.cumsum(values))
    return np.asarray(sums[width:] - sums[:-width])


def _merged(firsts: Instants, ends: Instants) -> Iterator[tuple[int, int]]:
    """Ranges in order, with touching ones merged."""
    if not firsts.size:
        return
    is_new = np.append(True, firsts[1:] > np.maximum.accumulate(ends)[:-1])
    begins = np.flatnonzero(is_new)
    lasts = np.append(begins[1:], firsts.size) - 1
    yield from zip(firsts[begins].tolist(), ends[lasts].tolist(), strict=True)
