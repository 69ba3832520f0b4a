import pytest

from vllm_capacity.errors import InputError
from vllm_capacity.facts.llms import find_llm, kv_scale, llms, weight_dtype

SHAPE_TOLD_APART = ("COMPRESSED attention", "FULL layers")
"""Notes of rows whose cache is not layers x heads x dimension; their notes give the formula."""


def kv_of_shape(llm):
    """Bytes per token and per sequence, at 2 bytes per element, from the shape's columns alone."""
    if llm.kv_lora_rank:
        return llm.full_attention_layers * (llm.kv_lora_rank + llm.qk_rope_head_dim) * 2, 0
    each = 2 * llm.kv_heads * llm.head_dim * 2
    window = llm.sliding_layers * (llm.sliding_window_tokens or 0)
    return (llm.full_attention_layers or 0) * each, window * each


@pytest.mark.parametrize("llm", llms(), ids=lambda llm: llm.model)
def test_the_kv_columns_follow_from_the_shape(llm):
    if any(word in llm.note for word in SHAPE_TOLD_APART):
        assert llm.kv_bytes_per_token_bf16 > 0
        return
    growing, fixed = kv_of_shape(llm)
    assert llm.kv_bytes_per_token_bf16 == growing
    if llm.attention != "linear-hybrid":
        assert llm.kv_fixed_bytes_per_sequence_bf16 == fixed


@pytest.mark.parametrize("llm", llms(), ids=lambda llm: llm.model)
def test_every_row_can_be_used(llm):
    assert llm.weights_bytes() > 0
    assert llm.weights_bytes("fp8") < llm.weights_bytes("bf16")
    assert llm.params_active_b <= llm.params_total_b
    assert llm.source
    assert find_llm(llm.model) == llm


@pytest.mark.parametrize(
    ("model", "growing", "fixed"),
    [
        # openai/gpt-oss config: 12 of 24 layers slide over 128 tokens.
        pytest.param("gpt-oss-20b", 24_576, 3 * 2**20, id="half the layers slide"),
        pytest.param("gpt-oss-120b", 36_864, 4_718_592, id="half of 36 layers slide"),
        # 128 KiB a token: Meta's published figure for Llama 3.1 8B at 16 bits.
        pytest.param("Llama-3.1-8B-Instruct", 131_072, 0, id="grouped queries"),
        # 320 KiB a token for 70B; 70,272 B for DeepSeek-V3, whose paper counts 576 x 61 elements.
        pytest.param("Llama-3.1-70B-Instruct", 327_680, 0, id="grouped queries of 80 layers"),
        pytest.param("DeepSeek-V3", 70_272, 0, id="a latent, not heads"),
        pytest.param("Qwen3-Next-80B-A3B-Instruct", 24_576, 39_518_208, id="linear layers"),
        pytest.param("gemma-3-27b-it", 81_920, 436_207_616, id="five of six layers slide"),
        pytest.param("Mixtral-8x7B-Instruct-v0.1", 131_072, 0, id="experts share the cache"),
    ],
)
def test_published_kv_bytes(model, growing, fixed):
    llm = find_llm(model)
    assert llm.kv_bytes_per_token() == growing
    assert llm.kv_fixed_bytes_per_sequence() == fixed


@pytest.mark.parametrize(
    ("model", "dtype", "gigabytes"),
    [
        # Sizes of published checkpoints: indexes' total_size, and quantised builds' files.
        pytest.param("gpt-oss-20b", "auto", 13.761, id="MXFP4 as published"),
        pytest.param("gpt-oss-120b", "auto", 65.249, id="MXFP4 as published, large"),
        pytest.param("Llama-3.1-8B-Instruct", "auto", 16.061, id="BF16 as published"),
        pytest.param("Llama-3.1-8B-Instruct", "fp8", 9.08, id="FP8 keeps embeddings at 16 bits"),
        pytest.param("Qwen3-14B", "awq", 9.98, id="AWQ keeps embeddings at 16 bits"),
        pytest.param("DeepSeek-V3", "fp8", 688.6, id="FP8 as published"),
    ],
)
def test_published_weights(model, dtype, gigabytes):
    assert find_llm(model).weights_bytes(dtype) / 1e9 == pytest.approx(gigabytes, rel=0.01)


@pytest.mark.parametrize(
    ("name", "dtype", "gigabytes"),
    [
        pytest.param("Qwen/Qwen3-32B-FP8", "fp8", 34.3, id="the owner's FP8 build"),
        pytest.param("Qwen/Qwen3-8B-AWQ", "int4", 6.1, id="AWQ"),
        pytest.param(
            "RedHatAI/Meta-Llama-3.1-8B-Instruct-FP8-dynamic", "fp8", 9.08, id="someone's FP8"
        ),
        pytest.param("unsloth/gpt-oss-20b-BF16", "bf16", 41.8, id="16 bits of an MXFP4 model"),
        pytest.param("Qwen3-30B-A3B-Instruct-2507", "bf16", 61.06, id="no type in the name"),
    ],
)
def test_the_weight_type_is_read_from_a_builds_name(name, dtype, gigabytes):
    llm = find_llm(name)
    assert llm.weights_dtype == dtype
    assert llm.weights_bytes() / 1e9 == pytest.approx(gigabytes, rel=0.03)


def test_a_dated_variant_has_its_own_context_length():
    assert find_llm("Qwen3-30B-A3B").max_context_tokens == 40_960
    assert find_llm("Qwen/Qwen3-30B-A3B-Instruct-2507-FP8").max_context_tokens == 262_144


def test_tensor_parallelism_repeats_heads_and_latents_but_not_states():
    hybrid, latent = find_llm("Qwen3-Next-80B-A3B-Instruct"), find_llm("DeepSeek-V3")
    growing = 8192 * hybrid.kv_bytes_per_token()
    state = hybrid.kv_fixed_bytes_per_sequence()
    copies = hybrid.kv_copies(8)
    assert copies > 1
    assert hybrid.stored_bytes(8192, 8) == pytest.approx(growing * copies + state)
    assert latent.stored_bytes(8192, 8) == pytest.approx(8 * latent.sequence_bytes(8192))


def test_an_fp8_cache_halves_windows_but_not_states():
    windows, states = find_llm("gpt-oss-20b"), find_llm("Qwen3-Next-80B-A3B-Instruct")
    assert windows.kv_fixed_bytes_per_sequence("fp8") == 1.5 * 2**20
    assert states.kv_fixed_bytes_per_sequence("fp8") == states.kv_fixed_bytes_per_sequence()


def test_a_window_counts_as_far_as_it_is_filled():
    llm = find_llm("gpt-oss-20b")
    assert llm.sequence_bytes(64) == 64 * 24_576 + 1.5 * 2**20
    assert llm.sequence_bytes(8192) == 8192 * 24_576 + 3 * 2**20


@pytest.mark.parametrize(
    ("model", "gpus", "copies"),
    [
        pytest.param("Llama-3.1-8B-Instruct", 8, 1.0, id="a head a GPU"),
        pytest.param("Qwen3-30B-A3B", 8, 2.0, id="fewer heads than GPUs"),
        pytest.param("DeepSeek-V3", 8, 8.0, id="a latent is whole on every GPU"),
    ],
)
def test_tensor_parallelism_repeats_what_it_cannot_split(model, gpus, copies):
    assert find_llm(model).kv_copies(gpus) == copies


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("gpt-oss-20b", "openai/gpt-oss-20b"),
        ("meta-llama/Meta-Llama-3.1-8B-Instruct", "meta-llama/Llama-3.1-8B-Instruct"),
        ("Qwen/Qwen3-30B-A3B-Instruct-2507", "Qwen/Qwen3-30B-A3B"),
        ("Qwen/Qwen3-32B-FP8", "Qwen/Qwen3-32B"),
        ("mistralai/Mixtral-8x7B-v0.1", "mistralai/Mixtral-8x7B-Instruct-v0.1"),
        ("LLAMA-3.1-70B", "meta-llama/Llama-3.1-70B-Instruct"),
    ],
)
def test_names_under_which_a_shape_is_published(name, model):
    assert find_llm(name).model == model


def test_an_unknown_model_is_refused_with_the_nearest():
    with pytest.raises(InputError, match="openai/gpt-oss-20b"):
        find_llm("gpt-oss-21b")


@pytest.mark.parametrize(
    ("text", "dtype"),
    [
        ("float16", "bf16"),
        ("MXFP4 weights", "mxfp4"),
        ("fp8_e4m3", "fp8"),
        ("fp8 (experts fp4)", "nvfp4"),
        ("compressed-tensors int4", "int4"),
        ("float32", "fp32"),
    ],
)
def test_weight_types(text, dtype):
    assert weight_dtype(text) == dtype


@pytest.mark.parametrize("text", ["", "purple", "fp"])
def test_an_unknown_weight_type_is_refused(text):
    with pytest.raises(InputError, match="use one of"):
        weight_dtype(text)


def test_no_cache_has_four_bits():
    with pytest.raises(InputError, match="KV-cache type"):
        kv_scale("int4")
