import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_capacity.errors import InputError
from vllm_capacity.verdicts.demand.forecast import PEAK_PRIOR, forecast_demand
from vllm_capacity.verdicts.demand.history import collapses, demand_grid
from vllm_capacity.verdicts.demand.model import blend, filled

HOUR = 3600.0
DAY = 24 * HOUR


def rows(values, interval_seconds=HOUR, start=0.0):
    starts = start + np.arange(len(values)) * interval_seconds
    frame = pl.DataFrame({"ts_seconds": starts, "requests": np.asarray(values, dtype=float)})
    return frame.with_columns(pl.col("requests").fill_nan(None))


def daily_cycle(hours, *, level=1000.0, swing=0.6, noise=0.1, seed=0):
    """Requests per hour with a known mean: a sine over the day, log-normal noise around it."""
    mean = level * (1 + swing * np.sin(2 * np.pi * np.arange(hours) / 24))
    noisy = mean * np.exp(np.random.default_rng(seed).normal(0, noise, hours) - noise**2 / 2)
    return noisy, mean


def test_a_known_daily_cycle_is_forecast():
    noisy, mean = daily_cycle(240)
    ahead = forecast_demand(rows(noisy[:216])).frame["mid"].to_numpy()
    assert np.abs(ahead / mean[216:] - 1).mean() < 0.08


def test_a_flat_noisy_series_gets_a_flat_forecast():
    noisy, _ = daily_cycle(240, swing=0.0, noise=0.3, seed=4)
    ahead = forecast_demand(rows(noisy)).frame["mid"].to_numpy()
    assert ahead.max() / ahead.min() < 1.8


def test_intervals_hold_about_nine_in_ten_hours_and_say_so():
    inside, output = [], []
    for seed in range(12):
        noisy, _ = daily_cycle(24 * 12, noise=0.25, seed=seed)
        result = forecast_demand(rows(noisy[: 24 * 11]))
        truth = noisy[24 * 11 :]
        low, high = result.frame["low"].to_numpy(), result.frame["high"].to_numpy()
        inside.append(((truth >= low) & (truth <= high)).mean())
        output.append(result.coverage_measured)
    assert np.mean(inside) == pytest.approx(np.mean(output), abs=0.1)
    assert 0.85 <= np.mean(inside) <= 0.99


@pytest.mark.parametrize(
    ("values", "interval_seconds", "horizon_seconds", "output"),
    [
        pytest.param([], HOUR, DAY, "no row has a value", id="no rows at all"),
        pytest.param([5.0], HOUR, DAY, "span 1.0 h", id="a single row"),
        pytest.param([5.0] * 23, HOUR, DAY, "span 23.0 h", id="an hour under a day"),
        pytest.param([5.0] * 143, 600.0, DAY, "span 23.8 h", id="a row of 10 min under a day"),
        pytest.param([None] * 48, HOUR, DAY, "no row has a value", id="nothing but empty cells"),
        pytest.param([0.0] * 48, HOUR, DAY, "every row is zero", id="nothing but zeros"),
        pytest.param([5.0] * 72, HOUR, 7 * DAY, "168 h ahead", id="further ahead than back"),
        pytest.param([5.0] * 48 + [None] * 30, HOUR, DAY, "last day", id="the last day missing"),
        pytest.param(([None] * 20 + [5.0] * 4) * 4, HOUR, DAY, "gaps", id="mostly gaps"),
        pytest.param([5.0], DAY, DAY, "needs ten past errors", id="a single daily row"),
        pytest.param([5.0] * 3, DAY, DAY, "needs ten past errors", id="three daily rows"),
        pytest.param([5.0] * 3, DAY, DAY, "give 11 days without gaps", id="how many would do"),
        pytest.param([5.0] * 4, 6 * HOUR, DAY, "1.25 days without", id="a day of quarter days"),
    ],
)
def test_refusals_have_a_reason_and_no_rows(values, interval_seconds, horizon_seconds, output):
    step = max(interval_seconds, HOUR)
    values = [np.nan if value is None else value for value in values]
    result = forecast_demand(
        rows(values, interval_seconds), step_seconds=step, horizon_seconds=horizon_seconds
    )
    assert output in result.reason
    assert (result.is_known, result.coverage_measured, result.width_ratio) == (False, None, None)


@pytest.mark.parametrize("hours", [24, 25, 30, 47, 48, 49, 72])
def test_from_a_day_on_there_is_an_answer_with_a_coverage(hours):
    noisy, _ = daily_cycle(hours, noise=0.2)
    result = forecast_demand(rows(noisy))
    assert (len(result.frame), result.reason) == (24, "")
    assert 0.0 <= result.coverage_measured <= 1.0


@pytest.mark.parametrize(
    ("interval_seconds", "step_seconds", "horizon_seconds", "output"),
    [
        pytest.param(HOUR, 600.0, DAY, "coarser than the step", id="rows coarser than the step"),
        pytest.param(600.0, 900.0, DAY, "not a whole number of rows", id="rows do not fill a step"),
        pytest.param(600.0, 7 * HOUR, DAY, "does not divide a day", id="a step of seven hours"),
        pytest.param(600.0, 2 * DAY, 4 * DAY, "does not divide a day", id="a step over a day"),
        pytest.param(
            600.0, HOUR, 1.5 * HOUR, "not a whole number of steps", id="one step and a half"
        ),
    ],
)
def test_unsuitable_resolutions_are_input_errors(
    interval_seconds, step_seconds, horizon_seconds, output
):
    with pytest.raises(InputError, match=output):
        forecast_demand(
            rows([5.0] * 400, interval_seconds),
            step_seconds=step_seconds,
            horizon_seconds=horizon_seconds,
        )


def test_rows_far_from_all_others_are_an_input_error():
    stamps = np.array([100.0, *(1.7e9 + 60 * np.arange(100))])
    with pytest.raises(InputError, match="Leave out rows far from the others"):
        demand_grid(stamps, np.ones(101), step_seconds=3600.0)


def test_single_events_are_an_input_error():
    stamps = np.cumsum(np.random.default_rng(1).exponential(1.0, 500))
    events = pl.DataFrame({"ts_seconds": stamps, "requests": np.ones(500)})
    with pytest.raises(InputError, match="not on an even grid"):
        forecast_demand(events)


@pytest.mark.parametrize(
    ("start", "count", "first_step", "sums"),
    [
        pytest.param(0.0, 18, 0.0, [6, 6, 6], id="whole hours"),
        pytest.param(1200.0, 16, 3600.0, [6, 6], id="a first hour begun late is left out"),
        pytest.param(0.0, 15, 0.0, [6, 6], id="a last hour not over is left out"),
        pytest.param(1200.0, 12, 3600.0, [6], id="both ends"),
        pytest.param(450.0, 12, 450.0, [6, 6], id="rows off the hour keep their own phase"),
    ],
)
def test_only_whole_steps_count(start, count, first_step, sums):
    grid = demand_grid(start + np.arange(count) * 600.0, np.ones(count), step_seconds=HOUR)
    assert (grid.start_seconds, list(grid.values)) == (first_step, sums)


@pytest.mark.parametrize(
    ("jitter_seconds", "missing"),
    [
        pytest.param(0.0, [], id="an even grid"),
        pytest.param(2.0, [], id="rows a few seconds early or late"),
        pytest.param(2.0, [*range(100, 220)], id="two hours missing between them"),
        pytest.param(8.0, [], id="jobs an eighth of a row early or late"),
        pytest.param(
            0.0,
            np.random.default_rng(3).permutation(np.arange(1, 599))[:330],
            id="more rows missing than not",
        ),
    ],
)
def test_the_resolution_is_found_despite_jitter_and_missing_rows(jitter_seconds, missing):
    jitter = np.random.default_rng(2).uniform(-jitter_seconds, jitter_seconds, 600)
    stamps = 1.79e9 + np.arange(600) * 60.0 + jitter
    kept = np.setdiff1d(np.arange(600), missing)
    grid = demand_grid(stamps[kept], np.ones(len(kept)), step_seconds=600.0)
    assert (grid.interval_seconds, len(grid.rows)) == (60.0, 600)


def late(row, seconds):
    stamps = np.arange(1008) * 600.0
    stamps[row] += seconds
    return stamps


@pytest.mark.parametrize(
    "stamps",
    [
        pytest.param(late(500, 300.0), id="a row half its length late"),
        pytest.param(late(500, 270.0), id="a row nearly half its length late"),
        pytest.param(late(503, 400.0), id="the last row of an hour late"),
        pytest.param(late(504, 300.0), id="the first row of an hour late"),
        pytest.param(late(1007, 300.0), id="the last row late"),
        pytest.param(late(500, -120.0), id="a row early"),
    ],
)
def test_a_row_off_the_grid_changes_no_hour(stamps):
    grid = demand_grid(stamps, np.full(len(stamps), 100.0), step_seconds=HOUR)
    assert list(grid.values) == [600.0] * 168


@pytest.mark.parametrize("extra", [0.0, 100.0])
def test_an_extra_row_adds_only_its_count(extra):
    stamps = np.sort(np.append(np.arange(1008) * 600.0, 299_700.0))
    values = np.where(stamps == 299_700.0, extra, 100.0)
    grid = demand_grid(stamps, values, step_seconds=HOUR)
    assert (grid.values.sum(), grid.values[83]) == (168 * 600 + extra, 600 + extra)


@pytest.mark.parametrize(
    ("coarse", "fine", "output"),
    [
        pytest.param(720, 864, "most are 300 s apart, but from row 1 ", id="mostly fine"),
        pytest.param(900, 60, "most are 600 s apart, but from row 900 ", id="mostly coarse"),
    ],
)
def test_rows_with_changing_intervals_are_an_input_error(coarse, fine, output):
    gaps = np.concatenate([np.full(coarse, 600.0), np.full(fine, 300.0)])
    with pytest.raises(InputError, match=output):
        demand_grid(np.cumsum(gaps) - 600.0, gaps / 6, step_seconds=HOUR)


@pytest.mark.parametrize("grain", [60.05, 59.95])
@pytest.mark.parametrize("step", [60.0, 600.0, HOUR, DAY])
def test_a_drifting_clock_is_corrected(grain, step):
    stamps = 1.79e9 + np.arange(20_160) * grain
    grid = demand_grid(stamps, np.full(len(stamps), 100.0), step_seconds=step)
    seen = grid.values[np.isfinite(grid.values)]
    assert grid.end_seconds <= stamps[-1] + grain < grid.end_seconds + step + grain
    assert seen == pytest.approx(100 * step / grain, rel=0.002)
    assert len(seen) > 0.99 * len(grid.values)


def test_an_unfinished_last_hour_is_forecast_whole():
    noisy, _ = daily_cycle(48)
    tens = np.repeat(noisy / 6, 6)
    whole = forecast_demand(rows(tens, 600.0)).frame
    begun = forecast_demand(rows(np.append(tens, [1.0, 1.0]), 600.0)).frame
    assert begun.equals(whole)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        pytest.param([6.0] * 5 + [np.nan], 36.0, id="a gap of one row in six is scaled up"),
        pytest.param([6.0] * 3 + [np.nan] * 3, 36.0, id="half recorded is enough"),
        pytest.param([6.0] * 2 + [np.nan] * 4, np.nan, id="a third recorded is a gap"),
    ],
)
def test_partly_recorded_steps(values, expected):
    grid = demand_grid(np.arange(6) * 600.0, np.array(values), step_seconds=HOUR)
    assert grid.values == pytest.approx([expected], nan_ok=True)


def test_a_missing_row_an_empty_cell_and_a_collapse_are_one_and_the_same_gap():
    noisy, _ = daily_cycle(24 * 9)
    hole = slice(100, 103)
    empty, collapsed = noisy.copy(), noisy.copy()
    empty[hole], collapsed[hole] = np.nan, 0.0
    missing = rows(noisy).filter(~pl.col("ts_seconds").is_between(100 * HOUR, 102 * HOUR))
    answers = [forecast_demand(series).frame for series in (rows(empty), rows(collapsed), missing)]
    assert answers[0].equals(answers[1])
    assert answers[0].equals(answers[2])


def test_a_night_that_comes_every_day_is_no_gap():
    office = np.tile([0.0] * 12 + [100.0] * 12, 6)
    assert not collapses(office + np.tile([0.0] * 12 + [1.0] * 12, 6), HOUR)[: 24 * 6].any()


def test_a_single_collapse_is_a_gap_and_low_demand_is_not():
    values = np.full(144 * 4, 100.0)
    values[200], values[300] = 4.9, 6.0
    assert list(np.flatnonzero(collapses(values, 600.0))) == [200]


def test_a_gap_is_filled_from_the_day_before_and_never_scored():
    values = np.arange(72.0)
    values[[3, 40]] = np.nan
    assert list(filled(values, 24)[[3, 40]]) == [27.0, 16.0]


def test_one_burst_does_not_become_a_daily_pattern():
    quiet, _ = daily_cycle(24 * 9, swing=0.0, noise=0.05)
    burst = quiet.copy()
    burst[24 * 5 + 9] *= 50
    ahead = forecast_demand(rows(burst)).frame["mid"].to_numpy()
    assert ahead.max() < 3 * quiet.mean()


def test_a_week_ahead_drifts_from_the_last_day_to_the_week():
    level = np.full(24 * 8, 100.0)
    level[-24:] = 400.0
    ahead = blend(level, 24 * 7, 24)
    assert ahead[:24].mean() > 2 * ahead[-24:].mean() > 2 * 100


@pytest.mark.parametrize("now", range(0, 24, 3))
def test_a_service_idle_at_night_is_forecast_at_any_hour(now):
    hour = np.arange(24 * 12) % 24
    mean = np.where((hour >= 9) & (hour < 18), 100.0, 0.0)
    made = [np.random.default_rng(seed).poisson(mean) for seed in range(8)]
    end = 24 * 10 + now
    ahead = [forecast_demand(rows(values[:end])).frame["mid"].sum() for values in made]
    assert np.mean(ahead) == pytest.approx(900, rel=0.08)


def test_after_a_step_of_the_level_intervals_widen_and_say_so():
    inside = []
    for seed in range(6):
        noisy, _ = daily_cycle(24 * 11, seed=seed)
        noisy[24 * 10 - 3 :] *= 2
        found = forecast_demand(rows(noisy[: 24 * 10]))
        inside.append((found.frame["high"].to_numpy() >= noisy[24 * 10 :]).mean())
        assert "intervals widened, because demand in the last two hours" in found.method
    assert np.mean(inside) > 0.55


def test_a_step_out_of_days_alike_to_the_digit_has_an_interval_too():
    ends = forecast_demand(rows([600.0] * 240 + [300.0])).frame
    assert (ends["low"] <= 300).all()
    assert (ends["high"] >= 600).all()


def test_without_a_step_change_intervals_are_as_measured():
    assert "widened" not in forecast_demand(rows(daily_cycle(24 * 10)[0])).method


def test_a_last_day_of_zeros_is_zero_and_has_no_relative_width():
    values = np.append(daily_cycle(24 * 9)[0], np.zeros(24))
    found = forecast_demand(rows(values))
    assert (found.frame["mid"].sum(), found.width_ratio) == (0.0, None)


def test_a_constant_series_is_forecast_exactly():
    assert set(forecast_demand(rows([500.0] * 168)).frame["mid"]) == {500.0}


def test_time_columns_come_back_as_they_came():
    noisy, _ = daily_cycle(48)
    series = rows(noisy).select(
        ts=pl.from_epoch(pl.col("ts_seconds").cast(pl.Int64)).dt.replace_time_zone("UTC"),
        requests="requests",
    )
    frame = forecast_demand(series).frame
    assert frame.schema["ts"] == series.schema["ts"]
    assert frame["ts"][0] - series["ts"][-1] == series["ts"][1] - series["ts"][0]


def test_an_unknown_column_is_named():
    with pytest.raises(InputError, match=r"'tokens'.*ts_seconds, requests"):
        forecast_demand(rows([1.0]), column="tokens")


def test_peaks_are_measured_where_rows_are_fine_enough():
    spiky = np.tile([1.0, 1.0, 1.0, 1.0, 1.0, 2.0], 24 * 5)
    peak = forecast_demand(rows(spiky, 600.0)).peak_over_mean
    assert (peak.low, peak.mid, peak.high) == pytest.approx((12 / 7, 12 / 7, 12 / 7))
    assert forecast_demand(rows(spiky)).peak_over_mean is PEAK_PRIOR


series_values = st.lists(
    st.one_of(st.none(), st.floats(0, 1e9, allow_nan=False)), min_size=24, max_size=120
)


@settings(max_examples=60, deadline=None)
@given(series_values, st.sampled_from([HOUR, 6 * HOUR, DAY]))
def test_any_series_is_answered_in_order_or_refused(values, step_seconds):
    values = [np.nan if value is None else value for value in values]
    result = forecast_demand(rows(values), step_seconds=step_seconds)
    ends = result.frame.select("low", "mid", "high").to_numpy()
    assert result.is_known != bool(result.reason)
    assert np.isfinite(ends).all()
    assert (np.diff(ends, axis=1) >= 0).all()
    assert (ends >= 0).all()


@settings(max_examples=25, deadline=None)
@given(st.integers(30, 200), st.floats(1e-3, 1e6), st.integers(0, 99))
def test_the_unit_of_demand_does_not_matter(hours, factor, seed):
    noisy, _ = daily_cycle(hours, seed=seed)
    plain = forecast_demand(rows(noisy)).frame["high"].to_numpy()
    scaled = forecast_demand(rows(noisy * factor)).frame["high"].to_numpy()
    assert scaled == pytest.approx(plain * factor, rel=1e-4)
