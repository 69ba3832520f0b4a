"""The parts of engine time are fitted with none below 0: as the library's own optimizer does."""

import numpy as np
import pytest

from vllm_capacity.verdicts.cost.engine_time import _least_squares


@pytest.mark.parametrize("seed", range(40))
def test_least_squares_without_negatives_are_those_of_the_library(seed):
    from scipy.optimize import nnls  # slow to import: not on every collection

    rng = np.random.default_rng(seed)
    matrix = rng.random((int(rng.integers(5, 60)), 4))
    matrix[:, 1] = matrix[:, 0] * (1 + rng.normal(0, 0.05, len(matrix)))  # nearly alike
    wanted = matrix @ [1.0, 0.0, 0.5, 0.2] + rng.normal(0, 0.3, len(matrix))
    assert _least_squares(matrix, wanted) == pytest.approx(nnls(matrix, wanted)[0], abs=1e-9)


def test_negative_parts_give_no_fit():
    assert _least_squares(np.eye(4), np.full(4, -1.0)).tolist() == [0.0] * 4
