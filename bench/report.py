"""A whole report ÷ bare papermill and nbconvert on an empty notebook, from command to file."""

import sys
from pathlib import Path

import nbformat

from bench.measure import Ratio, by_turns, cost_of

GOAL = "≤ 1.8×"
BARE = """\
import papermill
from nbconvert import HTMLExporter
ran = papermill.execute_notebook("empty.ipynb", None, progress_bar=False)
page, _ = HTMLExporter().from_notebook_node(ran)
open("empty.html", "w").write(page)
"""
PYTHON = {"name": "python3", "language": "python", "display_name": "Python 3"}


def measure(folder: Path, *, runs: int) -> list[Ratio]:
    empty = nbformat.v4.new_notebook(metadata={"kernelspec": PYTHON})
    empty.cells = [nbformat.v4.new_code_cell("")]
    nbformat.write(empty, folder / "empty.ipynb")
    report = [sys.executable, "-m", "vllm_capacity", "report", "--window", "vllm-sweep"]
    ours, bare = by_turns(
        lambda: cost_of([*report, "--out", "reports"], folder=folder),
        lambda: cost_of([sys.executable, "-c", BARE], folder=folder),
        runs=runs,
    )
    names = ("report of the recorded sweep", "papermill + nbconvert on an empty notebook")
    return [
        Ratio(*names, unit, tuple(measured(one) for one in ours), tuple(map(measured, bare)), GOAL)
        for unit, measured in (
            ("s", lambda cost: cost.seconds),
            ("CPU s", lambda cost: cost.cpu_seconds),
        )
    ]
