"""The machine interface: one JSON object on stdout, every key, exit codes."""

import json

import jsonschema
import pytest
from click.testing import CliRunner

from vllm_capacity.answer import schema
from vllm_capacity.cli import cli
from vllm_capacity.errors import CapacityError


def ask(*args):
    result = CliRunner().invoke(cli, ["figures", *map(str, args)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.mark.parametrize("name", ["vllm-sweep", "vllm-restart", "vllm-two-replicas"])
def test_every_key_is_there_and_every_number_finite(name):
    answered = ask(name, "--usd-per-hour", 0.1, "--slo-ttft", 1, "--slo-itl", 0.1, "--json")
    jsonschema.validate(answered, schema())


def test_unknown_figures_are_null_with_a_reason_and_no_error():
    answered = ask("vllm-sweep", "--json")
    assert answered["cost"]["usd_per_request"]["mid"] is None
    assert "no price given" in answered["cost"]["usd_per_request"]["reason"]
    assert "--slo-ttft" in answered["slo"]["ttft_attainment"]["reason"]


def test_the_printed_window_passed_back_gives_the_same_figures():
    whole = ask("vllm-restart", "--json")
    start, end = whole["window"]["start"], whole["window"]["end"]
    again = ask("vllm-restart", "--start", start, "--end", end, "--json")
    assert again == whole


def test_the_counts_and_hours_of_two_parts_add_up_to_the_whole():
    cut = "2026-11-24T04:12:00.5Z"
    whole = ask("vllm-sweep", "--usd-per-hour", 1, "--json")
    first = ask("vllm-sweep", "--end", cut, "--usd-per-hour", 1, "--json")
    second = ask("vllm-sweep", "--start", cut, "--usd-per-hour", 1, "--json")
    for figure in ("finished", "successful"):
        both = first["requests"][figure] + second["requests"][figure]
        assert both == whole["requests"][figure]
    for figure in ("prompt", "prompt_computed", "generation"):
        assert first["tokens"][figure] + second["tokens"][figure] == whole["tokens"][figure]
    paid = [answered["cost"]["allocation_usd"]["mid"] for answered in (first, second, whole)]
    assert paid[0] + paid[1] == pytest.approx(paid[2])


def test_times_outside_the_capture_are_clamped():
    assert ask("vllm-restart", "--start", "2020-01-01", "--json") == ask("vllm-restart", "--json")


def test_a_time_without_an_offset_is_utc():
    with_z = ask("vllm-sweep", "--end", "2026-11-24T04:10:00Z", "--json")
    assert ask("vllm-sweep", "--end", "2026-11-24T04:10:00", "--json") == with_z
    assert ask("vllm-sweep", "--end", "2026-11-24T05:10:00+01:00", "--json") == with_z


def test_gpus_per_engine_scale_the_bill():
    one = ask("vllm-sweep", "--usd-per-hour", 1, "--json")["cost"]["allocation_usd"]["mid"]
    four = ask("vllm-sweep", "--usd-per-hour", 1, "--gpus-per-engine", 4, "--json")
    assert four["cost"]["allocation_usd"]["mid"] == pytest.approx(4 * one)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        pytest.param(["no-such-window"], "Windows:", id="no such window"),
        pytest.param(["vllm-sweep", "--start", "noon"], "ISO 8601", id="no time"),
        pytest.param(["vllm-sweep", "--end", "2020-01-01"], "does not overlap", id="outside"),
        pytest.param(["vllm-sweep", "--usd-per-hour", "-1"], "must be 0 or more", id="price"),
        pytest.param(["vllm-sweep", "--gpus-per-engine", "0"], "above 0", id="no GPU"),
        pytest.param(["vllm-sweep", "--slo-ttft", "-2"], "above 0 seconds", id="target"),
    ],
)
def test_bad_input_says_what_was_found_and_what_to_try(args, says):
    with pytest.raises(CapacityError, match=says) as caught:
        CliRunner().invoke(cli, ["figures", *args, "--json"], catch_exceptions=False)
    assert caught.value.exit_code == 2


def test_a_clean_window_has_only_info_findings():
    severities = {finding["severity"] for finding in ask("vllm-sweep", "--json")["quality"]}
    assert severities == {"info"}


def test_the_restart_and_the_gap_are_found():
    quality = ask("vllm-restart", "--json")["quality"]
    assert {"gap": 2, "restart": 1}.items() <= {f["check"]: f["count"] for f in quality}.items()
