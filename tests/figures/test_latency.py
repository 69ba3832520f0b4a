"""Histograms of a part: what they grew by, merged over engines, and sums that cannot be right."""

import math

import numpy as np
import pytest

from tests.figures.small_windows import histogram, small_window, time_range
from vllm_capacity.facts.metrics import E2E, TTFT
from vllm_capacity.figures.latency import (
    Distribution,
    Increase,
    Quantile,
    SeriesSteps,
    histogram_increases,
    latency,
    merged,
    quantiles,
    sound_total,
)

# One finite bound; restarts between 20 and 30 s.
STATES = {0: ([2, 0], 1.0), 10: ([3, 1], 4.0), 20: ([5, 1], 5.0), 30: ([0, 2], 6.0)}


@pytest.fixture(scope="module")
def window(tmp_path_factory):
    folder = tmp_path_factory.mktemp("latency")
    return small_window(folder, histogram(TTFT, (1.0,), STATES))


@pytest.mark.parametrize(
    ("start", "end", "counts", "total"),
    [
        pytest.param(0, 25, (3, 1), 4, id="from the first state on"),
        pytest.param(5, 25, (3, 1), 4, id="the base lies before the part"),
        pytest.param(15, 25, (2, 0), 1, id="a later part"),
        pytest.param(15, 40, (2, 2), 1 + 6, id="over the restart: all of the new process"),
        pytest.param(25, 40, (0, 2), 6, id="after it"),
    ],
)
def test_increase_of_a_part(window, start, end, counts, total):
    [found] = histogram_increases(window, [TTFT], time_range=time_range(start, end))
    assert (found.counts, found.total) == (counts, total)


def test_increase_of_each_step(window):
    found = histogram_increases(window, [TTFT], time_range=time_range(0, 40), step_seconds=20)
    assert [(i.step, i.counts) for i in found] == [(0, (1, 1)), (1, (2, 2))]


def grown(counts, total, edges=(1.0, 2.0)):
    return Increase(TTFT, "a", "0", 0, edges, tuple(counts), total)


@pytest.mark.parametrize(
    ("increases", "expected"),
    [
        pytest.param(
            [grown([1, 2, 3], 9), grown([4, 0, 0], 2)],
            Distribution((1, 2), (5, 2, 3), 11),
            id="bucket by bucket",
        ),
        pytest.param(
            [grown([1, 2, 3], 9), grown([4, 1], 2, edges=(2.0,))],
            Distribution((2,), (7, 4), 11),
            id="on the edges that both have",
        ),
        pytest.param(
            [grown([1, 0, 0], 1), grown([0, 0, 0], 0, edges=(5.0, 7.0))],
            Distribution((1, 2), (1, 0, 0), 1),
            id="one that observed nothing does not take edges away",
        ),
        pytest.param([grown([0, 0, 0], 0)], None, id="nothing observed"),
        pytest.param([], None, id="no histogram"),
        pytest.param(
            [grown([1, 0, 0], 1), grown([1, 0], 1, edges=(5.0,))], None, id="no edge in common"
        ),
    ],
)
def test_merging(increases, expected):
    assert merged(increases) == expected


@pytest.mark.parametrize(
    ("counts", "total", "expected"),
    [
        pytest.param([4, 0, 0], 2, 0.5, id="sum over count"),
        pytest.param([4, 0, 0], 5, math.nan, id="above what the buckets allow"),
        pytest.param([0, 4, 0], 3, math.nan, id="below what the buckets allow"),
        pytest.param([0, 4, 0], 4, 1, id="all at the lower edge"),
        pytest.param([0, 0, 1], 900, 900, id="the overflow bucket has no upper edge"),
        pytest.param([0, 0, 0], 0, math.nan, id="nothing observed has no mean"),
    ],
)
def test_mean_of_a_sum_that_can_be_right(counts, total, expected):
    one = grown(counts, total)
    steps = SeriesSteps(
        one.metric,
        one.instance,
        one.engine,
        one.edges,
        np.array([0]),
        np.array([one.counts], float),
        np.array([one.total], float),
    )
    np.testing.assert_array_equal(steps.mean_seconds(), [expected])


@pytest.mark.parametrize(
    ("increases", "expected"),
    [
        pytest.param([grown([2, 0, 0], 1), grown([0, 2, 0], 3)], 4, id="added up"),
        pytest.param([grown([2, 0, 0], 21)], None, id="more than the part's length each"),
        pytest.param([grown([2, 0, 0], -1)], None, id="below 0"),
        pytest.param([grown([0, 0, 0], 0)], 0, id="nothing observed is 0 seconds"),
        pytest.param([], None, id="no histogram"),
    ],
)
def test_total_that_can_be_right(increases, expected):
    assert sound_total(increases, time_range(0, 10)) == expected


def test_the_overflow_bucket_bounds_a_quantile_on_one_side_only():
    p50 = quantiles(Distribution((1.0,), (1, 9), None)).p50
    assert (p50.value, p50.lower, p50.upper) == (None, 1, None)


def test_a_latency_that_was_not_observed_is_unknown(window):
    found = latency(histogram_increases(window, [TTFT, E2E], time_range=time_range(0, 40)))
    assert found.ttft.p50.value is not None
    assert found.e2e.p50 == Quantile()
