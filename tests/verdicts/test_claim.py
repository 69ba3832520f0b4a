"""Published claims compared with a window."""

import pytest
from msgspec.structs import replace

from vllm_capacity.errors import InputError
from vllm_capacity.estimate import Estimate
from vllm_capacity.facts.throughput import measurements
from vllm_capacity.verdicts.cost.comparisons import (
    Claim,
    Comparison,
    implied_usd_per_gpu_hour,
    published_bound,
    usd_per_request_at,
)

GUIDE = {
    "model": "openai/gpt-oss-20b",
    "gpu": "A100-80GB-PCIe",
    "input_tokens": 214.8,
    "output_tokens": 193.4,
    "requests_per_second": 5138 / 3.15 / 3600,
}


def test_published_cost_of_the_worked_example_implies_1_64_an_hour():
    assert implied_usd_per_gpu_hour(0.001005, 5138, 3.15) == pytest.approx(1.6393, abs=1e-4)


def test_no_gpu_hours_imply_no_price():
    with pytest.raises(InputError, match="GPU-hours above 0"):
        implied_usd_per_gpu_hour(0.001, 10, 0)


def test_worked_example_used_1_7_percent_of_a_published_run():
    bound = published_bound(measurements(), **GUIDE)
    assert (round(bound.requests_per_second, 2), round(bound.used_ratio, 4)) == (26.66, 0.0170)


def test_full_gpu_costs_59_times_less_per_request():
    bound = published_bound(measurements(), **GUIDE)
    full = usd_per_request_at(bound, Estimate.exact(1.64, "list"))
    assert 0.001005 / full.mid == pytest.approx(58.8, abs=0.1)
    assert "as published" in full.sources


@pytest.mark.parametrize(
    "other",
    [
        pytest.param({"model": "openai/gpt-oss-120b", "gpu": "H100-80GB-PCIe"}, id="other lengths"),
        pytest.param({"gpu": "L4-PCIe"}, id="a GPU without measurements"),
        pytest.param({"output_tokens": 400.0}, id="answers twice as long"),
        pytest.param({"input_tokens": 0.0}, id="no prompts"),
    ],
)
def test_run_unlike_the_window_is_no_bound(other):
    lengths = {"input_tokens": 1000.0} if other.get("model") else {}
    assert published_bound(measurements(), **{**GUIDE, **lengths, **other}) is None


def test_bound_is_the_upper_middle_of_several_runs():
    (run, *_) = [m for m in measurements() if m.is_burst and m.model == GUIDE["model"]]
    like = replace(run, input_tokens=214.8, output_tokens=100.0, gpu="A100-80GB-SXM", gpus=1)
    runs = [replace(like, output_tokens_per_second=rate) for rate in (500.0, 100.0, 300.0, 200.0)]
    bound = published_bound(runs, **{**GUIDE, "output_tokens": 100.0})
    assert bound.requests_per_second == 3.0


@pytest.mark.parametrize(
    ("published", "found", "rounded", "is_reproduced"),
    [
        pytest.param(1631, 1631.111, "1631", True, id="to the unit"),
        pytest.param(0.001005, 0.00100545, "0.001005", True, id="to the printed place"),
        pytest.param(0.001005, 0.00110, "0.001100", False, id="another price"),
        pytest.param(3.15, 3.1549, "3.15", True, id="rounded, not cut"),
        pytest.param(3.15, None, None, False, id="not known is not reproduced"),
    ],
)
def test_figure_agrees_where_it_rounds_to_the_published_digits(
    published, found, rounded, is_reproduced
):
    both = Comparison("figure", published, found)
    shown = None if both.rounded is None else str(both.rounded)
    assert (shown, both.is_reproduced) == (rounded, is_reproduced)


def test_change_is_a_share_of_the_published():
    assert Comparison("figure", 2.0, 3.0).change_ratio == 0.5
    assert Comparison("figure", 2.0, None).change_ratio is None


def test_claim_of_the_worked_example_implies_its_price():
    assert Claim(3.15, 5138, 1631, 0.001005).usd_per_gpu_hour == pytest.approx(1.6393, abs=1e-4)
