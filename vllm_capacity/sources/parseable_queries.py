"""The SQL sent to Parseable: a survey, all points, or points downsampled to minutes on the server.

Downsampling keeps what a rollup keeps, per series, minute and run: first and last state, n, and
the minimum, maximum and sum of a gauge. A run ends when a counter drops (for a histogram: its sum
or any bucket), and when another process answers, since its counter may have passed the old value
within the minute. Window functions order points by sample time; a point sent twice counts once.

Values that follow from others are not sent: a last state equal to the first, a maximum equal to
the minimum, the sum of a constant, a series' labels more than once per hour; of buckets only the
increases. Times are milliseconds, Parseable's resolution, computed from the epoch, because
Parseable treats a time literal, compared with any column, as a bound on arrival.

Also here: the names of Parseable's columns by version, and the SQL that reads them.

This is the package's only composed SQL, because columns depend on the version and on the ingested
data. Identifiers come from the stream's own schema and are quoted; literals are escaped. The
expressions run unchanged on DataFusion (over HTTP) and on DuckDB (over the files).

Names have changed: attributes had the prefix `metric_` from 2.5.0 to 2.5.8; a value whose type did
not match its column went to a second column named after the type (`data_point_bucket_counts_list`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from msgspec import Struct

from vllm_capacity.errors import NoTelemetryError, SourceError
from vllm_capacity.sources.otlp import is_label
from vllm_capacity.telemetry.processes import PROCESS_START, SAME_START
from vllm_capacity.telemetry.rows import microseconds
from vllm_capacity.timerange import TimeRange

_NUMBER, _LIST, _EMPTY_LIST, _TIME, _TEXT = "number", "list", "empty list", "time", "text"
# Parseable's own columns, in all known releases; every other column is an attribute.
_FIXED = frozenset(
    {
        "metric_name",
        "metric_description",
        "metric_unit",
        "metric_type",
        "time_unix_nano",
        "start_time_unix_nano",
        "is_monotonic",
        "aggregation_temporality",
        "aggregation_temporality_description",
        "min",
        "max",
        "other_attributes",
        "positive_offset",
        "positive_bucket_count",
        "negative_offset",
        "negative_bucket_count",
    }
)
_FIXED_PREFIXES = ("p_", "data_point_", "__", "exemplar", "scope_", "resource_")
_REQUIRED = ("metric_name", "metric_type", "time_unix_nano", "p_timestamp")
_OLD_PREFIX = "metric_"
_KINDS = (
    "case metric_type when 'histogram' then 'histogram' when 'sum' then "
    "case when {monotonic} then 'counter' else 'gauge' end else 'gauge' end"
)


class StreamColumns(Struct, frozen=True):
    """How to read a stream: SQL expressions for the columns of `points` and for each label."""

    fixed: Mapping[str, str]
    labels: Mapping[str, str]


def quoted(identifier: str) -> str:
    """The identifier in double quotes, safe in SQL."""
    return '"' + identifier.replace('"', '""') + '"'


def literal(text: str) -> str:
    """The text as an SQL string literal."""
    return "'" + text.replace("'", "''") + "'"


def literals(texts: Iterable[str]) -> str:
    """The texts as a list of literals for `in (…)`."""
    return ", ".join(literal(text) for text in texts)


def arrow_type(data_type: object) -> str:
    """The column type for an Arrow type in `/schema`: number, list, empty list, time or text."""
    if isinstance(data_type, Mapping):
        if "List" in data_type:
            item = data_type["List"]
            is_empty = isinstance(item, Mapping) and item.get("data_type") == "Null"
            return _EMPTY_LIST if is_empty else _LIST
        return _TIME if "Timestamp" in data_type else _TEXT
    return _TEXT if data_type in ("Utf8", "LargeUtf8", "Utf8View") else _NUMBER


def duckdb_type(data_type: str) -> str:
    """The column type for a DuckDB type, one of those of `arrow_type`."""
    bare = data_type.replace('"', "")
    if bare.endswith("[]"):
        return _EMPTY_LIST if bare == "NULL[]" else _LIST
    if bare.startswith("TIMESTAMP"):
        return _TIME
    return _TEXT if bare == "VARCHAR" else _NUMBER


def resolve(stream: str, types: Mapping[str, str]) -> StreamColumns:
    """How to read a stream with these columns (name → type).

    NoTelemetryError if it is empty, SourceError if it is not a stream of OTel metrics.
    """
    if not types:
        raise NoTelemetryError(
            f"Stream {stream!r} is empty: nothing has come in yet. `vllm-capacity doctor` names "
            "the first broken link between vLLM and Parseable."
        )
    missing = [name for name in _REQUIRED if name not in types]
    if missing:
        raise SourceError(
            f"Stream {stream!r} has no column {', '.join(missing)}: it has no OTel metrics "
            "as Parseable 2.2 or later stores them. Is it a stream of logs or traces? Does the "
            "collector send X-P-Log-Source: otel-metrics?"
        )
    attributes = _attributes(types)
    labels = {
        name: _coalesced(columns) for name, columns in sorted(attributes.items()) if is_label(name)
    }
    monotonic = "is_monotonic" if "is_monotonic" in types else "false"
    fixed = {
        "metric_name": "metric_name",
        "wire_kind": _KINDS.format(monotonic=monotonic),
        "instance": _first_of(attributes, ("service.instance.id", "instance", "service.name")),
        "job": _first_of(attributes, ("service.name", "job")),
        "bounds": _list(types, "data_point_explicit_bounds"),
        "ts": _time(types, "time_unix_nano"),
        "arrived": _time(types, "p_timestamp"),
        "started": _time(types, "start_time_unix_nano"),
        "value": _number(types, "data_point_value"),
        "count": _number(types, "data_point_count"),
        "sum": _number(types, "data_point_sum"),
        "counts": _list(types, "data_point_bucket_counts"),
        "flags": f"coalesce({_number(types, 'data_point_flags')}, 0)",
    }
    return StreamColumns(fixed, labels)


def duckdb_projection(columns: StreamColumns) -> str:
    """The select list that converts rows of the store's files to `points`."""
    result = ("metric_name", "wire_kind", "instance", "job", "bounds")
    identity = [columns.fixed[name] for name in result]
    chosen = {
        "identity": f"hash({', '.join([*identity, *columns.labels.values()])})",
        **columns.fixed,
    }
    chosen["counts"] = f"cast({chosen['counts']} as double[])"
    chosen["bounds"] = f"cast({chosen['bounds']} as double[])"
    chosen |= {quoted(name): expression for name, expression in columns.labels.items()}
    return ", ".join(f"{expression} as {name}" for name, expression in chosen.items())


def _attributes(types: Mapping[str, str]) -> dict[str, list[str]]:
    """The columns that each attribute may be in, current name first."""
    found: dict[str, list[str]] = {}
    for column, sort in types.items():
        if _is_fixed(column) or sort != _TEXT:
            continue
        name = column.removeprefix(_OLD_PREFIX)
        found.setdefault(name, []).append(column)
        found[name].sort(key=len)
    return found


def _is_fixed(column: str) -> bool:
    return column in _FIXED or column.startswith(_FIXED_PREFIXES)


def _coalesced(columns: Iterable[str]) -> str:
    names = [f"nullif({quoted(column)}, '')" for column in columns]
    return names[0] if len(names) == 1 else f"coalesce({', '.join(names)})"


def _first_of(attributes: Mapping[str, list[str]], names: Iterable[str]) -> str:
    columns = [column for name in names for column in attributes.get(name, [])]
    return f"coalesce({', '.join([*map(quoted, columns), literal('')])})"


def _number(types: Mapping[str, str], name: str) -> str:
    return quoted(name) if types.get(name) == _NUMBER else "cast(null as double)"


def _list(types: Mapping[str, str], name: str) -> str:
    usable = [quoted(n) for n in (name, f"{name}_list") if types.get(n) == _LIST]
    if not usable:
        return "null"
    return usable[0] if len(usable) == 1 else f"coalesce({', '.join(usable)})"


def _time(types: Mapping[str, str], name: str) -> str:
    sort = types.get(name)
    if sort == _TIME:
        return quoted(name)
    return f"cast({quoted(name)} as timestamp)" if sort == _TEXT else "cast(null as timestamp)"


_IDENTITY = ("metric_name", "wire_kind", "instance", "job")
_KNOWN_KINDS = "metric_type in ('gauge', 'sum', 'histogram')"
LATE_SECONDS = 60  # a batch is normally sent within ten seconds
AHEAD_SECONDS = 5  # tolerance between clocks; nothing arrives before its sample


class Group(Struct, frozen=True):
    """Families queried together: they have the same shape, and `labels` has the labels of all.

    `has_bounds`: bounds differ between the series of a family and must be sent; `edges` is the
    maximum number of bounds.
    """

    metrics: tuple[str, ...]
    labels: tuple[str, ...]
    is_histogram: bool = False
    has_bounds: bool = False
    edges: int = 0

    @property
    def identity(self) -> tuple[str, ...]:
        """The columns that identify its series."""
        return (*_IDENTITY, *self.labels, *(("bounds",) if self.has_bounds else ()))


class Stream(Struct, frozen=True):
    """A stream, how to read its columns, and the time range to query."""

    name: str
    columns: StreamColumns
    time_range: TimeRange

    def during(self, time_range: TimeRange) -> Stream:
        """The same stream with another time range."""
        return Stream(self.name, self.columns, time_range)


def survey(stream: Stream) -> str:
    """Query for the families: kind, points, points with each label (`l0` …), bounds as text.

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
        f"where {_KNOWN_KINDS} and {stream.columns.fixed['flags']} = 0 and {_within(stream)} "
        "group by 1, 2 order by 1, 2"
    )


def findings(stream: Stream, metrics: Sequence[str]) -> str:
    """Query for the quality report: points stale, late, unreadable, or sampled after arrival.

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
        f"where {_KNOWN_KINDS} and metric_name in ({literals(metrics)}) and {_within(stream)} "
        "group by 1 order by 1"
    )


def whole(stream: Stream, group: Group) -> str:
    """Query for every point of the group. grain: one row per point."""
    payload = "s, b" if group.is_histogram else "v"
    names = ", ".join(quoted(name) for name in group.identity)
    return f"select {names}, ms, {payload} from ({_points(stream, group)}) as points"


def attempts(stream: Stream) -> str:
    """Query for all scrape attempts. grain: one row per (instance, minute), lists in time order."""
    group = Group(("up",), ())
    names = ", ".join(group.identity)
    return (
        f"select {names}, ms / 60000 as m, array_agg(ms % 60000 order by ms) as at, "
        f"array_agg(v order by ms) as v from ({_points(stream, group)}) as points "
        f"group by {names}, ms / 60000"
    )


def downsampled(stream: Stream, group: Group, *, by_minute: bool = True) -> str:
    """Query for the group, downsampled. grain: one row per (series, run) and hour, or whole range.

    Its lists have one element per minute, in order; `parseable_shapes.unpacked` unpacks them.
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
        # similar neighbors: the answer compresses better
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
    """Buckets as increases: since the previous minute (`fb`), and within the minute (`b`)."""
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
    """A column of a series' minutes as one list; null if all values are null."""
    return f"case when count({column}) > 0 then array_agg({column} order by m) end"


def _dropped(group: Group) -> str:
    """The condition for a new run to begin at a point."""
    is_other = f"abs(started - previous_started) > {SAME_START.total_seconds():g}"
    if not group.is_histogram:
        counts = "wire_kind = 'counter'"
        is_stated = f"({counts} or metric_name = {literal(PROCESS_START)}) and {is_other}"
        return f"{counts} and v < previous_v or coalesce({is_stated}, false)"
    buckets = [f"b[{i}] < previous_b[{i}]" for i in range(1, group.edges + 2)]
    parts = ("s < previous_s", is_other, *buckets)
    return " or ".join(f"coalesce({condition}, false)" for condition in parts)


def _with_start(stream: Stream, group: Group) -> str:
    """The points of a group, each with the start time (`started`) of the process that answered."""
    starts = _points(stream, Group((PROCESS_START,), ()))
    result = (
        f"select instance, ms, min(v) as started from ({starts}) as points group by instance, ms"
    )
    return (
        f"select own.*, starts.started from ({_points(stream, group)}) as own left join ({result}) "
        "as starts on own.instance = starts.instance and own.ms = starts.ms"
    )


def _points(stream: Stream, group: Group) -> str:
    """The points of a group under short column names, without staleness markers."""
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
    """The condition for a sample time within the range, in milliseconds, without time literals."""
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
    """The labels of a family in the survey, according to its counts `l0` …."""
    return tuple(name for index, name in enumerate(columns.labels) if row.get(f"l{index}"))
