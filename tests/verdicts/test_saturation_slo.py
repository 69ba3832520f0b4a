import numpy as np
import polars as pl
import pytest
from made_steps import made_steps, queued, steady

from vllm_capacity.assumptions import Slo
from vllm_capacity.figures.steps import engine_steps
from vllm_capacity.verdicts.saturation.fit import engine_fits
from vllm_capacity.verdicts.saturation.slo import is_oversaturating, slo_throughput

LOADS = [(1, 30.0, 0.1), (2, 57.0, 0.15), (4, 103.0, 0.3), (8, 179.0, 0.6), (16, 264.0, 1.2)]


def within(steps, ttft=None, itl=None):
    """The throughput within these targets, seconds, of the engines of some steps."""
    return slo_throughput(engine_fits(steps), Slo(ttft, itl))


def load(running, output, **more):
    """A steady step whose requests and prompts go with its output."""
    went_in = {"requests_per_second": output / 25, "prompt_tokens_per_second": 2 * output}
    return steady(running, output, **went_in, **more)


def loaded(loads, **more):
    return made_steps(
        *[load(n, x, ttft_p95_seconds=t, **more) for n, x, t in loads for _ in range(3)]
    )


@pytest.mark.parametrize(
    ("ttft", "itl", "expected"),
    [
        pytest.param(0.45, None, (103.0, 141.0, 179.0), id="halfway between two loads"),
        pytest.param(0.6, None, (179.0, 179.0, 264.0), id="just met"),
        pytest.param(0.45, 0.06, (103.0, 141.0, 179.0), id="both targets, one binds"),
    ],
)
def test_slo_throughput(ttft, itl, expected):
    found = within(loaded(LOADS), ttft, itl)
    assert (found.low, found.mid, found.high) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("missed", "expected"),
    [
        pytest.param(0.0, "at least", id="met in every step"),
        pytest.param(0.05, "at least", id="missed in a few"),
        pytest.param(0.5, "unknown", id="missed in half of them"),
        pytest.param(0.9, "at most", id="missed in most"),
    ],
)
def test_a_steady_load_is_one_load_however_its_moments_scatter(missed, expected):
    outputs = np.random.default_rng(1).poisson(100, 200)
    ttfts = np.where(np.argsort(np.argsort(outputs)) >= 200 * (1 - missed), 0.9, 0.1)
    steps = made_steps(
        *[load(x / 10, float(x), ttft_p95_seconds=t) for x, t in zip(outputs, ttfts, strict=True)]
    )
    found = within(steps, 0.5)
    assert str(found).startswith(expected)


def test_requests_left_after_a_limit_are_no_load():
    light = [load(2, 57.0, ttft_p95_seconds=0.1)] * 12
    spell = [queued(8, 180.0, 20, requests_per_second=7.0, ttft_p95_seconds=9.0)] * 9
    wake = [load(3, 80.0, ttft_p95_seconds=9.0)]
    found = within(made_steps(*[*light, *spell, *wake] * 4), 0.5)
    assert found.low == 57.0


def test_a_step_in_which_the_load_changed_is_no_load():
    light = [load(4, 103.0, ttft_p95_seconds=0.1)] * 12
    heavy = [load(64, 300.0, ttft_p95_seconds=0.9)] * 12
    changes = [load(34, 200.0, ttft_p95_seconds=0.9)]
    found = within(made_steps(*[*light, *changes, *heavy, *changes] * 3), 0.45)
    assert (found.low, found.high) == (103.0, None)


def test_a_miss_below_a_load_that_met_the_targets_leaves_only_a_bound():
    slowed = load(3, 80.0, ttft_p95_seconds=0.9)
    steps = [load(n, x, ttft_p95_seconds=t) for n, x, t in LOADS for _ in range(6)]
    found = within(made_steps(*steps, *[slowed] * 3), 0.45)
    assert (found.low, found.mid, found.high) == (57.0, None, None)
    assert "test loads in between to narrow this" in found.reason


def test_an_observed_throughput_within_the_target_is_a_lower_bound():
    falling = [(1, 30.0, 0.1), (4, 103.0, 0.3), (8, 179.0, 0.4), (16, 90.0, 0.45), (32, 60.0, 0.9)]
    found = within(loaded(falling), 0.5)
    assert 0.98 * 179.0 < found.low <= 179.0
    assert (found.mid, found.high) == (None, None)


def test_more_load_is_not_asked_for_where_throughput_fell():
    falling = [(1, 30.0, 0.1), (4, 103.0, 0.3), (8, 179.0, 0.4), (16, 90.0, 0.45)]
    found = within(loaded(falling), 0.5)
    assert (found.low, found.high) == (179, None)
    assert "past 8.0 running requests throughput fell" in found.reason


def test_a_queue_that_drifts_without_growing_is_no_oversaturation():
    rng = np.random.default_rng(3)
    called = []
    for _ in range(60):
        drift = np.zeros(40)
        for k in range(1, 40):
            drift[k] = 0.8 * drift[k - 1] + rng.normal()
        steps = made_steps(
            *[steady(8, 179.0, waiting_mean=10 + d, ttft_p95_seconds=1 + 0.05 * d) for d in drift]
        )
        called.append(is_oversaturating(steps).is_oversaturating)
    assert np.mean(called) <= 0.12


@pytest.mark.parametrize(
    ("ttft", "itl", "part_of_reason"),
    [
        pytest.param(None, None, "no latency target", id="no target"),
        pytest.param(0.05, None, "even the lightest load", id="never met"),
        pytest.param(0.45, 0.01, "even the lightest load", id="one target never met"),
    ],
)
def test_slo_throughput_is_unknown(ttft, itl, part_of_reason):
    assert part_of_reason in within(loaded(LOADS), ttft, itl).reason


def test_a_load_of_less_than_one_token_per_second_is_not_said_to_be_0():
    light = [(n, output / 400, seconds) for n, output, seconds in LOADS]
    assert "running requests and 0.075 output tokens/s" in within(loaded(light), 0.05).reason


def test_slo_throughput_is_at_least_the_observed_one_if_targets_were_always_met():
    found = within(loaded(LOADS), 5.0, None)
    assert (found.low, found.mid, found.high) == (264, None, None)
    assert "test a heavier load to find the limit" in found.reason


def test_slo_throughput_is_never_above_the_capacity():
    held = [queued(8, 200, 4, ttft_p95_seconds=9.0) for _ in range(8)]
    loads = [load(n, 40.0 * n, ttft_p95_seconds=0.1 * n) for n in (1, 2, 4, 4) for _ in range(3)]
    steps = made_steps(*loads, *held)
    (fit,), found = engine_fits(steps), within(steps, 1.0)
    ends = zip((found.low, found.mid, found.high), _ends(fit.capacity), strict=True)
    assert all(within <= most for within, most in ends)


def _ends(estimate):
    return estimate.low, estimate.mid, estimate.high


def test_slo_throughput_met_at_saturation_is_the_plateau():
    held = [queued(8, 200, 2, ttft_p95_seconds=0.5) for _ in range(8)]
    assert within(made_steps(*held), 1.0).mid == pytest.approx(200)


def test_slo_throughput_of_steps_without_latency_is_unknown():
    assert within(made_steps({"ttft_p95_seconds": None}), 1.0).reason


def test_recorded_slo_throughput_lies_between_its_loads(sweep):
    found = within(engine_steps(sweep, time_range=sweep.extent), 2.0, 0.2)
    assert 255 < found.low < found.mid < found.high < 300


# Coverage: with every second load left out, the interval contains the answer from all of them.
def test_slo_interval_covers_the_loads_between():
    dense = [(n, 300 * n / (n + 10), 0.02 * n) for n in 1.3 ** np.arange(1, 14)]
    hits = []
    for slo in np.linspace(0.06, 0.4, 20):
        truth = within(loaded(dense), slo).mid
        for first in (0, 1):
            thin = within(loaded(dense[first::2]), slo)
            hits.append(thin.is_known and thin.low <= truth <= thin.high)
    assert np.mean(hits) >= 0.85


def ramp(queue_per_step, ttft_per_step, count=12):
    return made_steps(
        *[
            queued(
                8,
                180,
                1 + queue_per_step * k,
                ttft_p95_seconds=1 + ttft_per_step * k + 0.1 * (k % 3),
            )
            for k in range(count)
        ]
    )


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        pytest.param(ramp(2.0, 0.5), True, id="both grow"),
        pytest.param(ramp(2.0, 0.0), False, id="a queue that grows while TTFT stands"),
        pytest.param(ramp(0.0, 0.5), False, id="TTFT that grows without a queue: longer prompts"),
        pytest.param(ramp(-1.0, -0.2, 6), False, id="catching up"),
        pytest.param(ramp(2.0, 0.5, 4), None, id="too few steps"),
        pytest.param(made_steps(), None, id="no steps"),
    ],
)
def test_oversaturation_is_detected(steps, expected):
    assert is_oversaturating(steps).is_oversaturating is expected


def test_oversaturation_says_how_fast():
    assert (
        "waiting changed by +6.0 requests per minute" in is_oversaturating(ramp(2.0, 0.5)).evidence
    )


def test_one_engine_falling_behind_is_enough():
    calm = ramp(0.0, 0.0).with_columns(instance=pl.lit("calm"))
    assert is_oversaturating(pl.concat([calm, ramp(2.0, 0.5)])).is_oversaturating is True
