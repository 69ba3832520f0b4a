import numpy as np
import pytest

from vllm_capacity.verdicts.demand.model import Backtest, error_band, measured_coverage


def made(by_day):
    """A back-test one hour ahead, hourly: the errors of each day, all of one size."""
    errors = np.repeat(np.asarray(by_day, dtype=float), 24)[:, None]
    return Backtest(np.arange(len(errors)), errors, float(len(by_day)))


@pytest.mark.parametrize(
    ("by_day", "coverage"),
    [
        pytest.param([1, 1, 1, 1, 1], 1.0, id="days alike"),
        pytest.param([1, 1, 1, 9, 1], 0.8, id="a day unlike the others is outside their band"),
        pytest.param([1, 1, np.nan, 1, 1], 1.0, id="a day of gaps is not scored"),
        pytest.param([np.nan] * 5, None, id="nothing to score"),
    ],
)
def test_coverage_is_measured_on_days_held_out(by_day, coverage):
    assert measured_coverage(made(by_day), 24) == coverage


def test_a_band_reaches_the_farther_quantile_both_ways_and_widens_for_few_days():
    past = made([-4, *[1] * 8])
    assert error_band(past, 24).half_width == pytest.approx([4 * (1 + 0.6 / 3)])


def test_a_band_never_narrows_with_the_horizon():
    errors = np.tile([5.0] * 4 + [1.0] * 20, (200, 1))
    band = error_band(Backtest(np.arange(200), errors, 9.0), 24)
    assert (np.diff(band.half_width) >= 0).all()


def test_past_the_last_measured_horizon_the_band_grows_with_its_root():
    errors = np.full((200, 24 * 4), np.nan)
    errors[:, :24] = 1.0
    band = error_band(Backtest(np.arange(200), errors, 9.0), 24).half_width
    assert band[-1] / band[23] == pytest.approx(2.0)


def test_under_ten_errors_there_is_no_band():
    assert error_band(Backtest(np.arange(3), np.ones((3, 3)), 0.1), 24) is None
