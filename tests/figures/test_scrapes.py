"""Scrape attempts: intervals, gaps, outages, restarts and billed hours, worked out by hand."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.figures.small_windows import (
    T0,
    at,
    attempts,
    counter,
    gauge,
    seconds_of,
    small_window,
    time_range,
    up,
)
from vllm_capacity.facts.metrics import GENERATION_TOKENS
from vllm_capacity.figures import scrapes
from vllm_capacity.figures.attempts import Attempts
from vllm_capacity.figures.scrapes import _is_explained, _last_before, merged

START = "process_start_time_seconds"


def times(*seconds):
    return pl.Series([at(s) for s in seconds], dtype=pl.Datetime("us", "UTC"))


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        pytest.param([10, 10, 40, 10], [(2, 10)], id="a long step is not its own neighbor"),
        pytest.param([5, 9], [(1, 5)], id="of two, each is compared with the other"),
        pytest.param([1, 5, 4, 2], [(1, 2), (2, 2)], id="the median of those around it"),
        pytest.param([7], [], id="one step has nothing to compare with"),
        pytest.param([], [], id="no step"),
    ],
)
def test_steps_that_are_long_against_those_around_them(steps, expected):
    long, usual = scrapes.long_steps(np.array(steps, dtype=float), 1.5)
    assert list(zip(long.tolist(), usual.tolist(), strict=True)) == expected


def test_ten_steps_either_side_are_looked_at():
    steps = np.array([1.0] * 15 + [9.0] * 15)
    long, usual = scrapes.long_steps(steps, 1.5)
    assert list(zip(long.tolist(), usual.tolist(), strict=True)) == [(15, 5)]


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        pytest.param([0, 10, 20, 30], 0, id="an even grid"),
        pytest.param([0, 10, 20, 50, 60], 2, id="30 s where 10 s are usual: two are missing"),
        pytest.param([0, 10, 21, 29, 40], 0, id="jitter is nothing missing"),
        pytest.param([0, 90], 0, id="two attempts are not enough"),
    ],
)
def test_scrape_attempts_expected_on_an_even_grid(seconds, expected):
    assert scrapes.missed(Attempts.of(attempts(a=seconds)).targets["a"]) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        pytest.param([0, 10, 20, 30], [10, 10, 10, 10], id="to the next scrape, the last as usual"),
        pytest.param([0, 10, 20, 90, 100], [10, 10, 25, 10, 10], id="2.5 intervals at most"),
        pytest.param([0, 8], [8, 8], id="two scrapes"),
        pytest.param([5], [1], id="a lone one for a second"),
        pytest.param([], [], id="none"),
    ],
)
def test_how_long_a_value_holds(seconds, expected):
    assert scrapes.hold_seconds(times(*seconds)).to_list() == expected


@pytest.mark.parametrize(
    ("attempted", "whole", "expected"),
    [
        pytest.param([0, 10, 20, 50, 60], (0, 70), [(20, 50, 10)], id="more than 2.5 intervals"),
        pytest.param([0, 10, 20, 45, 55], (0, 70), [], id="2.5 intervals are none"),
        pytest.param([0, 10, 20, -30, -40, 50, 60], (0, 70), [(20, 50, 10)], id="failed attempts"),
        pytest.param([0, 10, 20, 50, 60], (55, 70), [], id="it ended before the part"),
        pytest.param([0, 10, 20, 50, 60], (0, 20), [], id="it begins where the part ends"),
        pytest.param([0, 10, 20, 50, 60], (30, 40), [(20, 50, 10)], id="the part lies inside it"),
        pytest.param([0, 90], (0, 100), [], id="two scrapes give no interval"),
    ],
)
def test_gaps(attempted, whole, expected):
    found = scrapes.gaps(attempts(a=attempted), time_range=time_range(*whole))
    assert [(seconds_of(g.start), seconds_of(g.end), g.interval_seconds) for g in found] == expected


def test_gaps_are_each_targets_own():
    attempted = attempts(a=[0, 10, 20, 50, 60], b=range(0, 70, 10))
    assert [gap.instance for gap in scrapes.gaps(attempted, time_range=time_range(0, 70))] == ["a"]


@pytest.mark.parametrize(
    ("instances", "expected"),
    [
        pytest.param("aab", {"a": [0, 1], "b": [2]}, id="together"),
        pytest.param("baab", {"a": [1, 2], "b": [0, 3]}, id="in turn, all the same"),
        pytest.param("", {}, id="none"),
    ],
)
def test_rows_of_each_target(instances, expected):
    made = pl.concat([attempts(), *(attempts(**{name: [ts]}) for ts, name in enumerate(instances))])
    found = Attempts.of(made).targets
    starts = {name: [seconds_of(ts) for ts in own.rows()["ts"]] for name, own in found.items()}
    assert list(starts.items()) == list(expected.items())


FLEET = pl.DataFrame(
    {"instance": ["a", "a", "b"], "engine": ["0", "1", "0"], "model_name": ["m"] * 3}
)


@pytest.mark.parametrize(
    ("attempted", "start", "expected"),
    [
        pytest.param({"a": [0, 1800, 3600], "b": [1800, 3600]}, 0, [1, 1, 0.5], id="first to last"),
        pytest.param({"a": [0, 1800, -3600]}, 0, [1, 1, 0], id="a failed attempt is paid, too"),
        pytest.param({"a": [0, 1800, 3600]}, 2000, [0.5, 0.5, 0], id="from the attempt before"),
        pytest.param({"a": [1800]}, 0, [0, 0, 0], id="one attempt takes no time"),
    ],
)
def test_billed_hours(attempted, start, expected):
    found = scrapes.billed_hours(FLEET, attempts(**attempted), time_range=time_range(start, 4000))
    assert found.get_column("hours").to_list() == expected


def test_engines_are_those_of_the_targets_tried_in_the_part(tmp_path):
    window = small_window(
        tmp_path,
        *(gauge("vllm:num_requests_running", {0: 1, 10: 1}, engine=e) for e in ("0", "1")),
        gauge("vllm:num_requests_running", {0: 1}, instance="b"),
    )
    found = scrapes.engines(
        window, time_range=time_range(5, 20), attempts=attempts(a=[0, 10], b=[0])
    )
    assert found.rows() == [("a", "0", "m"), ("a", "1", "m")]


def served(tmp_path, values, tried, **others):
    """A window of one counter, and the attempts on its target."""
    lines = [counter(GENERATION_TOKENS, values), up({abs(s): s >= 0 for s in tried})]
    for instance, seconds in others.items():
        lines += [
            counter(GENERATION_TOKENS, {s: s for s in seconds}, instance=instance),
            up(dict.fromkeys(seconds, 1), instance=instance),
        ]
    window = small_window(tmp_path, *lines)
    return window, scrapes.attempts(window, end=at(1000))


@pytest.mark.parametrize(
    ("tried", "others", "expected"),
    [
        pytest.param([0, 10, 20, -30, -40], {}, [(20, 50, 2)], id="failed to the end of the part"),
        pytest.param(
            [0, 10, 20], {"b": range(0, 50, 10)}, [(20, 45, 0)], id="not asked any more, unlike b"
        ),
        pytest.param([0, 10, 20, -30, 40], {}, [], id="it answers again"),
        pytest.param([0, 10, 20, 30], {"b": range(0, 50, 10)}, [], id="only just silent"),
    ],
)
def test_outages(tmp_path, tried, others, expected):
    values = {s: s for s in tried if s >= 0}
    window, attempted = served(tmp_path, values, tried, **others)
    found = scrapes.outages(window, time_range=time_range(0, 50), attempts=attempted)
    result = [(seconds_of(o.last_good), seconds_of(o.end), o.failed) for o in found]
    assert result == expected
    assert {o.median_seconds for o in found} <= {10}


def test_a_target_that_answers_after_the_part_had_only_a_gap(tmp_path):
    tried = [0, 10, 20, -30, -40, 60]
    window, attempted = served(tmp_path, {0: 1, 10: 2, 20: 3, 60: 4}, tried)
    before = attempted.filter(pl.col("ts") < at(50))
    assert scrapes.outages(window, time_range=time_range(0, 50), attempts=before) == []


def test_a_target_that_another_process_answers_for_after_the_part_had_an_outage(tmp_path):
    tried = [0, 10, 20, -30, -40, 60]
    window, attempted = served(tmp_path, {0: 1, 10: 2, 20: 3, 60: 1}, tried)
    before = attempted.filter(pl.col("ts") < at(50))
    [outage] = scrapes.outages(window, time_range=time_range(0, 50), attempts=before)
    assert seconds_of(outage.last_good) == 20


@pytest.mark.parametrize(
    ("began", "expected"),
    [
        pytest.param({}, [(10, 20, None)], id="found by a counter that fell"),
        pytest.param({0: -60, 10: -60, 20: 15, 30: 15}, [(10, 20, 15)], id="found with its start"),
    ],
)
def test_restarts(tmp_path, began, expected):
    epoch = T0.timestamp()
    lines = [counter(GENERATION_TOKENS, {0: 5, 10: 9, 20: 2, 30: 4})]
    if began:
        lines.append(gauge(START, {s: epoch + result for s, result in began.items()}, engine=None))
    found = scrapes.restarts(small_window(tmp_path, *lines))
    result = [(seconds_of(r.before), seconds_of(r.after), seconds_of(r.started)) for r in found]
    assert result == expected


def test_a_restart_belongs_to_the_part_of_its_first_scrape_after(tmp_path):
    window = small_window(tmp_path, counter(GENERATION_TOKENS, {0: 5, 10: 9, 20: 2}))
    found = [
        len(scrapes.restarts(window, time_range=time_range(*p)))
        for p in ((0, 20), (20, 30), (0, 30))
    ]
    assert found == [0, 1, 1]


def test_counters_that_fell_one_after_the_other_fell_by_one_restart(tmp_path):
    window = small_window(
        tmp_path,
        counter(GENERATION_TOKENS, {0: 5, 10: 9, 20: 2}),
        counter("vllm:request_success_total", {0: 5, 5: 6, 20: 1}, finished_reason="stop"),
    )
    [restart] = scrapes.restarts(window)
    assert (seconds_of(restart.before), seconds_of(restart.after)) == (10, 20)


def scraped_by(**jobs):
    """Attempts of several jobs on one target, as the query gives them."""
    frames = [
        attempts(a=times).with_columns(source=pl.lit(job)) for job, times in sorted(jobs.items())
    ]
    return pl.concat(frames).sort("ts", "source")


@pytest.mark.parametrize(
    ("jobs", "expected"),
    [
        pytest.param({"x": [0, 10, 20]}, [0, 10, 20], id="one job"),
        pytest.param(
            {"x": [0, 10, 20, 30], "y": [4, 14, 24]},
            [0, 10, 20, 30],
            id="the one with most answers",
        ),
        pytest.param(
            {"x": [0, 10, -20, 30, 40], "y": [4, 14, 24, 34]},
            [0, 10, 24, 30, 40],
            id="another's where that one had none",
        ),
        pytest.param(
            {"": [0, 4, 10, 14, 20, 24, 30, 34]}, [0, 10, 20, 30], id="two grids without names"
        ),
        pytest.param(
            {"": [0, 9, 20, 29, 40, 49, 60, 69]}, [0, 9, 20, 29, 40, 49, 60, 69], id="jitter"
        ),
    ],
)
def test_one_grid_of_attempts_per_target(jobs, expected):
    found = merged(scraped_by(**jobs)).filter("is_good")
    assert [seconds_of(ts) for ts in found.get_column("ts")] == expected


@pytest.mark.parametrize(
    ("jobs", "expected"),
    [
        pytest.param({"x": [0, 10, -20, 30]}, [20], id="one job"),
        pytest.param({"x": [0, 10, -20, 30], "y": [4, 14, 24, -34]}, [], id="answered another"),
        pytest.param(
            {"x": [0, 10, 20, 30, -40], "y": [-4, -14, -24, -34, -44]}, [40], id="failed both"
        ),
        pytest.param(
            {"x": [0, 10, 20, 30], "y": [44, -54, -64]}, [54, 64], id="a job renamed midway"
        ),
        pytest.param(
            {"x": [0, 10, 20, 30], "y": [44, -54], "z": [-52, -56, -70]},
            [52, 70],
            id="two others failed together",
        ),
    ],
)
def test_a_failure_counts_if_the_job_with_the_most_answers_made_no_attempt(jobs, expected):
    failed = merged(scraped_by(**jobs)).filter(~pl.col("is_good"))
    assert [seconds_of(ts) for ts in failed.get_column("ts")] == expected


@given(
    spans=st.lists(st.tuples(st.integers(0, 40), st.integers(1, 30)), max_size=12),
    instants=st.lists(st.integers(0, 60), min_size=1, max_size=6),
)
@settings(max_examples=200, deadline=None)
def test_counter_falls_and_restarts_are_matched_pairwise(spans, instants):
    """In one pass over both: a window of weeks has thousands of them."""
    falls = [(at(begin), at(begin + length)) for begin, length in spans]
    ordered, afters = sorted(falls), sorted(map(at, instants))
    latest = [max(end for _, end in ordered[: place + 1]) for place in range(len(ordered))]
    for begin, end in falls:
        is_explained = any(begin < after <= end for after in afters)
        assert _is_explained((begin, end), afters) == is_explained
    for since in afters:
        own = [begin for begin, end in falls if begin < since <= end]
        assert _last_before(since, since, ordered, latest) == max(own, default=None)
