"""An impossible value is left out and reported: figures come from the other scrapes."""

import math

import polars as pl
import pytest

from tests.answering import answer
from tests.sources.test_processes_every_way import TOKENS, WAYS, Scrape, increase, windows_of
from vllm_capacity.telemetry.rows import RowBuffer, SeriesKey
from vllm_capacity.telemetry.settling import settle
from vllm_capacity.telemetry.store import write_window
from vllm_capacity.telemetry.window import open_window

T0_US = 1_795_492_800_000_000
TTFT = "vllm:time_to_first_token_seconds"
LARGEST = 1.7976931348623157e308


def counted(values, *, kind="counter"):
    """A series and one that is always there, one value per second; None if not scraped."""
    buffer = RowBuffer()
    key = SeriesKey(TOKENS, kind, "a:1", "0", "m")
    other = SeriesKey("vllm:num_requests_running", "gauge", "a:1", "0", "m")
    for second, value in enumerate(values):
        ts_us = T0_US + 1_000_000 * second
        buffer.scrape("a:1", ts_us, is_up=True, seconds=0.01)
        buffer.sample(buffer.series(other, exposed=other.metric), ts_us, 1.0)
        if value is not None:
            buffer.sample(buffer.series(key, exposed=TOKENS), ts_us, value)
    return buffer.rows()


def kept(rows):
    """The values of the series that are left, and how many were reported as left out."""
    settled = settle(rows)
    own = settled.series.filter(pl.col("metric") == TOKENS)
    left = settled.samples.join(own, on="series_id")["value"].to_list()
    notes = settled.ingest_notes.filter(check="coverage", subject=TOKENS)
    return left, int(notes["count"].sum())


@pytest.mark.parametrize(
    ("values", "left"),
    [
        pytest.param([0.0, LARGEST, 0.0], [0.0, 0.0], id="the largest float"),
        pytest.param([5.0, 2.0**63, 7.0], [5.0, 7.0], id="2^63"),
        pytest.param([5.0, -3.0, 7.0], [5.0, 7.0], id="below 0"),
        pytest.param([5.0, 2.0**62, 7.0], [5.0, 2.0**62, 7.0], id="2^62 may be"),
    ],
)
def test_an_impossible_counter_value_is_left_out_and_reported(values, left):
    assert kept(counted(values)) == (left, len(values) - len(left))


def test_a_gauge_may_be_negative_but_not_infinite():
    assert kept(counted([-3.0, -LARGEST, 4.0], kind="gauge")) == ([-3.0, 4.0], 1)


@pytest.mark.parametrize("bad", [LARGEST, -LARGEST, -1.0])
def test_a_series_that_began_with_such_a_value_does_not_count_from_0(tmp_path, bad):
    rows = counted([None, bad, 900.0, 907.0])
    assert increase(open_window(write_window(tmp_path / "w", rows, {})), TOKENS) == 7.0


@pytest.mark.parametrize(
    ("total", "first", "left"),
    [
        pytest.param(2.0, 3.0, 3, id="a usual state"),
        pytest.param(math.nan, 3.0, 3, id="a missing sum"),
        pytest.param(LARGEST, 3.0, 2, id="an endless sum"),
        pytest.param(2.0, math.inf, 2, id="an endless bucket"),
        pytest.param(2.0, -1.0, 2, id="a bucket below 0"),
    ],
)
def test_a_histogram_that_nothing_observes_is_left_out(total, first, left):
    buffer = RowBuffer()
    key = SeriesKey(TTFT, "histogram", "a:1", "0", "m", bounds=(1.0,))
    for second, (own, count) in enumerate([(1.0, 2.0), (total, first), (3.0, 4.0)]):
        buffer.histogram(
            buffer.series(key, exposed=TTFT),
            T0_US + 1_000_000 * second,
            count=count,
            total=own,
            counts=[count, 0.0],
        )
    settled = settle(buffer.rows())
    assert settled.histograms.height == left
    assert int(settled.ingest_notes["count"].sum()) == 3 - left


BROKEN = [Scrape(s, -9000, LARGEST if s == 300 else 1000 + s) for s in range(0, 600, 30)]


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    return windows_of(BROKEN, tmp_path_factory.mktemp("broken"))


@pytest.mark.parametrize("way", WAYS)
def test_whatever_way_it_comes_in_one_such_value_moves_no_count(broken, way):
    window = broken[way]
    assert increase(window, TOKENS) == 570.0
    notes = [f for f in answer(window)["quality"] if "impossible values" in f["effect"]]
    assert [(f["check"], f["severity"], f["count"]) for f in notes] == [("coverage", "warning", 1)]
