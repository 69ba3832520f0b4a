"""Stretches of regimes in even steps: how much of each, and which regime names it."""

from datetime import UTC, datetime, timedelta

import pytest

from vllm_capacity.timerange import TimeRange
from vllm_capacity.verdicts.saturation.fit import Stretch
from vllm_capacity.verdicts.saturation.regime_shares import leading_regimes, regime_shares

START = datetime(2026, 3, 1, tzinfo=UTC)
HOUR = TimeRange(START, START + timedelta(minutes=60))


def stretches(*rows):
    """Stretches of (first minute, last minute, regime) of one engine."""
    return [
        Stretch(
            START + timedelta(minutes=a), START + timedelta(minutes=b), "gpu-0:8000/0", name, ""
        )
        for a, b, name in rows
    ]


def shares(*rows, minutes=20):
    return regime_shares(stretches(*rows), time_range=HOUR, step_seconds=60.0 * minutes)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        pytest.param([], [], id="none without a stretch"),
        pytest.param(
            [(0, 60, "idle")],
            [(0, "idle", 1.0), (1, "idle", 1.0), (2, "idle", 1.0)],
            id="a stretch over all steps fills each",
        ),
        pytest.param(
            [(0, 5, "idle"), (5, 10, "kv-bound"), (10, 20, "idle")],
            [(0, "idle", 0.75), (0, "kv-bound", 0.25)],
            id="flips within a step are added",
        ),
        pytest.param(
            [(15, 30, "kv-bound")],
            [(0, "kv-bound", 0.25), (1, "kv-bound", 0.5)],
            id="a stretch over an edge is cut there, and time that was not judged has no row",
        ),
        pytest.param(
            [(-10, 10, "idle"), (50, 75, "idle")],
            [(0, "idle", 0.5), (2, "idle", 0.5)],
            id="what lies outside the time range does not count",
        ),
    ],
)
def test_share_of_each_step_in_each_regime(rows, expected):
    found = shares(*rows).select("step", "regime", "share_ratio")
    assert found.rows() == expected


@pytest.mark.parametrize(
    ("rows", "regime", "share"),
    [
        pytest.param([(0, 60, "idle")], "idle", 1.0, id="the only one"),
        pytest.param(
            [(0, 40, "idle"), (40, 60, "client-bound")], "idle", 2 / 3, id="that of most time"
        ),
        pytest.param(
            [(0, 50, "idle"), (50, 60, "kv-bound")],
            "kv-bound",
            1 / 6,
            id="a limit that held for a tenth of it",
        ),
        pytest.param(
            [(0, 56, "idle"), (56, 60, "kv-bound")], "idle", 56 / 60, id="no limit held so long"
        ),
        pytest.param(
            [(0, 52, "idle"), (52, 57, "scheduler-bound"), (57, 60, "kv-bound")],
            "scheduler-bound",
            5 / 60,
            id="of two limits that held so long together, the longer",
        ),
    ],
)
def test_step_is_named_by_its_limit_else_by_what_lasted_longest(rows, regime, share):
    (row,) = leading_regimes(shares(*rows, minutes=60)).select("regime", "share_ratio").rows()
    assert row == (regime, pytest.approx(share))
