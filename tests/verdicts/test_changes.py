"""A change is found where one was planted, and hardly ever where none was; by made servers."""

import numpy as np
import polars as pl
import pytest
from made_days import made_steps

from vllm_capacity.estimate import Estimate
from vllm_capacity.verdicts.changes import change, comparable_steps, mean_change, ratio_of

TIMES = 20
OTHERS = [
    pytest.param({}, {}, id="the same demand"),
    pytest.param({}, {"demand": 8.4}, id="40 % more demand"),
    pytest.param({}, {"prompt_ratio": 6.0}, id="prompts twice as long"),
    pytest.param({"demand": 0.2}, {"demand": 0.1}, id="mostly idle, and half of that"),
    pytest.param({"weather_minutes": 60}, {"weather_minutes": 60}, id="noise that lasts an hour"),
    pytest.param({"hours": 4}, {"hours": 4}, id="four hours each"),
]
DRIFTS = [
    pytest.param(minutes, hours, id=f"noise of {minutes} min, {hours} h each")
    for minutes, hours in ((120, 24), (240, 24), (240, 168))
]


def found(figure, before, after, *, speed, seed):
    """How often a change was called more than noise, and how often its interval held the truth."""
    alarms = held = 0
    for number in range(TIMES):
        rng = np.random.default_rng(seed + number)
        sides = (
            made_steps(rng, engines=1, **before),
            made_steps(rng, engines=1, speed=speed, **after),
        )
        told = change(*map(comparable_steps, sides), figure)
        alarms += bool(told.is_more_than_noise)
        low, high = told.ratio.low, told.ratio.high
        held += low is None or high is None or low <= 1 / speed <= high
    return alarms / TIMES, held / TIMES


@pytest.mark.parametrize(("before", "after"), OTHERS)
def test_no_false_alarms(before, after):
    alarms, held = found("itl_seconds", before, after, speed=1.0, seed=100)
    assert (alarms <= 0.05, held >= 0.95) == (True, True)


@pytest.mark.parametrize(("minutes", "hours"), DRIFTS)
def test_a_server_that_drifts_for_hours_raises_no_false_alarms(minutes, hours):
    side = {"weather_minutes": minutes, "hours": hours}
    alarms = 0
    for number in range(3 * TIMES):
        rng = np.random.default_rng(4000 + number)
        sides = (made_steps(rng, engines=1, **side) for _ in range(2))
        alarms += bool(change(*map(comparable_steps, sides), "itl_seconds").is_more_than_noise)
    assert alarms / (3 * TIMES) <= 0.05


# Between prompts of quite another length a 5 % change is found less often: that is no false claim.
@pytest.mark.parametrize(("before", "after"), [OTHERS[0], OTHERS[1], OTHERS[3]])
@pytest.mark.parametrize("speed", [1.05, 1 / 1.05], ids=["faster by 5 %", "slower by 5 %"])
def test_a_planted_change_is_found(before, after, speed):
    alarms, held = found("itl_seconds", before, after, speed=speed, seed=500)
    assert (alarms >= 0.9, held >= 0.95) == (True, True)


MODELS = {"a/0": "small", "b/0": "large"}
RENAMED = {"a": "c", "b": "d"}  # as pods are, when they are deployed anew


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
    alarms, _ = found("ttft_seconds", {}, {"demand": 8.4}, speed=1.0, seed=900)
    assert alarms <= 0.05


def test_loads_that_were_never_shared_tell_nothing():
    rng = np.random.default_rng(1)
    sides = made_steps(rng, demand=1.0), made_steps(rng, demand=300.0)
    told = change(*map(comparable_steps, sides), "itl_seconds")
    assert told.is_more_than_noise is None
    assert "hardly any load in common" in told.ratio.reason


def test_what_was_not_observed_tells_nothing():
    rng = np.random.default_rng(2)
    steps = made_steps(rng, hours=2).with_columns(ttft_p95_seconds=pl.lit(None, pl.Float64))
    told = change(comparable_steps(steps), comparable_steps(steps), "ttft_seconds")
    assert told.ratio.reason == "nothing of it was observed in A and B"


def test_gaps_restarts_and_idle_steps_are_left_out():
    rng = np.random.default_rng(3)
    steps = made_steps(rng, hours=1, engines=1)
    marked = steps.with_columns(
        is_gap=pl.int_range(60) < 10,
        is_restart=pl.int_range(60).is_between(10, 14),
        output_tokens_per_second=pl.when(pl.int_range(60) < 50).then("output_tokens_per_second"),
    )
    assert comparable_steps(marked).height == 35


@pytest.mark.parametrize(("factor", "told"), [(1.0, False), (3.0, True)])
def test_a_mean_changes_beyond_its_own_noise(factor, told):
    rng = np.random.default_rng(4)
    sides = made_steps(rng), made_steps(rng, demand=6.0 * factor**2)
    assert mean_change(*sides, "output_tokens_per_second").is_more_than_noise is told


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        pytest.param(Estimate.known(95, 100, 105), Estimate.known(97, 102, 107), False, id="close"),
        pytest.param(Estimate.known(95, 100, 105), Estimate.known(142, 150, 158), True, id="apart"),
        pytest.param(Estimate.at_least(9, reason="r"), Estimate.known(1, 2, 3), None, id="a bound"),
        pytest.param(Estimate.known(0, 1, 2), Estimate.known(1, 2, 3), None, id="it may be 0"),
    ],
)
def test_two_estimates(before, after, told):
    assert ratio_of(before, after).is_more_than_noise is told
