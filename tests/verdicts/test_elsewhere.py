import math
from functools import partial

import pytest

from vllm_capacity.errors import InputError
from vllm_capacity.facts.gpus import find_gpu
from vllm_capacity.facts.llms import find_llm
from vllm_capacity.verdicts.hardware.elsewhere import (
    answer_elsewhere,
    best_split,
    full_from_light,
    moved_curve,
    slo_gain,
    version_effect,
    with_version,
    within_targets,
)
from vllm_capacity.verdicts.hardware.question import Load, Question
from vllm_capacity.verdicts.hardware.serving import Machine, shipped_calibration
from vllm_capacity.verdicts.hardware.side import side
from vllm_capacity.verdicts.hardware.what_if import published_runs, what_if
from vllm_capacity.verdicts.saturation.slo import SloLoad

ASK = partial(what_if, published=published_runs())


def question(to_gpu="B200-180GB-SXM", **changed):
    asked = {
        "llm": find_llm("MiniMax-M2.5"),
        "dtype": "fp8",
        "to_dtype": "fp8",
        "from_gpu": find_gpu("H200-141GB-SXM"),
        "to_gpu": find_gpu(to_gpu),
        "gpus": 8,
        "output_tokens_per_second": 2000.0,
        "input_tokens": 1024.0,
        "output_tokens": 1024.0,
        "load": Load(clients=32),
    }
    return Question(**{**asked, **changed})


LOADS = tuple(
    SloLoad(clients, rate, itl, ttft)
    for clients, rate, itl, ttft in (
        (4.0, 390.0, 0.4, 0.2),
        (16.0, 1200.0, 0.55, 0.4),
        (64.0, 2900.0, 0.9, 0.9),
        (128.0, 4000.0, 1.3, 1.5),
    )
)


@pytest.mark.parametrize(
    ("loads", "output"),
    [
        pytest.param(LOADS, 3100.0, id="between the last that meets them and the next"),
        pytest.param(LOADS[:3], 2900.0, id="none misses them: the most that was seen"),
        pytest.param(
            (SloLoad(16.0, 100.0, 0.5, 0.1), SloLoad(64.0, 400.0, 2.0, 0.1)),
            200.0,
            id="loads and rates a factor apart: half of the way is the root",
        ),
        pytest.param(
            (SloLoad(16.0, 100.0, 0.5, 0.1), SloLoad(64.0, 0.0, 2.0, 0.1)),
            100.0,
            id="the next is unknown: no more than the last",
        ),
        pytest.param((), None, id="no load"),
        pytest.param(LOADS[3:], None, id="the lightest misses them"),
    ],
)
def test_a_curve_is_read_at_its_targets(loads, output):
    found = within_targets(loads)
    assert (found and found[0]) == (output and pytest.approx(output, rel=0.07))
    assert found is None or found[1] == (max(load.worst for load in loads) > 1)


def test_every_load_moves_by_itself():
    there = moved_curve(question(), LOADS, ASK)
    gains = [
        new.output_tokens_per_second / old.output_tokens_per_second
        for old, new in zip(LOADS, there, strict=True)
    ]
    assert all(gain > 1 for gain in gains)
    assert len({round(gain, 2) for gain in gains}) > 1
    assert all(new.itl_ratio < old.itl_ratio for old, new in zip(LOADS, there, strict=True))


def test_targets_gain_more_than_throughput_on_a_faster_gpu():
    gain = slo_gain(question(), LOADS, ASK)
    heaviest = ASK(question(output_tokens_per_second=4000.0, load=Load(clients=128)))
    assert gain > heaviest.mid / 4000.0


def test_where_every_load_misses_the_targets_nothing_is_gained():
    assert slo_gain(question(), LOADS[3:], ASK) is None


def test_splits_share_the_load():
    found = best_split(question(), 8, ASK)
    assert {(each.gpus_per_engine, each.replicas) for each in found.splits} == {
        (1, 8), (2, 4), (4, 2), (8, 1),
    }  # fmt: skip
    known = [each for each in found.splits if each.output_tokens_per_second.is_known]
    assert found.mid == known[0].output_tokens_per_second.mid
    assert all(each.itl_seconds.is_known for each in known)


def test_a_split_that_does_not_fit_has_a_reason():
    found = best_split(question(to_gpu="H100-80GB-SXM"), 4, ASK)
    alone = next(each for each in found.splits if each.gpus_per_engine == 1)
    assert "do not fit" in alone.output_tokens_per_second.reason
    with pytest.raises(InputError, match="1 to 1024 GPUs"):
        best_split(question(), 0, ASK)


def test_a_version_is_known_by_its_published_pairs():
    effect = version_effect(question(), published_runs(), here="0.17.0", there="0.19.0")
    found = ASK(question())
    moved = with_version(found, effect)
    assert effect.low <= effect.mid <= effect.high
    assert moved.mid == pytest.approx(found.mid * effect.mid)
    assert moved.itl_seconds.mid == pytest.approx(found.itl_seconds.mid / effect.mid)


def test_an_unpublished_version_makes_the_answer_unknown():
    effect = version_effect(question(), published_runs(), here="0.17.0", there="0.30.0")
    assert "no published pair of vLLM 0.17.0 and 0.30.0" in effect.reason
    assert not with_version(ASK(question()), effect).is_known


@pytest.mark.parametrize(
    ("here", "there", "words", "more"),
    [
        pytest.param("0.18.0", None, "assuming vLLM 0.18.0 on both sides", 0.0, id="one named"),
        pytest.param("0.30.0", "0.30.0", "vLLM 0.30.0 on both sides", 0.0, id="the same"),
        pytest.param("0.15.1", "0.18.0", "hence the wider band", 0.15, id="of unknown effect"),
        pytest.param("0.15.1", "0.30.0", "no published pair of vLLM 0.15.1", None, id="too new"),
        pytest.param("0.5.4", "0.18.0", "no published pair of vLLM 0.5.4", None, id="too old"),
        pytest.param("nightly", "0.18.0", "no published pair", None, id="not a number"),
    ],
)
def test_an_engine_version_that_no_pair_of_the_model_shows(here, there, words, more):
    """Nothing is answered where versions lie outside those of any published pair."""
    asked = question(llm=find_llm("Qwen3-235B-A22B"))
    plain = answer_elsewhere(asked)
    found = answer_elsewhere(asked, engine_version=here, to_engine_version=there)
    if more is None:
        assert words in found.reason
        return
    assert words in found.sources
    assert found.mid == plain.mid
    half = math.log(plain.high / plain.mid)
    assert math.log(found.high / found.mid) == pytest.approx(math.hypot(half, more))
    assert found.itl_seconds.high >= plain.itl_seconds.high


def test_a_scaled_ttft_is_proportional_to_the_measured_one():
    asked = question(load=Load(clients=64))
    here, there = (
        side(asked.job_here, Machine(gpu, gpu.tensor_tflops), shipped_calibration(), clients=64)
        for gpu in (asked.from_gpu.rows[0], asked.to_gpu.rows[0])
    )
    for ratio in (0.1, 10.0):
        (moved,) = moved_curve(asked, [SloLoad(64, 3000.0, None, ratio)], ASK)
        assert moved.ttft_ratio == pytest.approx(ratio * there.ttft_seconds / here.ttft_seconds)


def test_a_light_load_predicts_a_full_one():
    light = question(output_tokens_per_second=490.5, load=Load(clients=4))
    found = full_from_light(light, ASK)
    truth = 3559.0  # measured with 64 clients (silicon_vllm.csv); the question is 128
    assert found.high > truth
    assert found.mid < 2 * truth
    assert "at a concurrency of 128, corrected by the time per token measured at 4" in found.sources
    assert "but so light a load does not support an estimate" in found.sources
    assert math.log(found.high / found.low) < 1


def test_a_load_near_saturation_is_extrapolated_to_saturation():
    found = full_from_light(question(load=Load(clients=64)), ASK)
    assert "does not support an estimate" not in found.sources
