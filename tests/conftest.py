"""What several tests lean on: the committed windows and who may be asked for them."""

from pathlib import Path

import pytest

from vllm_capacity.telemetry.window import Window, open_window

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared" / "data"


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


def pytest_collection_modifyitems(config, items):
    """Tests on other people's recordings run only where those are."""
    if SHARED.is_dir():
        return
    absent = [item for item in items if item.get_closest_marker("shared")]
    if absent:
        config.hook.pytest_deselected(items=absent)
        items[:] = [item for item in items if item not in absent]
