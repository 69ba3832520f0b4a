"""Days of the week: simulated demand with quieter weekends, whose truth is known."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_capacity.verdicts.demand.forecast import forecast_demand
from vllm_capacity.verdicts.demand.model import (
    Backtest,
    backtest,
    best_pattern,
    blend,
    filled,
    offset,
    stated_coverage,
    weekly_blend,
)

HOUR = 3600.0
DAY, WEEK = 24, 168
SATURDAY = 5 * DAY


def demand(
    weeks, *, dip=0.4, noise=0.1, growth=0.0, missing=0.0, holidays=(), swing=0.6, seed=0, start=0
):
    """Requests per hour from `start` hours past Monday 00:00, and the same without gaps.

    `dip`: how much quieter weekends are; `growth`: a week; `holidays`: days like weekends.
    """
    random = np.random.default_rng(seed)
    hour = np.arange(weeks * WEEK) + start
    is_quiet = (hour % WEEK >= SATURDAY) | np.isin(hour // DAY, list(holidays))
    mean = 1000 * (1 + swing * np.sin(2 * np.pi * (hour % DAY - 9) / DAY))
    mean = mean * np.where(is_quiet, 1 - dip, 1.0) * (1 + growth) ** (hour / WEEK)
    truth = mean * np.exp(random.normal(0, noise, len(hour)) - noise**2 / 2)
    return np.where(random.random(len(hour)) < missing, np.nan, truth), truth


def rows(values, step_seconds=HOUR):
    starts = np.arange(len(values)) * step_seconds
    frame = pl.DataFrame({"ts_seconds": starts, "requests": np.asarray(values, dtype=float)})
    return frame.with_columns(pl.col("requests").fill_nan(None))


def weekly_naive(history, horizon):
    """The same hour of the last week that was recorded."""
    known = history.copy()
    for i in np.flatnonzero(~np.isfinite(known)):
        known[i] = known[i - WEEK] if i >= WEEK else np.nanmean(history)
    return np.resize(known[-WEEK:], horizon)


@pytest.mark.parametrize(
    "made",
    [
        pytest.param({"dip": 0.2}, id="weekends a fifth quieter"),
        pytest.param({"dip": 0.4}, id="weekends two fifths quieter"),
        pytest.param({"dip": 0.7}, id="weekends two thirds quieter"),
        pytest.param({"dip": 0.4, "noise": 0.02}, id="hardly any noise"),
        pytest.param({"dip": 0.4, "noise": 0.3}, id="much noise"),
        pytest.param({"dip": 0.4, "growth": 0.1}, id="growing by a tenth a week"),
        pytest.param({"dip": 0.4, "missing": 0.1}, id="a tenth of the hours missing"),
        pytest.param({"dip": 0.4, "holidays": [8, 30]}, id="two holidays"),
        pytest.param({"dip": 0.4, "swing": 0.0}, id="days flat"),
        pytest.param({"dip": 0.4, "start": 61}, id="from a Wednesday noon on"),
    ],
)
def test_a_week_ahead_of_five_weeks_the_error_is_below_the_weekly_naives(made):
    seen, truth = demand(6, **made)
    history, ahead = seen[: 5 * WEEK], truth[5 * WEEK :]
    result = forecast_demand(rows(history), horizon_seconds=WEEK * HOUR)
    error = np.abs(result.frame["mid"].to_numpy() - ahead).mean()
    assert error < np.abs(weekly_naive(history, WEEK) - ahead).mean()
    assert "; weekly pattern of 5 weeks" in result.method


def test_a_day_ahead_the_error_is_small_at_any_hour_of_the_week():
    errors = []
    for seed in range(3):
        _, truth = demand(7, seed=seed)
        for origin in range(5 * WEEK, 6 * WEEK, 7):
            history, ahead = truth[:origin], truth[origin : origin + DAY]
            extrapolated = weekly_blend(history, DAY, DAY), weekly_naive(history, DAY)
            errors.append([np.abs(each - ahead).mean() for each in extrapolated])
    ours, naive = np.mean(errors, axis=0)
    assert ours < 0.9 * naive


@pytest.mark.parametrize(
    ("made", "hours", "output"),
    [
        pytest.param({}, 335, "no weekly pattern: less than two weeks", id="an hour short"),
        pytest.param({}, 336, "; weekly pattern of 2 weeks", id="two weeks with weekends"),
        pytest.param({"dip": 0.0}, 840, "no weekly pattern: it did not", id="all alike"),
        pytest.param({"growth": 0.2, "dip": 0.0}, 840, "no weekly pattern", id="growth is no week"),
        pytest.param({"missing": 0.3}, 336, "; weekly pattern of 2 weeks", id="a third missing"),
    ],
)
def test_days_of_the_week_are_used_where_the_past_asks_for_it(made, hours, output):
    seen, _ = demand(6, **made)
    assert output in forecast_demand(rows(seen[:hours])).method


@pytest.mark.parametrize("expected", [blend, weekly_blend])
def test_a_back_test_forecasts_from_each_origin_as_if_from_it_alone(expected):
    values = np.random.default_rng(4).poisson(30.0, 10 * WEEK).astype(float)
    past = backtest(values, values, DAY, DAY, expected=expected)
    for origin, errors in zip(past.origins[::37], past.errors[::37], strict=True):
        truth, history = values[origin : origin + DAY], values[:origin]
        extra, ahead = offset(history, DAY), expected(history, len(truth), DAY)
        alone = np.sqrt(truth + extra) - np.sqrt(ahead + extra)
        assert errors[: len(truth)] == pytest.approx(alone, abs=1e-12)
        assert np.isnan(errors[len(truth) :]).all()


@pytest.mark.parametrize(("weeks", "seeds"), [(2, range(6)), (5, range(2))])
def test_without_a_weekly_pattern_little_is_lost(weeks, seeds):
    errors = []
    for seed in seeds:
        _, truth = demand(weeks + 1, dip=0.0, noise=0.2, seed=seed)
        history, ahead = truth[: weeks * WEEK], truth[weeks * WEEK :][:DAY]
        pattern = best_pattern(history, DAY, DAY)
        extrapolated = pattern.expected(pattern.history, DAY, DAY), blend(history, DAY, DAY)
        errors.append([np.abs(each - ahead).mean() for each in extrapolated])
    ours, daily = np.mean(errors, axis=0)
    assert ours < 1.05 * daily


@pytest.mark.parametrize(
    "days", [[6.0, 6.0, 6.0, 6.0, 6.0, 2.0, 3.0], [500.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]]
)
def test_weeks_alike_to_the_digit_are_repeated(days):
    values = np.tile(np.repeat(days, DAY), 5)
    ahead = forecast_demand(rows(values), horizon_seconds=WEEK * HOUR).frame["mid"].to_numpy()
    assert ahead == pytest.approx(values[:WEEK], rel=1e-6, abs=1e-6)


def test_a_monday_after_an_empty_weekend_is_a_working_day():
    hour = np.arange(5 * WEEK)
    is_open = (hour % WEEK < SATURDAY) & (hour % DAY >= 9) & (hour % DAY < 18)
    calls = np.random.default_rng(0).poisson(np.where(is_open, 100.0, 0.0)).astype(float)
    found = forecast_demand(rows(calls))
    assert found.frame["mid"].sum() == pytest.approx(900, rel=0.05)
    assert found.width_ratio < 0.6


def test_a_burst_week_is_not_taken_for_a_pattern():
    seen, _ = demand(2, dip=0.0)
    seen[WEEK + 40 : WEEK + 50] *= 20
    assert "no weekly pattern" in forecast_demand(rows(seen)).method


def test_intervals_follow_the_week_and_hold():
    inside, widths = [], []
    for seed in range(3):
        _, truth = demand(6, seed=seed)
        origin = 5 * WEEK + 31 * seed
        result = forecast_demand(rows(truth[:origin]))
        low, high = result.frame["low"].to_numpy(), result.frame["high"].to_numpy()
        inside.append(((truth[origin:][:DAY] >= low) & (truth[origin:][:DAY] <= high)).mean())
        widths.append(result.width_ratio)
    assert np.mean(inside) >= 0.85
    assert max(widths) < 0.6


def test_a_saturday_that_was_not_recorded_is_filled_from_the_saturday_before():
    seen, truth = demand(3)
    seen[WEEK + SATURDAY : WEEK + SATURDAY + DAY] = np.nan
    pattern = best_pattern(seen[: 2 * WEEK], WEEK, DAY)
    saturday = pattern.expected(pattern.history, WEEK, DAY)[SATURDAY : SATURDAY + DAY]
    assert saturday.sum() == pytest.approx(truth[2 * WEEK :][SATURDAY:][:DAY].sum(), rel=0.15)


@pytest.mark.parametrize(("hours", "per_day"), [(6, 4), (24, 1)])
def test_longer_steps_have_weekends_too(hours, per_day):
    _, truth = demand(5)
    steps = truth.reshape(-1, hours).sum(axis=1)
    series = rows(steps, hours * HOUR)
    result = forecast_demand(series, step_seconds=hours * HOUR, horizon_seconds=WEEK * HOUR)
    days = result.frame["mid"].to_numpy().reshape(7, per_day).sum(axis=1)
    assert days[5:].mean() / days[:5].mean() == pytest.approx(0.6, abs=0.05)


@pytest.mark.parametrize("hours_ahead", [6, 48])
def test_the_horizon_does_not_affect_the_choice_of_the_weekly_pattern(hours_ahead):
    seen, _ = demand(5, missing=0.1, holidays=[8, 30])
    steps = rows(np.nansum(seen.reshape(-1, 6), axis=1), 6 * HOUR)
    result = forecast_demand(steps, step_seconds=6 * HOUR, horizon_seconds=hours_ahead * HOUR)
    assert "; weekly pattern of 5 weeks" in result.method


@pytest.mark.parametrize(
    ("by_day", "stated"),
    [
        pytest.param([1] * 10, 0.95, id="ten days that all held"),
        pytest.param([1] * 50, 0.983, id="fifty days that all held"),
        pytest.param([1, 1, 1, 9, 1], 0.867, id="five days of which one did not"),
        pytest.param([np.nan] * 5, None, id="nothing measured"),
    ],
)
def test_a_coverage_measured_on_few_days_is_shrunk(by_day, stated):
    errors = np.repeat(np.asarray(by_day, dtype=float), DAY)[:, None]
    found = stated_coverage(Backtest(np.arange(len(errors)), errors, float(len(by_day))), DAY)
    assert found == (stated if stated is None else pytest.approx(stated, abs=0.001))


values_of_two_weeks = st.lists(
    st.one_of(st.none(), st.just(0.0), st.floats(0, 1e9, allow_nan=False)),
    min_size=56,
    max_size=120,
)


@settings(max_examples=30, deadline=None)
@given(values_of_two_weeks)
def test_any_two_weeks_are_answered_in_order_or_refused(values):
    values = [np.nan if value is None else value for value in values]
    result = forecast_demand(rows(values, 6 * HOUR), step_seconds=6 * HOUR)
    ends = result.frame.select("low", "mid", "high").to_numpy()
    assert result.is_known != bool(result.reason)
    assert np.isfinite(ends).all()
    assert (np.diff(ends, axis=1) >= 0).all()


@settings(max_examples=10, deadline=None)
@given(st.floats(1e-3, 1e6), st.integers(0, 99))
def test_the_unit_of_demand_does_not_matter_to_a_week(factor, seed):
    history = filled(demand(3, seed=seed)[0], DAY)
    plain = weekly_blend(history, WEEK, DAY)
    assert weekly_blend(history * factor, WEEK, DAY) == pytest.approx(plain * factor, rel=1e-6)
