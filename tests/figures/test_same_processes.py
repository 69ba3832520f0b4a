"""Targets of a long window that are one process: hours may refute it, only all rows prove it."""

import pytest

from tests.figures.small_windows import counter, gauge, small_window, up
from vllm_capacity.analysis import Analysis
from vllm_capacity.facts.metrics import GENERATION_TOKENS

START = 1_795_000_000.0
DAY, SCRAPE_SECONDS = 86_400, 600


def target(instance, offset, count, *, days):
    """The series of a target: `count` says what it had counted so many seconds after T0."""
    at = [offset + second for second in range(0, int(days * DAY), SCRAPE_SECONDS)]
    return (
        up(dict.fromkeys(at, 1.0), instance=instance),
        gauge("process_start_time_seconds", dict.fromkeys(at, START), instance=instance),
        counter(GENERATION_TOKENS, {s: float(count(s)) for s in at}, instance=instance),
    )


def same(window, *, exact):
    """The pairs that an analysis of the window takes for one process."""
    findings = Analysis.of(window, exact=exact).quality
    return [each.effect.split(" are one")[0] for each in findings if each.check == "duplicate"]


def resting(second):
    """Twice as fast after six hours of rest each night, so that it has caught up by the morning."""
    day, of_day = divmod(second, DAY)
    rested = min(max(of_day - 6 * 3600, 0), 6 * 3600)
    return day * DAY + of_day - rested + max(0, min(of_day - 12 * 3600, 6 * 3600))


@pytest.mark.parametrize("exact", [False, True], ids=["by the hour", "all rows"])
def test_replicas_of_one_start_that_count_apart_between_the_hours_kept_are_two(tmp_path, exact):
    lines = (*target("a", 5, resting, days=6), *target("b", 35, lambda s: s, days=6))
    assert same(small_window(tmp_path, *lines), exact=exact) == []


@pytest.mark.parametrize("exact", [False, True], ids=["by the hour", "all rows"])
def test_a_process_scraped_under_two_names_is_found_in_a_few_hours(tmp_path, exact):
    lines = (*target("a", 5, lambda s: s, days=0.4), *target("b", 35, lambda s: s, days=0.4))
    assert same(small_window(tmp_path, *lines), exact=exact) == ["a and b"]
