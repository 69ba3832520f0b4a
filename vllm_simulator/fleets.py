"""Simulated fleets behind load balancers: deployments, and when each of their replicas runs.

Each deployment serves one model. Its requests go to its replicas in turn. A replica may get no
requests, be slower than the others, or end and be replaced under another name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import polars as pl
from msgspec import Struct, field
from msgspec.structs import replace

from vllm_capacity.telemetry.rows import RowBuffer
from vllm_simulator.config import EngineConfig, Request, StepTime
from vllm_simulator.core import Engine
from vllm_simulator.exposition import record
from vllm_simulator.scenarios import A100_LENGTHS, A100_SERVER
from vllm_simulator.simulate import Outcome, RequestLog
from vllm_simulator.workload import Arrivals, Lengths, poisson_requests

_DRAIN_SECONDS = 120.0  # a replica gets no requests in this time before its end
_PROCESS_LEAD_SECONDS = 3600.0  # age of the youngest initial replica when the window begins
_ROLLOUT_SECONDS = 97.0  # between the starts of two initial replicas


class Replica(Struct, frozen=True):
    """One process; `end_seconds` is inf if it outlives the window, `is_used` False if idle."""

    target: str
    labels: Mapping[str, str] = field(default_factory=dict)
    slowness: float = 1.0
    is_used: bool = True
    start_seconds: float = -_PROCESS_LEAD_SECONDS
    end_seconds: float = math.inf

    def takes(self, at_seconds: float) -> bool:
        """Whether the balancer may send it requests at that time."""
        last = self.end_seconds - _DRAIN_SECONDS
        return self.is_used and self.start_seconds <= at_seconds < last


class Deployment(Struct, frozen=True):
    """The replicas of one model, and the requests for it."""

    config: EngineConfig
    arrivals: tuple[Arrivals, ...]
    lengths: Lengths
    replicas: tuple[Replica, ...]

    def requests(self, seed: int) -> list[Request]:
        """All requests, by arrival."""
        parts = [
            poisson_requests(arrivals, self.lengths, seed + number)
            for number, arrivals in enumerate(self.arrivals)
        ]
        return sorted((one for part in parts for one in part), key=lambda one: one.arrival_seconds)


class FleetScenario(Struct, frozen=True):
    """A fleet that can be simulated by name."""

    name: str
    about: str
    deployments: tuple[Deployment, ...]
    seconds: int
    scrape_seconds: int
    assumptions: tuple[str, ...]
    start: datetime
    seed: int = 1

    @property
    def scrape_times(self) -> range:
        """Scrape times in seconds since the start, from 0 to the end inclusive."""
        return range(0, self.seconds + 1, self.scrape_seconds)

    @property
    def targets(self) -> list[str]:
        """The names of all replicas, sorted."""
        return sorted(one.target for each in self.deployments for one in each.replicas)


def run_fleet(fleet: FleetScenario, *, seed: int | None = None) -> Outcome:
    """Run a fleet to its end: rows as from a source, and the truth per request.

    `requests` has one row per request (`REQUESTS_SCHEMA`); `replica` is the index of its target in
    `FleetScenario.targets`.
    """
    chosen = fleet.seed if seed is None else seed
    buffer, logs = RowBuffer(), []
    for number, deployment in enumerate(fleet.deployments):
        log = RequestLog(deployment.config.frontend_seconds)
        shares = _shared(deployment, deployment.requests(100 * chosen + 10 * number))
        for replica, requests in zip(deployment.replicas, shares, strict=True):
            place = fleet.targets.index(replica.target)
            _run_replica(fleet, deployment, replica, requests, buffer, log, place)
        logs.append(log.frame())
    return Outcome(buffer.rows(), (), pl.concat(logs).sort("arrival_seconds", maintain_order=True))


def _shared(deployment: Deployment, requests: Sequence[Request]) -> list[list[Request]]:
    """The requests of each replica: they go in turn to the replicas that take any at that time."""
    shares: list[list[Request]] = [[] for _ in deployment.replicas]
    for turn, request in enumerate(requests):
        able = [
            share
            for replica, share in zip(deployment.replicas, shares, strict=True)
            if replica.takes(request.arrival_seconds)
        ]
        able[turn % len(able)].append(request)
    return shares


def _run_replica(
    fleet: FleetScenario,
    deployment: Deployment,
    replica: Replica,
    requests: Sequence[Request],
    buffer: RowBuffer,
    log: RequestLog,
    place: int,
) -> None:
    """Simulate one replica from its first scrape to its last."""
    config = replace(deployment.config, step_time=_slower(deployment.config, replica.slowness))
    engine = Engine(config, seed=1000 * fleet.seed + place, on_end=log.of(place))
    for request in requests:
        engine.submit(request)
    epoch = fleet.start.timestamp()
    for at in fleet.scrape_times:
        if replica.start_seconds <= at < replica.end_seconds:
            engine.advance(at)
            record(
                buffer,
                engine.stats,
                process_start_seconds=epoch + replica.start_seconds,
                t_seconds=epoch + at,
                target=replica.target,
                target_labels=replica.labels,
            )


def _slower(config: EngineConfig, factor: float) -> StepTime:
    time = config.step_time
    return replace(
        time,
        base_seconds=factor * time.base_seconds,
        per_sequence_seconds=factor * time.per_sequence_seconds,
        per_prefill_token_seconds=factor * time.per_prefill_token_seconds,
        per_context_token_seconds=factor * time.per_context_token_seconds,
    )


def provenance(fleet: FleetScenario, seed: int | None = None) -> dict[str, object]:
    """The provenance of the simulated window; its first entry says that it is simulated."""
    return {
        "simulated": True,
        "source": {"kind": "simulation", "origin": f"fleet {fleet.name}"},
        "about": f"Simulated, not measured: {fleet.about}.",
        "assumptions": list(fleet.assumptions),
        "seed": fleet.seed if seed is None else seed,
        "targets": fleet.targets,
        "scrape_interval_seconds": fleet.scrape_seconds,
    }


def _replicas(deployment: str, team: str, count: int) -> list[Replica]:
    labels = {
        "deployment": deployment,
        "namespace": "inference",
        "team": team,
        "gpu_type": "A100-80GB-PCIe",
    }
    return [
        Replica(
            f"{deployment}-{n}:8000",
            {**labels, "pod": f"{deployment}-{n}"},
            start_seconds=-_PROCESS_LEAD_SECONDS - _ROLLOUT_SECONDS * n,
        )
        for n in range(count)
    ]


def _chat() -> tuple[Replica, ...]:
    """Five replicas: the first idle, the last replaced on the second day."""
    idle, *others, old = _replicas("chat", "assistant", 5)
    at = 30 * 3600.0
    new = replace(
        old,
        target="chat-5:8000",
        labels={**old.labels, "pod": "chat-5"},
        start_seconds=at + 180,
    )
    return (replace(idle, is_used=False), *others, replace(old, end_seconds=at), new)


def _code() -> tuple[Replica, ...]:
    """Three replicas, the last slower than the others."""
    *others, slow = _replicas("code", "developers", 3)
    return (*others, replace(slow, slowness=1.8))


_DAY = 86_400.0
_TWO_DAYS = 172_800
# 80 GiB x 0.92 less 61 GiB of weights and 4 GiB; 256 KiB per token, 16 tokens per block. Each step
# reads the weights once: 66 GB at about 1.7 TB/s.
_CODE_SERVER = EngineConfig(
    model_name="Qwen/Qwen2.5-Coder-32B-Instruct",
    num_gpu_blocks=2_100,
    step_time=StepTime(0.040, 0.0008, 0.0004, jitter_ratio=0.06),
    max_num_seqs=32,
    max_model_len=8192,
    frontend_seconds=0.004,
)
_CODE_LENGTHS = Lengths(
    prompt_median=320,
    prompt_sigma=0.7,
    output_median=230,
    output_sigma=0.5,
    max_prompt_tokens=2000,
    max_output_tokens=800,
)

FLEETS: tuple[FleetScenario, ...] = (
    FleetScenario(
        "fleet-two-models",
        "two days of 8 replicas of two models: one idle, one slow, a pod replaced",
        (
            Deployment(
                A100_SERVER, (Arrivals(9_000, 0.0, _TWO_DAYS, 0.9, _DAY),), A100_LENGTHS, _chat()
            ),
            Deployment(
                _CODE_SERVER,
                (
                    Arrivals(7_000, 0.0, _TWO_DAYS, 0.9, _DAY),
                    Arrivals(8_000, 21_600.0, 24_300.0),
                ),
                _CODE_LENGTHS,
                _code(),
            ),
        ),
        seconds=_TWO_DAYS,
        scrape_seconds=60,
        assumptions=(
            "nothing here was measured: replicas, loads, lengths and labels are invented",
            "chat: the server and lengths of the scenario a100-gpt-oss-20b; a day's wave of load",
            "code: a step of 40 ms + 0.8 ms per running sequence + 0.4 ms per prefill token, "
            "about what 32 billion parameters take on an A100; one of three takes 1.8 times as "
            "long; a rush of 45 minutes on the first afternoon",
        ),
        start=datetime(2026, 11, 16, 8, tzinfo=UTC),
    ),
)
