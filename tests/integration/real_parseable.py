"""A real Parseable on a temporary folder and loopback ports, where PARSEABLE_BIN names one."""

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from vllm_capacity.sources.parseable import Parseable
from vllm_capacity.timerange import TimeRange

ROOT = ("root", "root-password")


@dataclass
class RealParseable:
    """A server on `folder` that can be stopped and started again, its ports kept."""

    folder: Path
    process: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        self.ports = _free_ports(3)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.ports[0]}"

    @property
    def store(self) -> Path:
        return self.folder / "data"

    def start(self) -> None:
        environment = {
            "PATH": os.environ["PATH"],
            "P_ADDR": f"127.0.0.1:{self.ports[0]}",
            "P_GRPC_PORT": str(self.ports[1]),
            "P_FLIGHT_PORT": str(self.ports[2]),
            "P_FS_DIR": str(self.store),
            "P_STAGING_DIR": str(self.folder / "staging"),
            "P_USERNAME": ROOT[0],
            "P_PASSWORD": ROOT[1],
            "P_CHECK_UPDATE": "false",
            "P_SEND_ANONYMOUS_USAGE_DATA": "false",
            "RUST_LOG": "warn",
        }
        command = [parseable_binary(), "local-store"]
        with (self.folder / "parseable.log").open("ab") as log:
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        wait_for(lambda: _is_ready(self.url), seconds=60)

    def stop(self) -> None:
        """As its container would be: asked to end, and waited for while it writes its files."""
        if self.process is not None:
            self.process.terminate()
            self.process.wait(timeout=120)
        self.process = None

    def kill(self) -> None:
        """As a machine that loses power would end it."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(timeout=120)
        self.process = None

    def ingest(self, stream: str, body: str, *, path: str = "/v1/metrics") -> None:
        kind = "otel-metrics" if path.endswith("metrics") else "otel-traces"
        httpx.post(
            f"{self.url}{path}",
            content=body,
            headers={
                "X-P-Stream": stream,
                "X-P-Log-Source": kind,
                "Content-Type": "application/json",
            },
            auth=ROOT,
            timeout=60,
        ).raise_for_status()


def parseable_binary() -> str:
    """Its path; without one there is nothing to test against."""
    found = os.environ.get("PARSEABLE_BIN")
    if not found or not Path(found).is_file():
        pytest.fail("PARSEABLE_BIN names no Parseable binary")
    return found


@contextlib.contextmanager
def real_parseable(folder: Path) -> Iterator[RealParseable]:
    """The server while it runs; ended at the end, its files left for whoever asks."""
    server = RealParseable(folder)
    try:
        server.start()
        yield server
    finally:
        server.stop()


def rows_shown(server: Parseable, stream: str, since: datetime) -> int:
    """How many rows it answers with; for a while, those that go into a file are left out."""
    ever = TimeRange(since, datetime.now(UTC) + timedelta(minutes=1))
    return int(server.query(f"select count(1) as n from {stream}", ever)[0]["n"])


def wait_for(is_done, *, seconds: float) -> None:
    """Wait for a condition; bounded, so that a hanging server fails the test."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if is_done():
            return
        time.sleep(0.5)
    pytest.fail(f"not done within {seconds} s")


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/api/v1/readiness", timeout=2).status_code == 200
    except httpx.TransportError:
        return False


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for free in sockets:
            free.bind(("127.0.0.1", 0))
        return [free.getsockname()[1] for free in sockets]
