"""A downsampled pull of a Prometheus counts what a full one counts, whatever happened."""

import random
from datetime import timedelta
from itertools import groupby

import httpx
import pytest
from msgspec.structs import replace
from polars.testing import assert_frame_equal

from tests.figures.small_windows import at, counter, gauge, histogram, small_window, up
from tests.figures.test_by_hour import EDGES, a_server
from tests.integration.real_prometheus import backfill, real_prometheus
from tests.standin.prometheus import as_openmetrics, on_the_wire, prometheus
from vllm_capacity.analysis import Analysis
from vllm_capacity.errors import WindowError
from vllm_capacity.facts.metrics import (
    GENERATION_TOKENS,
    KV_CACHE,
    PROMPT_TOKENS,
    REQUESTS,
    RUNNING,
    TTFT,
    WAITING,
)
from vllm_capacity.live.pull import pull_prometheus
from vllm_capacity.sources.prometheus import Prometheus
from vllm_capacity.telemetry.late import extend_window, stored_rows
from vllm_capacity.telemetry.window import open_window
from vllm_capacity.timerange import TimeRange

WAYS = ("whole", "thinned")
RECORDED = ("vllm-sweep", "vllm-restart", "vllm-two-replicas")
QUIET = {"idle": 0, "steady": 1}  # requests per scrape


def pulled(window, time_range, folder, *, asked=None):
    """The windows of a full and a downsampled pull from a stand-in; `asked` gets their queries."""
    wire = on_the_wire(window)
    for name in WAYS:
        queries = None if asked is None else asked.setdefault(name, [])
        transport = prometheus(wire, queries)
        with httpx.Client(base_url="http://prometheus", transport=transport) as client:
            pull(client, time_range, folder, name)
    return [open_window(folder / name) for name in WAYS]


def pulled_from_a_real_one(window, time_range, folder):
    """The same windows from a real Prometheus."""
    backfill(folder, as_openmetrics(window))
    with real_prometheus(folder, []) as url, httpx.Client(base_url=url, timeout=60) as client:
        for name in WAYS:
            pull(client, time_range, folder, name)
    return [open_window(folder / name) for name in WAYS]


def pull(client, time_range, folder, name):
    is_downsampled = name == "thinned"
    pull_prometheus(Prometheus(client), time_range, folder / name, is_downsampled=is_downsampled)


def analyses(windows, start=None, end=None):
    return [Analysis.of(window, start, end) for window in windows]


def made(seed, folder):
    """Two servers: they restart, some scrapes fail, some are lost."""
    rng = random.Random(seed)
    every = rng.choice([10, 20, 40])
    lines = [line for name in "ab" for line in a_server(rng, name, every=every)]
    end = 4 * 3600 + 10
    cut = [replace(line, values=until(end + 600, line.values)) for line in lines]
    return small_window(folder / "made", *cut), TimeRange(at(3700.5), at(end))


def until(end, values):
    return {t: value for t, value in values.items() if t < end}


def quiet(requests, folder):
    """One server for four hours, scraped every 15 s, with equally many requests each time."""
    done = {t + 0.25: requests * scrape for scrape, t in enumerate(range(0, 4 * 3600, 15))}
    lines = [
        up(dict.fromkeys(done, 1)),
        counter(REQUESTS, done, finished_reason="stop"),
        counter(PROMPT_TOKENS, {t: 200 * n for t, n in done.items()}),
        counter(GENERATION_TOKENS, {t: 150 * n for t, n in done.items()}),
        histogram(TTFT, EDGES, {t: ((0, n, 0, 0), 0.25 * n) for t, n in done.items()}),
        gauge(RUNNING, dict.fromkeys(done, requests)),
        gauge(WAITING, dict.fromkeys(done, 0)),
        gauge(KV_CACHE, dict.fromkeys(done, requests / 64)),
    ]
    return small_window(folder / "made", *lines), TimeRange(at(10), at(4 * 3600 - 10))


def recorded(path):
    """Of a recorded capture all but its ends, which cut minutes."""
    window, cut = open_window(path), timedelta(seconds=17)
    return window, TimeRange(window.extent.start + cut, window.extent.end - cut)


@pytest.fixture(scope="module", params=[*range(4), *RECORDED, *QUIET, "a real Prometheus"])
def windows(request, examples, tmp_path_factory):
    """Of each case, a window pulled in full and one pulled downsampled."""
    folder = tmp_path_factory.mktemp("pulled")
    if request.param == "a real Prometheus":
        return pulled_from_a_real_one(*made(5, folder), folder)
    if request.param in QUIET:
        return pulled(*quiet(QUIET[request.param], folder), folder)
    if request.param in RECORDED:
        return pulled(*recorded(examples / request.param), folder)
    return pulled(*made(request.param, folder), folder)


@pytest.fixture(scope="module")
def analysed(windows):
    """Both windows as wholes."""
    return analyses(windows)


def test_counts_latencies_lives_and_gauges_are_those_of_every_sample(analysed):
    whole, downsampled = analysed
    assert downsampled.answer.window.resolution == "minute"
    assert_frame_equal(downsampled.counters, whole.counters)
    assert downsampled.histograms == whole.histograms
    assert downsampled.latency == whole.latency
    assert downsampled.gauges == whole.gauges
    assert_frame_equal(downsampled.attempts, whole.attempts)
    assert downsampled.restarts == whole.restarts
    assert downsampled.interruptions == whole.interruptions
    assert downsampled.outages == whole.outages
    for name, part in whole.bill_parts.items():
        # The prefill share is fitted to steps, which are minutes in the downsampled window.
        unfitted = replace(part.usage, prefill_time_ratio=None)
        assert replace(downsampled.bill_parts[name].usage, prefill_time_ratio=None) == unfitted


def test_no_minute_counts_otherwise(windows):
    start = windows[0].extent.start.replace(second=0, microsecond=0) + timedelta(minutes=3)
    whole, downsampled = analyses(windows, start, start + timedelta(minutes=5))
    assert_frame_equal(downsampled.counters, whole.counters)
    assert downsampled.histograms == whole.histograms


def test_what_was_lost_is_bounded_in_the_same_stretches(analysed):
    whole, downsampled = (each.losses.stretches for each in analysed)
    assert [(one.instance, one.why, one.start, one.end) for one in downsampled] == [
        (one.instance, one.why, one.start, one.end) for one in whole
    ]


def test_a_downsampled_pull_of_hours_is_read_as_a_whole_one_is(windows):
    whole, downsampled = (window.sql("select * from intake") for window in windows)
    assert_frame_equal(downsampled, whole)
    assert windows[1].provenance["counters"] == "minute"


@pytest.fixture(scope="module")
def sweep_pulled(examples, tmp_path_factory):
    """The recorded sweep pulled in full and downsampled, and the queries of each."""
    asked = {}
    window = open_window(examples / "vllm-sweep")
    return pulled(window, window.extent, tmp_path_factory.mktemp("sweep"), asked=asked), asked


def test_little_of_what_is_counted_comes(sweep_pulled):
    (whole, downsampled), asked = sweep_pulled
    rows = "select count(*) from histograms"
    assert downsampled.sql(rows).item() < 0.15 * whole.sql(rows).item()
    assert len(asked["thinned"]) < len(asked["whole"])


def test_of_few_targets_more_families_are_asked_for_in_a_query(sweep_pulled):
    _, asked = sweep_pulled
    ends = [query.startswith("last_over_time") for query in asked["thinned"]]
    by_hour = [sum(run) for is_end, run in groupby(ends) if is_end]
    assert set(by_hour) == {1}


def test_minutes_take_no_samples_that_came_late(windows):
    with pytest.raises(WindowError, match="has minutes"):
        extend_window(windows[1].path, stored_rows(windows[0].path))
