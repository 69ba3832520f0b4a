import json

import pytest
from click.testing import CliRunner

from vllm_capacity.cli.whatif import whatif
from vllm_capacity.errors import InputError
from vllm_capacity.estimate import Estimate
from vllm_capacity.verdicts.hardware.what_if import WhatIf

ASKED = {
    "--model": "openai/gpt-oss-20b",
    "--from-gpu": "A100-80GB-SXM",
    "--output-tokens-per-second": "5180",
    "--input-tokens": "215",
    "--output-tokens": "194",
    "--to-gpu": "H100-80GB-SXM",
}


def run(*flags, **changed):
    options = {**ASKED, **{f"--{name.replace('_', '-')}": value for name, value in changed.items()}}
    words = [word for option in options.items() for word in option]
    return CliRunner().invoke(whatif, [*words, *flags], catch_exceptions=True)


def test_json_is_an_estimate_with_what_else_is_known():
    result = run("--json")
    answer = json.loads(result.stdout)
    assert result.exit_code == 0
    whole = set(WhatIf.__struct_fields__)
    assert set(answer) == set(Estimate.__struct_fields__) | whole
    assert answer["low"] < answer["mid"] < answer["high"]
    assert answer["output_tokens_per_second"]["mid"] == answer["mid"]
    assert answer["label"] == "tested"
    assert answer["nearest"]["distance"] < 0.01


def test_people_get_a_line_and_its_basis():
    output = run().stdout
    assert output.startswith("openai/gpt-oss-20b, weights as mxfp4, on 1 × H100-80GB-SXM\n")
    assert "\noutput  9,060 tokens/s  8,370 to 9,820\n    measured: " in output
    assert max(map(len, output.splitlines())) <= 80


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param({"to_gpu": "L4-PCIe", "dtype": "bf16"}, id="the weights do not fit"),
        pytest.param({"input_tokens": "200000"}, id="the context is too long"),
    ],
)
def test_a_refusal_is_json_with_exit_status_0(changed):
    result = run("--json", **changed)
    answer = json.loads(result.stdout)
    assert result.exit_code == 0
    assert answer["mid"] is None
    assert answer["reason"]


def test_the_text_of_a_refusal():
    output = run(to_gpu="L4-PCIe", dtype="bf16").stdout
    assert "output  not known\n    the bf16 weights, 39.0 GiB per GPU, do not fit" in output


def test_the_weight_type_asked_about_defaults_to_the_measured_one():
    same = json.loads(run("--json", to_gpu="A100-80GB-SXM").stdout)
    assert same["low"] == same["high"] == 5180


def test_the_load_of_the_measurement_can_be_given():
    served = json.loads(
        run("--json", output_tokens_per_second="190", requests_per_second="1").stdout
    )
    assert served["mid"] == pytest.approx(190)
    held = json.loads(run("--json", output_tokens_per_second="190", clients="1").stdout)
    assert held["mid"] > served["high"]


def test_another_load_on_the_same_gpu():
    reported = {"to_gpu": "A100-80GB-SXM", "output_tokens_per_second": "500", "clients": "4"}
    more = json.loads(run("--json", **reported, at_clients="64").stdout)
    assert 4 * 500 < more["mid"] < 16 * 500
    assert more["itl_seconds"]["mid"] > 0


def test_splits_of_more_gpus_are_listed_best_first():
    reported = run("--json", to_gpus="4", clients="64")
    ways = json.loads(reported.stdout)["splits"]
    rates = [way["output_tokens_per_second"]["mid"] for way in ways]
    assert [way["gpus_per_engine"] * way["replicas"] for way in ways] == [4, 4, 4]
    assert rates == sorted(rates, reverse=True)
    assert json.loads(reported.stdout)["mid"] == rates[0]
    assert "GPUs each" in run(to_gpus="4", clients="64").stdout


def test_another_version_is_answered_where_runs_of_both_were_published():
    asked = {
        "model": "MiniMaxAI/MiniMax-M2.5", "from_gpu": "B200-180GB-SXM",
        "to_gpu": "B200-180GB-SXM", "gpus": "4", "clients": "16",
        "output_tokens_per_second": "1400", "input_tokens": "1024", "output_tokens": "1024",
        "engine_version": "0.17.0",
    }  # fmt: skip
    found = json.loads(run("--json", **asked, to_engine_version="0.19.0").stdout)
    assert 1400 < found["mid"] < 1.6 * 1400
    assert any("vLLM 0.19.0 relative to 0.17.0" in word for word in found["basis"])
    unknown = json.loads(run("--json", **asked, to_engine_version="0.30.0").stdout)
    assert "published versions: 0.16.0, 0.17.0" in unknown["reason"]


def test_the_type_of_the_kv_cache_may_differ():
    asked = {"clients": "512", "kv_dtype": "auto"}
    plain, small = (
        json.loads(run("--json", **asked, to_kv_dtype=dtype).stdout) for dtype in ("auto", "fp8")
    )
    assert small["mid"] > plain["mid"]
    assert "KV cache in auto, then fp8" in small["basis"]


def test_a_published_name_of_a_type_is_understood():
    named = run("--json", dtype="MXFP4 weights").stdout
    assert named == run("--json").stdout


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param({"model": "gpt-oss-21b"}, id="an unknown model"),
        pytest.param({"to_gpu": "H100"}, id="an unknown GPU"),
        pytest.param({"dtype": "purple"}, id="an unknown type"),
        pytest.param({"output_tokens_per_second": "0"}, id="nothing measured"),
        pytest.param({"gpus": "0"}, id="no GPU"),
        pytest.param({"clients": "0"}, id="no client"),
        pytest.param({"requests_per_second": "1"}, id="more was measured than came"),
    ],
)
def test_bad_input_is_an_input_error(changed):
    assert isinstance(run("--json", **changed).exception, InputError)
