import pytest

from vllm_capacity.facts.gpus import find_gpu, gpus
from vllm_capacity.facts.llms import find_llm
from vllm_capacity.verdicts.hardware.roofline import (
    Calibration,
    Job,
    Machine,
    kv_room_bytes,
    request_times,
    saturated_batch,
    tensor_tflops_range,
    touched_share,
)


def machine(name):
    gpu = find_gpu(name).rows[0]
    return Machine(gpu, gpu.tensor_tflops)


def job(model, dtype="bf16", *, gpu_count=1, prompt=512.0, output=256.0):
    return Job(find_llm(model), dtype, gpu_count, prompt, output)


@pytest.mark.parametrize(
    ("gpu", "seqs", "tokens"),
    [
        pytest.param("H100-80GB-SXM", 1024, 8192, id="a large GPU"),
        pytest.param("A100-80GB-SXM", 256, 2048, id="an A100 is no large GPU to vLLM"),
        pytest.param("L40S-PCIe", 256, 2048, id="a small GPU"),
    ],
)
def test_defaults_of_the_server(gpu, seqs, tokens):
    assert (machine(gpu).max_num_seqs, machine(gpu).tokens_per_step) == (seqs, tokens)


def test_long_prompts_leave_room_for_few():
    short, long = (job("gpt-oss-120b", "mxfp4", prompt=length) for length in (200.0, 32_000.0))
    a100 = machine("A100-80GB-SXM")
    assert saturated_batch(short, a100) > 100
    assert saturated_batch(long, a100) < 5


@pytest.mark.parametrize(
    ("gpu", "prompt", "output", "running"),
    [
        # Rate × time per output token of data/published_throughput.csv: gpt-oss-120b on one GPU.
        pytest.param("A100-80GB-SXM", 1998.0, 98.0, 52, id="A100, 2K prompts"),
        pytest.param("A100-80GB-SXM", 3998.0, 134.0, 28, id="A100, 4K prompts"),
        pytest.param("H100-80GB-SXM", 215.0, 196.0, 157, id="H100, chat"),
        pytest.param("H100-80GB-SXM", 1998.0, 98.0, 28, id="H100, 2K prompts"),
        pytest.param("H100-80GB-SXM", 3998.0, 134.0, 15, id="H100, 4K prompts"),
    ],
)
def test_kv_room_holds_as_many_sequences_as_ran(gpu, prompt, output, running):
    asked = job("gpt-oss-120b", "mxfp4", prompt=prompt, output=output)
    assert saturated_batch(asked, machine(gpu)) == pytest.approx(running, rel=0.15)


def test_weights_that_do_not_fit_leave_less_than_nothing():
    assert kv_room_bytes(job("Llama-3.1-70B-Instruct"), machine("A100-80GB-SXM")) < 0


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
        request_times(
            job("Qwen3-8B"), machine("A100-80GB-SXM"), batch=batch, calibration=Calibration()
        )
        for batch in (1.0, 64.0)
    )
    assert one.weights == pytest.approx(64 * many.weights)
    assert one.compute == many.compute


def test_a_gpu_without_tflops_takes_its_architectures_range():
    low, high = tensor_tflops_range(find_gpu("RTX-4090-PCIe").rows[0], gpus())
    assert 150 < low < high < 500


def test_an_architecture_without_any_figure_has_no_range():
    assert tensor_tflops_range(find_gpu("RTX-4090-PCIe").rows[0], ()) is None


@pytest.mark.parametrize("gpu_count", [2, 4, 8])
def test_more_gpus_are_faster_but_not_in_proportion(gpu_count):
    one, more = (
        256.0
        / request_times(
            job("Qwen3-8B", gpu_count=count),
            machine("A100-80GB-SXM"),
            batch=64.0,
            calibration=Calibration(),
        ).total
        for count in (1, gpu_count)
    )
    assert one < more < gpu_count * one
