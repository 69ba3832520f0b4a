"""Exit codes: that of an alert is used for nothing else, and one line gives the rest."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from vllm_capacity.cli import run
from vllm_capacity.errors import InputError, SourceError

COMMAND = [sys.executable, "-m", "vllm_capacity"]


class Panic(BaseException):
    """Like a panic of a native library: no Exception."""


def ended(monkeypatch, capsys, failure):
    @click.command()
    def fail():
        raise failure

    monkeypatch.setattr(sys, "argv", ["vllm-capacity"])
    with pytest.raises(SystemExit) as end:
        run(fail)
    return end.value.code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("failure", "code", "says"),
    [
        pytest.param(InputError("no such thing"), 2, "no such thing", id="bad input"),
        pytest.param(SourceError("it is down"), 3, "it is down", id="a source that failed"),
        pytest.param(
            PermissionError(13, "Permission denied", "x"), 2, "x: Permission", id="a file"
        ),
        pytest.param(
            RuntimeError("IO: No space (os error 28)"), 2, "No space left", id="a native library's"
        ),
        pytest.param(
            OSError(errno.ENOSPC, "No space left on device", "w.parquet"),
            2,
            "Cannot write w.parquet: No space left on device. Free some space",
            id="a full disk",
        ),
        pytest.param(
            RuntimeError("IO: No space (os error 28)"), 2, "Free some space", id="also a library's"
        ),
        pytest.param(KeyError("secret"), 70, "a bug in vllm-capacity (KeyError in", id="a bug"),
        pytest.param(RecursionError(), 70, "a bug", id="a bug without end"),
        pytest.param(Panic(), 70, "a bug", id="a panic"),
    ],
)
def test_an_error_is_one_line_and_its_exit_code(monkeypatch, capsys, failure, code, says):
    result = ended(monkeypatch, capsys, failure)
    assert (result[0], result[1].count("\n")) == (code, 1)
    assert says in result[1]


def test_a_bug_does_not_show_its_message_which_may_hold_a_secret(monkeypatch, capsys):
    _, output = ended(monkeypatch, capsys, ValueError("Bearer abc"))
    assert "Bearer abc" not in output
    assert "VLLM_CAPACITY_DEBUG=1" in output


def test_a_bug_shows_its_traceback_on_request(monkeypatch, capsys):
    monkeypatch.setenv("VLLM_CAPACITY_DEBUG", "1")
    code, output = ended(monkeypatch, capsys, ValueError("here"))
    assert (code, "Traceback" in output, "ValueError: here" in output) == (70, True, True)


def test_ctrl_c_is_no_error(monkeypatch, capsys):
    assert ended(monkeypatch, capsys, KeyboardInterrupt()) == (130, "\n")


def test_an_endless_message_is_truncated(monkeypatch, capsys):
    _, output = ended(monkeypatch, capsys, InputError("x" * 1_000_000))
    assert len(output) < 3_000


def test_an_argument_that_is_not_utf_8_is_refused():
    done = subprocess.run(
        [*COMMAND, "figures", b"\xff"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "is not UTF-8" in done.stderr


@pytest.mark.parametrize("words", [["sql", "tokens_per_minute"], ["--help"], ["sql", "--help"]])
def test_a_disconnected_reader_is_no_alert(words):
    """Click ends with 1 if a pipe is closed, which means for `alerts` that one fired."""
    reads, writes = os.pipe()
    os.close(reads)
    with os.fdopen(writes, "wb") as closed:
        done = subprocess.run(
            [*COMMAND, *words], stdout=closed, stderr=subprocess.PIPE, text=True, check=False
        )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "Standard output was closed" in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_under_the_output_is_one_line():
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [*COMMAND, "sql"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "No space left" in done.stderr
