"""A Ray cluster of its own, reached at its address: killed processes lose nothing.

Ray takes half a minute of CPU for that, and gives up where a busy machine is slower than it waits
for: so `make test-live` runs this, or `python -m pytest tests/integration/live_ray.py`.
"""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.figures.test_rolled_up import a_window, entries, rolled_up
from tests.integration.real_prometheus import free_port, wait_until
from tests.telemetry.test_on_ray import PATIENT, run_on_ray

ON_LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}


@contextmanager
def ray_cluster(folder, environment):
    """A Ray on loopback that only who has the token may use: its process, its clients' address."""
    port = free_port()
    with subprocess.Popen(
        [
            *(Path(sys.executable).with_name("ray"), "start", "--head", "--block", "--port=0"),
            *("--node-ip-address=127.0.0.1", "--include-dashboard=false", "--num-cpus=2"),
            *(f"--ray-client-server-port={port}", f"--temp-dir={folder}"),
        ],
        env={**os.environ, **PATIENT, **ON_LOOPBACK, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as head:
        said = []
        for line in head.stdout:
            said.append(line)
            if "Ray runtime started" in line:
                break
        assert head.poll() is None, "".join(said)
        wait_until(partial(is_open, port), seconds=120)
        try:
            yield head.pid, f"ray://127.0.0.1:{port}"
        finally:
            head.terminate()
            head.communicate()


def is_open(port):
    """Whether anybody listens on the loopback port."""
    with socket.socket() as own:
        return own.connect_ex(("127.0.0.1", port)) == 0


def test_on_a_cluster_a_worker_and_a_driver_that_are_killed_lose_nothing(tmp_path):
    path = a_window(tmp_path, 100)
    alone = shutil.copytree(path, tmp_path / "alone" / "w")
    whole = rolled_up(alone, None)
    own = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    short = TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True)  # sockets lie there
    with short as folder, ray_cluster(folder, own) as (head, address):
        cut_short = run_on_ray(path, head, address, 4, **own)
    assert cut_short.returncode == -signal.SIGKILL, cut_short.stderr
    made = len(entries(path))
    assert made >= 4
    goes_on = rolled_up(path, None)
    assert (goes_on.pieces, goes_on.made) == (whole.pieces, whole.pieces - made)
    assert entries(path) == entries(alone)
