"""Parseable's columns: what they are called in which version, and the SQL that reads them.

The only SQL of the package that is composed, because the columns differ by version and by what was
ingested. Identifiers come from the stream's own schema and are quoted; literals are escaped. The
expressions run as they are on DataFusion (over HTTP) and on DuckDB (over the files).

Names moved: attributes carried the prefix `metric_` from 2.5.0 to 2.5.8; a value whose type
disagreed with its column went to a sibling named after the type (`data_point_bucket_counts_list`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from vllm_capacity.errors import SourceError
from vllm_capacity.sources.otlp import is_label

_NUMBER, _LIST, _EMPTY_LIST, _TIME, _TEXT = "number", "list", "empty list", "time", "text"
# Parseable's own columns (every release that was read); whatever else is there is an attribute.
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


@dataclass(frozen=True)
class StreamColumns:
    """How to read one stream: SQL expressions for the columns of `points`, and for each label."""

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
    """The sort of column an Arrow type of `/schema` makes: number, list, empty list, time, text."""
    if isinstance(data_type, Mapping):
        if "List" in data_type:
            item = data_type["List"]
            is_empty = isinstance(item, Mapping) and item.get("data_type") == "Null"
            return _EMPTY_LIST if is_empty else _LIST
        return _TIME if "Timestamp" in data_type else _TEXT
    return _TEXT if data_type in ("Utf8", "LargeUtf8", "Utf8View") else _NUMBER


def duckdb_type(data_type: str) -> str:
    """The sort of column a DuckDB type makes, in the words of `arrow_type`."""
    bare = data_type.replace('"', "")
    if bare.endswith("[]"):
        return _EMPTY_LIST if bare == "NULL[]" else _LIST
    if bare.startswith("TIMESTAMP"):
        return _TIME
    return _TEXT if bare == "VARCHAR" else _NUMBER


def resolve(stream: str, types: Mapping[str, str]) -> StreamColumns:
    """How to read a stream with these columns (name → sort).

    SourceError where it is empty, or no stream of OTel metrics.
    """
    if not types:
        raise SourceError(
            f"Stream {stream!r} is empty: nothing has come in yet. `vllm-capacity doctor` names "
            "the first broken link between vLLM and Parseable."
        )
    missing = [name for name in _REQUIRED if name not in types]
    if missing:
        raise SourceError(
            f"Stream {stream!r} has no column {', '.join(missing)}: it does not hold OTel metrics "
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
    """The select list that turns rows of the store's files into `points`."""
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
    """The columns each attribute may be in, today's name first."""
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
