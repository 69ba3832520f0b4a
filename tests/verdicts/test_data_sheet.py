import math

import pytest
from msgspec.structs import replace

from vllm_capacity.facts.gpus import find_gpu
from vllm_capacity.facts.llms import find_llm
from vllm_capacity.verdicts.hardware.data_sheet import (
    Shares,
    SheetSide,
    log_ratio,
    request_times,
    touched_share,
)
from vllm_capacity.verdicts.hardware.question import Load, Question
from vllm_capacity.verdicts.hardware.serving import Job, Machine, rates, shipped_calibration
from vllm_capacity.verdicts.hardware.side import (
    SHEET_SHARE,
    UNTIMED_SHEET_SHARE,
    sheet_share,
    side,
)
from vllm_capacity.verdicts.hardware.what_if import what_if


def machine(name):
    gpu = find_gpu(name).rows[0]
    return Machine(gpu, gpu.tensor_tflops)


def job(model="Qwen3-8B", dtype="bf16", *, gpu_count=1):
    return Job(find_llm(model), dtype, gpu_count, 512.0, 256.0)


def sheet_side(gpu, *, batch=64.0, gpu_count=1):
    return SheetSide(job(gpu_count=gpu_count), machine(gpu), batch, Shares())


@pytest.mark.parametrize(
    ("model", "tokens", "share"),
    [
        pytest.param("Qwen3-8B", 1, 1.0, id="a dense model reads all"),
        pytest.param("Mixtral-8x7B-Instruct-v0.1", 1, 0.276, id="one token reads its experts"),
        pytest.param("Mixtral-8x7B-Instruct-v0.1", 64, 1.0, id="many tokens read all experts"),
    ],
)
def test_weights_a_step_reads(model, tokens, share):
    assert touched_share(find_llm(model), tokens) == pytest.approx(share, abs=0.001)


def test_a_bigger_batch_shares_the_weight_reads():
    one, many = (
        request_times(job(), machine("A100-80GB-SXM"), batch=batch, shares=Shares())
        for batch in (1.0, 64.0)
    )
    assert one.weights == pytest.approx(64 * many.weights)
    assert one.compute == many.compute


@pytest.mark.parametrize("gpu_count", [2, 4, 8])
def test_more_gpus_are_faster_but_not_in_proportion(gpu_count):
    one, more = (
        sheet_side("A100-80GB-SXM", gpu_count=count).output_tokens_per_second
        for count in (1, gpu_count)
    )
    assert one < more < gpu_count * one


def test_one_side_against_itself_gains_nothing():
    same = sheet_side("H100-80GB-SXM")
    assert log_ratio(same, same) == 0.0


def test_a_ratio_is_partly_that_of_the_data_sheets():
    here, there = sheet_side("A100-80GB-SXM"), sheet_side("H100-80GB-SXM")
    by_shares = math.log(there.output_tokens_per_second / here.output_tokens_per_second)
    bandwidth = math.log(there.machine.gpu.mem_bw_tb_s / here.machine.gpu.mem_bw_tb_s)
    flops = math.log(there.machine.tensor_tflops / here.machine.tensor_tflops)
    plain = 0.7 * bandwidth + 0.3 * flops
    assert log_ratio(here, there) == pytest.approx(0.85 * by_shares + 0.15 * plain)


@pytest.mark.parametrize(
    ("one", "other", "share"),
    [
        pytest.param("H100-80GB-SXM", "B200-180GB-SXM", SHEET_SHARE, id="both timed"),
        pytest.param("L4-PCIe", "L40S-PCIe", SHEET_SHARE, id="a timed relative"),
        pytest.param("A100-80GB-SXM", "H100-80GB-SXM", UNTIMED_SHEET_SHARE, id="thin tables"),
        pytest.param("H100-80GB-SXM", "MI300X-OAM", UNTIMED_SHEET_SHARE, id="no tables"),
    ],
)
def test_data_sheets_weigh_more_where_kernels_were_not_timed(one, other, share):
    sides = [side(job(), machine(gpu), shipped_calibration()) for gpu in (one, other)]
    assert sheet_share(*sides) == share


def test_kernels_that_widen_weights_reach_as_much_of_ampere_as_wgmma_would_of_hopper():
    bare = replace(shipped_calibration(), factors={})
    llm = find_llm("gpt-oss-120b")
    shares = {}
    for gpu in ("A100-80GB-SXM", "H100-80GB-SXM"):
        found = rates(machine(gpu), llm, "mxfp4", bare).kernels.experts.flops_per_second
        shares[gpu] = found / (machine(gpu).tensor_tflops * 1e12)
    assert shares["H100-80GB-SXM"] / shares["A100-80GB-SXM"] == pytest.approx(0.63)


def question(**changes):
    asked = {
        "llm": find_llm("Qwen3-8B"),
        "dtype": "bf16",
        "to_dtype": "bf16",
        "from_gpu": find_gpu("H100-80GB-SXM"),
        "to_gpu": find_gpu("B200-180GB-SXM"),
        "gpus": 1,
        "output_tokens_per_second": 500.0,
        "input_tokens": 512.0,
        "output_tokens": 256.0,
        "load": Load(clients=4.0),
    }
    return Question(**asked | changes)


@pytest.mark.parametrize(
    ("narrow", "wide"),
    [
        pytest.param({}, {"at": Load(clients=64.0)}, id="another load beside another GPU"),
        pytest.param({"at": Load(clients=16.0)}, {"at": Load(clients=64.0)}, id="the farther load"),
        pytest.param(
            {"at": Load(clients=4.0)},
            {"at": Load(clients=4.0), "to_gpus": 4},
            id="another count of GPUs",
        ),
    ],
)
def test_what_is_farther_from_the_measurement_has_the_wider_band(narrow, wide):
    widths = []
    for changes in (narrow, wide):
        found = what_if(question(**changes))
        widths.append(found.high / found.low)
    assert widths[0] < widths[1]
