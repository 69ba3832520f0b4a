"""What is installed without the extra `report`: every verb but `report` works, which says so."""

import json
import re
import subprocess
import sys
import tomllib
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

PROJECT = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
EXTRA = {
    re.match(r"[\w-]+", text)[0].lower() for text in PROJECT["optional-dependencies"]["report"]
}
WITHOUT = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {modules}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing())
"""


VERBS = """
import contextlib, io, json, sys
from vllm_capacity.cli import main
done = []
for line in sys.argv[1:]:
    sys.argv = ["vllm-capacity", *line.split()]
    code, said = 0, io.StringIO()
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
            main()
    except SystemExit as ended:
        code = ended.code or 0
    done.append((code, said.getvalue()))
print(json.dumps(done))
"""
WITHOUT_A_PAGE = (
    "figures vllm-sweep --usd-per-hour 1.64 --slo-ttft 2",
    "cost vllm-sweep --by engine --usd-per-hour 1.64",
    "plan vllm-sweep --usd-per-hour 1.64 --gpu A100-80GB-PCIe",
    "facts gpus H100",
    "scrape --help",
    "pull --help",
    "doctor --help",
)
ALERTS = "alerts vllm-sweep --over all"


@cache
def modules():
    """Those that the extra installs."""
    owned = packages_distributions().items()
    return sorted(name for name, owners in owned if EXTRA & {owner.lower() for owner in owners})


def ran(code, *words):
    command = [sys.executable, "-c", WITHOUT.format(modules=modules()) + code, *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """The exit code and stderr of each of these command lines. One process ran all.

    That of the page comes first, with nothing imported by another.
    """
    reports = tmp_path_factory.mktemp("reports") / "none"
    page = f"report --window vllm-sweep --out {reports}"
    lines = (page, *WITHOUT_A_PAGE, ALERTS)
    done = ran(VERBS, *lines)
    assert done.returncode == 0, done.stderr
    assert not reports.exists()
    return {
        line.split(" --out")[0]: each
        for line, each in zip(lines, json.loads(done.stdout), strict=True)
    }


def test_the_modules_of_the_extra_are_known():
    assert {"altair", "bs4", "papermill", "vl_convert"} <= set(modules())


@pytest.mark.parametrize("words", WITHOUT_A_PAGE)
def test_commands_without_a_page_run(ended, words):
    assert ended[words] == [0, ""]


def test_alerts_fire(ended):
    assert ended[ALERTS][0] == 1


def test_a_page_says_what_to_install(ended):
    code, said = ended["report --window vllm-sweep"]
    assert (code, said.count("\n")) == (2, 1)
    assert "pip install 'vllm-capacity[report]'" in said


@pytest.mark.parametrize("asked", ["charts.saturation()", "to_html('x.html')"])
def test_python_says_what_to_install(asked):
    code = f"import vllm_capacity as vc; a = vc.open('vllm-sweep').analyze(price=1.64); a.{asked}"
    done = ran(code)
    assert done.stderr.splitlines()[-1].endswith("pip install 'vllm-capacity[report]'.")


def test_without_the_extra_an_analysis_shows_its_lines():
    done = ran(
        "import vllm_capacity as vc; a = vc.open('vllm-sweep').analyze(price=1.64); "
        "print(a._repr_mimebundle_() == {'text/plain': repr(a)})"
    )
    assert done.stdout.strip() == "True", done.stderr
