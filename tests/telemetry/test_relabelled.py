"""A series that goes on under other labels is no birth: every total is what the process counted."""

from datetime import UTC, datetime, timedelta

import pytest

from vllm_capacity.analysis import Analysis
from vllm_capacity.facts.metrics import GENERATION_TOKENS, REQUESTS, TTFT
from vllm_capacity.figures import latency, traffic
from vllm_capacity.record import plain
from vllm_capacity.telemetry.late import extend_window
from vllm_capacity.telemetry.rows import RowBuffer, SeriesKey
from vllm_capacity.telemetry.store import write_window
from vllm_capacity.telemetry.window import open_window

T0 = datetime(2026, 11, 24, 8, tzinfo=UTC)
EVERY, COUNT, A_SCRAPE, BEFORE = 10, 60, 10, 1000
TRUE_REQUESTS = A_SCRAPE * (COUNT - 1)
BUCKETS = (0.1, 1.0)
POD = (("pod", "a"),)


USUAL = {"model": "m", "labels": POD, "bounds": BUCKETS, "engine": "0"}


def captured(spelled, numbers=range(COUNT), *, started=-9000.0, reasons=("stop",), restart=None):
    """Scrapes of one process, `spelled(number)` telling the labels; a restart counts from 0."""
    buffer = RowBuffer()
    for number in numbers:
        is_new = restart is not None and number >= restart
        done = A_SCRAPE * (number - restart) + 5 if is_new else BEFORE + A_SCRAPE * number
        begun = EVERY * restart - 5.0 if is_new else started
        result = spelled(number)
        ts_us = round((T0 + timedelta(seconds=EVERY * number)).timestamp() * 1e6)
        buffer.scrape("a:1", ts_us, is_up=True, seconds=0.01)
        for one in [result] if isinstance(result, dict) else result:
            put(buffer, ts_us, done, begun, reasons, **USUAL | one)
    return buffer.rows()


def put(buffer, ts_us, done, started, reasons, *, model, labels, bounds, engine):
    def sample(metric, kind, value, more=()):
        named = tuple(sorted((*labels, *more)))
        key = SeriesKey(metric, kind, "a:1", engine, model, named)
        buffer.sample(buffer.series(key, exposed=metric), ts_us, value)

    if started is not None:
        start = SeriesKey("process_start_time_seconds", "gauge", "a:1")
        buffer.sample(buffer.series(start, exposed=start.metric), ts_us, T0.timestamp() + started)
    sample("vllm:num_requests_running", "gauge", 2.0)
    sample(GENERATION_TOKENS, "counter", 100.0 * done)
    for place, reason in enumerate(reasons):
        sample(REQUESTS, "counter", float(done + place), (("finished_reason", reason),))
    ttft = SeriesKey(TTFT, "histogram", "a:1", engine, model, labels, bounds)
    buffer.histogram(
        buffer.series(ttft, exposed=TTFT),
        ts_us,
        count=done,
        total=0.2 * done,
        counts=[done, *[0.0] * len(bounds)],
    )


def found(window):
    """Requests and observations of a histogram."""
    increases = traffic.counter_increases(window, [REQUESTS], time_range=window.extent)
    observed = latency.merged(latency.histogram_increases(window, [TTFT], time_range=window.extent))
    return traffic.total(increases, REQUESTS), observed and observed.count


def result(window):
    """The findings about series that appeared or went on: severity, what they move."""
    return [
        (each["severity"], each["max_effect"])
        for each in plain(Analysis.of(window).quality)
        if "with other labels" in each["effect"]
    ]


MODEL, OTHER_POD = {"model": "M"}, {"labels": (("pod", "b"),)}
SPELLED = [
    pytest.param(lambda n: MODEL if n == 30 else {}, "info", id="the model's name, once"),
    pytest.param(lambda n: OTHER_POD if n == 30 else {}, "info", id="a pod label, once"),
    pytest.param(lambda n: OTHER_POD if n == 0 else {}, "warning", id="in the first scrape only"),
    pytest.param(lambda n: OTHER_POD if n == 59 else {}, "warning", id="in the last scrape only"),
    pytest.param(lambda n: OTHER_POD if n >= 30 else {}, "warning", id="from then on"),
    pytest.param(lambda n: OTHER_POD if 20 <= n < 40 else {}, "info", id="for a while"),
    pytest.param(lambda n: OTHER_POD if n % 2 else {}, "warning", id="in every other scrape"),
    pytest.param(lambda n: {"labels": (("pod", str(n)),)}, "warning", id="anew in every scrape"),
    pytest.param(lambda n: {"labels": ()} if n == 30 else {}, "info", id="a label lost once"),
    pytest.param(
        lambda n: {"labels": (*POD, ("node", "x"))} if n >= 30 else {}, "warning", id="one gained"
    ),
    pytest.param(
        lambda n: MODEL | OTHER_POD | {"engine": "1"} if n >= 30 else {}, "warning", id="three"
    ),
]


@pytest.mark.parametrize(("spelled", "severity"), SPELLED)
def test_a_series_continues_under_other_labels(tmp_path, spelled, severity):
    window = open_window(write_window(tmp_path / "w", captured(spelled), {}))
    assert found(window) == (TRUE_REQUESTS, TRUE_REQUESTS)
    assert {each for each, _ in result(window)} == {severity}


@pytest.mark.parametrize(
    "spelled", [each.values[0] for each in SPELLED], ids=[e.id for e in SPELLED]
)
@pytest.mark.parametrize("started", [-9000.0, None], ids=["start known", "start unknown"])
def test_each_of_several_children_goes_on_as_itself(tmp_path, spelled, started):
    rows = captured(spelled, started=started, reasons=("stop", "length", "abort"))
    window = open_window(write_window(tmp_path / "w", rows, {}))
    assert found(window) == (3 * TRUE_REQUESTS, TRUE_REQUESTS)
    increases = traffic.counter_increases(window, [REQUESTS], time_range=window.extent)
    assert increases["increase"].to_list() == [TRUE_REQUESTS] * 3


def test_what_it_may_move_is_what_was_counted_by_then(tmp_path):
    rows = captured(lambda n: OTHER_POD if n >= 30 else {})
    [(_, moves)] = result(open_window(write_window(tmp_path / "w", rows, {})))
    by_then = BEFORE + A_SCRAPE * 30
    assert moves == {"requests.finished": by_then, "tokens": 100.0 * by_then}


def test_a_child_that_is_new_as_nothing_vanishes_counts_from_0(tmp_path):
    rows = captured(lambda n: [{}, OTHER_POD] if n >= 50 else {})
    window = open_window(write_window(tmp_path / "w", rows, {}))
    assert found(window)[0] == TRUE_REQUESTS + BEFORE + A_SCRAPE * (COUNT - 1)
    assert result(window) == []


@pytest.mark.parametrize("start", [-9000.0, None], ids=["start known", "start unknown"])
def test_the_next_process_under_other_labels_counts_from_0(tmp_path, start):
    rows = captured(lambda n: OTHER_POD if n >= 30 else {}, restart=30, started=start)
    window = open_window(write_window(tmp_path / "w", rows, {}))
    if start is not None:
        assert found(window)[0] == A_SCRAPE * 29 + A_SCRAPE * 29 + 5
        assert result(window) == []


def test_where_it_is_not_clear_which_goes_on_nothing_counts_from_0(tmp_path):
    def spelled(number):
        pods = ("c", "d") if number >= 30 else ("a", "b")
        return [{"labels": (("pod", pod),)} for pod in pods]

    window = open_window(write_window(tmp_path / "w", captured(spelled), {}))
    lost_to_one_interval = 2 * A_SCRAPE
    assert found(window)[0] == 2 * TRUE_REQUESTS - lost_to_one_interval
    assert {severity for severity, _ in result(window)} == {"warning"}


def test_other_buckets_in_one_scrape_count_nothing_from_0(tmp_path):
    rows = captured(lambda n: {"bounds": (0.2, 2.0)} if n == 30 else {})
    window = open_window(write_window(tmp_path / "w", rows, {}))
    grown = latency.histogram_increases(window, [TTFT], time_range=window.extent)
    assert sum(each.count for each in grown) == TRUE_REQUESTS


@pytest.mark.parametrize("late", [range(40, 60), range(25, 35), range(30, 31)], ids=str)
def test_rows_under_other_labels_that_come_late_go_on_too(tmp_path, late):
    spelled = lambda n: OTHER_POD if n >= 30 else {}  # noqa: E731
    early = [n for n in range(COUNT) if n not in late]
    path = write_window(tmp_path / "w", captured(spelled, early), {})
    extend_window(path, captured(spelled, late))
    assert found(open_window(path)) == (TRUE_REQUESTS, TRUE_REQUESTS)


def test_rows_under_other_labels_that_come_twice_count_once(tmp_path):
    spelled = lambda n: OTHER_POD if n == 30 else {}  # noqa: E731
    path = write_window(tmp_path / "w", captured(spelled), {})
    extend_window(path, captured(spelled, range(25, 35)))
    assert found(open_window(path)) == (TRUE_REQUESTS, TRUE_REQUESTS)
