"""Load tables as people have them: one row per scrape, repeated tests, half-empty columns."""

import numpy as np
import polars as pl
import pytest

from vllm_capacity.verdicts.saturation.load_test import fit_points

RATE, BEND = 30.0, 0.05
LOADS = np.array([1.0, 2.0, 4.0, 8.0, 16.0])


def law(running):
    return RATE * running / (1 + BEND * running)


def capacity(running, output, **more):
    table = {"running_requests": running, "output_tokens_per_second": output, **more}
    return fit_points(pl.DataFrame(table)).capacity


# The highest of many noisy rows lie within 5 % of each other without being a plateau.
@pytest.mark.parametrize("count", [60, 500, 5000])
def test_a_row_per_scrape_shows_no_plateau_before_there_is_one(count):
    rng = np.random.default_rng(count)
    running = rng.uniform(1, 20, count)
    found = capacity(running, law(running) * rng.normal(1, 0.1, count))
    assert not found.sources.startswith("mean of")
    assert found.low < law(60.0) < found.high


def test_a_row_per_scrape_shows_the_plateau_that_is_there():
    rng = np.random.default_rng(1)
    running = rng.uniform(1, 60, 2000)
    found = capacity(running, np.minimum(law(running), 300) * rng.normal(1, 0.1, 2000))
    assert found.sources.startswith("mean of")
    assert found.mid == pytest.approx(300, rel=0.03)


LINES = {
    "the heaviest load thrice, a little apart": [1, 2, 4, 7.9, 7.95, 8],
    "one load ten times": 8 + 0.01 * np.arange(10),
    "every load from 10 to 40": np.arange(10, 41),
    "three runs a load, a little apart": np.repeat([1, 2, 4, 8, 16], 3)
    * np.tile([0.99, 1, 1.01], 5),
}


@pytest.mark.parametrize("running", LINES.values(), ids=LINES)
def test_a_straight_line_is_no_plateau_however_often_its_loads_were_measured(running):
    found = capacity(np.asarray(running, float), RATE * np.asarray(running, float))
    assert found.mid is None
    assert "running requests" in found.reason


def test_runs_of_one_load_a_little_apart_change_little():
    thrice = np.repeat(LOADS, 3) * np.tile([0.99, 1.0, 1.01], 5)
    found, once = capacity(thrice, np.repeat(law(LOADS), 3)), capacity(LOADS, law(LOADS))
    assert found.mid == pytest.approx(once.mid, rel=0.05)


def test_two_loads_on_a_plateau_leave_room_for_noise():
    output = np.array([50.0, 95.0, 178.0, 300.0, 305.0])
    found = capacity(LOADS, output)
    assert found.sources.startswith("mean of the 2 loads")
    assert found.high > 1.1 * 305


def test_a_single_peak_may_be_higher_between_the_tested_loads():
    running, output = [1, 2, 4, 8, 16, 32], [50.0, 98.0, 185.0, 330.0, 500.0, 350.0]
    table = pl.DataFrame({"running_requests": running, "output_tokens_per_second": output})
    found = fit_points(table)
    capacity_seen = found.capacity_output_tokens_per_second
    assert capacity_seen.low <= 500 < 1.1 * 500 < capacity_seen.high
    ends = found.capacity_running_requests
    assert (ends.low, ends.mid, ends.high) == (8, 16, 32)


def test_a_lone_peak_is_no_result_but_names_the_loads_to_test():
    found = capacity([1.0, 16.0, 256.0], [50.0, 700.0, 300.0])
    assert found.mid is None
    assert "between 1.0 and 256.0" in found.reason


def test_repeated_loads_are_averaged_and_their_scatter_widens_the_answer():
    once = capacity(LOADS, law(LOADS))
    scattered = np.concatenate([0.97 * law(LOADS), 1.03 * law(LOADS)])
    twice = capacity(np.tile(LOADS, 2), scattered)
    assert twice.sources.startswith("extrapolated from 5 lighter loads")
    assert twice.high / twice.low > once.high / once.low


def test_the_order_of_rows_does_not_matter():
    back = slice(None, None, -1)
    assert capacity(LOADS[back], law(LOADS)[back]) == capacity(LOADS, law(LOADS))


def test_rows_without_load_or_output_are_left_out():
    running = [*LOADS, 0.0, 32.0, None]
    output = [*law(LOADS), 0.0, None, 500.0]
    assert capacity(running, output) == capacity(LOADS, law(LOADS))


def test_kv_ratios_given_now_and_then_still_cut_the_curve():
    ratios = [None, None, 0.144, None, 0.57]
    found = capacity(LOADS, law(LOADS), kv_cache_ratio=ratios)
    assert "cut where the KV cache would be full, at 26.9 running requests" in found.sources
