"""Throughput within latency targets from a light load, by arithmetic: how often it holds."""

import math
import statistics
from functools import partial

import numpy as np
import pytest
from msgspec.structs import replace

from bench.whatif import _both_targets, _slo_load
from bench.whatif_runs import silicon_sweeps
from tests.verdicts.test_unloaded import (
    A100,
    LENGTHS,
    analysis,
    lightly_loaded,
    question_of,
    server,
    simulated,
)
from vllm_capacity.assumptions import Slo
from vllm_capacity.plan import plan
from vllm_capacity.render.prose.verdict import by_arithmetic
from vllm_capacity.verdicts.hardware.elsewhere import MAX_TIMES, within_targets
from vllm_capacity.verdicts.hardware.slo_from_light import within_from_light
from vllm_capacity.verdicts.hardware.unloaded import in_production
from vllm_capacity.verdicts.hardware.what_if import what_if
from vllm_capacity.verdicts.saturation.slo import SloLoad
from vllm_simulator import scenarios
from vllm_simulator.workload import Arrivals

ask = partial(what_if, published=())


def told_from(one):
    """The lightest run of a sweep as a question, its latencies with it."""
    ttft, itl = one.mean_ttft_ms / 1e3, one.mean_tpot_ms / 1e3
    return replace(question_of(one), itl_seconds=itl, ttft_seconds=ttft)


def test_from_the_lightest_silicon_load_to_targets():
    """The step times were fitted on these rows; `bench/whatif.py` leaves models out."""
    found = {}
    for one, *heavier in silicon_sweeps():
        runs = [one, *(run for run in heavier if run.clients <= MAX_TIMES * one.clients)]
        for name, *targets in _both_targets(runs):
            loads = [_slo_load(run, *targets) for run in runs]
            truth = within_targets(loads)
            if truth is None or not truth[1]:
                continue
            within = within_from_light(
                told_from(one), loads[0], ask, widen=in_production, is_p95=False
            )
            each = within.output_tokens_per_second
            is_held = each.low <= truth[0] <= (math.inf if each.is_bound else each.high)
            off = None if each.is_bound else abs(math.log(each.mid / truth[0]))
            found.setdefault(name, []).append((is_held, off))
    assert {name: len(cases) >= 180 for name, cases in found.items()} == {
        "an ITL target": True,
        "a TTFT target": True,
        "both": True,
    }
    for cases in found.values():
        assert statistics.mean(is_held for is_held, _ in cases) >= 0.9
    errors = [off for _, off in found["an ITL target"] if off is not None]
    assert math.expm1(statistics.median(errors)) <= 0.18


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A server by another law than the model's: a light window, and what heavier loads gave."""
    folder = tmp_path_factory.mktemp("made")
    config = server(*np.random.default_rng(31).normal(0.0, 0.15, 3))
    loads = []
    for rate in (9, 15, 21, 27, 33):
        workload = scenarios._poisson(Arrivals(rate * 100, 1.0, 97.0), LENGTHS)
        found = analysis(simulated(folder / f"{rate}", config, workload, 100)).answer
        p95 = found.latency.itl.p95.estimate, found.latency.ttft.p95.estimate
        loads.append((found.running.mean, found.throughput.output_tokens_per_second, *p95))
    return lightly_loaded(folder / "light", config), loads


@pytest.mark.parametrize(
    ("itl", "ttft"),
    [
        pytest.param(0.03, None, id="an ITL target"),
        pytest.param(0.05, None, id="a looser ITL target"),
        pytest.param(None, 0.15, id="a TTFT target"),
        pytest.param(0.05, 0.3, id="both"),
    ],
)
def test_a_simulated_server_reaches_its_estimate_within_targets(made, itl, ttft):
    window, loads = made
    curve = [
        SloLoad(running, rate, itl and itl_p95 / itl, ttft and ttft_p95 / ttft)
        for running, rate, itl_p95, ttft_p95 in loads
    ]
    truth, is_ended = within_targets(curve)
    assert is_ended
    of = analysis(window, slo=Slo(itl_p95_seconds=itl, ttft_p95_seconds=ttft))
    found, bound = of.by_arithmetic.slo_throughput_output_tokens_per_second, of.slo.throughput
    assert bound.is_bound
    assert bound.low <= found.low <= truth <= found.high
    assert found.high <= of.by_arithmetic.capacity.high
    assert of.by_arithmetic.slo_headroom_ratio.mid < of.by_arithmetic.headroom_ratio.mid


def test_the_plan_and_the_page_say_it_beside_the_bound(made):
    of = analysis(made[0], slo=Slo(itl_p95_seconds=0.05))
    found = plan(of)
    within = of.by_arithmetic.slo_throughput_output_tokens_per_second
    assert found.capacity_output_tokens_per_second.is_bound
    assert found.capacity_by_arithmetic_output_tokens_per_second == within
    assert found.options_basis.endswith("within the latency targets")
    assert "Within the latency targets it is" in by_arithmetic(of.answer)


def test_a_light_load_that_misses_its_targets_gives_no_result(made):
    of = analysis(made[0], slo=Slo(itl_p95_seconds=0.005))
    found = of.by_arithmetic.slo_throughput_output_tokens_per_second
    assert found.is_unknown
    assert "even the light load missed the targets" in found.reason
    assert of.by_arithmetic.capacity.is_known


def test_without_targets_there_is_none(made):
    found = analysis(made[0]).by_arithmetic
    assert found.slo_throughput_output_tokens_per_second.reason == "no latency target was given"
    assert found.slo_headroom_ratio.is_unknown


def test_no_extrapolation_beyond_what_a_light_load_supports(tmp_path):
    """One running request predicts 32 at most; a lax target is met beyond them."""
    window = lightly_loaded(tmp_path / "w", requests_per_second=0.5)
    found = analysis(window, slo=Slo(itl_p95_seconds=1.0)).by_arithmetic
    assert found.gpu == A100
    assert found.slo_throughput_output_tokens_per_second.is_bound
    assert "32 × as many" in found.slo_throughput_output_tokens_per_second.reason
