"""A clock that was set is no restart and no late row: counts stay exact, and it is reported."""

from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest

from tests.answering import answer, assumed
from vllm_capacity.analysis import Analysis
from vllm_capacity.estimate import Estimate
from vllm_capacity.facts.metrics import GENERATION_TOKENS, REQUESTS, TTFT
from vllm_capacity.figures import latency, scrapes, traffic
from vllm_capacity.figures.steps import Grid, engine_steps
from vllm_capacity.telemetry.late import extend_window
from vllm_capacity.telemetry.rows import RowBuffer, Rows, SeriesKey, microseconds
from vllm_capacity.telemetry.store import write_window
from vllm_capacity.telemetry.window import open_window
from vllm_capacity.timerange import TimeRange

T0 = datetime(2026, 11, 24, 8, tzinfo=UTC)
EVERY, COUNT, A_SCRAPE = 2.0, 100, 10
TRUE_SECONDS = EVERY * (COUNT - 1)
TRUE_REQUESTS = A_SCRAPE * (COUNT - 1)
HOUR, YEAR = 3600.0, 365 * 86400.0
SINCE_1970 = -T0.timestamp() + 100.0


def scraped(buffer, stamp, *, done, started=-5000.0, instance="a:8000"):
    """One good scrape, stamped that many seconds after T0, of a process that finished `done`."""
    ts_us = microseconds(T0) + round(stamp * 1e6)
    buffer.scrape(instance, ts_us, is_up=True, seconds=0.01)

    def put(metric, kind, value, **labels):
        key = SeriesKey(metric, kind, instance, "0", "m", tuple(labels.items()))
        buffer.sample(buffer.series(key, exposed=metric), ts_us, value)

    if started is not None:
        key = SeriesKey("process_start_time_seconds", "gauge", instance)
        start = T0.timestamp() + started
        buffer.sample(buffer.series(key, exposed=key.metric), ts_us, start)
    put(REQUESTS, "counter", float(done), finished_reason="stop")
    put(GENERATION_TOKENS, "counter", 100.0 * done)
    put("vllm:num_requests_running", "gauge", 3.0)
    ttft = SeriesKey(TTFT, "histogram", instance, "0", "m", bounds=(0.1, 1.0))
    counts = [done // 2, done - done // 2, 0]
    series_id = buffer.series(ttft, exposed=TTFT)
    buffer.histogram(series_id, ts_us, count=done, total=0.2 * done, counts=counts)


def captured(stamp, order=range(COUNT), *, base=1000, a_scrape=A_SCRAPE, **result):
    """Rows of the scrapes, in the order in which they came; `stamp` says what the clock said."""
    buffer = RowBuffer()
    for number in order:
        stamped = stamp(number, EVERY * number)
        scraped(buffer, stamped, done=base + a_scrape * number, **result)
    return buffer.rows()


def without_arrival(rows):
    unknown = pl.lit(None, pl.Int64).alias("arrival")
    return Rows(
        rows.series,
        rows.samples.with_columns(unknown),
        rows.histograms.with_columns(unknown),
        rows.ingest_notes,
    )


def found(rows, path):
    """Requests, observations of a histogram, seconds, and the notes about clocks."""
    window = open_window(write_window(path / "w", rows, {}))
    whole = window.extent
    increases = traffic.counter_increases(window, [REQUESTS], time_range=whole)
    observed = latency.merged(latency.histogram_increases(window, [TTFT], time_range=whole))
    notes = window.sql("select * from intake where \"check\" = 'clock'")
    return (
        traffic.total(increases, REQUESTS),
        None if observed is None else observed.count,
        round(whole.seconds, 3),
        notes,
    )


SET = [
    pytest.param(lambda n, t: t - 5 * (n >= 50), 50, id="set back 5 s at one moment"),
    pytest.param(lambda n, t: t - 4 * (n >= 50), 50, id="set back by two intervals to the digit"),
    pytest.param(lambda n, t: t - 2 * (n >= 50), 50, id="set back by one interval to the digit"),
    pytest.param(lambda n, t: t - HOUR * (n >= 60), 40, id="set back an hour"),
    pytest.param(lambda n, t: t - HOUR * (n >= 95), 5, id="set back an hour near the end"),
    pytest.param(lambda n, t: t + HOUR * (n < 10), 10, id="an hour ahead in the beginning"),
    pytest.param(lambda n, t: t + HOUR * (50 <= n < 60), 10, id="ten scrapes an hour ahead"),
    pytest.param(lambda n, t: t - HOUR * (50 <= n < 60), 10, id="ten scrapes an hour behind"),
    pytest.param(lambda n, t: t + 60 * (50 <= n < 60), 10, id="ten scrapes a minute ahead"),
    pytest.param(lambda n, t: t - 5 * (40 <= n < 70), 30, id="set back 5 s, and forward again"),
]


@pytest.mark.parametrize(("stamp", "moved"), SET)
def test_a_clock_that_was_set_changes_no_count_and_no_duration(tmp_path, stamp, moved):
    requests, observed, seconds, notes = found(captured(stamp), tmp_path)
    assert (requests, observed, seconds) == (TRUE_REQUESTS, TRUE_REQUESTS, TRUE_SECONDS)
    assert notes["count"].to_list() == [moved]


@pytest.mark.parametrize(("stamp", "moved"), SET)
def test_of_an_unknown_order_of_arrival_nothing_is_counted_twice(tmp_path, stamp, moved):
    requests, observed, _, notes = found(without_arrival(captured(stamp)), tmp_path)
    assert requests == observed
    left_out = 0 if notes.is_empty() else int(notes["count"].sum())
    assert TRUE_REQUESTS - A_SCRAPE * left_out <= requests <= TRUE_REQUESTS


@pytest.mark.parametrize(
    "stamp",
    [
        pytest.param(lambda n, t: t - HOUR * (n >= 50), id="half of all an hour behind"),
        pytest.param(lambda n, t: t - HOUR * (n >= 30), id="most an hour behind"),
        pytest.param(lambda n, t: t - HOUR * (50 <= n < 60), id="ten an hour behind"),
        pytest.param(lambda n, t: t - HOUR * (n >= 99), id="the last an hour behind"),
        pytest.param(lambda n, t: t + HOUR * (n < 1), id="the first an hour ahead"),
        pytest.param(lambda n, t: t - 151.3 * (n >= 50), id="both halves among each other"),
    ],
)
def test_continuing_counters_reveal_an_order_nothing_else_shows(tmp_path, stamp):
    requests, observed, seconds, notes = found(without_arrival(captured(stamp)), tmp_path)
    assert (requests, observed, seconds) == (TRUE_REQUESTS, TRUE_REQUESTS, TRUE_SECONDS)
    assert notes.height == 1


def test_counters_that_fall_far_below_their_start_show_no_order(tmp_path):
    buffer = RowBuffer()
    for number in range(COUNT):
        done = 5 + A_SCRAPE * (number - 50) if number >= 50 else 1000 + A_SCRAPE * number
        scraped(buffer, EVERY * number, done=done)
    window = open_window(write_window(tmp_path / "w", without_arrival(buffer.rows()), {}))
    result = answer(window)
    assert [f["severity"] for f in result["quality"] if f["check"] == "clock"] == ["error"]


@pytest.mark.parametrize("back", [50, HOUR])
def test_a_clock_set_back_in_a_gap_causes_no_jump_of_rates(tmp_path, back):
    order = [*range(45), *range(60, 100)]
    rows = captured(lambda n, t: t - back * (n >= 60), order)
    requests, _, seconds, _ = found(rows, tmp_path)
    assert (requests, seconds) == (TRUE_REQUESTS, TRUE_SECONDS)
    assert "gap" in {each["check"] for each in answer(open_window(tmp_path / "w"))["quality"]}


def test_what_was_left_out_has_a_bound_and_is_an_error(tmp_path):
    order = [*range(60), *range(61, 100)]
    rows = without_arrival(captured(lambda n, t: t - HOUR * (n >= 60), order))
    window = open_window(write_window(tmp_path / "w", rows, {}))
    result = answer(window)
    [clock] = [each for each in result["quality"] if each["check"] == "clock"]
    assert clock["severity"] == "error"
    counted = result["requests"]["finished"]
    assert counted < TRUE_REQUESTS == counted + result["requests"]["lost"]["high"]


def counted_and_most_lost(path):
    """The finished requests of a window, and the bound of those that were not counted."""
    found = Analysis.of(open_window(path))
    return traffic.total(found.counters, REQUESTS) or 0, found.losses.requests.high


def set_back_with_scrapes_missed(seed):
    """Scrapes of one process, some missing where the clock was set, in no order; what it did."""
    rng = np.random.default_rng(seed)
    count, every = int(rng.integers(20, 80)), float(rng.choice([1, 5, 30, 60]))
    back = float(rng.choice([HOUR, rng.uniform(60, 7200)]))
    rates = rng.uniform(0.05, 20) * every * rng.choice([0.0, 1.0, 1.0, 8.0], count)
    done = int(rng.choice([0, 1000, 50_000])) + np.cumsum(rng.poisson(rates))
    first, missed = int(rng.integers(2, count - 1)), int(rng.integers(1, 15))
    kept = [n for n in range(count) if not first <= n < min(first + missed, count - 1)]
    buffer = RowBuffer()
    for number in kept:
        stamp = every * number - back * (number >= first)
        scraped(buffer, stamp, done=int(done[number]), started=-9000.0)
    return without_arrival(buffer.rows()), int(done[-1] - done[0])


@pytest.mark.parametrize("seed", range(12))
def test_the_bound_covers_what_a_clock_set_back_and_missing_scrapes_hide(tmp_path, seed):
    rows, true = set_back_with_scrapes_missed(seed)
    counted, most_lost = counted_and_most_lost(write_window(tmp_path / "w", rows, {}))
    assert counted <= true <= counted + most_lost


def test_scrapes_that_a_clock_stamped_twice_to_the_digit_are_all_in_the_bound(tmp_path):
    buffer = RowBuffer()
    for number in [*range(8), *range(17, 126)]:
        back = 120 * EVERY if number >= 8 else 0  # the last six have the stamps of the first six
        scraped(buffer, EVERY * number - back, done=1000 + A_SCRAPE * number, started=-5000.0)
    path = write_window(tmp_path / "w", without_arrival(buffer.rows()), {})
    counted, most_lost = counted_and_most_lost(path)
    true = A_SCRAPE * 125
    assert counted < true <= counted + most_lost


def test_a_restart_before_a_clock_set_back_is_not_counted_as_one_that_was_there_first(tmp_path):
    """Stamped first, the new process would count little, and the old one far more after it."""
    buffer = RowBuffer()
    for number in range(40):
        scraped(buffer, EVERY * number, done=50_000 + A_SCRAPE * number)
    for number in range(50, 90):
        done, start = A_SCRAPE * (number - 45), EVERY * 45
        scraped(buffer, EVERY * number - HOUR, done=done, started=start)
    reported = answer(open_window(write_window(tmp_path / "w", without_arrival(buffer.rows()), {})))
    assert reported["requests"]["finished"] <= A_SCRAPE * 39 + A_SCRAPE * 44
    assert reported["requests"]["lost"]["high"] is None
    assert "error" in {f["severity"] for f in reported["quality"] if f["check"] == "clock"}


def restarted_as_the_clock_was_set(*, set_at, missed, restart, size=HOUR, every=EVERY):
    """Scrapes in no order of a server that restarted; what it did from the first to the last."""
    buffer = RowBuffer()
    for number in sorted({*range(60)} - {*missed}):
        is_new = number >= restart
        start = every * restart - 1 - (size if restart >= set_at else 0)
        done = A_SCRAPE * (number - restart) if is_new else 10 + A_SCRAPE * number
        stamp = every * number - (size if number >= set_at else 0)
        scraped(buffer, stamp, done=done, started=start if is_new else -5000.0)
    return without_arrival(buffer.rows()), A_SCRAPE * 59


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(
            {"set_at": 40, "missed": range(38, 46), "restart": 43, "size": 41.0},
            id="mended, the restart where the clock was set",
        ),
        pytest.param(
            {"set_at": 40, "missed": range(38, 46), "restart": 20},
            id="left out, the restart well before it",
        ),
        pytest.param(
            {"set_at": 20, "missed": range(18, 23), "restart": 50, "size": 5040.0},
            id="the new process reports a start before the old one",
        ),
        pytest.param(
            {"set_at": 10, "missed": range(8, 23), "restart": 15, "size": 611.0, "every": 30.0},
            id="mended, and the new process has counted more than the old one",
        ),
        pytest.param(
            {"set_at": 40, "missed": range(38, 46), "restart": 70, "size": 40.0},
            id="no restart, but scrapes of both clocks with one time to the digit",
        ),
    ],
)
def test_a_restart_while_a_clock_is_set_leaves_no_upper_bound(tmp_path, settings):
    rows, true = restarted_as_the_clock_was_set(**settings)
    window = open_window(write_window(tmp_path / "w", rows, {}))
    reported = answer(window, terms=assumed(Estimate.exact(2.0)))
    assert reported["requests"]["finished"] <= true
    lost, each = reported["requests"]["lost"], reported["cost"]["usd_per_request"]
    assert (lost["high"], reported["tokens"]["lost"]["high"]) == (None, None)
    assert "unknown" in lost["reason"]
    assert (each["low"], each["mid"], each["reason"]) == (None, None, lost["reason"])
    assert each["high"] > 0
    used, idle = (reported["cost"][name] for name in ("utilization", "idle_usd"))
    assert (used["mid"], used["high"], idle["mid"], idle["low"]) == (None, None, None, None)
    assert "error" in {f["severity"] for f in reported["quality"] if lost["reason"] in f["effect"]}


def test_two_clocks_that_are_set_are_distinguished(tmp_path):
    rows = captured(lambda n, t: t - 5 * (n >= 30) - 5 * (n >= 60))
    requests, _, seconds, notes = found(rows, tmp_path)
    assert (requests, seconds) == (TRUE_REQUESTS, TRUE_SECONDS)
    assert sorted(notes["count"].to_list()) == [30, 30]


@pytest.mark.parametrize(
    "order",
    [
        pytest.param([*range(40), *range(50, 100), *range(40, 50)], id="a batch that came late"),
        pytest.param([*range(50, 100), *range(50)], id="the earlier half came later"),
        pytest.param([*range(100), *range(100)], id="everything came twice"),
        pytest.param(sorted(range(COUNT), key=lambda n: n * 7919 % 101), id="in any order"),
    ],
)
def test_rows_that_came_late_are_sorted_by_their_stamps(tmp_path, order):
    requests, observed, seconds, notes = found(captured(lambda n, t: t, order), tmp_path)
    assert (requests, observed, seconds) == (TRUE_REQUESTS, TRUE_REQUESTS, TRUE_SECONDS)
    assert notes.is_empty()


def test_late_rows_and_a_clock_that_was_set_among_them(tmp_path):
    order = [*range(40), *range(50, 70), *range(40, 50), *range(70, 100)]
    rows = captured(lambda n, t: t - 5 * (n >= 70), order)
    assert found(rows, tmp_path)[:3] == (TRUE_REQUESTS, TRUE_REQUESTS, TRUE_SECONDS)


def test_late_rows_added_to_a_window_are_late_and_no_clock(tmp_path):
    path = write_window(tmp_path / "w", captured(lambda n, t: t, [*range(40), *range(60, 100)]), {})
    extend_window(path, captured(lambda n, t: t, range(40, 60)))
    window = open_window(path)
    increases = traffic.counter_increases(window, [REQUESTS], time_range=window.extent)
    assert traffic.total(increases, REQUESTS) == TRUE_REQUESTS
    assert window.sql("select * from intake where \"check\" = 'clock'").is_empty()


@pytest.mark.parametrize(
    ("started", "restarted"),
    [
        pytest.param(-5000.0, EVERY * 50 - 1, id="the process reports its start"),
        pytest.param(None, None, id="it does not"),
    ],
)
def test_a_clock_that_is_set_at_a_restart_leaves_one_restart(tmp_path, started, restarted):
    buffer = RowBuffer()
    for number in range(COUNT):
        is_new = number >= 50
        done = A_SCRAPE * (number - 50) if is_new else 1000 + A_SCRAPE * number
        stamp = EVERY * number - 5 * is_new
        scraped(buffer, stamp, done=done, started=restarted if is_new else started)
    requests, _, seconds, _ = found(buffer.rows(), tmp_path)
    assert (requests, seconds) == (A_SCRAPE * 49 + A_SCRAPE * 49, TRUE_SECONDS)


def test_without_process_start_and_order_of_arrival_a_fall_is_a_restart_as_ever(tmp_path):
    rows = without_arrival(captured(lambda n, t: t if n < 50 else t + 100, started=None))
    fallen = rows.samples.with_columns(
        value=pl.when(pl.col("ts") > T0 + timedelta(seconds=150), pl.col("value") > 900)
        .then(pl.col("value") - 900)
        .otherwise("value")
    )
    changed = Rows(rows.series, fallen, rows.histograms, rows.ingest_notes)
    assert found(changed, tmp_path)[3].is_empty()


def test_one_of_two_targets_behind_a_clock_that_is_set(tmp_path):
    buffer = RowBuffer()
    for number in range(COUNT):
        stamp, done = EVERY * number, 1000 + A_SCRAPE * number
        scraped(buffer, stamp - 5 * (number >= 50), done=done)
        scraped(buffer, stamp, done=done, instance="b:8000")
    requests, _, seconds, notes = found(buffer.rows(), tmp_path)
    assert (requests, seconds) == (2 * TRUE_REQUESTS, TRUE_SECONDS)
    assert notes["instance"].to_list() == ["a:8000"]


STRAYS = [
    pytest.param(lambda n, t: SINCE_1970 if n == 50 else t, 1, id="1970"),
    pytest.param(lambda n, t: t + YEAR if n == 50 else t, 1, id="a year ahead"),
    pytest.param(lambda n, t: t + YEAR * 30 if n in (3, 50) else t, 2, id="twice far ahead"),
    pytest.param(lambda n, t: t + SINCE_1970 if n < 20 else t, 20, id="1970 until a clock is set"),
]


@pytest.mark.parametrize(("stamp", "left_out"), STRAYS)
@pytest.mark.parametrize("is_known", [True, False], ids=["in order of arrival", "in no order"])
def test_stray_timestamps_are_left_out_and_reported(tmp_path, stamp, left_out, is_known):
    rows = captured(stamp)
    _, _, seconds, notes = found(rows if is_known else without_arrival(rows), tmp_path)
    assert seconds <= TRUE_SECONDS
    assert notes.select("count", "ts").rows() == [(left_out, None)]


def test_a_stray_timestamp_makes_no_other_scrape_late(tmp_path):
    result = answer(open_window(write_window(tmp_path / "w", captured(STRAYS[1].values[0]), {})))
    checks = {finding["check"]: finding["severity"] for finding in result["quality"]}
    assert checks["clock"] == "warning"
    assert "late" not in checks


@pytest.mark.parametrize(
    ("stamp", "days"),
    [
        pytest.param(lambda n, t: t + 3 * 86400 * (n >= 50), 3, id="a weekend without a scrape"),
        pytest.param(lambda n, t: t + 90 * 86400 * (n >= 50), 90, id="two bursts, months apart"),
        pytest.param(lambda n, t: t + n // 5 * 30 * 86400, 570, id="a burst a month"),
    ],
)
def test_what_lies_apart_but_is_not_few_stays(tmp_path, stamp, days):
    requests, _, seconds, notes = found(captured(stamp), tmp_path)
    assert (requests, seconds) == (TRUE_REQUESTS, TRUE_SECONDS + days * 86400)
    assert notes.is_empty()


@pytest.mark.parametrize("days", [3, 365, 365 * 50])
def test_the_steps_are_as_many_as_the_scrapes_need_however_far_they_lie_apart(tmp_path, days):
    rows = captured(lambda n, t: t + days * 86400 * (n >= 50))
    window = open_window(write_window(tmp_path / "w", rows, {}))
    steps = engine_steps(window, time_range=window.extent)
    assert steps.height <= 2 * COUNT
    assert (steps["start"][1:] == steps["end"][:-1]).all()
    assert (steps["start"][0], steps["end"][-1]) == (window.extent.start, window.extent.end)


def test_a_hole_in_the_steps_is_one_gap_with_the_increase_across_it(tmp_path):
    rows = captured(lambda n, t: t + 86400 * (n >= 50))
    window = open_window(write_window(tmp_path / "w", rows, {}))
    steps = engine_steps(window, time_range=window.extent)
    (longest,) = steps.filter(pl.col("end") - pl.col("start") > timedelta(hours=1)).rows(named=True)
    assert (longest["is_gap"], longest["scrapes"], longest["running_mean"]) == (True, 0, None)
    seconds = (longest["end"] - longest["start"]).total_seconds()
    grown = longest["output_tokens_per_second"] * seconds
    assert grown == pytest.approx(100 * A_SCRAPE * seconds / (86400 + EVERY), rel=1e-6)


def test_a_gap_of_hours_keeps_its_steps():
    part = TimeRange(T0, T0 + timedelta(hours=2))
    attempts = pl.DataFrame({"ts": [part.start, part.end - timedelta(seconds=1)]})
    assert Grid.of_scrapes(part, 60.0, attempts) == Grid(part, 60.0)


def test_a_window_with_strays_has_the_scrapes_of_the_others(tmp_path):
    window = open_window(write_window(tmp_path / "w", captured(STRAYS[0].values[0]), {}))
    attempts = scrapes.attempts(window, end=window.extent.end)
    assert (attempts.height, window.extent.start) == (COUNT - 1, T0)
