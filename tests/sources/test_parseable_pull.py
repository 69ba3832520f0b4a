"""Pulling from a server: as exact as its files, downsampled as exact as a rollup, and resumable."""

from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import polars as pl
import pytest

from tests.standin.exports import counter, export, gauge, histogram, stale
from tests.standin.recorded import recorded_server
from tests.standin.server import RECORDED, Fault, Standin
from vllm_capacity.errors import NoTelemetryError, SourceError
from vllm_capacity.live.pull import pull_server
from vllm_capacity.sources.parquet import open_store, read_stream
from vllm_capacity.sources.parseable import Parseable
from vllm_capacity.sources.parseable_pull import PullRequest, hours, pull
from vllm_capacity.sources.parseable_rows import downsampled_rows, whole_rows
from vllm_capacity.telemetry.store import write_window
from vllm_capacity.telemetry.window import open_window
from vllm_capacity.timerange import TimeRange

STREAM = "vllm_metrics"


def at(hour: int, minute: int, second: float = 0) -> datetime:
    return datetime(2026, 11, 24, hour, minute, tzinfo=UTC) + timedelta(seconds=second)


@contextmanager
def asked(standin):
    with standin.client() as client:
        yield Parseable(client, pause=lambda seconds: None)


@pytest.fixture(scope="module")
def recorded():
    with recorded_server() as standin, asked(standin) as server:
        yield server


# Starts and ends within a minute; has an outage of the store, a restart and a killed collector.
PART = TimeRange(at(8, 18, 30), at(8, 22, 17))


@pytest.fixture(scope="module")
def whole(recorded):
    return whole_rows(pull(recorded, PullRequest(STREAM, PART, is_downsampled=False)))


@pytest.fixture(scope="module")
def downsampled(recorded):
    return downsampled_rows(pull(recorded, PullRequest(STREAM, PART)))


@pytest.mark.parametrize("table", ["series", "samples", "histograms"])
def test_the_server_gives_what_its_files_give(whole, table):
    from_files = read_stream(open_store(str(RECORDED / "store")), STREAM, PART)
    ours, theirs = (getattr(rows, table) for rows in (whole, from_files))
    if table != "series":
        ours, theirs = (frame.sort("series_id", "ts") for frame in (ours, theirs))
    # Only the files hold the time of arrival.
    assert ours.drop("arrival", strict=False).equals(theirs.drop("arrival", strict=False))


@pytest.fixture(scope="module")
def rolled_up(whole, tmp_path_factory):
    return open_window(write_window(tmp_path_factory.mktemp("whole") / "w", whole, {}))


def test_downsampled_histograms_are_the_rollup_of_the_whole(downsampled, rolled_up):
    theirs = rolled_up.sql("select * from minute_histograms order by series_id, minute, run")
    assert downsampled.minute_histograms.equals(
        theirs.select(downsampled.minute_histograms.columns)
    )


def test_downsampled_minutes_are_the_rollup_of_the_whole(downsampled, rolled_up):
    theirs = rolled_up.sql("select * from minutes order by series_id, minute, run")
    ours = downsampled.minutes.drop("sum")
    assert ours.equals(theirs.select(ours.columns))


def test_a_downsampled_gauge_adds_up_as_the_whole(downsampled, rolled_up):
    sums = "select series_id, minute, run, sum as whole from minutes join series using (series_id)"
    theirs = rolled_up.sql(f"{sums} where kind = 'gauge'")
    both = theirs.join(downsampled.minutes, on=["series_id", "minute", "run"], how="left")
    is_close = (pl.col("sum") - pl.col("whole")).abs() <= 1e-12 * pl.col("whole").abs()
    assert both.select(is_close.all()).item()


def test_every_scrape_attempt_is_in_a_downsampled_pull(whole, downsampled):
    up = whole.series.filter(metric="up").select("series_id")
    ours, theirs = (rows.samples.join(up, on="series_id") for rows in (downsampled.rows, whole))
    assert ours.equals(theirs)


def test_a_downsampled_pull_transfers_two_percent_of_select_star(recorded):
    time_range = TimeRange(at(8, 14), at(8, 19))
    before = recorded.traffic.wire_bytes
    recorded.query(f"select * from {STREAM}", time_range)
    everything = recorded.traffic.wire_bytes - before
    pull(recorded, PullRequest(STREAM, time_range))
    moved = recorded.traffic.wire_bytes - before - everything
    assert moved / everything < 0.02


TTFT = "vllm:time_to_first_token_seconds"
TOKENS = "vllm:generation_tokens_total"


def buckets(ts, counts, total, bounds=(0.5, 1.0)):
    return histogram(TTFT, ts, list(counts), total=total, bounds=list(bounds))


def server_of(*exports, arrived=None):
    standin = Standin()
    for body in exports:
        standin.ingest("s", "/v1/metrics", body, arrived=arrived or at(8, 0, 10))
    return standin


TWO_MINUTES = TimeRange(at(8, 0), at(8, 2))


def thinned_of(*exports, time_range=TWO_MINUTES, **settings):
    with server_of(*exports, **settings) as standin, asked(standin) as server:
        return downsampled_rows(pull(server, PullRequest("s", time_range)))


def test_a_restart_within_a_minute_makes_two_rows():
    exports = [
        export(counter(TOKENS, at(8, 0, s), v)) for s, v in ((2, 10), (4, 12), (6, 3), (8, 5))
    ]
    minutes = thinned_of(*exports).minutes
    assert minutes.select("run", "first", "last", "n").rows() == [(0, 10, 12, 2), (1, 3, 5, 2)]


def test_a_restart_that_is_overtaken_within_a_minute_makes_two_rows():
    start = "process_start_time_seconds"
    seen = ((2, 10, at(7, 0)), (4, 12, at(7, 0)), (6, 30, at(8, 0, 5)), (8, 35, at(8, 0, 5)))
    exports = [
        export(
            counter(TOKENS, at(8, 0, s), v),
            gauge(start, at(8, 0, s), began.timestamp()),
            buckets(at(8, 0, s), (v, 0, 0), float(v)),
        )
        for s, v, began in seen
    ]
    found = thinned_of(*exports)
    counters = found.minutes.filter(pl.col("first") < 1000).select("run", "first", "last", "n")
    assert counters.rows() == [(0, 10, 12, 2), (1, 30, 35, 2)]
    histograms = found.minute_histograms.select("run", "first_count", "count", "n")
    assert histograms.rows() == [(0, 10, 12, 2), (1, 30, 35, 2)]


def test_a_histogram_restarts_when_any_bucket_drops_though_its_count_grew():
    exports = [
        export(buckets(at(8, 0, 2), (5, 0, 0), 1.0)),
        export(buckets(at(8, 0, 4), (2, 6, 0), 6.0)),
    ]
    minutes = thinned_of(*exports).minute_histograms
    assert minutes.select("run", "first_count", "count").rows() == [(0, 5, 5), (1, 8, 8)]


def test_a_point_sent_twice_counts_once_and_is_noted():
    once = export(gauge("vllm:num_requests_running", at(8, 0, 2), 4.0))
    more = export(gauge("vllm:num_requests_running", at(8, 0, 4), 2.0))
    downsampled = thinned_of(once, once, more)
    assert downsampled.minutes.select("n", "sum").rows() == [(2, 6.0)]
    assert downsampled.rows.ingest_notes.select("check", "subject", "count").rows() == [
        ("duplicate", "vllm:num_requests_running", 1)
    ]


def test_markers_of_staleness_are_no_states():
    first = counter(TOKENS, at(8, 0, 2), 10.0)
    exports = [export(first), export(stale(counter(TOKENS, at(8, 0, 4), 0.0)))]
    downsampled = thinned_of(*exports)
    assert downsampled.minutes.select("last", "n").rows() == [(10.0, 1)]
    assert downsampled.rows.ingest_notes.select("check", "count").rows() == [("series", 1)]


def test_bounds_that_differ_between_replicas_make_series_of_their_own():
    exports = [
        export(buckets(at(8, 0, 2), (1, 2, 0), 1.0)),
        export(buckets(at(8, 0, 2), (3, 4), 1.0, (0.5,)), instance="10.0.0.2:8000"),
    ]
    downsampled = thinned_of(*exports)
    series = downsampled.rows.series.select("instance", "bounds").rows()
    assert series == [("10.0.0.1:8000", [0.5, 1.0]), ("10.0.0.2:8000", [0.5])]
    assert sorted(downsampled.minute_histograms.get_column("count")) == [3, 7]


def test_what_arrived_an_hour_late_belongs_where_it_was_sampled():
    exports = [export(counter(TOKENS, at(8, 0, 2), 10.0))]
    downsampled = thinned_of(*exports, arrived=at(9, 0, 2))
    assert downsampled.minutes.height == 1
    assert downsampled.rows.ingest_notes.select("check", "detail").rows() == [
        ("late", "arrived up to 3600 s after it was sampled")
    ]


def test_the_last_state_before_the_start_comes_along():
    exports = [
        export(counter(TOKENS, at(7, 50), 5.0)),
        export(counter(TOKENS, at(7, 55), 8.0)),
        export(counter(TOKENS, at(8, 1), 10.0)),
    ]
    rows = thinned_of(*exports).rows
    assert rows.samples.select("ts", "value").rows() == [(at(7, 55), 8.0), (at(8, 1), 10.0)]


def test_the_newest_name_of_a_concept_wins():
    exports = [
        export(
            gauge("vllm:kv_cache_usage_perc", at(8, 0, 2), 0.5),
            gauge("vllm:gpu_cache_usage_perc", at(8, 0, 2), 0.4),
        )
    ]
    assert thinned_of(*exports).minutes.get_column("last").to_list() == [0.5]


def test_a_label_may_hold_a_quote():
    exports = [export(counter(TOKENS, at(8, 0, 2), 1.0, reason="it's", **{'odd"name': "x"}))]
    labels = thinned_of(*exports).rows.series.get_column("labels").to_list()
    assert labels == ['{"odd\\"name": "x", "reason": "it\'s"}']


def test_a_range_without_any_series_is_reported():
    day_before = TimeRange(at(8, 0) - timedelta(days=1), at(8, 1) - timedelta(days=1))
    with pytest.raises(NoTelemetryError, match="no vLLM series sampled from 2026-11-23"):
        thinned_of(export(counter(TOKENS, at(8, 0, 2), 1.0)), time_range=day_before)


def test_a_day_is_cut_at_the_hours():
    parts = hours(TimeRange(at(7, 30), at(9, 0)))
    assert [(p.start, p.end) for p in parts] == [(at(7, 30), at(8, 0)), (at(8, 0), at(9, 0))]


LONG = TimeRange(at(2, 0), at(10, 0))
LATER = at(23, 0)


def long_server():
    exports = [
        export(
            counter(TOKENS, LONG.start + timedelta(minutes=minute), float(minute)),
            gauge("vllm:num_requests_running", LONG.start + timedelta(minutes=minute), minute % 7),
            buckets(LONG.start + timedelta(minutes=minute), (minute, minute, 0), float(minute)),
        )
        for minute in range(0, 480, 10)
    ]
    standin = Standin()
    for index, body in enumerate(exports):
        arrived = LONG.start + timedelta(minutes=10 * index)
        standin.ingest("s", "/v1/metrics", body, arrived=arrived)
    return standin


def test_a_killed_pull_goes_on_where_it_stopped(tmp_path):
    request = PullRequest("s", LONG)
    with long_server() as standin:
        with asked(standin) as server:
            pull_server(server, request, tmp_path / "at-once", now=LATER)
            everything = server.traffic.wire_bytes
        with asked(standin) as server, pytest.raises(KeyboardInterrupt):
            pull_server(server, request, tmp_path / "w", now=LATER, progress=interrupt_at_half)
        with asked(standin) as server:
            pull_server(server, request, tmp_path / "w", now=LATER)
            with_retries = server.traffic.wire_bytes
    assert with_retries < 0.6 * everything
    assert sorted(path.name for path in tmp_path.iterdir()) == ["at-once", "w"]
    ours, theirs = (
        open_window(tmp_path / name).sql("select * from minutes order by all")
        for name in ("w", "at-once")
    )
    assert ours.equals(theirs)


def test_what_was_not_over_when_it_was_asked_for_is_asked_for_again(tmp_path):
    standin = Standin()
    more = [export(counter(TOKENS, at(8, minute), float(minute))) for minute in range(40)]
    for body in more[:10]:
        standin.ingest("s", "/v1/metrics", body, arrived=at(8, 10))
    request = PullRequest("s", TimeRange(at(8, 0), at(9, 0)), is_downsampled=False)
    with standin, asked(standin) as server:
        with pytest.raises(KeyboardInterrupt):
            pull_server(server, request, tmp_path / "w", now=at(8, 10), progress=interrupt_at_2)
        for body in more[10:]:
            standin.ingest("s", "/v1/metrics", body, arrived=at(8, 40))
        window = open_window(pull_server(server, request, tmp_path / "w", now=at(8, 40)))
    assert window.sql("select max(value) from samples").item() == 39
    assert [path.name for path in tmp_path.iterdir()] == ["w"]


def interrupt_at_2(step):
    if step.done == 2:
        raise KeyboardInterrupt


def test_damaged_answers_are_asked_for_again(tmp_path):
    request = PullRequest("s", LONG)
    with long_server() as standin, asked(standin) as server:
        with pytest.raises(KeyboardInterrupt):
            pull_server(server, request, tmp_path / "w", now=LATER, progress=interrupt_at_half)
        answers = sorted((tmp_path / ".w.writing" / "answers").glob("*.answer"))
        answers[0].write_bytes(answers[0].read_bytes()[:-100])
        answers[1].write_bytes(answers[2].read_bytes())
        answers[3].write_bytes(b"")
        ours = open_window(pull_server(server, request, tmp_path / "w", now=LATER))
        theirs = open_window(pull_server(server, request, tmp_path / "at-once", now=LATER))
        for view in ("minutes", "minute_histograms"):
            query = f"select * from {view} order by all"
            assert ours.sql(query).equals(theirs.sql(query))


def interrupt_at_half(step):
    if step.done * 2 >= step.total:
        raise KeyboardInterrupt


def test_a_server_that_fails_midway_leaves_no_window(tmp_path):
    with long_server() as standin, asked(standin) as server:
        text = "Execution Error: out of memory"
        standin.faults.append(Fault("/api/v1/query", times=99, status=500, text=text))
        with pytest.raises(SourceError, match="out of memory"):
            pull_server(server, PullRequest("s", LONG), tmp_path / "w", now=LATER)
    assert not (tmp_path / "w").exists()


def test_a_downsampled_window_says_so(tmp_path):
    with long_server() as standin, asked(standin) as server:
        window = open_window(pull_server(server, PullRequest("s", LONG), tmp_path / "w", now=LATER))
    assert window.grain == "minute"
    assert window.provenance["origin"] == server.address
    assert pl.read_parquet(tmp_path / "w" / "minutes.parquet").height == 2 * 48
