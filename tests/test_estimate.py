"""Intervals, bounds and unknowns under arithmetic: what is known of each end, and nothing more."""

import pytest
from msgspec.structs import replace

from vllm_capacity.errors import InputError
from vllm_capacity.estimate import Estimate, total

KNOWN = Estimate.known(90, 100, 120, "measured")
LEAST = Estimate.at_least(50, "best minute", reason="never loaded")
MOST = Estimate.at_most(8, "memory", reason="never seen")
NOTHING = Estimate.unknown("not scraped")


def added(*parts):
    return total({f"r{k}": part for k, part in enumerate(parts)})


def ends(estimate):
    return estimate.low, estimate.mid, estimate.high


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        pytest.param(KNOWN.scaled(2), (180, 200, 240), id="an interval times a factor"),
        pytest.param(LEAST.scaled(2), (100, None, None), id="at least, times a factor"),
        pytest.param(MOST.scaled(2), (None, None, 16), id="at most, times a factor"),
        pytest.param(NOTHING.scaled(2), (None, None, None), id="unknown stays"),
        pytest.param(
            LEAST.map(lambda c: 1 - 10 / c), (0.8, None, None), id="growing keeps the side"
        ),
        pytest.param(
            LEAST.map(lambda c: 10 / c, is_decreasing=True),
            (None, None, 0.2),
            id="falling swaps the side",
        ),
        pytest.param(
            Estimate.exact(10, "rate").divided_by(LEAST),
            (None, None, 0.2),
            id="a rate over a capacity of at least 50 is at most 0.2",
        ),
        pytest.param(KNOWN.divided_by(MOST), (90 / 8, None, None), id="over at most: at least"),
        pytest.param(KNOWN.divided_by(KNOWN), (0.75, 1.0, 120 / 90), id="two intervals, widest"),
        pytest.param(LEAST.divided_by(LEAST), (None,) * 3, id="two lower bounds: no ratio"),
        pytest.param(LEAST.divided_by(MOST), (6.25, None, None), id="at least over at most"),
        pytest.param(
            KNOWN.divided_by(Estimate.known(0, 1, 2)), (None,) * 3, id="over what may be 0"
        ),
        pytest.param(KNOWN.times(LEAST), (4500, None, None), id="times at least"),
        pytest.param(KNOWN.times(MOST), (None, None, 960), id="times at most"),
        pytest.param(KNOWN.times(NOTHING), (None,) * 3, id="times unknown"),
        pytest.param(
            KNOWN.capped(Estimate.known(80, 95, 130)), (80, 95, 120), id="no end above a cap's"
        ),
        pytest.param(LEAST.capped(KNOWN), (50, None, None), id="a bound is not capped"),
        pytest.param(added(KNOWN, KNOWN), (180, 200, 240), id="two intervals added"),
        pytest.param(KNOWN.plus(KNOWN), (180, 200, 240), id="one plus another"),
        pytest.param(KNOWN.plus(LEAST), (140, None, None), id="plus a bound: a bound"),
        pytest.param(added(KNOWN, LEAST), (140, None, None), id="a bound makes a bound"),
        pytest.param(added(KNOWN, NOTHING), (90, None, None), id="unknown is at least 0"),
        pytest.param(added(KNOWN, MOST), (None, None, 128), id="at most, all of them"),
        pytest.param(added(MOST, NOTHING), (None,) * 3, id="no end counts"),
        pytest.param(added(), (None,) * 3, id="nothing to add"),
    ],
)
def test_arithmetic(found, expected):
    assert ends(found) == pytest.approx(expected)
    assert found.is_known or found.reason


def test_a_bound_keeps_its_reason():
    assert Estimate.exact(10, "rate").divided_by(LEAST).reason == "never loaded"
    assert added(LEAST, LEAST, NOTHING).reason == "r0 and 1 more: never loaded; r2: not scraped"


@pytest.mark.parametrize(
    "numbers",
    [
        pytest.param((1, None, 2), id="two ends without a middle"),
        pytest.param((1, 2, None), id="a middle without an end"),
        pytest.param((3, 2, 4), id="out of order"),
        pytest.param((float("nan"), None, None), id="no number"),
    ],
)
def test_what_no_estimate_is(numbers):
    with pytest.raises(ValueError, match="estimate"):
        Estimate(*numbers, basis=("b",), reason="r")


def test_a_bound_has_a_reason():
    with pytest.raises(ValueError, match="reason"):
        Estimate(1.0, None, None)


def test_a_fleet_has_each_reason_once():
    """94 engines have the same reason with other numbers, 5 another one, 1 a third; 1 is known."""
    light = [Estimate.at_least(n, reason=f"only {n} requests ran") for n in range(94)]
    full = [Estimate.at_least(1, reason="the KV cache was full")] * 5
    parts = {f"gpu-{n}:8000": part for n, part in enumerate([*light, *full, NOTHING, KNOWN])}
    found = total(parts, lacking="capacity not reached on {} engines")
    assert found.reason == (
        "capacity not reached on 100 of 101 engines: gpu-93:8000 and 93 more: only 93 requests "
        "ran; gpu-94:8000 and 4 more: the KV cache was full; 1 more for other reasons"
    )


def test_a_sum_is_in_the_unit_of_its_parts():
    dollars, tokens = (replace(KNOWN, unit=unit) for unit in ("USD", "output tokens/s"))
    assert dollars.plus(dollars).unit == dollars.plus(KNOWN).unit == "USD"
    with pytest.raises(InputError, match=r"\$100 .* and 100 output tokens/s .* do not add up"):
        dollars.plus(tokens)
