"""Results from sorted rows equal those of the queries, to the last bit."""

import random
from datetime import timedelta

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from tests.figures.small_windows import at, small_window
from tests.figures.test_by_hour import a_server
from vllm_capacity.facts.metrics import E2E, ITL, TTFT
from vllm_capacity.figures import gauges, traffic
from vllm_capacity.figures.pieces import stored
from vllm_capacity.figures.sorted_rows import SortedRows, SortedWindow
from vllm_capacity.telemetry.memory import database
from vllm_capacity.telemetry.window import Window, open_window

CASES = (*range(4), "vllm-sweep", "vllm-restart", "vllm-two-replicas")
TABLES = ("samples", "histograms")


@pytest.fixture(scope="module", params=CASES, ids=str)
def windows(request, examples, tmp_path_factory):
    """A window that is asked by SQL, and one whose rows lie sorted; a third of these are a base."""
    if isinstance(request.param, str):
        window = open_window(examples / request.param)
    else:
        rng = random.Random(request.param)
        lines = [line for name in "ab" for line in a_server(rng, name, every=60)]
        window = small_window(tmp_path_factory.mktemp("made"), *lines)
    series = window.sql("select * from series").with_columns(
        starts_at_zero=pl.col("kind") == "counter"
    )
    rows = {name: window.sql(f"select * from {name} order by series_id, ts") for name in TABLES}
    asked = database()
    with asked.cursor() as cursor:
        for name, frame in {**rows, "series": series}.items():
            stored(cursor, name, frame)
    border = window.extent.start + window.extent.seconds / 3 * timedelta(seconds=1)
    own = {name: getattr(window, name) for name in ("manifest", "database", "pin")}
    kept = {
        name: SortedRows(frame.filter(pl.col("ts") < border), frame.filter(pl.col("ts") >= border))
        for name, frame in rows.items()
    }
    plain = Window(**{**own, "database": asked})
    return plain, SortedWindow(**own, series=series, **kept), border


def both(windows, query, **params):
    return [window.shipped_sql("figures", query, params) for window in windows[:2]]


def within(windows, *, metrics):
    border = windows[2]
    return {"metrics": list(metrics), "start": border, "end": border + timedelta(days=1)}


def test_increases_from_scrape_to_scrape(windows):
    params = within(windows, metrics=traffic.STEP_COUNTERS)
    asked, found = both(windows, "scrape_increases", **params)
    assert_frame_equal(found, asked, check_exact=True)
    assert found.height > 100


def test_samples_of_gauges(windows):
    asked, found = both(windows, "gauge_samples", **within(windows, metrics=gauges.GAUGES))
    assert_frame_equal(found, asked, check_exact=True)
    assert found.height > 100


@pytest.mark.parametrize(("step_us", "last_step"), [(60_000_000, 9), (10**15, 0)])
def test_states_of_histograms(windows, step_us, last_step):
    params = within(windows, metrics=(TTFT, ITL, E2E))
    steps = {"step_us": step_us, "last_step": last_step}
    asked, found = both(windows, "histogram_states", **params, **steps)
    assert_frame_equal(found, asked, check_exact=True)
    assert set(found["step"]) >= {-1, 0}


@pytest.mark.parametrize("least", [5, 100, 10_000])
def test_fastest_means(windows, least):
    for metric in (TTFT, ITL, E2E):
        asked, found = both(windows, "fastest_means", metrics=[metric], least=least)
        assert_frame_equal(found, asked, check_exact=True)


def test_when_counters_started_again(windows):
    asked, found = both(windows, "run_starts")
    assert_frame_equal(found, asked, check_exact=True)


def test_no_rows_have_no_answer():
    window = open_window("vllm-sweep")
    own = {name: getattr(window, name) for name in ("manifest", "database", "pin")}
    series = window.sql("select * from series")
    empty = {
        name: SortedRows(*2 * [window.sql(f"select * from {name} where false")]) for name in TABLES
    }
    nothing = SortedWindow(**own, series=series, **empty)
    params = {"metrics": [*traffic.STEP_COUNTERS, *gauges.GAUGES, TTFT]}
    part = {**params, "start": at(0), "end": at(60)}
    steps = {**part, "step_us": 10**6, "last_step": 5}
    least = {**params, "least": 5}
    for name, asked in (
        ("scrape_increases", part),
        ("gauge_samples", part),
        ("histogram_states", steps),
        ("fastest_means", least),
        ("run_starts", {}),
    ):
        assert nothing.shipped_sql("figures", name, asked).is_empty(), name
