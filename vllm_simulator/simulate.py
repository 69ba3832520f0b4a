"""Runs simulated engines: scenarios with scrapes, and recorded traffic replayed on replicas.

For example data and for checking methods. The output is never telemetry, and is labeled as
simulated wherever it is shown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import cycle
from typing import Any, Literal

import polars as pl
from msgspec import Struct, field

from vllm_capacity.errors import InputError
from vllm_capacity.telemetry.rows import RowBuffer, Rows
from vllm_simulator import config as c
from vllm_simulator.core import Engine
from vllm_simulator.exposition import record, saved_scrape
from vllm_simulator.scenarios import Scenario
from vllm_simulator.workload import Workload

Routing = Literal["least-loaded", "round-robin"]

REQUESTS_SCHEMA: dict[str, Any] = {
    "replica": pl.Int64,
    "arrival_seconds": pl.Float64,
    "end_seconds": pl.Float64,
    "prompt_tokens": pl.Int64,
    "output_tokens": pl.Int64,  # generated; fewer than asked if cancelled
    "cached_tokens": pl.Int64,
    "preemptions": pl.Int64,
    "queue_seconds": pl.Float64,
    "ttft_seconds": pl.Float64,  # null if cancelled before the first token
    "itl_mean_seconds": pl.Float64,  # null with fewer than two tokens
    "e2e_seconds": pl.Float64,  # null if cancelled
    "status": pl.String,  # stop, length, cancelled
}


class RequestLog(Struct):
    """Collects requests as they end."""

    frontend_seconds: float
    _rows: list[tuple[Any, ...]] = field(default_factory=list)

    def of(self, replica: int) -> Callable[[c.EngineRequest], None]:
        """The callback that logs the ended requests of one replica."""
        return lambda request: self._rows.append(self._row(replica, request))

    def frame(self) -> pl.DataFrame:
        """One row per request (`REQUESTS_SCHEMA`), by arrival; empty without requests."""
        frame = pl.DataFrame(self._rows, schema=REQUESTS_SCHEMA, orient="row")
        return frame.sort("arrival_seconds", "end_seconds", maintain_order=True)

    def _row(self, replica: int, request: c.EngineRequest) -> tuple[Any, ...]:
        spec = request.spec
        is_finished = request.generated == spec.output_tokens
        since = spec.arrival_seconds - self.frontend_seconds
        decode = None if request.first_at is None else request.last_at - request.first_at
        is_many = decode is not None and request.generated > 1
        return (
            replica,
            spec.arrival_seconds,
            request.last_at,
            spec.prompt_tokens,
            request.generated,
            request.cached_tokens,
            request.preemptions,
            None if request.scheduled_at is None else request.scheduled_at - request.queued_at,
            None if request.first_at is None else request.first_at - since,
            decode / (request.generated - 1) if is_many and decode is not None else None,
            request.last_at - since if is_finished else None,
            spec.finish_reason if is_finished else "cancelled",
        )


def simulate(
    config: c.EngineConfig,
    workload: Workload,
    *,
    scrape_seconds: Iterable[float],
    on_scrape: Callable[[float, Engine], None],
    seed: int = 0,
) -> pl.DataFrame:
    """Simulate one engine; returns one row per ended request (`REQUESTS_SCHEMA`), by arrival.

    `on_scrape` gets the engine at each of the ascending scrape times, in seconds since its start;
    the last one ends the simulation.
    """
    log = RequestLog(config.frontend_seconds)
    engine = Engine(config, seed=seed, follow_up=workload.follow_up, on_end=log.of(0))
    for request in workload.initial():
        engine.submit(request)
    for at in scrape_seconds:
        engine.advance(at)
        on_scrape(at, engine)
    return log.frame()


def replay(
    requests: pl.DataFrame | Sequence[c.Request],
    config: c.EngineConfig,
    *,
    replicas: int = 1,
    routing: Routing = "least-loaded",
    seed: int = 0,
) -> pl.DataFrame:
    """Replay requests on `replicas` equal engines until all are served.

    Returns one row per request (`REQUESTS_SCHEMA`), by arrival; none without requests. `requests`
    has arrival_seconds, prompt_tokens, output_tokens, and may have prefix and prefix_tokens.
    `least-loaded` compares the requests in each engine at the arrival; ties go to the first engine.
    Raises InputError for a missing column, an unknown routing or fewer than 1 replica.
    """
    if replicas < 1:
        raise InputError(f"A replay needs 1 replica or more; got {replicas}.")
    arriving = _requests_of(requests)
    log = RequestLog(config.frontend_seconds)
    engines = [Engine(config, seed=seed + n, on_end=log.of(n)) for n in range(replicas)]
    if routing == "round-robin" or replicas == 1:
        for request, engine in zip(arriving, cycle(engines), strict=False):
            engine.submit(request)
    elif routing == "least-loaded":
        for request in arriving:
            for engine in engines:
                engine.advance(request.arrival_seconds)
            min(engines, key=lambda engine: engine.load).submit(request)
    else:
        raise InputError(f"No routing {routing!r}; there are least-loaded and round-robin.")
    for engine in engines:
        engine.advance(float("inf"))
    return log.frame()


def _requests_of(requests: pl.DataFrame | Sequence[c.Request]) -> list[c.Request]:
    if not isinstance(requests, pl.DataFrame):
        return sorted(requests, key=lambda request: request.arrival_seconds)
    needed = ["arrival_seconds", "prompt_tokens", "output_tokens"]
    missing = [name for name in needed if name not in requests.columns]
    if missing:
        raise InputError(
            f"A replay needs the columns {', '.join(needed)}; {', '.join(missing)} not found."
        )
    optional = [name for name in ("prefix", "prefix_tokens") if name in requests.columns]
    rows = requests.select(*needed, *optional).sort("arrival_seconds", maintain_order=True)
    return [c.Request(**row) for row in rows.iter_rows(named=True)]


_PROCESS_LEAD_SECONDS = 60  # age of the process at the first scrape


class Outcome(Struct, frozen=True):
    """Result of a scenario: rows as from a source, or saved scrapes, and the truth per request."""

    rows: Rows | None
    lines: tuple[str, ...]
    requests: pl.DataFrame


def run_scenario(scenario: Scenario, *, seed: int | None = None, as_text: bool = False) -> Outcome:
    """Run a scenario to its end; with `as_text`, as lines of saved scrapes instead of rows."""
    chosen = scenario.seed if seed is None else seed
    buffer = RowBuffer()
    lines: list[str] = []
    epoch = scenario.start.timestamp()
    born = epoch - _PROCESS_LEAD_SECONDS

    def keep(at: float, engine: Engine) -> None:
        if as_text:
            lines.append(saved_scrape(engine.stats, born, epoch + at, scenario.target))
        else:
            record(
                buffer,
                engine.stats,
                process_start_seconds=born,
                t_seconds=epoch + at,
                target=scenario.target,
            )

    requests = simulate(
        scenario.config,
        scenario.workload(chosen),
        scrape_seconds=scenario.scrape_times,
        on_scrape=keep,
        seed=chosen,
    )
    return Outcome(None if as_text else buffer.rows(), tuple(lines), requests)


def provenance(scenario: Scenario, seed: int | None = None) -> dict[str, object]:
    """The provenance of a simulated window; its first entry says that it is simulated."""
    config = scenario.config
    return {
        "simulated": True,
        "source": {"kind": "simulation", "origin": f"scenario {scenario.name}"},
        "about": f"Simulated, not measured: {scenario.about}.",
        "assumptions": list(scenario.assumptions),
        "seed": scenario.seed if seed is None else seed,
        "targets": [scenario.target],
        "scrape_interval_seconds": scenario.scrape_seconds,
        "engine": {
            "semantics": "vLLM 0.32, simulated",
            "num_gpu_blocks": config.num_gpu_blocks,
            "block_size": config.block_size,
            "max_num_seqs": config.max_num_seqs,
            "max_num_batched_tokens": config.max_num_batched_tokens,
            "max_model_len": config.max_model_len,
        },
    }
