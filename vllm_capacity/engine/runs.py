"""A scenario run to its end: what a scraper would have seen of it, and the truth behind that."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from vllm_capacity.engine.core import Engine
from vllm_capacity.engine.exposition import record, saved_scrape
from vllm_capacity.engine.scenarios import Scenario
from vllm_capacity.engine.simulate import simulate
from vllm_capacity.telemetry.rows import RowBuffer, Rows

_PROCESS_LEAD_SECONDS = 60  # the process is that old at the first scrape


@dataclass(frozen=True)
class Outcome:
    """What a scenario gave: rows as a source would, or saved scrapes, and the truth per request."""

    rows: Rows | None
    lines: tuple[str, ...]
    requests: pl.DataFrame


def run_scenario(known: Scenario, *, seed: int | None = None, as_text: bool = False) -> Outcome:
    """The scenario run to its end. `as_text` gives lines of saved scrapes instead of rows."""
    chosen = known.seed if seed is None else seed
    buffer = RowBuffer()
    lines: list[str] = []
    epoch = known.start.timestamp()
    born = epoch - _PROCESS_LEAD_SECONDS

    def keep(at: float, engine: Engine) -> None:
        if as_text:
            lines.append(saved_scrape(engine.stats, born, epoch + at, known.target))
        else:
            record(
                buffer,
                engine.stats,
                process_start_seconds=born,
                t_seconds=epoch + at,
                target=known.target,
            )

    requests = simulate(
        known.config,
        known.workload(chosen),
        scrape_seconds=known.scrape_times,
        on_scrape=keep,
        seed=chosen,
    )
    return Outcome(None if as_text else buffer.rows(), tuple(lines), requests)


def provenance(known: Scenario, seed: int | None = None) -> dict[str, object]:
    """The note that goes with a simulated window; it says first that it is one."""
    config = known.config
    return {
        "simulated": True,
        "source": {"kind": "simulation", "origin": f"scenario {known.name}"},
        "about": f"Simulated, not measured: {known.about}.",
        "assumptions": list(known.assumptions),
        "seed": known.seed if seed is None else seed,
        "targets": [known.target],
        "scrape_interval_seconds": known.scrape_seconds,
        "engine": {
            "semantics": "vLLM 0.32, simulated",
            "num_gpu_blocks": config.num_gpu_blocks,
            "block_size": config.block_size,
            "max_num_seqs": config.max_num_seqs,
            "max_num_batched_tokens": config.max_num_batched_tokens,
            "max_model_len": config.max_model_len,
        },
    }
