"""The wheel, installed apart from the clone, does what the clone does: in an empty folder."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

from vllm_capacity.render.report.metadata import page_metadata
from vllm_capacity.render.report.write import EXAMPLES

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "otel-config.yaml", "compose-otel.yml")
FOLDERS = ("vllm_capacity", "vllm_simulator", "data", "notebooks")
LEFT_BEHIND = (  # files that use of a clone leaves beside its sources
    "data/examples/vllm-sweep/.rollup/minutes-2026-11-24T04-0.parquet",
    "data/windows/my-server/samples/2026-11-24T04.parquet",
    "notebooks/.ipynb_checkpoints/cost-report-checkpoint.ipynb",
    "vllm_capacity/__pycache__/estimate.cpython-311.pyc",
)
PIP = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--no-input")
OFFLINE = ("--no-deps", "--no-index")


def done(*command: object, **options) -> subprocess.CompletedProcess:
    """The finished command with its output as text; on failure, stderr is in the assertion."""
    words = [str(word) for word in command]
    ran = subprocess.run(words, capture_output=True, text=True, timeout=300, **options)
    assert ran.returncode == 0, ran.stderr
    return ran


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy of the sources in which somebody has worked."""
    clone, built = tmp_path_factory.mktemp("clone"), tmp_path_factory.mktemp("built")
    for name in SOURCES:
        shutil.copy(ROOT / name, clone)
    for name in FOLDERS:
        left_out = shutil.ignore_patterns("windows", ".rollup", "__pycache__", ".ipynb_checkpoints")
        shutil.copytree(ROOT / name, clone / name, ignore=left_out)
    for name in LEFT_BEHIND:
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        (clone / name).touch()
    done(*PIP, "wheel", "--no-build-isolation", *OFFLINE, "--wheel-dir", built, clone)
    return next(built.glob("*.whl"))


@pytest.fixture(scope="module")
def shipped_names(wheel) -> set[str]:
    """The files under `_shipped`, as they are called in a clone."""
    inside = "vllm_capacity/_shipped/"
    names = ZipFile(wheel).namelist()
    return {name.removeprefix(inside) for name in names if name.startswith(inside)}


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory) -> dict[str, str]:
    """Of a user with the installed wheel on the path, an empty home, and no clone."""
    target, home = tmp_path_factory.mktemp("installed"), tmp_path_factory.mktemp("home")
    done(*PIP, "install", *OFFLINE, "--no-compile", "--target", target, wheel)
    path = f"{target / 'bin'}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PYTHONPATH": str(target), "PATH": path, "HOME": str(home)}


def test_nothing_of_whoever_built_it_is_in_the_wheel(wheel):
    theirs = (".rollup", "data/windows", ".ipynb_checkpoints", "__pycache__")
    names = ZipFile(wheel).namelist()
    assert [name for name in names if any(path in name for path in theirs)] == []


@pytest.mark.parametrize("name", ["otel-config.yaml", "compose-otel.yml", "data/README.md"])
def test_file_is_shipped(shipped_names, name):
    assert name in shipped_names


def test_every_table_notebook_and_window_the_package_names_is_shipped(shipped_names):
    paths = [*(ROOT / "data").glob("*.csv"), *(ROOT / "data" / "tuning").glob("*.csv")]
    tables = [path.relative_to(ROOT).as_posix() for path in paths]
    notebooks = [f"notebooks/{path.name}" for path in (ROOT / "notebooks").glob("*.ipynb")]
    windows = [f"data/examples/{each['window']}/window.json" for each in EXAMPLES]
    assert {*tables, *notebooks, *windows} - shipped_names == set()


@pytest.mark.parametrize("package", ["vllm_capacity", "vllm_simulator"])
def test_every_module_and_query_of_both_packages_is_in_the_wheel(wheel, package):
    sources = [*(ROOT / package).rglob("*.py"), *(ROOT / package).rglob("*.sql")]
    expected = {path.relative_to(ROOT).as_posix() for path in sources}
    assert expected - set(ZipFile(wheel).namelist()) == set()


def test_the_wheel_is_small(wheel):
    assert wheel.stat().st_size < 3_600_000  # 2.3 MB of it are the example windows


def test_what_is_shipped_is_found_inside_the_installed_package(environment, tmp_path):
    asked = "from vllm_capacity.resources import shipped; print(shipped('notebooks'))"
    found = Path(done(sys.executable, "-c", asked, cwd=tmp_path, env=environment).stdout.strip())
    installed = Path(environment["PYTHONPATH"]) / "vllm_capacity" / "_shipped" / "notebooks"
    assert found == installed.resolve()


def test_figures_of_the_installed_package_are_those_of_the_clone(environment, tmp_path, answer_of):
    ran = done("vllm-capacity", "figures", "vllm-sweep", "--json", cwd=tmp_path, env=environment)
    assert json.loads(ran.stdout) == answer_of("vllm-sweep")


def test_the_installed_simulator_writes_a_window(environment, tmp_path):
    done("vllm-capacity", "simulate", "idle", "--to", "made", cwd=tmp_path, env=environment)
    assert json.loads((tmp_path / "made" / "window.json").read_text())["simulated"] is True


def test_report_of_the_installed_package_needs_an_empty_folder_only(environment, tmp_path):
    ran = done("vllm-capacity", "report", cwd=tmp_path, env=environment)
    page = tmp_path / ran.stdout.strip()
    assert page_metadata(page).line.window == "vllm-sweep"
    assert sorted(path.name for path in page.parent.glob("[!.]*")) == [
        "index.html",
        "vllm-sweep.html",
    ]
