"""The SQL of Parseable's guide to vLLM metrics, run by DataFusion, gives our own figures."""

from datetime import UTC, datetime, timedelta

import polars as pl
import pytest
from click.testing import CliRunner

from tests.standin.exports import counter, export
from tests.standin.recorded import recorded_server
from tests.standin.server import RECORDED, Standin
from vllm_capacity.cli import cli
from vllm_capacity.errors import InputError
from vllm_capacity.facts.metrics import E2E, GENERATION_TOKENS, PROMPT_TOKENS, REQUESTS, TTFT
from vllm_capacity.figures.latency import histogram_increases, merged, quantiles
from vllm_capacity.figures.traffic import scrape_increases
from vllm_capacity.live.pull import pull_files
from vllm_capacity.sources.guide_queries import GUIDE_QUERIES, guide_query
from vllm_capacity.sources.parseable import Parseable
from vllm_capacity.telemetry.window import open_window
from vllm_capacity.timerange import TimeRange, parse_instant

DAY = datetime(2026, 11, 24, 8, tzinfo=UTC)
ALL = TimeRange(DAY + timedelta(minutes=14), DAY + timedelta(minutes=27))


@pytest.fixture(scope="module")
def server():
    with recorded_server() as standin, standin.client() as client:
        yield Parseable(client)


@pytest.fixture(scope="module")
def window(tmp_path_factory):
    target = tmp_path_factory.mktemp("guide") / "w"
    return open_window(pull_files(str(RECORDED / "store"), "vllm_metrics", target))


def ask(server, name, **settings):
    return pl.DataFrame(server.query(guide_query(name, **settings), ALL), infer_schema_length=None)


def by_minute(window, metric):
    """What a counter grew by, by minute of the later sample and the label's value."""
    found = scrape_increases(window, [metric], time_range=window.extent)
    return (
        found.filter(pl.col("increase").is_not_null())
        .group_by(
            minute=pl.col("ts").dt.truncate("1m").dt.strftime("%Y-%m-%dT%H:%M:%S"),
            by=pl.col("labels").str.json_path_match("$.finished_reason").fill_null(""),
        )
        .agg(pl.col("increase").sum())
        .sort("minute", "by")
    )


def rows(frame, *columns):
    return frame.sort(*columns[:-1]).select(columns).rows()


def test_requests(server, window):
    ours = by_minute(window, REQUESTS)
    theirs = ask(server, "requests_per_minute")
    assert rows(theirs, "minute", "finished_reason", "requests") == ours.rows()
    assert ours.get_column("increase").sum() > 3000


@pytest.mark.parametrize(
    ("kind", "metric"), [("prompt", PROMPT_TOKENS), ("generation", GENERATION_TOKENS)]
)
def test_tokens(server, window, kind, metric):
    theirs = ask(server, "tokens_per_minute").filter(tokens_of=kind)
    assert rows(theirs, "minute", "tokens") == by_minute(window, metric).drop("by").rows()


def test_failures(server, window):
    ours = by_minute(window, REQUESTS).filter(pl.col("by").is_in(["abort", "error"]))
    theirs = ask(server, "request_failures")
    assert rows(theirs, "minute", "finished_reason", "failures") == ours.rows()


@pytest.mark.parametrize(("name", "metric"), [("latency", E2E), ("time_to_first_token", TTFT)])
def test_quantiles(server, window, name, metric):
    start = DAY + timedelta(minutes=15)
    time_range = TimeRange(start, ALL.end)
    found = histogram_increases(window, [metric], time_range=time_range, step_seconds=60)
    theirs = {parse_instant(row["minute"]): row for row in ask(server, name).to_dicts()}
    compared = 0
    for step in sorted({increase.step for increase in found}):
        distribution = merged([i for i in found if i.step == step])
        if distribution is None:
            continue
        row = theirs[start + timedelta(minutes=step)]
        ours = [getattr(quantiles(distribution), q).value for q in ("p50", "p95", "p99")]
        assert row["observed"] == distribution.count
        answered = [row[f"{q}_seconds"] for q in ("p50", "p95", "p99")]
        assert answered == pytest.approx(ours, rel=1e-9)
        compared += 1
    assert compared >= 10


def test_the_kv_cache(server, window):
    ours = window.sql(
        "select strftime(time_bucket(interval 1 minute, ts), '%Y-%m-%dT%H:%M:%S') as minute, "
        "avg(value) as mean, max(value) as max from samples join series using (series_id) "
        "where metric = 'vllm:kv_cache_usage_perc' group by 1 order by 1"
    )
    theirs = ask(server, "kv_cache").sort("minute")
    for column, name in (("mean", "kv_cache_mean_ratio"), ("max", "kv_cache_max_ratio")):
        assert theirs.get_column(name).to_list() == pytest.approx(ours.get_column(column).to_list())


def test_running_and_waiting_add_up_over_engines(server, window):
    ours = window.sql(
        "select strftime(minute, '%Y-%m-%dT%H:%M:%S') as minute, sum(sum / n) as mean from minutes "
        "join series using (series_id) where metric = 'vllm:num_requests_running' "
        "group by 1 order by 1"
    )
    theirs = ask(server, "running_and_waiting").filter(state="running").sort("minute")
    assert theirs.get_column("requests").to_list() == pytest.approx(
        ours.get_column("mean").to_list()
    )


def test_preemptions_are_beside_the_pressure(server, window):
    theirs = ask(server, "kv_pressure").get_column("preemptions").sum()
    assert theirs == by_minute(window, "vllm:num_preemptions_total").get_column("increase").sum()


def test_the_cost_of_a_request_is_the_bill_over_the_successful_ones(server, window):
    row = ask(server, "cost_per_hour", usd_per_gpu_hour=2.5, gpus_per_engine=2).to_dicts()[0]
    hours = window.sql(
        "select sum(seconds) / 3600 from (select (epoch(max(ts)) - epoch(min(ts))) as seconds "
        "from samples join series using (series_id) where metric = 'up' group by instance)"
    ).item()
    finished = by_minute(window, REQUESTS)
    successful = finished.filter(pl.col("by").is_in(["stop", "length", "repetition"]))
    requests = successful.get_column("increase").sum()
    assert row["successful_requests"] == requests
    assert row["usd_per_request"] == pytest.approx(hours * 2 * 2.5 / requests)


def test_without_a_price_there_are_no_dollars(server):
    row = ask(server, "cost_per_hour").to_dicts()[0]
    assert row["gpu_hours"] > 0
    assert not {"usd", "usd_per_request"} & row.keys()  # the server leaves nulls out


def test_the_command_asks_for_the_price():
    asked = CliRunner().invoke(cli, ["sql", "cost_per_hour"], standalone_mode=False)
    assert isinstance(asked.exception, InputError)
    assert "--usd-per-gpu-hour" in str(asked.exception)


def rates(*samples):
    """What `tokens_per_minute` says of (seconds, tokens so far, engine) from 08:00 on."""
    standin = Standin()
    for seconds, value, engine in samples:
        ts = DAY + timedelta(seconds=seconds)
        point = counter(GENERATION_TOKENS, ts, value, engine=engine)
        standin.ingest("vllm_metrics", "/v1/metrics", export(point), arrived=ts)
    time_range = TimeRange(DAY, DAY + timedelta(minutes=10))
    with standin, standin.client() as client:
        found = Parseable(client).query(guide_query("tokens_per_minute"), time_range)
    columns = ("tokens", "seconds", "tokens_per_second")
    return [tuple(row.get(column) for column in columns) for row in found]


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        pytest.param(
            [(0, 0, "0"), (30, 300, "0"), (55, 550, "0")], [(550, 55, 10)], id="a minute at 10/s"
        ),
        pytest.param(
            [(0, 0, "0"), (150, 1500, "0")], [(1500, 150, 10)], id="after a gap the rate is its own"
        ),
        pytest.param(
            [(0, 0, "0"), (0, 0, "1"), (50, 500, "0"), (50, 250, "1")],
            [(750, 50, 15)],
            id="rates of engines add up",
        ),
        pytest.param(
            [(0, 900, "0"), (50, 100, "0")], [(100, 50, None)], id="no rate across a restart"
        ),
    ],
)
def test_tokens_per_second_are_over_the_time_they_took(samples, expected):
    assert rates(*samples) == expected


@pytest.mark.parametrize("query", GUIDE_QUERIES, ids=lambda query: query.name)
def test_every_query_says_what_it_is_and_takes_another_stream(query):
    text = guide_query(query.name, stream='odd "name"')
    assert text.startswith(f"-- {query.name}: ")
    assert "-- grain: " in text
    assert '"vllm_metrics"' not in text
    assert '"odd ""name"""' in text


def test_there_are_eight_panels():
    assert sum(bool(query.chart) for query in GUIDE_QUERIES) == 8


def test_an_unknown_query_lists_the_existing_ones():
    with pytest.raises(InputError, match="nearest: latency"):
        guide_query("latencies")


def test_the_command_lists_and_prints():
    listed = CliRunner().invoke(cli, ["sql"]).output
    printed = CliRunner().invoke(cli, ["sql", "latency", "--stream", "s"]).output
    assert [line.split()[0] for line in listed.splitlines()] == [q.name for q in GUIDE_QUERIES]
    assert printed == guide_query("latency", stream="s")
