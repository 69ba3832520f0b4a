"""Whole hours of the clock: what was counted in each, and which were not seen through."""

from datetime import timedelta

import polars as pl
import pytest

from tests.figures.small_windows import ATTEMPTS_SCHEMA
from tests.long_window import MONDAY, TOKENS_PER_REQUEST, long_window, requests_a_minute
from vllm_capacity.costs_by_time import engine_hours, whole_hours
from vllm_capacity.figures import scrapes
from vllm_capacity.figures.attempts import Attempts
from vllm_capacity.timerange import TimeRange


def at(hour: float):
    return MONDAY + timedelta(hours=hour)


@pytest.fixture(scope="module")
def window(tmp_path_factory):
    return long_window(tmp_path_factory.mktemp("w") / "w", days=1, gap=(at(9.5), at(10.25)))


def rows(window, time_range):
    attempts = scrapes.attempts(window, end=time_range.end)
    fleet = scrapes.engines(window, time_range=time_range, attempts=attempts)
    return engine_hours(window, fleet, attempts, time_range=time_range)


def at_ends(time_range):
    """Two attempts: at the start and at the end."""
    return Attempts.of(
        pl.DataFrame(
            {
                "instance": ["a", "a"],
                "ts": [time_range.start, time_range.end],
                "is_good": [True] * 2,
            },
            schema=ATTEMPTS_SCHEMA,
        )
    )


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        pytest.param(1, 3, [1, 2], id="from hour to hour"),
        pytest.param(0.9, 3.1, [1, 2], id="the ends of others left out"),
        pytest.param(1.1, 1.9, [], id="none whole"),
        pytest.param(1.1, 2.9, [], id="two halves are none"),
        pytest.param(1, 2, [1], id="one"),
    ],
)
def test_whole_hours(start, end, expected):
    time_range = TimeRange(at(start), at(end))
    assert whole_hours(time_range, at_ends(time_range)) == [at(hour) for hour in expected]


def test_a_year_without_requests_is_not_a_list_of_hours():
    time_range = TimeRange(at(0), at(0) + timedelta(days=365))
    found = whole_hours(time_range, at_ends(time_range))
    assert (found[0], found[-1], len(found)) == (
        at(0),
        time_range.end - timedelta(hours=1),
        14 * 24,
    )


def test_a_weekend_without_requests_keeps_its_hours():
    time_range = TimeRange(at(0), at(62))
    assert len(whole_hours(time_range, at_ends(time_range))) == 62


def test_hour_counts_what_came_in_it(window):
    found = rows(window, window.extent).filter(ts=at(12))
    minutes = [at(12) + timedelta(minutes=m - 1) for m in range(60)]
    came = sum(map(requests_a_minute, minutes))
    assert found.select("requests", "generation_tokens", "billed_hours").rows() == [
        (came, came * TOKENS_PER_REQUEST, pytest.approx(1.0))
    ]


def test_hour_in_which_nothing_came_counts_0(window):
    assert rows(window, window.extent).filter(ts=at(3))["requests"].to_list() == [0.0]


def test_hours_touched_by_a_long_gap_are_not_seen(window):
    found = rows(window, window.extent).filter(~pl.col("is_seen"))
    assert found["ts"].to_list() == [at(9), at(10)]


def test_hours_of_a_gap_are_billed_all_the_same(window):
    found = rows(window, window.extent).filter(
        pl.col("ts").is_between(at(9), at(11), closed="left")
    )
    assert found["billed_hours"].sum() == pytest.approx(2.0)


def test_part_without_a_whole_hour_has_no_row(window):
    time_range = TimeRange(at(1.1), at(1.9))
    assert rows(window, time_range).is_empty()
