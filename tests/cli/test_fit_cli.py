import json

import pytest
from click.testing import CliRunner

from vllm_capacity.cli.fit import fit
from vllm_capacity.errors import InputError

SATURATED = "1,30\n2,57\n4,103\n8,179\n16,264\n27,298\n28,297\n41,296\n"
LIGHT = "1,30\n2,60\n4,120\n"
HEAD = "running_requests,output_tokens_per_second\n"


def run(path, text, *flags):
    table = path / "points.csv"
    table.write_text(text, encoding="utf-8")
    return CliRunner().invoke(fit, [str(table), *flags])


def test_json_is_the_saturation_object(tmp_path):
    result = run(tmp_path, HEAD + SATURATED, "--json")
    found = json.loads(result.stdout)
    assert set(found) == {
        "regime",
        "bottleneck",
        "regimes",
        "capacity_kind",
        "capacity_output_tokens_per_second",
        "capacity_running_requests",
        "headroom_ratio",
        "imbalance",
    }
    assert found["capacity_output_tokens_per_second"]["mid"] == pytest.approx(297)


def test_a_refusal_is_json_and_no_error(tmp_path):
    result = run(tmp_path, HEAD + LIGHT, "--json")
    found = json.loads(result.stdout)["capacity_output_tokens_per_second"]
    assert (result.exit_code, found["mid"]) == (0, None)
    assert "running requests" in found["reason"]


def test_results_of_a_load_test_are_points_too(tmp_path):
    runs = [
        {
            "request_throughput": x / 100,
            "output_throughput": x,
            "mean_e2el_ms": 1e5 * n / x,
            "completed": 50,
            "duration": 60.0,
        }
        for n, x in ((4, 103), (8, 179), (16, 264), (27, 298), (41, 296))
    ]
    results = tmp_path / "results.json"
    results.write_text("\n".join(map(json.dumps, runs)), encoding="utf-8")
    found = json.loads(CliRunner().invoke(fit, [str(results), "--json"]).stdout)
    assert found["capacity_output_tokens_per_second"]["mid"] == pytest.approx(297)


def test_without_json_it_is_text(tmp_path):
    output = run(tmp_path, HEAD + SATURATED).stdout
    assert "\ncapacity      297 output tokens/s  " in output
    assert "\nreached at  27.0 running requests" in output
    assert "\n    mean of the 3 loads" in output
    assert max(map(len, output.splitlines())) <= 80


@pytest.mark.parametrize(
    ("text", "part_of_message"),
    [
        pytest.param("running_requests,tps\n1,2\n", "lacks output_tokens_per_second", id="column"),
        pytest.param(
            "running_requests, running_requests,output_tokens_per_second\n1,2,3\n",
            "running_requests more than once",
            id="a column twice",
        ),
        pytest.param(
            HEAD + "1,fast\n", "line 2: output_tokens_per_second is 'fast'", id="a number"
        ),
        pytest.param(HEAD + "1,5\n-2,9\n", "line 3: running_requests is '-2'", id="negative"),
        pytest.param(HEAD + "1,5\n2,inf\n", "line 3: output_tokens_per_second is 'inf'", id="inf"),
        pytest.param(HEAD + "1,1e308\n", "from 0 to 1e+12", id="too large"),
        pytest.param(
            "running_requests,output_tokens_per_second,kv_cache_ratio\n4,103,14.4\n",
            "line 2: kv_cache_ratio is '14.4'; write a ratio of 0 to 1",
            id="a percentage",
        ),
        pytest.param("", "Cannot read", id="empty file"),
    ],
)
def test_bad_files_are_input_errors(tmp_path, text, part_of_message):
    error = run(tmp_path, text, "--json").exception
    assert isinstance(error, InputError)
    assert part_of_message in str(error)


def test_a_cell_that_is_not_a_number_by_name_is_empty(tmp_path):
    result = run(tmp_path, HEAD + "4,NaN\n8,100\n", "--json")
    assert "only one load was observed" in result.stdout


def test_a_missing_file_is_an_input_error(tmp_path):
    error = CliRunner().invoke(fit, [str(tmp_path / "none.csv")]).exception
    assert isinstance(error, InputError)


def test_empty_cells_and_extra_columns_are_accepted(tmp_path):
    text = " running_requests ,note,output_tokens_per_second,kv_cache_ratio\n4,a,100,\n8,,,0.3\n"
    result = run(tmp_path, text, "--json")
    assert "only one load was observed" in result.stdout


LIMIT = "running_requests,output_tokens_per_second,waiting_requests\n4,103,0\n8,179,0\n27,298,5\n"


def test_a_row_that_waits_is_a_measured_capacity(tmp_path):
    found = json.loads(run(tmp_path, LIMIT, "--json").stdout)
    assert found["capacity_kind"] == "measured"
    assert found["capacity_output_tokens_per_second"]["mid"] == 298


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        pytest.param(["--at", "6"], "At 6 concurrent requests", id="a concurrency"),
        pytest.param(["--next"], "Next load to test: ", id="the next load"),
        pytest.param(
            ["--next", "--tool", "guidellm"],
            "guidellm run --backend kind=openai_http,target=http://localhost:8000,model=MODEL",
            id="guidellm",
        ),
        pytest.param(
            ["--next", "--tool", "aiperf", "--model", "my/model", "--input-tokens", "512"],
            "aiperf profile --model my/model --url http://localhost:8000",
            id="aiperf",
        ),
        pytest.param(
            ["--next", "--most-clients", "20"], "--max-concurrency 20", id="no more than 20"
        ),
    ],
)
def test_more_columns_can_be_requested(tmp_path, flags, part):
    result = run(tmp_path, HEAD + "1,30\n2,57\n4,103\n8,179\n", *flags)
    assert (result.exit_code, part in result.stdout) == (0, True)


def test_json_has_what_more_was_asked(tmp_path):
    table = HEAD + "1,30\n2,57\n4,103\n8,179\n"
    found = json.loads(run(tmp_path, table, "--json", "--at", "6", "--next").stdout)
    assert [each["clients"] for each in found["at"]] == [6.0]
    assert found["next"][0]["command"].startswith("vllm bench serve")
    assert found["next"][0]["clients"] > 8


def test_a_limit_is_reported_only_once(tmp_path):
    table = "running_requests,output_tokens_per_second,max_num_seqs\n4,103,64\n"
    error = run(tmp_path, table, "--max-num-seqs", "32").exception
    assert isinstance(error, InputError)


def test_the_servers_limit_may_be_given(tmp_path):
    found = json.loads(
        run(tmp_path, HEAD + "4,103\n8,179\n32,298\n", "--max-num-seqs", "32", "--json").stdout
    )
    assert (found["capacity_kind"], found["bottleneck"]) == ("measured", "scheduler-bound")
