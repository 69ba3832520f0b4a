"""The kept truths are those that the servers give, and how much latency targets leave of them."""

import pytest

from tests.truth_server.cases import case
from tests.truth_server.judging import form, is_right
from tests.truth_server.servers import MIXES, PAIRS, SERVERS
from tests.truth_server.tenants import tenant_case, write
from tests.truth_server.truth import LatencyLevel, Truth, level_of, truths


def test_a_kept_load_level_is_measured_again():
    server, mix = "cpu-small", "tiny-fixed"
    kept = truths()[server, mix].levels[-1]
    again = level_of(SERVERS[server], MIXES[mix], kept.clients)
    assert (again.output, again.running) == pytest.approx((kept.output, kept.running), rel=1e-3)


@pytest.mark.parametrize("seed", [2002, 2006])
def test_kept_truths_of_tenants_are_found_again(tmp_path, seed):
    kept, again = (
        write(tenant_case(seed), tmp_path / f"{is_kept}", is_kept=is_kept)
        for is_kept in (True, False)
    )
    assert (kept.seconds, kept.without) == (again.seconds, again.without)


def test_every_pair_has_a_truth():
    assert set(truths()) == set(PAIRS)


@pytest.mark.parametrize(
    ("ttft", "itl", "expected"),
    [
        pytest.param(None, None, 100.0, id="no target leaves the capacity"),
        pytest.param(9.0, None, 100.0, id="a target that nothing misses leaves it, too"),
        pytest.param(None, 0.02, 50.0, id="where the p95 crosses the target"),
        pytest.param(0.05, 0.02, 0.0, id="missed at the lightest load: nothing"),
    ],
)
def test_the_capacity_within_targets(ttft, itl, expected):
    levels = (LatencyLevel(0.25, 25.0, 0.1, 0.01), LatencyLevel(0.75, 75.0, 0.4, 0.04))
    truth = Truth(100.0, 10.0, 1.0, (), levels)
    assert truth.within(ttft, itl) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("ends", "truth", "expected"),
    [
        pytest.param((1.0, 2.0, 3.0), 3.0, ("two-sided", True), id="an end is inside"),
        pytest.param((1.0, 2.0, 3.0), 3.1, ("two-sided", False), id="past an end"),
        pytest.param((1.0, None, None), 9.0, ("at least", True), id="above what is at least"),
        pytest.param((None, None, 3.0), 9.0, ("at most", False), id="above what is at most"),
        pytest.param((None, None, None), 9.0, ("unknown", None), id="nothing given"),
    ],
)
def test_judging_an_answer(ends, truth, expected):
    low, mid, high = ends
    assert (form(low, mid, high), is_right(low, high, truth)) == expected


@pytest.mark.parametrize(
    ("ends", "expected"),
    [
        pytest.param((62.0, 64.0, 66.0), True, id="what an overload gets"),
        pytest.param((98.0, 100.0, 102.0), True, id="the peak"),
        pytest.param((70.0, 80.0, 90.0), True, id="in between"),
        pytest.param((50.0, 55.0, 60.0), False, id="less than an overload gets"),
        pytest.param((101.0, None, None), False, id="at least more than the peak"),
    ],
)
def test_a_server_that_falls_past_its_peak_has_two_truths(ends, expected):
    low, _, high = ends
    assert is_right(low, high, 100.0, 64.0) is expected


def test_a_case_is_the_same_each_time():
    first, second = case("spells", 3), case("spells", 3)
    assert first.shape == second.shape
    assert first.lives[0].load[0].times.tolist() == second.lives[0].load[0].times.tolist()
