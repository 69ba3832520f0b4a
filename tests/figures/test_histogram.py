"""Quantiles, bounds, attainment, fractions and merging of bucketed observations."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_capacity.errors import InputError
from vllm_capacity.figures.histogram import (
    attainment,
    bucket_quantile,
    fraction,
    merge,
    quantile_bounds,
)

EDGES = [1.0, 2.0, 4.0]


@pytest.mark.parametrize(
    ("counts", "q", "expected"),
    [
        pytest.param([0, 10, 0, 0], 0.5, 1.5, id="halfway through one bucket"),
        pytest.param([10, 0, 0, 0], 0.5, 0.5, id="the first bucket begins at 0"),
        pytest.param([0, 0, 0, 0], 0.5, None, id="nothing observed is not zero seconds"),
        pytest.param([1, 1, 1, 9], 0.95, None, id="overflow bucket has no upper edge"),
        pytest.param([5, 0, 5, 0], 0.5, 1.0, id="exactly at an edge"),
        pytest.param([0, 0, 8, 0], 0.0, 2.0, id="the least is where observations begin"),
        pytest.param([0, 0, 8, 0], 1.0, 4.0, id="the most is where they end"),
        pytest.param([0.5, 1.5, 0, 0], 0.5, 1 + 1 / 3, id="counts may be fractional"),
    ],
)
def test_bucket_quantile(counts, q, expected):
    assert bucket_quantile(EDGES, counts, q) == (
        expected if expected is None else pytest.approx(expected)
    )


@pytest.mark.parametrize(
    ("edges", "counts", "q", "expected"),
    [
        pytest.param([-2.0, 1.0], [8, 2, 0], 0.5, -2.0, id="a first bucket below 0 is its edge"),
        pytest.param([], [7], 0.5, None, id="no finite bound"),
        pytest.param([], [0], 0.5, None, id="no bound and no observation"),
    ],
)
def test_bucket_quantile_of_odd_edges(edges, counts, q, expected):
    assert bucket_quantile(edges, counts, q) == expected


@pytest.mark.parametrize(
    ("edges", "counts", "q", "message"),
    [
        pytest.param(EDGES, [1, 1, 1, 1], 1.01, "between 0 and 1, not 1.01", id="q above 1"),
        pytest.param(EDGES, [1, 1, 1, 1], -0.1, "between 0 and 1", id="q below 0"),
        pytest.param(EDGES, [1, 1, 1, 1], math.nan, "between 0 and 1", id="q no number"),
        pytest.param(EDGES, [0, 0, 0, 0], 95, "p95 is 0.95", id="q in percent, nothing observed"),
        pytest.param(EDGES, [1, -1, 1, 1], 0.5, "not negative", id="a negative count"),
        pytest.param(EDGES, [1, math.nan, 1, 1], 0.5, "finite", id="a count that is no number"),
        pytest.param(EDGES, [1, 1, 1], 0.5, "3 edges need 4 counts", id="no overflow bucket"),
        pytest.param([1.0, 1.0], [1, 1, 1], 0.5, "ascend", id="the same edge twice"),
        pytest.param([1.0, math.inf], [1, 1, 1], 0.5, "finite", id="an infinite edge"),
    ],
)
def test_what_is_no_histogram_or_no_quantile_is_refused(edges, counts, q, message):
    for function in (bucket_quantile, quantile_bounds):
        with pytest.raises(InputError, match=message):
            function(edges, counts, q)


@pytest.mark.parametrize(
    ("counts", "q", "expected"),
    [
        pytest.param([0, 10, 0, 0], 0.5, (1.0, 2.0), id="the edges of the bucket"),
        pytest.param([10, 0, 0, 0], 0.5, (0.0, 1.0), id="the first bucket begins at 0"),
        pytest.param([1, 1, 1, 9], 0.95, (4.0, None), id="overflow: above the last edge"),
        pytest.param([0, 0, 0, 0], 0.5, (None, None), id="nothing observed"),
        pytest.param([5, 0, 5, 0], 0.5, (0.0, 1.0), id="at an edge: the bucket below it"),
    ],
)
def test_quantile_bounds(counts, q, expected):
    assert quantile_bounds(EDGES, counts, q) == expected


def test_bounds_without_a_finite_bound_are_unknown():
    assert quantile_bounds([], [7], 0.5) == (None, None)


@pytest.mark.parametrize(
    ("counts", "target", "expected"),
    [
        pytest.param([2, 3, 4, 1], 2.0, (0.5, 0.5), id="exact at an edge"),
        pytest.param([2, 3, 4, 1], 1.5, (0.2, 0.5), id="an interval between edges"),
        pytest.param([2, 3, 4, 1], 0.5, (0.0, 0.2), id="inside the first bucket"),
        pytest.param([2, 3, 4, 1], 0.0, (0.0, 0.2), id="at 0: some may be 0"),
        pytest.param([2, 3, 4, 1], -1.0, (0.0, 0.0), id="below all that can be"),
        pytest.param([2, 3, 4, 1], 4.0, (0.9, 0.9), id="exact at the last edge"),
        pytest.param([2, 3, 4, 1], 9.0, (0.9, 1.0), id="above the last edge"),
        pytest.param([2, 3, 4, 0], 9.0, (1.0, 1.0), id="above the last edge, nothing there"),
        pytest.param([2, 3, 4, 1], math.inf, (1.0, 1.0), id="no target at all"),
        pytest.param([2, 0, 4, 1], 1.5, (2 / 7, 2 / 7), id="an empty bucket is exact"),
        pytest.param([0, 0, 0, 0], 2.0, (None, None), id="nothing observed"),
    ],
)
def test_attainment(counts, target, expected):
    assert attainment(EDGES, counts, target) == pytest.approx(expected)


def test_a_target_that_is_no_number_is_refused():
    with pytest.raises(InputError, match="not NaN"):
        attainment(EDGES, [1, 1, 1, 1], math.nan)


@pytest.mark.parametrize(
    ("edges", "counts", "lower", "upper", "expected"),
    [
        pytest.param(EDGES, [1, 1, 2, 0], 1.0, 3.0, 0.5, id="half a bucket and a whole one"),
        pytest.param(EDGES, [1, 1, 1, 1], 4.0, 9.0, 0.0, id="no share of the overflow bucket"),
        pytest.param(EDGES, [1, 1, 1, 1], 9.0, math.inf, 0.25, id="all of the overflow bucket"),
        pytest.param(EDGES, [1, 1, 1, 1], 2.0, 2.0, 0.0, id="an empty range"),
        pytest.param(EDGES, [1, 1, 1, 1], -math.inf, math.inf, 1.0, id="everything"),
        pytest.param([-1.0, 1.0], [2, 2, 0], -5.0, 1.0, 0.5, id="no lower end below 0"),
        pytest.param(EDGES, [0, 0, 0, 0], 0.0, 1.0, None, id="nothing observed"),
    ],
)
def test_fraction(edges, counts, lower, upper, expected):
    assert fraction(edges, counts, lower, upper) == expected


def test_a_range_without_ends_is_refused():
    with pytest.raises(InputError, match="two numbers"):
        fraction(EDGES, [1, 1, 1, 1], math.nan, 1.0)


@pytest.mark.parametrize(
    ("histograms", "expected"),
    [
        pytest.param([(EDGES, [1, 2, 3, 4])], ((1, 2, 4), (1, 2, 3, 4)), id="one stays as it is"),
        pytest.param(
            [(EDGES, [1, 2, 3, 4]), (EDGES, [1, 1, 1, 1])],
            ((1, 2, 4), (2, 3, 4, 5)),
            id="equal edges add bucket by bucket",
        ),
        pytest.param(
            [(EDGES, [1, 2, 3, 4]), ([2.0, 3.0, 4.0], [5, 1, 1, 1])],
            ((2, 4), (8, 5, 5)),
            id="unequal edges merge on the common ones",
        ),
        pytest.param(
            [(EDGES, [1, 2, 3, 4]), ([2.0], [5, 6])],
            ((2,), (8, 13)),
            id="one common edge leaves two buckets",
        ),
        pytest.param([(EDGES, [1, 2, 3, 4]), ([3.0], [5, 6])], None, id="no common edge"),
        pytest.param([([], [4]), ([], [6])], None, id="no finite edge"),
        pytest.param([], None, id="no histogram"),
    ],
)
def test_merge(histograms, expected):
    assert merge(histograms) == expected


def test_what_is_no_histogram_is_not_merged():
    with pytest.raises(InputError, match="3 edges need 4 counts"):
        merge([(EDGES, [1, 2])])


edge_lists = st.lists(st.integers(1, 12), min_size=1, max_size=8, unique=True).map(sorted)


@given(st.lists(edge_lists, min_size=1, max_size=4), st.data())
def test_merging_keeps_every_count_at_or_under_a_common_edge(all_edges, data):
    histograms = [
        (edges, data.draw(st.lists(st.integers(0, 99), min_size=n, max_size=n)))
        for edges in all_edges
        for n in [len(edges) + 1]
    ]
    merged = merge(histograms)
    common = set(all_edges[0]).intersection(*all_edges[1:])
    if merged is None:
        assert not common
        return
    edges, counts = merged
    assert set(edges) == common
    assert sum(counts) == sum(sum(c) for _, c in histograms)
    for position, edge in enumerate(edges):
        at_or_under = sum(sum(c[: e.index(edge) + 1]) for e, c in histograms)
        assert sum(counts[: position + 1]) == at_or_under
