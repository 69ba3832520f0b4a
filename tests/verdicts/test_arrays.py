"""The arithmetic of columns against plain sorting."""

import math

import numpy as np
import pytest

from vllm_capacity.verdicts.saturation.arrays import group_middles, numbered


@pytest.mark.parametrize(
    "values",
    [
        pytest.param([3, 7, 3, 5], id="above 0"),
        pytest.param([-4, 2, -4, 0, 2], id="on both sides of 0"),
        pytest.param([-3, -3], id="one value"),
        pytest.param([], id="none"),
    ],
)
def test_whole_values_are_numbered_as_if_sorted(values):
    found = numbered(np.array(values, float))
    expected = np.unique(np.array(values, float), return_inverse=True, return_counts=True)
    assert [each.tolist() for each in found] == [each.tolist() for each in expected]


def test_middles_of_each_group_are_of_its_observed_values():
    values = np.array([5.0, 1.0, math.nan, 4.0, 2.0, math.nan, 3.0])
    groups = np.array([0, 0, 0, 1, 0, 2, 0])
    lower, upper = group_middles(values, groups, 4)
    assert lower.tolist()[:2] == [2.0, 4.0]
    assert upper.tolist()[:2] == [3.0, 4.0]
    assert np.isnan(lower[2:]).all()
    assert np.isnan(upper[2:]).all()
