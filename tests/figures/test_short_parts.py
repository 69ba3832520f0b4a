"""A short part of a long window in S3: as from all rows, without moving them."""

import random
import shutil

import pytest
from polars.testing import assert_frame_equal

from tests.figures.small_windows import Line, at, small_window
from tests.figures.test_by_hour import BEGINS, a_server
from vllm_capacity.analysis import Analysis
from vllm_capacity.figures import few_rows, short_parts
from vllm_capacity.figures.by_hour import by_hour
from vllm_capacity.figures.short_parts import ShortPart, as_read, short_part
from vllm_capacity.telemetry.rows import SeriesKey
from vllm_capacity.telemetry.window import Window, open_window
from vllm_capacity.timerange import iso

HOUR = 3600


def a_window(folder, seed):
    """A window of nine hours of three servers, and what its hours left behind."""
    rng = random.Random(100 + seed)
    lines = [
        line for name in "abc" for line in a_server(rng, name, every=rng.choice([60, 120, 200]))
    ]
    begin = BEGINS.get(seed)
    asked = {} if begin is None else {"start": iso(at(begin))}
    window = small_window(folder, *lines, **asked)
    by_hour(window, window.extent, rows_per_piece=1)
    return window.path


@pytest.fixture(scope="module", params=range(5))
def path(request, tmp_path_factory):
    return a_window(tmp_path_factory.mktemp(f"short_{request.param}"), request.param)


@pytest.fixture(scope="module")
def one_path(tmp_path_factory):
    return a_window(tmp_path_factory.mktemp("short_one"), 0)


PARTS = {
    "the last minutes": (8.9, 9.0),
    "the first minutes": (0.0, 1.3),
    "an hour of the clock": (3.0, 4.0),
    "six hours": (1.5, 7.5),
    "any part": None,
}


def part_of(name, path):
    """Start and end of the part in seconds; `any part` is another one for each window."""
    hours = PARTS[name]
    if hours is None:
        rng = random.Random(path.parent.name)
        start = rng.uniform(1, 7.5)
        hours = start, start + rng.uniform(0.1, 1.5)
    return hours[0] * HOUR, hours[1] * HOUR


def as_from_all_rows(path, start, end):
    """The part as read from S3, with only the rows near it readable."""
    window = open_window(path)
    time_range = window.clamp(at(start), at(end))
    return Analysis(window.remembering(), time_range), Analysis(
        short_part(window, time_range, rows_per_piece=1), time_range
    )


@pytest.mark.parametrize("part", PARTS)
def test_the_answer_is_that_of_all_rows_to_the_last_bit(path, part):
    by_rows, short = as_from_all_rows(path, *part_of(part, path))
    assert short.answer == by_rows.answer
    for name in ("steps", "series", "attempts", "counters", "engines", "hours", "costs"):
        assert_frame_equal(getattr(short, name), getattr(by_rows, name))


@pytest.fixture
def fresh(one_path, tmp_path):
    """The window without stored hours."""
    return shutil.copytree(one_path, tmp_path / "w", ignore=shutil.ignore_patterns(".rollup"))


def test_a_short_range_reads_stored_hours_of_a_window_with_many_rows(one_path, fresh, monkeypatch):
    monkeypatch.setattr(few_rows, "MAX_ROWS", 1000)
    for place, kind in ((one_path, ShortPart), (fresh, Window)):
        window = open_window(place)
        time_range = window.clamp(at(3 * HOUR), at(4 * HOUR))
        assert type(as_read(window, time_range, rows_per_piece=1)) is kind
    assert not list((fresh / ".rollup").glob("2*"))


def test_of_very_many_rows_missing_hours_are_stored_first(one_path, fresh, monkeypatch):
    monkeypatch.setattr(few_rows, "MAX_ROWS", 1000)
    monkeypatch.setattr(short_parts, "MANY_ROWS", 1000)
    window = open_window(fresh)
    time_range = window.clamp(at(3 * HOUR), at(4 * HOUR))
    read = as_read(window, time_range, rows_per_piece=1)
    assert isinstance(read, ShortPart)
    assert len(list((fresh / ".rollup").glob("2*"))) == len(read.pieces)
    by_rows, _ = as_from_all_rows(one_path, 3 * HOUR, 4 * HOUR)
    assert Analysis(read, time_range).answer == by_rows.answer


def test_of_a_target_that_two_jobs_scrape_all_attempts_are_read(tmp_path):
    """Which job's attempts count, all of them decide, not those of an hour."""
    rng = random.Random(5)
    seconds = range(0, 9 * HOUR, 45)
    job = SeriesKey("up", "gauge", "a", labels=(("job", "other"),))
    other = Line(job, {t + 20.5: rng.random() < 0.99 for t in seconds if t < HOUR or t > 5 * HOUR})
    window = small_window(tmp_path, *a_server(rng, "a", every=60), other)
    read, ends = by_hour(window, window.extent, rows_per_piece=1), {"end": window.extent.end}
    whole = read.named_sql("figures", "attempts", **ends)
    for count in (1, 9, 700):
        first, height = read.first_rows("figures", "attempts", count, **ends)
        assert_frame_equal(first, whole.head(count))
        assert height == whole.height
    for start, end in ((0.2, 0.9), (3.1, 4.2), (7.5, 8.0)):
        by_rows, short = as_from_all_rows(window.path, start * HOUR, end * HOUR)
        assert_frame_equal(short.attempts, by_rows.attempts)
        assert short.answer == by_rows.answer
