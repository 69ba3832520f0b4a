"""Hours of a window as the plan sees them: the same bill as the window's, hour by hour."""

from datetime import timedelta

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.answering import answer, assumed
from tests.long_window import MONDAY, long_window
from vllm_capacity.analysis import Analysis
from vllm_capacity.assumptions import Pricing
from vllm_capacity.billed import priced
from vllm_capacity.costs_by_time import HourRates, hour_of
from vllm_capacity.estimate import Estimate
from vllm_capacity.facts.fleet import Rule
from vllm_capacity.facts.prices import given_price
from vllm_capacity.telemetry.window import open_window
from vllm_capacity.verdicts.cost.bill import Usage, bill

PRICED = assumed(usd_per_gpu_hour=given_price(2.0))


@pytest.fixture(scope="module")
def week_day(tmp_path_factory):
    gap = (MONDAY + timedelta(hours=9.5), MONDAY + timedelta(hours=10.25))
    return long_window(tmp_path_factory.mktemp("w") / "w", days=1, gap=gap)


def hours(window, terms=PRICED):
    return Analysis.of(window, assumptions=terms).hours


def test_an_hour_costs_what_its_own_bill_says(examples):
    window = open_window(examples / "a100-gpt-oss-20b")
    found = hours(window)
    bills = [
        answer(window, start=ts, end=ts + timedelta(hours=1), terms=PRICED) for ts in found["ts"]
    ]
    assert found.height == 3
    assert found["requests"].to_list() == [each["requests"]["finished"] for each in bills]
    assert found["cost_usd"].to_list() == pytest.approx(
        [each["cost"]["allocation_usd"]["mid"] for each in bills]
    )


def test_use_of_an_hour_is_its_output_over_the_capacity(week_day):
    result = answer(week_day, terms=PRICED)
    capacity = result["saturation"]["capacity_output_tokens_per_second"]["mid"]
    row = hours(week_day).filter(ts=MONDAY + timedelta(hours=15)).row(0, named=True)
    expected = row["requests"] * 100 / 3600 / capacity
    assert row["utilization_ratio"] == pytest.approx(expected)


def test_hour_that_was_not_seen_through_is_no_zero(week_day):
    empty = hours(week_day).filter(pl.col("requests").is_null())
    assert empty["ts"].to_list() == [MONDAY + timedelta(hours=hour) for hour in (9, 10)]
    assert empty["cost_usd"].null_count() == empty["utilization_ratio"].null_count() == 2


def test_without_a_price_the_hours_still_have_their_requests(week_day):
    found = hours(week_day, terms=assumed())
    assert (found["cost_usd"].null_count(), found["requests"].null_count()) == (24, 2)


def test_window_of_minutes_has_no_hours(sweep):
    assert hours(sweep).is_empty()


CAPACITIES = [
    Estimate.known(80.0, 100.3, 120.0, "seen"),
    Estimate.known(0.0, 100.3, 120.0, "seen"),
    Estimate.at_least(70.0, "seen", reason="too light a load"),
    Estimate.unknown("no load"),
]
PRICINGS = [
    Pricing(),
    Pricing(given_price(1.7), 8.0),
    Pricing(
        rules=(
            Rule("gpu-[0-3]*", 2.0, given_price(1.3), None, MONDAY + timedelta(hours=5.5)),
            Rule("gpu-[0-3]*", 4.0, given_price(2.9), MONDAY + timedelta(hours=5.5), None),
            Rule("gpu-4*", 1.0, given_price(3.1), None, None),
        )
    ),
]
AMOUNT = st.one_of(st.just(0.0), st.floats(0.1, 1e6))


def hour_by_its_bill(rows, start, pricing, capacity):
    """Cost and utilization of an hour as the bill has them, with all its other figures."""
    parts = {}
    for name, length, tokens in rows:
        usage = Usage(length, None, None, tokens, output_tokens_per_second=tokens / 3600)
        row = {"instance": name, "billed_start": start, "billed_end": start + timedelta(hours=1)}
        parts[name] = priced(row, usage, capacity.scaled(length), pricing)
    whole = bill(parts).whole
    return whole.allocation_usd.mid, whole.utilization.mid


@given(
    st.dictionaries(
        st.sampled_from([f"gpu-{n}" for n in range(6)]),
        st.tuples(st.floats(0.01, 1.0), AMOUNT),
        min_size=1,
    ),
    st.sampled_from(CAPACITIES),
    st.sampled_from(PRICINGS),
    st.integers(3, 7),
)
def test_an_hour_is_charged_as_the_bill_charges_it_to_the_last_digit(own, capacity, pricing, hour):
    rows = [(name, *amounts) for name, amounts in own.items()]
    start = MONDAY + timedelta(hours=hour)
    names = ["instance", "billed_hours", "generation_tokens"]
    frame = pl.DataFrame(rows, schema=names, orient="row").with_columns(requests=pl.lit(0.0))
    expected = hour_by_its_bill(rows, start, pricing, capacity)
    rates = HourRates(pricing)
    assert hour_of(frame, start, rates, capacity)[1:] == expected
    assert hour_of(frame, start, rates, capacity)[1:] == expected  # from rates that were kept


def test_a_part_costs_what_its_own_bill_says(examples):
    window = open_window(examples / "fleet-two-models")
    costs = Analysis.of(window, assumptions=PRICED).costs
    for row in costs.rows(named=True)[5::16]:
        own = Analysis.of(window, row["start"], row["end"], PRICED).bill
        assert row["allocation_usd"] == pytest.approx(own.whole.allocation_usd.mid)
        assert row["successful_requests"] == pytest.approx(own.usage.successful_requests)
        assert row["usd_per_request"] == pytest.approx(own.whole.usd_per_request.mid)
