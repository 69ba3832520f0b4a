"""Gauges: means weighted by how long a value held, sums over engines, ratios never summed."""

import polars as pl
import pytest

from tests.figures.small_windows import (
    at,
    attempts,
    gauge,
    seconds_of,
    small_window,
    time_range,
)
from vllm_capacity.facts.metrics import RUNNING, WAITING
from vllm_capacity.figures.gauges import Gauge, gauge_of, gauge_samples, gauges, held, summed


def samples(*rows):
    """Samples of running requests: (instance, engine, second, value)."""
    result = [(RUNNING, i, e, "{}", at(s), float(v)) for i, e, s, v in rows]
    schema = {
        **dict.fromkeys(("metric", "instance", "engine", "labels"), pl.String),
        "ts": pl.Datetime("us", "UTC"),
        "value": pl.Float64,
    }
    return pl.DataFrame(result, schema=schema, orient="row")


def over_time(frame):
    return [(seconds_of(ts), value) for ts, value in frame.select("ts", "value").iter_rows()]


@pytest.mark.parametrize(
    ("rows", "attempted", "expected"),
    [
        pytest.param(
            [("a", "0", 0, 1), ("a", "1", 0, 2), ("a", "0", 10, 3), ("a", "1", 10, 4)],
            {"a": [0, 10]},
            [(0, 3), (10, 7)],
            id="engines of one target add up",
        ),
        pytest.param(
            [("a", "0", 0, 1), ("b", "0", 5, 2), ("a", "0", 10, 3)],
            {"a": [0, 10], "b": [5]},
            [(0, 1), (5, 1 + 2), (10, 3 + 2)],
            id="between its scrapes the newest sample of a target counts",
        ),
        pytest.param(
            [("a", "0", 0, 1), ("b", "0", 0, 2), ("a", "0", 10, 3), ("a", "0", 20, 4)],
            {"a": [0, 10, 20], "b": [0, -10, -20]},
            [(0, 3), (10, 3), (20, 4)],
            id="a target that failed since does not",
        ),
        pytest.param(
            [
                *(("a", "0", s, 1) for s in (0, 10, 20, 30, 90, 100)),
                *(("b", "0", s, 2) for s in range(0, 110, 10)),
            ],
            {"a": [0, 10, 20, 30, 90, 100], "b": range(0, 110, 10)},
            [(s, 2 if 55 <= s < 90 else 3) for s in range(0, 110, 10)],
            id="within a gap a value holds for 2.5 intervals",
        ),
        pytest.param([], {"a": [0]}, [], id="not observed"),
    ],
)
def test_sum_over_engines(rows, attempted, expected):
    assert over_time(summed(samples(*rows), attempts(**attempted), RUNNING)) == expected


@pytest.mark.parametrize(
    ("values", "holds", "expected"),
    [
        pytest.param([1, 4], [10, 10], Gauge(2.5, 4), id="held alike: the plain mean"),
        pytest.param([1, 4], [10, 5], Gauge((10 + 20) / 15, 4), id="weighted by its time"),
        pytest.param([2, 4], [0, 0], Gauge(3, 4), id="no time at all: the plain mean"),
        pytest.param([], [], Gauge(None, None), id="not observed is not 0"),
        pytest.param([0, 0], [1, 1], Gauge(0, 0), id="observed to be 0"),
    ],
)
def test_mean_and_maximum(values, holds, expected):
    columns = {"value": values, "hold_seconds": holds}
    schema = dict.fromkeys(columns, pl.Float64)
    assert gauge_of(pl.DataFrame(columns, schema=schema)) == expected


def test_ratios_are_pooled_over_engines_not_summed():
    rows = [("a", engine, s, v) for engine, v in (("0", 0.2), ("1", 0.8)) for s in (0, 10, 20)]
    assert gauge_of(held(samples(*rows), RUNNING)) == Gauge(pytest.approx(0.5), 0.8)


def test_a_longer_interval_does_not_bend_the_mean(tmp_path):
    """1 running for 100 s, scraped every 10 s; then 3 for 200 s, scraped every 20 s."""
    times = [*range(0, 100, 10), *range(100, 320, 20)]
    window = small_window(tmp_path, gauge(RUNNING, {s: 1 if s < 100 else 3 for s in times}))
    found = gauges(window, attempts(a=times), time_range=time_range(0, 400)).running
    last = (10 + 20) / 2  # the last value holds for the median interval
    assert found == Gauge(pytest.approx((100 + 3 * (200 + last)) / (300 + last)), 3)


def test_a_part_has_the_samples_from_its_start_to_before_its_end(tmp_path):
    window = small_window(tmp_path, gauge(RUNNING, {0: 1, 10: 2, 20: 3}), gauge(WAITING, {10: 9}))
    found = gauge_samples(window, [RUNNING], time_range=time_range(10, 20))
    assert over_time(found) == [(10, 2)]


def test_what_no_engine_exports_is_unknown(tmp_path):
    window = small_window(tmp_path, gauge(RUNNING, {0: 1, 10: 1}))
    found = gauges(window, attempts(a=[0, 10]), time_range=time_range(0, 20))
    assert (found.waiting, found.kv_cache_ratio) == (Gauge(None, None),) * 2
