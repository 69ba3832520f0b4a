"""The demand that a number of replicas carries, and for how long."""

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from vllm_capacity.errors import InputError
from vllm_capacity.estimate import Estimate
from vllm_capacity.verdicts.sizing import Policy, replicas, runways

DEMAND = Estimate.known(90, 100, 110, "demand")
CAPACITY = Estimate.known(45, 50, 60, "capacity")


def one(count: int, *, growth: float = 0.1, policy: Policy | None = None):
    (found,) = runways(
        DEMAND,
        CAPACITY,
        policy=policy or Policy(headroom_ratio=0.2, spare_replicas=1),
        counts=[count],
        growth_ratio_per_month=growth,
    )
    return found


def test_spares_and_headroom_carry_nothing():
    assert one(4).carried.mid == pytest.approx(3 * 50 * 0.8)


def test_months_are_those_in_which_demand_grows_to_what_is_carried():
    found = one(4)
    assert found.months.mid == pytest.approx(math.log(1.2) / math.log(1.1))
    assert found.months.low < found.months.mid < found.months.high


def test_too_few_replicas_ran_out_in_the_past():
    assert one(2).months.high < 0


@pytest.mark.parametrize(
    ("count", "growth", "reason"),
    [
        pytest.param(1, 0.1, "have no load", id="nothing but a spare"),
        pytest.param(4, 0.0, "not to grow", id="no growth has no end"),
    ],
)
def test_months_are_unknown_where_there_is_no_end(count, growth, reason):
    assert reason in one(count, growth=growth).months.reason


def test_shrinking_demand_is_refused():
    with pytest.raises(InputError, match="Growth"):
        one(3, growth=-0.1)


@given(
    demand=st.floats(1, 1e5),
    capacity=st.floats(1, 1e4),
    headroom=st.floats(0, 0.9),
    spares=st.integers(0, 3),
    growth=st.floats(0, 5),
)
def test_replicas_of_a_sizing_are_enough_and_one_fewer_are_not(
    demand, capacity, headroom, spares, growth
):
    policy = Policy(headroom_ratio=headroom, spare_replicas=spares, growth_per_hour=growth)
    asked, each = Estimate.exact(demand, "d"), Estimate.exact(capacity, "c")
    sized = replicas(asked, each, policy)
    assume(sized.mid is not None)  # beyond a million replicas there is no number
    needed = round(sized.mid)
    counts = [needed - 1, needed]
    fewer, enough = runways(asked, each, policy=policy, counts=counts, growth_ratio_per_month=0.1)
    assert fewer.times_demand.mid < 1 + 1e-9
    assert enough.times_demand.mid >= 1 - 1e-9
