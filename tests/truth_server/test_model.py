"""The made-up server against what can be worked out by hand, and against its own counts."""

from dataclasses import replace

import numpy as np
import pytest

from tests.truth_server import loads
from tests.truth_server.laws import Affine, Experts, Jitter, Law, Retrograde, Roofline
from tests.truth_server.model import HISTOGRAMS, Arrivals, Clients, Engine, Slow, Snapshot
from tests.truth_server.servers import MIXES, PAIRS, SERVERS, Mix, Server, fixed

PLAIN = Server("plain", Affine(0.010, 0.001, 0.0001), 64, 2048, 10_000, frontend_seconds=0.0)
ONE = Mix("one", fixed(100), fixed(50))


def at_end(engine: Engine, seconds: float) -> Snapshot:
    return next(iter(engine.run([seconds])))


def sums(snapshot: Snapshot, name: str) -> tuple[int, float]:
    counts, total = snapshot.histograms[HISTOGRAMS.index(name)]
    return sum(counts), total


def test_one_request_takes_its_prefill_and_a_step_per_token():
    end = at_end(Engine(PLAIN, ONE, [Arrivals(np.array([1.0]))]), 100.0)
    prefill, decode = 0.010 + 100 * 0.0001, 49 * 0.011
    assert sums(end, "time_to_first_token_seconds") == (1, pytest.approx(prefill))
    assert sums(end, "inter_token_latency_seconds") == (49, pytest.approx(decode))
    assert sums(end, "e2e_request_latency_seconds") == (1, pytest.approx(prefill + decode))
    assert (end.generation_tokens, end.prompt_tokens, end.stopped) == (50, 100, 1)


def test_a_prompt_longer_than_a_step_is_read_in_chunks():
    mix = Mix("long", fixed(5000), fixed(1))
    end = at_end(Engine(PLAIN, mix, [Arrivals(np.array([0.0]))]), 100.0)
    assert sums(end, "time_to_first_token_seconds")[1] == pytest.approx(3 * 0.010 + 0.5)


def test_clients_that_fill_the_server_get_what_its_law_allows():
    """64 decoding, each slot giving one of its 50 tokens as a prefill, prompts in between."""
    engine = Engine(PLAIN, ONE, [Clients(((0.0, 64),))])
    first, last = engine.run([100.0, 1100.0])
    rate = (last.generation_tokens - first.generation_tokens) / 1000
    a_token = (0.010 + 0.001 * 64) / 64 + 0.0001 * 100 / 50
    assert rate == pytest.approx(1 / a_token, rel=0.05)


def test_one_slot_and_poisson_arrivals_wait_as_pollaczek_and_khinchine_say():
    """M/D/1: the mean wait is ρ s / 2 (1 − ρ)."""
    server = replace(PLAIN, max_num_seqs=1)
    service = 0.020 + 49 * 0.011
    arrivals = loads.poisson(np.random.default_rng(5), 0.6 / service, 0.0, 15_000.0)
    end = at_end(Engine(server, ONE, [arrivals]), 15_000.0)
    count, total = sums(end, "request_queue_time_seconds")
    assert total / count == pytest.approx(0.6 * service / (2 * 0.4), rel=0.07)


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_nothing_is_lost_and_little_holds(pair):
    server, mix = SERVERS[pair[0]], MIXES[pair[1]]
    engine = Engine(server, mix, [Clients(((0.0, round(1.2 * server.max_num_seqs)),))], seed=3)
    end = at_end(engine, 40.0)
    assert engine.came == engine.finished + len(engine.running) + len(engine.waiting)
    assert engine.finished == end.stopped + end.cut
    blocks = sum(used(request, engine) for request in engine.running.values())
    assert end.kv_ratio == pytest.approx(blocks / server.blocks)
    # Running requests over time: those of finished requests plus those of requests still running.
    within = sums(end, "request_inference_time_seconds")[1]
    still = sum(engine.now - request.scheduled for request in engine.running.values())
    preempted = any(r.preemptions for r in (*engine.running.values(), *engine.waiting))
    if not preempted and not end.preemptions:
        assert engine.running_seconds == pytest.approx(within + still, rel=1e-6)


def used(request, engine) -> int:
    """The blocks a running request holds, from its length alone."""
    if request.decode_from < 0:
        return -(-request.target // 16)
    return -(-(request.target + engine._step - request.decode_from) // 16)


def test_many_steps_at_once_are_those_steps_one_by_one():
    """Snapshots cut the stretches that are advanced at once; they must not change anything."""
    arrivals = loads.poisson(np.random.default_rng(2), 3.0, 0.0, 300.0)
    whole, cut = (
        Engine(replace(SERVERS["a100-8b"], jitter=Jitter()), MIXES["chat"], [arrivals], 4)
        for _ in range(2)
    )
    seldom = at_end(whole, 300.0)
    often = list(cut.run(np.arange(0.0, 300.01, 0.05)))[-1]
    assert often.generation_tokens == seldom.generation_tokens
    assert often.histograms[0] == (seldom.histograms[0][0], pytest.approx(seldom.histograms[0][1]))
    assert cut.steps == whole.steps


def test_a_full_cache_preempts_and_still_answers_everyone():
    server = replace(PLAIN, blocks=60)
    engine = Engine(server, ONE, [Arrivals(np.zeros(40))])
    end = at_end(engine, 1000.0)
    assert end.preemptions > 0
    assert (end.stopped, end.generation_tokens, end.prompt_tokens) == (40, 40 * 50, 40 * 100)
    assert (end.running, end.waiting, end.kv_ratio) == (0, 0, 0.0)


def test_a_noisy_neighbor_only_slows_its_own_stretch():
    arrivals = [Arrivals(np.array([0.0, 100.0]))]
    slow = Engine(PLAIN, ONE, arrivals, slow=[Slow(90.0, 200.0, 2.0)])
    first, last = slow.run([50.0, 500.0])
    name = "inter_token_latency_seconds"
    assert sums(first, name)[1] == pytest.approx(49 * 0.011)
    assert sums(last, name)[1] - sums(first, name)[1] == pytest.approx(2 * 49 * 0.011)


@pytest.mark.parametrize(
    ("law", "batch", "prefill", "kv", "seconds"),
    [
        pytest.param(Affine(1, 2, 3, 4), 5, 6, 7.0, 57, id="affine adds up"),
        pytest.param(Roofline(1, 0.1, 0.01, 0), 9, 0, 10.0, 2.0, id="memory is the roof"),
        pytest.param(Roofline(1, 0, 0.5, 0), 9, 0, 0.0, 8.0, id="a batch of 9 runs as one of 16"),
        pytest.param(Retrograde(1, 0, 0.01, 0), 10, 0, 0.0, 2.0, id="the square of the batch"),
        pytest.param(Experts(0, 8, 8, 4, 0, 0), 2, 0, 0.0, 6.0, id="two tokens touch 3/4 of them"),
    ],
)
def test_laws(law: Law, batch: int, prefill: int, kv: float, seconds: float):
    assert law.seconds(batch, prefill, kv) == pytest.approx(seconds)


def test_clients_leave_and_come_back_by_their_schedule():
    engine = Engine(PLAIN, ONE, [Clients(((0.0, 5), (50.0, 0), (100.0, 2)))])
    early, between, late = engine.run([40.0, 90.0, 140.0])
    assert (early.running, between.running, late.running) == (5, 0, 2)
