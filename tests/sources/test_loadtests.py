import json

import pytest

from vllm_capacity.errors import InputError, ParseError
from vllm_capacity.sources.loadtests import POINT_SCHEMA, load_test_points, read_loads


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


def test_a_guidellm_report_gives_a_point_per_benchmark_lightest_first(tmp_path):
    report = {
        "metadata": {"version": 1},
        "benchmarks": [
            guidellm_run(32.0, 8.0, 2000.0, 900.0, 40.0),
            guidellm_run(4.0, 2.0, 500.0, 100.0, 20.0),
        ],
    }
    points = load_test_points(written(tmp_path, report))
    rest = (None, None, None)
    assert points.rows() == [
        (4.0, 500.0, 2.0, 0.1, 0.02, 4.0, *rest),
        (32.0, 2000.0, 8.0, 0.9, 0.04, 32.0, *rest),
    ]
    assert dict(points.schema) == POINT_SCHEMA


def test_a_metric_without_statuses_is_read_as_it_is(tmp_path):
    metrics = {
        "output_tokens_per_second": {"mean": 1580.0},
        "request_concurrency": {"mean": 8.2},
        "time_to_first_token_ms": None,
    }
    points = load_test_points(written(tmp_path, {"benchmarks": [{"metrics": metrics}]}))
    assert points.rows() == [(8.2, 1580.0, *[None] * 7)]


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
        pytest.param('{"a": 1}', "not a result of guidellm", id="another format"),
        pytest.param("[1]", "not an object", id="a list of numbers"),
        pytest.param('{"benchmarks": []}', "0 runs", id="no benchmark"),
        pytest.param("", "0 runs", id="empty"),
        pytest.param('{"benchmarks": [{}]}', "1 runs", id="a benchmark without metrics"),
        pytest.param('{"benchmarks": [null, 1]}', "2 runs", id="benchmarks that are none"),
        pytest.param('{"benchmarks": [{"metrics": [1]}]}', "1 runs", id="metrics that are none"),
        pytest.param(
            '{"request_throughput": 1, "output_throughput": 1%s}' % ("0" * 400),
            "1 runs",
            id="a number that is too large",
        ),
        pytest.param('{"a": 1%s}' % ("0" * 5000), "not JSON", id="a number of 5,000 digits"),
    ],
)
def test_a_file_of_another_format_is_refused(tmp_path, text, says):
    path = tmp_path / "result.json"
    path.write_text(text)
    with pytest.raises(ParseError, match=says):
        load_test_points(path)


def test_a_byte_order_mark_is_ignored(tmp_path):
    path = written(tmp_path, bench_run())
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(load_test_points(path)) == 1


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="Cannot read"):
        load_test_points(tmp_path / "none.json")


def test_a_guidellm_strategy_has_its_rate(tmp_path):
    run = guidellm_run(30.0, 8.0, 2000.0, 900.0, 40.0)
    run["config"] = {"strategy": {"type_": "poisson", "rate": 12.0, "max_concurrency": None}}
    point = load_test_points(written(tmp_path, {"benchmarks": [run]})).row(0, named=True)
    assert (point["offered_requests_per_second"], point["clients"]) == (12.0, None)


def test_one_stream_of_guidellm_is_one_client(tmp_path):
    run = guidellm_run(1.0, 1.0, 200.0, 90.0, 5.0)
    run["config"] = {"strategy": {"type_": "synchronous"}}
    assert load_test_points(written(tmp_path, {"benchmarks": [run]}))["clients"][0] == 1.0


# 1000 prompts at 10 per second are sent in 100 s, and without waiting the last one ends 8.4 s
# later: no server can be measured above 9.2 per second in such a test.
@pytest.mark.parametrize(
    ("rate", "offered", "clients"),
    [
        pytest.param(10.0, 1000 / (100 + 1.5 * 0.04325 * 193.3), None, id="a rate"),
        pytest.param("inf", None, 1000.0, id="all at once: as many clients as prompts"),
    ],
)
def test_what_vllm_bench_offered(tmp_path, rate, offered, clients):
    point = load_test_points(written(tmp_path, bench_run(request_rate=rate))).row(0, named=True)
    assert point["offered_requests_per_second"] == (offered and pytest.approx(offered))
    assert point["clients"] == clients


def sweep_folder(folder, *, per_run=True):
    """The output of `vllm bench sweep serve`: a folder per combination, its runs, and a summary."""
    for clients in (4, 8):
        place = folder / f"BENCH--max_concurrency={clients}"
        place.mkdir()
        run = bench_run(max_concurrency=clients, max_num_seqs=64, run_number=0, mean_e2el_ms=1e6)
        if per_run:
            (place / "run=0.json").write_text(json.dumps(run))
        (place / "summary.json").write_text(json.dumps([run]))
        (place / "run=1.failure.json").write_text(json.dumps({"error": "no"}))


@pytest.mark.parametrize("per_run", [True, False], ids=["runs and summaries", "summaries alone"])
def test_a_sweep_of_vllm_bench_is_read_once(tmp_path, per_run):
    sweep_folder(tmp_path, per_run=per_run)
    loads = read_loads(tmp_path)
    assert loads["clients"].to_list() == [4.0, 8.0]
    assert loads["max_num_seqs"].to_list() == [64.0, 64.0]


def test_the_summary_table_of_a_sweep_of_vllm_bench_is_read(tmp_path):
    table = tmp_path / "summary.csv"
    table.write_text(
        ",max_num_seqs,max_concurrency,request_rate,num_prompts,request_throughput,"
        "output_throughput,mean_e2el_ms\n"
        "0,64,4,inf,100,2.0,400.0,1900.0\n1,64,8,inf,100,3.5,700.0,2200.0\n"
    )
    loads = read_loads(table)
    assert loads["running_requests"].to_list() == pytest.approx([3.8, 7.7])
    assert loads["max_num_seqs"].to_list() == [64.0, 64.0]


def metric(average, **more):
    return {"unit": "ms", "avg": average, **more}


def aiperf_run(input_config):
    """An export of `aiperf profile`, as of 0.10, of which only what is read is filled in."""
    return {
        "schema_version": "1.3",
        "request_throughput": {"unit": "requests/sec", "avg": 5.0},
        "request_latency": metric(2400.0, p95=5000.0),
        "request_count": {"unit": "requests", "avg": 100.0},
        "time_to_first_token": metric(119.0, p95=239.0),
        "inter_token_latency": metric(12.0, p95=15.0),
        "output_token_throughput": {"unit": "tokens/sec", "avg": 1000.0},
        "output_sequence_length": {"unit": "tokens", "avg": 201.0},
        "input_config": input_config,
    }


WARMUP = {"name": "warmup", "type": "concurrency", "exclude_from_results": True, "concurrency": 2}


@pytest.mark.parametrize(
    ("config", "clients", "offered"),
    [
        pytest.param({"loadgen": {"concurrency": 16}}, 16.0, None, id="0.2: clients"),
        pytest.param(
            {"phases": [WARMUP, {"name": "profiling", "type": "concurrency", "concurrency": 16}]},
            16.0,
            None,
            id="0.10: the phase that is measured",
        ),
        pytest.param(
            {"phases": [WARMUP, {"name": "profiling", "type": "poisson", "rate": 10.0}]},
            None,
            100 / (10 + 1.5 * 2.4),
            id="0.10: a rate",
        ),
        pytest.param({}, None, None, id="not given"),
    ],
)
def test_an_export_of_aiperf_is_a_point(tmp_path, config, clients, offered):
    point = load_test_points(written(tmp_path, aiperf_run(config))).row(0, named=True)
    assert point["running_requests"] == pytest.approx(12.0)
    assert (point["output_tokens_per_second"], point["clients"]) == (1000.0, clients)
    assert (point["ttft_p95_seconds"], point["itl_p95_seconds"]) == (0.239, 0.015)
    assert point["offered_requests_per_second"] == (offered and pytest.approx(offered))


def test_an_aiperf_sweep_aggregate_gives_a_point_per_combination(tmp_path):
    entry = {
        "parameters": {"concurrency": 10},
        "metrics": {
            "request_throughput_avg": {"mean": 5.0, "unit": "requests/sec"},
            "request_latency_avg": {"mean": 1800.0, "unit": "ms"},
            "output_token_throughput_avg": {"mean": 1000.0, "unit": "tokens/sec"},
        },
    }
    sweep = {"aggregation_type": "sweep", "per_combination_metrics": [entry]}
    point = load_test_points(written(tmp_path, sweep)).row(0, named=True)
    assert (point["running_requests"], point["clients"]) == (9.0, 10.0)


def stage(folder, number, *, asked, served, queue=None, **load):
    """One stage of `inference-perf`, and its server metrics where a queue is given."""
    latency = {
        "request_latency": {"mean": 1.7},
        "time_per_output_token": {"mean": 0.0125},
        "time_to_first_token": {"mean": 0.15, "p95": 0.35},
        "inter_token_latency": {"mean": 0.0125, "p95": 0.034},
    }
    report = {
        "load_summary": {"count": 60 * asked, "requested_rate": asked, **load},
        "successes": {
            "count": 60 * asked,
            "latency": latency,
            "throughput": {"requests_per_sec": served, "output_tokens_per_sec": 63.0 * served},
            "output_len": {"mean": 63.0},
        },
        "failures": {"count": 0},
    }
    (folder / f"stage_{number}_lifecycle_metrics.json").write_text(json.dumps(report))
    if queue is not None:
        server = {"load_summary": {}, "successes": {"queue_len": {"mean": queue}}, "failures": {}}
        (folder / f"stage_{number}_prometheus_metrics.json").write_text(json.dumps(server))


def test_stages_of_inference_perf_are_points_with_their_queue(tmp_path):
    stage(tmp_path, 0, asked=75.0, served=74.3, queue=0)
    stage(tmp_path, 1, asked=149.0, served=112.9, queue=155)
    stage(tmp_path, 2, asked=223.0, served=113.7)
    summary = {"load_summary": {"count": 900}, "successes": {"count": 900}}
    (tmp_path / "summary_lifecycle_metrics.json").write_text(json.dumps(summary))
    loads = read_loads(tmp_path)
    assert loads["running_requests"].to_list() == pytest.approx([126.31, 191.93, 193.29])
    assert loads["waiting_requests"].to_list() == [0.0, 155.0, None]
    sent = 60 / (60 + 1.5 * 0.0125 * 62)
    assert loads["offered_requests_per_second"].to_list() == pytest.approx(
        [75 * sent, 149 * sent, 223 * sent]
    )


def test_a_stage_of_inference_perf_with_clients_offers_no_rate(tmp_path):
    stage(tmp_path, 0, asked=75.0, served=74.3, concurrency=64)
    loads = read_loads(tmp_path / "stage_0_lifecycle_metrics.json")
    assert loads["clients"].to_list() == [64.0]
    assert loads["offered_requests_per_second"].to_list() == [None]


def test_several_files_are_one_table(tmp_path):
    table = tmp_path / "own.csv"
    table.write_text("running_requests,output_tokens_per_second\n4,103\n")
    loads = read_loads(written(tmp_path, bench_run()), table)
    assert loads["output_tokens_per_second"].to_list() == [5179.92, 103.0]


def test_a_folder_without_results_says_so(tmp_path):
    (tmp_path / "notes.json").write_text('{"a": 1}')
    with pytest.raises(InputError, match="has no JSON result"):
        read_loads(tmp_path)
