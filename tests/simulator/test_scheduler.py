"""The scheduler's rules, each on the smallest engine that shows it."""

from __future__ import annotations

import pytest

from vllm_capacity.errors import InputError
from vllm_simulator.config import EngineConfig, EngineRequest, Request, StepTime, check_request
from vllm_simulator.scheduler import Batch, Scheduler

STEP = StepTime(0.03, 0.001, 0.0005)


def config(**changes):
    settings = {
        "num_gpu_blocks": 11,
        "block_size": 4,
        "max_num_seqs": 4,
        "max_num_batched_tokens": 8,
        "max_model_len": 40,
    }
    return EngineConfig("m", step_time=STEP, **{**settings, **changes})


def waiting(scheduler: Scheduler, *sizes: tuple[int, int], prefix: int | None = None):
    requests = []
    for prompt, output in sizes:
        request = Request(0.0, prompt, output, prefix=prefix, prefix_tokens=prompt if prefix else 0)
        requests.append(EngineRequest(request, len(scheduler.waiting) + 1, prompt))
        scheduler.waiting.append(requests[-1])
    return requests


def step(scheduler: Scheduler) -> Batch:
    """Schedule and end one step, as the engine does."""
    batch = scheduler.schedule()
    scheduler.end_step(1, scheduler.clock + 1.0)
    scheduler.finished()
    for request, tokens in batch.prefills:
        request.computed += tokens
        if request.computed == request.total:
            request.generated += 1
            request.total += 1
            scheduler.start_decoding(request)
    return batch


def test_a_long_prompt_is_computed_in_chunks_of_the_token_budget():
    scheduler = Scheduler(config())
    waiting(scheduler, (20, 2))
    assert [step(scheduler).prefill_tokens for _ in range(3)] == [8, 8, 4]


def test_decoding_goes_first_and_a_chunk_gets_what_is_left():
    scheduler = Scheduler(config())
    waiting(scheduler, (4, 9), (20, 2))
    chunks = [(step_.decodes, step_.prefill_tokens) for step_ in map(step, [scheduler] * 3)]
    assert chunks == [(0, 8), (1, 7), (1, 7)]


def test_no_more_than_max_num_seqs_run_and_the_rest_waits_in_order():
    scheduler = Scheduler(config(max_num_seqs=2))
    first, second, third = waiting(scheduler, (2, 5), (2, 5), (2, 5))
    step(scheduler)
    assert list(scheduler.running.values()) == [first, second]
    assert list(scheduler.waiting) == [third]


def test_a_prompt_that_does_not_fit_as_a_whole_waits_though_its_first_chunk_would_fit():
    scheduler = Scheduler(config(num_gpu_blocks=8))
    waiting(scheduler, (8, 5), (24, 5))
    step(scheduler)
    assert [len(scheduler.running), len(scheduler.waiting)] == [1, 1]


def test_the_last_admitted_is_preempted_forgets_its_progress_and_waits_in_front():
    scheduler = Scheduler(
        config(num_gpu_blocks=5)
    )  # 4 usable: each holds 2, one more is one too many
    old, young = waiting(scheduler, (6, 20), (2, 20))
    while not young.preemptions:
        batch = step(scheduler)
    (later,) = waiting(scheduler, (2, 5))
    assert batch.preemptions == 1
    assert list(scheduler.running.values()) == [old]
    assert list(scheduler.waiting) == [young, later]
    assert (young.computed, young.blocks) == (0, [])
    assert young.total == 2 + young.generated > 2


def test_a_sequence_that_cannot_grow_and_is_the_last_preempts_itself():
    scheduler = Scheduler(config(num_gpu_blocks=6))  # 5 usable: 2 and 3 are all of them
    old, young = waiting(scheduler, (5, 20), (4, 20))
    while not young.preemptions:
        step(scheduler)
    assert (old.preemptions, list(scheduler.waiting)) == (0, [young])


def test_the_second_of_two_equal_prompts_computes_only_its_last_block():
    scheduler = Scheduler(config(max_num_batched_tokens=20))
    _, second = waiting(scheduler, (12, 3), (12, 3), prefix=1)
    batch = step(scheduler)
    assert second.cached_tokens == 8
    assert batch.prefill_tokens == 12 + 4


def test_without_prefix_caching_nothing_is_found():
    scheduler = Scheduler(config(max_num_batched_tokens=24, enable_prefix_caching=False))
    waiting(scheduler, (12, 3), (12, 3), prefix=1)
    assert step(scheduler).prefill_tokens == 24


def test_sliding_window_layers_hold_blocks_up_to_their_window_only():
    scheduler = Scheduler(config(num_gpu_blocks=21, sliding_blocks=2, max_num_batched_tokens=20))
    (request,) = waiting(scheduler, (4, 20))
    step(scheduler)
    assert (len(request.blocks), len(request.side_blocks)) == (1, 1)
    for _ in range(9):
        step(scheduler)
    assert (len(request.blocks), len(request.side_blocks)) == (4, 2)


def test_everything_is_free_again_when_everybody_has_finished():
    scheduler = Scheduler(config(num_gpu_blocks=7))
    requests = waiting(scheduler, (6, 9), (3, 9), (5, 2), (9, 4))
    for _ in range(200):
        step(scheduler)
    assert all(request.is_done for request in requests)
    assert (scheduler.pool.free, scheduler.decoding, scheduler.context_tokens) == (6, 0, 0)
    assert [request.generated for request in requests] == [9, 9, 2, 4]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"num_gpu_blocks": 1}, "null block", id="the null block alone is no cache"),
        pytest.param({"max_num_seqs": 0}, "max_num_seqs", id="no user may run"),
        pytest.param({"max_num_batched_tokens": 3}, "below", id="less budget than requests"),
    ],
)
def test_an_engine_that_could_not_run_is_refused(changes, message):
    with pytest.raises(InputError, match=message):
        config(**changes)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        pytest.param(Request(0.0, 30, 20), "max_model_len", id="longer than the model"),
        pytest.param(Request(0.0, 0, 2), "1 prompt", id="no prompt"),
        pytest.param(Request(-1.0, 2, 2), "cannot arrive", id="before the start"),
        pytest.param(Request(0.0, 30, 10), "KV blocks", id="never fits the cache"),
    ],
)
def test_a_request_the_engine_would_refuse_is_refused(request_, message):
    with pytest.raises(InputError, match=message):
        check_request(request_, config(num_gpu_blocks=9))
