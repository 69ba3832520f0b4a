"""A scenario run to its end: what a scraper would have seen of it, and the truth behind that."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from vllm_capacity.telemetry.rows import RowBuffer, Rows
from vllm_simulator.core import Engine
from vllm_simulator.exposition import record, saved_scrape
from vllm_simulator.scenarios import Scenario
from vllm_simulator.simulate import simulate

_PROCESS_LEAD_SECONDS = 60  # the process is that old at the first scrape


@dataclass(frozen=True)
class Outcome:
    """What a scenario gave: rows as a source would, or saved scrapes, and the truth per request."""

    rows: Rows | None
    lines: tuple[str, ...]
    requests: pl.DataFrame


def run_scenario(scenario: Scenario, *, seed: int | None = None, as_text: bool = False) -> Outcome:
    """The scenario run to its end. `as_text` gives lines of saved scrapes instead of rows."""
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
    """The note that goes with a simulated window; it says first that it is one."""
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
