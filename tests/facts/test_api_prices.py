import pytest

from vllm_capacity.errors import InputError
from vllm_capacity.facts.api_prices import (
    ApiPrice,
    given_api_price,
    load_api_prices,
    newest_api_price,
)

HEAD = "provider,model,usd_per_million_input,usd_per_million_output,source,date\n"


def test_the_newest_row_counts(tmp_path):
    path = tmp_path / "api.csv"
    path.write_text(HEAD + "P,m,0.10,0.50,page,2026-01-01\nP,m,0.05,0.20,page,2026-09-01\n")
    row = newest_api_price(load_api_prices(path), provider="p", model="M")
    assert row == ApiPrice("P", "m", 0.05, 0.20, "page", "2026-09-01")


def test_a_request_is_charged_for_both_kinds_of_token():
    api = given_api_price(0.5, 2.0)
    assert api.usd_per_request(input_tokens=1000, output_tokens=500) == pytest.approx(0.0015)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        pytest.param("provider,model\nP,m\n", "lack", id="columns missing"),
        pytest.param(HEAD, "every row", id="no rows"),
        pytest.param(HEAD + "P,m,x,1,page,2026\n", "numbers", id="no number"),
        pytest.param(HEAD + "P,m,0,0,page,2026\n", "both 0", id="free"),
    ],
)
def test_a_broken_price_file_is_refused(tmp_path, text, says):
    path = tmp_path / "api.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=says):
        load_api_prices(path)


def test_an_unknown_model_is_refused_with_what_there_is():
    rows = (ApiPrice("P", "m", 1.0, 2.0, "page", "2026"),)
    with pytest.raises(InputError, match="the file has P m"):
        newest_api_price(rows, provider="P", model="other")
