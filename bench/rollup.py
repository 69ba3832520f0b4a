"""The minute rollup of an engine-day ÷ a bare scan of the same Parquet."""

import shutil
from pathlib import Path

import duckdb

from bench.engine_day import engine_day, scan
from bench.measure import Ratio, by_turns, cpu_seconds
from vllm_capacity.telemetry.manifest import read_manifest
from vllm_capacity.telemetry.rollup import make_views


def measure(folder: Path, *, runs: int) -> list[Ratio]:
    day = engine_day(folder)
    held = read_manifest(day, duckdb.connect())

    def rolled_up() -> None:
        shutil.rmtree(day / ".rollup", ignore_errors=True)
        make_views(held, duckdb.connect())

    ours, bare = by_turns(
        lambda: cpu_seconds(rolled_up), lambda: cpu_seconds(lambda: scan(day)), runs=runs
    )
    return [
        Ratio(
            "minute rollup of an engine-day, written as Parquet, an hour at a time",
            "DuckDB reading every value once",
            "CPU s",
            tuple(ours),
            tuple(bare),
            "≤ 2×",
        )
    ]
