"""The simulator against the recorded sweep: the same requests, each load step within 15 %."""

from __future__ import annotations

import pytest
from recorded_sweep import CLIENTS, recorded_points, simulated_points

TOLERANCE_RATIO = 0.15


@pytest.fixture(scope="module")
def points():
    return recorded_points(), simulated_points()


@pytest.mark.parametrize("clients", CLIENTS, ids=lambda count: f"{count} clients")
@pytest.mark.parametrize("figure", ["generated_per_second", "running", "kv_ratio", "preemptions"])
def test_a_step_is_reproduced(points, figure, clients):
    recorded, simulated = (getattr(of[clients], figure) for of in points)
    assert simulated == pytest.approx(recorded, rel=TOLERANCE_RATIO)


@pytest.mark.parametrize("clients", [32, 48, 64], ids=lambda count: f"{count} clients")
def test_the_queue_is_reproduced_where_there_is_one(points, clients):
    recorded, simulated = (of[clients].waiting for of in points)
    assert simulated == pytest.approx(recorded, rel=TOLERANCE_RATIO)


def test_another_seed_gives_other_steps_and_the_same_picture(points):
    (other,) = simulated_points((48,), seed=9).values()
    assert other != points[1][48]
    assert other.generated_per_second == pytest.approx(points[0][48].generated_per_second, rel=0.15)
