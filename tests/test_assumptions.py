"""Prices and latency targets as people write them."""

import pytest

from vllm_capacity.assumptions import Slo, pricing, slo_of
from vllm_capacity.errors import InputError
from vllm_capacity.facts.prices import price_text


@pytest.mark.parametrize(
    ("given", "ends"),
    [
        pytest.param(1.64, (1.64, 1.64, 1.64), id="a number"),
        pytest.param("1.64", (1.64, 1.64, 1.64), id="a number as text"),
        pytest.param("$1 to $2", (1, 1.5, 2), id="an interval, in dollars"),
        pytest.param("1.2 to 1.9, likely 1.3", (1.2, 1.3, 1.9), id="with its likely price"),
        pytest.param("0 to 2", (0, 1, 2), id="perhaps free"),
    ],
)
def test_price_is_read(given, ends):
    found = pricing(given).usd_per_gpu_hour
    assert (found.low, found.mid, found.high) == ends
    assert pricing(price_text(found)).usd_per_gpu_hour == found


@pytest.mark.parametrize(
    ("given", "output"),
    [
        pytest.param("1.9 to 1.2", "from low to high", id="ends that are not in order"),
        pytest.param("1 to 2, likely 3", "from low to high", id="a likely price outside"),
        pytest.param("-1 to 2", "must be 0 or more", id="a price below zero"),
        pytest.param("1 to inf", "must be 0 or more and at most", id="a price without an end"),
        pytest.param("1 to nan", "must be 0 or more and at most", id="a price that is no number"),
        pytest.param("one to two", "gpu_prices", id="words that are no row"),
    ],
)
def test_an_unknown_price_is_refused(given, output):
    with pytest.raises(InputError, match=output):
        pricing(given)


@pytest.mark.parametrize(
    ("given", "slo"),
    [
        pytest.param(None, Slo(), id="none"),
        pytest.param("", Slo(), id="empty text is none"),
        pytest.param("ttft 2.0, itl 0.1", Slo(2.0, 0.1), id="two"),
        pytest.param("ITL=0.1", Slo(None, 0.1), id="one, with an equals sign"),
        pytest.param("ttft_p95_seconds 2", Slo(2.0), id="by the name of its field"),
        pytest.param(Slo(2.0), Slo(2.0), id="a Slo"),
    ],
)
def test_targets_are_read(given, slo):
    assert (slo_of(given), slo_of(slo.text)) == (slo, slo)


@pytest.mark.parametrize(
    ("given", "output"),
    [
        pytest.param("ttft", "write ttft or itl and seconds", id="no seconds"),
        pytest.param("ttft 2 s", "Cannot read the latency target 'ttft 2 s'", id="a unit"),
        pytest.param("p99 2", "Cannot read the latency target 'p99 2'", id="another quantile"),
        pytest.param("ttft 2, ttft 3", "given twice", id="one target twice"),
        pytest.param("itl 0", "above 0 seconds", id="a target that nothing meets"),
        pytest.param(2.0, "slo is a vc.Slo", id="a number alone"),
    ],
)
def test_targets_that_there_are_not_are_refused(given, output):
    with pytest.raises(InputError, match=output):
        slo_of(given)
