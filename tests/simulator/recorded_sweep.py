"""The recorded sweep's requests, replayed through the simulator, step by step."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from vllm_simulator.config import Request
from vllm_simulator.core import Engine
from vllm_simulator.scenarios import CPU_SERVER
from vllm_simulator.simulate import simulate
from vllm_simulator.workload import ClosedLoop, Phase, recorded

HERE = Path(__file__).parent
CLIENTS = (1, 2, 4, 8, 16, 32, 48, 64)
STEP_SECONDS, LEFT_OUT_SECONDS, SCRAPE_SECONDS = 180, 20, 2
UNKNOWN_PROMPT_TOKENS = 230  # cancelled before the server reported its length


@dataclass(frozen=True)
class Point:
    """One load step: means over its scrapes, rates over its counters."""

    generated_per_second: float
    running: float
    waiting: float
    kv_ratio: float
    preemptions: float


def recorded_points() -> dict[int, Point]:
    with (HERE / "sweep_steps.csv").open() as file:
        return {
            int(row["conc"]): Point(
                float(row["gen_tok_s"]),
                float(row["run"]),
                float(row["wait"]),
                float(row["kv_mean"]),
                float(row["preempt"]),
            )
            for row in csv.DictReader(file)
        }


def recorded_requests() -> list[list[Request]]:
    """Per step, the requests in the order they were sent; n=2 becomes two of them."""
    of_step: dict[int, list[Request]] = {clients: [] for clients in CLIENTS}
    with (HERE / "sweep_requests.csv").open() as file:
        for row in csv.DictReader(file):
            request = Request(
                arrival_seconds=0.0,
                prompt_tokens=int(row["prompt_tokens"] or UNKNOWN_PROMPT_TOKENS),
                output_tokens=int(row["output_tokens"] or row["max_tokens"]),
                prefix=int(row["prefix"]) if row["prefix"] else None,
                prefix_tokens=int(row["prefix_tokens"]),
                max_tokens=int(row["max_tokens"]),
                cancel_after_seconds=float(row["cancel_after_seconds"] or 0) or None,
            )
            of_step[int(row["clients"])] += [request] * int(row["n"])
    return [of_step[clients] for clients in CLIENTS]


def simulated_points(
    clients: tuple[int, ...] = CLIENTS, *, seed: int = 1, step_seconds: int = STEP_SECONDS
) -> dict[int, Point]:
    """The simulated counterpart of those steps, the first 20 s of each left out as well."""
    requests = dict(zip(CLIENTS, recorded_requests(), strict=True))
    loop = ClosedLoop(
        tuple(Phase(count, step_seconds) for count in clients),
        recorded([requests[count] for count in clients]),
        think_seconds=0.008,
    )
    seen: list[tuple[float, int, int, float, int, int]] = []

    def keep(at: float, engine: Engine) -> None:
        stats = engine.stats
        gauges = stats.gauges
        seen.append(
            (
                at,
                gauges.running,
                gauges.waiting,
                gauges.kv_usage_ratio,
                stats.generation_tokens,
                stats.preemptions,
            )
        )

    end = len(clients) * step_seconds
    times = range(0, end + 1, SCRAPE_SECONDS)
    simulate(CPU_SERVER, loop, scrape_seconds=times, on_scrape=keep, seed=seed)
    points = {}
    for ordinal, count in enumerate(clients):
        first = ordinal * step_seconds + LEFT_OUT_SECONDS
        inside = [row for row in seen if first <= row[0] <= (ordinal + 1) * step_seconds]
        seconds = inside[-1][0] - inside[0][0]
        points[count] = Point(
            (inside[-1][4] - inside[0][4]) / seconds,
            sum(row[1] for row in inside) / len(inside),
            sum(row[2] for row in inside) / len(inside),
            sum(row[3] for row in inside) / len(inside),
            inside[-1][5] - inside[0][5],
        )
    return points
