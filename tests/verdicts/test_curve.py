import numpy as np
import pytest

from vllm_capacity.verdicts.saturation.curve import (
    LoadPoints,
    extrapolated_peak,
    fitted_usls,
    kv_limit_running,
)

LOADS = np.array([1.0, 2.0, 4.0, 8.0, 16.0, 32.0])


def fitted_usl(loads):
    (found,) = fitted_usls([loads])
    return found


def law(running, *, rate=30.0, sigma=0.05, kappa=0.0):
    n = np.asarray(running)
    return rate * n / (1 + sigma * (n - 1) + kappa * n * (n - 1))


@pytest.mark.parametrize(("sigma", "kappa"), [(0.05, 0.0), (0.02, 0.001), (0.3, 0.0)])
def test_fitted_usl_finds_the_law_again(sigma, kappa):
    found = fitted_usl(LoadPoints.of(LOADS, law(LOADS, sigma=sigma, kappa=kappa)))
    assert found is not None
    assert (found.rate, found.sigma, found.kappa) == pytest.approx((30, sigma, kappa), abs=2e-3)


NOISE = np.random.default_rng(3)
NOISY = [
    LoadPoints.of(
        LOADS[:count],
        law(LOADS[:count], sigma=sigma, kappa=kappa) * NOISE.lognormal(0, 0.05, count),
        NOISE.uniform(0.01, 0.1, count),
    )
    for count in (2, 3, 6)
    for sigma, kappa in ((0.0, 0.0), (0.05, 0.0), (0.4, 0.0), (0.02, 0.002))
]


def misfit(loads: LoadPoints, theta) -> np.ndarray:
    drag = 1 + theta[1] * (loads.running - 1) + theta[2] * loads.running * (loads.running - 1)
    fitted = theta[0] + np.log(loads.running) - np.log(drag)
    return (fitted - np.log(loads.output)) / np.hypot(0.02, loads.error)


@pytest.mark.parametrize("loads", NOISY)
def test_fitted_usl_is_the_least_squares_fit(loads):
    from scipy.optimize import least_squares  # slow to import: not on every collection

    found = fitted_usl(loads)
    bounds = ([-np.inf, 0, 0], [np.inf, 1, 0.1])
    theirs = least_squares(lambda theta: misfit(loads, theta), [3.4, 0.05, 1e-3], bounds=bounds)
    ours = (misfit(loads, (np.log(found.rate), found.sigma, found.kappa)) ** 2).sum() / 2
    assert ours <= theirs.cost * 1.001 + 1e-6
    assert (0 <= found.sigma <= 1, 0 <= found.kappa <= 0.1) == (True, True)


def test_many_fits_at_once_are_the_same_as_one_by_one():
    unfit = LoadPoints.of([4.0], [100.0])
    sets = [*NOISY, unfit]
    assert fitted_usls(sets)[-1] is None
    for many, loads in zip(fitted_usls(sets)[:-1], NOISY, strict=True):
        one = fitted_usl(loads)
        assert many.output(LOADS) == pytest.approx(one.output(LOADS), rel=1e-3)


def test_fitted_usl_needs_two_different_loads():
    assert fitted_usl(LoadPoints.of([4.0, 4.0], [100.0, 101.0])) is None


def test_loads_are_sorted():
    assert LoadPoints.of([4.0, 1.0], [100.0, 30.0]).output.tolist() == [30.0, 100.0]


@pytest.mark.parametrize(
    ("kv_ratio", "expected"),
    [
        pytest.param([0.04, 0.08, 0.16, 0.32], 0.96 / 0.04, id="in proportion"),
        pytest.param([0.10, 0.08, 0.16, 0.32], 0.96 / 0.04, id="light loads hold whole blocks"),
        pytest.param([0.0, 0.0, 0.0, 0.0], None, id="no use of the cache has no limit"),
        pytest.param([np.nan] * 4, None, id="not observed"),
    ],
)
def test_kv_limit_running(kv_ratio, expected):
    found = kv_limit_running(LOADS[:4], np.array(kv_ratio))
    assert found == (None if expected is None else pytest.approx(expected))


def test_the_peak_of_a_bending_curve_is_predicted():
    seen = LOADS[:5]
    peak_estimate = extrapolated_peak(LoadPoints.of(seen, law(seen, sigma=0.2)))
    assert peak_estimate is not None
    assert peak_estimate.is_answer
    assert peak_estimate.low < law(64.0, sigma=0.2) < peak_estimate.high


def test_a_peak_is_at_least_the_observed_maximum():
    falling = LoadPoints.of(LOADS, [30.0, 58.0, 110.0, 200.0, 300.0, 240.0])
    peak_estimate = extrapolated_peak(falling)
    assert 0.96 * 300 < peak_estimate.low < 300
    assert peak_estimate.mid == pytest.approx(300, rel=0.01)
    assert peak_estimate.no_less_than(300).low == 300
    assert peak_estimate.high > 1.05 * 300


def test_a_straight_line_is_refused_with_the_load_needed():
    peak_estimate = extrapolated_peak(LoadPoints.of(LOADS, 30 * LOADS))
    assert peak_estimate is not None
    assert not peak_estimate.is_answer
    assert peak_estimate.high > 2.5 * peak_estimate.low
    assert peak_estimate.bend_running > 2 * LOADS[-1]


def test_the_kv_limit_cuts_a_line():
    peak_estimate = extrapolated_peak(LoadPoints.of(LOADS, 30 * LOADS), kv_limit=40.0)
    assert peak_estimate is not None
    assert peak_estimate.is_answer
    assert peak_estimate.low < 30 * 40 * 0.94 < peak_estimate.high


def test_a_lower_kv_limit_never_predicts_more():
    loads = LoadPoints.of(LOADS, law(LOADS))
    mids = [extrapolated_peak(loads, kv_limit=limit).mid for limit in (32.0, 40.0, 60.0, 100.0)]
    assert mids == sorted(mids)


@pytest.mark.parametrize(
    ("running", "kv_limit", "is_foreseen"),
    [
        pytest.param([4.0, 8.0], None, False, id="two loads show no bend"),
        pytest.param([7.0, 8.0, 9.0], None, False, id="three loads too close together"),
        pytest.param([8.0], 30.0, False, id="one load far from a full cache"),
        pytest.param([8.0], 15.0, True, id="one load near a full cache"),
    ],
)
def test_data_needed_for_a_prediction(running, kv_limit, is_foreseen):
    peak_estimate = extrapolated_peak(LoadPoints.of(running, law(running)), kv_limit)
    assert (peak_estimate is not None) == is_foreseen
