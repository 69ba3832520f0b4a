"""Steps written by hand: one line says what differs from a quiet, healthy step."""

from datetime import UTC, datetime, timedelta

import polars as pl

from vllm_capacity.figures.steps import STEP_SCHEMA

START = datetime(2026, 11, 24, tzinfo=UTC)
SECONDS = 20
QUIET = {
    "instance": "vllm",
    "engine": "0",
    "scrapes": 10,
    "running_mean": 4.0,
    "running_max": 4.0,
    "waiting_mean": 0.0,
    "waiting_max": 0.0,
    "waiting_share": 0.0,
    "at_ceiling_share": None,
    "kv_cache_ratio_mean": 0.2,
    "kv_cache_ratio_max": 0.3,
    "output_tokens_per_second": 100.0,
    "requests_per_second": 1.0,
    "prompt_tokens_per_second": 200.0,
    "preemptions": 0.0,
    "ttft_p95_seconds": 0.2,
    "itl_p95_seconds": 0.05,
    "itl_mean_seconds": None,
    "is_gap": False,
    "is_restart": False,
}


def made_steps(*changes: dict, seconds: float = SECONDS) -> pl.DataFrame:
    """Consecutive steps of 20 s or as many as given, each a quiet one with its changes."""
    rows = []
    for k, change in enumerate(changes):
        start = START + timedelta(seconds=seconds * k)
        times = {"start": start, "end": start + timedelta(seconds=seconds)}
        row = {**QUIET, **times, **change}
        rows.append({**row, "best_minute_tokens_per_second": row["output_tokens_per_second"]})
    return pl.DataFrame(rows, schema=STEP_SCHEMA)


def steady(running: float, output: float, **more: float) -> dict:
    """The changes of a step with a steady load."""
    return {
        "running_mean": running,
        "running_max": running,
        "output_tokens_per_second": output,
        **more,
    }


def queued(running: float, output: float, waiting: float, **more: float) -> dict:
    """The changes of a step in which requests waited all the time."""
    queue = {"waiting_mean": waiting, "waiting_max": waiting, "waiting_share": 1.0}
    return {**steady(running, output), **queue, "at_ceiling_share": 1.0, **more}
