"""Long windows on the page: days in sentences, and a cell per hour of the week."""

from datetime import UTC, datetime, timedelta

import polars as pl
import pytest
from charts_by_hand import FULL, HOURS, NOTHING, analysis, notes_of

from vllm_capacity.render import charts
from vllm_capacity.render.sections import days_text

FIRST = datetime(2026, 1, 5, tzinfo=UTC)


def of_days(counts):
    """An analysis of days with so many requests in each of their hours."""
    hours = [FIRST + timedelta(hours=i) for i in range(24 * len(counts))]
    frame = pl.DataFrame(
        {
            "ts": hours,
            "requests": [float(each) for each in counts for _ in range(24)],
            "cost_usd": [2.0] * len(hours),
            "utilization_ratio": [0.5] * len(hours),
        },
        schema_overrides={"ts": pl.Datetime("us", "UTC")},
    )
    return analysis(hours=frame)


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        pytest.param([], "Days and weeks need at least 24 h of data", id="too short"),
        pytest.param([4, 8], "The best day was Tue 6 Jan, $0.250 per request at 192", id="best"),
        pytest.param([4, 8], "the worst was Mon 5 Jan, $0.500 at 96", id="worst day"),
        pytest.param([4, 8], "The busiest hour began on Tue 6 Jan at 00:00 (UTC): 8", id="busiest"),
        pytest.param([4, 8], "Growth is not known: 2 whole days", id="no growth of two days"),
        pytest.param([5] * 28, "No clear growth", id="steady"),
        pytest.param([2**i for i in range(21)], "Requests grew by", id="growing"),
        pytest.param([2 ** (21 - i) for i in range(21)], "Requests fell by", id="falling"),
        pytest.param([5] * 28, "Each of 28 whole days had 120 requests.", id="all alike"),
        pytest.param([0, 0], "No request came in 48 whole hours.", id="nothing was asked"),
    ],
)
def test_days_are_shown_by_name(counts, said):
    assert said in repr(days_text(of_days(counts)))


def test_hours_of_the_text_are_those_of_the_time_zone():
    result = repr(days_text(of_days([4, 8]), time_zone="Asia/Tokyo"))
    assert "on Tue 6 Jan at 09:00 (Asia/Tokyo)" in result


@pytest.mark.parametrize("of", ["requests", "utilization", "cost"])
def test_cell_for_each_hour_of_the_week_that_was_seen(of):
    spec = charts.hour_of_week(FULL, of=of).to_dict()
    sizes = sorted(len(rows) for rows in spec["datasets"].values())
    assert sizes == [168 - HOURS.height, HOURS.height] if of == "requests" else sum(sizes) == 168


def test_week_without_a_request_has_a_sentence_for_a_picture():
    empty = notes_of(charts.hour_of_week(of_days([0, 0])).to_dict())["empty"]
    assert empty == "The same in every hour: 0 (requests per hour)."


def test_short_window_has_a_sentence_for_a_picture():
    assert "at least 24 h" in notes_of(charts.hour_of_week(NOTHING).to_dict())["empty"]
