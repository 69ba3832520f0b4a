import pytest

from vllm_capacity.errors import InputError
from vllm_capacity.facts.gpus import find_gpu
from vllm_capacity.facts.llms import find_llm
from vllm_capacity.verdicts.hardware.serving import users_that_fit


def users(model, dtype, gpu, tokens, *, gpus=1, kv_dtype="auto"):
    return users_that_fit(
        find_llm(model),
        dtype=dtype,
        kv_dtype=kv_dtype,
        span=find_gpu(gpu),
        gpus=gpus,
        tokens=tokens,
    )


@pytest.mark.parametrize(
    ("model", "dtype", "gpu", "tokens", "published"),
    [
        # tgarg01/silybench-data derived/csv/capacity.csv (CC BY 4.0): users by the server's cache.
        pytest.param("Qwen3-8B", "bf16", "H100-80GB-SXM", 1152, 327, id="silybench 1024/128"),
        pytest.param("Qwen3-8B", "fp8", "H100-80GB-SXM", 1152, 373, id="silybench 1024/128 FP8"),
        pytest.param("Qwen3-8B", "bf16", "H100-80GB-SXM", 4096, 92, id="silybench 2048/2048"),
        pytest.param("Qwen3-8B", "fp8", "H100-80GB-SXM", 4096, 105, id="silybench 2048/2048 FP8"),
        pytest.param("Qwen3-8B", "bf16", "H100-80GB-SXM", 256, 1472, id="silybench 128/128"),
        # Cache sizes in tokens that vLLM printed, collected in a public table.
        pytest.param("Llama-3.1-8B-Instruct", "bf16", "H100-94GB-NVL", 1024, 530, id="NVL 8B"),
        pytest.param("Qwen3-14B", "bf16", "H100-94GB-NVL", 1024, 342, id="NVL 14B"),
        pytest.param("Qwen3-32B", "bf16", "H100-94GB-NVL", 1024, 79, id="NVL 32B"),
        pytest.param("Qwen3-8B", "bf16", "RTX-6000-Ada-PCIe", 1024, 187, id="Ada 8B"),
        pytest.param("Qwen3-14B", "bf16", "RTX-6000-Ada-PCIe", 1024, 89, id="Ada 14B"),
    ],
)
def test_published_users_lie_inside(model, dtype, gpu, tokens, published):
    found = users(model, dtype, gpu, tokens)
    assert found.low <= published <= found.high
    assert found.mid == pytest.approx(published, rel=0.06)


def test_gpus_that_do_not_divide_the_heads_serve_nobody():
    found = users("Qwen3-8B", "bf16", "A100-80GB-SXM", 4096, gpus=3)
    assert "the 32 attention heads" in found.reason
    assert "cannot be split evenly over 3 GPUs" in found.reason


def test_a_context_longer_than_the_models_is_noted():
    found = users("gpt-oss-20b", "mxfp4", "H100-80GB-SXM", 1_000_000)
    assert "exceeds the model's own context of 131,072" in found.sources


def test_an_fp8_cache_holds_twice_the_users():
    full = users("Llama-3.1-8B-Instruct", "bf16", "A100-80GB-SXM", 4096)
    half = users("Llama-3.1-8B-Instruct", "bf16", "A100-80GB-SXM", 4096, kv_dtype="fp8")
    assert half.mid == pytest.approx(2 * full.mid, abs=1)


def test_a_form_factor_that_is_not_stated_widens_the_count():
    any_form = users("Qwen3-8B", "bf16", "A100-80GB-any", 4096)
    assert any_form.low <= any_form.mid <= any_form.high
    assert "form factor assumed" in any_form.sources


@pytest.mark.parametrize(
    ("model", "gpu", "tokens"),
    [
        pytest.param("Llama-3.1-70B-Instruct", "A100-80GB-SXM", 128, id="the weights do not fit"),
        pytest.param("Qwen3-32B", "A100-80GB-SXM", 200_000, id="not one such sequence fits"),
    ],
)
def test_where_nobody_fits_the_reason_has_numbers(model, gpu, tokens):
    found = users(model, "bf16", gpu, tokens)
    assert not found.is_known
    assert "GiB" in found.reason


@pytest.mark.parametrize(("tokens", "gpus"), [(0, 1), (128, 0)])
def test_impossible_questions_are_refused(tokens, gpus):
    with pytest.raises(InputError):
        users("Qwen3-8B", "bf16", "L4-PCIe", tokens, gpus=gpus)
