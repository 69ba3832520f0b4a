"""Replaying requests through replicas."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from vllm_capacity.errors import InputError
from vllm_simulator.config import EngineConfig, Request, StepTime
from vllm_simulator.scenarios import A100_SERVER, scenario
from vllm_simulator.simulate import REQUESTS_SCHEMA, replay, run_scenario

CONFIG = EngineConfig("m", 2000, StepTime(0.03, 0.001, 0.0005), max_num_seqs=4, max_model_len=1000)


def arriving(count, per_second, seed=1):
    rng = np.random.default_rng(seed)
    return pl.DataFrame(
        {
            "arrival_seconds": np.cumsum(rng.exponential(1 / per_second, count)),
            "prompt_tokens": rng.integers(20, 400, count),
            "output_tokens": rng.integers(1, 100, count),
        }
    )


def test_every_request_comes_back_once_in_order_of_arrival():
    asked = arriving(300, 3.0)
    got = replay(asked, CONFIG, replicas=2)
    for column in asked.columns:
        assert got[column].to_list() == asked[column].to_list()


def test_one_alone_meets_the_step_times():
    row = replay([Request(1.0, 100, 3)], CONFIG).row(0, named=True)
    assert row["ttft_seconds"] == pytest.approx(0.081)
    assert row["itl_mean_seconds"] == pytest.approx(0.031)
    assert row["e2e_seconds"] == pytest.approx(0.143)
    assert row["queue_seconds"] == pytest.approx(0.0, abs=1e-9)


def test_a_single_token_has_no_inter_token_latency():
    assert replay([Request(1.0, 100, 1)], CONFIG)["itl_mean_seconds"].to_list() == [None]


def test_round_robin_takes_turns():
    got = replay(
        [Request(float(n), 10, 2) for n in range(6)], CONFIG, replicas=3, routing="round-robin"
    )
    assert got["replica"].to_list() == [0, 1, 2, 0, 1, 2]


def test_least_loaded_goes_around_a_busy_replica():
    asked = [Request(0.0, 10, 900), *(Request(1.0 + n, 10, 2) for n in range(3))]
    assert replay(asked, CONFIG, replicas=2)["replica"].to_list() == [0, 1, 1, 1]


def test_more_replicas_shorten_the_wait_of_an_overloaded_one():
    waits = [
        replay(arriving(300, 4.0), CONFIG, replicas=n)["ttft_seconds"].quantile(0.95)
        for n in (1, 2, 4)
    ]
    assert waits == sorted(waits, reverse=True)
    assert waits[0] > 10 * waits[2]


def test_the_same_seed_gives_the_same_frame():
    varied = EngineConfig("m", 2000, StepTime(0.03, 0.001, 0.0005, jitter_ratio=0.2))
    first, second, other = (replay(arriving(50, 3.0), varied, seed=seed) for seed in (4, 4, 5))
    assert first.equals(second)
    assert not first.equals(other)


def test_empty_input_gives_empty_output():
    empty = replay(arriving(0, 1.0), CONFIG)
    assert (empty.height, dict(empty.schema)) == (0, REQUESTS_SCHEMA)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param({"replicas": 0}, "1 replica", id="no replica"),
        pytest.param({"replicas": 2, "routing": "sticky"}, "least-loaded", id="unknown routing"),
    ],
)
def test_a_replay_that_makes_no_sense_is_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        replay(arriving(2, 1.0), CONFIG, **arguments)


def test_missing_columns_are_named():
    with pytest.raises(InputError, match="output_tokens not found"):
        replay(arriving(2, 1.0).drop("output_tokens"), CONFIG)


def test_a_thousand_at_once_are_served_as_fast_as_published():
    """GPUStack, 2025-11-04: 26.7 requests/s, mean TTFT 12.4 s, mean TPOT 43 ms on an A100 SXM."""
    burst = run_scenario(scenario("a100-gpt-oss-20b-burst")).requests
    rate = burst.height / (burst["end_seconds"].max() - 1.0)
    assert rate == pytest.approx(26.7, rel=0.10)
    assert burst["ttft_seconds"].mean() == pytest.approx(12.4, rel=0.10)
    assert burst["itl_mean_seconds"].mean() == pytest.approx(0.0433, rel=0.10)
    assert A100_SERVER.max_num_seqs == 256
