"""Reports that nobody watches: the README's cron line, run as cron runs it."""

import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.integration.real_prometheus import wait_until
from vllm_capacity.render.report.metadata import page_metadata

ROOT = Path(__file__).resolve().parents[2]
CLONE = "/path/to/vllm_capacity"  # as in the README
WINDOW = "vllm-sweep"
CLEAN = {".venv", "reports"}


def cron_line() -> str:
    """The README's line for a crontab: five fields of time, then the command."""
    found = re.findall(r"^\s*((?:[\d*/,-]+ ){5}cd .*)$", (ROOT / "README.md").read_text(), re.M)
    assert len(found) == 1, "the README has one line for a crontab"
    return found[0]


def set_up(folder: Path) -> Path:
    """A folder set up as a clone is, as far as the line can see: it has `.venv`."""
    (folder / ".venv").symlink_to(sys.prefix)
    return folder


@pytest.fixture
def clone(tmp_path) -> Path:
    return set_up(tmp_path)


@pytest.fixture(scope="module")
def after_a_run(tmp_path_factory) -> Path:
    """A clone in which the line ran once, as it is written."""
    clone = set_up(tmp_path_factory.mktemp("clone"))
    assert ended(started(clone)) == (0, [])
    return clone


@dataclass(frozen=True)
class Killed:
    """A clone in which a second run was killed while its notebook ran."""

    clone: Path
    before: dict[str, bytes]
    after: dict[str, bytes]
    orphans: list[psutil.Process]


@pytest.fixture(scope="module")
def after_a_kill(after_a_run, tmp_path_factory) -> Killed:
    clone = tmp_path_factory.mktemp("killed") / "clone"
    shutil.copytree(after_a_run, clone, symlinks=True)
    before = written(clone)
    run = psutil.Process((killed := started(clone)).pid)

    def kernels() -> list[psutil.Process]:
        below = run.children(recursive=True)
        return [each for each in below if "ipykernel_launcher" in " ".join(each.cmdline())]

    wait_until(kernels, seconds=120)
    orphans = kernels()
    os.killpg(killed.pid, signal.SIGKILL)
    ended(killed)
    return Killed(clone, before, written(clone), orphans)


def started(clone: Path, window: str = WINDOW) -> subprocess.Popen:
    """The command of the line, as cron starts it: by /bin/sh, in the home folder, with its PATH."""
    command = cron_line().split(maxsplit=5)[5]
    assert "%" not in command  # cron turns it into a newline
    command = command.replace(CLONE, str(clone)).replace(WINDOW, window)
    return subprocess.Popen(
        ["/bin/sh", "-c", command],
        cwd="/",
        env={"HOME": str(Path.home()), "SHELL": "/bin/sh", "PATH": "/usr/bin:/bin"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def ended(run: subprocess.Popen) -> tuple[int, list[str]]:
    """Its exit code, and the lines of its stderr."""
    _, complaint = run.communicate(timeout=180)
    return run.returncode, complaint.splitlines()


def is_being_written(reports: Path) -> bool:
    try:
        with (reports / ".report" / ".lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def written(clone: Path) -> dict[str, bytes]:
    """What a reader finds among the reports."""
    return {path.name: path.read_bytes() for path in (clone / "reports").glob("[!.]*")}


def test_the_line_names_a_window_there_is(examples):
    assert (examples / WINDOW).is_dir()
    assert f"--window {WINDOW}" in cron_line()


def test_the_line_as_written_makes_the_page_and_the_index(after_a_run):
    assert set(written(after_a_run)) == {f"{WINDOW}.html", "index.html"}
    assert page_metadata(after_a_run / "reports" / f"{WINDOW}.html").line.window == WINDOW
    assert {path.name for path in after_a_run.iterdir()} == CLEAN


def test_a_missing_window_is_reported_in_one_line(clone):
    code, complaint = ended(started(clone, window="no-such-window"))
    assert (code, len(complaint)) == (2, 1)
    assert "No window 'no-such-window'" in complaint[0]
    assert written(clone) == {}


def test_run_killed_half_way_leaves_the_old_page_and_nothing_that_runs(after_a_kill):
    assert after_a_kill.after == after_a_kill.before
    assert psutil.wait_procs(after_a_kill.orphans, timeout=60)[1] == []
    assert {path.name for path in after_a_kill.clone.iterdir()} == CLEAN


def test_of_two_runs_at_once_one_writes_and_one_gives_the_reason(after_a_kill):
    clone = after_a_kill.clone
    first = started(clone)
    wait_until(lambda: is_being_written(clone / "reports"), seconds=120)
    code, complaint = ended(started(clone))
    assert (code, len(complaint)) == (3, 1)
    assert "Another report is being written" in complaint[0]
    assert ended(first) == (0, [])
    assert page_metadata(clone / "reports" / f"{WINDOW}.html").line.window == WINDOW
