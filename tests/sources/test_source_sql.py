"""Every query of sources/sql on a few rows, so that a failure names the query.

What DuckDB runs here it runs in the product; the queries for Parseable run in DataFusion, which is
Parseable's own engine. Times are seconds after T0.
"""

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from importlib.resources import files

import duckdb
import pyarrow as pa
import pytest
from datafusion import SessionContext

from vllm_capacity.sources.otlp import query_text

T0 = datetime(2026, 11, 24, 8)  # naive UTC, as in the store
TOKENS, PROMPT = "vllm:generation_tokens_total", "vllm:prompt_tokens_total"
REQUESTS, RUNNING = "vllm:request_success_total", "vllm:num_requests_running"
WAITING, KV = "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc"
PREEMPTIONS, E2E = "vllm:num_preemptions_total", "vllm:e2e_request_latency_seconds"


@dataclass(frozen=True)
class Case:
    """Rows in, rows out: `columns` of the answer are compared, in its order."""

    query: str
    title: str
    columns: str
    expected: list[tuple]
    rows: list[dict]
    params: dict = field(default_factory=dict)
    children: list[tuple] = field(default_factory=list)


def at(seconds):
    return T0 + timedelta(seconds=seconds)


def plain(value):
    """A time as seconds after T0; floats as they are written here."""
    if isinstance(value, datetime):
        return (value - T0).total_seconds()
    return round(value, 9) if isinstance(value, float) else value


def described(case):
    return f"{case.query}: {case.title}"


# Points as both OTLP readers return them.

POINTS = {
    "identity": "ubigint",
    "metric_name": "text",
    "wire_kind": "text",
    "instance": "text",
    "job": "text",
    "bounds": "double[]",
    "engine": "text",
    "ts": "timestamp",
    "arrived": "timestamp",
    "started": "timestamp",
    "value": "double",
    "count": "double",
    "sum": "double",
    "counts": "double[]",
    "flags": "int",
}
CHILDREN = "identity ubigint, child uinteger, scale double"
ASKED = {"since_seconds": (T0 - datetime(1970, 1, 1)).total_seconds()}
LIMITS = {**ASKED, "late_seconds": 60, "ahead_seconds": 5}


def point(identity, seconds, value=None, *, lag=1, started=None, **more):
    """A point of a counter, `lag` seconds on its way; `started` None: the collector set none."""
    row = {
        "identity": identity,
        "metric_name": TOKENS,
        "wire_kind": "counter",
        "instance": "a",
        "job": "vllm",
        "engine": "0",
        "ts": at(seconds),
        "arrived": at(seconds + lag),
        "started": datetime(1970, 1, 1) if started is None else at(started),
        "value": value,
        "flags": 0,
    }
    return row | more


def bucketed(identity, seconds, counts, **more):
    """A point of a histogram of one finite bound."""
    own = {"metric_name": E2E, "wire_kind": "histogram", "bounds": [1.0], "counts": counts}
    return point(identity, seconds) | own | {"sum": 2.5} | more


POINT_CASES = (
    Case(
        "points_children",
        "one row per identity, with its first point and the reported start",
        "identity metric_name engine first started",
        [(1, TOKENS, "0", 10, 5), (2, E2E, "0", 10, None)],
        [
            *(point(1, 20, 3, started=5), point(1, 10, 1, started=7)),
            *(bucketed(2, 10, [1, 0]), bucketed(2, 20, [2, 0])),
            point(3, 10, flags=1),
        ],
    ),
    Case(
        "points_samples",
        "values in the family's unit, a point sent twice twice, no marker and no lost value",
        "child ts value arrival",
        [
            (70, 10, 2000, 1_000_000 * 11),
            (70, 10, 2000, 1_000_000 * 12),
            (80, 10, 5, 1_000_000 * 11),
        ],
        [
            *(point(1, 10, 2), point(1, 10, 2, lag=2), point(2, 10, 5)),
            *(point(1, 20, flags=1), point(1, 30), bucketed(2, 40, [1, 0], value=1)),
            point(3, 10, 9),
        ],
        children=[(1, 70, 1000), (2, 80, 1)],
    ),
    Case(
        "points_samples",
        "a marker of staleness is none, though it holds a value",
        "ts value",
        [],
        [point(1, 10, 2, flags=1)],
        children=[(1, 70, 1)],
    ),
    Case(
        "points_histograms",
        "counts per bucket and their sum; one whose buckets were lost is left out",
        "child ts count sum counts arrival",
        [(70, 10, 3, 2.5, [1, 2], 1_000_000 * 11), (70, 20, 4, 2.5, [2, 2], 1_000_000 * 21)],
        [
            *(bucketed(1, 20, [2, 2]), bucketed(1, 10, [1, 2]), bucketed(1, 30, [1])),
            *(bucketed(1, 40, [], flags=1), bucketed(1, 50, [3, 3], flags=1)),
            *(point(1, 60, 1, counts=[1, 2], bounds=[1.0]), bucketed(2, 10, [1, 2])),
        ],
        children=[(1, 70, 1)],
    ),
    Case(
        "points_findings",
        "stale markers, also of families that are not read",
        "check instance metric_name ts count seconds",
        [("series", "a", TOKENS, 10, 2, None), ("series", "other", "go_threads", 10, 1, None)],
        [
            *(point(1, 10, flags=1), point(1, 20, flags=1), point(1, 0, 5)),
            point(1, -10, flags=1),
            point(9, 10, flags=1, instance="other", metric_name="go_threads"),
        ],
        LIMITS,
        children=[(1, 70, 1)],
    ),
    Case(
        "points_findings",
        "later than the limit, and only since the time that was asked for",
        "check instance job ts count seconds",
        [("late", "a", "vllm", 10, 2, 90.5), ("series", "a", "vllm", 40, 1, None)],
        [
            *(point(1, 10, 1, lag=61), point(1, 20, 2, lag=90.5), point(1, 30, 3, lag=60)),
            *(point(1, -10, 0, lag=500), point(2, 10, 1, lag=500)),
            point(1, 40, lag=500, flags=1),
        ],
        LIMITS,
        children=[(1, 70, 1)],
    ),
    Case(
        "points_findings",
        "a clock that is ahead of the store's",
        "check ts count seconds",
        [("clock", 10, 2, 7.5), ("series", 40, 1, None)],
        [
            *(point(1, 10, 1, lag=-6), point(1, 20, 2, lag=-7.5), point(1, 30, 3, lag=-5)),
            *(point(1, -10, 0, lag=-90), point(2, 10, 1, lag=-90)),
            point(1, 40, lag=-90, flags=1),
        ],
        LIMITS,
        children=[(1, 70, 1)],
    ),
    Case(
        "points_findings",
        "values that were lost on their way, per metric",
        "check metric_name ts count",
        [("coverage", E2E, 10, 2), ("coverage", TOKENS, 20, 1)],
        [
            *(point(1, 10, 1), point(1, 20), point(1, -10), point(9, 20)),
            *(bucketed(2, 10, None), bucketed(2, 20, [1]), bucketed(2, 30, [1, 1])),
        ],
        LIMITS,
        children=[(1, 70, 1), (2, 80, 1)],
    ),
)


@pytest.mark.parametrize("case", POINT_CASES, ids=described)
def test_query_over_points_gives_these_rows_of_those(case):
    with duckdb.connect(":memory:") as connection:
        columns = ", ".join(f"{name} {kind}" for name, kind in POINTS.items())
        connection.execute(f"create table points ({columns})")
        connection.execute(f"create table children ({CHILDREN})")
        for row in case.rows:
            marks = ", ".join("?" * len(POINTS))
            connection.execute(f"insert into points values ({marks})", [row.get(c) for c in POINTS])
        for child in case.children:
            connection.execute("insert into children values (?, ?, ?)", child)
        found = connection.sql(query_text(case.query), params=case.params or None)
        rows = found.select(*case.columns.split()).fetchall()
    since = case.columns.split().index("arrival") if "arrival" in case.columns else None
    result = [
        tuple(
            value - round(ASKED["since_seconds"] * 1e6) if i == since else plain(value)
            for i, value in enumerate(row)
        )
        for row in rows
    ]
    assert result == case.expected


# Parseable's stream.

METRICS = pa.schema(
    {
        "time_unix_nano": pa.timestamp("ms"),
        "metric_name": pa.string(),
        "service.instance.id": pa.string(),
        "model_name": pa.string(),
        "engine": pa.string(),
        "finished_reason": pa.string(),
        "data_point_value": pa.float64(),
        "data_point_flags": pa.float64(),
        "data_point_bucket_counts": pa.list_(pa.int64()),
        "data_point_explicit_bounds": pa.list_(pa.float64()),
    }
)


def kept(metric, seconds, value=None, *, target="a", engine="0", flags=0.0, **more):
    """A row of the stream."""
    row = {
        "time_unix_nano": at(seconds),
        "metric_name": metric,
        "service.instance.id": target,
        "model_name": "m",
        "engine": engine,
        "data_point_value": value,
        "data_point_flags": flags,
    }
    return row | more


def ended(seconds, value, reason="stop", **more):
    return kept(REQUESTS, seconds, value, finished_reason=reason, **more)


def states(*rows, target="a"):
    """Rows of a latency histogram with the bounds 1 and 2: (seconds, counts per bucket)."""
    return [
        kept(
            E2E,
            seconds,
            target=target,
            data_point_bucket_counts=counts,
            data_point_explicit_bounds=[1.0, 2.0],
        )
        for seconds, counts in rows
    ]


STREAM_CASES = (
    Case(
        "requests_per_minute",
        "growth from sample to sample, over a restart, by reason; a marker is no sample",
        "minute finished_reason requests",
        [(0, "abort", 1), (0, "stop", 5), (60, "stop", 3 + 4)],
        [
            *(ended(0, 10), ended(30, 15), ended(60, 3), ended(90, 7)),
            *(ended(0, 0, "abort"), ended(30, 1, "abort"), ended(45, 0, flags=1.0)),
        ],
    ),
    Case(
        "requests_per_minute",
        "a first sample is no growth, and targets are not taken for one another",
        "minute finished_reason requests",
        [(0, "stop", 2)],
        [ended(0, 10), ended(10, 500, target="b"), ended(20, 12), kept(TOKENS, 5, 1)],
    ),
    Case(
        "request_failures",
        "errors and aborts only",
        "minute finished_reason failures",
        [(0, "abort", 2), (0, "error", 1), (60, "error", 1)],
        [
            *(ended(0, 0, "error"), ended(30, 1, "error"), ended(60, 1, "error", flags=1.0)),
            *(ended(90, 2, "error"), ended(0, 3, "abort"), ended(30, 2, "abort")),
            *(ended(0, 0), ended(30, 9)),
        ],
    ),
    Case(
        "tokens_per_minute",
        "tokens, and their rate over the time that they took, added up over engines",
        "minute tokens_of tokens seconds tokens_per_second",
        [(0, "generation", 750, 50, 15), (0, "prompt", 100, 50, 2)],
        [
            *(kept(TOKENS, 0, 0), kept(TOKENS, 50, 500), kept(TOKENS, 25, 0, flags=1.0)),
            *(kept(TOKENS, 0, 50, engine="1"), kept(TOKENS, 50, 300, engine="1")),
            *(kept(PROMPT, 0, 0), kept(PROMPT, 50, 100)),
        ],
    ),
    Case(
        "tokens_per_minute",
        "no rate across a restart; across missing samples the rate of all that time",
        "minute tokens seconds tokens_per_second",
        [(0, 100, 30, None), (180, 1500, 150, 10)],
        [kept(TOKENS, 0, 900), kept(TOKENS, 30, 100), kept(TOKENS, 180, 1600)],
    ),
    Case(
        "kv_cache",
        "mean and maximum over engines, never their sum, under either name",
        "minute kv_cache_mean_ratio kv_cache_max_ratio",
        [(0, 0.5, 0.75), (60, 0.5, 0.5)],
        [
            *(kept(KV, 0, 0.25), kept(KV, 30, 0.75, engine="1"), kept(KV, 40, 9, flags=1.0)),
            *(kept("vllm:gpu_cache_usage_perc", 60, 0.5), kept(RUNNING, 0, 7)),
        ],
    ),
    Case(
        "running_and_waiting",
        "the mean of each engine, added up over engines",
        "minute state requests max_on_one_engine",
        [(0, "running", 3 + 5, 5), (0, "waiting", 1, 1), (60, "running", 7, 7)],
        [
            *(kept(RUNNING, 0, 2), kept(RUNNING, 30, 4), kept(RUNNING, 0, 5, target="b")),
            *(kept(WAITING, 0, 1), kept(RUNNING, 60, 7), kept(RUNNING, 70, 99, flags=1.0)),
            kept(KV, 0, 0.5),
        ],
    ),
    Case(
        "kv_pressure",
        "usage, queue and preemptions side by side, per engine",
        "minute target engine kv_cache_mean_ratio waiting_requests preemptions",
        [(0, "a", "0", 0.75, 2, 3), (0, "b", "0", 0.25, None, 0), (60, "a", "0", None, None, 1)],
        [
            *(kept(KV, 0, 0.5), kept(KV, 30, 1.0), kept(WAITING, 0, 1), kept(WAITING, 30, 3)),
            *(kept(PREEMPTIONS, 0, 10), kept(PREEMPTIONS, 30, 13), kept(PREEMPTIONS, 60, 1)),
            *(kept(KV, 0, 0.25, target="b"), kept(KV, 10, 9, target="b", flags=1.0)),
        ],
    ),
    Case(
        "cost_per_hour",
        "a target is billed from attempt to attempt, once per engine; dollars wait for a price",
        "hour gpu_hours usd successful_requests usd_per_request",
        [(0, 2 * 1800 / 3600, None, 5, None), (3600, 2 * 1800 / 3600, None, 0, None)],
        [
            *(kept("up", 0, 1), kept("up", 1800, 0), kept("up", 3600, 1)),
            *(kept("up", 900, 1, flags=1.0), kept(RUNNING, 0, 1), kept(RUNNING, 0, 1, engine="1")),
            *(ended(0, 10), ended(1800, 15), ended(0, 0, "abort"), ended(1800, 9, "abort")),
            ended(900, 0, flags=1.0),
        ],
    ),
    Case(
        "latency",
        "quantiles of what the buckets grew by, linear inside a bucket",
        "minute observed p50_seconds p95_seconds p99_seconds",
        [(0, 100, 50 / 80, 1 + 15 / 20, 1 + 19 / 20)],
        states((0, [5, 5, 5]), (10, [55, 15, 5]), (20, [85, 25, 5])),
    ),
    Case(
        "latency",
        "beyond the last edge there is no value, and nothing observed is no row",
        "minute observed p50_seconds p99_seconds",
        [(0, 4, 1, None)],
        states((0, [0, 0, 0]), (10, [2, 0, 2]), (70, [2, 0, 2])),
    ),
    Case(
        "latency",
        "where any bucket falls the new counts are all new; engines add up",
        "minute observed p50_seconds",
        [(0, 2 + 8, 0.625)],
        [
            *states((0, [9, 1, 0]), (10, [0, 2, 0])),
            *states((0, [1, 0, 0]), (10, [9, 0, 0]), target="b"),
        ],
    ),
)


@pytest.mark.parametrize("case", STREAM_CASES, ids=described)
def test_query_for_parseable_gives_these_rows_of_those(case):
    context = SessionContext()
    table = pa.Table.from_pylist(case.rows, schema=METRICS)
    context.register_record_batches("vllm_metrics", [table.to_batches()])
    found = context.sql(query_text(f"parseable/{case.query}")).to_pylist()
    chosen = [tuple(plain(row[name]) for name in case.columns.split()) for row in found]
    assert chosen == case.expected


def test_every_query_has_a_case():
    folder = files("vllm_capacity.sources").joinpath("sql")
    named = {file.name for file in [*folder.iterdir(), *folder.joinpath("parseable").iterdir()]}
    cases = {f"{case.query}.sql" for case in (*POINT_CASES, *STREAM_CASES)}
    assert cases == {name for name in named if name.endswith(".sql")}
