"""Rows at a server's limit: one of them proves a plateau, a false alarm does not."""

import math

import polars as pl
import pytest

from vllm_capacity.verdicts.saturation.load_test import LoadTest, fit_points

RISING = {
    "running_requests": [4.0, 8.0, 16.0, 26.0],
    "output_tokens_per_second": [103.0, 180.0, 264.0, 297.0],
}


def fitted(**columns):
    return fit_points(pl.DataFrame({**RISING, **columns}))


@pytest.mark.parametrize(
    "columns",
    [
        pytest.param({"waiting_requests": [0.0, 0.0, 0.1, 14.0]}, id="requests wait"),
        pytest.param(
            {
                "offered_requests_per_second": [1.0, 1.8, 2.7, 6.0],
                "requests_per_second": [1.0, 1.8, 2.64, 2.97],
            },
            id="less is served than was offered",
        ),
        pytest.param(
            {"offered_requests_per_second": [1.03, 1.8, 2.64, 6.0]},
            id="fewer tokens for each request offered than at light load",
        ),
        pytest.param(
            {
                "offered_requests_per_second": [1.0, 1.8, 2.7, math.inf],
                "requests_per_second": [1.0, 1.8, 2.64, 2.97],
            },
            id="as much as it takes was offered",
        ),
        pytest.param({"max_num_seqs": [26.0] * 4}, id="it runs as many as it may"),
        pytest.param(
            {"max_num_seqs": [32.0] * 4, "clients": [4.0, 8.0, 16.0, 64.0]},
            id="more clients than it runs at once",
        ),
    ],
)
def test_one_row_at_the_limit_proves_a_plateau(columns):
    found = fitted(**columns)
    assert found.capacity_kind == "measured"
    assert (found.capacity.low, found.capacity.mid) == (297, 297)
    assert found.capacity.high <= 1.1 * 297
    assert found.capacity_running_requests.mid == 26


@pytest.mark.parametrize(
    "columns",
    [
        pytest.param({}, id="nothing is given"),
        pytest.param({"waiting_requests": [0.0, 0.0, 0.0, 0.2]}, id="now and then one waits"),
        pytest.param({"waiting_requests": [9.0, 0.0, 0.0, 0.0]}, id="a light load waited"),
        pytest.param(
            {
                "offered_requests_per_second": [1.05, 1.9, 2.8, 3.1],
                "requests_per_second": [1.0, 1.8, 2.64, 2.97],
            },
            id="a short test serves a little less",
        ),
        pytest.param({"max_num_seqs": [64.0] * 4}, id="it could run more"),
        pytest.param({"waiting_requests": [None] * 4, "clients": [None] * 4}, id="empty columns"),
    ],
)
def test_a_row_that_is_not_at_the_limit_proves_nothing(columns):
    assert fitted(**columns).capacity_kind == "extrapolated"


def test_rows_at_several_offered_rates_and_one_throughput_are_one_plateau():
    found = fit_points(
        pl.DataFrame(
            {
                "running_requests": [18.0, 27.0, 27.1, 27.0, 27.2],
                "output_tokens_per_second": [240.0, 297.0, 296.0, 298.0, 297.0],
                "offered_requests_per_second": [2.4, 25.0, 50.0, 100.0, 200.0],
                "requests_per_second": [2.4, 2.97, 2.96, 2.98, 2.97],
            }
        )
    )
    assert found.capacity.mid == pytest.approx(297, rel=0.01)
    assert found.capacity.high / found.capacity.low < 1.15


def test_a_limit_with_less_output_than_a_lighter_load_has_an_earlier_peak():
    found = fit_points(
        pl.DataFrame(
            {
                "running_requests": [8.0, 16.0, 27.0, 60.0],
                "output_tokens_per_second": [180.0, 264.0, 300.0, 276.0],
                "waiting_requests": [0.0, 0.0, 0.0, 30.0],
            }
        )
    )
    assert (found.capacity_kind, found.capacity.mid) == ("measured", 300)


def test_nothing_below_the_measured_rate_is_reported_as_reachable():
    found = fitted().capacity
    assert found.low == 297
    assert found.low <= found.mid <= found.high


def test_the_most_that_runs_at_once_cuts_the_curve():
    free, cut = fitted().capacity, fitted(max_num_seqs=[32.0] * 4).capacity
    assert cut.high < free.high
    assert "runs at most 32 requests at once" in cut.sources


def test_clients_stand_for_the_running_requests():
    table = pl.DataFrame(
        {"clients": [4.0, 64.0], "output_tokens_per_second": [103.0, 297.0], "max_num_seqs": 32.0}
    )
    assert LoadTest.of(table).loads.running.tolist() == [4.0, 32.0]


def test_running_at_max_num_seqs_is_a_scheduler_limit():
    assert fitted(max_num_seqs=[26.0] * 4).bottleneck == "scheduler-bound"
