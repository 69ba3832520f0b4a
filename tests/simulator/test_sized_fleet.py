"""Replicas sized by the product, tried on the simulator: do they meet what they were sized for?

The capacity comes the way a user's does: a window (here of a simulated server under more and more
clients), the plan of it under targets. The demand is then replayed on that many simulated engines,
and what they measure is judged by the same figures as any window's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from msgspec.structs import replace
from polars.testing import assert_frame_equal

from tests.answering import answer, assumed, plan
from vllm_capacity.assumptions import Assumptions
from vllm_capacity.plan import PlanRequest
from vllm_capacity.telemetry.rows import RowBuffer
from vllm_capacity.telemetry.store import write_window
from vllm_capacity.telemetry.window import Window, open_window
from vllm_capacity.verdicts.demand.forecast import forecast_demand
from vllm_capacity.verdicts.queueing import Queue, servers_needed
from vllm_capacity.verdicts.sizing import Policy, percentile_demand, queue_check
from vllm_simulator.config import EngineConfig, Request, StepTime
from vllm_simulator.exposition import record
from vllm_simulator.scenarios import A100_SERVER, CPU_LENGTHS, CPU_SERVER, Scenario
from vllm_simulator.simulate import provenance, replay, run_scenario, simulate
from vllm_simulator.workload import (
    Arrivals,
    ClosedLoop,
    OpenLoop,
    Phase,
    poisson_requests,
    recorded,
    sampled,
)

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "demand"
LENGTHS = replace(CPU_LENGTHS, cancel_ratio=0.0)
# Bucket edges of vLLM's histograms, so that SLO attainment is known exactly.
SLO = assumed(ttft_slo_seconds=1.0, itl_slo_seconds=0.1)
TTFT_SLO = assumed(ttft_slo_seconds=2.5)
BARE = Policy(headroom_ratio=0.0, spare_replicas=0)
CAREFUL = Policy(headroom_ratio=0.2, spare_replicas=1)
AHEAD = pl.col("ts_seconds") >= 1800
BORN = datetime(2026, 11, 2, 9, tzinfo=UTC)


def window_of(path, rows, note):
    write_window(path, rows, note)
    return open_window(path)


def ladder(config, draw, clients: Sequence[int], seconds: int) -> Scenario:
    """A server under more and more clients: the load test that shows its capacity."""
    phases = tuple(Phase(count, seconds) for count in clients)
    return Scenario(
        "ladder",
        "more and more clients",
        config,
        lambda seed: ClosedLoop(phases, draw, think_seconds=0.008),
        seconds=seconds * len(phases),
        scrape_seconds=2,
        target="r0",
        assumptions=(),
    )


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> Window:
    """The window of one replica under 1 to 48 clients."""
    known = ladder(CPU_SERVER, sampled(LENGTHS, 1), (1, 2, 4, 8, 16, 24, 32, 48), 120)
    path = tmp_path_factory.mktemp("measured") / "ladder"
    return window_of(path, run_scenario(known).rows, provenance(known))


@dataclass(frozen=True)
class Fleet:
    """The result of a replay: one row per request, and the answer of the window of its scrapes."""

    requests: pl.DataFrame
    answer: dict

    def attained(self, name):
        return self.answer["slo"][f"{name}_attainment"]

    @property
    def keeps(self):
        """Whether 95 % of requests, and of tokens, surely met the targets."""
        asked = [self.attained(name) for name in ("ttft", "itl")]
        return all(each["low"] >= 0.95 for each in asked if each["mid"] is not None)


def tried(requests: list[Request], replicas: int, terms: Assumptions, path: Path) -> Fleet:
    """The requests on that many replicas, behind a router that picks the least loaded.

    The router's choice is replayed engine by engine, to be scraped as a fleet is.
    """
    requests = sorted(requests, key=lambda request: request.arrival_seconds)
    routed = replay(requests, CPU_SERVER, replicas=replicas)
    arrivals = {request.arrival_seconds: request for request in requests}
    buffer, lasted = RowBuffer(), int(routed["end_seconds"].max()) + 10
    epoch = BORN.timestamp()
    for number in range(replicas):
        own = routed.filter(pl.col("replica") == number)
        mine = OpenLoop([arrivals[at] for at in own["arrival_seconds"]])

        def keep(at, engine, name=f"r{number}"):
            seconds = epoch + at
            record(buffer, engine.stats, process_start_seconds=epoch - 60, t_seconds=seconds,
                   target=name)  # fmt: skip

        ended = simulate(CPU_SERVER, mine, scrape_seconds=range(0, lasted, 5), on_scrape=keep,
                         seed=number)  # fmt: skip
        assert_frame_equal(ended.drop("replica"), own.drop("replica"))
    window = window_of(path, buffer.rows(), {"simulated": True, "source": {"kind": "simulation"}})
    return Fleet(routed, answer(window, terms=terms))


def poisson(rate, seconds, seed):
    return poisson_requests(Arrivals(round(rate * seconds), 0.0, seconds), LENGTHS, seed)


@pytest.mark.parametrize(
    ("terms", "rate"),
    [
        pytest.param(SLO, 3.0, id="both targets, a few replicas"),
        pytest.param(TTFT_SLO, 9.0, id="first token alone, more of them"),
    ],
)
def test_replicas_sized_for_a_steady_demand_keep_the_targets(measured, terms, rate, tmp_path):
    result = plan(
        measured, PlanRequest(demand_requests_per_second=rate, policy=CAREFUL), terms=terms
    )
    working = round(result["replicas"]["mid"]) - CAREFUL.spare_replicas
    assert tried(poisson(rate, 200, seed=5), working, terms, tmp_path / "w").keeps


@pytest.fixture(scope="module")
def planned(measured) -> dict:
    """The plan of twelve requests per second, without headroom or spare."""
    asked = PlanRequest(demand_requests_per_second=12.0, policy=BARE)
    return plan(measured, asked, terms=TTFT_SLO)


@pytest.fixture(scope="module")
def fleets(planned, tmp_path_factory) -> dict[int, Fleet]:
    """Those requests on as many replicas as were planned, and on one fewer, by the difference."""
    folder, count = tmp_path_factory.mktemp("twelve"), round(planned["replicas"]["mid"])
    demand = poisson(12.0, 240, seed=5)
    return {
        more: tried(demand, count + more, TTFT_SLO, folder / f"{count + more}") for more in (0, -1)
    }


def test_one_replica_fewer_than_it_takes_breaks_the_target(fleets):
    enough, fewer = fleets[0], fleets[-1]
    assert enough.requests["ttft_seconds"].quantile(0.95) <= 2.5
    assert fewer.requests["ttft_seconds"].quantile(0.95) > 2 * 2.5
    assert (enough.keeps, fewer.keeps) == (True, False)


def diurnal(days, seed):
    """Ten-minute counts of a service with a daily cycle, 1 to 9 requests per second, and noise."""
    steps = np.arange(days * 144)
    rate = 5.0 - 4.0 * np.cos(2 * np.pi * steps / 144)
    counts = np.random.default_rng(seed).poisson(600 * rate)
    ts = [BORN.replace(hour=0) + timedelta(minutes=10 * int(i)) for i in steps]
    return pl.DataFrame({"ts": ts, "requests": counts})


@dataclass(frozen=True)
class Sized:
    """The day that came after the forecast, and the replicas that the forecast asked for."""

    day: pl.DataFrame
    result: dict

    @property
    def working(self):
        """Without the spare: it may be the one that failed."""
        return round(self.result["replicas"]["mid"]) - CAREFUL.spare_replicas


@pytest.fixture(scope="module")
def sized(measured) -> Sized:
    """Sized on the highest forecast hour, its upper end, and short peaks above it."""
    series = diurnal(9, seed=3)
    history, day = series.head(8 * 144), series.tail(144)
    found = forecast_demand(history)
    demand = found.frame["high"].max() / 3600 * found.peak_over_mean.mid
    asked = PlanRequest(demand_requests_per_second=demand, policy=CAREFUL)
    return Sized(day, plan(measured, asked, terms=SLO))


def test_replicas_sized_on_a_forecast_keep_the_targets_through_the_busiest_hour(sized, tmp_path):
    hours = sized.day.group_by_dynamic("ts", every="1h").agg(pl.col("requests").sum())
    demand = poisson(hours["requests"].max() / 3600, 400, seed=11)
    fleet = tried(demand, sized.working, SLO, tmp_path / "w")
    assert fleet.requests["ttft_seconds"].quantile(0.95) <= 1.0
    assert fleet.requests["itl_mean_seconds"].quantile(0.95) <= 0.1
    assert fleet.keeps


def test_replicas_sized_on_a_forecast_keep_the_targets_through_the_day(sized, tmp_path):
    """The whole day, each ten minutes of it compressed into four seconds at the same rate."""
    day = [
        replace(request, arrival_seconds=request.arrival_seconds + 4.0 * step)
        for step, count in enumerate(sized.day["requests"])
        for request in poisson(count / 600, 4.0, seed=step)
    ]
    assert tried(day, sized.working, SLO, tmp_path / "w").keeps


def test_forecast_never_asks_for_fewer_than_the_day_needed(measured, sized):
    came = sized.day["requests"].max() / 600
    needed = plan(measured, PlanRequest(demand_requests_per_second=came, policy=CAREFUL), terms=SLO)
    assert sized.result["replicas"]["mid"] >= needed["replicas"]["mid"]


# Steps take the same time at any load, so each slot serves independently, as in an M/G/c queue.
PLACES = EngineConfig(
    "places", 20_000, StepTime(0.03, 0.0, 0.0), max_num_seqs=8, max_model_len=4000
)


def served(count):
    """Output tokens of so many requests, and the seconds each takes a place for."""
    tokens = np.maximum(1, np.random.default_rng(8).lognormal(4.3, 0.6, count).astype(int))
    return tokens, 0.03 * tokens


def extrapolated(replicas, busy_ratio, count=4000):
    """The queue of Poisson arrivals that keep the places so busy."""
    _, seconds = served(count)
    rate = busy_ratio * 8 * replicas / seconds.mean()
    cv2 = (seconds.std() / seconds.mean()) ** 2
    return Queue(rate, seconds.mean(), 8 * replicas, service_cv2=cv2)


def waits(replicas, rate, count=4000):
    """What requests at that rate waited in a replay, seconds."""
    tokens, _ = served(count)
    arrivals = np.cumsum(np.random.default_rng(3).exponential(1 / rate, count))
    requests = pl.DataFrame(
        {"arrival_seconds": arrivals, "prompt_tokens": [50] * count, "output_tokens": tokens}
    )
    return replay(requests, PLACES, replicas=replicas)["queue_seconds"]


@pytest.mark.parametrize(
    ("replicas", "busy_ratio"),
    [
        pytest.param(1, 0.7, id="one replica, 70 % busy"),
        pytest.param(1, 0.85, id="one replica, 85 % busy"),
        pytest.param(3, 0.85, id="three replicas, 85 % busy"),
    ],
)
def test_wait_is_that_of_a_queue_whose_servers_are_the_running_places(replicas, busy_ratio):
    queue = extrapolated(replicas, busy_ratio)
    seen = waits(replicas, queue.arrivals_per_second)
    assert seen.mean() == pytest.approx(queue.wait_mean_seconds, rel=0.25)
    assert seen.quantile(0.95) == pytest.approx(queue.wait_quantile_seconds(0.95), rel=0.25)


def test_queue_and_replay_agree_on_the_fewest_replicas():
    queue = extrapolated(3, 0.85)
    fewest = -(-servers_needed(queue, q=0.95, limit_seconds=0.5) // 8)
    enough, fewer = (
        waits(count, queue.arrivals_per_second, 3000).quantile(0.95)
        for count in (fewest, fewest - 1)
    )
    assert enough <= 0.5 < fewer


@pytest.mark.parametrize(
    ("more", "is_enough"),
    [
        pytest.param(0, True, id="as many as planned hold the limit"),
        pytest.param(-1, False, id="one fewer do not"),
    ],
)
def test_queue_and_replay_agree_on_a_plan(measured, planned, fleets, more, is_enough):
    output_tokens = planned["demand_output_tokens_per_second"]["mid"] / 12.0
    check = queue_check(
        requests_per_second=12.0,
        capacity_requests_per_second=planned["capacity_output_tokens_per_second"]["mid"]
        / output_tokens,
        running_at_capacity=answer(measured)["saturation"]["capacity_running_requests"]["mid"],
        replicas=round(planned["replicas"]["mid"]) + more,
        wait_limit_seconds=1.0,
    )
    seen = fleets[more].requests["queue_seconds"]
    assert check.is_within_limit == is_enough
    assert (seen.quantile(0.95) <= 1.0) == is_enough


@pytest.mark.shared
def test_replicas_sized_on_half_an_hour_of_a_real_service_keep_the_targets_in_the_next(tmp_path):
    """Arrivals and lengths of a recorded service, four times as fast, on simulated A100s."""
    trace = pl.read_parquet(SHARED / "azure2023_conv_requests.parquet").with_columns(
        arrival_seconds=pl.col("ts_seconds") / 4
    )
    past, ahead = (trace.filter(each) for each in (~AHEAD, AHEAD))
    terms = assumed(ttft_slo_seconds=1.0, itl_slo_seconds=0.1)
    asked = [Request(0.0, *row) for row in past.select("prompt_tokens", "output_tokens").rows()]
    clients = (2, 8, 16, 32, 64, 96, 160, 224)
    known = ladder(A100_SERVER, recorded([asked] * len(clients)), clients, 60)
    window = window_of(tmp_path / "ladder", run_scenario(known).rows, provenance(known))
    minutes = past.group_by(pl.col("arrival_seconds") // 15).len()["len"] / 15
    demand = percentile_demand(minutes.to_list(), 0.95).mid
    result = plan(window, PlanRequest(demand_requests_per_second=demand, policy=BARE), terms=terms)
    needed = round(result["replicas"]["mid"])
    enough, fewer = (
        replay(ahead.head(4500), A100_SERVER, replicas=count) for count in (needed, needed - 1)
    )
    assert needed >= 2
    assert enough["ttft_seconds"].quantile(0.95) <= 1.0
    assert enough["itl_mean_seconds"].quantile(0.95) <= 0.1
    assert fewer["ttft_seconds"].quantile(0.95) > 1.0
