"""Which load to test next, and how many loads that saves."""

import polars as pl
import pytest

from vllm_capacity.verdicts.saturation.load_test import fit_points
from vllm_capacity.verdicts.saturation.next_load import next_loads

GOOD = 1.4


def frame(loads, law):
    table = pl.DataFrame({"running_requests": [float(n) for n in loads]})
    return table.with_columns(output_tokens_per_second=pl.Series([law(n) for n in loads]))


def ceiling(running):
    return min(40 * running / (1 + 0.01 * running), 900.0)


def slow(running):
    return 100 * running / (1 + (0.05 * running) ** 0.8) ** 1.25


def width(table):
    capacity = fit_points(table).capacity
    return capacity.high / capacity.low if capacity.is_known else float("inf")


@pytest.mark.parametrize("law", [ceiling, slow])
def test_it_takes_half_the_loads_of_a_doubling_grid(law):
    grid = [1.0]
    while width(frame(grid, law)) > GOOD:
        grid.append(2 * grid[-1])
    loads = [1.0]
    while width(frame(loads, law)) > GOOD:
        (best, *_) = next_loads(frame(loads, law))
        loads = sorted([*loads, best.clients])
    assert len(loads) <= len(grid) / 2 + 1


@pytest.mark.parametrize(
    ("loads", "most", "clients"),
    [
        pytest.param([], None, 8, id="nothing measured"),
        pytest.param([1], None, 12, id="one light load"),
        pytest.param([1, 12], 100.0, 100, id="no more than may be tried"),
        pytest.param([1, 64], 64.0, 8, id="between, where no heavier load may be tried"),
    ],
)
def test_first_loads_lie_far_apart(loads, most, clients):
    assert next_loads(frame(loads, ceiling), most_clients=most)[0].clients == clients


def test_a_proven_plateau_needs_no_further_load():
    table = frame([4, 64, 128], ceiling).with_columns(
        waiting_requests=pl.Series([0.0, 20.0, 90.0]),
        output_tokens_per_second=pl.Series([150.0, 899.0, 900.0]),
    )
    assert next_loads(table) == ()


def test_the_server_s_own_limit_is_passed_by_a_quarter_at_most():
    table = frame([4, 8, 16], slow).with_columns(max_num_seqs=pl.lit(32.0))
    assert all(each.clients <= 40 for each in next_loads(table))


def test_a_second_suggested_load_accounts_for_the_first():
    first, *second = next_loads(frame([4, 8, 16], slow))
    assert first.high_over_low < width(frame([4, 8, 16], slow))
    assert all(each.high_over_low < first.high_over_low for each in second)
