"""Shared by several tests: the committed windows, their answers, and allowed hosts."""

import gc
import os
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from tests import blas  # noqa: F401  before NumPy
from tests.answering import answer
from tests.cli.command_line import completed
from vllm_capacity.assumptions import Assumptions
from vllm_capacity.render import quick_jsonschema  # noqa: F401  before nbformat and altair
from vllm_capacity.telemetry.window import Window, open_window

# Kernels and commands that tests start compile the package once for all, not each for itself.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared" / "data"
# Begun first, so that no worker is left alone with one at the end: they run notebooks, Chromium, a
# Collector or a Prometheus, or compute for half a minute.
LONGEST = (
    *("test_notebooks", "test_nights", "test_collector", "test_report", "test_collector_chain"),
    *("test_report_browser", "test_lab_browser", "test_on_ray", "test_sources_contract"),
    *("test_watch", "test_scrape_cli", "test_lab_schedule", "test_by_hour", "test_short_parts"),
    *("test_tenant_truth", "test_prometheus_thinned", "test_by_hour_scraped", "test_mirror"),
    *("test_unattended", "test_plain_papermill", "test_capacity_truth", "test_fleet_truth"),
    *("test_forecast_shared", "test_wheel", "test_fuzz", "test_unloaded"),
)


@pytest.fixture(scope="session")
def examples() -> Path:
    return ROOT / "data" / "examples"


@pytest.fixture(scope="session")
def sweep(examples: Path) -> Window:
    return open_window(examples / "vllm-sweep")


@pytest.fixture(scope="session")
def restarted(examples: Path) -> Window:
    return open_window(examples / "vllm-restart")


@pytest.fixture(scope="session")
def two_replicas(examples: Path) -> Window:
    return open_window(examples / "vllm-two-replicas")


@pytest.fixture(scope="session")
def answer_of(examples: Path) -> Callable[..., dict[str, Any]]:
    """The whole answer of an example window, by its name and what is assumed; each made once."""

    @cache
    def made(name: str, terms: Assumptions | None = None) -> dict[str, Any]:
        return answer(open_window(examples / name), terms=terms)

    return made


@pytest.fixture
def command(capsys) -> Callable[..., CompletedProcess[str]]:
    """The command line run in this process: its arguments to its exit code, stdout and stderr."""
    return partial(completed, capsys)


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """Without garbage collection: what is imported and collected stays until the end."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(config, items):
    """Longest files first; tests on other people's recordings run only where those are."""
    ranks = {name: rank for rank, name in enumerate(LONGEST)}
    items.sort(key=lambda item: ranks.get(item.path.stem, len(LONGEST)))
    if SHARED.is_dir():
        return
    missed = [item for item in items if item.get_closest_marker("shared")]
    if missed:
        config.hook.pytest_deselected(items=missed)
        items[:] = [item for item in items if item not in missed]
