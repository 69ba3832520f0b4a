import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from vllm_capacity.errors import InputError
from vllm_capacity.estimate import Estimate, Kind
from vllm_capacity.facts.prices import NO_PRICE
from vllm_capacity.verdicts.cost.bill import (
    FIGURES,
    CostShare,
    Usage,
    bill,
    costs,
    shared_engine,
)
from vllm_capacity.verdicts.cost.by_utilization import cost_by_utilization

MONEY_FIGURES = tuple(name for name in FIGURES if name != "utilization")
NO_KNEE = Estimate.unknown("the curve does not bend")
KNEE = Estimate.known(90.0, 100.0, 110.0, "plateau of the curve")
BUSY = Usage(
    billed_hours=2.0,
    successful_requests=1000,
    prompt_tokens=4_000_000,
    generation_tokens=1_000_000,
    prefill_time_ratio=Estimate.known(0.2, 0.25, 0.3, "engine time, a test"),
    output_tokens_per_second=50.0,
    gpus_per_engine=2.0,
)


def dollars(value):
    return Estimate.exact(value, f"${value}/h, a test row")


@pytest.mark.parametrize(
    ("usd_per_hour", "per_request"),
    [
        pytest.param(1.64, 0.001005, id="the published headline is a rate of $1.64"),
        pytest.param(2.21, 0.001355, id="the rate in the published SQL costs 35 % more"),
    ],
)
def test_worked_example(usd_per_hour, per_request):
    usage = Usage(3.15, 5138, None, None)
    found = costs(usage, usd_per_gpu_hour=dollars(usd_per_hour), capacity=NO_KNEE)
    assert round(found.usd_per_request.mid, 6) == per_request


@pytest.mark.parametrize(
    ("figure", "expected"),
    [
        pytest.param("allocation_usd", 8.0, id="hours times GPUs times price"),
        pytest.param("usd_per_request", 0.008, id="allocation over requests"),
        pytest.param("usd_per_million_output_tokens", 8.0, id="whole bill on output tokens"),
        pytest.param("usd_per_million_total_tokens", 1.6, id="whole bill on all tokens"),
        pytest.param("tokens_per_usd", 125_000.0, id="output tokens a dollar"),
        pytest.param("utilization", 0.5, id="rate over capacity"),
        pytest.param("usd_per_million_input_tokens_split", 0.5, id="prefill's quarter"),
        pytest.param("usd_per_million_output_tokens_split", 6.0, id="decode's three quarters"),
        pytest.param("idle_usd", 4.0, id="what was paid and not used"),
        pytest.param("usd_per_request_at_knee", 0.004, id="cost at capacity"),
        pytest.param("usd_per_million_output_tokens_at_knee", 4.0, id="tokens at capacity"),
    ],
)
def test_figures(figure, expected):
    found = costs(BUSY, usd_per_gpu_hour=dollars(2.0), capacity=KNEE)
    assert getattr(found, figure).mid == pytest.approx(expected)


def test_the_split_adds_up_to_the_allocation():
    found = costs(BUSY, usd_per_gpu_hour=dollars(2.0), capacity=KNEE)
    inputs = found.usd_per_million_input_tokens_split.mid * BUSY.prompt_tokens / 1e6
    outputs = found.usd_per_million_output_tokens_split.mid * BUSY.generation_tokens / 1e6
    assert inputs + outputs == pytest.approx(found.allocation_usd.mid)


def test_without_engine_time_the_split_states_its_weight_and_prompts_take_no_more():
    usage = Usage(1.0, 10, 400.0, 100.0)
    found = costs(usage, usd_per_gpu_hour=dollars(1.0), capacity=NO_KNEE)
    split = found.usd_per_million_input_tokens_split
    assert split.mid == pytest.approx(1e6 / 800)
    assert "assumed weights" in split.sources
    assert (split.kind, split.low) == (Kind.ASSUMED, 0.0)
    as_much_as_output = found.usd_per_million_total_tokens.mid
    assert split.high == pytest.approx(as_much_as_output)
    assert found.usd_per_million_output_tokens_split.low == pytest.approx(as_much_as_output)


def test_the_split_has_the_interval_of_engine_time():
    found = costs(BUSY, usd_per_gpu_hour=dollars(2.0), capacity=KNEE)
    inputs, outputs = (
        found.usd_per_million_input_tokens_split,
        found.usd_per_million_output_tokens_split,
    )
    assert (inputs.low, inputs.high) == (pytest.approx(0.4), pytest.approx(0.6))
    assert (outputs.low, outputs.high) == (pytest.approx(5.6), pytest.approx(6.4))


def test_the_split_of_a_bill_is_that_of_its_parts():
    other = replace(BUSY, prefill_time_ratio=Estimate.known(0.4, 0.5, 0.6), billed_hours=6.0)
    both = bill({n: CostShare(u, dollars(2.0), KNEE) for n, u in (("a", BUSY), ("b", other))})
    tokens = 2 * BUSY.prompt_tokens / 1e6
    inputs = both.whole.usd_per_million_input_tokens_split.mid * tokens
    assert inputs == pytest.approx(2.0 * 4 * 0.25 + 2.0 * 12 * 0.5)


def test_without_a_price_every_money_figure_says_so():
    found = costs(BUSY, usd_per_gpu_hour=None, capacity=KNEE)
    assert {getattr(found, name).reason for name in MONEY_FIGURES} == {NO_PRICE}
    assert found.utilization.mid == pytest.approx(0.5)


def test_an_idle_window_has_idle_dollars_and_no_unit_cost():
    idle = Usage(3.0, 0, 0, 0, None, 0.0)
    found = costs(idle, usd_per_gpu_hour=dollars(2.0), capacity=NO_KNEE)
    assert found.idle_usd.mid == 6.0
    assert found.allocation_usd.mid == 6.0
    assert found.utilization.mid == 0.0
    each = [name for name in FIGURES if "per" in name]
    assert not any(getattr(found, name).is_known for name in each)


def test_an_unknown_knee_leaves_idle_dollars_unknown_with_its_reason():
    found = costs(BUSY, usd_per_gpu_hour=dollars(2.0), capacity=NO_KNEE)
    assert found.idle_usd.reason == NO_KNEE.reason


def test_a_rate_above_the_extrapolated_capacity_is_full_use():
    found = costs(
        BUSY,
        usd_per_gpu_hour=dollars(2.0),
        capacity=Estimate.known(20.0, 40.0, 60.0, "extrapolated"),
    )
    used = found.utilization
    assert (used.low, used.mid, used.high) == (pytest.approx(50 / 60), 1.0, 1.0)


def test_the_basis_names_the_price_and_the_hours():
    found = costs(BUSY, usd_per_gpu_hour=dollars(2.0), capacity=KNEE)
    assert "a test row" in found.usd_per_request.sources
    assert "2 billed hours" in found.usd_per_request.sources


@pytest.mark.parametrize(
    "broken",
    [
        pytest.param({"billed_hours": -1.0}, id="negative hours"),
        pytest.param({"billed_hours": math.inf}, id="endless hours"),
        pytest.param({"gpus_per_engine": 0.0}, id="no GPU"),
        pytest.param({"generation_tokens": math.nan}, id="not a number"),
    ],
)
def test_impossible_use_is_refused(broken):
    fields = {
        "billed_hours": 1.0,
        "successful_requests": 1,
        "prompt_tokens": 1,
        "generation_tokens": 1,
    }
    with pytest.raises(InputError):
        Usage(**{**fields, **broken})


def test_a_spread_of_prices_is_a_spread_of_costs():
    price = Estimate.known(1.0, 2.0, 4.0, "three offers")
    cost = costs(BUSY, usd_per_gpu_hour=price, capacity=KNEE).usd_per_request
    assert (cost.low, cost.mid, cost.high) == pytest.approx((0.004, 0.008, 0.016))


def test_no_engine_is_an_empty_bill():
    nothing = bill({})
    assert nothing.parts == {}
    assert not nothing.whole.allocation_usd.is_known


def test_an_idle_part_of_unknown_capacity_leaves_the_use_of_the_whole_known():
    """It needs no capacity: it counts as unused, by its GPU-hours."""
    idle = replace(BUSY, generation_tokens=0.0, output_tokens_per_second=0.0)
    unknown = Estimate.unknown("nothing ran")
    parts = {
        "r0": CostShare(BUSY, dollars(1.0), KNEE),
        "r1": CostShare(idle, dollars(1.0), unknown),
    }
    found = bill(parts)
    alone = found.parts["r0"]
    assert found.whole.utilization.mid == pytest.approx(alone.utilization.mid / 2)
    assert found.whole.idle_usd.mid == pytest.approx(
        alone.idle_usd.mid + found.parts["r1"].allocation_usd.mid
    )
    assert "r1: nothing was generated, counted by GPU-hours" in found.whole.utilization.basis


def test_an_unpriced_part_leaves_the_sum_unknown_and_is_named():
    parts = {
        "r0": CostShare(BUSY, dollars(1.0), KNEE),
        "r1": CostShare(BUSY, Estimate.unknown("no price row"), KNEE),
    }
    assert bill(parts).whole.allocation_usd.reason == "r1: no price row"


amounts = st.integers(0, 10**12)
usages = st.builds(
    Usage,
    billed_hours=st.just(0.0) | st.floats(0.001, 1e5),
    successful_requests=st.none() | amounts,
    prompt_tokens=st.none() | amounts,
    generation_tokens=st.none() | amounts,
    prefill_time_ratio=st.none()
    | st.floats(0, 1).map(lambda mid: Estimate.known(mid / 2, mid, (1 + mid) / 2, "fit")),
    output_tokens_per_second=st.none() | st.floats(0, 1e5),
    gpus_per_engine=st.sampled_from([0.5, 1.0, 2.0, 8.0]),
)
prices = st.floats(0.01, 100)
knees = st.just(NO_KNEE) | st.floats(1, 1e5).map(
    lambda mid: Estimate.known(mid * 0.9, mid, mid * 1.1, "fit")
)
parts = st.builds(CostShare, usages, prices.map(dollars), knees)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.text("abcdef", min_size=1), parts, min_size=1, max_size=6))
def test_the_parts_add_up_to_the_whole(named):
    found = bill(named)
    for figure in ("allocation_usd", "idle_usd"):
        if getattr(found.whole, figure).is_known:
            added = math.fsum(getattr(part, figure).mid for part in found.parts.values())
            assert getattr(found.whole, figure).mid == added


@settings(max_examples=100, deadline=None)
@given(usages, knees, prices, st.floats(1.0, 10.0))
def test_a_higher_price_never_lowers_a_cost(usage, knee, price, factor):
    cheap = costs(usage, usd_per_gpu_hour=dollars(price), capacity=knee)
    dear = costs(usage, usd_per_gpu_hour=dollars(price * factor), capacity=knee)
    for name in set(MONEY_FIGURES) - {"tokens_per_usd"}:
        if getattr(cheap, name).is_known:
            assert getattr(dear, name).low >= getattr(cheap, name).low * (1 - 1e-12)
            assert getattr(dear, name).mid >= getattr(cheap, name).mid * (1 - 1e-12)
            assert getattr(dear, name).high >= getattr(cheap, name).high * (1 - 1e-12)


@settings(max_examples=100, deadline=None)
@given(usages, st.dictionaries(st.text("abc", min_size=1), usages, min_size=1, max_size=5))
def test_an_engine_shared_by_labels_is_billed_once(whole, shares):
    split = shared_engine(whole, shares)
    assert math.fsum(share.billed_hours for share in split.values()) == pytest.approx(
        whole.billed_hours, rel=1e-12, abs=1e-12
    )


def test_an_engine_is_shared_by_what_engine_time_tokens_took():
    whole = Usage(8.0, 2, 100.0, 100.0, Estimate.exact(0.75, "engine time"))
    shares = {"reads": Usage(0, 1, 100.0, 0.0), "writes": Usage(0, 1, 0.0, 100.0)}
    split = shared_engine(whole, shares)
    assert {name: one.billed_hours for name, one in split.items()} == {"reads": 6.0, "writes": 2.0}


def test_cost_by_utilization_is_the_same_bill_spread_over_other_tokens():
    found = costs(BUSY, usd_per_gpu_hour=dollars(2.0), capacity=Estimate.exact(100.0, "given"))
    curve = cost_by_utilization(found)
    full = found.usd_per_million_output_tokens_at_knee.mid
    bills = curve["utilization"] * curve["usd_per_million_output_tokens"]
    assert bills.to_list() == pytest.approx([full] * 60)
    assert (curve["utilization"][0], curve["utilization"][-1]) == pytest.approx((0.25, 1.0))


@pytest.mark.parametrize(
    ("usd_per_gpu_hour", "capacity", "usage"),
    [
        pytest.param(None, KNEE, BUSY, id="no price"),
        pytest.param(dollars(2.0), NO_KNEE, BUSY, id="no capacity"),
        pytest.param(dollars(2.0), KNEE, Usage(2.0, 0, 0, 0), id="nothing was generated"),
    ],
)
def test_cost_by_utilization_has_no_row_where_a_part_of_it_is_not_known(
    usd_per_gpu_hour, capacity, usage
):
    found = costs(usage, usd_per_gpu_hour=usd_per_gpu_hour, capacity=capacity)
    assert cost_by_utilization(found).is_empty()
