"""The same telemetry in through each source, the same frames out.

The real Prometheus scrapes a replayed vLLM. What was served then goes, at the times at which it was
scraped, through each other way: read as text, exported as OTLP to (the stand-in of) a Parseable and
asked over HTTP, and read from that Parseable's files.
"""

import json
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import httpx
import polars as pl
import pytest
from click.testing import CliRunner
from msgspec.structs import replace

from tests.integration.real_prometheus import real_prometheus, wait_until
from tests.integration.recorded_vllm import RecordedVllm
from tests.standin.exports import export, gauge, scraped
from tests.standin.server import Standin
from tests.standin.store import write_store
from vllm_capacity.cli import cli
from vllm_capacity.errors import NoTelemetryError
from vllm_capacity.render.exports.monitoring import recorded
from vllm_capacity.selector import selector
from vllm_capacity.sources.exposition import Scrape, ScrapeReader
from vllm_capacity.sources.parquet import open_store, read_stream
from vllm_capacity.sources.parseable import Parseable
from vllm_capacity.sources.parseable_pull import PullRequest, pull
from vllm_capacity.sources.parseable_rows import downsampled_rows, whole_rows
from vllm_capacity.sources.prometheus import Prometheus
from vllm_capacity.sources.prometheus_pull import read_prometheus
from vllm_capacity.telemetry.processes import TARGET_INFO
from vllm_capacity.telemetry.store import write_window
from vllm_capacity.telemetry.window import open_window
from vllm_capacity.timerange import TimeRange

SCRAPES = 8
NO_WAIT = {"pause": lambda seconds: None}


def around(now):
    return TimeRange(now - timedelta(minutes=10), now + timedelta(minutes=1))


@pytest.fixture(scope="module")
def from_prometheus(tmp_path_factory):
    """The rows by selector, the texts that were served, the target, what the dashboard's queries
    answer, and what `watch` said.

    Scrapes failed after the last.
    """
    folder = tmp_path_factory.mktemp("prometheus")
    with (
        RecordedVllm(scrapes=SCRAPES) as vllm,
        real_prometheus(folder, [vllm.target]) as url,
        httpx.Client(base_url=url, timeout=30) as client,
    ):
        server = Prometheus(client, **NO_WAIT)
        wait_until(lambda: vllm.is_used_up and has_failed(server), seconds=120)
        # Prometheus keeps adding failed scrapes, so all sources read the same fixed range.
        now = datetime.now(UTC)
        span = TimeRange(now - timedelta(minutes=10), now)
        found = {
            text: rows_or_none(replace(server, only=selector(text) if text else None), span)
            for text in ("", f'instance="{vllm.target}",cluster=~"t.*"', 'cluster="other"')
        }
        watched = CliRunner().invoke(cli, ["watch", url, "--once", "--json", "--over", "2m"])
        boards = {each.name: asked(client, each.expression) for each in recorded()}
        return found, list(vllm.served), vllm.target, boards, watched


def asked(client, expression):
    """What the dashboard's query answers."""
    answer = client.post("/api/v1/query", data={"query": expression}).json()
    assert answer["status"] == "success", (expression, answer)
    return [float(one["value"][1]) for one in answer["data"]["result"]]


def rows_or_none(server, span):
    with suppress(NoTelemetryError):
        return read_prometheus(server, span)
    return None


def has_failed(server):
    return 0.0 in server.samples(["up"], around(datetime.now(UTC))).values


@pytest.fixture(scope="module")
def attempts(from_prometheus):
    """When each attempt was made and what it brought; None where it failed."""
    found, served, *_ = from_prometheus
    rows = found[""]
    up = rows.series.filter(metric="up").item(0, "series_id")
    texts = iter(served)
    made = rows.samples.filter(series_id=up).sort("ts").select("ts", "value").rows()
    return [(ts, next(texts) if value == 1 else None) for ts, value in made]


@pytest.fixture(scope="module")
def from_text(attempts, from_prometheus):
    reader = ScrapeReader()
    for ts, text in attempts:
        status = 503 if text is None else 200
        reader.add(Scrape(ts.timestamp(), from_prometheus[2], status, text or ""))
    return reader.buffer.rows()


@pytest.fixture(scope="module")
def parseable(attempts, from_prometheus):
    target = from_prometheus[2]
    with Standin() as standin:
        for ts, text in attempts:
            down = export(gauge("up", ts, 0.0, engine="", model_name=""), instance=target)
            body = down if text is None else scraped(text, ts, instance=target)
            arrived = ts + timedelta(seconds=3)
            standin.ingest("vllm", "/v1/metrics", body, arrived=arrived)
        yield standin


@pytest.fixture(scope="module")
def time_range(attempts):
    return TimeRange(attempts[0][0], attempts[-1][0] + timedelta(seconds=1))


@pytest.fixture(scope="module")
def from_server(parseable, time_range):
    with parseable.client() as client:
        server = Parseable(client, **NO_WAIT)
        whole = whole_rows(pull(server, PullRequest("vllm", time_range, is_downsampled=False)))
        return whole, downsampled_rows(pull(server, PullRequest("vllm", time_range)))


@pytest.fixture(scope="module")
def from_files(parseable, tmp_path_factory):
    root = write_store(parseable.streams, tmp_path_factory.mktemp("store"))
    return read_stream(open_store(str(root)), "vllm")


@pytest.fixture(scope="module")
def sources(from_text, from_prometheus, from_server, from_files):
    return {
        "Prometheus": from_prometheus[0][""],
        "a Parseable server": from_server[0],
        "Parseable's files": from_files,
        "text": from_text,
    }


def comparable(rows, table):
    """A table in one order, without what only some know.

    How long a scrape took, when it came, and the labels that a scraper puts on a target.
    """
    known = rows.series.filter(~pl.col("metric").is_in(["scrape_duration_seconds", TARGET_INFO]))
    frame = getattr(rows, table).join(known.select("series_id"), on="series_id", how="semi")
    if table == "series":
        return frame.drop("starts_at_zero").sort("series_id")
    return frame.drop("arrival").sort("series_id", "ts", "alias_priority")


@pytest.mark.parametrize("table", ["series", "samples", "histograms"])
@pytest.mark.parametrize("source", ["Prometheus", "a Parseable server", "Parseable's files"])
def test_every_source_gives_what_the_text_gives(sources, source, table):
    ours, direct = (comparable(sources[name], table) for name in (source, "text"))
    assert direct.height > 50
    assert ours.equals(direct)


@pytest.mark.parametrize("view", ["minutes", "minute_histograms"])
def test_a_downsampled_pull_gives_the_minutes_of_the_text(from_server, from_text, tmp_path, view):
    window = open_window(write_window(tmp_path / "w", from_text, {}))
    ours = getattr(from_server[1], view)
    known = ours.select("series_id").unique()
    theirs = window.sql(f"select * from {view} order by series_id, minute, run")
    kept = [c for c in ours.columns if (view, c) != ("minutes", "sum")]
    assert not ours.is_empty()
    assert ours.select(kept).equals(theirs.join(known, on="series_id", how="semi").select(kept))


def test_failed_attempts_are_in_every_source(sources):
    for rows in sources.values():
        up = rows.series.filter(metric="up").item(0, "series_id")
        assert 0.0 in rows.samples.filter(series_id=up).get_column("value").to_list()


def test_of_a_prometheus_only_the_series_that_match_are_read(from_prometheus):
    everything, own, of_others = from_prometheus[0].values()
    assert own.samples.height == everything.samples.height > 0
    assert of_others is None


def test_every_query_of_the_dashboard_finds_its_series(from_prometheus):
    answers = from_prometheus[3]
    assert [name for name, values in answers.items() if len(values) != 1] == []
    assert answers["output_tokens_per_second"][0] > 0
    assert answers["ttft_seconds:p50"][0] <= answers["ttft_seconds:p95"][0]


def test_watching_a_prometheus_equals_watching_its_targets(from_prometheus):
    _, _, target, _, watched = from_prometheus
    assert watched.exit_code == 0, watched.output
    [engine] = json.loads(watched.stdout)["engines"]
    assert engine["engine"].startswith(target)
    assert engine["trouble"] == "Prometheus cannot scrape it", "its last scrape failed"
