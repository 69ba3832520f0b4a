import numpy as np
import pytest

from vllm_capacity.verdicts.curve import Loads, fitted_usl, foreseen_peak, kv_limit_running

LOADS = np.array([1.0, 2.0, 4.0, 8.0, 16.0, 32.0])


def law(running, *, rate=30.0, sigma=0.05, kappa=0.0):
    n = np.asarray(running)
    return rate * n / (1 + sigma * (n - 1) + kappa * n * (n - 1))


@pytest.mark.parametrize(("sigma", "kappa"), [(0.05, 0.0), (0.02, 0.001), (0.3, 0.0)])
def test_fitted_usl_finds_the_law_again(sigma, kappa):
    found = fitted_usl(Loads.of(LOADS, law(LOADS, sigma=sigma, kappa=kappa)))
    assert found is not None
    assert (found.rate, found.sigma, found.kappa) == pytest.approx((30, sigma, kappa), abs=2e-3)


def test_fitted_usl_needs_two_different_loads():
    assert fitted_usl(Loads.of([4.0, 4.0], [100.0, 101.0])) is None


def test_loads_are_sorted():
    assert Loads.of([4.0, 1.0], [100.0, 30.0]).output.tolist() == [30.0, 100.0]


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


def test_a_curve_that_bends_is_foreseen():
    seen = LOADS[:5]
    sight = foreseen_peak(Loads.of(seen, law(seen, sigma=0.2)))
    assert sight is not None
    assert sight.is_answer
    assert sight.low < law(64.0, sigma=0.2) < sight.high


def test_a_line_is_refused_and_says_how_far_to_go():
    sight = foreseen_peak(Loads.of(LOADS, 30 * LOADS))
    assert sight is not None
    assert not sight.is_answer
    assert sight.high > 2.4 * sight.low
    assert sight.bend_running > 2 * LOADS[-1]


def test_the_kv_limit_cuts_a_line():
    sight = foreseen_peak(Loads.of(LOADS, 30 * LOADS), kv_limit=40.0)
    assert sight is not None
    assert sight.is_answer
    assert sight.low < 30 * 40 * 0.94 < sight.high


def test_a_nearer_kv_limit_never_foresees_more():
    loads = Loads.of(LOADS, law(LOADS))
    mids = [foreseen_peak(loads, kv_limit=limit).mid for limit in (32.0, 40.0, 60.0, 100.0)]
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
def test_what_it_takes_to_foresee(running, kv_limit, is_foreseen):
    sight = foreseen_peak(Loads.of(running, law(running)), kv_limit)
    assert (sight is not None) == is_foreseen
