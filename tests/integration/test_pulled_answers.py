"""What a window says does not depend on how it was pulled: every figure and every verdict.

Recorded while the store was down, the collector killed, a server restarted and two others ended.
"""

from datetime import UTC, datetime, timedelta

import pytest

from tests.answering import answer
from tests.standin.recorded import recorded_server
from tests.standin.server import RECORDED
from vllm_capacity.facts.metrics import (
    E2E,
    GENERATION_TOKENS,
    ITL,
    PREEMPTIONS,
    PROMPT_TOKENS,
    REQUESTS,
    TTFT,
)
from vllm_capacity.figures.latency import HISTOGRAMS, histogram_increases, latency
from vllm_capacity.figures.traffic import counter_increases
from vllm_capacity.live.pull import pull_files, pull_server
from vllm_capacity.sources.parseable import Parseable
from vllm_capacity.sources.parseable_pull import PullRequest
from vllm_capacity.telemetry.window import open_window
from vllm_capacity.timerange import TimeRange

START = datetime(2026, 11, 24, 8, 14, tzinfo=UTC)
PART = TimeRange(START, START + timedelta(minutes=13))
# Whole minutes, with earlier states in the store.
MINUTES = TimeRange(START + timedelta(minutes=1), START + timedelta(minutes=12))


@pytest.fixture(scope="module")
def windows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pulled")
    pull_files(str(RECORDED / "store"), "vllm_metrics", folder / "files", PART)
    with recorded_server() as standin, standin.client() as client:
        server = Parseable(client)
        for name, is_downsampled in (("whole", False), ("thinned", True)):
            pull_server(
                server,
                PullRequest("vllm_metrics", PART, is_downsampled),
                folder / name,
                now=PART.end,
            )
    return {name: open_window(folder / name) for name in ("files", "whole", "thinned")}


def test_the_server_and_its_files_give_the_same_answer(windows):
    from_files, over_http = (answer(windows[name]) for name in ("files", "whole"))
    for one in (from_files, over_http):
        one.pop("window")  # differs by name
        # Delays differ: the replay knows the time of sending, the store that of arrival.
        one["quality"] = [finding for finding in one["quality"] if finding["check"] != "late"]
    assert len(over_http["quality"]) > 5
    assert over_http == from_files


def test_a_downsampled_window_has_the_counters_of_the_whole(windows):
    metrics = [REQUESTS, GENERATION_TOKENS, PROMPT_TOKENS, PREEMPTIONS]
    whole, downsampled = (
        counter_increases(windows[name], metrics, time_range=MINUTES)
        for name in ("whole", "thinned")
    )
    assert whole.height > 20
    assert downsampled.equals(whole)


@pytest.mark.parametrize("step_seconds", [None, 60], ids=["at once", "by minute"])
def test_a_downsampled_window_has_the_histograms_of_the_whole(windows, step_seconds):
    whole, downsampled = (
        histogram_increases(
            windows[name], [TTFT, ITL, E2E], time_range=MINUTES, step_seconds=step_seconds
        )
        for name in ("whole", "thinned")
    )
    assert len(whole) > 10
    assert downsampled == whole


def test_a_downsampled_window_has_the_quantiles_of_the_whole(windows):
    whole, downsampled = (
        latency(histogram_increases(windows[name], HISTOGRAMS, time_range=MINUTES))
        for name in ("whole", "thinned")
    )
    assert whole.ttft.p95.value == pytest.approx(17.26, abs=0.01)
    assert downsampled == whole


def test_a_downsampled_window_has_an_answer_with_the_same_counts_and_gauges(windows):
    whole, downsampled = (
        answer(windows[name], start=MINUTES.start, end=MINUTES.end) for name in ("whole", "thinned")
    )
    lost = [result["requests"].pop("lost")["high"] for result in (whole, downsampled)]
    assert 0.3 < lost[1] / lost[0] < 3  # a bound from the rate before, known less precisely
    for result in (whole, downsampled):
        result["tokens"].pop("lost")
    for figure in ("requests", "tokens", "latency", "preemptions", "prefix_cache_hit_ratio"):
        assert downsampled[figure] == whole[figure], figure
    assert downsampled["kv_cache_ratio"]["max"] == whole["kv_cache_ratio"]["max"]
    assert downsampled["running"]["max"] is None  # a sum over engines: unknown from minutes
    assert downsampled["running"]["mean"] > 0
