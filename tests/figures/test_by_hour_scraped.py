"""Figures of a long range from what its hours left behind, whoever scrapes which target."""

import random

import pytest
from msgspec.structs import replace

from tests.figures.small_windows import small_rows, small_window, up
from tests.figures.test_by_hour import (
    HOURS,
    a_server,
    assert_counts_are_those_of_all_rows,
    hourly,
)
from vllm_capacity.telemetry.late import extend_window


def scraped_by_two(rng):
    """A target that a second job scrapes, too, with an hour's silence of each in turn."""
    first, *others = a_server(rng, "a", every=60)
    kept = {t: good for t, good in first.values.items() if not 6 * 3600 < t < 7 * 3600}
    second = {t + 20.5: rng.random() < 0.97 for t in range(0, HOURS * 3600, 45)}
    silent = {t: good for t, good in second.items() if not 3600 < t < 5 * 3600}
    return [up(kept, job="first"), up(silent, job="second"), *others]


def renamed(rng):
    """A target whose job is renamed, and is scraped by both for a quarter of an hour."""
    first, *others = a_server(rng, "a", every=60)
    change = rng.uniform(3, 6) * 3600
    old = {t: good for t, good in first.values.items() if t < change + 900}
    new = {t + 7: good for t, good in first.values.items() if t >= change}
    return [up(old, job="old"), up(new, job="new"), *others]


def with_two_engines(rng):
    """A target with two engines (data parallel), one of which is seen later."""
    lines = a_server(rng, "a", every=60)
    second = [
        replace(
            line,
            key=replace(line.key, engine="1"),
            values={t: value for t, value in line.values.items() if t > 9000},
        )
        for line in lines
        if line.key.engine
    ]
    return [*lines, *second]


def of_one_name(rng):
    """Two targets of one name: what each counts alternates."""
    first, *others = a_server(rng, "a", every=60)
    second, *more = a_server(rng, "a", every=45)
    ups = [up(line.values, job=job) for line, job in ((first, "first"), (second, "second"))]
    return [*ups, *others, *more]


def with_late_up(rng):
    """Two targets, of which one has no `up` for the first hours."""
    first, *others = a_server(rng, "a", every=60)
    since = rng.uniform(3, 6) * 3600
    late = {t: good for t, good in first.values.items() if t >= since}
    return [up(late), *others, *a_server(rng, "b", every=60)]


def with_lost_up(rng):
    """Two targets, of which one has no `up` for the last hours."""
    first, *others = a_server(rng, "a", every=60)
    until = rng.uniform(3, 6) * 3600
    early = {t: good for t, good in first.values.items() if t < until}
    return [up(early), *others, *a_server(rng, "b", every=60)]


def scraped_by_two_without_names(rng):
    """A target that a second job without a name of its own scrapes for most of the time."""
    _, *others = a_server(rng, "a", every=60)
    attempts = dict.fromkeys(range(0, HOURS * 3600, 60), True)
    second = {t + 20.0: rng.random() < 0.97 for t in attempts if 3600 < t < 8 * 3600}
    return [up(attempts | second), *others]


SCRAPED = (
    scraped_by_two,
    renamed,
    with_two_engines,
    of_one_name,
    with_late_up,
    with_lost_up,
    scraped_by_two_without_names,
)


@pytest.mark.parametrize("lines", SCRAPED)
def test_counts_are_those_of_all_rows_whoever_scrapes(lines, tmp_path):
    path = small_window(tmp_path, *lines(random.Random(1))).path
    assert_counts_are_those_of_all_rows(path)


def test_late_attempts_of_another_job_count_as_in_all_rows(tmp_path):
    """They are of one hour, but may decide whose attempts count in every hour."""
    path = small_window(tmp_path, *renamed(random.Random(2))).path
    hourly(path)
    late = {t + 31.0: t % 7 > 0 for t in range(4 * 3600, 6 * 3600, 15)}
    extend_window(path, small_rows(up(late, job="late")))
    assert_counts_are_those_of_all_rows(path)
