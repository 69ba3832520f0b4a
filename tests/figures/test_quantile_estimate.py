"""Estimated quantiles against the client logs of real captures, and against their bounds."""

import json
import math
from pathlib import Path
from statistics import mean

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_capacity.figures.histogram import (
    _monotone_cubic,
    bucket_quantile,
    distribution,
    quantile_bounds,
    quantile_estimate,
)

TRUTH = json.loads((Path(__file__).parent / "quantile_truth.json").read_text())
EDGES = TRUTH["edges"]
TTFT = "vllm:time_to_first_token_seconds"


def log_errors(histograms):
    """|log(estimated / true)| of plain interpolation and of the estimate, quantile by quantile."""
    plain, estimated = [], []
    for histogram in histograms:
        edges, counts = EDGES[histogram["metric"]], histogram["counts"]
        for q, exact in histogram["exact"].items():
            value = bucket_quantile(edges, counts, float(q))
            estimate = quantile_estimate(edges, counts, histogram["sum"], float(q))
            plain.append(abs(math.log(value / exact)))
            estimated.append(abs(math.log(estimate / exact)))
    return plain, estimated


@pytest.mark.parametrize("split", ["chosen on", "held out"])
def test_the_estimate_is_much_closer_on_average(split):
    plain, estimated = log_errors(h for h in TRUTH["histograms"] if h["split"] == split)
    assert len(plain) >= 60
    assert mean(estimated) < 0.7 * mean(plain)


@pytest.mark.parametrize("split", ["chosen on", "held out"])
@pytest.mark.parametrize("metric", EDGES)
def test_the_estimate_is_closer_for_every_latency(metric, split):
    plain, estimated = log_errors(
        h for h in TRUTH["histograms"] if h["metric"] == metric and h["split"] == split
    )
    assert mean(estimated) < mean(plain)


def test_the_largest_error_is_smaller_too():
    plain, estimated = log_errors(TRUTH["histograms"])
    assert max(estimated) < 0.7 * max(plain)


def test_the_wide_bucket_of_the_sweep_misleads_less():
    (step,) = (
        h for h in TRUTH["histograms"] if h["capture"] == "sweep 48 at once" and h["metric"] == TTFT
    )
    output = quantile_estimate(EDGES[TTFT], step["counts"], step["sum"], 0.95)
    assert bucket_quantile(EDGES[TTFT], step["counts"], 0.95) == pytest.approx(17.0, abs=0.05)
    assert step["exact"]["0.95"] == pytest.approx(11.8, abs=0.05)
    assert output < 13.0


@pytest.mark.parametrize(
    "histogram", TRUTH["histograms"], ids=lambda h: f"{h['capture']} {h['metric']}"
)
def test_the_estimate_stays_inside_its_bucket(histogram):
    edges, counts = EDGES[histogram["metric"]], histogram["counts"]
    for q in np.linspace(0, 1, 41):
        lower, upper = quantile_bounds(edges, counts, q)
        assert lower <= quantile_estimate(edges, counts, histogram["sum"], q) <= upper


bucket_counts = st.lists(st.integers(0, 10**6), min_size=2, max_size=24)
widths = st.lists(st.floats(1e-3, 100.0), min_size=23, max_size=23)


@settings(max_examples=150, deadline=None)
@given(
    counts=bucket_counts,
    widths=widths,
    first=st.sampled_from([-1.0, 0.0, 0.3]),
    total=st.none() | st.floats(allow_nan=True, allow_infinity=True),
    q=st.floats(0, 1),
)
def test_any_histogram_and_any_sum_leave_the_estimate_inside_its_bucket(
    counts, widths, first, total, q
):
    edges = list(first + np.concatenate(([0.0], np.cumsum(widths))))[: len(counts) - 1]
    lower, upper = quantile_bounds(edges, counts, q)
    estimate = quantile_estimate(edges, counts, total, q)
    assert (estimate is None) == (upper is None)
    assert estimate is None or lower <= estimate <= upper


@settings(max_examples=60, deadline=None)
@given(counts=bucket_counts, widths=widths, share=st.floats(0.1, 0.9))
def test_the_distribution_keeps_every_count_and_has_the_known_sum(counts, widths, share):
    edges = np.cumsum(widths)[: len(counts) - 1]
    counts = [*counts[:-1], 0]
    if not sum(counts):
        return
    lowest = float(np.dot(counts[:-1], [0.0, *edges[:-1]]))
    highest = float(np.dot(counts[:-1], edges))
    total = lowest + share * (highest - lowest)
    xs, below = distribution(tuple(edges), tuple(counts), total)
    middles = (xs[1:] + xs[:-1]) / 2
    assert np.dot(np.diff(below), middles) == pytest.approx(total, rel=1e-3)
    assert np.interp(edges, xs, below) == pytest.approx(np.cumsum(counts[:-1]), rel=1e-9)


@pytest.mark.parametrize(
    ("counts", "total", "low", "high"),
    [
        pytest.param([0, 100, 0, 0], 110.0, 1.0, 1.2, id="a small sum pulls it down"),
        pytest.param([0, 100, 0, 0], 190.0, 1.8, 2.0, id="a large sum pushes it up"),
        pytest.param([0, 100, 0, 0], None, 1.4, 1.6, id="no sum: the middle of a lone bucket"),
        pytest.param([0, 100, 0, 0], 2e6, 1.4, 1.6, id="a poisoned sum is ignored"),
        pytest.param([0, 100, 0, 0], -5.0, 1.4, 1.6, id="a negative sum is ignored"),
        pytest.param([0, 100, 0, 0], math.nan, 1.4, 1.6, id="a sum that is no number is ignored"),
        pytest.param(
            [100, 0, 0, 0], 0.1, 0.0, 0.01, id="queue times near 0 in a wide first bucket"
        ),
        pytest.param([100, 0, 0, 0], 0.03, 0.0, 0.001, id="a mean of 0.3 ms in it is resolved"),
        pytest.param([0, 90, 9, 1], 1e9, 1.4, 1.7, id="an overflow bucket makes the sum useless"),
        pytest.param([10, 90, 0, 0], None, 1.3, 1.6, id="a neighbour draws it towards itself"),
    ],
)
def test_the_sum_bounds_the_median(counts, total, low, high):
    assert low <= quantile_estimate([1.0, 2.0, 4.0], counts, total, 0.5) <= high


@pytest.mark.parametrize(
    ("edges", "counts", "q", "expected"),
    [
        pytest.param([1.0, 2.0], [1, 1, 9], 0.95, None, id="overflow bucket"),
        pytest.param([1.0, 2.0], [0, 0, 0], 0.5, None, id="nothing observed"),
        pytest.param([0.0, 2.0], [9, 1, 0], 0.5, 0.0, id="a first bound of 0 is a point"),
        pytest.param([-3.0, 2.0], [9, 1, 0], 0.5, -3.0, id="a negative first bound is an edge"),
        pytest.param([], [5], 0.5, None, id="no finite bound at all"),
    ],
)
def test_edge_cases_of_the_estimate(edges, counts, q, expected):
    assert quantile_estimate(edges, counts, 5.0, q) == expected


def test_the_interpolant_is_the_published_one():
    from scipy.interpolate import PchipInterpolator  # slow to import: not on every collection

    random = np.random.default_rng(7)
    for points in range(2, 30):
        knots = np.cumsum(random.exponential(1.0, points))
        heights = np.cumsum(random.poisson(2.0, points)).astype(float)
        xs = np.linspace(knots[0], knots[-1], 101)
        published = PchipInterpolator(knots, heights)(xs)
        assert _monotone_cubic(knots, heights, xs) == pytest.approx(published, abs=1e-9)
