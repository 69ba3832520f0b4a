"""The replay on fewer replicas: compared with servers of other laws on the same requests."""

from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest
from msgspec.structs import replace

from vllm_capacity.assumptions import Slo
from vllm_capacity.estimate import Estimate
from vllm_capacity.figures.latency import Distribution
from vllm_capacity.figures.steps import STEP_SCHEMA
from vllm_capacity.verdicts.replay import Replay, Served, enough, replays
from vllm_capacity.verdicts.sizing import at_least_enough

START = datetime(2026, 11, 24, tzinfo=UTC)
STEP_SECONDS, STEPS = 60.0, 120
PROMPT, OUTPUT = 100.0, 200.0
CAPACITY, PLACES = 1000.0, 20.0


def steps(*, requests_per_second: float, engines: int = 2, gaps: int = 0) -> pl.DataFrame:
    """Engines under an even load, whose latency is that of a server of that capacity."""
    base = 0.4 * PLACES / CAPACITY
    slope = 0.6 / CAPACITY
    rate = requests_per_second * OUTPUT
    running = rate * base / (1 - rate * slope)
    rows = [
        {
            **dict.fromkeys(STEP_SCHEMA),
            "instance": f"gpu-{engine}:8000",
            "engine": "0",
            "start": START + timedelta(seconds=STEP_SECONDS * step),
            "end": START + timedelta(seconds=STEP_SECONDS * (step + 1)),
            "running_mean": running,
            "waiting_mean": 0.0,
            "requests_per_second": requests_per_second,
            "itl_mean_seconds": base + slope * running,
            "is_gap": step < gaps,
            "is_restart": False,
        }
        for engine in range(engines)
        for step in range(STEPS)
    ]
    return pl.DataFrame(rows, schema=STEP_SCHEMA)


def lengths(mean: float) -> Distribution:
    """About as long as each other."""
    return Distribution((mean * 0.9, mean * 1.1), (0.0, 1000.0, 0.0), 1000.0 * mean)


def served(requests_per_second: float = 1.0, *, gaps: int = 0, slo: Slo | None = None) -> Served:
    """Two replicas at that many requests/s each, of 5 that each can do."""
    return Served(
        steps=steps(requests_per_second=requests_per_second, gaps=gaps),
        capacity=Estimate.known(CAPACITY, CAPACITY, CAPACITY),
        prompts=lengths(PROMPT),
        outputs=lengths(OUTPUT),
        prefill_seconds=0.05,
        running=PLACES,
        slo=slo or Slo(),
    )


def on(
    count: int, what: Served, *, most: int | None = None, **options: object
) -> tuple[Replay, ...]:
    middle = START + timedelta(seconds=STEP_SECONDS * STEPS / 2)
    return replays(what, replicas=count, most=most or count, busiest=middle, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("requests_per_second", "scale", "is_kept"),
    [
        pytest.param(1.0, 1.0, True, id="two fifths of what one can do"),
        pytest.param(2.0, 1.0, True, id="four fifths"),
        pytest.param(2.0, 1.6, False, id="more than it can do, were there more demand"),
    ],
)
def test_one_replica_keeps_up_with_what_it_can_do(
    requests_per_second: float, scale: float, is_kept: bool
):
    (found,) = on(1, served(requests_per_second), scale=scale)
    assert found.is_kept is is_kept


def test_it_serves_no_more_than_the_capacity():
    (found,) = on(1, served(2.0), scale=2.0)  # 8 requests/s arrive, 5 are served: it queues
    whole = found.seconds + 2 * 300.0  # with the lead before and the time after
    longest = whole * (1 - CAPACITY / OUTPUT / 8.0)  # by the fluid limit
    assert found.wait_p95_seconds == pytest.approx(longest, rel=0.05)


def test_latencies_are_those_of_the_law():
    (found,) = on(2, served(2.0))
    assert found.itl_p95_seconds == pytest.approx(0.4 * PLACES / CAPACITY + 0.6 * 0.0087, rel=0.5)
    assert found.ttft_p95_seconds < 0.2


def test_where_one_does_not_keep_up_one_more_is_tried():
    found = on(1, served(2.0), most=3, scale=1.6)
    assert [one.replicas for one in found] == [1, 2]
    assert enough(found) == 2


def test_three_numbers_are_tried_and_then_more_are_needed():
    found = on(1, served(2.0), most=9, scale=9.0)
    assert [one.replicas for one in found] == [1, 2, 3]
    assert enough(found) == 4


def test_a_missed_target_is_not_reported_as_met():
    (found,) = on(1, served(1.0, slo=Slo(itl_p95_seconds=0.015)), scale=2.0)
    assert found.wait_p95_seconds < 1
    assert not found.is_kept


def test_the_high_end_is_tried_where_the_low_one_fails():
    wide = replace(served(2.0), capacity=Estimate.known(700.0, 1000.0, 1600.0))
    low, high = on(1, wide, is_sure=False)
    assert (low.is_kept, high.is_kept) == (False, True)
    assert (low.output_tokens_per_second, high.output_tokens_per_second) == (700.0, 1600.0)


LEAST = Estimate.at_least(CAPACITY, reason="light load")
SILENT = {
    "no prompt lengths": replace(served(), prompts=None),
    "no output lengths": replace(served(), outputs=None),
    "no time to read prompts": replace(served(), prefill_seconds=None),
    "not known what runs at the capacity": replace(served(), running=None),
    "no capacity": replace(served(), capacity=Estimate.unknown("nothing was seen")),
    "latencies of another server": replace(
        served(), steps=steps(requests_per_second=1.0).with_columns(itl_mean_seconds=pl.lit(9.0))
    ),
    "no step": replace(served(), steps=steps(requests_per_second=1.0).clear()),
    "gaps at the busiest time": served(gaps=STEPS - 30),
    "too few requests for a p95": served(0.001),
    "too many to serve in some seconds": replace(
        served(), steps=steps(requests_per_second=1.0).with_columns(requests_per_second=99.0)
    ),
}


@pytest.mark.parametrize("what", SILENT.values(), ids=SILENT)
def test_there_is_no_replay_if_the_window_lacks_data(what: Served):
    assert on(1, what) == ()


def test_a_lower_bound_shows_that_they_keep_up():
    (found,) = on(1, replace(served(1.0), capacity=LEAST))
    assert found.is_kept


def test_a_lower_bound_never_shows_that_they_do_not():
    assert on(1, replace(served(2.0), capacity=LEAST), scale=3.0) == ()


def test_a_model_that_fails_where_the_servers_did_not_gives_no_result():
    slower = replace(served(4.5), running=4.0)  # at 4.5 requests/s, four slots would queue
    assert on(1, slower) == ()


def test_requests_that_wait_at_the_end_of_a_step_came_in_it():
    burst = served(1.0).steps.with_columns(
        requests_per_second=pl.lit(0.5),
        waiting_mean=(pl.col("start") - START).dt.total_seconds() * 0.5,
    )
    (found,) = on(2, replace(served(), steps=burst))
    (steady,) = on(2, served(1.0))
    assert found.requests == pytest.approx(steady.requests, rel=0.1)


def replay(replicas: int, *, is_kept: bool) -> Replay:
    numbers = np.ones(4).tolist()
    return Replay(replicas, START, 900.0, 100, CAPACITY, *numbers, is_kept=is_kept)


def test_the_recommendation_is_what_kept_up():
    needed = Estimate.known(2, 3, 4)
    tried = [replay(4, is_kept=False), replay(5, is_kept=True)]
    found = at_least_enough(needed, tried)
    assert (found.low, found.mid, found.high) == (2, 3, 5)
    assert found.basis[-1] == "a replay on 4 did not keep up"


def test_the_middle_moves_where_the_high_end_failed_too():
    needed = Estimate.known(2, 3, 6)
    tried = [replay(3, is_kept=False), replay(3, is_kept=False), replay(4, is_kept=True)]
    found = at_least_enough(needed, tried, is_sure=False)
    assert (found.low, found.mid, found.high) == (2, 4, 6)


@pytest.mark.parametrize("tried", [[], [replay(4, is_kept=True)]], ids=["none", "kept"])
def test_nothing_changes_if_no_replay_failed(tried: list[Replay]):
    needed = Estimate.known(2, 3, 4)
    assert at_least_enough(needed, tried) == needed
