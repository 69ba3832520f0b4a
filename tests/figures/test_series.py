"""What the charts draw, from a window of two engines whose every step is worked out by hand."""

from datetime import timedelta

import pytest

from tests.figures.small_windows import (
    counter,
    gauge,
    histogram,
    seconds_of,
    small_window,
    time_range,
)
from vllm_capacity.analysis import Analysis
from vllm_capacity.facts.metrics import (
    GENERATION_TOKENS,
    KV_CACHE,
    PREEMPTIONS,
    REQUESTS,
    RUNNING,
    TTFT,
    WAITING,
)
from vllm_capacity.figures.series import per_step
from vllm_capacity.telemetry.window import open_window


@pytest.fixture(scope="module")
def steps(tmp_path_factory):
    """Two targets scraped every 10 s, cut into steps of 20 s; b restarts between 30 and 40 s."""
    both = [0, 10, 20, 30, 40, 50]
    window = small_window(
        tmp_path_factory.mktemp("series"),
        gauge(RUNNING, dict(zip(both, [1, 3, 5, 5, 0, 0], strict=True))),
        gauge(RUNNING, dict.fromkeys(both, 2), instance="b"),
        gauge(WAITING, dict.fromkeys(both, 1)),
        gauge(KV_CACHE, dict(zip(both, [0.1, 0.3, 0.5, 0.7, 0, 0], strict=True))),
        gauge(KV_CACHE, dict.fromkeys(both, 0.4), instance="b"),
        counter(GENERATION_TOKENS, {s: 10 * s for s in both}),
        counter(GENERATION_TOKENS, {0: 0, 10: 50, 20: 100, 30: 150, 40: 20, 50: 40}, instance="b"),
        counter(REQUESTS, {0: 0, 10: 1, 20: 2, 30: 3, 40: 4, 50: 5}, finished_reason="stop"),
        counter(REQUESTS, {0: 0, 50: 2}, finished_reason="abort"),
        counter(PREEMPTIONS, {0: 0, 30: 6, 50: 6}),
        histogram(TTFT, (1.0, 2.0), {0: ([0, 0, 0], 0.0), 10: ([2, 0, 0], 1.0)}),
        histogram(TTFT, (1.0, 2.0), {0: ([0, 0, 0], 0.0), 10: ([0, 2, 0], 3.0)}, instance="b"),
    )
    return per_step(window, time_range=time_range(0, 60), step_seconds=20)


def test_one_row_per_step_from_its_start(steps):
    assert [seconds_of(ts) for ts in steps.get_column("start")] == [0, 20, 40]


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        pytest.param("running_mean", [2 + 2, 5 + 2, 0 + 2], id="gauges are added up over engines"),
        pytest.param("waiting_mean", [1, 1, 1], id="a gauge of one of them"),
        pytest.param(
            "kv_cache_ratio_mean",
            [pytest.approx(x) for x in (0.3, 0.5, 0.2)],
            id="the KV ratio is not added up",
        ),
        pytest.param("kv_cache_ratio_max", [0.4, 0.7, 0.4], id="its maximum over engines"),
        pytest.param(
            "output_tokens_per_second",
            [10 + 5, 10 + 5, 10 + 2],
            id="rates per engine, added up; after the restart all is new",
        ),
        pytest.param("requests_per_second", [0.1, 0.1, (2 + 2) / 50], id="over all reasons"),
        pytest.param("finished_stop", [1, 2, 2], id="requests that stopped"),
        pytest.param("finished_abort", [None, None, 2], id="in the step of the later scrape"),
        pytest.param("finished_error", [None] * 3, id="a reason that was not seen is unknown"),
        pytest.param("preemptions", [None, 6, 0], id="seen to be 0 is 0"),
        pytest.param("prompt_tokens_per_second", [None] * 3, id="not observed"),
        pytest.param("ttft_p50_seconds", [1, None, None], id="quantile of both engines together"),
        pytest.param("ttft_p95_seconds", [pytest.approx(1.9), None, None], id="p95, interpolated"),
        pytest.param("ttft_p95_seconds_lower", [1, None, None], id="the bucket it lies in: from"),
        pytest.param("ttft_p95_seconds_upper", [2, None, None], id="the bucket it lies in: to"),
        pytest.param("is_restart", [False, True, True], id="the steps that a restart touches"),
        pytest.param("is_gap", [False] * 3, id="no gap"),
    ],
)
def test_the_fields_of_a_step(steps, column, expected):
    assert steps.get_column(column).to_list() == expected


def test_the_steps_of_a_gap_share_what_was_counted_across_it(tmp_path):
    """10 tokens/s all along, not scraped from 20 to 80 s."""
    times = [0, 10, 20, 80, 90, 100]
    window = small_window(tmp_path, counter(GENERATION_TOKENS, {s: 10 * s for s in times}))
    found = per_step(window, time_range=time_range(0, 100), step_seconds=20)
    assert found.get_column("output_tokens_per_second").to_list() == [10] * 5
    assert found.get_column("is_gap").to_list() == [False, True, True, True, True]


@pytest.mark.parametrize("hours", [pytest.param(None, id="whole"), pytest.param(2, id="two hours")])
def test_rates_of_a_fleet_are_the_same_to_the_last_digit_each_time(examples, hours):
    window = open_window(examples / "fleet-two-models")
    start = window.extent.start
    end = None if hours is None else start + timedelta(hours=hours)
    times = [Analysis.of(window, start, end).series for _ in range(4)]
    assert all(each.equals(times[0]) for each in times)
