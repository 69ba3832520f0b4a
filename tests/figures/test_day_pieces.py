"""Figures of finished days, read as one piece each, equal those of their hours."""

import random
import shutil
from datetime import timedelta
from pathlib import Path

import pytest
from msgspec.structs import replace
from polars.testing import assert_frame_equal

from tests.figures.small_windows import T0, at, gauge, small_rows, small_window
from tests.figures.test_by_hour import a_server, hourly
from tests.figures.test_rolled_up import OneAfterAnother, rolled_up
from vllm_capacity.analysis import Analysis
from vllm_capacity.facts.metrics import RUNNING
from vllm_capacity.figures.by_hour import by_hour
from vllm_capacity.figures.days import in_days
from vllm_capacity.figures.pieces import Piece
from vllm_capacity.telemetry.late import extend_window
from vllm_capacity.telemetry.window import open_window
from vllm_capacity.timerange import TimeRange

HOUR = 3600
EVENING = 12 * HOUR  # 20:00: four of the nine hours are before midnight
FRAMES = ("steps", "series", "attempts", "counters", "engines", "hours", "costs")


def later(line, seconds):
    """The series, that many seconds later."""
    is_start = line.key.metric == "process_start_time_seconds"
    shift = seconds if is_start else 0
    values = {
        t + seconds: value if isinstance(value, tuple) else value + shift
        for t, value in line.values.items()
    }
    return replace(line, values=values)


def a_window(folder, seed):
    """A window of three servers over two midnights, another for each seed."""
    rng = random.Random(seed)
    every = {name: rng.choice([120, 200]) for name in "abc"}
    lines = [
        later(line, EVENING + hours * HOUR)
        for hours, name in ((0, "a"), (8, "b"), (22, "c"))
        for line in a_server(rng, name, every=every[name])
    ]
    return small_window(folder, *lines).path


@pytest.fixture(scope="module", params=range(2))
def path(request, tmp_path_factory):
    return a_window(tmp_path_factory.mktemp(f"days_{request.param}"), request.param)


@pytest.fixture(scope="module")
def kept_path(tmp_path_factory):
    """A window of one server over a midnight, every hour of it kept."""
    lines = [later(line, EVENING) for line in a_server(random.Random(12), "a", every=200)]
    path = small_window(tmp_path_factory.mktemp("kept"), *lines).path
    hourly(path)
    return path


def by_days_and_by_hours(path, monkeypatch, start=None, end=None):
    by_days = hourly(path, start, end)
    with monkeypatch.context() as patch:
        patch.setattr("vllm_capacity.figures.by_hour.in_days", lambda pieces, borders: pieces)
        by_hours = hourly(path, start, end)
    return by_days, by_hours


RANGES = {
    "the whole window": (None, None),
    "a day that the start cuts": (at(EVENING + 1.3 * HOUR), None),
    "whole days": (at(16 * HOUR), at(40 * HOUR)),
}


@pytest.mark.parametrize("part", RANGES)
def test_figures_of_days_are_those_of_their_hours_to_the_last_bit(path, monkeypatch, part):
    by_days, by_hours = by_days_and_by_hours(path, monkeypatch, *RANGES[part])
    assert len(by_days.window.pieces) < len(by_hours.window.pieces)
    assert by_days.answer == by_hours.answer
    for name in FRAMES:
        assert_frame_equal(getattr(by_days, name), getattr(by_hours, name))
    ends = {"end": by_days.time_range.end}
    of_days, of_hours = (
        each.window.named_sql("figures", "lifetimes", **ends) for each in (by_days, by_hours)
    )
    assert_frame_equal(of_days, of_hours)


def test_a_day_holds_fewer_rows_than_its_hours(path, monkeypatch):
    by_days, by_hours = by_days_and_by_hours(path, monkeypatch)
    for table in ("samples", "histograms"):
        counts = [
            each.window.ends.cursor().execute(f"select count(*) from {table}").fetchone()[0]
            for each in (by_days, by_hours)
        ]
        assert counts[0] < counts[1]


def piece(start, hours, *, is_cut=False):
    begin = T0.replace(hour=0) + timedelta(hours=start)
    return Piece(TimeRange(begin, begin + timedelta(hours=hours)), (), is_cut)


def lengths(pieces, *borders):
    """The number of parts of each piece after joining; 0 for one that stays as it is."""
    midnight = T0.replace(hour=0)
    found = in_days(pieces, [midnight + timedelta(hours=hour) for hour in borders])
    return [len(one.parts) for one in found]


def test_finished_days_are_joined():
    days = [piece(hour, 6) for hour in range(6, 72, 6)]
    assert lengths(days) == [3, 4, 0, 0, 0, 0]
    assert lengths(days, 6, 24, 48) == [3, 4, 0, 0, 0, 0]
    assert lengths(days, 7) == [0, 0, 0, 4, 0, 0, 0, 0]
    assert lengths(days[:4]) == [3, 0]
    assert lengths([piece(0, 24), piece(24, 24)]) == [0, 0]
    assert lengths([]) == []


def names(path, date):
    return sorted(entry.name for entry in (path / ".rollup").glob(f"{date}*"))


@pytest.fixture
def own_path(kept_path, tmp_path):
    """A copy of that window, for a test that changes it."""
    return shutil.copytree(kept_path, tmp_path / "own")


@pytest.mark.parametrize("hour", [22, 23, 24])
def test_late_rows_make_the_touched_hour_and_its_day_anew(own_path, monkeypatch, hour):
    most = hourly(own_path).gauges.running.max
    hours, day = names(own_path, "2026-11-2?T"), names(own_path, "2026-11-24.")
    assert (len(hours), len(day)) == (9, 1)
    late = gauge(RUNNING, {(hour - 8) * HOUR + 1.5: 900}, instance="a")
    extend_window(own_path, small_rows(late))
    found = hourly(own_path).answer
    assert found.running.max >= 900 > most
    new = set(names(own_path, "2026-11-2?T")) - set(hours)
    assert {name[:13] for name in new} == {f"{at((hour - 8) * HOUR):%Y-%m-%dT%H}"}
    assert len(names(own_path, "2026-11-2?T")) == 9
    (renewed,) = names(own_path, "2026-11-24.")
    assert ([renewed] == day) == (hour == 24)
    shutil.rmtree(own_path / ".rollup")
    monkeypatch.setattr("vllm_capacity.figures.by_hour.in_days", lambda pieces, borders: pieces)
    assert hourly(own_path).answer == found


def test_hours_that_are_not_read_stay(own_path):
    wanted, kept = hourly(own_path).answer, names(own_path, "2")
    assert hourly(own_path).answer == wanted
    assert names(own_path, "2") == kept


def test_a_damaged_day_is_made_of_its_hours_again(own_path):
    wanted, kept = hourly(own_path).answer, names(own_path, "2")
    (day,) = (own_path / ".rollup").glob("2026-11-24.*")
    made = {entry: entry.stat().st_mtime_ns for entry in (own_path / ".rollup").glob("*T*")}
    (day / "steps.parquet").unlink()
    assert hourly(own_path).answer == wanted
    assert names(own_path, "2") == kept
    assert {entry: entry.stat().st_mtime_ns for entry in made} == made


@pytest.mark.parametrize("count", [1, 3])
def test_workers_leave_the_same_days(kept_path, tmp_path, count):
    other = shutil.copytree(kept_path, tmp_path / "other", ignore=shutil.ignore_patterns(".rollup"))
    workers = OneAfterAnother(count) if count > 1 else None
    done = rolled_up(other, workers)
    assert done.made == done.pieces
    assert names(other, "2") == names(kept_path, "2")
    assert rolled_up(other, workers).made == 0


def test_where_nothing_can_be_kept_days_are_in_memory(own_path, monkeypatch, tmp_path):
    wanted = hourly(own_path).answer
    shutil.rmtree(own_path / ".rollup")
    (own_path / ".rollup").write_text("in the way")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    window = open_window(own_path)
    read = by_hour(window, window.extent, rows_per_piece=1)
    assert not any(isinstance(kept.entry.frames, Path) for kept in read.pieces)
    assert Analysis(read, window.extent).answer == wanted
