"""Notebooks under plain papermill, as others run them."""

import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[2]
# One with parameters of every type, one without any; test_notebooks.py runs the others.
NOTEBOOKS = [
    ROOT / "notebooks" / f"{stem}.ipynb" for stem in ("05-plan", "08-how-another-gpu-is-scaled")
]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs_under_plain_papermill(notebook, tmp_path):
    out = tmp_path / "out.ipynb"
    command = [sys.executable, "-m", "papermill", "--no-progress-bar", "--no-log-output"]
    ran = subprocess.run(
        [*command, str(notebook), str(out), *given(notebook)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr
    cells = nbformat.read(out, as_version=4).cells
    tags = [tag for cell in cells for tag in cell.metadata.get("tags", [])]
    assert ("injected-parameters" in tags) == bool(given(notebook))
    assert cells[-1].outputs


def given(notebook: Path) -> list[str]:
    """Its own window as a parameter; nothing where a notebook reads no window."""
    source = "".join(cell.source for cell in nbformat.read(notebook, as_version=4).cells)
    return ["-p", "window", default_window(notebook)] if "\nwindow: str" in f"\n{source}" else []


def default_window(notebook: Path) -> str:
    cells = nbformat.read(notebook, as_version=4).cells
    (parameters,) = [c for c in cells if "parameters" in c.metadata.get("tags", [])]
    return re.search(r'^window: str = "([^"]+)"', parameters.source, re.M)[1]
