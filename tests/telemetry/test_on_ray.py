"""Workers on Ray: the same entries, whoever is killed; and what is said where Ray is not there."""

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
from vllm_capacity.cli import cli
from vllm_capacity.errors import InputError

RUN = Path(__file__).with_name("ray_run.py")
needs_ray = pytest.mark.skipif(
    find_spec("ray") is None and "CI" not in os.environ,
    reason="needs Ray: pip install 'vllm-capacity[ray]'",
)


def run_on_ray(path, *, starts=3):
    """What `ray_run.py` did; Ray itself gives up where a busy machine starts it too slowly."""
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as short:
        # Sockets of Ray lie there, whose paths must be short.
        done = subprocess.run(
            [sys.executable, RUN, path],
            env={**os.environ, "RAY_TMPDIR": short},
            capture_output=True,
            text=True,
            check=False,
        )
    if "timed out during startup" in done.stderr and starts > 1:
        return run_on_ray(path, starts=starts - 1)
    return done


@needs_ray
def test_on_ray_a_worker_that_is_killed_changes_nothing(tmp_path):
    path = a_window(tmp_path, 100)
    alone = shutil.copytree(path, tmp_path / "alone" / "w")
    whole = rolled_up(alone, None)
    done = run_on_ray(path)
    assert done.stdout.splitlines()[-1:] == [f"{whole.pieces} {whole.pieces} 1"], done.stderr
    assert entries(path) == entries(alone)


def test_without_ray_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    path = a_window(tmp_path, 100)
    with pytest.raises(InputError, match=r"pip install 'vllm-capacity\[ray\]'"):
        CliRunner().invoke(cli, ["rollup", str(path), "--on", "ray"], catch_exceptions=False)


@pytest.mark.parametrize("place", ["", "spark", "ray://", "ray://me:secret@host:1", "ray://host"])
def test_another_place_is_refused(place):
    said = CliRunner().invoke(cli, ["rollup", "w", "--on", place])
    assert (said.exit_code, "is none of local, ray, ray://HOST:PORT" in said.output) == (2, True)
