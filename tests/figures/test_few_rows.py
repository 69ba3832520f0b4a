"""What is answered from rows in memory is what the queries answer, to the last bit."""

from datetime import timedelta

import polars as pl
import pytest
from msgspec.structs import replace
from polars.testing import assert_frame_equal

from tests.figures.test_sql import CASES, at, fill
from vllm_capacity.facts.metrics import CACHE_CONFIG, GENERATION_TOKENS, REQUESTS, TTFT
from vllm_capacity.figures import few_rows, gauges, traffic
from vllm_capacity.figures.few_rows import FewRows, with_few_rows
from vllm_capacity.figures.pieces import NO_BASE
from vllm_capacity.figures.short_parts import as_read
from vllm_capacity.figures.sorted_rows import SortedRows
from vllm_capacity.telemetry.memory import database
from vllm_capacity.telemetry.window import Window, open_window

EXAMPLES = ("a100-gpt-oss-20b", "vllm-restart", "vllm-sweep", "vllm-two-replicas")


@pytest.fixture(scope="module", params=EXAMPLES)
def windows(request, examples):
    """A window that is asked by SQL, and the same with its rows in memory."""
    window = open_window(examples / request.param)
    return window, with_few_rows(window)


PARAMS = {
    "adapters": {"metric": "vllm:lora_requests_info"},
    "counter_increase": {"metrics": list(traffic.COUNTERS)},
    "fastest_means": {"metrics": [TTFT], "least": 20},
    "first_values": {"metrics": list(traffic.COUNTERS)},
    "gauge_samples": {"metrics": list(gauges.GAUGES)},
    "histogram_states": {"metrics": [TTFT], "step_us": 10_000_000, "last_step": 20},
    "makes": {"metrics": [CACHE_CONFIG, REQUESTS]},
    "same_processes": {"metric": GENERATION_TOKENS, "fewest": 3},
    "scrape_increases": {"metrics": list(traffic.STEP_COUNTERS)},
    "uncounted": {"metrics": [REQUESTS]},
}
WITHOUT_TIMES = {
    *("contradicted", "fastest_means", "instances", "makes", "models", "process_starts"),
    *("run_starts", "same_processes", "series", "uncounted", "untimed"),
}
NAMES = sorted({case.query for case in CASES} - {"gauge_minutes"})


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("start", "end"), [(0.0, 1.0), (0.3, 0.8), (0.0, 0.4), (0.6, 1.0)])
def test_every_query_of_a_part_of_an_example(windows, name, start, end):
    asked, found = windows
    extent = asked.extent
    first, last = (
        extent.start + share * timedelta(seconds=extent.seconds) for share in (start, end)
    )
    params = PARAMS.get(name, {})
    if name in ("attempts", "engines", "good_after", "lifetimes"):
        params = {**params, "end": last}
    elif name not in WITHOUT_TIMES:
        params = {**params, "start": first, "end": last}
    answers = [window.shipped_sql("figures", name, params) for window in (asked, found)]
    assert_frame_equal(answers[1], answers[0], check_exact=True, check_row_order=name != "series")


OF_CASES = [case for case in CASES if case.query in few_rows._ANSWERED]


@pytest.mark.parametrize("case", OF_CASES, ids=lambda case: f"{case.query}: {case.title}")
def test_every_query_of_a_handful_of_rows(case):
    opened = open_window("vllm-sweep")
    own = database()
    with own.cursor() as cursor:
        fill(cursor, case)
    asked = Window(opened.manifest, own, opened.pin)
    series, notes, samples, histograms = (
        asked.sql(f"select * from {name}") for name in ("series", "intake", "samples", "histograms")
    )
    found = FewRows(
        *(opened.manifest, own, opened.pin, {}),
        series=series.cast({"series_id": pl.Int64}),
        notes=notes.cast({"count": pl.Int64}),
        samples=rows(samples.cast(dict(NO_BASE.samples.schema))),
        histograms=rows(histograms.cast(dict(NO_BASE.histograms.schema))),
    )
    params = {k: at(v) if k in ("start", "end") else v for k, v in case.params.items()}
    answers = [window.shipped_sql("figures", case.query, params) for window in (asked, found)]
    assert_frame_equal(answers[1], answers[0], check_exact=True, check_dtypes=False)


def rows(frame):
    return SortedRows(frame.clear(), frame.sort("series_id", "ts"))


def test_rows_in_memory_are_few_and_on_this_machine(examples, monkeypatch):
    window = open_window(examples / "vllm-sweep")
    assert isinstance(as_read(window, window.extent), FewRows)
    away = replace(window, manifest=replace(window.manifest, origin="s3://bucket/vllm-sweep"))
    assert with_few_rows(away) is None
    monkeypatch.setattr(few_rows, "MAX_ROWS", 40_000)
    many = as_read(window, window.extent)
    assert type(many) is Window
    assert many.answers == {}
