"""Figures of a long range from hourly summaries equal those from all rows."""

import random
from functools import cache

import pytest
from polars.testing import assert_frame_equal

from tests.figures.small_windows import (
    at,
    counter,
    gauge,
    histogram,
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


@pytest.mark.parametrize("count", [1, 8, 2000])
def test_first_attempts_are_those_of_all(path, count):
    _, by_hours = both(path, at(3000), at(8.3 * 3600))
    ends = {"end": by_hours.time_range.end}
    whole = by_hours.window.named_sql("figures", "attempts", **ends)
    first, height = by_hours.window.first_rows("figures", "attempts", count, **ends)
    assert_frame_equal(first, whole.head(count))
    assert height == whole.height


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


def assert_counts_are_those_of_all_rows(path):
    for start, end in ((None, None), (at(3000), at(8.3 * 3600))):
        test_counts_are_those_of_all_rows(path, start, end)
        test_scrapes_gaps_and_processes_are_those_of_all_rows(path, start, end)
        test_bills_are_those_of_all_rows(path, start, end)
        test_losses_are_bounded_as_by_all_rows(path, start, end)


def hourly(path, start=None, end=None):
    """The analysis by the hour, a piece for each."""
    window = open_window(path)
    time_range = window.clamp(start, end)
    return Analysis(by_hour(window, time_range, rows_per_piece=1), time_range)
