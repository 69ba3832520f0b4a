"""Planted changes are found, and false alarms are rare, on simulated servers."""

import numpy as np
import polars as pl
import pytest
from made_days import PAIRS, made_steps

from bench.changes import judged
from vllm_capacity.estimate import Estimate
from vllm_capacity.verdicts.changes import Change, change, comparable_steps, mean_change, ratio_of

TIMES = 20
PLANTED = 0.05


@pytest.fixture(scope="module")
def judged_pairs():
    """Each pair of sides ten times, unchanged and with a change of 5 %."""
    return {
        name: judged(name, times=10, seed=77, figure="itl_seconds", planted=PLANTED)
        for name in PAIRS
    }


def test_false_alarms_are_rare_whatever_slows_the_servers(judged_pairs):
    alarms = {name: found.alarms for name, found in judged_pairs.items()}
    assert sum(alarms.values()) <= 0.05 * 10 * len(PAIRS)
    assert max(alarms.values()) <= 1


def test_intervals_contain_the_truth(judged_pairs):
    held = sum(found.held for found in judged_pairs.values())
    assert held >= 0.97 * 20 * len(PAIRS)


def test_a_change_of_the_stated_detectable_size_is_found(judged_pairs):
    result = [each for found in judged_pairs.values() for each in found.promised(PLANTED)]
    assert sum(bool(each.is_more_than_noise) for each in result) >= 0.9 * len(result)
    assert len(result) > 80


@pytest.mark.parametrize(
    ("name", "least", "most"),
    [
        pytest.param("the same demand", 0.02, 0.05, id="a day each detects 5 %"),
        pytest.param("a quiet machine", 0.003, 0.02, id="and 1 % where little else slows it"),
        pytest.param("noise that lasts four hours", 0.1, 0.3, id="drifts of hours hide it"),
        pytest.param("four hours each", 0.07, 0.3, id="four hours detect less"),
    ],
)
def test_what_would_be_found_is_what_the_hours_can_tell(judged_pairs, name, least, most):
    assert least <= judged_pairs[name].detectable <= most


def test_without_data_the_slo_table_is_empty():
    assert Change(Estimate.unknown("no load in common")).detectable_change_ratio is None
    assert Change(Estimate.exact(1.0)).detectable_change_ratio == 0.0


MODELS = {"a/0": "small", "b/0": "large"}
RENAMED = {"a": "c", "b": "d"}  # as pods are on redeployment


def two_models(rng, *, small, large, speed=1.0, names=None):
    """Two engines of two models, one slow, under these demands."""
    sides = [
        made_steps(rng, engines=1, demand=demand, speed=of * speed).with_columns(
            instance=pl.lit((names or {}).get(name, name))
        )
        for name, demand, of in (("a", small, 1.0), ("b", large, 0.5))
    ]
    models = {f"{(names or {}).get(name[0], name[0])}/0": model for name, model in MODELS.items()}
    return comparable_steps(pl.concat(sides), models)


@pytest.mark.parametrize("names", [None, RENAMED], ids=["the same engines", "new pods"])
@pytest.mark.parametrize(("speed", "least", "most"), [(1.0, 0.0, 0.05), (1 / 1.05, 0.9, 1.0)])
def test_a_shift_of_load_between_models_is_no_change_of_speed(names, speed, least, most):
    alarms = 0
    for number in range(TIMES):
        rng = np.random.default_rng(7000 + number)
        before = two_models(rng, small=9.0, large=3.0)
        after = two_models(rng, small=3.0, large=9.0, speed=speed, names=names)
        alarms += bool(change(before, after, "itl_seconds").is_more_than_noise)
    assert least <= alarms / TIMES <= most


def test_another_model_is_compared_at_the_same_load():
    rng = np.random.default_rng(5)
    before, after = (
        comparable_steps(made_steps(rng, engines=1, speed=speed), {"a/0": model})
        for speed, model in ((1.0, "m"), (2.0, "n"))
    )
    assert change(before, after, "itl_seconds").ratio.high < 0.6


def test_first_tokens_raise_no_false_alarms():
    found = judged("40 % more demand", times=TIMES, seed=9, figure="ttft_seconds", planted=0.1)
    assert found.alarms / TIMES <= 0.05


def test_loads_never_shared_show_nothing():
    rng = np.random.default_rng(1)
    sides = made_steps(rng, demand=1.0), made_steps(rng, demand=300.0)
    result = change(*map(comparable_steps, sides), "itl_seconds")
    assert result.is_more_than_noise is None
    assert "hardly overlap" in result.ratio.reason


def test_unobserved_steps_show_nothing():
    rng = np.random.default_rng(2)
    steps = made_steps(rng, hours=2).with_columns(ttft_p95_seconds=pl.lit(None, pl.Float64))
    result = change(comparable_steps(steps), comparable_steps(steps), "ttft_seconds")
    assert result.ratio.reason == "it was not observed in A and B"


def test_gaps_restarts_and_idle_steps_are_left_out():
    rng = np.random.default_rng(3)
    steps = made_steps(rng, hours=1, engines=1)
    marked = steps.with_columns(
        is_gap=pl.int_range(60) < 10,
        is_restart=pl.int_range(60).is_between(10, 14),
        output_tokens_per_second=pl.when(pl.int_range(60) < 50).then("output_tokens_per_second"),
    )
    assert comparable_steps(marked).height == 35


@pytest.mark.parametrize(("factor", "result"), [(1.0, False), (3.0, True)])
def test_a_change_of_a_mean_beyond_its_noise_is_found(factor, result):
    rng = np.random.default_rng(4)
    sides = made_steps(rng), made_steps(rng, demand=6.0 * factor**2)
    assert mean_change(*sides, "output_tokens_per_second").is_more_than_noise is result


@pytest.mark.parametrize(
    ("before", "after", "result"),
    [
        pytest.param(Estimate.known(95, 100, 105), Estimate.known(97, 102, 107), False, id="close"),
        pytest.param(Estimate.known(95, 100, 105), Estimate.known(142, 150, 158), True, id="apart"),
        pytest.param(Estimate.at_least(9, reason="r"), Estimate.known(1, 2, 3), None, id="a bound"),
        pytest.param(Estimate.known(0, 1, 2), Estimate.known(1, 2, 3), None, id="it may be 0"),
    ],
)
def test_two_estimates(before, after, result):
    assert ratio_of(before, after).is_more_than_noise is result
