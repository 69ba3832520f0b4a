from datetime import UTC, datetime, timedelta

import polars as pl
import pytest
from made_steps import made_steps, queued, steady

from vllm_capacity.figures.steps import engine_steps
from vllm_capacity.verdicts.saturation.regimes import (
    bottleneck,
    judged_steps,
    window_regime,
    worst,
)
from vllm_capacity.verdicts.saturation.stretches import regimes

IDLE = {
    "running_mean": 0.0,
    "running_max": 0.0,
    "kv_cache_ratio_mean": 0.0,
    "output_tokens_per_second": 0.0,
}
NOTHING = {
    "scrapes": 0,
    "running_mean": None,
    "running_max": None,
    "waiting_mean": None,
    "waiting_max": None,
    "waiting_share": None,
    "kv_cache_ratio_mean": None,
    "kv_cache_ratio_max": None,
    "output_tokens_per_second": None,
    "preemptions": None,
}
BELOW = {"at_ceiling_share": 0.1}
LONG_PROMPTS = {"prompt_tokens_per_second": 5000.0}


def full(mean: float, most: float, **more: float) -> dict:
    return {"kv_cache_ratio_mean": mean, "kv_cache_ratio_max": most, **more}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        pytest.param(IDLE, "idle", id="nothing ran, waited or came out"),
        pytest.param(
            {**IDLE, "output_tokens_per_second": 3.0}, "client-bound", id="between scrapes"
        ),
        pytest.param({}, "client-bound", id="requests ran and none waited"),
        pytest.param(full(0.97, 0.99), "client-bound", id="a full cache alone limits nothing"),
        pytest.param(
            queued(27, 300, 5, **full(0.95, 1.0), **BELOW), "kv-bound", id="full, and a queue"
        ),
        pytest.param(full(0.93, 1.0, preemptions=4.0), "kv-bound", id="full, and preemptions"),
        pytest.param(full(0.8, 0.95, preemptions=4.0), "kv-bound", id="flickering to full"),
        pytest.param(
            queued(20, 300, 5, **full(0.8, 0.95), **BELOW), "kv-bound", id="no room for the next"
        ),
        pytest.param(full(0.5, 0.95, preemptions=4.0), "client-bound", id="full for a moment"),
        pytest.param(
            queued(27, 300, 40, **full(0.63, 0.89, preemptions=55.0), **BELOW),
            "kv-bound",
            id="filling up within the step",
        ),
        pytest.param(
            queued(8, 180, 10), "scheduler-bound", id="a queue, and running at its ceiling"
        ),
        pytest.param(
            queued(30, 180, 10, running_max=31, at_ceiling_share=0.6),
            "scheduler-bound",
            id="short answers leave the ceiling between scrapes",
        ),
        pytest.param(
            queued(8, 180, 10, **LONG_PROMPTS),
            "scheduler-bound",
            id="long prompts at a hard ceiling",
        ),
        pytest.param(
            queued(1, 20, 10, **LONG_PROMPTS), "prefill-bound", id="a ceiling of one, by prompts"
        ),
        pytest.param(
            queued(4, 20, 10, running_max=9, **BELOW, **LONG_PROMPTS),
            "prefill-bound",
            id="a queue, KV low, below the ceiling",
        ),
        pytest.param({"waiting_share": 0.3, **BELOW}, "client-bound", id="a queue now and then"),
        pytest.param(
            queued(8, 180, 10, kv_cache_ratio_mean=None, kv_cache_ratio_max=None),
            "unknown",
            id="a queue, but KV was not observed",
        ),
        pytest.param({"output_tokens_per_second": 0.0}, "unknown", id="a frozen gauge is no load"),
        pytest.param(NOTHING, "unknown", id="no scrape"),
    ],
)
def test_regime_of_a_step(change, expected):
    assert regimes(made_steps(change))["regime"].to_list() == [expected]


def test_equal_steps_are_one_row_with_its_numbers():
    found = regimes(made_steps({}, {}, queued(8, 180, 10), queued(8, 180, 12)))
    assert found["regime"].to_list() == ["client-bound", "scheduler-bound"]
    assert found["engine"].to_list() == ["vllm/0", "vllm/0"]
    assert "11.0 requests waited" in found["evidence"][1]
    assert found["end"][0] == found["start"][1]


def test_a_lone_flicker_belongs_to_the_limit_around_it():
    steps = made_steps(
        queued(8, 180, 10),
        {"waiting_share": 0.2, "running_mean": 7.9, "running_max": 8.0},
        queued(8, 180, 10),
    )
    assert regimes(steps)["regime"].to_list() == ["scheduler-bound"]


@pytest.mark.parametrize(
    ("itl", "expected"),
    [
        pytest.param(0.1, "unknown", id="tokens came half as fast"),
        pytest.param(0.051, "client-bound", id="tokens came as fast: more ran by chance"),
        pytest.param(None, "unknown", id="not observed"),
    ],
)
def test_flat_output_without_a_queue_is_decode_where_tokens_slow_down(itl, expected):
    lighter = [steady(8, 200, itl_p95_seconds=0.05) for _ in range(4)]
    heavier = [steady(16, 202, itl_p95_seconds=itl) for _ in range(4)]
    found = regimes(made_steps(*lighter, *heavier))
    assert found["regime"][-1] == expected
    assert ("decode-compute-bound" in found["evidence"][-1]) == (expected == "unknown")


def test_one_scrape_at_the_maximum_is_no_ceiling():
    thin = {"scrapes": 1, "prompt_tokens_per_second": 5000.0}
    below = [queued(n, 170, 200, **thin) | BELOW for n in (26, 28, 25, 29)]
    steps = made_steps(queued(32, 170, 195, **thin), *below, seconds=60)
    assert set(regimes(steps)["regime"]) == {"prefill-bound"}


def test_sparsely_scraped_steps_at_a_ceiling_are_judged_together():
    held = [queued(16, 150, 24, scrapes=1)] * 4
    assert set(regimes(made_steps(*held, seconds=60))["regime"]) == {"scheduler-bound"}


def test_no_steps_have_no_regimes():
    assert regimes(made_steps()).is_empty()


def test_bottleneck_is_that_of_the_busiest_quarter():
    steps = made_steps(*[steady(4, 100)] * 9, *[queued(8, 180, 10)] * 3)
    judged = judged_steps(steps)
    assert (window_regime(judged), bottleneck(judged)) == ("client-bound", "scheduler-bound")


@pytest.mark.parametrize(
    ("limited", "expected"),
    [
        pytest.param(4, "scheduler-bound", id="a part of the busiest quarter"),
        pytest.param(1, None, id="a moment"),
    ],
)
def test_bottleneck_of_a_long_window(limited, expected):
    steps = made_steps(*[steady(4, 100)] * 60, *[queued(8, 180, 10)] * limited)
    assert bottleneck(judged_steps(steps)) == expected


def test_the_worst_engine_represents_the_fleet():
    assert worst(["idle", "kv-bound", "client-bound"]) == "kv-bound"


# Start of the recorded sweep, and the regimes at each number of clients.
SWEEP_BEGAN = datetime.fromtimestamp(1795492784.456, tz=UTC)
SWEEP_REGIMES = {
    **{clients: {"client-bound"} for clients in (1, 2, 4, 8, 16)},
    **{clients: {"kv-bound"} for clients in (32, 48, 64)},
}


def within(found: pl.DataFrame, start: datetime, end: datetime) -> set[str]:
    return set(found.filter((pl.col("end") > start) & (pl.col("start") < end))["regime"])


@pytest.mark.parametrize("step_seconds", [10.0, 20.0, 30.0])
def test_recorded_sweep(sweep, step_seconds):
    found = regimes(engine_steps(sweep, time_range=sweep.extent, step_seconds=step_seconds))
    seen = {}
    for nth, clients in enumerate(SWEEP_REGIMES):
        began = SWEEP_BEGAN + timedelta(seconds=30 + 180 * nth)
        start, end = began + timedelta(seconds=20 + step_seconds), began + timedelta(seconds=180)
        seen[clients] = within(found, start, end - timedelta(seconds=step_seconds))
    assert seen == SWEEP_REGIMES


def test_recorded_sweep_is_idle_before_and_after(sweep):
    found = regimes(engine_steps(sweep, time_range=sweep.extent))["regime"]
    assert (found[0], found[-1]) == ("idle", "idle")


def test_recorded_replicas_only_the_small_one_becomes_kv_bound(two_replicas):
    found = regimes(engine_steps(two_replicas, time_range=two_replicas.extent))
    kv_bound = found.filter(pl.col("regime") == "kv-bound")
    assert kv_bound["engine"].to_list() == ["r1/0"]
    late = two_replicas.extent.start + timedelta(seconds=205)
    assert kv_bound["start"][0] < late
    assert kv_bound["end"][0] >= late + timedelta(seconds=90)


def test_recorded_restart_is_not_seen_as_load(restarted):
    found = regimes(engine_steps(restarted, time_range=restarted.extent))
    down = restarted.extent.start + timedelta(seconds=285)
    assert within(found, down, down + timedelta(seconds=40)) == {"unknown"}
