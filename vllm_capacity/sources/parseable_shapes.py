"""The shapes of Parseable's answers, against which every answer is checked on ingestion.

Rows stay dictionaries with the requested columns; others are left out. DataFusion omits the keys of
nulls, so a nullable column may be absent.

Also unpacks the downsampling query's answer, one row per series and hour, to one row per minute.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from types import GenericAlias
from typing import Annotated, Any, Final, Literal, NotRequired, TypedDict

import msgspec
import numpy as np
import polars as pl

from vllm_capacity.errors import SourceError
from vllm_capacity.sources.parseable_queries import Group

Rows = list[dict[str, Any]]
# Times in milliseconds are multiplied by a thousand later, in 64 bits.
Integer = Annotated[int, msgspec.Meta(ge=-(2**53), le=2**53)]
_Hours = Annotated[int, msgspec.Meta(ge=0, le=24 * 366 * 8000)]  # since the epoch
_Integers = NotRequired[list[Integer | None] | None]
_Floats = NotRequired[list[float | None] | None]


class About(msgspec.Struct):
    """The server's description of itself."""

    version: str


class Named(msgspec.Struct):
    """A stream in the list of streams."""

    name: str


class StreamColumn(msgspec.Struct):
    """A column of a stream, with its type in Arrow's JSON format."""

    name: str
    data_type: str | dict[str, Any]


class Schema(msgspec.Struct):
    """The columns of a stream."""

    fields: list[StreamColumn]


class Head(msgspec.Struct):
    """The first line of a streamed answer."""

    fields: list[str]


class Payload(msgspec.Struct):
    """How many recent points of a type there are, and how many of them have a value."""

    metric_type: str
    points: int
    filled: int


class InsertBatch(msgspec.Struct):
    """When a batch arrived, and its newest sample time."""

    arrived: str | None = None
    newest: str | None = None


class Instance(msgspec.Struct):
    """A target in the stream: the times of its last scrape attempt and last successful scrape."""

    instance: str | None = None
    tried: str | None = None
    scraped: str | None = None


class Info(msgspec.Struct, rename="camel"):
    """A stream's metadata apart from its columns."""

    latest_event_at: str | None = None


_Kind = Literal["counter", "gauge", "histogram"]
_SCALARS: Final = {
    "m": list[Integer],
    "t0": list[Integer],
    "n": list[Integer],
    **dict.fromkeys(("t1", "twins"), _Integers),
    **dict.fromkeys(("lo", "hi", "total", "f", "l"), _Floats),
}
_HISTOGRAMS: Final = {
    "m": list[Integer],
    "t0": list[Integer],
    "n": list[Integer],
    "fb": list[list[Integer]],
    **dict.fromkeys(("t1", "twins"), _Integers),
    **dict.fromkeys(("fs", "s"), _Floats),
    "b": NotRequired[list[list[Integer] | None] | None],
}


def survey(labels: int) -> type[Rows]:
    """The answer to `parseable_queries.survey` on a stream with that many labels."""
    return _rows(
        {
            "metric_name": str,
            "wire_kind": _Kind,
            "points": Integer,
            "edges": NotRequired[Integer | None],
            **dict.fromkeys(("lowest_bounds", "highest_bounds"), NotRequired[str | None]),
            **{f"l{index}": NotRequired[Integer | None] for index in range(labels)},
        }
    )


def minutes(group: Group) -> type[Rows]:
    """The answer to `parseable_queries.downsampled`: lists with one element per minute."""
    packed = _HISTOGRAMS if group.is_histogram else _SCALARS
    return _rows({**_identity(group), "r": NotRequired[Integer | None], "h": _Hours, **packed})


def points(group: Group) -> type[Rows]:
    """The answer to `parseable_queries.whole`: one row per point."""
    number = NotRequired[float | None]
    value = {"s": number, "b": list[Integer]} if group.is_histogram else {"v": number}
    return _rows({**_identity(group), "ms": Integer, **value})


def _rows(columns: Mapping[str, Any]) -> type[Rows]:
    made: Any = TypedDict  # its columns are known only at run time
    rows: type[Rows] = GenericAlias(list, (made("Row", dict(columns)),))  # type: ignore[assignment]
    return rows


def bounds_of(text: str | None) -> tuple[float, ...]:
    """A histogram's bounds, parsed from text; empty for none. SourceError if they do not ascend."""
    try:
        bounds = tuple(float(edge) for edge in (text or "").split(",") if edge)
    except ValueError:
        bounds = (math.nan,)
    is_ascending = all(before < after for before, after in pairwise(bounds))
    if not is_ascending or not all(map(math.isfinite, bounds)):
        raise SourceError(f"Parseable returned {text!r} as histogram bounds.")
    return bounds


def require_even(lists: Iterable[Sequence[object] | None]) -> None:
    """SourceError unless all lists of a row, apart from None, have the same length."""
    if len({len(each) for each in lists if each is not None}) > 1:
        raise SourceError("Unexpected answer from Parseable: the lists in a row differ in length.")


def _identity(group: Group) -> dict[str, Any]:
    texts = {name: NotRequired[str | None] for name in group.identity}
    wanted = {"metric_name": Literal[group.metrics], "wire_kind": _Kind}
    return {**texts, **wanted, "instance": str, "job": str}


UP: Final = Group(("up",), ())
ATTEMPTS: Final = _rows(
    {**_identity(UP), "m": Integer, "at": list[Integer], "v": list[float | None]}
)
FINDING_COLUMNS: Final = (
    *("stale", "stale_ms", "stale_families", "late", "late_ms", "lag_seconds"),
    *("ahead", "ahead_ms", "lead_seconds", "unreadable", "unreadable_ms"),
)
FINDINGS: Final = _rows(
    {
        "instance": NotRequired[str | None],
        **dict.fromkeys(FINDING_COLUMNS, NotRequired[Integer | None]),
    }
)
SPANS: Final = _rows(
    {
        "start_ms": Integer,
        **dict.fromkeys(("trace_id", "request_id", "service"), NotRequired[str | None]),
        **dict.fromkeys(
            (
                *("e2e_seconds", "ttft_seconds", "queue_seconds", "prefill_seconds"),
                *("decode_seconds", "prompt_tokens", "completion_tokens"),
            ),
            NotRequired[float | None],
        ),
    }
)


# The columns of a minute, apart from those that identify the series.
MINUTES: dict[str, Any] = {
    **{name: pl.Int64 for name in ("m", "r", "t0", "t1", "n", "twins")},
    **{name: pl.Float64 for name in ("lo", "hi", "total", "f", "l")},
}
MINUTE_HISTOGRAMS: dict[str, Any] = {
    **{name: pl.Int64 for name in ("m", "r", "t0", "t1", "n", "twins")},
    **{name: pl.Float64 for name in ("fs", "s")},
    **{name: pl.List(pl.Int64) for name in ("fb", "b")},
}


def unpacked(rows: Sequence[dict[str, Any]], group: Group) -> pl.DataFrame:
    """The answer to a downsampling query: one row per minute and run, in the columns above.

    Buckets, which the answer has as increases, are states again. Empty for an empty answer.
    """
    schema = MINUTE_HISTOGRAMS if group.is_histogram else MINUTES
    texts = {name: pl.String for name in group.identity}
    lists = {name: pl.List(sort) for name, sort in schema.items() if name != "r"}
    for row in rows:
        require_even(row.get(name) for name in lists)
    if group.is_histogram:
        rows = [{**row, **_states(row)} for row in rows]
    packed = pl.DataFrame(rows, schema={**texts, "r": pl.Int64, "h": pl.Int64, **lists})
    size = pl.col("m").list.len()
    nothing = [
        pl.coalesce(name, pl.lit(None, sort).repeat_by(size)).alias(name)
        for name, sort in schema.items()
        if name not in ("r", "m")
    ]
    minutes = packed.with_columns(nothing).explode(list(lists), empty_as_null=False)
    return minutes.with_columns(m=pl.col("h") * 60 + pl.col("m")).select(*texts, *schema)


def _states(row: dict[str, Any]) -> dict[str, Any]:
    """The first and last bucket counts of each minute of a row, from their increases."""
    require_even([*row["fb"], *(row.get("b") or [])])
    since = np.asarray(row["fb"], np.int64)
    grown = row.get("b") or [None] * len(since)
    growth = np.asarray([np.zeros_like(since[0]) if g is None else g for g in grown], np.int64)
    last = np.cumsum(since + growth, axis=0)
    return {"fb": (last - growth).tolist(), "b": last.tolist()}
