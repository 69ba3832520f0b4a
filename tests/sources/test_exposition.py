import gzip
import json
import math

import pytest

from vllm_capacity.errors import InputError, ParseError
from vllm_capacity.sources.exposition import Scrape, ScrapeReader, parse_families, read_scrapes

HISTOGRAM = """\
# TYPE vllm:time_to_first_token_seconds histogram
vllm:time_to_first_token_seconds_bucket{engine="0",le="0.1",model_name="m"} 3.0
vllm:time_to_first_token_seconds_bucket{engine="0",le="0.5",model_name="m"} 5.0
vllm:time_to_first_token_seconds_bucket{engine="0",le="+Inf",model_name="m"} 6.0
vllm:time_to_first_token_seconds_count{engine="0",model_name="m"} 6.0
vllm:time_to_first_token_seconds_sum{engine="0",model_name="m"} 2.5
"""


def counter(value, name="vllm:generation_tokens_total", labels='engine="0",model_name="m"'):
    return f"# TYPE {name} counter\n{name}{{{labels}}} {value}\n"


def rows_of(*texts, status=200):
    reader = ScrapeReader()
    for number, text in enumerate(texts):
        reader.add(Scrape(1_000.0 + 2 * number, "vllm", status, text))
    return reader.buffer.rows()


def values(rows, metric):
    ids = rows.series.filter(rows.series["metric"] == metric)["series_id"]
    return rows.samples.filter(rows.samples["series_id"].is_in(ids.implode()))["value"].to_list()


def test_cumulative_buckets_become_counts_per_bucket():
    state = rows_of(HISTOGRAM).histograms.row(0, named=True)
    assert (state["counts"], state["count"], state["sum"]) == ([3.0, 2.0, 1.0], 6.0, 2.5)


def test_a_histogram_whose_name_ends_in_total_is_a_histogram():
    text = HISTOGRAM.replace("vllm:time_to_first_token_seconds", "vllm:iteration_tokens_total")
    series = rows_of(text).series.filter(rows_of(text).series["kind"] == "histogram")
    assert series["metric"].to_list() == ["vllm:iteration_tokens_total"]


@pytest.mark.parametrize(
    "name",
    [
        "vllm:generation_tokens_total",
        "vllm_generation_tokens_total",
        "ray_vllm_generation_tokens_total",
    ],
)
def test_every_spelling_is_one_metric(name):
    assert values(rows_of(counter(7, name)), "vllm:generation_tokens_total") == [7.0]


@pytest.mark.parametrize(
    ("labels", "engine"),
    [
        pytest.param('model_name="m"', "0", id="V0 has no engine label"),
        pytest.param('engine="3",model_name="m"', "3", id="a data-parallel rank"),
    ],
)
def test_the_engine_of_a_series(labels, engine):
    series = rows_of(counter(1, labels=labels)).series
    assert series.filter(series["kind"] == "counter")["engine"].to_list() == [engine]


@pytest.mark.parametrize(
    ("status", "text"),
    [
        pytest.param(500, counter(1), id="not 200"),
        pytest.param(0, "", id="no answer"),
        pytest.param(200, counter(1) + "vllm:x{broken 1\n", id="one broken line"),
        pytest.param(200, "<html>not metrics</html>", id="a web page"),
    ],
)
def test_a_failed_scrape_leaves_up_0_and_nothing_else(status, text):
    rows = rows_of(text, status=status)
    assert values(rows, "up") == [0.0]
    assert rows.series["metric"].to_list() == ["up"]


def test_a_nan_gauge_is_no_observation():
    text = '# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running{engine="0"} NaN\n'
    assert values(rows_of(text), "vllm:num_requests_running") == []


def test_created_and_process_noise_stay_out():
    noise = (
        "# TYPE vllm:x_created gauge\nvllm:x_created 1.7e9\n# TYPE python_info gauge\npython_info "
        "1\n"
    )
    assert set(rows_of(counter(1) + noise).series["metric"]) == {
        "up",
        "vllm:generation_tokens_total",
    }


def test_created_inside_the_capture_says_that_the_series_starts_at_zero():
    created = (
        "# TYPE vllm:generation_tokens_created gauge\n"
        'vllm:generation_tokens_created{engine="0",model_name="m"} 1001\n'
    )
    series = rows_of("", counter(5) + created).series
    assert series.filter(series["kind"] == "counter")["starts_at_zero"].to_list() == [True]


def test_a_bucket_below_its_predecessor_is_raised_to_it():
    text = HISTOGRAM.replace('le="0.5",model_name="m"} 5.0', 'le="0.5",model_name="m"} 2.0')
    assert rows_of(text).histograms["counts"].to_list() == [[3.0, 0.0, 3.0]]


def test_the_count_stands_in_for_a_missing_inf_bucket():
    text = "".join(line for line in HISTOGRAM.splitlines(True) if "+Inf" not in line)
    assert rows_of(text).histograms["counts"].to_list() == [[3.0, 2.0, 1.0]]


@pytest.mark.parametrize("value", ["NaN", "-1", "+Inf"])
def test_buckets_that_make_no_histogram_are_left_out_and_noted(value):
    rows = rows_of(
        HISTOGRAM.replace('le="0.1",model_name="m"} 3.0', f'le="0.1",model_name="m"}} {value}')
    )
    assert rows.histograms.is_empty()
    assert rows.ingest_notes["subject"].to_list() == ["vllm:time_to_first_token_seconds"]


@pytest.mark.parametrize("edge", ["abc", "NaN", "-Inf", ""])
def test_a_bucket_without_a_bound_makes_no_histogram(edge):
    rows = rows_of(HISTOGRAM.replace('le="0.5"', f'le="{edge}"'))
    assert rows.histograms.is_empty()
    assert rows.ingest_notes["subject"].to_list() == ["vllm:time_to_first_token_seconds"]


@pytest.mark.parametrize("start", ["1e300", "-5", "NaN", "1.7e12"])
def test_a_start_of_the_process_that_is_no_time_is_left_out_and_noted(start):
    rows = rows_of(
        counter(1)
        + f"# TYPE process_start_time_seconds gauge\nprocess_start_time_seconds {start}\n"
    )
    assert values(rows, "process_start_time_seconds") == []
    assert rows.ingest_notes["subject"].to_list() == ["process_start_time_seconds"]


def test_labels_with_quotes_backslashes_newlines_and_braces_survive():
    hostile = 'a "b" \\ } <script>\n'
    escaped = hostile.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    rows = rows_of(counter(1, labels=f'engine="0",model_name="{escaped}"'))
    assert hostile in rows.series["model_name"].to_list()


def test_text_without_metrics_is_reported():
    with pytest.raises(ParseError, match="contains no metric"):
        parse_families("# just a comment\n")


def saved(path, lines, *, compress=True, cut=0):
    data = "".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines)
    raw = gzip.compress(data.encode()) if compress else data.encode()
    path.write_bytes(raw[: len(raw) - cut])
    return path


def scrape(t, text=None, **more):
    return {"t": t, "target": "vllm", "status": 200, "text": text or counter(t), **more}


@pytest.mark.parametrize("compress", [True, False], ids=["gzip", "plain"])
def test_saved_scrapes_are_read(tmp_path, compress):
    path = saved(tmp_path / "s.jsonl", [scrape(1.0, unknown=1), scrape(3.0)], compress=compress)
    assert values(read_scrapes(path), "vllm:generation_tokens_total") == [1.0, 3.0]


def test_a_file_cut_short_keeps_what_came_before_the_cut(tmp_path):
    long = counter(2) + "# " + "".join(map(chr, (33 + i * 7 % 90 for i in range(4000)))) + "\n"
    path = tmp_path / "s.jsonl.gz"
    members = [
        gzip.compress((json.dumps(scrape(float(t), long)) + "\n").encode()) for t in (1, 3, 5)
    ]
    path.write_bytes(b"".join(members)[:-50])
    assert values(read_scrapes(path), "vllm:generation_tokens_total") == [2.0, 2.0]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        pytest.param(b"\x00\xff\xfe binary", "is not text", id="a binary file"),
        pytest.param(b"hello\nworld\n", "line 1, is not a JSON object", id="not JSON"),
        pytest.param(b'{"t": "soon", "target": "v", "status": 200}\n', "needs t", id="no time"),
        pytest.param(b'{"t": 1e400, "target": "v", "status": 200}\n', "not a time", id="infinite"),
        pytest.param(b"[1, 2]\n", "is not a scrape", id="a list"),
        pytest.param(b"", "has no scrape", id="empty"),
        pytest.param(
            b'{"t": 1, "target": "v", "status": 200, "text": "# TYPE a gauge\\na 1\\n"}\n',
            "has no vLLM series",
            id="no vLLM series",
        ),
    ],
)
def test_a_file_without_saved_scrapes_is_reported(tmp_path, content, says):
    path = tmp_path / "s.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError, match=says):
        read_scrapes(path)


def test_scrapes_out_of_order_are_put_in_order_and_noted(tmp_path):
    rows = read_scrapes(saved(tmp_path / "s", [scrape(3.0), scrape(1.0), scrape(5.0)]))
    assert rows.ingest_notes.select("check", "count").rows() == [("late", 1)]


def test_infinite_counters_do_not_become_numbers():
    rows = rows_of(counter("+Inf"))
    assert not any(math.isinf(value) for value in values(rows, "vllm:generation_tokens_total"))
