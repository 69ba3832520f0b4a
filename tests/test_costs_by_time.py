"""Hours of a window as the plan sees them: the same bill as the window's, hour by hour."""

from datetime import timedelta

import polars as pl
import pytest

from tests.answering import answer, assumed
from tests.long_window import MONDAY, long_window
from vllm_capacity.analysis import Analysis
from vllm_capacity.facts.prices import given_price
from vllm_capacity.telemetry.window import open_window

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
