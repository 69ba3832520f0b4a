"""Each process counts from where it began: restarts, new series, carried bases."""

from datetime import UTC, datetime, timedelta

import polars as pl
import pytest

from tests.answering import answer
from vllm_capacity.figures import latency, scrapes, traffic
from vllm_capacity.telemetry.rows import RowBuffer, Rows, SeriesKey
from vllm_capacity.telemetry.settling import settle
from vllm_capacity.telemetry.store import write_window
from vllm_capacity.telemetry.window import open_window

METRIC = "vllm:generation_tokens_total"
TTFT = "vllm:time_to_first_token_seconds"
START = "process_start_time_seconds"
T0 = 1_795_492_800


def at(seconds):
    return datetime.fromtimestamp(T0, UTC) + timedelta(seconds=seconds)


def read(buffer, seconds, started, value, *, instance="vllm", labels=(), with_histogram=False):
    """One good scrape: the process's start (seconds after T0; None: unknown), a counter."""
    ts_us = round((T0 + seconds) * 1e6)
    buffer.scrape(instance, ts_us, is_up=True, seconds=None)
    running = SeriesKey("vllm:num_requests_running", "gauge", instance, "0", "m")
    buffer.sample(buffer.series(running, exposed=running.metric), ts_us, 1.0)
    if value is not None:
        key = SeriesKey(METRIC, "counter", instance, "0", "m", labels)
        buffer.sample(buffer.series(key, exposed=METRIC), ts_us, value)
    if with_histogram:
        key = SeriesKey(TTFT, "histogram", instance, "0", "m", bounds=(1.0,))
        series_id = buffer.series(key, exposed=TTFT)
        buffer.histogram(series_id, ts_us, count=value, total=value / 2, counts=[value, 0.0])
    if started is not None:
        key = SeriesKey(START, "gauge", instance)
        result = T0 + started if started else 0.0
        buffer.sample(buffer.series(key, exposed=START), ts_us, result)


def window_of(tmp_path, rows, note=None):
    return open_window(write_window(tmp_path / "w", rows, note or {}))


def increase(window):
    rows = traffic.counter_increases(window, [METRIC], time_range=window.extent)
    return traffic.total(rows, METRIC)


OLD = -9000.0


@pytest.mark.parametrize(
    ("scraped", "expected"),
    [
        pytest.param(
            [(0, OLD, 600), (30, OLD, 613), (90, 40, 1438)], 1451, id="overtaken in a gap"
        ),
        pytest.param([(0, OLD, 613), (90, 40, 613)], 613, id="the same value by accident"),
        pytest.param([(0, OLD, 613), (90, 40, 20)], 20, id="fallen, with a new start"),
        pytest.param(
            [(0, OLD, 5), (30, OLD + 0.4, 7), (60, OLD - 0.3, 9), (90, OLD + 1.2, 12)],
            7,
            id="a start that jitters is no restart",
        ),
        pytest.param(
            [(0, OLD, 5), (30, OLD + 300, 7), (60, OLD + 300, 9)],
            4,
            id="a start moved by a clock that was set is no restart",
        ),
        pytest.param([(0, 0, 5), (30, OLD, 7), (60, 0, 9)], 4, id="a start of 0 is ignored"),
        pytest.param([(0, None, 5), (30, None, 3)], 3, id="without a start, by value"),
        pytest.param(
            [(0, 1e300, 5), (30, OLD, 7), (60, 9e10, 9)], 4, id="starts that no clock can represent"
        ),
        pytest.param([(0, -1e300, 5), (30, 9.2e12, 7)], 2, id="nothing but such starts"),
        pytest.param(
            [(0, OLD, 5), (30, 10, 50), (60, 35, 90)], 140, id="two restarts, both overtaken"
        ),
        pytest.param(
            [(0, OLD, 5), (30, 40, 9)], 9, id="the clock of the target is ahead by some seconds"
        ),
    ],
)
def test_a_new_process_counts_whole(tmp_path, scraped, expected):
    buffer = RowBuffer()
    for seconds, started, value in scraped:
        read(buffer, seconds, started, float(value))
    assert increase(window_of(tmp_path, buffer.rows())) == expected


def test_a_histogram_that_was_overtaken_begins_again_too(tmp_path):
    buffer = RowBuffer()
    for seconds, started, value in ((0, OLD, 600), (30, OLD, 613), (90, 40, 1438)):
        read(buffer, seconds, started, float(value), with_histogram=True)
    window = window_of(tmp_path, buffer.rows())
    [grown] = latency.histogram_increases(window, [TTFT], time_range=window.extent)
    assert (grown.count, grown.total) == (1451.0, 6.5 + 719.0)


def test_a_restart_is_reported_once_with_its_start(tmp_path):
    buffer = RowBuffer()
    for seconds, started, value in ((0, OLD, 600), (30, OLD, 613), (90, 40, 1438), (120, 40, 9999)):
        read(buffer, seconds, started, float(value), with_histogram=True)
    window = window_of(tmp_path, buffer.rows())
    found = scrapes.restarts(window, time_range=window.extent)
    assert found == [scrapes.Restart("vllm", at(30), at(90), at(40))]


def test_a_jittering_process_start_is_not_reported_as_a_restart(tmp_path):
    buffer = RowBuffer()
    for i in range(20):
        read(buffer, 2 * i, OLD + 0.01 * (i % 3), 10.0 * i)
    result = answer(window_of(tmp_path, buffer.rows()))
    assert {
        finding["severity"] for finding in result["quality"] if finding["check"] == "restart"
    } == (set())


@pytest.mark.parametrize(
    ("fallen", "expected"),
    [
        pytest.param(0, 1469 - 600, id="nothing fell: no sign of a restart"),
        pytest.param(1, 1469 - 600, id="one counter that falls alone is its own matter"),
        pytest.param(2, 13 + 1469, id="two that fall at once are a new process, for all"),
    ],
)
def test_a_server_without_a_start_time(tmp_path, fallen, expected):
    buffer = RowBuffer()
    for i, value in enumerate((600.0, 613.0, 1438.0, 1469.0)):
        read(buffer, 30 * i, None, value)
        for number, name in enumerate(("vllm:prompt_tokens_total", "vllm:num_preemptions_total")):
            key = SeriesKey(name, "counter", "vllm", "0", "m")
            other = 50.0 + i if i < 2 or number >= fallen else 1.0 + i
            ts_us = round((T0 + 30 * i) * 1e6)
            buffer.sample(buffer.series(key, exposed=name), ts_us, other)
    assert increase(window_of(tmp_path, buffer.rows())) == expected


def test_two_processes_in_turn_under_one_address_are_a_quality_error(tmp_path):
    buffer = RowBuffer()
    for i in range(20):
        started, value = ((OLD, 1000.0), (OLD + 500, 800.0))[i % 2]
        read(buffer, 2 * i, started, value + i)
    result = answer(window_of(tmp_path, buffer.rows()))
    [shared] = [f for f in result["quality"] if "several processes" in f["effect"]]
    assert (shared["check"], shared["severity"]) == ("restart", "error")


def test_two_processes_without_start_times_are_an_error_if_counters_keep_falling(tmp_path):
    buffer = RowBuffer()
    for i in range(20):
        read(buffer, 2 * i, None, (1000.0, 800.0)[i % 2] + i)
    result = answer(window_of(tmp_path, buffer.rows()))
    [restart] = [f for f in result["quality"] if f["check"] == "restart"]
    assert (restart["severity"], restart["count"]) == ("error", 10)


@pytest.mark.parametrize(
    ("started_b", "count_b", "expected"),
    [
        pytest.param(OLD, lambda t: 10.0 * t, 1, id="one process under two names"),
        pytest.param(OLD, lambda t: 10.0 * t - 60, 0, id="started at once, another count"),
        pytest.param(OLD + 0.01, lambda t: 10.0 * t, 0, id="another start"),
    ],
)
def test_one_process_under_two_names_is_an_error(tmp_path, started_b, count_b, expected):
    buffer = RowBuffer()
    for i in range(20):
        read(buffer, 10 * i, OLD, 100.0 * i, instance="10.0.0.1:8000")
        read(buffer, 10 * i + 4, started_b, count_b(10 * i + 4), instance="llm.example")
    result = answer(window_of(tmp_path, buffer.rows()))
    assert sum("are one process" in f["effect"] for f in result["quality"]) == expected


def test_a_start_before_the_last_scrape_is_a_warning(tmp_path):
    buffer = RowBuffer()
    for i in range(20):
        read(buffer, 2 * i, OLD if i < 10 else OLD - 500, 100.0 + i)
    window = window_of(tmp_path, buffer.rows())
    [doubt] = [f for f in answer(window)["quality"] if f["check"] == "restart"]
    assert (doubt["severity"], increase(window)) == ("warning", 19.0)
    assert "before its last scrape" in doubt["effect"]


def two_pods(first_b, started_b, *, tells=True):
    """Pod a all the time, pod b from its first scrape on; a counts 10, b 5 every 10 s."""
    buffer = RowBuffer()
    for i in range(30):
        read(buffer, 10 * i, OLD if tells else None, 1000.0 + 10 * i, instance="a")
        if 10 * i >= first_b:
            value = (10 * i - started_b) / 2
            read(buffer, 10 * i, started_b if tells else None, value, instance="b")
    return buffer.rows()


@pytest.mark.parametrize(
    ("started_b", "expected"),
    [
        pytest.param(93.0, 290.0 + 98.5, id="started in the capture: from 0"),
        pytest.param(-500.0, 290.0 + 95.0, id="older than the capture: from its first value"),
    ],
)
def test_a_pod_that_starts_later(tmp_path, started_b, expected):
    window = window_of(tmp_path, two_pods(100, started_b))
    assert increase(window) == expected


def test_the_quality_report_says_how_a_pod_started_in_the_capture_was_counted(tmp_path):
    result = answer(window_of(tmp_path, two_pods(100, 93.0)))
    effects = " ".join(f["effect"] for f in result["quality"])
    assert "a process that started in it: counted from 0" in effects


def test_a_pod_without_a_start_time_is_a_warning_with_a_bound(tmp_path):
    result = answer(window_of(tmp_path, two_pods(100, 3.0, tells=False)))
    [doubt] = [f for f in result["quality"] if "nothing shows that it started" in f["effect"]]
    assert doubt["severity"] == "warning"
    assert result["tokens"]["generation"] == 290 + 95
    assert result["tokens"]["lost"]["high"] == doubt["max_effect"]["tokens"] == 49


def carried(begin, *scraped, labelled=()):
    """Rows of which a start was asked for; `labelled` is a child that came and went."""
    buffer = RowBuffer()
    for seconds, started, value in scraped:
        read(buffer, seconds, started, float(value))
    for seconds, value in labelled:
        ts_us = round((T0 + seconds) * 1e6)
        key = SeriesKey(METRIC, "counter", "vllm", "0", "m", (("status", "4xx"),))
        buffer.sample(buffer.series(key, exposed=METRIC), ts_us, float(value))
    rows = buffer.rows()
    return Rows(rows.series, rows.samples, rows.histograms, rows.ingest_notes, at(begin))


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        pytest.param(
            carried(0, (-2, -700, 5000), (0, -700, 5010), (2, -700, 5030)), 30, id="only a base"
        ),
        pytest.param(
            carried(0, (-2, -700, 50), (0, -700, 60), (2, -700, 65), labelled=[(-850, 7), (2, 9)]),
            15 + 9,
            id="a child of the process that ended is no base for the new one",
        ),
        pytest.param(
            carried(0, (-2, -700, 50), (0, -700, 60), labelled=[(0, 3)]),
            10 + 3,
            id="a child that the last scrape of its process did not have",
        ),
        pytest.param(
            carried(0, (-300, -9000, 50), (5, -60, 700), (7, -60, 710), labelled=[(5, 3)]),
            710,
            id="a child of a process that began before the start, unseen until it",
        ),
        pytest.param(
            carried(0, (-300, -9000, 50), (5, 2, 700), (7, 2, 710), labelled=[(5, 3)]),
            710 + 3,
            id="a child of a process that began in the capture",
        ),
    ],
)
def test_what_was_carried_in_is_a_base_of_its_own_process(tmp_path, rows, expected):
    note = {"start": at(0).isoformat(), "end": at(60).isoformat()}
    window = window_of(tmp_path, rows, note)
    assert increase(window) == expected
    assert window.extent.start == at(0)


def test_settling_again_changes_nothing():
    rows = settle(
        carried(0, (-2, -700, 50), (0, -700, 60), (30, 20, 90), labelled=[(-850, 7), (2, 9)])
    )
    again = settle(
        Rows(
            rows.series,
            rows.samples.drop("run").with_columns(alias_priority=0, arrival=pl.lit(0, pl.Int64)),
            rows.histograms.drop("run").with_columns(alias_priority=0, arrival=pl.lit(0, pl.Int64)),
            rows.ingest_notes,
            rows.begin,
        )
    )
    assert again.samples.equals(rows.samples)
    assert again.series.equals(rows.series)
