"""`figures` on the recorded sweep ÷ a process in which DuckDB reads its Parquet once."""

import sys
from pathlib import Path

from bench.measure import Ratio, by_turns, cost_of
from vllm_capacity.telemetry.window import open_window

BARE = """\
import sys, duckdb
for table, value in (("samples", "value"), ("histograms", "sum")):
    rows = duckdb.read_parquet(f"{sys.argv[1]}/{table}/*.parquet")
    print(rows.aggregate(f"count(*), sum({value})").fetchall())
"""


def measure(folder: Path, *, runs: int) -> list[Ratio]:
    window = str(open_window("vllm-sweep").path)
    ours, bare = by_turns(
        lambda: cost_of(
            [sys.executable, "-m", "vllm_capacity", "figures", window, "--json"], folder=folder
        ),
        lambda: cost_of([sys.executable, "-c", BARE, window], folder=folder),
        runs=runs,
    )
    names = ("figures --json of the recorded sweep", "a process that scans its Parquet with DuckDB")
    return [
        Ratio(
            *names,
            "s",
            tuple(one.seconds for one in ours),
            tuple(one.seconds for one in bare),
            "ours ≤ 0.45 s",
        ),
        Ratio(
            *names,
            "CPU s",
            tuple(one.cpu_seconds for one in ours),
            tuple(one.cpu_seconds for one in bare),
        ),
    ]
