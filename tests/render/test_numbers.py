from datetime import datetime

import pytest

from vllm_capacity.estimate import Estimate
from vllm_capacity.render import numbers


@pytest.mark.parametrize(
    ("write", "value", "text"),
    [
        pytest.param(numbers.number, 1234.5, "1,230", id="three digits and a separator"),
        pytest.param(numbers.number, 29.74, "29.7", id="one decimal"),
        pytest.param(numbers.number, 0.005123, "0.00512", id="leading zeros are no digits"),
        pytest.param(numbers.number, 9.996, "10.0", id="rounding up a place keeps three digits"),
        pytest.param(numbers.number, 0.0, "0", id="nothing is 0"),
        pytest.param(numbers.number, -0.0001, "-0.000100", id="a small loss keeps its sign"),
        pytest.param(numbers.count, 5138.0, "5,138", id="a count keeps every digit"),
        pytest.param(numbers.usd, 29.7, "$29.70", id="ten cents are written with both digits"),
        pytest.param(numbers.usd, 0.001004, "$0.00100", id="a tenth of a cent"),
        pytest.param(numbers.usd, -1.5, "-$1.50", id="a negative amount"),
        pytest.param(numbers.usd_per_thousand, 0.001355, "$1.35", id="for a thousand"),
        pytest.param(numbers.percent, 0.6068, "61\xa0%", id="no decimals from 10 %"),
        pytest.param(numbers.percent, 0.017, "1.7\xa0%", id="one below 10 %"),
        pytest.param(numbers.percent, 0.0018, "0.18\xa0%", id="two below 1 %"),
        pytest.param(numbers.percent, 0.0, "0\xa0%", id="none is 0 %"),
        pytest.param(numbers.seconds, 0.0384, "38.4\xa0ms", id="under a second in ms"),
        pytest.param(numbers.seconds, 17.6, "17.6\xa0s", id="seconds"),
        pytest.param(numbers.hours, 3.15, "3.15 h", id="hours"),
        pytest.param(numbers.hours, 0.4333, "26.0 min", id="minutes"),
        pytest.param(numbers.hours, 0.005, "18.0 s", id="a moment"),
    ],
)
def test_number_is_written(write, value, text):
    assert write(value) == text


@pytest.mark.parametrize(
    ("write", "value", "like", "text"),
    [
        pytest.param(numbers.number, 1234.0, 29.7, "1,234.0", id="to the places of the figure"),
        pytest.param(numbers.seconds, 1.5, 0.4, "1,500\xa0ms", id="in the unit of the figure"),
        pytest.param(numbers.percent, 0.123, 0.05, "12.3\xa0%", id="with its decimals"),
        pytest.param(numbers.usd, 0.002, 1.64, "$0.00", id="dollars to the same place"),
    ],
)
def test_number_takes_the_place_of_its_figure(write, value, like, text):
    assert write(value, like=like) == text


def _estimate(low, mid, high):
    return Estimate(low, mid, high, (), "" if mid else "nothing was seen")


@pytest.mark.parametrize(
    ("estimate", "text"),
    [
        pytest.param(_estimate(290.2, 297.4, 304.1), "between 290 and 304", id="an interval"),
        pytest.param(_estimate(3.0, 3.0, 3.0), "", id="a count has none"),
        pytest.param(_estimate(297.01, 297.02, 297.03), "", id="one that reads the same has none"),
        pytest.param(_estimate(None, None, None), "", id="an unknown one has none"),
    ],
)
def test_interval_is_written(estimate, text):
    assert numbers.between(estimate, numbers.number) == text


@pytest.mark.parametrize(
    ("start", "end", "text"),
    [
        pytest.param(
            "2026-11-24T08:00:00Z",
            "2026-11-24T09:30:05+00:00",
            "24 Nov 2026 08:00:00 to 09:30:05 UTC",
            id="one day is given once",
        ),
        pytest.param(
            "2026-11-24T23:00:00+01:00",
            "2026-11-25T01:00:00Z",
            "24 Nov 2026 22:00 to 25 Nov 2026 01:00 UTC",
            id="two days, an offset taken off",
        ),
    ],
)
def test_span_is_written(start, end, text):
    assert numbers.span(datetime.fromisoformat(start), datetime.fromisoformat(end)) == text
