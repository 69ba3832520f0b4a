"""All figures and verdicts of an engine-day ÷ a bare scan of the same Parquet: time and memory."""

import json
import subprocess
import sys
from pathlib import Path

from bench.engine_day import engine_day, scan
from bench.measure import TIMEOUT_SECONDS, Ratio, by_turns, cpu_seconds, peak_megabytes


def measure(folder: Path, *, runs: int) -> list[Ratio]:
    day = engine_day(folder)
    ours, bare = by_turns(lambda: _alone("answer", day), lambda: _alone("scan", day), runs=runs)
    names = ("answer() of an engine-day", "DuckDB reading every value once")
    return [
        Ratio(*names, unit, tuple(one[at] for one in ours), tuple(one[at] for one in bare))
        for at, unit in enumerate(("CPU s", "peak MB"))
    ]


def _alone(what: str, day: Path) -> tuple[float, float]:
    """CPU seconds and peak megabytes in a process of its own, after its imports."""
    command = [sys.executable, "-m", "bench.answers", what, str(day)]
    ran = subprocess.run(command, capture_output=True, check=True, timeout=TIMEOUT_SECONDS)
    seconds, megabytes = json.loads(ran.stdout)
    return seconds, megabytes


def _main(what: str, day: str) -> None:
    from vllm_capacity.analysis import Analysis
    from vllm_capacity.telemetry.window import open_window

    action = scan if what == "scan" else lambda path: Analysis.of(open_window(path)).answer
    print(json.dumps([cpu_seconds(lambda: action(Path(day))), peak_megabytes()]))


if __name__ == "__main__":
    _main(*sys.argv[1:])
