"""Figures of a long range from hourly summaries equal those from all rows."""

import os
import random
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from polars.testing import assert_frame_equal

from tests.figures.small_windows import (
    at,
    counter,
    gauge,
    histogram,
    small_rows,
    small_window,
    up,
)
from vllm_capacity.analysis import Analysis
from vllm_capacity.facts.metrics import (
    E2E,
    GENERATION_TOKENS,
    ITL,
    KV_CACHE,
    PREEMPTIONS,
    PROMPT_TOKENS,
    REQUESTS,
    RUNNING,
    TTFT,
    WAITING,
)
from vllm_capacity.figures.by_hour import HourlyWindow, by_hour
from vllm_capacity.telemetry.late import extend_window
from vllm_capacity.telemetry.window import open_window
from vllm_capacity.timerange import iso

HOURS = 9
EDGES = (0.1, 1.0, 10.0)


def a_server(rng, name, *, every):
    """One target's scrapes over nine hours: some fail, some hours are lost, it restarts."""
    times = [t + rng.uniform(0, 3) for t in range(0, HOURS * 3600, every)]
    hole = rng.uniform(0, HOURS * 3600)
    times = [t for t in times if not hole < t < hole + rng.choice([0, 1000, 5000])]
    failed = {t for t in times if rng.random() < 0.03}
    restarts = sorted(rng.uniform(0, HOURS * 3600) for _ in range(rng.choice([0, 1, 3])))
    has_start = rng.random() < 0.7
    born = {"length": rng.uniform(0, HOURS * 3600), "stop": 0.0}
    counts = {metric: 0.0 for metric in (GENERATION_TOKENS, PROMPT_TOKENS, PREEMPTIONS)}
    finished = dict.fromkeys(born, 0.0)
    buckets = {metric: [0.0] * (len(EDGES) + 1) for metric in (TTFT, ITL, E2E)}
    sums = dict.fromkeys(buckets, 0.0)
    values: dict[object, dict[float, object]] = {}
    ended = 0
    for t in times:
        while ended < len(restarts) and restarts[ended] < t:
            ended += 1
            counts, finished = dict.fromkeys(counts, 0.0), dict.fromkeys(finished, 0.0)
            buckets = {metric: [0.0] * (len(EDGES) + 1) for metric in buckets}
            sums = dict.fromkeys(sums, 0.0)
        running = rng.choice([0, 0, 3, 12])
        for metric in counts:
            counts[metric] += rng.randrange(0, 40) * running
        for reason in finished:
            finished[reason] += rng.randrange(0, 3) * (running > 0) * (t > born[reason])
        for metric, row in buckets.items():
            for _ in range(rng.randrange(0, 4) * (running > 0)):
                bucket = rng.randrange(len(row))
                row[bucket] += 1
                sums[metric] += [0.05, 0.5, 5.0, 20.0][bucket]
        if t in failed:
            continue
        for metric, value in counts.items():
            values.setdefault(metric, {})[t] = value
        for reason, value in finished.items():
            if t > born[reason]:
                values.setdefault((REQUESTS, reason), {})[t] = value
        for metric, row in buckets.items():
            values.setdefault(metric, {})[t] = (tuple(row), sums[metric])
        waiting = rng.choice([0, 0, 5]) if running == 12 else 0
        for metric, value in ((RUNNING, running), (WAITING, waiting), (KV_CACHE, running / 16)):
            values.setdefault(metric, {})[t] = value
        if has_start:
            start = at(restarts[ended - 1] if ended else -5000.0).timestamp()
            values.setdefault("process_start_time_seconds", {})[t] = start
    lines = [up({t: t not in failed for t in times}, instance=name)]
    for metric, own in values.items():
        if isinstance(metric, tuple):
            lines.append(counter(metric[0], own, instance=name, finished_reason=metric[1]))
        elif metric in buckets:
            lines.append(histogram(metric, EDGES, own, instance=name))
        elif metric in counts:
            lines.append(counter(metric, own, instance=name))
        else:
            lines.append(gauge(metric, own, instance=name))
    return lines


BEGINS = {3: 500.0, 4: 4000.0}  # start of the pull by seed; earlier states are carried in


@pytest.fixture(scope="module", params=range(5))
def path(request, tmp_path_factory):
    """A window of three servers, another for each seed; the last ones are as pulled."""
    rng = random.Random(request.param)
    lines = [
        line for name in "abc" for line in a_server(rng, name, every=rng.choice([60, 120, 200]))
    ]
    begin = BEGINS.get(request.param)
    asked = {} if begin is None else {"start": iso(at(begin))}
    folder = tmp_path_factory.mktemp(f"by_hour_{request.param}")
    return small_window(folder, *lines, **asked).path


@cache
def both(path, start=None, end=None):
    """The same range read row by row, and by the hour."""
    window = open_window(path)
    time_range = window.clamp(start, end)
    assert time_range.hours > 6
    by_rows = Analysis(window.remembering(), time_range)
    read = by_hour(open_window(path), time_range, rows_per_piece=1)
    assert isinstance(read, HourlyWindow)
    by_hours = Analysis(read, time_range)
    return by_rows, by_hours


def ranges():
    rng = random.Random(7)
    yield pytest.param(None, None, id="the whole window")
    yield pytest.param(at(3600), at(8 * 3600), id="whole hours")
    for n in range(2):
        start, end = rng.uniform(0, 5000), rng.uniform(7.5, 9) * 3600
        yield pytest.param(at(start), at(end), id=f"hours that its ends cut, {n}")


RANGES = list(ranges())


@pytest.mark.parametrize(("start", "end"), RANGES)
def test_counts_are_those_of_all_rows(path, start, end):
    by_rows, by_hours = both(path, start, end)
    key = ["series_id"]
    assert_frame_equal(by_rows.counters.sort(key), by_hours.counters.sort(key))
    assert by_rows.histograms == by_hours.histograms
    assert by_rows.latency == by_hours.latency
    assert by_rows.slo == by_hours.slo
    rows, hours = (
        analysis.window.named_sql("figures", "lifetimes", end=analysis.time_range.end)
        for analysis in (by_rows, by_hours)
    )
    assert_frame_equal(rows.sort("series_id"), hours.sort("series_id"))


@pytest.mark.parametrize(("start", "end"), RANGES)
def test_scrapes_gaps_and_processes_are_those_of_all_rows(path, start, end):
    by_rows, by_hours = both(path, start, end)
    assert_frame_equal(by_rows.attempts, by_hours.attempts)
    assert_frame_equal(by_rows.engines, by_hours.engines)
    assert by_rows.restarts == by_hours.restarts
    assert by_rows.interruptions == by_hours.interruptions
    assert by_rows.outages == by_hours.outages
    assert by_rows.scrape_counts == by_hours.scrape_counts


@pytest.mark.parametrize(("start", "end"), RANGES)
def test_bills_are_those_of_all_rows(path, start, end):
    by_rows, by_hours = both(path, start, end)
    for name, part in by_rows.bill_parts.items():
        assert part.usage == by_hours.bill_parts[name].usage
    assert_frame_equal(
        by_rows.costs.select("successful_requests").sum(),
        by_hours.costs.select("successful_requests").sum(),
    )
    hours = ["ts", "requests"]
    assert_frame_equal(by_rows.hours.select(hours), by_hours.hours.select(hours))


@pytest.mark.parametrize(("start", "end"), RANGES)
def test_losses_are_bounded_as_by_all_rows(path, start, end):
    by_rows, by_hours = both(path, start, end)
    rows, hours = by_rows.losses.stretches, by_hours.losses.stretches
    assert [(one.instance, one.why, one.start, one.end) for one in rows] == [
        (one.instance, one.why, one.start, one.end) for one in hours
    ]
    assert [(one.running, one.waiting) for one in rows] == [
        (one.running, one.waiting) for one in hours
    ]
    for one, other in zip(rows, hours, strict=True):
        for name in ("requests", "tokens"):
            bounds = getattr(one, name), getattr(other, name)
            assert (bounds[0] is None) == (bounds[1] is None)
            assert bounds[0] is None or bounds[0] <= bounds[1]


def test_means_of_gauges_differ_by_at_most_a_scrape_at_an_hour_boundary(path):
    by_rows, by_hours = both(path)
    for name in ("running", "waiting", "kv_cache_ratio"):
        rows, hours = getattr(by_rows.gauges, name), getattr(by_hours.gauges, name)
        assert hours.mean == pytest.approx(rows.mean, rel=0.05)
        assert hours.max == rows.max


def test_charts_draw_as_much_as_all_rows_say(path):
    by_rows, by_hours = both(path)
    rows, hours = by_rows.series, by_hours.series
    assert rows.columns == hours.columns
    assert_frame_equal(rows.select("start", "end"), hours.select("start", "end"))
    finished = [name for name in rows.columns if name.startswith("finished")]
    counted = by_rows.answer.requests.by_reason
    for name in finished:
        assert hours[name].sum() == counted.get(name.removeprefix("finished_"), 0)
    # Over gaps, one spreads the increase evenly, the other counts it at the next scrape.
    assert hours["running_mean"].mean() == pytest.approx(rows["running_mean"].mean(), rel=0.05)
    assert hours["ttft_p95_seconds"].max() == pytest.approx(rows["ttft_p95_seconds"].max(), rel=0.1)


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


def assert_counts_are_those_of_all_rows(path):
    for start, end in ((None, None), (at(3000), at(8.3 * 3600))):
        test_counts_are_those_of_all_rows(path, start, end)
        test_scrapes_gaps_and_processes_are_those_of_all_rows(path, start, end)
        test_bills_are_those_of_all_rows(path, start, end)
        test_losses_are_bounded_as_by_all_rows(path, start, end)


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


def hourly(path, start=None, end=None):
    """The analysis by the hour, a piece for each."""
    window = open_window(path)
    time_range = window.clamp(start, end)
    return Analysis(by_hour(window, time_range, rows_per_piece=1), time_range)


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
