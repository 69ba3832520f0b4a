"""Hourly summaries by several workers equal those by one, even if workers are killed."""

import multiprocessing
import os
import random
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.figures.small_windows import gauge, small_rows, small_window, up
from tests.figures.test_by_hour import a_server
from vllm_capacity.cli import cli
from vllm_capacity.errors import InputError
from vllm_capacity.facts.metrics import RUNNING
from vllm_capacity.figures.pieces import ROWS_PER_PIECE
from vllm_capacity.figures.rolled_up import RolledUp, most_workers, roll_up
from vllm_capacity.telemetry.late import extend_window
from vllm_capacity.telemetry.memory import MEMORY_LIMIT, needed_bytes
from vllm_capacity.telemetry.window import open_window
from vllm_capacity.telemetry.workers import processes


class OneAfterAnother:
    """Workers that are this process, in the order that is hardest: the last task first."""

    def __init__(self, count):
        self.count = count

    def map(self, function, tasks):
        return [(n, function(task)) for n, task in reversed(list(enumerate(tasks)))]


def rolled_up(path, workers, progress=lambda done, of: None, *, rows_per_piece=1):
    return roll_up(open_window(path), workers, progress=progress, rows_per_piece=rows_per_piece)


def entries(path):
    """The names of the entries, which hold a hash of every byte in them."""
    return sorted(entry.name for entry in (path / ".rollup").glob("2*"))


def a_window(folder, seed):
    """A window of nine hours of two servers, another for each seed."""
    rng = random.Random(seed)
    lines = [
        line for name in "ab" for line in a_server(rng, name, every=rng.choice([120, 200, 300]))
    ]
    return small_window(folder, *lines).path


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """A window of which nothing is made yet."""
    return a_window(tmp_path_factory.mktemp("fresh"), 100)


@pytest.fixture
def path(fresh, tmp_path):
    return shutil.copytree(fresh, tmp_path / fresh.name)


@dataclass(frozen=True)
class Alone:
    """What one process made of the window, without any workers."""

    path: Path
    whole: RolledUp


@pytest.fixture(scope="module")
def alone(fresh, tmp_path_factory):
    path = shutil.copytree(fresh, tmp_path_factory.mktemp("alone") / fresh.name)
    return Alone(path, rolled_up(path, None))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_any_number_of_workers_leaves_the_same_bytes(path, alone, count):
    assert alone.whole == RolledUp(alone.whole.pieces, alone.whole.pieces)
    assert rolled_up(path, OneAfterAnother(count)) == alone.whole
    assert entries(path) == entries(alone.path)


def test_entries_do_not_depend_on_the_number_of_threads(examples, tmp_path):
    found = []
    for threads in ("1", "8"):
        path = shutil.copytree(examples / "fleet-two-models", tmp_path / threads)
        shutil.rmtree(path / ".rollup", ignore_errors=True)
        with processes(1, {"POLARS_MAX_THREADS": threads}) as workers:
            rolled_up(path, workers, rows_per_piece=ROWS_PER_PIECE)
        found.append(entries(path))
    assert found[0] == found[1] != []


def test_a_worker_that_is_killed_on_the_way_changes_nothing(path, alone):
    killed = []

    def kill(done, of):
        if done >= 2 and not killed:
            killed.append(multiprocessing.active_children()[0].pid)
            os.kill(killed[0], signal.SIGKILL)

    with processes(2, {}) as workers:
        assert rolled_up(path, workers, kill).pieces == alone.whole.pieces
    assert killed
    assert entries(path) == entries(alone.path)


def test_a_run_that_was_killed_goes_on_where_it_ended(path, alone):
    whole = alone.whole

    def stop(done, of):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rolled_up(path, None, stop)
    assert rolled_up(path, OneAfterAnother(2)) == RolledUp(whole.pieces, whole.pieces - 3)
    assert entries(path) == entries(alone.path)


def test_only_the_hours_with_late_rows_are_computed_again(alone, tmp_path):
    path = shutil.copytree(alone.path, tmp_path / alone.path.name)
    whole, kept = alone.whole, entries(path)
    extend_window(path, small_rows(gauge(RUNNING, {4 * 3600 + 1.5: 70}, instance="a")))
    assert rolled_up(path, OneAfterAnother(2)) == RolledUp(whole.pieces, 1)
    assert [name[:13] for name in set(entries(path)) - set(kept)] == ["2026-11-24T12"]
    assert len(entries(path)) == len(kept)


def test_a_short_window_has_nothing_to_make(tmp_path):
    short = small_window(tmp_path, up({t: True for t in range(0, 600, 60)}))
    assert rolled_up(short.path, OneAfterAnother(2)) == RolledUp(0, 0)
    said = CliRunner().invoke(cli, ["rollup", str(short.path)], catch_exceptions=False)
    assert said.output.startswith("w: nothing to precompute; windows of up to six hours")


def test_where_nothing_can_be_kept_it_says_so(path, monkeypatch, tmp_path):
    (path / ".rollup").write_text("in the way")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    with pytest.raises(InputError, match="can be kept neither in"):
        rolled_up(path, None)


def test_as_many_work_as_fit_into_memory(path, monkeypatch):
    window = open_window(path)
    counts = window.provenance["counts"]
    needed = needed_bytes(samples=counts["samples"], histograms=counts["histograms"])
    monkeypatch.setenv(MEMORY_LIMIT, f"{10 * needed + 100_000_000}B")
    assert most_workers(window) == 10 + 100_000_000 // needed


def test_the_command_says_what_it_made(path):
    def said():
        found = CliRunner().invoke(cli, ["rollup", str(path), "--workers", "1"])
        return found.exit_code, found.output

    assert said() == (0, "w: 9 hours in 1 piece, 1 of them new.\n")
    assert said() == (0, "w: 9 hours in 1 piece, 0 of them new.\n")
