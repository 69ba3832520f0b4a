"""Tables of loads as people have them: a row a scrape, repeated tests, columns half empty."""

import numpy as np
import polars as pl
import pytest

from vllm_capacity.verdicts.points import fit_points

RATE, BEND = 30.0, 0.05
LOADS = np.array([1.0, 2.0, 4.0, 8.0, 16.0])


def law(running):
    return RATE * running / (1 + BEND * running)


def capacity(running, output, **more):
    table = {"running_requests": running, "output_tokens_per_second": output, **more}
    return fit_points(pl.DataFrame(table))["capacity_output_tokens_per_second"]


# The luckiest of many noisy rows lie within 5 % of each other, and are no plateau.
@pytest.mark.parametrize("count", [60, 500, 5000])
def test_a_row_a_scrape_shows_no_plateau_before_there_is_one(count):
    rng = np.random.default_rng(count)
    running = rng.uniform(1, 20, count)
    found = capacity(running, law(running) * rng.normal(1, 0.1, count))
    assert not (found["basis"] or "").startswith("mean of")
    assert found["low"] < law(60.0) < found["high"]


def test_a_row_a_scrape_shows_the_plateau_that_is_there():
    rng = np.random.default_rng(1)
    running = rng.uniform(1, 60, 2000)
    found = capacity(running, np.minimum(law(running), 300) * rng.normal(1, 0.1, 2000))
    assert found["basis"].startswith("mean of")
    assert found["mid"] == pytest.approx(300, rel=0.03)


def test_repeated_loads_are_averaged_and_their_scatter_widens_the_answer():
    once = capacity(LOADS, law(LOADS))
    scattered = np.concatenate([0.97 * law(LOADS), 1.03 * law(LOADS)])
    twice = capacity(np.tile(LOADS, 2), scattered)
    assert twice["basis"].startswith("foreseen from 5 lighter loads")
    assert twice["high"] / twice["low"] > once["high"] / once["low"]


def test_the_order_of_rows_is_no_matter():
    back = slice(None, None, -1)
    assert capacity(LOADS[back], law(LOADS)[back]) == capacity(LOADS, law(LOADS))


def test_rows_without_load_or_output_are_left_out():
    running = [*LOADS, 0.0, 32.0, None]
    output = [*law(LOADS), 0.0, None, 500.0]
    assert capacity(running, output) == capacity(LOADS, law(LOADS))


def test_kv_ratios_given_now_and_then_still_cut_the_curve():
    ratios = [None, None, 0.144, None, 0.57]
    found = capacity(LOADS, law(LOADS), kv_cache_ratio=ratios)
    assert "cut where the KV cache would be full, at 26.9 running requests" in found["basis"]
