"""Hours of the week, whole days and growth of demand."""

from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import numpy as np
import polars as pl
import pytest

from vllm_capacity.errors import InputError
from vllm_capacity.verdicts.demand.weeks import Day, hours_of_week, weekly_growth, whole_days

MONDAY = datetime(2026, 3, 23, tzinfo=UTC)


def hours(requests, *, start=MONDAY, cost=2.0, used=0.5):
    """So many requests in each hour from Monday on; None: the hour was not seen."""
    n = len(requests)
    return pl.DataFrame(
        {
            "ts": [start + timedelta(hours=i) for i in range(n)],
            "requests": requests,
            "cost_usd": [None if each is None else cost for each in requests],
            "utilization_ratio": [None if each is None else used for each in requests],
        },
        schema={
            "ts": pl.Datetime("us", "UTC"),
            **dict.fromkeys(["requests", "cost_usd", "utilization_ratio"], pl.Float64),
        },
    )


def first(table):
    return table.row(0, named=True)


def test_hour_of_week_is_the_mean_of_its_hours():
    found = first(hours_of_week(hours([10.0] + [1.0] * 167 + [30.0])))
    assert (found["observed_hours"], found["requests"], found["usd_per_request"]) == (2, 20.0, 0.1)


@pytest.mark.parametrize(
    ("given", "column"),
    [
        pytest.param([None], "requests", id="an hour that was not seen is no hour without load"),
        pytest.param([0.0], "usd_per_request", id="no request has no cost"),
        pytest.param([], "requests", id="no hours at all"),
    ],
)
def test_what_was_not_observed_is_null(given, column):
    table = hours_of_week(hours(given))
    assert (table.height, first(table)[column]) == (168, None)


def test_hours_are_those_of_the_time_zone():
    table = hours_of_week(hours([5.0]), time_zone="Asia/Tokyo")
    seen = table.filter(pl.col("observed_hours") > 0)
    assert seen.select("weekday", "hour").rows() == [(1, 9)]


def test_unknown_time_zone_is_refused():
    with pytest.raises(InputError, match="IANA"):
        hours_of_week(hours([1.0]), time_zone="Mars/Olympus")


@pytest.mark.parametrize(
    ("given", "zone", "start", "days"),
    [
        pytest.param([1.0] * 23, "UTC", MONDAY, [], id="an hour is missing at its end"),
        pytest.param([1.0] * 24, "UTC", MONDAY, [24.0], id="a day"),
        pytest.param([1.0] * 5 + [None] + [1.0] * 18, "UTC", MONDAY, [], id="one was not seen"),
        pytest.param([1.0] * 30, "Asia/Tokyo", MONDAY, [], id="a day of UTC is none of Tokyo"),
        pytest.param(
            [1.0] * 23,
            "Europe/Berlin",
            datetime(2026, 3, 29, tzinfo=ZoneInfo("Europe/Berlin")).astimezone(UTC),
            [23.0],
            id="23 hours where the clocks go forward",
        ),
        pytest.param(
            [1.0] * 25,
            "Europe/Berlin",
            datetime(2026, 10, 25, tzinfo=ZoneInfo("Europe/Berlin")).astimezone(UTC),
            [25.0],
            id="25 where they go back",
        ),
    ],
)
def test_whole_day_has_every_hour(given, zone, start, days):
    found = whole_days(hours(given, start=start), time_zone=zone)
    assert [day.requests for day in found] == days


def test_day_knows_its_bill_and_its_utilization_over_the_bill():
    (day,) = whole_days(hours([2.0] * 24))
    assert (day.cost_usd, day.utilization_ratio, day.usd_per_request) == (48.0, 0.5, 1.0)


def days(counts):
    return [Day(date(2026, 1, 5) + timedelta(i), float(n), 1.0, 0.5) for i, n in enumerate(counts)]


def test_steady_growth_is_reported_exactly():
    found = weekly_growth(days([1000 * 1.01**i for i in range(28)]))
    assert found.mid == pytest.approx(1.01**7 - 1)


def test_weekend_at_the_end_is_no_decline():
    found = weekly_growth(days([100, 100, 100, 100, 100, 20, 10] * 4))
    assert found.mid == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize(
    ("counts", "reason"),
    [
        pytest.param([5] * 20, "20 whole days; with fewer than 21", id="too few days"),
        pytest.param([5] * 20 + [0], "some days had no requests", id="a day without a request"),
        pytest.param([], "0 whole days", id="no day"),
    ],
)
def test_growth_is_unknown_with_the_reason(counts, reason):
    assert reason in weekly_growth(days(counts)).reason


def left_over(rng, count, law):
    """What is left of the days of a made service beside growth and day of the week."""
    drawn, spread = rng.standard_normal(count), rng.choice([0.05, 0.11, 0.2])
    if law == "heavy tails":
        return 0.7 * spread * rng.standard_t(4, count)
    if law == "gamma":
        return np.log(rng.gamma(44, 1 / 44, count))
    if law == "weeks":  # from a Wednesday on
        return (
            0.6 * spread * (np.repeat(rng.standard_normal(count // 7 + 2), 7)[2:][:count] + drawn)
        )
    if law == "a campaign":
        start, length = rng.integers(0, count), rng.integers(2, 8)
        return 0.5 * spread * drawn + 0.3 * (np.abs(np.arange(count) - start) < length)
    if law == "months":
        return 0.6 * spread * drawn + 0.06 * np.sin(np.arange(count) / 4.8 + 6.3 * rng.random())
    alike = {"next days": 0.4, "days": 0.7, "a week or two": 0.9}[law]
    found = [rng.standard_normal()]
    for each in drawn[1:]:
        found.append(alike * found[-1] + np.sqrt(1 - alike**2) * each)
    return spread * np.array(found)


LAWS = (
    "heavy tails", "gamma", "weeks", "a campaign", "months", "next days", "days", "a week or two",
)  # fmt: skip


def grown(rng, count, law):
    """Days of a made service, and its true growth per week."""
    growth, pattern = rng.uniform(-0.01, 0.02), rng.uniform(0.3, 1.5, 7)
    logs = growth * np.arange(count) + left_over(rng, count, law)
    return days(rng.poisson(20_000 * np.resize(pattern, count) * np.exp(logs))), np.expm1(
        7 * growth
    )


@pytest.mark.parametrize("count", [21, 28, 60])
def test_interval_of_growth_contains_the_truth(count):
    rng, held = np.random.default_rng((7, count)), {}
    for law in LAWS:
        for _ in range(25):
            made, truth = grown(rng, count, law)
            found = weekly_growth(made)
            held.setdefault(law, []).append(found.low <= truth <= found.high)
    assert 0.88 <= np.mean(list(held.values())) < 1
    assert min(np.mean(own) for own in held.values()) >= 0.75  # of 25: 0.88 less two deviations


def test_calm_weeks_are_not_wide():
    rng = np.random.default_rng(3)
    found = weekly_growth(days([1000 * 1.01**i * np.exp(0.05 * rng.normal()) for i in range(60)]))
    assert found.high - found.low < 0.03
