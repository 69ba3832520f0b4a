import json

import pytest
from click.testing import CliRunner

from vllm_capacity.cli.model import model
from vllm_capacity.errors import InputError


def run(*words):
    return CliRunner().invoke(model, list(words))


def test_kv_arithmetic_of_gpt_oss_20b():
    answer = json.loads(run("gpt-oss-20b", "--json").stdout)
    assert answer["kv_bytes_per_token"] == 24_576
    assert answer["kv_fixed_bytes_per_sequence"] == 3_145_728
    assert answer["weights_bytes"] == pytest.approx(13_761_264_768, rel=1e-4)
    assert answer["users"] is None
    assert answer["reason"]
    assert answer["source"]


def test_the_number_of_users_is_an_interval():
    words = ("Qwen3-8B", "--gpu", "H100-80GB-SXM", "--tokens", "1152", "--json")
    answer = json.loads(run(*words).stdout)
    assert answer["users"]["low"] <= 327 <= answer["users"]["high"]
    assert answer["reason"] == ""


def test_nobody_fits_is_null_with_a_reason_and_exit_status_0():
    result = run("Llama-3.1-70B-Instruct", "--gpu", "L4-PCIe", "--tokens", "100", "--json")
    answer = json.loads(result.stdout)
    assert result.exit_code == 0
    assert answer["users"] is None
    assert "GiB" in answer["reason"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        pytest.param(("gpt-oss-20b",), "24,576 bytes per token", id="bytes in words"),
        pytest.param(("gpt-oss-20b",), "not known users need --gpu", id="no users without a GPU"),
        pytest.param(
            ("gpt-oss-20b",),
            "3,145,728 bytes per request",
            id="what a request takes beside its context",
        ),
        pytest.param(
            ("Qwen3-8B", "--gpu", "L4-PCIe", "--tokens", "1000"),
            "KV cache of 1 × L4-PCIe, with all users at 1,000 tokens at once",
            id="users of what context on what GPU",
        ),
        pytest.param(
            ("Qwen3-8B", "--dtype", "fp8", "--kv-dtype", "fp8"), "73,728 bytes per token", id="FP8"
        ),
    ],
)
def test_people_get_text(words, says):
    assert says in " ".join(run(*words).stdout.split())


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(("gpt-5",), id="an unknown model"),
        pytest.param(("Qwen3-8B", "--gpu", "H100", "--tokens", "1"), id="an unknown GPU"),
        pytest.param(("Qwen3-8B", "--gpu", "H100"), id="an unknown GPU, no tokens"),
        pytest.param(("Qwen3-8B", "--kv-dtype", "int4"), id="a type no cache has"),
        pytest.param(("Qwen3-8B", "--gpus", "0"), id="no GPU"),
    ],
)
def test_bad_input_is_an_input_error(words):
    assert isinstance(run(*words, "--json").exception, InputError)
