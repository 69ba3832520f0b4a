"""Locks end with their holder, however it ends, and nothing is removed under a reader."""

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from vllm_capacity.errors import SourceError
from vllm_capacity.holding import Pin, alone, is_private, workplace

KILLED = """
import os, sys, pathlib
from vllm_capacity.holding import scratch, workplace
with {held} as folder:
    (folder / "half").write_text("")
    os.kill(os.getpid(), 9)
"""


def killed_in(held: str, **more: str) -> None:
    """Another process, killed while it holds that lock."""
    ended = subprocess.run(
        [sys.executable, "-c", KILLED.format(held=held)],
        check=False,
        env={**os.environ, **more},
    )
    assert ended.returncode == -9


def test_a_second_run_is_refused_while_the_first_works(tmp_path):
    refused = pytest.raises(SourceError, match="taken")
    folder = tmp_path / ".w"
    with workplace(folder, busy="taken"), refused, workplace(folder, busy="taken"):
        pass


def test_the_workplace_goes_with_the_work(tmp_path):
    with workplace(tmp_path / ".w", busy="taken") as folder:
        assert folder.is_dir()
    assert list(tmp_path.iterdir()) == []


def test_what_is_left_in_a_workplace_on_purpose_stays(tmp_path):
    with workplace(tmp_path / ".w", busy="taken") as folder:
        (folder / "answers").touch()
    assert [path.name for path in folder.iterdir()] == ["answers"]


def test_a_killed_run_blocks_nobody_and_the_next_sees_what_it_left(tmp_path):
    killed_in(f"workplace(pathlib.Path({str(tmp_path / '.w')!r}), busy='')")
    with workplace(tmp_path / ".w", busy="taken") as folder:
        assert (folder / "half").exists()


def test_a_shared_folder_is_not_exclusive(tmp_path):
    pin = Pin(tmp_path)
    with alone(tmp_path) as is_alone:
        assert not is_alone
    pin.close()
    with alone(tmp_path) as is_alone:
        assert is_alone


def test_a_pin_ends_when_nothing_refers_to_it(tmp_path):
    Pin(tmp_path)
    with alone(tmp_path) as is_alone:
        assert is_alone


LISTED = """
import os, tempfile
from vllm_capacity.holding import scratch
with scratch("mine-") as one, scratch("mine-") as other:
    names = sorted(os.listdir(tempfile.gettempdir()))
    print(names == sorted([one.name, other.name, "mine-but-not-by-this-name"]))
"""


def test_scratch_folders_of_killed_runs_are_removed_and_those_in_use_are_not(tmp_path):
    killed_in("scratch('mine-')", TMPDIR=str(tmp_path))
    assert len(list(tmp_path.iterdir())) == 1
    (tmp_path / "mine-but-not-by-this-name").mkdir()
    listed = subprocess.run(
        [sys.executable, "-c", LISTED],
        check=True,
        capture_output=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert listed.stdout == b"True\n"
    assert [path.name for path in tmp_path.iterdir()] == ["mine-but-not-by-this-name"]


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        pytest.param(lambda path: path.mkdir(mode=0o700), True, id="a folder of one's own"),
        pytest.param(lambda path: path.mkdir(mode=0o755), False, id="others can read it"),
        pytest.param(lambda path: path.symlink_to("/"), False, id="a link"),
        pytest.param(lambda path: path.touch(mode=0o600), False, id="a file"),
        pytest.param(lambda path: None, False, id="nothing"),
    ],
)
def test_what_is_private(tmp_path: Path, make, expected):
    make(tmp_path / "x")
    assert is_private(tmp_path / "x") is expected


def test_a_folder_of_another_user_is_not_private(tmp_path):
    (tmp_path / "x").mkdir(mode=0o700)
    with suppress(PermissionError):
        os.chown(tmp_path / "x", 12345, -1)
        assert not is_private(tmp_path / "x")
