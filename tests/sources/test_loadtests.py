import json

import pytest

from vllm_capacity.errors import InputError, ParseError
from vllm_capacity.sources.loadtests import POINT_SCHEMA, load_test_points


def summary(mean, p95=None):
    """A distribution as guidellm writes it, of which only what is read is filled in."""
    return {"mean": mean, "median": mean, "percentiles": {"p50": mean, "p95": p95 or mean}}


def guidellm_run(streams, rate, tokens, ttft_ms, itl_ms):
    """One benchmark of a guidellm report: metrics by status, latencies in ms."""
    values = {
        "requests_per_second": summary(rate),
        "request_concurrency": summary(streams),
        "output_tokens_per_second": summary(tokens),
        "time_to_first_token_ms": summary(ttft_ms / 2, ttft_ms),
        "inter_token_latency_ms": summary(itl_ms / 2, itl_ms),
        "request_latency": summary(streams / rate),
    }
    statuses = ("successful", "incomplete", "errored", "total")
    return {
        "type_": "generative_benchmark",
        "config": {"strategy": {"type_": "concurrent", "streams": streams}},
        "metrics": {
            "request_totals": dict.fromkeys(statuses, 100),
            **{
                name: {
                    status: value if status == "successful" else summary(0.0) for status in statuses
                }
                for name, value in values.items()
            },
        },
    }


def bench_run(**changed):
    """A result of `vllm bench serve --save-result`, as of vLLM 0.11."""
    return {
        "date": "20261124-081400",
        "endpoint_type": "openai-chat",
        "model_id": "openai/gpt-oss-20b",
        "num_prompts": 1000,
        "request_rate": "inf",
        "burstiness": 1.0,
        "max_concurrency": None,
        "duration": 37.5,
        "completed": 1000,
        "total_input_tokens": 215_300,
        "total_output_tokens": 194_300,
        "request_throughput": 26.66,
        "request_goodput": None,
        "output_throughput": 5179.92,
        "total_token_throughput": 10_919.92,
        "mean_ttft_ms": 12_371.62,
        "median_ttft_ms": 12_000.0,
        "p99_ttft_ms": 27_040.92,
        "mean_tpot_ms": 43.25,
        "p99_tpot_ms": 60.0,
        "mean_itl_ms": 43.0,
        "p99_itl_ms": 90.0,
        **changed,
    }


def written(folder, *objects):
    path = folder / "result.json"
    path.write_text("\n".join(json.dumps(found) for found in objects), encoding="utf-8")
    return path


def test_a_guidellm_report_is_a_point_a_benchmark_lightest_first(tmp_path):
    report = {
        "metadata": {"version": 1},
        "benchmarks": [
            guidellm_run(32.0, 8.0, 2000.0, 900.0, 40.0),
            guidellm_run(4.0, 2.0, 500.0, 100.0, 20.0),
        ],
    }
    points = load_test_points(written(tmp_path, report))
    assert points.rows() == [(4.0, 500.0, 2.0, 0.1, 0.02), (32.0, 2000.0, 8.0, 0.9, 0.04)]
    assert dict(points.schema) == POINT_SCHEMA


def test_a_metric_without_statuses_is_read_as_it_is(tmp_path):
    metrics = {
        "output_tokens_per_second": {"mean": 1580.0},
        "request_concurrency": {"mean": 8.2},
        "time_to_first_token_ms": None,
    }
    points = load_test_points(written(tmp_path, {"benchmarks": [{"metrics": metrics}]}))
    assert points.rows() == [(8.2, 1580.0, None, None, None)]


def test_running_requests_of_vllm_bench_follow_from_littles_law(tmp_path):
    point = load_test_points(written(tmp_path, bench_run())).row(0, named=True)
    latency_seconds = (12_371.62 + 43.25 * (194.3 - 1)) / 1000
    assert point["running_requests"] == pytest.approx(26.66 * latency_seconds)
    assert point["output_tokens_per_second"] == 5179.92


@pytest.mark.parametrize(
    ("changed", "running"),
    [
        pytest.param({"mean_e2el_ms": 1000.0}, 26.66, id="a stated latency is taken"),
        pytest.param({"max_concurrency": 64}, 64.0, id="clients bound it"),
        pytest.param({"mean_tpot_ms": None}, None, id="no latency, no load"),
        pytest.param(
            {"mean_tpot_ms": None, "max_concurrency": 64}, 64.0, id="no latency, but clients"
        ),
        pytest.param({"completed": 0}, None, id="nothing completed"),
    ],
)
def test_running_requests(tmp_path, changed, running):
    point = load_test_points(written(tmp_path, bench_run(**changed))).row(0, named=True)
    assert point["running_requests"] == running


@pytest.mark.parametrize(
    ("changed", "ttft", "itl"),
    [
        pytest.param({}, None, None, id="a p99 is no p95"),
        pytest.param({"p95_ttft_ms": 2000.0, "p95_itl_ms": 50.0}, 2.0, 0.05, id="asked for"),
        pytest.param(
            {"ttfts": [1.0] * 19 + [3.0], "itls": [[0.02, 0.02], [0.02]]},
            1.1,
            0.02,
            id="from the detailed lists",
        ),
        pytest.param({"ttfts": [], "itls": [[]]}, None, None, id="empty lists"),
        pytest.param({"ttfts": 5, "itls": [1, 2]}, None, None, id="no lists at all"),
    ],
)
def test_percentiles_are_those_of_the_run(tmp_path, changed, ttft, itl):
    point = load_test_points(written(tmp_path, bench_run(**changed))).row(0, named=True)
    assert point["ttft_p95_seconds"] == (None if ttft is None else pytest.approx(ttft))
    assert point["itl_p95_seconds"] == (None if itl is None else pytest.approx(itl))


def test_appended_runs_are_points_of_one_sweep(tmp_path):
    runs = [bench_run(output_throughput=float(rate)) for rate in (100, 300, 200)]
    assert len(load_test_points(written(tmp_path, *runs))) == 3


def test_a_run_that_generated_nothing_is_no_load(tmp_path):
    path = written(tmp_path, bench_run(), bench_run(output_throughput=0.0))
    assert len(load_test_points(path)) == 1


@pytest.mark.parametrize(
    ("text", "says"),
    [
        pytest.param("not json", "not JSON", id="no JSON"),
        pytest.param('{"a": 1}', "neither", id="another format"),
        pytest.param("[1]", "not an object", id="a list of numbers"),
        pytest.param('{"benchmarks": []}', "0 runs", id="no benchmark"),
        pytest.param("", "0 runs", id="empty"),
        pytest.param('{"benchmarks": [{}]}', "1 runs", id="a benchmark without metrics"),
        pytest.param('{"benchmarks": [null, 1]}', "2 runs", id="benchmarks that are none"),
        pytest.param('{"benchmarks": [{"metrics": [1]}]}', "1 runs", id="metrics that are none"),
        pytest.param(
            '{"request_throughput": 1, "output_throughput": 1%s}' % ("0" * 400),
            "1 runs",
            id="a number past all measure",
        ),
        pytest.param('{"a": 1%s}' % ("0" * 5000), "not JSON", id="a number of 5,000 digits"),
    ],
)
def test_a_file_of_another_format_is_refused(tmp_path, text, says):
    path = tmp_path / "result.json"
    path.write_text(text)
    with pytest.raises(ParseError, match=says):
        load_test_points(path)


def test_a_byte_order_mark_is_no_matter(tmp_path):
    path = written(tmp_path, bench_run())
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(load_test_points(path)) == 1


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="Cannot read"):
        load_test_points(tmp_path / "none.json")
