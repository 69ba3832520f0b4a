"""Runs the live tests and writes what came of them to LIVE.md."""

import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import pytest

HERE = Path(__file__).parent
REPORT = HERE / "LIVE.md"


class Collected:
    """A pytest plugin that keeps outcomes and the properties that tests record."""

    def __init__(self) -> None:
        self.outcomes: dict[str, int] = {}
        self.properties: dict[str, object] = {}
        self.failed: list[str] = []

    def pytest_runtest_logreport(self, report) -> None:
        if report.when == "call" or report.outcome == "failed":
            self.outcomes[report.outcome] = self.outcomes.get(report.outcome, 0) + 1
            self.properties |= dict(report.user_properties)
        if report.outcome == "failed":
            self.failed.append(report.nodeid)


def written(collected: Collected, now: datetime) -> str:
    """The report: when, with what, how many, and the figures that the tests recorded."""
    packages = ("vllm-capacity", "duckdb", "polars", "datafusion", "httpx")
    lines = [
        "# The live tests, as `make test-live` last ran them",
        "",
        "Written by `tests/integration/live.py`; never edit it by hand.",
        "",
        "| what | value |",
        "|---|---|",
        f"| date | {now:%Y-%m-%d %H:%M} UTC |",
        *(f"| {outcome} | {count} |" for outcome, count in sorted(collected.outcomes.items())),
        *(f"| {name} | {value} |" for name, value in sorted(collected.properties.items())),
        *(f"| {package} | {version(package)} |" for package in packages),
    ]
    if collected.failed:
        lines += ["", "Failed:", "", *(f"- `{name}`" for name in collected.failed)]
    return "\n".join(lines) + "\n"


def main() -> int:
    collected = Collected()
    files = sorted(str(path) for path in HERE.glob("live_*.py"))
    code = pytest.main(["-m", "live", "-p", "no:cacheprovider", *files], plugins=[collected])
    REPORT.write_text(written(collected, datetime.now(UTC)))
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
