"""Failures: each ratio over what it is a ratio of, and unknown where the series are missing."""

import pytest

from tests.figures.small_windows import counter, gauge, histogram, small_window, time_range
from vllm_capacity.facts.metrics import HTTP_REQUESTS, REJECTIONS, REQUESTS, RUNNING, TTFT
from vllm_capacity.figures.traffic import failures

ALL = time_range(0, 100)
CHAT = "/v1/chat/completions"


def http(count, status, handler=CHAT):
    return counter(HTTP_REQUESTS, {0: 0, 10: count}, handler=handler, status=status, engine=None)


def finished(count, reason="stop"):
    return counter(REQUESTS, {0: 0, 10: count}, finished_reason=reason)


def first_tokens(count):
    return histogram(TTFT, (1.0,), {0: ([0, 0], 0.0), 10: ([count, 0], count / 2)})


def mid_of(tmp_path, name, *lines):
    return getattr(failures(small_window(tmp_path, *lines), time_range=ALL), name).mid


@pytest.mark.parametrize(
    ("name", "lines", "expected"),
    [
        pytest.param(
            "http_5xx_ratio", [http(6, "2xx"), http(2, "5xx"), http(2, "4xx")], 0.2, id="5xx"
        ),
        pytest.param(
            "http_4xx_ratio", [http(7, "2xx"), http(1, "5xx"), http(2, "4xx")], 0.2, id="4xx"
        ),
        pytest.param(
            "http_5xx_ratio",
            [http(5, "2xx"), http(5, "5xx"), http(90, "2xx", "/health")],
            0.5,
            id="health checks are no answers on a generating path",
        ),
        pytest.param("http_5xx_ratio", [http(5, "2xx")], 0, id="none failed is 0"),
        pytest.param(
            "http_5xx_ratio", [http(90, "5xx", "/health")], None, id="nothing was generated"
        ),
        pytest.param("error_ratio", [finished(9), finished(1, "error")], 0.1, id="errors"),
        pytest.param("error_ratio", [finished(9), finished(0, "error")], 0, id="no error is 0"),
        pytest.param("error_ratio", [finished(9)], None, id="a vLLM that counts no errors"),
        pytest.param("error_ratio", [finished(0, "error")], None, id="no request finished"),
        pytest.param(
            "rejected",
            [counter(REJECTIONS, {0: 1, 10: 4}), counter(REJECTIONS, {0: 0, 10: 2}, reason="x")],
            5,
            id="rejections, over all reasons",
        ),
        pytest.param("rejected", [finished(9)], None, id="a vLLM that counts no rejections"),
    ],
)
def test_failures_that_are_counted(tmp_path, name, lines, expected):
    assert mid_of(tmp_path, name, gauge(RUNNING, {0: 0, 10: 0}), *lines) == expected


@pytest.mark.parametrize(
    ("running", "first", "ended", "expected"),
    [
        pytest.param({0: 0, 10: 0}, 10, 7, (3, 3, 3), id="nothing in flight: exact"),
        pytest.param({0: 2, 10: 1}, 10, 7, (2, 4, 5), id="those at either end may be any of them"),
        pytest.param({0: 0, 10: 5}, 10, 7, (0, 0, 3), id="never below 0"),
    ],
)
def test_streams_that_clients_left(tmp_path, running, first, ended, expected):
    lines = [gauge(RUNNING, running), first_tokens(first), finished(ended)]
    found = failures(small_window(tmp_path, *lines), time_range=ALL).abandoned
    assert (found.low, found.mid, found.high) == expected


@pytest.mark.parametrize(
    "lines",
    [
        pytest.param([finished(7)], id="without first tokens"),
        pytest.param([first_tokens(10)], id="without finished requests"),
    ],
)
def test_streams_that_were_left_need_both_ends(tmp_path, lines):
    assert mid_of(tmp_path, "abandoned", gauge(RUNNING, {0: 0, 10: 0}), *lines) is None
