"""A capacity is extrapolated only where the load varied by cause and throughput bent."""

import numpy as np
import pytest
from made_steps import made_steps, queued, steady

from vllm_capacity.verdicts.saturation.capacity import (
    blocks,
    dipped,
    has_bent,
    is_batch_small,
    is_easing,
    is_load_lasting,
    is_load_varied,
)
from vllm_capacity.verdicts.saturation.curve import LoadPoints
from vllm_capacity.verdicts.saturation.fit import BOUNDED, EXTRAPOLATED, engine_fits
from vllm_capacity.verdicts.saturation.regimes import judged_steps

SECONDS = 20.0
TOKENS_A_REQUEST = 100.0


def served(arrivals_per_second, *, bend=16.0, seed=0, kv_limit=None):
    """Steps of a server with step time ∝ 1 + N/bend whose arrivals are Poisson at those rates."""
    rng = np.random.default_rng(seed)
    steps = []
    for rate in arrivals_per_second:
        output = rng.poisson(rate * SECONDS) / SECONDS * TOKENS_A_REQUEST
        # X = 30 N ÷ (1 + N/bend), solved for N.
        running = output / max(1e-9, 30 - output / bend)
        finished = rng.poisson(rate * SECONDS) / SECONDS
        itl = running / output if output else None
        more = {"requests_per_second": finished, "itl_mean_seconds": itl}
        more["prompt_tokens_per_second"] = 2 * output
        if kv_limit is not None:
            more["kv_cache_ratio_mean"] = running / kv_limit
        steps.append(steady(running, output, **more))
    return made_steps(*steps, seconds=SECONDS)


def found(steps):
    return blocks(judged_steps(steps))


STEADY = [1.2] * 180
RAMP = list(np.linspace(0.3, 3.4, 180))


@pytest.mark.parametrize("seed", range(8))
def test_a_constant_rate_is_no_variation(seed):
    assert not is_load_varied(found(served(STEADY, seed=seed)))


@pytest.mark.parametrize(
    ("rates", "bend", "expected"),
    [
        pytest.param(RAMP, 16.0, (True, True), id="a ramp of a server that bends"),
        pytest.param(RAMP, 1e6, (True, False), id="a ramp of a server far from its limit"),
        pytest.param([0.5] * 90 + [2.5] * 90, 16.0, (True, True), id="two loads"),
    ],
)
def test_load_that_varied_and_output_that_bent(rates, bend, expected):
    seen = found(served(rates, bend=bend))
    assert (is_load_varied(seen), has_bent(seen)) == expected


@pytest.mark.parametrize("seed", range(4))
def test_a_steady_load_gives_the_best_minute_as_a_lower_bound(seed):
    steps = served(STEADY, seed=seed)
    (fit,) = engine_fits(steps)
    assert (fit.kind, fit.capacity.mid) == (BOUNDED, None)
    minutes = steps["output_tokens_per_second"].rolling_mean(3).max()
    assert 0.85 * minutes <= fit.capacity.low <= steps["best_minute_tokens_per_second"].max()
    assert "the load was steady" in fit.capacity.reason


def test_a_ramp_is_extrapolated():
    (fit,) = engine_fits(served(RAMP))
    assert fit.kind == EXTRAPOLATED
    assert fit.capacity.low < 30 * 80 / (1 + 80 / 16) < fit.capacity.high


BURSTS = list(np.random.default_rng(4).permutation([0.4] * 40 + [3.2] * 20).repeat(3))
WAVES = list(1.8 + 1.4 * np.sin(np.linspace(0, 4 * np.pi, 180)))


@pytest.mark.parametrize(
    ("rates", "expected"),
    [
        pytest.param(BURSTS, False, id="bursts of a minute"),
        pytest.param(RAMP, True, id="a ramp"),
        pytest.param(WAVES, True, id="waves"),
        pytest.param([0.5] * 9 + [2.5] * 9, True, id="two loads of three minutes"),
    ],
)
def test_loads_that_last_no_longer_than_a_block_are_bursts(rates, expected):
    assert is_load_lasting(found(served(rates))) == expected


def test_bursts_give_the_best_minute_as_a_lower_bound():
    (fit,) = engine_fits(served(BURSTS))
    assert (fit.kind, fit.capacity.mid) == (BOUNDED, None)
    assert "the load came in bursts" in fit.capacity.reason


RUNNING = 1.5 ** np.arange(12)


@pytest.mark.parametrize(
    ("step_times", "expected"),
    [
        pytest.param(10 + RUNNING, False, id="a request more costs as much at any load"),
        pytest.param(10 + RUNNING**1.5, False, id="more and more"),
        pytest.param(
            6 + 30 * (1 - 0.94**RUNNING) + 0.05 * RUNNING,
            True,
            id="less, once all experts are read",
        ),
    ],
)
def test_a_curve_that_straightens_again_has_no_nearby_peak(step_times, expected):
    assert is_easing(LoadPoints.of(RUNNING, RUNNING / step_times), None) == expected


@pytest.mark.parametrize(
    ("kv_limit", "expected"),
    [
        pytest.param(None, True, id="it is unknown how many fit"),
        pytest.param(400.0, True, id="many times as many would fit"),
        pytest.param(100.0, False, id="the memory ends near the loads seen"),
    ],
)
def test_slightly_easing_steps_only_indicate_a_far_limit(kv_limit, expected):
    running = np.linspace(1, 60, 20)
    step_times = 10 + running - 0.004 * running**2  # the upper half rises 0.7 × as steeply
    assert is_easing(LoadPoints.of(running, running / step_times), kv_limit) == expected


@pytest.mark.parametrize(
    ("most", "kv_limit", "expected"),
    [
        pytest.param(8, None, True, id="few ran, and it is unknown how many fit"),
        pytest.param(8, 200.0, True, id="few ran of the many that would fit"),
        pytest.param(8, 20.0, False, id="few ran, and few more would fit"),
        pytest.param(40, 2000.0, False, id="many ran"),
    ],
)
def test_small_batches_do_not_predict_large_ones(most, kv_limit, expected):
    running = np.linspace(0.5, most, 12)
    assert is_batch_small(LoadPoints.of(running, running / (10 + running)), kv_limit) == expected


def test_a_bend_among_few_requests_gives_the_best_minute_as_a_lower_bound():
    (fit,) = engine_fits(served(list(np.linspace(0.1, 1.0, 180)), bend=8.0, kv_limit=400))
    assert fit.levels.loads.heaviest < 16
    assert (fit.kind, fit.capacity.mid) == (BOUNDED, None)
    assert "requests ran at once" in fit.capacity.reason


def test_blocks_take_a_minute_and_five_requests():
    seen = found(served([0.05] * 180))
    assert seen.seconds.min() >= 60
    assert seen.requests.sum() == pytest.approx(seen.seconds.sum() * 0.05, rel=0.5)


def test_too_little_is_no_blocks():
    assert found(served([1.0] * 4)) is None


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        pytest.param([30, 55, 90, 130, 160], None, id="concave"),
        pytest.param([30, 55, 52, 130, 160], 4, id="slowed at one load"),
        pytest.param([30, 55, 88, 130, 118], None, id="fallen past its peak"),
    ],
)
def test_a_load_below_its_neighbors_line_is_reported(output, expected):
    assert dipped(LoadPoints.of([1, 2, 4, 8, 16], output)) == expected


def test_a_slowed_stretch_at_the_limit_is_left_out_of_the_plateau():
    fast, slow = [queued(8, 300, 4)] * 12, [queued(8, 120, 9)] * 9
    (fit,) = engine_fits(made_steps(*fast, *slow))
    assert fit.capacity.mid == pytest.approx(300)
    assert set(fit.steps.output_tokens_per_second[fit.slowed]) == {120}


def test_a_stretch_that_begins_slowed_leaves_its_slow_beginning_out():
    """The slow steps fill a minute and a part of the next, whose mean is not slow."""
    slow, fast = [queued(8, 100, 9)] * 5, [queued(8, 300, 9)] * 16
    (fit,) = engine_fits(made_steps(*slow, *fast, seconds=25))
    assert fit.capacity.mid == pytest.approx(300)
    assert set(fit.steps.output_tokens_per_second[fit.slowed]) == {100}


def test_an_overload_that_a_neighbor_slowed_is_no_plateau():
    """The minute before gave more with fewer running: 300 tokens/s, and while requests waited 235.

    It is not a quarter less, so the stretch is not left out; but no luck makes a minute so good.
    """
    asked = {"requests_per_second": 10.0, "prompt_tokens_per_second": 600.0}
    free = [steady(8, 300, **asked)] * 6
    held = [queued(8, 235, 9, requests_per_second=8.0, prompt_tokens_per_second=470.0)] * 6
    (fit,) = engine_fits(made_steps(*free, *held))
    assert (fit.kind, fit.capacity.mid, fit.capacity.high) == (BOUNDED, None, None)
    assert fit.capacity.low == pytest.approx(300, rel=0.08)
    assert "while requests waited, the server produced 235" in fit.capacity.reason


def test_a_queue_now_and_then_is_no_plateau():
    steps = [queued(40, 300, 2, scrapes=1) if k % 3 else steady(30, 320) for k in range(18)]
    (fit,) = engine_fits(made_steps(*steps, seconds=60))
    assert fit.kind == BOUNDED
