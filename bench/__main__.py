"""`python -m bench [NAME ...]`: measure, print, and write RESULTS.md if everything was measured."""

import argparse
import importlib
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime
from importlib.metadata import version
from pathlib import Path

from bench import scale
from bench.measure import TIMEOUT_SECONDS, Ratio, machine

HERE = Path(__file__).parent
RATIOS = {  # number of measurements per side
    "report": 3,
    "figures": 3,
    "rollup": 5,
    "answers": 3,
    "scale": 2,
    "servers": 3,
    "writer": 3,
    "imports": 3,
    "pull": 3,
}
QUICK = ("figures", "rollup", "writer", "imports", "pull", "scale", "servers")
TRIALS = (
    "saturation_tuning",
    "load_tests",
    "whatif",
    "forecast_backtest",
)  # accuracy benchmarks, which print their own text
PACKAGES = (
    *("vllm-capacity", "duckdb", "polars", "pyarrow", "altair", "vl-convert-python"),
    *("papermill", "nbconvert", "nbclient", "prometheus-client", "httpx"),
)


def main() -> None:
    """Run the benches asked for, or all of them."""
    names = [*RATIOS, *TRIALS]
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(names)}")
    parser.add_argument("--runs", type=int, help="number of measurements per side")
    parser.add_argument(
        "--quick", action="store_true", help="measure once, on one engine-day: about two minutes"
    )
    parser.add_argument(
        "--month",
        action="store_true",
        help="for `scale`: up to 100 engines for 30 days, from stored hourly results",
    )
    parser.add_argument("--date", type=date.fromisoformat, default=datetime.now(UTC).date())
    asked = parser.parse_args()
    # Both sides run from bytecode, as installed packages do; warm-up runs write it.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    unknown = sorted(set(asked.names) - set(names))
    if unknown:
        parser.error(f"no benchmark {', '.join(unknown)}; available: {', '.join(names)}")
    os.nice(10)
    began = machine()
    chosen = asked.names or (QUICK if asked.quick else names)
    if asked.month and "scale" not in chosen:
        parser.error("--month is for `scale`: python -m bench scale --month")
    ratios = {
        name: _measured(name, asked.runs, is_quick=asked.quick, is_month=asked.month)
        for name in RATIOS
        if name in chosen
    }
    trials = {name: _told(name) for name in TRIALS if name in chosen}
    if not (asked.names or asked.quick):
        results = HERE / "RESULTS.md"
        results.write_text(page(ratios, trials, on=asked.date, machine=began))
        print(f"Wrote bench/{results.name}.")


def _measured(name: str, runs: int | None, *, is_quick: bool, is_month: bool) -> list[Ratio]:
    print(f"{name} …", flush=True)
    module = importlib.import_module(f"bench.{name}")
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        if is_month and name == "scale":
            found = scale.month(Path(folder), runs=runs or RATIOS[name])
        elif is_quick and hasattr(module, "quick"):
            found = module.quick(Path(folder))
        else:
            found = module.measure(Path(folder), runs=runs or (1 if is_quick else RATIOS[name]))
    for ratio in found:
        print(
            f"  {ratio.value:.2f} × in {ratio.unit}: {ratio.ours_is} ÷ {ratio.bare_is} "
            f"({statistics.median(ratio.ours):.3g} and {statistics.median(ratio.bare):.3g})"
        )
    for line in scale.growth(found):
        print(f"  {line}")
    return found


def _told(name: str) -> str:
    print(f"{name} …", flush=True)
    command = [sys.executable, str(HERE / f"{name}.py")]
    ran = subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=TIMEOUT_SECONDS
    )
    print(ran.stdout.rstrip())
    return ran.stdout.rstrip()


def page(
    ratios: Mapping[str, Sequence[Ratio]], trials: Mapping[str, str], *, on: date, machine: str
) -> str:
    """RESULTS.md: the ratios in a table, and the output of the trials."""
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    lines = [
        "# Cost relative to the bare tools",
        "",
        f"Written by `make bench` on {on:%d %B %Y}: {machine}; Python "
        f"{platform.python_version()}, {versions}.",
        "",
        "Both sides ran alternately in one session, after an uncounted warm-up run of each. Each "
        "ratio is that of the medians; brackets give the lowest and highest ratio of two "
        "consecutive runs. Only ratios can be compared between machines: the seconds are from this "
        "machine on that day.",
        "",
        "| bench | ours | ÷ | in | runs | ours | bare | ratio | goal |",
        "|---|---|---|---|---|---|---|---|---|",
        *(_row(name, ratio) for name, found in ratios.items() for ratio in found),
        "",
        *_notes(),
        *(f"- {line}" for line in scale.growth(ratios.get("scale", []))),
        "",
        "## Accuracy of the verdicts",
        "",
        *_quoted(trials),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _row(name: str, ratio: Ratio) -> str:
    low, high = ratio.spread
    cells = [
        f"`{name}`",
        ratio.ours_is,
        ratio.bare_is,
        ratio.unit,
        str(len(ratio.ours)),
        f"{statistics.median(ratio.ours):.3g}",
        f"{statistics.median(ratio.bare):.3g}",
        f"**{ratio.value:.3g}** ({low:.3g}–{high:.3g})",
        ratio.goal,
    ]
    return f"| {' | '.join(cells)} |"


def _notes() -> list[str]:
    return [
        "- `report` covers the whole command: imports, kernel, figures, charts and their still "
        "images. The bare side starts the same kernel, runs one empty cell and writes nbconvert's "
        "HTML. Both run from bytecode, as installed packages do.",
        "- `figures` is the command on the whole recording, interpreter and imports included; its "
        "goal is 0.45 s on an idle machine.",
        "- `rollup` and `answers` read one day of one engine, the recorded sweep repeated end to "
        "end (`bench/engine_day.py`), in hourly files. Restarts were detected when it was written: "
        "that cost is in `writer`. The rollup also writes its Parquet.",
        "- `answers` are measured in their own process, after imports; the memory is that of the "
        "whole process.",
        "- `scale` includes interpreter and imports on the side of figures; the first answer "
        "computes and stores hourly results (`figures/pieces.py`), the next one reads them.",
        "- `servers` hold only the four metric families of these answers, on the same machine. "
        "Ours and the obvious SQL start a process each time, imports included; servers keep "
        "running (their own CPU time; cold includes their start).",
        "- `imports` not only parse, but deduplicate, detect restarts and write the window.",
        "- `pull` uses the tests' stand-in for Parseable, so its seconds include no real network.",
    ]


def _quoted(trials: Mapping[str, str]) -> Iterable[str]:
    for name, output in trials.items():
        yield from (f"`python bench/{name}.py`:", "", "```", output, "```", "")


if __name__ == "__main__":
    main()
