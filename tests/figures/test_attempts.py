"""Attempts in stretches give the same as a row per attempt, however they are cut."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from vllm_capacity.figures import scrapes
from vllm_capacity.figures.attempts import Attempts, packed
from vllm_capacity.figures.scrapes import GAP_FACTOR, long_steps
from vllm_capacity.timerange import TimeRange

T0 = datetime(2026, 11, 1, tzinfo=UTC)
_SCHEMA = {"instance": pl.String, "ts": pl.Datetime("us", "UTC"), "is_good": pl.Boolean}


def rows(**targets):
    """Attempts by target: pairs of seconds and whether they were answered."""
    made = [
        (name, T0 + timedelta(seconds=seconds), good)
        for name, own in sorted(targets.items())
        for seconds, good in own
    ]
    return pl.DataFrame(made, schema=_SCHEMA, orient="row")


@st.composite
def scraped(draw):
    """Six targets on uneven grids with gaps, silences of hours and failed attempts."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    targets = {}
    for name in "abcdef":
        count = int(rng.integers(1, 90))
        steps = rng.choice([2.0, 2.0, 2.0, 15.0], count) * rng.uniform(0.9, 1.1, count)
        steps[rng.random(count) < 0.08] *= rng.choice([1.4, 1.6, 2.4, 2.6, 40.0, 3000.0])
        times = np.round(np.cumsum(steps), 6)
        good = rng.random(count) > rng.choice([0.0, 0.05, 0.4])
        targets[name] = list(zip(times.tolist(), good.tolist(), strict=True))
    cuts = sorted(rng.uniform(0, 600, int(rng.integers(0, 9))).tolist())
    return rows(**targets), [T0 + timedelta(seconds=each) for each in cuts]


def cut(attempts, borders):
    """The attempts as summaries of pieces of time, put together."""
    ends = [T0, *borders, T0 + timedelta(days=365)]
    pieces = [
        attempts.filter(pl.col("ts").is_between(start, end, closed="left"))
        for start, end in pairwise(ends)
    ]
    found = pl.concat([packed(piece) for piece in pieces])
    return Attempts.put_together(found.drop("steps"), lambda: found["steps"])


@given(scraped(), st.lists(st.floats(-100, 9000), max_size=12))
@settings(max_examples=25)
def test_attempts_beside_borders_are_the_last_before_and_the_first_after(made, seconds):
    attempts, borders = made
    at = sorted(T0 + timedelta(seconds=each) for each in (*seconds, *seconds[:1]))
    at += attempts["ts"].to_list()[-1:]  # an attempt on a border comes after it
    at.sort()
    expected = set()
    for name in attempts["instance"].unique():
        times = attempts.filter(instance=name)["ts"].to_list()
        for border in at:
            expected |= {(name, each) for each in [t for t in times if t < border][-1:]}
            expected |= {(name, each) for each in [t for t in times if t >= border][:1]}
    found = cut(attempts, borders).beside(at)
    assert found.rows() == sorted(expected)
    assert Attempts.of(attempts).beside(at).equals(found)


@given(scraped(), st.sampled_from([3.0, 20.0, 600.0, 9000.0]))
@settings(max_examples=25)
def test_silences_are_the_long_times_between_good_attempts(made, seconds):
    attempts, borders = made
    expected = []
    for name in sorted(attempts["instance"].unique()):
        times = attempts.filter(pl.col("is_good"), instance=name)["ts"].to_list()
        expected += [
            (name, *pair)
            for pair in pairwise(times)
            if pair[1] - pair[0] > timedelta(seconds=seconds)
        ]
    for found in (cut(attempts, borders), Attempts.of(attempts)):
        assert found.silences(seconds).rows() == expected


def test_nothing_scraped_has_neither_neighbors_nor_silences():
    none = Attempts.of(rows())
    assert none.beside([T0]).schema == {"instance": pl.String, "ts": pl.Datetime("us", "UTC")}
    assert none.beside([T0]).is_empty()
    assert none.silences(1.0).columns == ["instance", "start", "end"]


def row_gaps(attempts, time_range):
    found = []
    for (instance,), own in attempts.filter("is_good").group_by("instance", maintain_order=True):
        ts = own["ts"]
        if ts.len() < 3:
            continue
        steps = ts.diff().dt.total_microseconds().to_numpy()[1:] / 1e6
        found += [
            (instance, ts[int(i)], ts[int(i) + 1], float(usual))
            for i, usual in zip(*long_steps(steps, GAP_FACTOR), strict=True)
            if steps[i] > GAP_FACTOR * usual
            and ts[int(i) + 1] >= time_range.start
            and ts[int(i)] < time_range.end
        ]
    return found


def row_missed(ts):
    if ts.len() < 3:
        return 0
    steps = ts.diff().dt.total_microseconds().to_numpy()[1:] / 1e6
    long, usual = long_steps(steps, 1.5)
    long, usual = long[usual > 0], usual[usual > 0]
    return int(np.maximum(0, np.round(steps[long] / usual) - 1).sum())


def whole(attempts):
    return TimeRange(attempts["ts"].min(), attempts["ts"].max() + timedelta(seconds=1))


@given(made=scraped())
@settings(max_examples=50, deadline=None)
def test_gaps_are_those_of_rows(made):
    attempts, borders = made
    found = scrapes.gaps(cut(attempts, borders), time_range=whole(attempts))
    expected = row_gaps(attempts, whole(attempts))
    assert [(g.instance, g.start, g.end, g.interval_seconds) for g in found] == expected


@given(made=scraped())
@settings(max_examples=50, deadline=None)
def test_counts_are_those_of_rows(made):
    attempts, borders = made
    since = attempts["ts"].sort()[attempts.height // 3]
    time_range = TimeRange(since, whole(attempts).end)
    found = scrapes.scrape_counts(cut(attempts, borders), time_range=time_range)
    expected = []
    for (name,), own in attempts.filter(pl.col("ts") >= since).group_by(
        "instance", maintain_order=True
    ):
        median = scrapes.median_seconds(own["ts"])
        counts = own.height, int(own["is_good"].sum()), row_missed(own["ts"])
        expected.append((name, *counts, median))
    assert [(c.instance, c.attempts, c.good, c.missed, c.median_seconds) for c in found] == expected


@given(made=scraped())
@settings(max_examples=35, deadline=None)
def test_rows_come_back_whole_and_cut(made):
    attempts, borders = made
    start, end = attempts["ts"].sort()[attempts.height // 4], whole(attempts).end
    middle = start + (end - start) / 2
    found = cut(attempts, borders)
    assert_frame_equal(found.rows(), attempts)
    inside = attempts.filter((pl.col("ts") >= start) & (pl.col("ts") < middle))
    assert_frame_equal(found.since(start).before(middle).rows(), inside)


@given(made=scraped())
@settings(max_examples=35, deadline=None)
def test_bounds_of_steps_hold_their_quantiles(made):
    attempts, borders = made
    for own in cut(attempts, borders).targets.values():
        steps = own.step_seconds()
        if steps.is_empty():
            assert own.most_steps() is None
            continue
        low, high = own.most_steps()
        found = [steps.quantile(q) for q in (0.05, 0.5, 0.95)]
        assert low <= min(found)
        assert max(found) <= high
        assert own.extreme_steps() == (
            pytest.approx(steps.min()),
            pytest.approx(steps.max()),
        )


def test_nothing_of_an_even_grid_is_unpacked():
    """A month of a target scraped evenly is described by its stretches alone."""
    grid = rows(a=[(2.0 * number, True) for number in range(4000)])
    found = packed(grid)

    def read_steps():
        raise AssertionError("its steps were read")

    attempts = Attempts.put_together(found.drop("steps"), read_steps)
    assert scrapes.gaps(attempts, time_range=whole(grid)) == []
    assert scrapes.missed(attempts.targets["a"]) == 0


def test_silence_longer_than_an_hour_ends_a_stretch():
    found = packed(rows(a=[(0.0, True), (2.0, True), (8000.0, False), (8002.0, True)]))
    assert found.select("tried", "good", "shortest", "longest").rows() == [
        (2, 2, 2_000_000, 2_000_000),
        (2, 1, 2_000_000, 2_000_000),
    ]
