"""A range of a Prometheus, pulled in slices: every sample, or downsampled on the server.

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

from vllm_capacity.sources.answers import LOOKBACK, AnswerCache
from vllm_capacity.sources.otlp import Wire
from vllm_capacity.sources.prometheus import ANSWER, Prometheus
from vllm_capacity.sources.prometheus_rows import (
    HISTOGRAM_PARTS,
    Families,
    declared_kind,
    families,
    part_of,
    rows_of,
)
from vllm_capacity.sources.slices import Slice, cut_in_parts, gathered, one_by_one
from vllm_capacity.telemetry.parts import Held, RowsInParts, Spool
from vllm_capacity.telemetry.processes import BOOKKEEPING
from vllm_capacity.telemetry.rows import Rows, microseconds
from vllm_capacity.timerange import TimeRange, iso, split

_TOGETHER = 8  # scalar families per query for every sample
_STATES_TOGETHER = 24  # metric names per query for one state per minute
_MANY_TARGETS = 8  # with fewer, a query takes more families in proportion
_TARGET_MINUTES = 60  # (targets × minutes) per query for every sample
_SLICE_TARGET_MINUTES = 240  # (targets × minutes) per slice with every sample
_DOWNSAMPLED_TARGET_MINUTES = 1440
_FRACTIONS = (60, 30, 20, 15, 10, 6, 5, 4, 3, 2, 1)  # minutes
_MINUTE = timedelta(minutes=1)
_MINUTE_MS = 60_000
_TARGET = ("instance", "job")


def read_prometheus(server: Prometheus, time_range: TimeRange) -> Rows:
    """The canonical rows of a range, and the last sample before it of every series in it.

    NoTelemetryError if the server has no vLLM series in the range.
    """
    slices = prometheus_slices(server, time_range)
    parts = gathered(slices, one_by_one(partial(read_slice, server)), cache=AnswerCache())
    return rows_of_slices(parts, time_range, Held()).whole()


class PrometheusSlice(Slice, frozen=True):
    """A slice of a range: what to ask the server for, every sample or downsampled."""

    time_range: TimeRange
    names: _Names
    found: Families
    is_downsampled: bool


def prometheus_slices(
    server: Prometheus, time_range: TimeRange, *, is_downsampled: bool = False
) -> list[PrometheusSlice]:
    """The slices of a range and of the hour before it, in order of time.

    They are hours, or shorter if there are many targets, so that a slice fits into memory.
    """
    wide = TimeRange(time_range.start - LOOKBACK, time_range.end)
    found = families(server.names(wide), server.kinds())
    targets = len(server.targets(wide)) or _MANY_TARGETS
    names = _Names.of(found, targets=targets)
    minutes = _minutes_per_slice(targets, is_downsampled=is_downsampled)
    scope = str(server.only) if server.only else ""
    what = ["downsampled" if is_downsampled else "whole", *found.scalars, *found.histograms]
    return [
        PrometheusSlice(
            "\n".join([server.address, scope, *what, iso(own.start), iso(own.end)]),
            own,
            own,
            names,
            found,
            is_downsampled,
        )
        for span in (TimeRange(wide.start, time_range.start), time_range)
        for own in split(span, minutes)
    ]


def read_slice(server: Prometheus, own: PrometheusSlice) -> bytes:
    """The samples of a slice, as a `SlicePart`."""
    names = own.names
    if own.is_downsampled and names.states:
        answers = _downsampled(server, names, own.time_range)
    else:
        together = [*names.gauges, *names.counters, *names.histograms]
        answers = [server.answer(each, own.time_range) for each in together]
    return part_of(own.found, [pl.DataFrame(schema=ANSWER), *answers], own.time_range)


def rows_of_slices(
    parts: Sequence[Callable[[], bytes]], time_range: TimeRange, spool: Held | Spool
) -> RowsInParts:
    """The canonical rows of all slices of a range; errors as in `read_prometheus`."""
    return cut_in_parts(rows_of(parts, spool), time_range)


def _minutes_per_slice(targets: int, *, is_downsampled: bool) -> int:
    """The length of slices: whole fractions of an hour, with a limited number of samples."""
    most = _DOWNSAMPLED_TARGET_MINUTES if is_downsampled else _SLICE_TARGET_MINUTES
    return next((each for each in _FRACTIONS if targets * each <= most), _FRACTIONS[-1])


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


# --- downsampled ---------------------------------------------------------------------------------


def _downsampled(server: Prometheus, names: _Names, own: TimeRange) -> list[pl.DataFrame]:
    """A slice's answers: all gauge samples, minute-end states, and the minutes pulled in full."""
    first, end = _minute(own.start), _minute(own.end - timedelta(milliseconds=1)) + _MINUTE
    around = TimeRange(first - _MINUTE, end + _MINUTE)
    gauges = [server.answer(each, own) for each in names.gauges]
    ends = pl.concat([server.minute_ends(each, around) for each in names.states])
    fallen = server.resets(names.falling, around)
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
    whole = [server.answer(every, span, instances=targets) for span, targets in _spans(odd, own)]
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
