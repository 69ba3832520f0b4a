"""One engine in time: identities of a real server's counters, and leaps that change nothing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_simulator.config import EngineConfig, Request, StepTime
from vllm_simulator.core import Engine
from vllm_simulator.scenarios import CPU_LENGTHS, CPU_SERVER
from vllm_simulator.workload import Arrivals, poisson_requests

END = 10_000.0
PLAIN = EngineConfig("m", 100, StepTime(0.03, 0.001, 0.0005), max_model_len=1000)


def served(config, requests, **arguments):
    engine = Engine(config, **arguments)
    for request in requests:
        engine.submit(request)
    engine.advance(END)
    return engine


def busy_requests(count=150, seed=3):
    return poisson_requests(Arrivals(count, 0.0, 40.0), CPU_LENGTHS, seed)


def state(engine: Engine) -> dict[str, object]:
    stats = engine.stats
    return {
        "integers": (
            stats.engine_steps,
            stats.generation_tokens,
            stats.prompt_tokens,
            stats.prompt_tokens_cached,
            stats.preemptions,
            stats.finished,
            stats.itl.count,
            stats.iteration_tokens.counts,
        ),
        "seconds": [stats.itl.total, stats.ttft.total, stats.e2e.total, stats.busy_seconds],
    }


def test_one_request_takes_the_steps_and_seconds_it_should():
    stats = served(PLAIN, [Request(2.0, 100, 4)]).stats
    prefill, decode = 0.03 + 0.001 + 100 * 0.0005, 0.03 + 0.001
    assert stats.engine_steps == 4
    assert stats.ttft.total == pytest.approx(prefill)
    assert stats.decode.total == pytest.approx(3 * decode)
    assert stats.e2e.total == pytest.approx(prefill + 3 * decode)
    assert (stats.ttft.counts[7], stats.itl.counts[2]) == (1, 3)  # 0.081 in (0.08, 0.1]; 0.031


def test_what_arrives_during_a_step_waits_for_it_outside_the_queue_time():
    long, short = Request(0.0, 900, 2), Request(0.1, 10, 2)
    stats = served(PLAIN, [long, short]).stats
    first_step = 0.03 + 0.001 + 900 * 0.0005
    second_step = 0.03 + 0.002 + 10 * 0.0005
    assert stats.queue.total == pytest.approx(0.0)
    assert stats.ttft.total == pytest.approx(first_step + (first_step + second_step - 0.1))


def test_a_step_that_has_not_ended_is_not_seen():
    engine = Engine(PLAIN)
    engine.submit(Request(0.0, 900, 2))
    engine.advance(0.4)
    assert (engine.stats.prompt_tokens, engine.stats.gauges.running) == (0, 0)
    engine.advance(0.5)
    assert (engine.stats.prompt_tokens, engine.stats.gauges.running) == (900, 1)


def test_the_identities_of_the_recorded_server_hold_under_preemption():
    stats = served(CPU_SERVER, busy_requests(), seed=5).stats
    assert stats.preemptions > 0
    assert stats.itl.count == stats.generation_tokens - stats.ttft.count
    assert stats.iteration_tokens.total == (
        stats.prompt_tokens - stats.prompt_tokens_cached + stats.generation_tokens
    )
    assert stats.request_preemptions.total <= stats.preemptions
    assert sum(stats.finished.values()) == stats.e2e.count == stats.request_n.count


def test_a_cancelled_request_counts_its_tokens_but_no_finish():
    cancelled = Request(0.0, 50, 100, cancel_after_seconds=1.0)
    engine = served(PLAIN, [cancelled, Request(0.0, 50, 10)])
    stats = engine.stats
    assert stats.finished == {"length": 1}
    assert stats.ttft.count == 2
    assert stats.generation_tokens > stats.request_generation_tokens.total == 10
    assert engine.scheduler.pool.free == PLAIN.usable_blocks


def test_a_request_cancelled_before_its_first_token_shows_only_in_the_prefix_queries():
    engine = served(PLAIN, [Request(0.0, 900, 5), Request(0.1, 50, 5, cancel_after_seconds=0.2)])
    assert engine.stats.prompt_tokens == 900
    assert engine.stats.ttft.count == 1


def test_gauges_are_zero_when_idle_though_the_prefix_cache_is_full():
    gauges = served(CPU_SERVER, busy_requests(40)).stats.gauges
    assert (gauges.running, gauges.waiting, gauges.kv_usage_ratio) == (0, 0, 0.0)


@pytest.mark.parametrize("jitter", [0.0, 0.2], ids=["steady steps", "steps that vary"])
def test_leaps_give_what_single_steps_give(jitter):
    time = StepTime(0.03, 0.001, 0.0005, 1e-6, jitter)
    config = EngineConfig("m", 120, time, max_num_seqs=8, max_model_len=1100, sliding_blocks=2)
    requests = poisson_requests(Arrivals(60, 0.0, 120.0), CPU_LENGTHS, 11)
    leaping, stepping = (served(config, requests, seed=2, can_leap=can) for can in (True, False))
    assert state(leaping)["integers"] == state(stepping)["integers"]
    assert state(leaping)["seconds"] == pytest.approx(state(stepping)["seconds"])


def test_scraping_more_often_changes_nothing():
    whole = served(CPU_SERVER, busy_requests(), seed=5)
    scraped = Engine(CPU_SERVER, seed=5)
    for request in busy_requests():
        scraped.submit(request)
    for at in np.arange(0.0, 300.0, 0.7):
        scraped.advance(float(at))
    scraped.advance(END)
    assert state(scraped)["integers"] == state(whole)["integers"]
    assert state(scraped)["seconds"] == pytest.approx(state(whole)["seconds"])


sizes = st.tuples(st.floats(0, 5), st.integers(1, 120), st.integers(1, 60), st.sampled_from([0, 1]))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(sizes, min_size=1, max_size=25),
    st.integers(25, 60),
    st.integers(1, 6),
    st.booleans(),
)
def test_whatever_comes_is_served_in_full_and_everything_is_freed(asked, blocks, slots, caching):
    config = EngineConfig(
        "m",
        blocks,
        StepTime(0.02, 0.001, 0.0001, jitter_ratio=0.1),
        block_size=8,
        max_num_seqs=slots,
        max_num_batched_tokens=64,
        max_model_len=180,
        enable_prefix_caching=caching,
    )
    requests = [
        Request(at, prompt, output, prefix=prefix, prefix_tokens=min(prompt, 40))
        for at, prompt, output, prefix in asked
    ]
    engine = served(config, requests)
    stats = engine.stats
    assert engine.is_idle
    assert engine.scheduler.pool.free == config.usable_blocks
    assert stats.generation_tokens == sum(request.output_tokens for request in requests)
    assert stats.prompt_tokens == sum(request.prompt_tokens for request in requests)
    assert stats.itl.count == stats.generation_tokens - len(requests)
