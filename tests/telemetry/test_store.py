"""Runs, births, duplicates and names are settled when a window is written, whole or not at all."""

import json

import polars as pl
import pytest

from vllm_capacity.errors import NoTelemetryError, WindowError
from vllm_capacity.figures import traffic
from vllm_capacity.telemetry.rows import RowBuffer, SeriesKey
from vllm_capacity.telemetry.settling import settle
from vllm_capacity.telemetry.store import write_window
from vllm_capacity.telemetry.window import open_window

METRIC = "vllm:generation_tokens_total"
SECOND = 1_000_000
T0 = 1_795_492_800 * SECOND


def key(metric=METRIC, kind="counter", **more):
    return SeriesKey(metric, kind, "vllm", "0", "m", **more)


def counted(values, *, up=None, start=0):
    """A buffer with one counter: one value per second, None if the series was not in the scrape."""
    buffer = RowBuffer()
    for second, value in enumerate(values, start=start):
        buffer.scrape("vllm", T0 + second * SECOND, is_up=True, seconds=None)
        other = key("vllm:num_requests_running", "gauge")
        buffer.sample(buffer.series(other, exposed=other.metric), T0 + second * SECOND, 1.0)
        if value is not None:
            buffer.sample(buffer.series(key(), exposed=METRIC), T0 + second * SECOND, value)
    return buffer


def increase(window):
    rows = traffic.counter_increases(window, [METRIC], time_range=window.extent)
    return traffic.total(rows, METRIC)


def written(tmp_path, buffer):
    return open_window(write_window(tmp_path / "w", buffer.rows(), {"source": "test"}))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        pytest.param([5, 7, 9], 4.0, id="counts from its first value"),
        pytest.param([5, 9, 2, 4], 8.0, id="a drop: the new value counts whole"),
        pytest.param([9, 1, 0, 3], 4.0, id="two drops in a row"),
        pytest.param([None, None, 3, 5], 5.0, id="absent at first: counts from 0"),
        pytest.param([4, None, None, 6], 2.0, id="absent for a while"),
        pytest.param([7], 0.0, id="one sample without a base"),
        pytest.param([None, 7], 7.0, id="one sample that an earlier scrape did not have"),
        pytest.param([None, None], None, id="never seen is not 0"),
    ],
)
def test_the_exact_increase(tmp_path, values, expected):
    assert increase(written(tmp_path, counted(values))) == expected


def test_a_process_that_started_inside_the_capture_counts_from_0(tmp_path):
    buffer = RowBuffer()
    buffer.scrape("vllm", T0, is_up=False, seconds=None)
    buffer.scrape("vllm", T0 + 4 * SECOND, is_up=True, seconds=None)
    started = key("process_start_time_seconds", "gauge")
    buffer.sample(buffer.series(started, exposed="p"), T0 + 4 * SECOND, T0 / SECOND + 2)
    buffer.sample(buffer.series(key(), exposed=METRIC), T0 + 4 * SECOND, 6.0)
    assert increase(written(tmp_path, buffer)) == 6.0


def histogram(buffer, second, counts, total=0.0):
    series = key("vllm:time_to_first_token_seconds", "histogram", bounds=(1.0, 2.0))
    buffer.histogram(
        buffer.series(series, exposed=series.metric),
        T0 + second * SECOND,
        count=sum(counts),
        total=total,
        counts=counts,
    )


@pytest.mark.parametrize(
    ("states", "runs"),
    [
        pytest.param([([1, 1, 0], 2), ([2, 1, 0], 3)], [0, 0], id="it only grows"),
        pytest.param([([1, 1, 0], 2), ([0, 1, 0], 1)], [0, 1], id="its count drops"),
        pytest.param([([1, 1, 0], 2), ([0, 3, 0], 5)], [0, 1], id="only a bucket drops"),
        pytest.param([([1, 1, 0], 2), ([1, 1, 0], 1)], [0, 1], id="only its sum drops"),
        pytest.param([([0, 0, 9], 2), ([0, 0, 9], 2)], [0, 0], id="it stands still"),
    ],
)
def test_a_histogram_restarts_where_count_sum_or_any_bucket_drops(states, runs):
    buffer = RowBuffer()
    for second, (counts, total) in enumerate(states):
        histogram(buffer, second, counts, total)
    assert settle(buffer.rows()).histograms["run"].to_list() == runs


def test_the_same_sample_twice_counts_once_and_is_noted():
    buffer = counted([1, 2])
    buffer.sample(key().series_id, T0 + SECOND, 2.0)
    rows = settle(buffer.rows())
    assert rows.samples.filter(pl.col("series_id") == key().series_id).height == 2
    assert rows.ingest_notes.select("check", "subject", "count").rows() == [
        ("duplicate", METRIC, 1)
    ]


def test_another_value_at_the_same_time_is_a_doubt():
    buffer = counted([1, 2])
    buffer.sample(key().series_id, T0 + SECOND, 5.0)
    rows = settle(buffer.rows())
    doubts = [("clock", METRIC, 1), ("untimed", "vllm", 1)]  # 1, 5, 2 would look like a restart
    assert rows.ingest_notes.select("check", "subject", "count").rows() == doubts


def test_the_newest_of_two_names_in_one_scrape_counts():
    buffer = counted([1, 2])
    buffer.sample(key().series_id, T0 + SECOND, 99.0, alias_priority=1)
    rows = settle(buffer.rows())
    own = rows.samples.filter(pl.col("series_id") == key().series_id)
    assert own["value"].to_list() == [1.0, 2.0]
    assert rows.ingest_notes["check"].to_list() == ["renamed"]


def test_runs_and_states_do_not_depend_on_the_order_of_arrival():
    forward = counted([3, 5, 1]).rows()
    backward = type(forward)(
        forward.series,
        forward.samples.reverse(),
        forward.histograms,
        forward.ingest_notes,
    )
    assert settle(forward).samples.equals(settle(backward).samples)


def test_a_window_is_not_written_over(tmp_path):
    written(tmp_path, counted([1, 2]))
    with pytest.raises(WindowError, match="exists already"):
        written(tmp_path, counted([1, 2]))


def test_a_window_is_written_whole_or_not_at_all(tmp_path):
    rows = counted([1, 2]).rows()
    with pytest.raises(TypeError):
        write_window(tmp_path / "w", rows, {"source": object()})  # cannot become JSON
    assert list(tmp_path.iterdir()) == []


def test_nothing_sampled_is_no_window(tmp_path):
    with pytest.raises(NoTelemetryError, match="no samples"):
        write_window(tmp_path / "w", RowBuffer().rows(), {})


def test_provenance_counts_what_is_there(tmp_path):
    window = written(tmp_path, counted([1, 2]))
    note = json.loads((window.path / "window.json").read_text())
    assert note["counts"] == {"series": 3, "samples": 6, "histograms": 0}
    assert (note["grain"], note["source"]) == ("scrape", "test")
