import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_steps import made_steps, steady

from vllm_capacity.errors import InputError
from vllm_capacity.estimate import Estimate
from vllm_capacity.verdicts.saturation.fit import engine_fits
from vllm_capacity.verdicts.saturation.slo import running_at
from vllm_capacity.verdicts.sizing import (
    Policy,
    demand_seen,
    month_usd,
    percentile_demand,
    queue_check,
    replicas,
    sensitivity,
    usual_cases,
)


def exact(value):
    return Estimate.exact(value, "a test")


@pytest.mark.parametrize(
    ("demand", "capacity", "policy", "expected"),
    [
        pytest.param(800, 100, Policy(0.2, 0), 10, id="headroom is kept free"),
        pytest.param(800, 100, Policy(0.2, 2), 12, id="spares come on top"),
        pytest.param(801, 100, Policy(0.2, 0), 11, id="a part of a replica is a replica"),
        pytest.param(0, 100, Policy(0.2, 1), 1, id="no demand takes the spare"),
        pytest.param(300, 100, Policy(0.0, 0), 3, id="an exact fit is not rounded up"),
        pytest.param(
            100, 100, Policy(0.0, 0, startup_seconds=360, growth_per_hour=1.0), 2, id="it grows"
        ),
    ],
)
def test_replicas(demand, capacity, policy, expected):
    assert replicas(exact(demand), exact(capacity), policy).mid == expected


def test_the_ends_of_both_estimates_are_paired_for_the_widest():
    found = replicas(
        Estimate.known(100, 200, 300, "p95"), Estimate.known(50, 100, 150, "fit"), Policy(0.0, 0)
    )
    assert (found.low, found.mid, found.high) == (1, 2, 6)


@pytest.mark.parametrize(
    ("demand", "capacity", "says"),
    [
        pytest.param(Estimate.unknown("no demand"), exact(1.0), "no demand", id="no demand"),
        pytest.param(exact(1.0), Estimate.unknown("no bend"), "no bend", id="no capacity"),
        pytest.param(exact(1.0), Estimate.known(0, 1, 2, "fit"), "zero", id="perhaps none"),
        pytest.param(exact(1e12), exact(1.0), "more than", id="beyond all reason"),
    ],
)
def test_an_unknown_stays_unknown_with_its_reason(demand, capacity, says):
    assert says in replicas(demand, capacity, Policy()).reason


def test_dollars_a_month():
    assert month_usd(exact(20), exact(1.5)).mid == pytest.approx(20 * 1.5 * 730.5)


def test_without_a_price_a_month_says_why():
    assert month_usd(exact(10), Estimate.unknown("no price")).reason == "no price"


@pytest.mark.parametrize(
    ("rates", "quantile", "expected"),
    [
        pytest.param(list(range(1, 101)), 0.95, 95, id="a hundred steps"),
        pytest.param([1.0, None, 3.0], 0.5, 1.0, id="steps without observation are left out"),
        pytest.param([5.0], 0.95, 5.0, id="one step"),
        pytest.param([], 0.95, None, id="none"),
        pytest.param([None], 0.95, None, id="nothing observed"),
    ],
)
def test_demand_at_a_percentile(rates, quantile, expected):
    assert percentile_demand(rates, quantile).mid == expected


def test_too_few_steps_for_an_upper_end_say_so():
    assert "too few" in percentile_demand([1.0, 2.0, 3.0], 0.95).sources


@pytest.mark.parametrize(
    "policy",
    [
        {"headroom_ratio": 1.0},
        {"headroom_ratio": -0.1},
        {"spare_replicas": -1},
        {"startup_seconds": float("nan")},
        {"growth_per_hour": float("inf")},
    ],
)
def test_an_impossible_policy_is_refused(policy):
    with pytest.raises(InputError):
        Policy(**policy)


def test_what_if_prompts_double_or_caching_is_off():
    cases = usual_cases(prefill_share=0.5, prefix_hit_ratio=0.5)
    found = sensitivity(exact(1000), exact(100), policy=Policy(0.0, 0), cases=cases)
    assert {name: estimate.mid for name, estimate in found.items()} == {
        "now": 10,
        "demand doubles": 20,
        "prompts double": 15,
        "prefix caching off": 15,
    }


@pytest.mark.parametrize(
    ("given", "prompts", "caching"),
    [
        pytest.param({}, 1 / 1.1, 1 / 1.1, id="where the KV cache is no limit, by time"),
        pytest.param(
            {"is_kv_limited": True}, (300 + 50) / (600 + 50), 200 / 350, id="where it is, by tokens"
        ),
        pytest.param(
            {"is_kv_limited": True, "prefill_share": 1.0},
            0.5,
            0.5,
            id="the tighter of the two: time",
        ),
        pytest.param(
            {"is_kv_limited": True, "prompt_tokens": None}, 1 / 1.1, 1 / 1.1, id="tokens unknown"
        ),
    ],
)
def test_capacity_left_by_longer_prompts_and_without_caching(given, prompts, caching):
    usual = {"prefill_share": 0.1, "prefix_hit_ratio": 0.5}
    tokens = {"prompt_tokens": 300.0, "output_tokens": 100.0}
    cases = usual_cases(**{**usual, **tokens, **given})
    found = (cases["prompts double"].capacity, cases["prefix caching off"].capacity)
    assert found == pytest.approx((prompts, caching))


@pytest.mark.parametrize(
    ("is_kv_limited", "message"),
    [pytest.param(True, "KV tokens", id="KV"), pytest.param(False, "engine time", id="time")],
)
def test_a_case_states_the_basis_of_its_capacity(is_kv_limited, message):
    cases = usual_cases(
        prefill_share=0.1,
        prefix_hit_ratio=None,
        prompt_tokens=300.0,
        output_tokens=100.0,
        is_kv_limited=is_kv_limited,
    )
    found = sensitivity(exact(1000), exact(100), policy=Policy(0.0, 0), cases=cases)
    assert message in found["prompts double"].sources
    assert message not in found["now"].sources


def steps(rows):
    """One engine's steps, each (running, waiting, output tokens/s, requests/s)."""
    return made_steps(
        *(
            steady(running, output, waiting_mean=waiting, requests_per_second=rate)
            for running, waiting, output, rate in rows
        )
    )


@pytest.mark.parametrize(
    ("rows", "warns"),
    [
        pytest.param([(4, 0, 80, 1.0)] * 30, False, id="no request waited"),
        pytest.param(
            [(4, 0, 80, 1.0)] * 28 + [(20, 9, 200, 3.0)] * 2, True, id="a queue when most finished"
        ),
        pytest.param(
            [(4, 9, 80, 1.0)] * 20 + [(20, 0, 200, 3.0)] * 10, False, id="a queue at other times"
        ),
    ],
)
def test_demand_that_a_queue_capped_says_so(rows, warns):
    assert ("demand may have been higher" in demand_seen(steps(rows), 0.95).sources) is warns


def test_demand_without_observations_is_unknown():
    assert demand_seen(steps([(0, 0, 0, None)]), 0.95).reason


@pytest.mark.parametrize(
    ("output", "running"),
    [
        pytest.param(80.0, 4.0, id="a load that was seen"),
        pytest.param(120.0, 8.0, id="between two loads"),
        pytest.param(500.0, 20.0, id="beyond all loads the nearest"),
    ],
)
def test_running_requests_at_an_output(output, running):
    seen = [(4, 0, 80, 1.0)] * 5 + [(12, 0, 160, 2.0)] * 5 + [(20, 0, 200, 3.0)] * 5
    (fit,) = engine_fits(steps(seen))
    assert running_at(fit, output) == pytest.approx(running)


def test_no_load_no_running_requests():
    (fit,) = engine_fits(steps([(0, 0, 0, None)]))
    assert running_at(fit, 80.0) is None


def test_caching_that_was_not_observed_is_no_case():
    assert "prefix caching off" not in usual_cases(prefill_share=0.5, prefix_hit_ratio=None)


@pytest.mark.parametrize(
    ("rate", "within"),
    [
        pytest.param(1.0, True, id="a quiet queue holds the limit"),
        pytest.param(3.99, False, id="a nearly full one does not"),
        pytest.param(5.0, False, id="an overloaded one never settles"),
    ],
)
def test_a_queue_checks_the_sizing(rate, within):
    found = queue_check(
        requests_per_second=rate,
        capacity_requests_per_second=2.0,
        running_at_capacity=8.0,
        replicas=2,
        wait_limit_seconds=0.5,
    )
    assert found.is_within_limit is within
    assert "Poisson" in found.assumes
    assert (found.wait_seconds is None) == (rate > 4.0)


def test_the_queue_never_needs_fewer_than_the_load():
    found = queue_check(
        requests_per_second=9.0,
        capacity_requests_per_second=2.0,
        running_at_capacity=8.0,
        replicas=1,
        wait_limit_seconds=1.0,
    )
    assert found.replicas_needed is not None
    assert found.replicas_needed >= 5


rates = st.floats(0, 1e6)
capacities = st.floats(1, 1e4).map(lambda mid: Estimate.known(0.8 * mid, mid, 1.3 * mid, "fit"))
policies = st.builds(
    Policy,
    headroom_ratio=st.floats(0, 0.9),
    spare_replicas=st.integers(0, 5),
    startup_seconds=st.floats(0, 3600),
    growth_per_hour=st.floats(0, 5),
)


@settings(max_examples=200, deadline=None)
@given(rates, st.floats(1, 10), capacities, policies)
def test_more_demand_never_needs_fewer_gpus(demand, factor, capacity, policy):
    less, more = (replicas(exact(value), capacity, policy) for value in (demand, demand * factor))
    if less.is_known and more.is_known:
        assert more.low >= less.low
        assert more.mid >= less.mid
        assert more.high >= less.high


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10_000), st.floats(0, 100), st.floats(1, 10))
def test_a_higher_price_never_lowers_a_month(gpus, price, factor):
    cheap, dear = (month_usd(exact(gpus), exact(value)) for value in (price, price * factor))
    assert dear.mid >= cheap.mid


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0, 1e6) | st.none(), max_size=60), st.floats(0.05, 0.95))
def test_a_percentile_is_within_the_observed_values(seen, quantile):
    found = percentile_demand(seen, quantile)
    values = [value for value in seen if value is not None]
    assert found.is_known == bool(values)
    if values:
        assert min(values) <= found.low <= found.mid <= found.high <= max(values)
        assert math.isfinite(found.high)
