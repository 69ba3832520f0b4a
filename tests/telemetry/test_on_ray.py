"""Workers on Ray: the same entries, whoever is killed; and the error without Ray."""

import os
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.figures.test_rolled_up import a_window, entries, rolled_up
from tests.integration.real_prometheus import free_port
from vllm_capacity.cli import cli
from vllm_capacity.errors import InputError, SourceError
from vllm_capacity.telemetry.on_ray import ray_workers

RUN = Path(__file__).with_name("ray_run.py")
needs_ray = pytest.mark.skipif(
    find_spec("ray") is None and "CI" not in os.environ,
    reason="needs Ray: pip install 'vllm-capacity[ray]'",
)


PATIENT = {
    "RAY_agent_register_timeout_ms": "120000",
    "RAY_raylet_start_wait_time_s": "120",
    "RAY_CLIENT_SERVER_CHECK_CHANNEL_TIMEOUT_S": "120",
    "RAY_CLIENT_INITIAL_CONNECTION_TIMEOUT_S": "15",
    "RAY_CLIENT_MAX_CONNECTION_TIMEOUT_S": "120",
}
"""Ray itself gives up where a busy machine starts it too slowly."""


def run_on_ray(*arguments, script=RUN, tries=3, **environment):
    """What a script did, once it had reached Ray."""
    done = subprocess.run(
        [sys.executable, script, *map(str, arguments)],
        env={**os.environ, **PATIENT, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    is_too_busy = "No Ray at" in done.stderr and tries > 1
    if is_too_busy:
        return run_on_ray(*arguments, script=script, tries=tries - 1, **environment)
    return done


@pytest.fixture
def short():
    """A folder with a short path, for sockets of Ray lie there."""
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:
        yield folder


@needs_ray
def test_on_ray_a_worker_that_is_killed_changes_nothing(tmp_path, short):
    path = a_window(tmp_path, 100)
    alone = shutil.copytree(path, tmp_path / "alone" / "w")
    whole = rolled_up(alone, None)
    done = run_on_ray(path, RAY_TMPDIR=short)
    assert done.stdout.splitlines()[-1:] == [f"{whole.pieces} {whole.pieces} 1"], done.stderr
    assert entries(path) == entries(alone)


def test_without_ray_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    path = a_window(tmp_path, 100)
    with pytest.raises(InputError, match=r"pip install 'vllm-capacity\[ray\]'"):
        CliRunner().invoke(cli, ["rollup", str(path), "--on", "ray"], catch_exceptions=False)


@needs_ray
def test_an_unreachable_cluster_is_reported_with_what_to_check(monkeypatch):
    monkeypatch.setattr("ray.util.client.worker.INITIAL_TIMEOUT_SEC", 1)
    monkeypatch.setattr("ray.util.client.worker.MAX_TIMEOUT_SEC", 1)
    says = f"No Ray at ray://127.0.0.1:{free_port()}: .*client port .*RAY_AUTH_TOKEN"
    address = says.split()[3].rstrip(":")
    with pytest.raises(SourceError, match=says), ray_workers(address, 1, {}):
        pass


@pytest.mark.parametrize("place", ["", "spark", "ray://", "ray://me:secret@host:1", "ray://host"])
def test_another_place_is_refused(place):
    said = CliRunner().invoke(cli, ["rollup", "w", "--on", place])
    assert (said.exit_code, "must be local, ray or ray://HOST:PORT" in said.output) == (2, True)
