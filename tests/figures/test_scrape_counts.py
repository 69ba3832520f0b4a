"""How often targets were scraped, and what lies between two good scrapes."""

from datetime import UTC, datetime, timedelta

import polars as pl
import pytest

from vllm_capacity.figures.scrapes import (
    Interruption,
    Restart,
    ScrapeCount,
    gaps,
    interruptions,
    scrape_counts,
)
from vllm_capacity.timerange import TimeRange

START = datetime(2026, 11, 24, tzinfo=UTC)
PART = TimeRange(START, START + timedelta(seconds=100))


def at(seconds):
    return START + timedelta(seconds=seconds)


def attempts(good, failed=(), target="r0"):
    rows = [(target, at(s), True) for s in good] + [(target, at(s), False) for s in failed]
    schema = {"instance": pl.String, "ts": pl.Datetime("us", "UTC"), "is_good": pl.Boolean}
    return pl.DataFrame(rows, schema=schema, orient="row").sort("instance", "ts")


EVEN = range(0, 100, 10)
SILENT = [s for s in EVEN if s not in (40, 50, 60)]


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        pytest.param(attempts(EVEN), [ScrapeCount("r0", 10, 10, 0, 10.0)], id="all answered"),
        pytest.param(
            attempts(SILENT), [ScrapeCount("r0", 7, 7, 3, 10.0)], id="no requests for a while"
        ),
        pytest.param(
            attempts(SILENT, failed=(40, 50, 60)),
            [ScrapeCount("r0", 10, 7, 0, 10.0)],
            id="asked, and no answer",
        ),
        pytest.param(attempts([-20, -10]), [], id="only before the time range"),
        pytest.param(attempts([]), [], id="never"),
    ],
)
def test_scrapes_are_counted_per_target(made, expected):
    assert scrape_counts(made, time_range=PART) == expected


@pytest.mark.parametrize(
    ("count", "expected", "failed", "ratio"),
    [
        pytest.param(ScrapeCount("r0", 9, 8, 1, 10.0), 10, 1, 0.8, id="of an even grid"),
        pytest.param(ScrapeCount("all targets", 0, 0, 0, 0.0), 0, 0, None, id="of none"),
    ],
)
def test_share_answered_is_of_what_was_expected(count, expected, failed, ratio):
    assert (count.expected, count.failed, count.good_ratio) == (expected, failed, ratio)


WITHIN = Restart("r0", at(30), at(70), at(65))
BETWEEN = Restart("r0", at(10), at(20), None)


@pytest.mark.parametrize(
    ("made", "restarts", "expected"),
    [
        pytest.param(attempts(EVEN), [], [], id="none"),
        pytest.param(
            attempts(SILENT),
            [],
            [Interruption("r0", at(30), at(70), 0, True, False, None)],
            id="no requests",
        ),
        pytest.param(
            attempts(SILENT, failed=(40, 50, 60)),
            [WITHIN],
            [Interruption("r0", at(30), at(70), 3, True, True, at(65))],
            id="a restart behind failed scrapes",
        ),
        pytest.param(
            attempts(EVEN),
            [BETWEEN],
            [Interruption("r0", at(10), at(20), 0, False, True, None)],
            id="a restart between two scrapes",
        ),
        pytest.param(
            attempts(SILENT),
            [WITHIN, BETWEEN],
            [
                Interruption("r0", at(10), at(20), 0, False, True, None),
                Interruption("r0", at(30), at(70), 0, True, True, at(65)),
            ],
            id="both, in the order of time",
        ),
    ],
)
def test_interruptions_are_gaps_and_the_restarts_outside_them(made, restarts, expected):
    found = gaps(made, time_range=PART)
    assert interruptions(made, found, restarts) == expected
