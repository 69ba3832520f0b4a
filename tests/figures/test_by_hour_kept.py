"""What the hours of a long range left behind: kept whole, and computed anew where it is not."""

import os
import random
import shutil
from pathlib import Path

import pytest

from tests.figures.small_windows import at, gauge, small_rows, small_window
from tests.figures.test_by_hour import a_server, hourly
from vllm_capacity.analysis import Analysis
from vllm_capacity.facts.metrics import RUNNING
from vllm_capacity.telemetry.late import extend_window
from vllm_capacity.telemetry.window import open_window


def entries(path):
    return {entry.name for entry in (path / ".rollup").glob("2*")}


@pytest.fixture(scope="module")
def kept_path(tmp_path_factory):
    """A window of one server, every hour of it kept."""
    rng = random.Random(11)
    path = small_window(tmp_path_factory.mktemp("kept"), *a_server(rng, "a", every=200)).path
    hourly(path)
    return path


@pytest.fixture(scope="module")
def wanted(kept_path):
    """The answer from hours that were kept whole."""
    return hourly(kept_path).answer


@pytest.fixture
def own_path(kept_path, tmp_path):
    """A copy of that window, for a test that changes it."""
    return shutil.copytree(kept_path, tmp_path / kept_path.name)


def test_rows_that_came_late_make_exactly_the_hours_new_that_they_touch(own_path):
    most = hourly(own_path).gauges.running.max
    kept = entries(own_path)
    late = small_rows(gauge(RUNNING, {4 * 3600 + 1.5: 70}, instance="a"))
    extend_window(own_path, late)
    assert hourly(own_path).gauges.running.max == 70 != most
    assert {name[:13] for name in entries(own_path) - kept} == {"2026-11-24T12"}
    assert len(entries(own_path)) == len(kept)


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-9])


def spoil(path):
    data = path.read_bytes()
    path.write_bytes(data[:4] + bytes(byte ^ 1 for byte in data[4:-9]) + data[-9:])


def pipe(path):
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize("damage", [cut_short, spoil, pipe, Path.unlink])
def test_a_kept_hour_that_is_not_whole_is_computed_anew(own_path, wanted, damage):
    kept = next((own_path / ".rollup").glob("2026-11-24T10*"))
    damage(kept / "steps.parquet")
    assert hourly(own_path).answer == wanted


def test_where_nothing_can_be_kept_the_answer_is_the_same(own_path, wanted, monkeypatch, tmp_path):
    shutil.rmtree(own_path / ".rollup")
    (own_path / ".rollup").write_text("in the way")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    assert hourly(own_path).answer == wanted


def test_what_an_end_of_the_range_cuts_is_not_kept(own_path):
    kept = entries(own_path)
    assert hourly(own_path, at(1000), at(8.5 * 3600)).answer
    assert entries(own_path) == kept


def test_hours_with_few_rows_are_kept_together(own_path, wanted):
    shutil.rmtree(own_path / ".rollup")
    together = Analysis.of(open_window(own_path)).answer
    assert together.tokens.generation == wanted.tokens.generation
    assert together.latency == wanted.latency
    assert len(entries(own_path)) == 1
