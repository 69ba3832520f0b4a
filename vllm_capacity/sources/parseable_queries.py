"""The SQL sent to Parseable: a survey, the whole of it, or thinned on the server to the minute.

Thinning keeps, per series, minute and run, what a rollup keeps: first and last state, n, and the
minimum, maximum and sum of a gauge. A run ends where a counter drops (a histogram: its sum or any
bucket), and where another process answers than before: a counter may have been overtaken, unseen,
within the minute. Window functions see the points in order of sample time; a point sent twice
counts once.

What can be told from the rest is not sent: a last state equal to the first, a maximum equal to the
minimum, the sum of a constant, a series' labels more than once an hour; of buckets only the growth.
Times are milliseconds, Parseable's resolution, computed from the epoch: a literal of a time,
compared with any column, would be taken for a bound on the arrival.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vllm_capacity.sources.parseable_sql import StreamColumns, literal, literals, quoted
from vllm_capacity.telemetry.processes import PROCESS_START, SAME_START
from vllm_capacity.telemetry.rows import microseconds
from vllm_capacity.timerange import TimeRange

_IDENTITY = ("metric_name", "wire_kind", "instance", "job")
_KINDS = "metric_type in ('gauge', 'sum', 'histogram')"
LATE_SECONDS = 60
AHEAD_SECONDS = 5


@dataclass(frozen=True)
class Group:
    """Families asked for together: of one shape, with the labels that any of them has.

    `bounds` says that bounds differ between the series of a family and must be sent along; `edges`
    is how many there are at most.
    """

    metrics: tuple[str, ...]
    labels: tuple[str, ...]
    is_histogram: bool = False
    has_bounds: bool = False
    edges: int = 0

    @property
    def identity(self) -> tuple[str, ...]:
        """The columns that tell its series apart."""
        return (*_IDENTITY, *self.labels, *(("bounds",) if self.has_bounds else ()))


@dataclass(frozen=True)
class Stream:
    """A stream, how to read its columns, and the part of it that is asked for."""

    name: str
    columns: StreamColumns
    time_range: TimeRange

    def during(self, time_range: TimeRange) -> Stream:
        """The same stream, another part."""
        return Stream(self.name, self.columns, time_range)


def survey(stream: Stream) -> str:
    """Which families there are: kind, points, points with each label (`l0` …), bounds as text.

    grain: one row per family and kind.
    """
    counts = [
        f"count({expression}) as l{index}"
        for index, expression in enumerate(stream.columns.labels.values())
    ]
    chosen = [
        f"{stream.columns.fixed['metric_name']} as metric_name",
        f"{stream.columns.fixed['wire_kind']} as wire_kind",
        "count(1) as points",
        *counts,
    ]
    if stream.columns.fixed["bounds"] != "null":
        text = _bounds_text(stream.columns)
        chosen += [f"min({text}) as lowest_bounds", f"max({text}) as highest_bounds"]
        chosen += [f"max({_size(stream.columns.fixed['bounds'])}) as edges"]
    return (
        f"select {', '.join(chosen)} from {quoted(stream.name)} "
        f"where {_KINDS} and {stream.columns.fixed['flags']} = 0 and {_within(stream)} "
        "group by 1, 2 order by 1, 2"
    )


def findings(stream: Stream, metrics: Sequence[str]) -> str:
    """What the ledger wants to know: stale, late and unreadable points, and those ahead of arrival.

    grain: one row per instance.
    """
    fixed = stream.columns.fixed
    lag = f"(date_part('epoch', {fixed['arrived']}) - date_part('epoch', {fixed['ts']}))"
    stale, late = f"{fixed['flags']} <> 0", f"{fixed['flags']} = 0 and {lag} > {LATE_SECONDS}"
    unreadable = f"{fixed['flags']} = 0 and metric_type <> 'histogram' and {fixed['value']} is null"
    parts = [f"{fixed['instance']} as instance"]
    ahead = f"{fixed['flags']} = 0 and {lag} < -{AHEAD_SECONDS}"
    kinds = {"stale": stale, "late": late, "ahead": ahead, "unreadable": unreadable}
    for name, condition in kinds.items():
        parts.append(f"sum(case when {condition} then 1 else 0 end) as {name}")
        parts.append(f"min(case when {condition} then {_ms(fixed['ts'])} end) as {name}_ms")
    parts.append(f"count(distinct case when {stale} then metric_name end) as stale_families")
    parts.append(f"cast(floor(max(case when {late} then {lag} end)) as bigint) as lag_seconds")
    parts.append(f"cast(ceil(max(case when {ahead} then -{lag} end)) as bigint) as lead_seconds")
    return (
        f"select {', '.join(parts)} from {quoted(stream.name)} "
        f"where {_KINDS} and metric_name in ({literals(metrics)}) and {_within(stream)} "
        "group by 1 order by 1"
    )


def whole(stream: Stream, group: Group) -> str:
    """Every point of the group. grain: one row per point."""
    payload = "s, b" if group.is_histogram else "v"
    names = ", ".join(quoted(name) for name in group.identity)
    return f"select {names}, ms, {payload} from ({_points(stream, group)}) as points"


def attempts(stream: Stream) -> str:
    """Every scrape attempt, packed. grain: one row per (instance, minute), lists in time order."""
    group = Group(("up",), ())
    names = ", ".join(group.identity)
    return (
        f"select {names}, ms / 60000 as m, array_agg(ms % 60000 order by ms) as at, "
        f"array_agg(v order by ms) as v from ({_points(stream, group)}) as points "
        f"group by {names}, ms / 60000"
    )


def thinned(stream: Stream, group: Group, *, by_minute: bool = True) -> str:
    """The group thinned. grain: one row per (series, run) and hour, or the whole range.

    Its lists have an element a minute, in order: `parseable_minutes` unpacks them.
    """
    names = ", ".join(quoted(name) for name in group.identity)
    series = f"over (partition by {names} order by ms)"
    lags = _HISTOGRAM_LAGS if group.is_histogram else _SCALAR_LAGS
    seen = ", ".join(f"lag({column}) {series} as previous_{column}" for column in lags)
    minute = "ms / 60000" if by_minute else str(_origin_minute(stream.time_range))
    running = series.replace(")", " rows between unbounded preceding and current row)")
    kept = _HISTOGRAM_STATES if group.is_histogram else _SCALAR_STATES
    is_twin = "case when previous_ms = ms then 1 else 0 end"
    sent = {**_SENT, **(_histogram_sent(group) if group.is_histogram else _SCALAR_SENT)}
    columns = ", ".join(f"{expression} as {name}" for name, expression in sent.items())
    return (
        f"with points as (select *, {seen} from ({_with_start(stream, group)}) as raw), "
        f"runs as (select *, {minute} as m, {is_twin} as twin, "
        f"sum(case when {_dropped(group)} then 1 else 0 end) {running} as r from points), "
        f"minutes as (select {names}, m, r, min(ms) as t0, max(ms) as t1, "
        f"sum(1 - twin) as n, sum(twin) as twins, {kept} from runs group by {names}, m, r), "
        f"states as (select *{_before_it(names) if group.is_histogram else ''} from minutes), "
        f"sent as (select {names}, m, r, {columns} from states) "
        f"select {names}, nullif(r, 0) as r, m / 60 as h, {_packed('m % 60')} as m, "
        f"{', '.join(f'{_packed(name)} as {name}' for name in sent)} "
        # neighbors alike: the answer compresses better
        f"from sent group by {names}, r, m / 60 order by {names}, r"
    )


_SCALAR_LAGS = ("ms", "started", "v")
_HISTOGRAM_LAGS = ("ms", "started", "s", "b")
_SCALAR_STATES = (
    "min(v) as lo, max(v) as hi, sum(case when twin = 0 then v else 0 end) as total, "
    "first_value(v order by ms) as f, last_value(v order by ms) as l"
)
_HISTOGRAM_STATES = (
    "first_value(s order by ms) as fs, last_value(s order by ms) as s, "
    "first_value(b order by ms) as fb, last_value(b order by ms) as b"
)
_SENT = {
    "t0": "t0 - m * 60000",
    "t1": "nullif(t1, t0) - m * 60000",
    "n": "n",
    "twins": "nullif(twins, 0)",
}
_SCALAR_SENT = {
    "lo": "lo",
    "hi": "nullif(hi, lo)",
    "total": "case when hi <> lo and wire_kind = 'gauge' then total end",
    "f": "nullif(f, lo)",
    "l": "nullif(l, hi)",
}


def _histogram_sent(group: Group) -> dict[str, str]:
    """Buckets as what they grew by: since the minute before (`fb`), and within the minute (`b`)."""
    buckets = range(1, group.edges + 2)
    since = ", ".join(f"fb[{i}] - coalesce(before[{i}], 0)" for i in buckets)
    within = ", ".join(f"b[{i}] - fb[{i}]" for i in buckets)
    own = "1, cast(cardinality(b) as bigint)"  # a family may have fewer buckets than the group
    return {
        "fs": "fs",
        "s": "nullif(s, fs)",
        "fb": f"array_slice(make_array({since}), {own})",
        "b": f"case when b <> fb then array_slice(make_array({within}), {own}) end",
    }


def _before_it(names: str) -> str:
    return f", lag(b) over (partition by {names}, r, m / 60 order by m) as before"


def _packed(column: str) -> str:
    """The column of a series' minutes as one list; nothing where all of it is null."""
    return f"case when count({column}) > 0 then array_agg({column} order by m) end"


def _dropped(group: Group) -> str:
    """The condition that a new run begins at a point."""
    is_other = f"abs(started - previous_started) > {SAME_START.total_seconds():g}"
    if not group.is_histogram:
        counts = "wire_kind = 'counter'"
        is_stated = f"({counts} or metric_name = {literal(PROCESS_START)}) and {is_other}"
        return f"{counts} and v < previous_v or coalesce({is_stated}, false)"
    buckets = [f"b[{i}] < previous_b[{i}]" for i in range(1, group.edges + 2)]
    parts = ("s < previous_s", is_other, *buckets)
    return " or ".join(f"coalesce({time_range}, false)" for time_range in parts)


def _with_start(stream: Stream, group: Group) -> str:
    """The points of a group, and with each when the process `started` that answered that scrape."""
    starts = _points(stream, Group((PROCESS_START,), ()))
    result = f"select instance, ms, min(v) as started from ({starts}) as told group by instance, ms"
    return (
        f"select own.*, starts.started from ({_points(stream, group)}) as own left join ({result}) "
        "as starts on own.instance = starts.instance and own.ms = starts.ms"
    )


def _points(stream: Stream, group: Group) -> str:
    """The points of a group under short names, markers of staleness left out."""
    fixed = stream.columns.fixed
    chosen = {name: fixed[name] for name in _IDENTITY}
    chosen |= {name: stream.columns.labels[name] for name in group.labels}
    if group.has_bounds:
        chosen["bounds"] = _bounds_text(stream.columns)
    chosen["ms"] = _ms(fixed["ts"])
    if group.is_histogram:
        chosen |= {"s": fixed["sum"], "b": fixed["counts"]}
        shape = f"metric_type = 'histogram' and {_size(fixed['counts'])} > 0"
    else:
        chosen["v"] = fixed["value"]
        shape = f"metric_type in ('gauge', 'sum') and {fixed['value']} is not null"
    names = ", ".join(f"{expression} as {quoted(name)}" for name, expression in chosen.items())
    return (
        f"select {names} from {quoted(stream.name)} where {shape} and {fixed['flags']} = 0 "
        f"and metric_name in ({literals(group.metrics)}) and {_within(stream)}"
    )


def _within(stream: Stream) -> str:
    """Sampled within the range, in whole milliseconds; never a literal of a time."""
    ts, time_range = _ms(stream.columns.fixed["ts"]), stream.time_range
    first, last = (
        -(-microseconds(moment) // 1000) for moment in (time_range.start, time_range.end)
    )
    return f"{ts} >= {first} and {ts} < {last}"


def _ms(time: str) -> str:
    return f"cast(round(date_part('epoch', {time}) * 1000) as bigint)"


def _origin_minute(time_range: TimeRange) -> int:
    return microseconds(time_range.start) // 60_000_000


def _bounds_text(columns: StreamColumns) -> str:
    return f"array_to_string({columns.fixed['bounds']}, ',')"


def _size(expression: str) -> str:
    return f"cardinality({expression})"


def label_names(columns: StreamColumns, row: Mapping[str, int]) -> tuple[str, ...]:
    """The labels that a family of the survey has, by its counts `l0` …."""
    return tuple(name for index, name in enumerate(columns.labels) if row.get(f"l{index}"))
