"""A Collector whose clock was set: its points are counted once, whichever way they are read."""

from contextlib import ExitStack
from datetime import UTC, datetime, timedelta

import pytest

from tests.standin.exports import counter, export, gauge, histogram
from tests.standin.server import Standin
from tests.standin.store import write_store
from vllm_capacity.facts.metrics import GENERATION_TOKENS, REQUESTS, TTFT
from vllm_capacity.figures import latency, traffic
from vllm_capacity.live.pull import pull_files, pull_server
from vllm_capacity.sources.parseable import Parseable
from vllm_capacity.sources.parseable_pull import PullRequest
from vllm_capacity.telemetry.window import open_window
from vllm_capacity.timerange import TimeRange

START = datetime(2026, 11, 24, 8, tzinfo=UTC)
SCRAPES, A_SCRAPE = 120, 10
PART = TimeRange(START - timedelta(minutes=10), START + timedelta(hours=2))
TRUTH = A_SCRAPE * (SCRAPES - 1)
BORN = START.timestamp() - 5000


def stream(stamp):
    """Scrapes every 2 s, sent in batches every 10 s; `stamp` says what the Collector's clock did"""
    standin = Standin()
    for number in range(SCRAPES):
        true = START + timedelta(seconds=2 * number)
        ts = true + timedelta(seconds=stamp(number))
        done = 1000 + A_SCRAPE * number
        body = export(
            gauge("up", ts, 1.0),
            gauge("process_start_time_seconds", ts, BORN),
            counter(REQUESTS, ts, float(done), finished_reason="stop", engine="0"),
            counter(GENERATION_TOKENS, ts, 100.0 * done, engine="0"),
            gauge("vllm:num_requests_running", ts, 3.0, engine="0"),
            histogram(TTFT, ts, [done, 0], total=0.2 * done, bounds=[1.0], engine="0"),
        )
        arrived = START + timedelta(seconds=10 * (number // 5 + 1), milliseconds=number % 5)
        standin.ingest("s", "/v1/metrics", body, arrived=arrived)
    return standin


def pulled(way, standin, path):
    if way == "files":
        return pull_files(str(write_store(standin.streams, path / "store")), "s", path / "w", PART)
    with ExitStack() as stack:
        stack.enter_context(standin)
        client = stack.enter_context(standin.client())
        request = PullRequest("s", PART, is_downsampled=way == "thinned")
        return pull_server(Parseable(client), request, path / "w", now=request.time_range.end)


@pytest.mark.parametrize(
    "stamp",
    [
        pytest.param(lambda n: 0, id="a clock that was never set"),
        pytest.param(lambda n: -5 * (n >= 63), id="set back 5 s"),
        pytest.param(lambda n: -75 * (n >= 63), id="set back over a minute"),
        pytest.param(lambda n: 3600 * (60 <= n < 70), id="ten scrapes an hour ahead"),
        pytest.param(lambda n: 101 * (60 <= n < 70), id="ten scrapes among later ones"),
    ],
)
@pytest.mark.parametrize("way", ["files", "whole", "thinned"])
def test_counts_are_exact(tmp_path, way, stamp):
    window = open_window(pulled(way, stream(stamp), tmp_path))
    whole = window.extent
    increases = traffic.counter_increases(window, [REQUESTS], time_range=whole)
    observed = latency.merged(latency.histogram_increases(window, [TTFT], time_range=whole))
    assert traffic.total(increases, REQUESTS) == TRUTH
    assert observed is not None
    assert observed.count == TRUTH


@pytest.mark.parametrize("way", ["files", "whole", "thinned"])
def test_a_clock_ahead_of_the_store_is_reported(tmp_path, way):
    window = open_window(pulled(way, stream(lambda n: 40), tmp_path))
    output = window.sql("select detail from intake where \"check\" = 'clock'")["detail"].to_list()
    assert len(output) == 1
    assert "the Collector's clock is ahead of the store's" in output[0]


def test_minutes_of_a_downsampled_pull_agree_with_its_samples(tmp_path):
    window = open_window(pulled("thinned", stream(lambda n: -75 * (n >= 63)), tmp_path))
    ends = window.sql(
        "select min(first) as first, max(last) as last, count(distinct run) as runs from minutes "
        "join series using (series_id) where metric = $metric",
        metric=REQUESTS,
    )
    assert ends.rows() == [(1000.0, 1000.0 + TRUTH, 1)]
