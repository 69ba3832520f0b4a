"""What is installed without the extra `report`: every verb but `report` works, which says so."""

import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

PROJECT = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
EXTRA = {
    re.match(r"[\w-]+", text)[0].lower() for text in PROJECT["optional-dependencies"]["report"]
}
MODULES = sorted(
    name for name, owners in packages_distributions().items() if EXTRA & {o.lower() for o in owners}
)
WITHOUT = f"""
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {MODULES}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing())
"""


def ran(code, *words):
    command = [sys.executable, "-c", WITHOUT + code, *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def run_verb(*words):
    return ran("from vllm_capacity.cli import main; main()", *words)


def test_the_modules_of_the_extra_are_known():
    assert {"altair", "bs4", "papermill", "vl_convert"} <= set(MODULES)


@pytest.mark.parametrize(
    "words",
    [
        "figures vllm-sweep --usd-per-hour 1.64 --slo-ttft 2",
        "cost vllm-sweep --by engine --usd-per-hour 1.64",
        "plan vllm-sweep --usd-per-hour 1.64 --gpu A100-80GB-PCIe",
        "facts gpus H100",
        "scrape --help",
        "pull --help",
        "doctor --help",
    ],
)
def test_a_verb_that_makes_no_page_runs(words):
    done = run_verb(*words.split())
    assert (done.returncode, done.stderr) == (0, "")


def test_alerts_fire():
    assert run_verb("alerts", "vllm-sweep", "--over", "all").returncode == 1


def test_a_page_says_what_to_install(tmp_path):
    done = run_verb("report", "--window", "vllm-sweep", "--out", str(tmp_path / "reports"))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "pip install 'vllm-capacity[report]'" in done.stderr
    assert not (tmp_path / "reports").exists()


@pytest.mark.parametrize("asked", ["charts.saturation()", "to_html('x.html')"])
def test_python_says_what_to_install(asked):
    code = f"import vllm_capacity as vc; a = vc.open('vllm-sweep').analyze(price=1.64); a.{asked}"
    done = ran(code)
    assert done.stderr.splitlines()[-1].endswith("pip install 'vllm-capacity[report]'.")
