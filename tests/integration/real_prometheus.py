"""The real Prometheus on a loopback port, scraping given targets every second into a folder."""

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.asking import answers

_CONFIG = """\
global:
  scrape_interval: 1s
scrape_configs:
  - job_name: vllm
    static_configs:
      - targets: [{targets}]
        labels:
          cluster: test
"""


def prometheus_binary() -> str:
    """Its path; without it the test is skipped, in CI it fails."""
    found = shutil.which("prometheus")
    if found:
        return found
    text = "no prometheus here; install Debian's package: apt-get install prometheus"
    if os.environ.get("CI"):
        pytest.fail(text)
    pytest.skip(text)


def free_port() -> int:
    """A loopback port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def backfill(folder: Path, openmetrics: str) -> None:
    """Put samples of the past into the store that a `real_prometheus` at the folder reads."""
    promtool = shutil.which("promtool", path=str(Path(prometheus_binary()).parent))
    assert promtool, "promtool comes with Prometheus"
    text = folder / "samples.txt"
    text.write_text(openmetrics)
    command = [promtool, "tsdb", "create-blocks-from", "openmetrics", "-q", str(text)]
    subprocess.run([*command, str(folder / "tsdb")], check=True, capture_output=True)


@contextlib.contextmanager
def real_prometheus(folder: Path, targets: list[str], *, port: int = 0) -> Iterator[str]:
    """Its URL while it runs; the process is ended at the end."""
    binary = prometheus_binary()
    port = port or free_port()
    config = folder / "prometheus.yml"
    config.write_text(_CONFIG.format(targets=", ".join(f"'{target}'" for target in targets)))
    command = [
        binary,
        f"--config.file={config}",
        f"--storage.tsdb.path={folder / 'tsdb'}",
        "--storage.tsdb.retention.time=30y",
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=error",
    ]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            url = f"http://127.0.0.1:{port}"
            wait_until(lambda: answers(f"{url}/-/ready"), seconds=60)
            yield url
        finally:
            process.terminate()


def wait_until(is_done, *, seconds: float) -> None:
    """Wait for a condition; bounded, so that a hanging server fails the test."""
    for _ in range(int(seconds * 10)):
        if is_done():
            return
        time.sleep(0.1)
    pytest.fail(f"not done within {seconds} s")
