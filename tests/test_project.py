"""The project's own files stay in step with each other."""

import ast
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

import vllm_capacity

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK = (ROOT / "requirements.lock").read_text()
IMAGE_LOCK = (ROOT / "requirements-image.lock").read_text()
PINNED = r"^[a-z0-9._-]+==[^ ]+"
CONDA_NAMES = {"duckdb": "python-duckdb", "prometheus-client": "prometheus_client"}


def required(*extras):
    texts = PROJECT["dependencies"] + [
        text for extra in extras for text in PROJECT["optional-dependencies"][extra]
    ]
    return [Requirement(text) for text in texts]


def test_conda_users_get_the_same_dependencies():
    listed = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    specs = {spec for spec in listed if isinstance(spec, str)}
    expected = {
        f"{CONDA_NAMES.get(r.name, r.name)}{r.specifier}".replace("[server]", "")
        for r in required("report", "lab")
    }
    assert specs - {"python>=3.11", "pip", "nbval>=0.11"} == expected


def test_everything_required_is_locked_with_hashes():
    pinned = set(re.findall(r"^([a-z0-9._-]+)==", LOCK, flags=re.MULTILINE))
    extras = PROJECT["optional-dependencies"]
    assert {r.name for r in required(*extras)} <= pinned
    assert LOCK.count("--hash=sha256:") >= len(pinned)


@pytest.mark.parametrize("lock", [LOCK, IMAGE_LOCK], ids=["all", "image"])
def test_a_lock_file_reveals_no_address(lock):
    assert not re.search(r"://|index-url|find-links", lock)


def test_the_image_has_what_it_runs_and_nothing_of_the_tests():
    pinned, everything = (set(re.findall(PINNED, lock, re.M)) for lock in (IMAGE_LOCK, LOCK))
    names = {pin.partition("==")[0] for pin in pinned}
    assert {r.name for r in required("report", "s3", "build")} <= names
    assert not names & {"pytest", "playwright", "jupyterlab", "moto", "ray", "mypy"}
    assert pinned <= everything


def test_the_oldest_python_that_is_asked_for_was_tested_and_is_what_the_checks_assume():
    whole = tomllib.loads((ROOT / "pyproject.toml").read_text())
    named = re.findall(r"Python :: (3\.\d+)", " ".join(PROJECT["classifiers"]))
    assert f">={named[0]}" == PROJECT["requires-python"]
    assert whole["tool"]["mypy"]["python_version"] == named[0]
    assert whole["tool"]["ruff"]["target-version"] == f"py{named[0].replace('.', '')}"


@pytest.mark.parametrize("command", ["make report", "make test"])
def test_the_readme_shows_the_two_commands_on_its_first_screen(command):
    first_screen = (ROOT / "README.md").read_text().splitlines()[:20]
    assert any(line.startswith(command) for line in first_screen)


def test_every_target_of_the_makefile_explains_itself():
    done = subprocess.run(["make", "-C", ROOT], capture_output=True, text=True, check=True)
    assert {"report", "test", "lab", "check", "bench"} <= set(
        re.findall(r"^(\w+)", done.stdout, re.M)
    )


def test_files_that_the_readme_names_are_there():
    named = re.findall(r"\]\((?!http)([^)#]+)\)", (ROOT / "README.md").read_text())
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_what_the_suite_does_not_run_uses_no_name_that_was_renamed():
    """Benches and live tests run by hand: nothing else would see a deprecated name in them."""
    files = [*(ROOT / "bench").glob("*.py"), *(ROOT / "tests" / "integration").glob("*.py")]
    found = {
        (file.name, name.name)
        for file in files
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module == "vllm_capacity"
        for name in node.names
        if name.name in vllm_capacity._RENAMED
    }
    assert found == set()
