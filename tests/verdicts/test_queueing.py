"""Queues against tabulated values, exact special cases, and a small event simulation."""

from __future__ import annotations

import heapq
import math

import numpy as np
import pytest

from vllm_capacity.errors import InputError
from vllm_capacity.verdicts.queueing import Queue, erlang_c, servers_needed


@pytest.mark.parametrize(
    ("servers", "load", "expected"),
    [
        pytest.param(1, 0.7, 0.7, id="one server: its utilization"),
        pytest.param(2, 1.0, 1 / 3, id="two servers half busy: a third"),
        pytest.param(5, 4.0, 0.5541, id="tabulated: 5 servers, 4 erlangs"),
        pytest.param(10, 8.0, 0.4092, id="tabulated: 10 servers, 8 erlangs"),
        pytest.param(3, 0.0, 0.0, id="nobody comes"),
        pytest.param(3, 3.0, 1.0, id="as much as it can bear is too much"),
        pytest.param(3, 7.0, 1.0, id="overloaded"),
        pytest.param(2000, 1900.0, 0.012, id="many servers neither overflow nor vanish"),
    ],
)
def test_erlang_c(servers, load, expected):
    assert erlang_c(servers, load) == pytest.approx(expected, abs=6e-3 if servers > 99 else 6e-5)


def test_erlang_c_is_its_definition():
    load, servers = 6.3, 9
    terms = [load**k / math.factorial(k) for k in range(servers)]
    last = load**servers / math.factorial(servers) * servers / (servers - load)
    assert erlang_c(servers, load) == pytest.approx(last / (sum(terms) + last))


def test_mm1_waits_as_in_the_textbook():
    queue = Queue(0.8, 1.0, 1)
    assert queue.wait_mean_seconds == pytest.approx(0.8 / 0.2)
    assert queue.wait_quantile_seconds(0.95) == pytest.approx(math.log(0.8 / 0.05) / 0.2)


@pytest.mark.parametrize(
    ("cv2", "factor"),
    [
        pytest.param(0.0, 0.5, id="constant service waits half as long"),
        pytest.param(0.5, 0.75, id="Erlang-2 service"),
        pytest.param(1.0, 1.0, id="exponential service"),
        pytest.param(4.0, 2.5, id="service more varied than exponential"),
    ],
)
@pytest.mark.parametrize("method", ["kimura", "allen-cunneen"])
def test_one_server_follows_pollaczek_and_khinchine(method, cv2, factor):
    queue = Queue(0.8, 1.0, 1, service_cv2=cv2, method=method)
    assert queue.wait_mean_seconds == pytest.approx(4.0 * factor)


def waits(rng, arrivals_per_second, servers, service):
    """First come first served: who waits how long, by the servers' next free moments."""
    arrivals = np.cumsum(rng.exponential(1 / arrivals_per_second, service.size))
    free = [0.0] * servers
    waited = np.empty(service.size)
    for number, (at, seconds) in enumerate(zip(arrivals, service, strict=True)):
        start = max(at, heapq.heappop(free))
        heapq.heappush(free, start + seconds)
        waited[number] = start - at
    return waited[service.size // 10 :]


SERVICES = {
    "constant": (0.0, lambda rng, n: np.full(n, 1.0)),
    "Erlang-4": (0.25, lambda rng, n: rng.gamma(4, 0.25, n)),
    "exponential": (1.0, lambda rng, n: rng.exponential(1.0, n)),
    "log-normal": (
        math.exp(0.49) - 1,
        lambda rng, n: rng.lognormal(-0.245, 0.7, n),
    ),
}


@pytest.mark.parametrize("service", SERVICES)
@pytest.mark.parametrize("servers", [2, 6])
def test_the_mean_wait_is_that_of_an_event_simulation(service, servers):
    cv2, draw = SERVICES[service]
    rng = np.random.default_rng(7)
    simulated = waits(rng, 0.8 * servers, servers, draw(rng, 120_000))
    queue = Queue(0.8 * servers, 1.0, servers, service_cv2=cv2)
    assert queue.wait_mean_seconds == pytest.approx(simulated.mean(), rel=0.10)
    assert queue.wait_probability == pytest.approx((simulated > 0).mean(), rel=0.10)
    assert queue.wait_quantile_seconds(0.95) == pytest.approx(np.quantile(simulated, 0.95), rel=0.2)


def test_an_unstable_queue_has_no_mean_and_no_quantile():
    queue = Queue(3.0, 1.0, 3)
    assert (queue.is_stable, queue.wait_mean_seconds, queue.wait_quantile_seconds(0.5)) == (
        False,
        None,
        None,
    )
    assert queue.wait_probability == 1.0


def test_a_quantile_within_those_who_do_not_wait_is_zero():
    assert Queue(1.0, 1.0, 2).wait_quantile_seconds(0.5) == 0.0


def test_without_arrivals_nobody_waits():
    queue = Queue(0.0, 1.0, 2, service_cv2=0.0)
    assert (queue.wait_mean_seconds, queue.wait_quantile_seconds(0.99)) == (0.0, 0.0)


def test_the_fewest_servers_meet_the_limit_and_one_fewer_does_not():
    queue = Queue(10.0, 1.0, 1, service_cv2=0.5)
    fewest = servers_needed(queue, q=0.95, limit_seconds=0.5)
    limits = [
        Queue(10.0, 1.0, servers, service_cv2=0.5).wait_quantile_seconds(0.95)
        for servers in (fewest - 1, fewest)
    ]
    assert limits[0] > 0.5 >= limits[1]


def test_more_load_than_any_number_of_servers_can_bear_is_none():
    assert servers_needed(Queue(200_000.0, 1.0, 1), q=0.5, limit_seconds=1.0) is None


def test_a_large_load_needs_slightly_more_servers_than_it_keeps_busy():
    needed = servers_needed(Queue(20_000.0, 1.0, 1), q=0.95, limit_seconds=0.01)
    assert 20_000 < needed < 20_500


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param((1.0, 1.0, 0), "1 server", id="no server"),
        pytest.param((-1.0, 1.0, 1), "arrivals_per_second", id="negative arrivals"),
        pytest.param((1.0, math.nan, 1), "service_mean_seconds", id="not a number"),
        pytest.param((1.0, 1.0, 2, 1.0, 2.0), "allen-cunneen", id="Kimura wants Poisson"),
    ],
)
def test_an_impossible_queue_is_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        Queue(*arguments)


@pytest.mark.parametrize("q", [-0.1, 1.0])
def test_a_quantile_outside_its_range_is_refused(q):
    with pytest.raises(InputError, match="quantile"):
        Queue(1.0, 1.0, 2).wait_quantile_seconds(q)
