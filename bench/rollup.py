"""The minute rollup of engine-days ÷ a bare scan of the same Parquet."""

import shutil
from pathlib import Path

import duckdb

from bench.engine_day import scan
from bench.measure import Ratio, by_turns, cpu_seconds
from bench.scale import engine_days
from vllm_capacity.telemetry.manifest import read_manifest
from vllm_capacity.telemetry.rollup import make_views

ENGINES = (1, 10)


def measure(folder: Path, *, runs: int) -> list[Ratio]:
    return [_of(folder, engines, runs) for engines in ENGINES]


def _of(folder: Path, engines: int, runs: int) -> Ratio:
    path = engine_days(folder, engines)
    held = read_manifest(path)

    def rolled_up() -> float:
        shutil.rmtree(path / ".rollup", ignore_errors=True)
        return cpu_seconds(lambda: make_views(held, duckdb.connect()))

    ours, bare = by_turns(rolled_up, lambda: cpu_seconds(lambda: scan(path)), runs=runs)
    return Ratio(
        f"minute rollup of {engines} engine-day{'s' * (engines > 1)}, written as Parquet, an hour "
        "at a time",
        "DuckDB reading every value once",
        "CPU s",
        tuple(ours),
        tuple(bare),
        "≤ 2×",
    )
