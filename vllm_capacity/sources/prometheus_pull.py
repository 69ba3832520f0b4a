"""A range of a Prometheus, pulled hour by hour: every sample, or downsampled on the server.

How it is downsampled:

1. Gauges, and a scraper's records of its scrapes, are pulled in full. For counters and
   histograms, a range query returns the last state in each minute of the clock: the increase
   between two minute ends is then the same as from all samples.
2. The time of such a state within its minute is that of the target's gauges, because all samples
   of a scrape have the same time.
3. A minute of a target is pulled in full if that is not enough: if one of its series begins or
   ends, if a counter or bucket decreased (the server is queried for resets), if no gauge gives the
   time, or if the range starts or ends within the minute.

So restarts are detected as from all samples, and every scrape of counters that is returned is
complete.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial

import msgspec
import polars as pl
from msgspec import Struct

from vllm_capacity.sources.answers import AnswerCache, Step
from vllm_capacity.sources.otlp import Wire
from vllm_capacity.sources.parquet import LOOKBACK, cut_in_parts
from vllm_capacity.sources.prometheus import ANSWER, Prometheus
from vllm_capacity.sources.prometheus_rows import (
    HISTOGRAM_PARTS,
    Families,
    SeriesReader,
    declared_kind,
    families,
)
from vllm_capacity.telemetry.parts import Held, RowsInParts, Spool
from vllm_capacity.telemetry.processes import BOOKKEEPING
from vllm_capacity.telemetry.rows import Rows, microseconds
from vllm_capacity.timerange import TimeRange, hours, iso

_TOGETHER = 8  # scalar families per query for every sample
_STATES_TOGETHER = 24  # metric names per query for one state per minute
_MANY_TARGETS = 8  # with fewer, a query takes more families in proportion
_TARGET_MINUTES = 60  # (targets × minutes) per query for every sample
_MINUTE = timedelta(minutes=1)
_MINUTE_MS = 60_000
_TARGET = ("instance", "job")


def read_prometheus(server: Prometheus, time_range: TimeRange) -> Rows:
    """The canonical rows of a range, and the last sample before it of every series in it.

    NoTelemetryError if the server has no vLLM series in the range.
    """
    return prometheus_in_parts(server, time_range, raw=Held(), spool=Held()).whole()


def prometheus_in_parts(
    server: Prometheus,
    time_range: TimeRange,
    *,
    raw: Held | Spool,
    spool: Held | Spool,
    cache: AnswerCache | None = None,
    progress: Callable[[Step], None] = lambda step: None,
    is_downsampled: bool = False,
) -> RowsInParts:
    """Like `read_prometheus`, with one hour in memory at a time; every sample, or downsampled.

    Samples are kept in `raw`, rows in `spool`; answers in `cache` are not requested again.
    """
    wide = TimeRange(time_range.start - LOOKBACK, time_range.end)
    found = families(server.names(wide), server.kinds())
    slices = [*hours(TimeRange(wide.start, time_range.start)), *hours(time_range)]
    asking = _Asking(server, cache or AnswerCache(), progress)
    reader = SeriesReader(found, raw)
    for at, own in enumerate(slices):
        names = _Names.of(found, targets=reader.targets or _MANY_TARGETS)
        together = [*names.gauges, *names.counters, *names.histograms]
        questions = len(names.gauges) + len(names.states) + 1 if is_downsampled else len(together)
        asking.total = asking.done + questions * (len(slices) - at)
        if is_downsampled and names.states:
            answers = _downsampled(asking, names, own)
        else:
            answers = [asking.whole(each, own) for each in together]
        if answers:
            reader.add(answers, own)
    return cut_in_parts(reader.rows(spool), time_range)


class _Names(Struct, frozen=True):
    """Metric names by query: the lists for every sample, and `states` for one state per minute.

    The fewer targets there are, the more names a query has. `falling` has the names whose decrease
    shows a restart.
    """

    gauges: list[list[str]]
    counters: list[list[str]]
    histograms: list[list[str]]
    states: list[list[str]]
    falling: list[str]

    @classmethod
    def of(cls, found: Families, *, targets: int) -> _Names:
        kinds = {
            name: Wire.of(name, declared_kind(found.kinds.get(name, ""))).kind
            for name in found.scalars
        }
        counters = [name for name, kind in kinds.items() if kind == "counter"]
        gauges = [name for name, kind in kinds.items() if kind != "counter"]
        histograms = [[base + part for part in HISTOGRAM_PARTS] for base in found.histograms]
        parts = [name for names in histograms for name in names]
        more = max(1, _MANY_TARGETS // targets)
        return cls(
            _in_lists(gauges, _TOGETHER * more),
            _in_lists(counters, _TOGETHER * more),
            histograms,
            _in_lists([*counters, *parts], _STATES_TOGETHER * more),
            [*counters, *(name for name in parts if name.endswith("_bucket"))],
        )


def _in_lists(names: Sequence[str], most: int) -> list[list[str]]:
    return [list(names[at : at + most]) for at in range(0, len(names), most)]


class _Asking(Struct):
    """Runs the queries one after another, through the cache, and counts them."""

    server: Prometheus
    cache: AnswerCache
    progress: Callable[[Step], None]
    total: int = 0
    done: int = 0

    def whole(
        self, names: Sequence[str], own: TimeRange, instances: Sequence[str] = ()
    ) -> pl.DataFrame:
        """Every sample of the range."""
        ask = partial(self.server.answer, names, own, instances=instances)
        return self._asked([*names, *instances], own, own, ask)

    def minute_ends(self, names: Sequence[str], own: TimeRange, minutes: TimeRange) -> pl.DataFrame:
        """The last state in each of `minutes`: those of the hour, and one more on each side."""
        ask = partial(self.server.minute_ends, names, minutes)
        return self._asked(["minute ends", *names], own, minutes, ask)

    def resets(self, names: Sequence[str], own: TimeRange, minutes: TimeRange) -> pl.DataFrame:
        """The minutes in which a series of these metrics decreased."""
        ask = partial(self.server.resets, names, minutes)
        return self._asked(["resets", *names], own, minutes, ask)

    def _asked(
        self, words: Sequence[str], own: TimeRange, arrivals: TimeRange, ask: _Ask
    ) -> pl.DataFrame:
        only = [str(self.server.only)] if self.server.only else []
        question = [self.server.address, *only, *words, iso(own.start), iso(own.end)]
        frame = self.cache.frame("\n".join(question), arrivals, ask)
        self.done += 1
        self.progress(Step(self.done, max(self.total, self.done), 0))
        return frame


_Ask = Callable[[], pl.DataFrame]


# --- downsampled ---------------------------------------------------------------------------------


def _downsampled(asking: _Asking, names: _Names, own: TimeRange) -> list[pl.DataFrame]:
    """An hour's answers: all gauge samples, minute-end states, and the minutes pulled in full."""
    first, end = _minute(own.start), _minute(own.end - timedelta(milliseconds=1)) + _MINUTE
    around = TimeRange(first - _MINUTE, end + _MINUTE)
    gauges = [asking.whole(each, own) for each in names.gauges]
    ends = pl.concat([asking.minute_ends(each, own, around) for each in names.states])
    fallen = asking.resets(names.falling, own, around)
    states, samples = _samples(ends), _samples(pl.concat([pl.DataFrame(schema=ANSWER), *gauges]))
    is_data = ~pl.col("name").is_in(BOOKKEEPING)
    times = samples.filter(is_data).group_by(*_TARGET, "minute").agg(pl.col("ms").max())
    cut = [first] * (own.start > first) + [end - _MINUTE] * (own.end < end)
    odd = _odd(states, times, _samples(fallen), [_minute_number(at) for at in cut])
    inside = pl.col("minute").is_between(_minute_number(first), _minute_number(end), closed="left")
    odd = odd.filter(inside)
    counted = (
        states.filter(inside)
        .drop("ms")
        .join(odd, on=[*_TARGET, "minute"], how="anti")
        .join(times, on=[*_TARGET, "minute"])
        .group_by("metric", maintain_order=True)
        .agg("ms", "value")
    )
    warned = pl.concat([ends, fallen]).filter(pl.col("metric").is_null())
    every = [name for each in names.states for name in each]
    whole = [asking.whole(every, span, targets) for span, targets in _spans(odd, own)]
    return [*gauges, pl.concat([counted, warned], how="diagonal").select(list(ANSWER)), *whole]


def _samples(answer: pl.DataFrame) -> pl.DataFrame:
    """One row per sample: metric, name, instance, job, minute (of the epoch), ms, value."""
    known = answer.filter(pl.col("metric").is_not_null())
    labels = [msgspec.json.decode(metric) for metric in known["metric"]]
    named = {
        name: pl.Series([each.get(label, "") for each in labels], dtype=pl.String)
        for name, label in (("name", "__name__"), ("instance", "instance"), ("job", "job"))
    }
    rows = known.with_columns(**named).explode("ms", "value", empty_as_null=False)
    return rows.filter(pl.col("value").is_not_nan()).select(
        "metric", *named, "ms", "value", minute=pl.col("ms") // _MINUTE_MS
    )


def _odd(
    states: pl.DataFrame, times: pl.DataFrame, fallen: pl.DataFrame, cut: Iterable[int]
) -> pl.DataFrame:
    """The minutes to pull in full: instance, job, minute."""
    ordered = states.sort("metric", "minute")
    minute = pl.col("minute")
    follows = (minute.shift(1).over("metric") == minute - 1).fill_null(False)
    goes_on = (minute.shift(-1).over("metric") == minute + 1).fill_null(False)
    key = [*_TARGET, "minute"]
    untimed = states.join(times, on=key, how="anti")
    found = (
        ordered.filter(~(follows & goes_on)),
        states.filter(minute.is_in(list(cut))),
        untimed,
        fallen,
    )
    return pl.concat([each.select(key) for each in found]).unique().sort(key)


def _spans(odd: pl.DataFrame, own: TimeRange) -> Iterator[tuple[TimeRange, list[str]]]:
    """The minutes to pull in full as time ranges, each with the instances to query."""
    alike: dict[tuple[int, int], list[str]] = {}
    for (instance,), rows in odd.group_by("instance", maintain_order=True):
        minutes = sorted(set(rows["minute"].to_list()))
        for first, last in _runs(minutes):
            alike.setdefault((first, last), []).append(str(instance))
    for (first, last), instances in sorted(alike.items()):
        begin, end = (datetime.fromtimestamp(60 * at, UTC) for at in (first, last + 1))
        span = TimeRange(max(begin, own.start), min(end, own.end))
        most = max(1, _TARGET_MINUTES // (last + 1 - first))
        for targets in _in_lists(instances, most):
            yield span, targets


def _runs(minutes: Sequence[int]) -> list[tuple[int, int]]:
    """Runs of consecutive minutes, each as (first, last); `minutes` are in order."""
    runs: list[tuple[int, int]] = []
    for minute in minutes:
        if runs and minute == runs[-1][1] + 1:
            runs[-1] = (runs[-1][0], minute)
        else:
            runs.append((minute, minute))
    return runs


def _minute(moment: datetime) -> datetime:
    return datetime.fromtimestamp(60 * _minute_number(moment), UTC)


def _minute_number(moment: datetime) -> int:
    return microseconds(moment) // (1000 * _MINUTE_MS)
