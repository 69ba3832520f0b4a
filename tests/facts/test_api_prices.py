import math

import pytest

from vllm_capacity.errors import InputError
from vllm_capacity.facts.api_prices import given_api_price


def test_a_request_is_charged_for_both_kinds_of_token():
    api = given_api_price(0.5, 2.0)
    assert api.usd_per_request(input_tokens=1000, output_tokens=500) == pytest.approx(0.0015)


@pytest.mark.parametrize(
    ("per_input", "per_output"),
    [
        pytest.param(0.0, 0.0, id="free"),
        pytest.param(-1.0, 2.0, id="negative"),
        pytest.param(math.nan, 2.0, id="no number"),
        pytest.param(1.0, math.inf, id="endless"),
    ],
)
def test_what_is_no_price_is_refused(per_input, per_output):
    with pytest.raises(InputError, match="API prices must be 0 or more"):
        given_api_price(per_input, per_output)


def test_a_price_is_labelled_as_given():
    assert given_api_price(0.05, 0.2).basis == "API $0.05/$0.2 per M in/out (given)"
