"""Tasks side by side in processes: done in any order, each once, even if workers die."""

import os
import signal
from pathlib import Path

import pytest

from vllm_capacity.errors import InputError, SourceError
from vllm_capacity.telemetry.workers import processes


def answered(task: tuple[str, Path]) -> str:
    """The task's word; some tasks end the process that does them, once or each time."""
    word, folder = task
    first = folder / f"{word}.begun"
    if word == "refused":
        raise InputError("no such word")
    if word == "fatal" or (word == "fatal once" and not first.exists()):
        first.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return f"{word} {os.environ['SAID']} {os.environ['OWN']}"


def done_by(count, words, folder):
    with processes(count, {"SAID": "to workers"}) as workers:
        return dict(workers.map(answered, [(word, folder) for word in words]))


@pytest.fixture(autouse=True)
def _own(monkeypatch):
    monkeypatch.setenv("OWN", "mine")


def test_a_task_whose_worker_died_is_done_again_and_so_are_all_others(tmp_path):
    words = ["a", "fatal once", "b", "c"]
    wanted = {n: f"{word} to workers mine" for n, word in enumerate(words)}
    assert done_by(2, words, tmp_path) == wanted


@pytest.mark.parametrize(
    ("word", "error", "says"),
    [
        pytest.param("fatal", SourceError, "killed 3 times in a row", id="dies each time"),
        pytest.param("refused", InputError, "no such word", id="raises"),
    ],
)
def test_an_impossible_request_is_reported(tmp_path, word, error, says):
    with pytest.raises(error, match=says):
        done_by(1, [word], tmp_path)
