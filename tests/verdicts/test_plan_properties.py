"""Properties of every plan, whatever the model, the GPU, the price and the demand.

Of replicas alone: test_sizing.py; of one model at given demands: test_options.py. Here everything
is drawn at once, on every GPU, and whole plans of a recorded window are compared.
"""

from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.answering import assumed
from vllm_capacity.analysis import Analysis
from vllm_capacity.estimate import Estimate
from vllm_capacity.facts.gpus import find_gpu, gpus
from vllm_capacity.facts.llms import find_llm, llms
from vllm_capacity.facts.prices import given_price
from vllm_capacity.facts.throughput import measurements
from vllm_capacity.plan import PlanRequest, plan
from vllm_capacity.verdicts.demand.forecast import forecast_demand
from vllm_capacity.verdicts.hardware.compare import Candidate, Option, whatif_table
from vllm_capacity.verdicts.hardware.question import Question
from vllm_capacity.verdicts.sizing import Policy, replicas

# Dense, mixture of experts, sliding windows, latent and linear attention: a formula each.
MODELS = (
    "Qwen3-0.6B",
    "Qwen3-14B",
    "Llama-3.1-8B-Instruct",
    "Qwen3-30B-A3B",
    "Qwen3-Next-80B-A3B-Instruct",
    "gpt-oss-20b",
    "gpt-oss-120b",
    "DeepSeek-V2-Lite",
    "DeepSeek-R1",
)
ENDS = ("low", "mid", "high")
ALL_GPUS = tuple(gpu.name for gpu in gpus())
MEASURED_ON = ("A100-80GB-SXM", "H100-80GB-SXM", "H200-141GB-SXM", "B200-180GB-SXM", "L4-PCIe")
each_gpu = pytest.mark.parametrize("gpu", ALL_GPUS)

factors = st.floats(1.0, 50.0)
policies = st.tuples(
    st.floats(0.0, 0.9), st.integers(0, 4), st.floats(0.0, 1800.0), st.floats(0.0, 3.0)
).map(lambda drawn: Policy(*drawn))


@st.composite
def measured(draw):
    """A measured window of some model, on GPUs that now and then could not have held it."""
    llm = find_llm(draw(st.sampled_from(MODELS)))
    here = find_gpu(draw(st.sampled_from(MEASURED_ON)))
    return Question(
        llm=llm,
        dtype=llm.weights_dtype,
        to_dtype=llm.weights_dtype,
        from_gpu=here,
        to_gpu=here,
        gpus=draw(st.sampled_from([1, 2, 4, 8])),
        output_tokens_per_second=draw(st.floats(1.0, 20_000.0)),
        input_tokens=draw(st.floats(1.0, 6000.0)),
        output_tokens=draw(st.floats(1.0, 2000.0)),
    )


@st.composite
def capacities(draw):
    mid = draw(st.floats(1.0, 20_000.0))
    return Estimate.known(mid * draw(st.floats(0.3, 1.0)), mid, mid * draw(st.floats(1.0, 3.0)), "")


def option(
    asked, gpu, *, price=2.0, capacity=None, demand=1000.0, policy=None, dtype=None
) -> Option:
    candidate = Candidate(find_gpu(gpu), dtype or asked.dtype, "a row", given_price(price))
    (found,) = whatif_table(
        asked,
        [candidate],
        slo_capacity=capacity or Estimate.known(500, 600, 700, "a test"),
        demand=Estimate.exact(demand, "a test"),
        policy=policy or Policy(),
        published=measurements(),
    )
    return found


def never_less(less: Estimate, more: Estimate) -> bool:
    """Whether each end of an estimate is at least the other's; unknown ones are unknown in both."""
    if not (less.is_known and more.is_known):
        return less.is_known >= more.is_known  # above the maximum, the count becomes unknown
    return all(getattr(more, end) >= getattr(less, end) * (1 - 1e-9) for end in ENDS)


@each_gpu
@settings(max_examples=12, deadline=None)
@given(measured(), capacities(), st.floats(0.0, 1e6), factors, policies)
def test_more_demand_never_needs_fewer_gpus_nor_less_money(
    gpu, asked, capacity, demand, factor, policy
):
    less, more = (
        option(asked, gpu, capacity=capacity, demand=value, policy=policy)
        for value in (demand, demand * factor)
    )
    assert never_less(less.replicas, more.replicas)
    assert never_less(less.usd_per_month, more.usd_per_month)
    assert less.tokens_per_usd == more.tokens_per_usd


@each_gpu
@settings(max_examples=12, deadline=None)
@given(measured(), capacities(), st.floats(0.01, 50.0), factors)
def test_a_higher_price_never_lowers_a_cost(gpu, asked, capacity, price, factor):
    cheap, dear = (
        option(asked, gpu, capacity=capacity, price=value) for value in (price, price * factor)
    )
    assert never_less(cheap.usd_per_request, dear.usd_per_request)
    assert never_less(cheap.usd_per_month, dear.usd_per_month)
    assert never_less(dear.tokens_per_usd, cheap.tokens_per_usd)
    assert cheap.replicas == dear.replicas


@each_gpu
@settings(max_examples=8, deadline=None)
@given(measured(), capacities())
def test_every_option_is_known_with_all_its_ends_or_has_a_reason(gpu, asked, capacity):
    found = option(asked, gpu, capacity=capacity)
    assert found.tokens_per_usd.is_known == (not found.reason)
    if not found.reason:
        assert 0 < found.tokens_per_usd.low <= found.tokens_per_usd.high


@settings(max_examples=60, deadline=None)
@given(measured(), st.permutations(ALL_GPUS[:8]), st.floats(0.1, 20.0), factors)
def test_table_depends_on_no_order_and_a_dearer_gpu_never_climbs(asked, shuffled, price, factor):
    def ranked(names, dear_price):
        table = whatif_table(
            asked,
            [
                Candidate(find_gpu(name), asked.dtype, "a row", given_price(
                    dear_price if name == ALL_GPUS[0] else price))
                for name in names
            ],
            slo_capacity=Estimate.known(500, 600, 700, "a test"),
            demand=Estimate.exact(1000.0, "a test"),
            policy=Policy(),
        )  # fmt: skip
        return table, [row.gpu for row in table].index(find_gpu(ALL_GPUS[0]).label)

    table, place = ranked(ALL_GPUS[:8], price)
    assert ranked(shuffled, price) == (table, place)
    assert ranked(shuffled, price * factor)[1] >= place


@settings(max_examples=150, deadline=None)
@given(
    st.floats(0.0, 1e6),
    capacities(),
    policies,
    st.floats(0.0, 0.09),
    st.integers(0, 3),
    st.floats(0.0, 2.0),
)
def test_a_more_careful_policy_never_needs_fewer(demand, capacity, policy, room, spares, growth):
    careful = replace(
        policy,
        headroom_ratio=policy.headroom_ratio + room,
        spare_replicas=policy.spare_replicas + spares,
        growth_per_hour=policy.growth_per_hour + growth,
    )
    asked = Estimate.exact(demand, "a test")
    assert never_less(replicas(asked, capacity, policy), replicas(asked, capacity, careful))


@settings(max_examples=150, deadline=None)
@given(st.floats(0.0, 1e6), capacities(), policies, factors)
def test_a_faster_replica_never_needs_more_of_them(demand, capacity, policy, factor):
    asked = Estimate.exact(demand, "a test")
    slow, fast = (replicas(asked, each, policy) for each in (capacity, capacity.scaled(factor)))
    assert never_less(fast, slow)


def history(scale, seed, days=4):
    """Hourly counts of a service with a daily cycle."""
    hours = np.arange(24 * days)
    wave = 1.5 + np.sin(2 * np.pi * hours / 24)
    counts = scale * wave * np.random.default_rng(seed).uniform(0.8, 1.2, hours.size)
    start = datetime(2026, 11, 2, tzinfo=UTC)
    ts = [start + timedelta(hours=int(hour)) for hour in hours]
    return pl.DataFrame({"ts": ts, "requests": counts})


@settings(max_examples=25, deadline=None)
@given(st.floats(100.0, 1e5), st.floats(1.0, 20.0), st.integers(0, 1000))
def test_more_past_demand_never_predicts_fewer_replicas(scale, factor, seed):
    def needed(demand):
        peak = forecast_demand(history(demand, seed)).frame.sort("mid").row(-1, named=True)
        rate = Estimate.known(*(peak[end] / 3600 for end in ENDS), "the busiest hour forecast")
        return replicas(rate, Estimate.exact(2.0, "requests/s"), Policy())

    assert never_less(needed(scale), needed(scale * factor))


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000))
def test_the_same_history_gets_the_same_forecast(seed):
    first, second = (forecast_demand(history(500.0, seed)) for _ in range(2))
    assert first.frame.equals(second.frame)
    assert first.coverage_measured == second.coverage_measured


ASK = PlanRequest(
    demand_requests_per_second=5.0,
    from_gpu="A100-80GB-PCIe",
    model="openai/gpt-oss-20b",
    to_gpus=("H100-80GB-SXM", "L40S-PCIe", "T4-PCIe"),
)
TERMS = {"usd_per_gpu_hour": given_price(1.0), "ttft_slo_seconds": 2.0}
ESTIMATES = ("replicas", "gpus", "usd_per_month")


def planned_for(window, request, **terms):
    return plan(Analysis.of(window, assumptions=assumed(**TERMS | terms)), request)


@pytest.fixture(scope="module")
def planned(sweep):
    return planned_for(sweep, ASK)


def test_plan_of_a_window_is_the_same_twice(sweep, planned):
    assert planned_for(sweep, ASK) == planned


def test_other_gpus_of_a_plan_do_not_depend_on_the_order_asked(sweep, planned):
    turned = replace(ASK, to_gpus=ASK.to_gpus[::-1])
    assert planned_for(sweep, turned) == planned


@pytest.mark.parametrize(
    ("ask", "terms"),
    [
        pytest.param({"demand_requests_per_second": 40.0}, {}, id="more demand"),
        pytest.param({}, {"usd_per_gpu_hour": given_price(3.0)}, id="a higher price"),
        pytest.param({}, {"gpus_per_engine": 2.0}, id="more GPUs per engine"),
        pytest.param({"policy": Policy(headroom_ratio=0.5)}, {}, id="more headroom"),
        pytest.param({}, {"ttft_slo_seconds": 0.5}, id="a stricter target"),
    ],
)
def test_a_plan_for_more_demand_never_needs_less(sweep, planned, ask, terms):
    more = planned_for(sweep, replace(ASK, **ask), **terms)
    for figure in ESTIMATES:
        assert never_less(getattr(planned, figure), getattr(more, figure))


def test_sample_of_models_has_every_kind_of_attention():
    assert {find_llm(name).attention for name in MODELS} == {llm.attention for llm in llms()}
