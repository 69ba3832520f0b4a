"""Reads vLLM's request spans from Parseable's traces stream: where each request's time went.

There is one span, `llm_request`, per finished request; its attributes give per request what
histograms only aggregate. Startup spans have other names and are left out. Integer span attributes
are text in Parseable. A span names neither engine nor model, and its resource's instance is an id
internal to the process, so spans can be matched to a window's engines only by time.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from datetime import timedelta
from typing import Any, Final

import duckdb
import polars as pl

from vllm_capacity.errors import InputError, SourceError
from vllm_capacity.sources import parseable_shapes as shapes
from vllm_capacity.sources.answers import LATE, SKEW
from vllm_capacity.sources.otlp import read
from vllm_capacity.sources.parquet import Store, stream_files
from vllm_capacity.sources.parseable import Parseable
from vllm_capacity.sources.parseable_queries import duckdb_type, quoted
from vllm_capacity.telemetry.rows import UTC_MICROSECONDS, microseconds
from vllm_capacity.timerange import TimeRange, iso

TRACES_SCHEMA: Final[dict[str, Any]] = {
    "start": UTC_MICROSECONDS,
    "trace_id": pl.String,
    "request_id": pl.String,
    "service": pl.String,
    "e2e_seconds": pl.Float64,
    "ttft_seconds": pl.Float64,
    "queue_seconds": pl.Float64,
    "prefill_seconds": pl.Float64,
    "decode_seconds": pl.Float64,
    "other_seconds": pl.Float64,  # e2e minus these three: tokenizing, waiting for a running step
    "prompt_tokens": pl.Int64,
    "completion_tokens": pl.Int64,
}
PHASES: Final = ("queue_seconds", "prefill_seconds", "decode_seconds", "other_seconds")
_TEXTS: Final = {
    "trace_id": "span_trace_id",
    "request_id": "gen_ai.request.id",
    "service": "service.name",
}
_NUMBERS: Final = {
    "e2e_seconds": "gen_ai.latency.e2e",
    "ttft_seconds": "gen_ai.latency.time_to_first_token",
    "queue_seconds": "gen_ai.latency.time_in_queue",
    "prefill_seconds": "gen_ai.latency.time_in_model_prefill",
    "decode_seconds": "gen_ai.latency.time_in_model_decode",
    "prompt_tokens": "gen_ai.usage.prompt_tokens",
    "completion_tokens": "gen_ai.usage.completion_tokens",
}
_START = "span_start_time_unix_nano"
_SPAN = "llm_request"


def traces_from_server(
    server: Parseable, stream: str, time_range: TimeRange, *, late: timedelta = LATE
) -> pl.DataFrame:
    """The requests that began in the range, slowest first, in the columns of `TRACES_SCHEMA`."""
    sql = _query(quoted(stream), server.columns(stream), stream, time_range)
    # A span is sent when its request is finished, and later still if the queue was cut off.
    arrivals = TimeRange(time_range.start - SKEW, time_range.end + late)
    return _traces(pl.DataFrame(server.query(sql, arrivals, shapes.SPANS), schema=_ANSWER))


def traces_from_files(
    store: Store, stream: str, time_range: TimeRange | None = None, *, late: timedelta = LATE
) -> pl.DataFrame:
    """The same as `traces_from_server`, from the store's files; without a range, all requests."""
    files = stream_files(store, stream, time_range, late=late)
    with closing(duckdb.connect()) as connection:
        store.prepare(connection)
        stored = connection.read_parquet(files, union_by_name=True, hive_partitioning=False)
        sorts = [duckdb_type(str(kind)) for kind in stored.types]
        stored.to_view("spans")
        columns = dict(zip(stored.columns, sorts, strict=True))
        answer = read(connection, _query("spans", columns, stream, time_range))
    return _traces(pl.DataFrame(answer, schema_overrides=_ANSWER))


_ANSWER: Final[dict[str, Any]] = {
    "start_ms": pl.Int64,
    **dict.fromkeys(_TEXTS, pl.String),
    **dict.fromkeys(_NUMBERS, pl.Float64),
}


def _query(
    table: str, columns: Mapping[str, str], stream: str, time_range: TimeRange | None
) -> str:
    """The query for one row per request span; SourceError if the stream has no vLLM spans."""
    if "span_name" not in columns or _NUMBERS["e2e_seconds"] not in columns:
        raise SourceError(
            f"Stream {stream!r} has no vLLM request spans. Start vLLM with "
            "--otlp-traces-endpoint, and send its spans with X-P-Log-Source: otel-traces."
        )
    start = f"cast(round(date_part('epoch', {_START}) * 1000) as bigint)"
    chosen = [f"{start} as start_ms"]
    for name, column in _TEXTS.items():
        chosen.append(
            f"{quoted(column) if column in columns else 'cast(null as varchar)'} as {name}"
        )
    for name, column in _NUMBERS.items():
        value = quoted(column) if column in columns else "null"
        chosen.append(f"try_cast({value} as double) as {name}")
    condition = f"span_name = '{_SPAN}'"
    if time_range is not None:
        first, last = (-(-microseconds(m) // 1000) for m in (time_range.start, time_range.end))
        condition += f" and {start} >= {first} and {start} < {last}"
    return f"select {', '.join(chosen)} from {table} where {condition}"


def _traces(answer: pl.DataFrame) -> pl.DataFrame:
    """The answer in `TRACES_SCHEMA`, slowest first; a span sent twice counts once."""
    phases = pl.col("queue_seconds") + pl.col("prefill_seconds") + pl.col("decode_seconds")
    start = pl.from_epoch(pl.col("start_ms") * 1000, time_unit="us").dt.replace_time_zone("UTC")
    return (
        answer.with_columns(start=start, other_seconds=pl.col("e2e_seconds") - phases)
        .unique(["trace_id", "request_id", "start_ms"], keep="first")
        .select(pl.col(name).cast(dtype) for name, dtype in TRACES_SCHEMA.items())
        .sort("e2e_seconds", "start", descending=[True, False], nulls_last=True)
    )


def where_time_went(traces: pl.DataFrame, *, slowest: int) -> pl.DataFrame:
    """Each phase's share of the time of all requests, and of the slowest ones.

    One row per phase: phase, all_ratio, slowest_ratio, 0 to 1. Null if nothing was traced.
    """
    rows = []
    for phase in PHASES:
        shares = [_share(requests, phase) for requests in (traces, traces.head(slowest))]
        rows.append((phase.removesuffix("_seconds"), *shares))
    schema = {"phase": pl.String, "all_ratio": pl.Float64, "slowest_ratio": pl.Float64}
    return pl.DataFrame(rows, schema=schema, orient="row")


def _share(traces: pl.DataFrame, phase: str) -> float | None:
    known = traces.drop_nulls(["e2e_seconds", phase])
    total, spent = (float(known.get_column(name).sum()) for name in ("e2e_seconds", phase))
    return spent / total if total else None


def with_regimes(traces: pl.DataFrame, regimes: pl.DataFrame) -> pl.DataFrame:
    """The traces with `regime`: that of the window's engines when the request began.

    `regimes` has start, end, engine, regime. If engines were in different regimes, all are listed,
    since a span does not name its engine; null outside the window. InputError if all requests are
    outside.
    """
    met = (
        traces.select("trace_id", "request_id", "start")
        .join_where(
            regimes.select("regime", begun="start", over="end"),
            pl.col("start") >= pl.col("begun"),
            pl.col("start") < pl.col("over"),
        )
        .group_by("trace_id", "request_id", "start")
        .agg(regime=pl.col("regime").unique().sort().str.join(" / "))
    )
    if met.is_empty() and not traces.is_empty():
        raise InputError(
            f"None of the {traces.height} traced requests began within the window: they began from "
            f"{_moment(traces, 'min')} to {_moment(traces, 'max')}."
        )
    keys = ["trace_id", "request_id", "start"]
    return traces.join(met, on=keys, how="left", nulls_equal=True, maintain_order="left")


def _moment(traces: pl.DataFrame, which: str) -> str:
    start = pl.col("start")
    moment = traces.select(start.min() if which == "min" else start.max()).item()
    return iso(moment)
