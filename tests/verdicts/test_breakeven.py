import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_capacity.errors import InputError
from vllm_capacity.estimate import Estimate
from vllm_capacity.facts.api_prices import given_api_price
from vllm_capacity.verdicts.cost.comparisons import break_even

API = given_api_price(0.10, 0.40)
KNEE = Estimate.known(900, 1000, 1100, "plateau")


def found(**changed):
    asked = {
        "input_tokens": 1000,
        "output_tokens": 250,
        "usd_per_gpu_hour": Estimate.exact(2.0, "a row"),
        "gpus": 1,
        "capacity_output_tokens_per_second": KNEE,
        "requests_per_hour": 5000.0,
    }
    return break_even(API, **{**asked, **changed})


def test_the_cost_of_a_request_at_an_api():
    assert found().api_usd_per_request == pytest.approx(0.0002)


def test_requests_a_day_that_break_even():
    assert found().requests_per_day.mid == pytest.approx(2.0 / 0.0002 * 24)


def test_utilization_that_breaks_even():
    assert found().utilization.mid == pytest.approx(10_000 / (1000 * 3600 / 250))
    assert found().utilization.low < found().utilization.high


def test_price_that_breaks_even():
    assert found().usd_per_gpu_hour.mid == pytest.approx(5000 * 0.0002)


@pytest.mark.parametrize(
    ("price", "cheaper"),
    [
        pytest.param(Estimate.exact(0.5, "cheap"), True, id="own GPUs are cheaper"),
        pytest.param(Estimate.exact(2.0, "dear"), False, id="the API is cheaper"),
        pytest.param(Estimate.known(0.5, 1.5, 4.0, "a spread"), None, id="the spread decides not"),
        pytest.param(Estimate.unknown("no price"), None, id="no price decides not"),
    ],
)
def test_which_is_cheaper_now(price, cheaper):
    assert found(usd_per_gpu_hour=price).is_own_cheaper is cheaper


def test_an_idle_window_has_no_price_that_breaks_even_but_a_demand():
    idle = found(requests_per_hour=0.0)
    assert not idle.usd_per_gpu_hour.is_known
    assert not idle.own_usd_per_request.is_known
    assert idle.requests_per_day.is_known


def test_an_unknown_knee_leaves_utilization_unknown_for_its_reason():
    unknown = found(capacity_output_tokens_per_second=Estimate.unknown("it does not bend"))
    assert unknown.utilization.reason == "it does not bend"


@pytest.mark.parametrize(
    "broken",
    [
        {"gpus": 0},
        {"gpus": float("nan")},
        {"requests_per_hour": -5.0},
        {"input_tokens": -1},
        {"input_tokens": 0, "output_tokens": 0},
    ],
)
def test_impossible_questions_are_refused(broken):
    with pytest.raises(InputError):
        found(**broken)


@settings(max_examples=100, deadline=None)
@given(st.floats(0.01, 100), st.floats(1, 10))
def test_a_higher_price_never_breaks_even_earlier(price, factor):
    cheap, dear = (
        found(usd_per_gpu_hour=Estimate.exact(value, "a row")) for value in (price, price * factor)
    )
    assert dear.requests_per_day.mid >= cheap.requests_per_day.mid
    assert dear.utilization.mid >= cheap.utilization.mid
