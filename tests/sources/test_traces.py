"""Request spans: the recorded ones over HTTP and from files, and what cannot be known."""

from datetime import UTC, datetime, timedelta

import polars as pl
import pytest
from click.testing import CliRunner

from tests.standin.recorded import recorded_server
from tests.standin.server import RECORDED, Standin
from vllm_capacity.cli import cli
from vllm_capacity.errors import InputError, NoTelemetryError, SourceError
from vllm_capacity.sources.parquet import open_store
from vllm_capacity.sources.parseable import Parseable
from vllm_capacity.sources.traces import (
    PHASES,
    TRACES_SCHEMA,
    traces_from_files,
    traces_from_server,
    where_time_went,
    with_regimes,
)
from vllm_capacity.timerange import TimeRange

STORE = str(RECORDED / "store")
# When the requests ran; their spans arrived at 08:23.
BEGUN = datetime(2026, 11, 24, 6, tzinfo=UTC)
RAN = TimeRange(BEGUN, BEGUN + timedelta(minutes=30))


@pytest.fixture(scope="module")
def traces():
    return traces_from_files(open_store(STORE), "vllm_traces")


def asked(standin, stream, time_range, **settings):
    with standin.client() as client:
        return traces_from_server(Parseable(client), stream, time_range, **settings)


def test_a_span_tells_where_the_time_of_its_request_went(traces):
    row = traces.filter(request_id="cmpl-a93c0c6e91b4821e-0").row(0, named=True)
    assert (row["prompt_tokens"], row["completion_tokens"]) == (659, 43)
    assert (row["e2e_seconds"], row["decode_seconds"]) == (1.863210916519165, 1.5208087020000676)
    assert sum(row[phase] for phase in PHASES) == pytest.approx(row["e2e_seconds"])


def test_only_requests_count_slowest_first(traces):
    assert (traces.height, traces.schema) == (26, pl.Schema(TRACES_SCHEMA))
    assert traces.get_column("e2e_seconds").is_sorted(descending=True)


def test_the_server_gives_what_its_files_give(traces):
    with recorded_server() as standin:
        over_http = asked(standin, "vllm_traces", RAN, late=timedelta(hours=3))
    assert over_http.equals(traces)


@pytest.mark.parametrize(
    ("minutes", "late_hours", "expected"),
    [
        pytest.param((0, 30), 3, 26, id="all of it"),
        pytest.param((6, 7), 3, 6, id="a minute of it"),
        pytest.param((0, 30), 1, None, id="spans that arrived later than asked for"),
    ],
)
def test_a_range_is_when_requests_began(minutes, late_hours, expected):
    first, last = (BEGUN + timedelta(minutes=m) for m in minutes)
    store, late = open_store(STORE), timedelta(hours=late_hours)
    if expected is None:
        with pytest.raises(NoTelemetryError, match="has no data"):
            traces_from_files(store, "vllm_traces", TimeRange(first, last), late=late)
        return
    found = traces_from_files(store, "vllm_traces", TimeRange(first, last), late=late)
    assert found.height == expected


def test_the_shares_of_all_add_up_to_all(traces):
    shares = where_time_went(traces, slowest=5)
    assert shares.get_column("phase").to_list() == ["queue", "prefill", "decode", "other"]
    for column in ("all_ratio", "slowest_ratio"):
        assert shares.get_column(column).sum() == pytest.approx(1)


def test_nothing_traced_has_no_shares(traces):
    shares = where_time_went(traces.clear(), slowest=5)
    assert shares.get_column("all_ratio").to_list() == [None] * 4


def test_a_stream_of_metrics_holds_no_spans():
    with pytest.raises(SourceError, match="--otlp-traces-endpoint"):
        traces_from_files(open_store(STORE), "vllm_metrics")


def span(name="llm_request", **attributes):
    return {
        "traceId": "t",
        "spanId": "s",
        "name": name,
        "startTimeUnixNano": str(int(BEGUN.timestamp()) * 10**9),
        "endTimeUnixNano": str(int(BEGUN.timestamp() + 3) * 10**9),
        "attributes": [
            {"key": f"gen_ai.latency.{key}", "value": {"doubleValue": value}}
            for key, value in attributes.items()
        ],
    }


def exported(*spans):
    body = {
        "resourceSpans": [{"resource": {}, "scopeSpans": [{"scope": {}, "spans": list(spans)}]}]
    }
    with Standin() as standin:
        standin.ingest("s", "/v1/traces", body, arrived=BEGUN)
        return asked(standin, "s", RAN)


@pytest.mark.parametrize(
    ("spans", "expected"),
    [
        pytest.param([span(e2e=3.0)] * 2, [(3.0, None, None)], id="a span sent twice counts once"),
        pytest.param(
            [span(e2e=3.0), span("Load model", e2e=9.0)], [(3.0, None, None)], id="start-up is none"
        ),
        pytest.param(
            [span(e2e=3.0, time_in_queue=1.0)], [(3.0, 1.0, None)], id="a phase that is missing"
        ),
    ],
)
def test_what_a_span_lacks_is_unknown(spans, expected):
    found = exported(*spans)
    assert found.select("e2e_seconds", "queue_seconds", "other_seconds").rows() == expected


def regimes(*rows):
    times = pl.Datetime("us", "UTC")
    schema = {"start": times, "end": times, "engine": pl.String, "regime": pl.String}
    named = [
        (BEGUN + timedelta(minutes=a), BEGUN + timedelta(minutes=b), engine, regime)
        for a, b, engine, regime in rows
    ]
    return pl.DataFrame(named, schema=schema, orient="row")


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        pytest.param([(0, 30, "a/0", "idle")], {"idle"}, id="one engine"),
        pytest.param(
            [(0, 30, "a/0", "idle"), (0, 30, "b/0", "kv-bound")],
            {"idle / kv-bound"},
            id="engines in different regimes are all named",
        ),
        pytest.param(
            [(6, 7, "a/0", "idle")], {"idle", None}, id="outside the window nothing is known"
        ),
    ],
)
def test_the_regime_when_a_request_began(traces, rows, expected):
    assert set(with_regimes(traces, regimes(*rows)).get_column("regime")) == expected


def test_a_window_of_another_day_is_refused(traces):
    with pytest.raises(InputError, match="None of the 26 traced requests began within"):
        with_regimes(traces, regimes((600, 700, "a/0", "idle")))


def test_the_command_shows_the_slowest_and_the_shares():
    done = CliRunner().invoke(cli, ["traces", "--from", STORE, "--slowest", "3"])
    assert done.exit_code == 0, done.output
    assert "The 3 slowest of 26 requests" in done.output
    assert "22.64" in done.output
    assert "81.5 %" in done.output


def test_the_command_refuses_a_window_of_another_time(tmp_path):
    target = tmp_path / "w"
    pulled = ["pull", "--from", STORE, "--stream", "vllm_metrics", "--to", str(target)]
    assert CliRunner().invoke(cli, pulled).exit_code == 0
    done = CliRunner().invoke(cli, ["traces", "--from", STORE, "--window", str(target)])
    assert isinstance(done.exception, InputError)  # the recorded requests ran two hours before
    assert "None of the 26 traced requests" in str(done.exception)
