"""Whatever way telemetry comes in, each process is counted once, from where it began.

The same scrapes lie in a Parseable server, in its files, and in a Prometheus.
"""

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import httpx
import polars as pl
import pytest

from tests.answering import answer
from tests.standin.exports import counter, export, gauge
from tests.standin.prometheus import prometheus
from tests.standin.server import Standin
from tests.standin.store import write_store
from vllm_capacity.figures import scrapes, traffic
from vllm_capacity.live.pull import pull_files, pull_prometheus, pull_server
from vllm_capacity.sources.parseable import Parseable
from vllm_capacity.sources.parseable_pull import PullRequest
from vllm_capacity.sources.prometheus import Prometheus
from vllm_capacity.telemetry.window import open_window
from vllm_capacity.timerange import TimeRange

TOKENS = "vllm:generation_tokens_total"
HTTP = "http_requests_total"
START = datetime(2026, 11, 24, 8, tzinfo=UTC)
ASKED = TimeRange(START, START + timedelta(minutes=10))
WAYS = ("server, whole", "server, thinned", "files", "prometheus", "prometheus, thinned")


@dataclass
class Scrape:
    """One scrape of a pod: seconds from START; the process's start, and what it had counted."""

    seconds: float
    started: float
    tokens: float
    job: str = "vllm"
    children: dict[str, float] = field(default_factory=dict)  # HTTP answers by status

    @property
    def ts(self) -> datetime:
        return START + timedelta(seconds=self.seconds)

    def samples(self):
        """(name, labels, value), `up` first."""
        yield "up", {}, 1.0
        yield "process_start_time_seconds", {}, (START.timestamp() + self.started)
        yield "vllm:num_requests_running", {"engine": "0", "model_name": "m"}, 1.0
        yield TOKENS, {"engine": "0", "model_name": "m"}, self.tokens
        for status, value in self.children.items():
            yield HTTP, {"status": status}, value


def windows_of(found: list[Scrape], folder, asked=ASKED) -> dict:
    """The window of each way in, by its name."""
    standin = Standin()
    for one in found:
        points = [
            (counter if name.endswith("_total") else gauge)(
                name, one.ts, value, **{"engine": "", "model_name": "", **labels}
            )
            for name, labels, value in one.samples()
        ]
        body = export(*points, instance="pod:8000", job=one.job)
        standin.ingest("s", "/v1/metrics", body, arrived=one.ts)
    with standin, standin.client() as client:
        for name, is_downsampled in ((WAYS[0], False), (WAYS[1], True)):
            request = PullRequest("s", asked, is_downsampled)
            pull_server(Parseable(client), request, folder / name, now=asked.end)
        store = write_store(standin.streams, folder / "store")
    pull_files(str(store), "s", folder / "files", asked)
    transport = prometheus(wire_of(found))
    with httpx.Client(base_url="http://prom", transport=transport) as client:
        for name, is_downsampled in ((WAYS[3], False), (WAYS[4], True)):
            pull_prometheus(Prometheus(client), asked, folder / name, is_downsampled=is_downsampled)
    return {name: open_window(folder / name) for name in WAYS}


def wire_of(found: list[Scrape]) -> dict[str, list[tuple[float, float]]]:
    """The scrapes as a Prometheus keeps them."""
    series: dict[str, list[tuple[float, float]]] = {}
    for one in found:
        for name, labels, value in one.samples():
            whose = {"__name__": name, "instance": "pod:8000", "job": one.job, **labels}
            key = json.dumps(whose, sort_keys=True)
            series.setdefault(key, []).append((one.ts.timestamp(), value))
    return series


def increase(window, metric):
    rows = traffic.counter_increases(window, [metric], time_range=window.extent)
    return traffic.total(rows, metric)


# The old process ended 14 minutes before the start; it alone had answered 4xx by then. The new one
# counts 10 tokens every 30 s. Its first 4xx comes within the range.
RESTARTED = [
    *(Scrape(s, -9000, 5000 + s, children={"2xx": 900, "4xx": 7}) for s in range(-1500, -840, 30)),
    *(
        Scrape(
            s, -830, 1000 + s / 3, children={"2xx": 50 + s / 30, **({"4xx": 9} if s > 200 else {})}
        )
        for s in range(-810, 600, 30)
    ),
]


@pytest.fixture(scope="module")
def restarted(tmp_path_factory):
    return windows_of(RESTARTED, tmp_path_factory.mktemp("restarted"))


@pytest.mark.parametrize("way", WAYS)
def test_a_pull_soon_after_a_restart_counts_what_is_in_its_range(restarted, way):
    window = restarted[way]
    assert (increase(window, TOKENS), increase(window, HTTP)) == (200.0, 20.0 + 9.0)


@pytest.mark.parametrize("way", WAYS)
def test_a_window_begins_where_it_was_asked_to(restarted, way):
    assert restarted[way].extent.start == START


@pytest.mark.parametrize("way", WAYS)
def test_a_restart_before_the_start_loses_nothing_of_the_range(restarted, way):
    answered = answer(restarted[way])
    assert answered["requests"]["lost"] == {"low": 0.0, "high": 0.0, "reason": ""}
    assert "restart" not in {finding["check"] for finding in answered["quality"]}


# Restarted in a gap of four scrapes and past its old count when it ends: 613 before, 1,438 after.
OVERTAKEN = [
    *(Scrape(s, -9000, 313 + s) for s in range(0, 301, 30)),
    *(Scrape(s, 310, 1438 + s - 480) for s in range(480, 600, 30)),
]


@pytest.fixture(scope="module")
def overtaken(tmp_path_factory):
    return windows_of(OVERTAKEN, tmp_path_factory.mktemp("overtaken"))


@pytest.mark.parametrize("way", WAYS)
def test_a_restart_that_was_overtaken_counts_the_new_process_whole(overtaken, way):
    window = overtaken[way]
    assert increase(window, TOKENS) == 300.0 + 1438.0 + 90.0
    [restart] = scrapes.restarts(window, time_range=window.extent)
    assert restart.started == START + timedelta(seconds=310)


# Two jobs find one pod, every 30 s each, one 7 s after the other.
TWICE = sorted(
    [
        Scrape(s + late, -9000, 1000 + s + late, job=job, children={"2xx": s + late})
        for s in range(-60, 600, 30)
        for job, late in (("pod-monitor", 0), ("service-monitor", 7))
    ],
    key=lambda one: one.seconds,
)


@pytest.fixture(scope="module")
def twice(tmp_path_factory):
    return windows_of(TWICE, tmp_path_factory.mktemp("twice"))


@pytest.mark.parametrize("way", WAYS)
def test_two_jobs_of_one_pod_are_one_target(twice, way):
    window = twice[way]
    answered = answer(window)
    checks = {finding["check"]: finding["effect"] for finding in answered["quality"]}
    assert increase(window, TOKENS) == 577.0 + 23.0  # from the last scrape before the start
    assert not {"coverage", "gap"} & checks.keys()
    assert "scraped by 2 jobs (pod-monitor, service-monitor)" in checks["duplicate"]


@pytest.mark.parametrize("way", WAYS)
def test_the_interval_of_a_pod_that_two_jobs_scrape_is_that_of_one(twice, way):
    window = twice[way]
    attempts = scrapes.attempts(window, end=window.extent.end)
    steps = attempts.get_column("ts").diff().drop_nulls().unique()
    assert steps.to_list() == [timedelta(seconds=30)]


def test_a_downsampled_minute_of_two_jobs_ends_with_the_newer_state(twice):
    minutes = twice["server, thinned"].sql(
        "select minute, last, n from minutes join series using (series_id) where metric = $m "
        "and minute >= $start order by minute",
        m=TOKENS,
        start=START,
    )
    whole = twice["server, whole"].sql(
        "select minute, last, n from minutes join series using (series_id) where metric = $m "
        "and minute >= $start order by minute",
        m=TOKENS,
        start=START,
    )
    assert minutes.equals(whole)
    assert minutes.get_column("n").unique().to_list() == [4]


def test_an_unreached_end_is_reported(tmp_path):
    late = TimeRange(START, START + timedelta(minutes=30))
    answered = answer(windows_of(OVERTAKEN, tmp_path, late)["prometheus"])
    [unreached] = [f for f in answered["quality"] if "asked for until" in f["effect"]]
    assert unreached["severity"] == "warning"
    assert pl.Series([unreached["when"]]).str.contains("2026-11-24T08:30:00Z").item()
