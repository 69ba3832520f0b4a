import pytest

from vllm_capacity.facts.gpus import find_gpu, gpus
from vllm_capacity.facts.kernels import kernels
from vllm_capacity.facts.llms import find_llm
from vllm_capacity.verdicts.hardware.serving import (
    Calibration,
    Host,
    Job,
    Machine,
    cycle,
    kv_room_bytes,
    peer_of,
    rates,
    saturated_batch,
    shipped_calibration,
    tensor_tflops_range,
)
from vllm_capacity.verdicts.hardware.step_time import expert_seconds, step_seconds, touched_share


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
def test_kv_cache_fits_as_many_sequences_as_ran(gpu, prompt, output, running):
    asked = job("gpt-oss-120b", "mxfp4", prompt=prompt, output=output)
    assert saturated_batch(asked, machine(gpu)) == pytest.approx(running, rel=0.15)


def test_weights_that_do_not_fit_leave_less_than_nothing():
    assert kv_room_bytes(job("Llama-3.1-70B-Instruct"), machine("A100-80GB-SXM")) < 0


@pytest.mark.parametrize(
    ("model", "tokens", "share"),
    [
        pytest.param("Qwen3-8B", 1, 0.0, id="a dense model has no experts"),
        pytest.param("Mixtral-8x7B-Instruct-v0.1", 1, 0.25, id="one token reads its experts"),
        pytest.param("Mixtral-8x7B-Instruct-v0.1", 64, 1.0, id="many tokens read all experts"),
    ],
)
def test_experts_a_step_reads(model, tokens, share):
    llm = find_llm(model)
    found = touched_share(max(llm.experts, 1), llm.experts_per_token, tokens)
    assert found == pytest.approx(share, abs=0.001)


def seconds(gpu, model, dtype, *, gpu_count=1, prompt=0.0, sequences=16.0, context=1024.0):
    """A step by the kernel tables alone."""
    found = job(model, dtype, gpu_count=gpu_count)
    chosen = rates(machine(gpu), found.llm, dtype, Calibration()).kernels
    return step_seconds(
        found.work,
        chosen,
        prompt_tokens=prompt,
        prompt_length=prompt,
        sequences=sequences,
        context_tokens=context,
    )


@pytest.mark.parametrize(
    ("gpu", "model", "dtype", "gpu_count", "truth_ms"),
    [
        # Time of a step of 16 sequences at 1,024 tokens by the kernel tables of aiconfigurator-core
        # 0.12.0, from its own engine.
        pytest.param("A100-80GB-SXM", "Llama-3.1-70B-Instruct", "bf16", 4, 31.21, id="A100"),
        pytest.param("H100-80GB-SXM", "Llama-3.1-70B-Instruct", "bf16", 4, 16.47, id="H100"),
        pytest.param("H100-80GB-SXM", "Llama-3.1-70B-Instruct", "fp8", 4, 11.45, id="H100, FP8"),
        pytest.param("H100-80GB-SXM", "gpt-oss-120b", "mxfp4", 2, 7.90, id="H100, MXFP4"),
        pytest.param("B200-180GB-SXM", "gpt-oss-120b", "mxfp4", 2, 4.88, id="B200, MXFP4"),
    ],
)
def test_a_step_takes_what_its_kernels_were_timed_at(gpu, model, dtype, gpu_count, truth_ms):
    found = seconds(gpu, model, dtype, gpu_count=gpu_count).total * 1e3
    assert found == pytest.approx(truth_ms, rel=0.15)


@pytest.mark.parametrize(
    ("gpu", "model", "dtype", "gpu_count", "tokens", "truth_ms"),
    [
        # A layer's experts by the same tables, with tokens preferring some experts.
        pytest.param("H200-141GB-SXM", "MiniMax-M2.5", "fp8", 1, 64, 0.689, id="whole on one GPU"),
        pytest.param("H200-141GB-SXM", "MiniMax-M2.5", "fp8", 4, 64, 0.219, id="a quarter"),
        pytest.param("H200-141GB-SXM", "MiniMax-M2.5", "fp8", 4, 4096, 0.889, id="of a prompt"),
        pytest.param("B200-180GB-SXM", "MiniMax-M2.5", "fp8", 4, 64, 0.129, id="Blackwell"),
        pytest.param("B200-180GB-SXM", "MiniMax-M2.5", "nvfp4", 1, 4096, 0.621, id="NVFP4"),
        pytest.param("B200-180GB-SXM", "MiniMax-M2.5", "nvfp4", 8, 4096, 0.220, id="an eighth"),
        pytest.param("H200-141GB-SXM", "gpt-oss-120b", "mxfp4", 8, 64, 0.096, id="MXFP4"),
    ],
)
def test_experts_take_what_they_were_timed_at(gpu, model, dtype, gpu_count, tokens, truth_ms):
    found = job(model, dtype, gpu_count=gpu_count)
    roof = rates(machine(gpu), found.llm, dtype, Calibration()).kernels.experts
    layer = expert_seconds(found.work, roof, tokens=float(tokens)) / found.llm.layers
    assert layer * 1e3 == pytest.approx(truth_ms, rel=0.15)


def test_twice_the_gpus_do_not_halve_a_mixtures_step():
    one, two, eight = (
        seconds("B200-180GB-SXM", "MiniMax-M2.5", "nvfp4", gpu_count=count, sequences=256.0).experts
        for count in (1, 2, 8)
    )
    assert two > 0.5 * one
    assert eight > 0.2 * one


def test_every_mixtures_kernel_says_at_what_width_it_reaches_half_its_rate():
    assert all(
        bool(row.half_rate_columns) == bool(row.tile_rows) == (row.kernel == "experts")
        for table in kernels().values()
        for row in table.values()
    )


def test_every_part_of_a_step_grows_with_what_causes_it():
    few = seconds("H100-80GB-SXM", "Qwen3-30B-A3B", "bf16")
    long = seconds("H100-80GB-SXM", "Qwen3-30B-A3B", "bf16", context=32_000.0)
    mixed = seconds("H100-80GB-SXM", "Qwen3-30B-A3B", "bf16", prompt=4096.0)
    several = seconds("H100-80GB-SXM", "Qwen3-30B-A3B", "bf16", gpu_count=2)
    assert long.decode_attention > 5 * few.decode_attention
    assert long.experts == few.experts
    assert few.prefill_attention == few.reduce == 0.0
    assert mixed.prefill_attention > 0
    assert mixed.experts > few.experts
    assert several.reduce > 0
    assert several.experts < few.experts


@pytest.mark.parametrize("gpu", gpus(), ids=lambda gpu: gpu.name)
def test_every_gpu_has_a_peer_whose_kernels_were_timed(gpu):
    peer = peer_of(gpu)
    assert peer.name in kernels()
    if gpu.name in kernels():
        assert peer == gpu


@pytest.mark.parametrize(
    ("gpu", "peer"),
    [
        pytest.param("A100-80GB-PCIe", "A100-80GB-SXM", id="the other form factor"),
        pytest.param("L4-PCIe", "L40S-PCIe", id="the same compute capability"),
        pytest.param("T4-PCIe", "A100-80GB-SXM", id="an older architecture"),
        pytest.param("MI300X-OAM", "H100-80GB-SXM", id="another vendor"),
    ],
)
def test_a_gpu_without_tables_has_those_of_the_nearest(gpu, peer):
    found = rates(machine(gpu), find_llm("Qwen3-4B"), "bf16", Calibration())
    assert found.peer == peer
    assert found.is_timed == (gpu == "A100-80GB-PCIe")


def served(batch, *, gpu_count=1, host=None, prompt=512.0):
    found = job("Qwen3-8B", gpu_count=gpu_count, prompt=prompt)
    a100 = machine("A100-80GB-SXM")
    calibration = shipped_calibration()
    return cycle(
        found.work,
        rates(a100, found.llm, "bf16", calibration).kernels,
        host or calibration.host,
        batch=batch,
        input_tokens=found.input_tokens,
        output_tokens=found.output_tokens,
        tokens_per_step=2048.0,
    )


def test_a_bigger_batch_gives_more_tokens_and_each_later():
    one, many = served(1.0), served(64.0)
    assert 64 / many.seconds_per_token > 4 / one.seconds_per_token
    assert many.seconds_per_token > one.seconds_per_token


def test_every_prompt_of_a_batch_is_computed_in_its_cycle():
    long = served(64.0, prompt=8192.0)
    assert long.mixed_steps == pytest.approx(64 * 8192 / 2048)
    assert long.seconds_per_token >= long.mixed_steps * long.mixed_seconds / 256


def test_a_slower_host_slows_every_step():
    slow = served(16.0, host=Host(step_seconds=5e-3))
    assert slow.decode_seconds - served(16.0).decode_seconds > 4e-3


def test_a_gpu_without_tflops_takes_its_architectures_range():
    low, high = tensor_tflops_range(find_gpu("RTX-4090-PCIe").rows[0], gpus())
    assert 150 < low < high < 500


def test_an_architecture_without_any_figure_has_no_range():
    assert tensor_tflops_range(find_gpu("RTX-4090-PCIe").rows[0], ()) is None


@pytest.mark.parametrize("gpu_count", [2, 4, 8])
def test_more_gpus_are_faster_but_not_in_proportion(gpu_count):
    one, more = (64 / served(64.0, gpu_count=count).seconds_per_token for count in (1, gpu_count))
    assert one < more < gpu_count * one
