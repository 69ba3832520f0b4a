"""Starts and kills the real Collector on the project's own otel-config.yaml."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.integration.asking import CLIENT, answers

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "otel-config.yaml"
BUILD = ROOT / "tests" / "otelcol" / "build.sh"


def collector_binary() -> Path:
    """The built Collector; where CI is set it is built, elsewhere its absence skips the test."""
    cache = Path(os.environ.get("OTELCOL_CACHE", ROOT / ".cache" / "otelcol"))
    binary = cache / "otelcol-vllm"
    if os.environ.get("CI"):
        subprocess.run([BUILD], check=True, timeout=3600)
    elif not binary.exists():
        pytest.skip("No Collector here: run tests/otelcol/build.sh (needs Go, takes minutes once).")
    return binary


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    assert isinstance(port, int)
    return port


def eventually(
    is_so: Callable[[], object], *, within: float, what: str, every: float = 0.05
) -> None:
    """Return as soon as it is so; fail after `within` seconds."""
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        if is_so():
            return
        time.sleep(every)
    pytest.fail(f"not within {within:g} s: {what}")


@dataclass
class Collector:
    """One Collector in `folder` (queue, log, targets), sending to `sink_url`; restartable."""

    binary: Path
    folder: Path
    sink_url: str
    targets: str
    settings: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    options: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.ports = {name: free_port() for name in ("health", "metrics", "grpc", "http")}
        (self.folder / "targets").mkdir(parents=True, exist_ok=True)

    @property
    def log(self) -> str:
        path = self.folder / "collector.log"
        return path.read_text() if path.exists() else ""

    def environment(self) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "PARSEABLE_URL": self.sink_url,
            "PARSEABLE_AUTHORIZATION": "Basic Y29sbGVjdG9yOnNlY3JldC1vZi10ZXN0cw==",
            "VLLM_TARGETS": self.targets,
            "VLLM_SCRAPE_INTERVAL": "250ms",
            "OTELCOL_TARGETS_DIR": str(self.folder / "targets"),
            "OTELCOL_STORAGE": str(self.folder / "queue"),
            "OTELCOL_HEALTH": f"127.0.0.1:{self.ports['health']}",
            "OTELCOL_METRICS_PORT": str(self.ports["metrics"]),
            "OTELCOL_OTLP_GRPC": f"127.0.0.1:{self.ports['grpc']}",
            "OTELCOL_OTLP_HTTP": f"127.0.0.1:{self.ports['http']}",
            **self.settings,
        }

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """A command of the Collector other than serving, such as `validate`."""
        return subprocess.run(
            [self.binary, *arguments],
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def start(self) -> None:
        with (self.folder / "collector.log").open("ab") as log:
            self.process = subprocess.Popen(
                [self.binary, "--config", CONFIG, *self.options],
                env=self.environment(),
                stdout=log,
                stderr=log,
            )
        eventually(self.is_healthy, within=30, what=f"a healthy Collector\n{self.log[-2000:]}")

    def is_healthy(self) -> bool:
        return answers(f"http://127.0.0.1:{self.ports['health']}/")

    def own_metrics(self) -> str:
        answer = CLIENT.get(f"http://127.0.0.1:{self.ports['metrics']}/metrics")
        return answer.raise_for_status().text

    def kill(self) -> None:
        """As a machine that loses power would end it (but for the disk's own cache)."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def _end(self, with_signal: signal.Signals) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(with_signal)
            try:
                self.process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(timeout=10)
        self.process = None
