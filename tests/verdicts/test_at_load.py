"""Throughput and latency at a named concurrency, between and beyond the tested loads."""

import numpy as np
import polars as pl
import pytest

from vllm_capacity.errors import InputError
from vllm_capacity.verdicts.saturation.at_load import fit_at
from vllm_capacity.verdicts.saturation.curve import LoadPoints, expected_output

LOADS = np.array([4.0, 8.0, 16.0, 32.0])
TOKENS = 150.0


def law(running):
    return 200 * running / (1 + 0.02 * running) ** 1.0


TABLE = pl.DataFrame(
    {
        "running_requests": LOADS,
        "output_tokens_per_second": law(LOADS),
        "requests_per_second": law(LOADS) / TOKENS,
        "ttft_p95_seconds": 0.02 * LOADS**0.6,
        "itl_p95_seconds": LOADS / law(LOADS),
    }
)


@pytest.mark.parametrize("clients", [3.0, 5.5, 8.0, 12.0, 24.0, 48.0, 64.0])
def test_the_truth_of_a_law_is_inside_between_and_beyond_the_loads(clients):
    found = fit_at(TABLE, clients)
    truths = {
        "output_tokens_per_second": law(clients),
        "requests_per_second": law(clients) / TOKENS,
        "request_seconds": clients * TOKENS / law(clients),
        "ttft_p95_seconds": 0.02 * clients**0.6,
        "itl_p95_seconds": clients / law(clients),
    }
    for name, truth in truths.items():
        estimate = getattr(found, name)
        assert estimate.low <= truth <= estimate.high, name


def test_loads_farther_away_are_less_certain():
    widths = [
        (found.high / found.low)
        for found in (
            fit_at(TABLE, clients).output_tokens_per_second for clients in (16.0, 48.0, 128.0)
        )
    ]
    assert widths == sorted(widths)


def test_past_a_proven_limit_it_is_the_capacity():
    table = TABLE.with_columns(waiting_requests=pl.Series([0.0, 0.0, 0.0, 12.0]))
    found = fit_at(table, 200.0).output_tokens_per_second
    assert found.mid == pytest.approx(law(32.0))


def test_clients_are_the_loads_if_every_row_has_them():
    table = TABLE.with_columns(clients=2 * pl.col("running_requests"))
    at = fit_at(table, 32.0).output_tokens_per_second
    assert at.mid == pytest.approx(law(16.0), rel=0.05)


def test_no_more_run_than_the_server_runs_at_once():
    table = TABLE.with_columns(max_num_seqs=pl.lit(40.0))
    found = fit_at(table, 100.0).output_tokens_per_second
    assert found.mid == pytest.approx(fit_at(TABLE, 40.0).output_tokens_per_second.mid)
    assert "at most 40 run at once" in found.sources


@pytest.mark.parametrize(
    ("columns", "clients", "name", "why"),
    [
        pytest.param(5, 16.0, "request_seconds", "no requests_per_second", id="none served"),
        pytest.param(5, 16.0, "ttft_p95_seconds", "two loads with ttft", id="no latency"),
        pytest.param(1, 16.0, "output_tokens_per_second", "two different loads", id="one load"),
        pytest.param(0, 16.0, "output_tokens_per_second", "two different loads", id="no load"),
        pytest.param(
            5, 999.0, "output_tokens_per_second", "test a load closer to it", id="far beyond"
        ),
    ],
)
def test_an_unknown_value_has_a_reason(columns, clients, name, why):
    table = TABLE.head(columns).select("running_requests", "output_tokens_per_second")
    estimate = getattr(fit_at(table, clients), name)
    assert estimate.is_unknown
    assert why in estimate.reason


def test_a_concurrency_of_0_is_refused():
    with pytest.raises(InputError, match="above 0"):
        fit_at(TABLE, 0.0)


def test_one_load_is_not_enough_to_estimate_another():
    assert expected_output(LoadPoints.of([4.0, 4.0], [100.0, 101.0]), 8.0) is None
