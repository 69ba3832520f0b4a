"""Parseable's own files: the recorded store, what it loses and hides, and stores of other ages."""

import hashlib
import shutil
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest

from tests.s3_server import s3_server
from tests.standin.server import RECORDED
from vllm_capacity.errors import InputError, NoTelemetryError, SourceError, WindowError
from vllm_capacity.live.pull import pull_files
from vllm_capacity.sources.parquet import open_store, read_stream
from vllm_capacity.telemetry.window import open_window
from vllm_capacity.timerange import TimeRange

STORE = RECORDED / "store"
GENERATED = "vllm:generation_tokens_total"


def at(hour: int, minute: int, second: int = 0) -> datetime:
    return datetime(2026, 11, 24, hour, minute, second, tzinfo=UTC)


@pytest.fixture(scope="module")
def whole():
    return read_stream(open_store(str(STORE)), "vllm_metrics")


def of(rows, metric, instance="127.0.0.1:18001"):
    ids = rows.series.filter(metric=metric, instance=instance).get_column("series_id")
    return pl.concat(
        [rows.samples.select("series_id", "ts"), rows.histograms.select("series_id", "ts")]
    ).filter(pl.col("series_id").is_in(ids.implode()))


def test_every_point_that_was_observed_is_there(whole):
    # 60,858 stored, minus 302 stale ones, 3,262 summaries and families that no figure uses.
    assert (whole.series.height, whole.samples.height, whole.histograms.height) == (
        250,
        37207,
        15697,
    )


def test_replicas_all_named_engine_0_are_distinguished(whole):
    running = whole.series.filter(metric="vllm:num_requests_running")
    assert running.get_column("instance").sort().to_list() == [
        f"127.0.0.1:{port}" for port in (18001, 18002, 18003, 18004)
    ]
    assert running.get_column("engine").unique().to_list() == ["0"]


@pytest.mark.parametrize(
    ("check", "instance", "count"),
    [
        pytest.param("series", "127.0.0.1:18004", 120, id="a restart and the end left markers"),
        pytest.param(
            "late", "127.0.0.1:18001", 3780, id="the outage of the store made points late"
        ),
    ],
)
def test_the_ingest_notes(whole, check, instance, count):
    found = whole.ingest_notes.filter(check=check, instance=instance)
    assert found.get_column("count").to_list() == [count]


def test_a_histogram_is_per_bucket_with_its_bounds(whole):
    series = whole.series.filter(
        metric="vllm:time_to_first_token_seconds", instance="127.0.0.1:18001"
    ).row(0, named=True)
    states = whole.histograms.filter(series_id=series["series_id"])
    state = states.filter(ts=at(8, 15, 54).replace(microsecond=767000)).row(0, named=True)
    assert (series["bounds"][:2], len(series["bounds"])) == ([0.001, 0.005], 22)
    assert (state["count"], state["sum"], state["counts"][4]) == (1265.0, 355.2931389808655, 9.0)


def test_a_range_has_its_own_samples_and_the_last_one_before(whole):
    rows = read_stream(open_store(str(STORE)), "vllm_metrics", TimeRange(at(8, 18), at(8, 19)))
    times = of(rows, GENERATED).get_column("ts").sort()
    expected = of(whole, GENERATED).get_column("ts").sort()
    inside = expected.filter(expected.is_between(at(8, 18), at(8, 19), closed="left"))
    assert times.to_list() == [expected.filter(expected < at(8, 18)).max(), *inside.to_list()]


def test_what_arrived_after_the_end_but_was_sampled_before_is_in(whole):
    # The store was down from 08:17:24 to 08:20:13; these samples arrived after that.
    rows = read_stream(open_store(str(STORE)), "vllm_metrics", TimeRange(at(8, 18), at(8, 18, 30)))
    assert of(rows, GENERATED).height == 16


def test_a_series_that_ended_before_the_start_stays_out():
    rows = read_stream(open_store(str(STORE)), "vllm_metrics", TimeRange(at(8, 24), at(8, 26)))
    assert of(rows, GENERATED, "127.0.0.1:18002").is_empty()
    assert not of(rows, "up", "127.0.0.1:18002").is_empty()


def fingerprint(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        digest.update(f"{path}{path.stat().st_mtime_ns}".encode())
        digest.update(path.read_bytes() if path.is_file() else b"")
    return digest.hexdigest()


def test_the_store_is_never_written_to(tmp_path):
    before = fingerprint(STORE)
    pull_files(str(STORE), "vllm_metrics", tmp_path / "w")
    assert fingerprint(STORE) == before


def test_the_pulled_window_counts_four_engines(tmp_path):
    window = open_window(pull_files(str(STORE), "vllm_metrics", tmp_path / "w"))
    engines = window.sql(
        "select count(distinct (instance, engine)) as n from series where engine is not null"
    )
    assert engines.item() == 4
    assert window.provenance["stream"] == "vllm_metrics"


def test_an_unknown_stream_lists_the_existing_ones_and_leaves_no_window(tmp_path):
    with pytest.raises(InputError, match="Streams there: smoke, vllm_metrics, vllm_traces"):
        pull_files(str(STORE), "nope", tmp_path / "w")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("location", "stream", "error", "says"),
    [
        pytest.param("nowhere", "x", InputError, "no such folder", id="no store there"),
        pytest.param(
            str(STORE), "vllm_traces", SourceError, "OTel metrics", id="a stream of spans"
        ),
        pytest.param(str(STORE), "../store", InputError, "No stream", id="a path is no name"),
    ],
)
def test_unreadable_input_is_reported(tmp_path, location, stream, error, says):
    with pytest.raises(error, match=says):
        pull_files(location, stream, tmp_path / "w")


def test_a_range_without_samples_is_reported():
    long_ago = TimeRange(datetime(2025, 1, 1, tzinfo=UTC), datetime(2025, 1, 2, tzinfo=UTC))
    with pytest.raises(NoTelemetryError, match="no data from 2025"):
        read_stream(open_store(str(STORE)), "vllm_metrics", long_ago)


def test_a_taken_target_is_refused_before_anything_is_read(tmp_path):
    with pytest.raises(WindowError, match="exists already"):
        pull_files("nowhere", "x", tmp_path)


@pytest.fixture
def copy(tmp_path):
    return Path(shutil.copytree(STORE, tmp_path / "store"))


def spoil(store: Path, minute: str) -> None:
    for path in store.glob(f"vllm_metrics/date=*/hour=*/minute={minute}/*.parquet"):
        path.write_bytes(b"PAR1 cut short")


def test_only_the_partitions_of_the_range_are_opened(copy):
    spoil(copy, "2[1-6]")
    time_range = TimeRange(at(8, 15), at(8, 16))
    late = at(8, 20) - at(8, 16)
    rows = read_stream(open_store(str(copy)), "vllm_metrics", time_range, late=late)
    assert of(rows, GENERATED).height == 31


def test_a_damaged_file_in_the_range_is_an_error_with_advice(copy):
    spoil(copy, "15")
    with pytest.raises(SourceError, match="Try again"):
        read_stream(open_store(str(copy)), "vllm_metrics")


@pytest.fixture
def bucket(monkeypatch):
    with s3_server() as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        yield "capacity"


def test_a_store_in_a_bucket_gives_the_same_rows(tmp_path, bucket):
    s3fs = pytest.importorskip("s3fs")
    # Three minutes of the eleven: each file takes the S3 server of the test half a second.
    without = shutil.ignore_patterns("minute=1[5-9]", "minute=2[1-5]")
    shutil.copytree(STORE / "vllm_metrics", tmp_path / "vllm_metrics", ignore=without)
    files = s3fs.S3FileSystem(skip_instance_cache=True)
    files.mkdir(bucket)
    files.put(str(tmp_path / "vllm_metrics"), f"{bucket}/store/vllm_metrics", recursive=True)
    store = open_store(f"s3://{bucket}/store")
    rows = read_stream(store, "vllm_metrics")
    local = read_stream(open_store(str(tmp_path)), "vllm_metrics")
    assert store.streams() == ["vllm_metrics"]
    assert rows.samples.height > 0
    assert rows.samples.equals(local.samples)
    assert rows.histograms.equals(local.histograms)


def point(**columns):
    base = {
        "p_timestamp": at(8, 0, 10).replace(tzinfo=None),
        "time_unix_nano": at(8, 0).replace(tzinfo=None),
        "metric_name": "vllm:num_requests_running",
        "metric_type": "gauge",
        "data_point_value": 3.0,
        "data_point_flags": 0.0,
        "service.instance.id": "pod-1",
        "service.name": "vllm",
        "model_name": "m",
        "engine": "0",
    }
    return {name: value for name, value in {**base, **columns}.items() if value is not None}


def store_of(folder: Path, *files: list[dict]) -> str:
    (folder / "s" / ".stream").mkdir(parents=True)
    for minute, rows in enumerate(files):
        place = folder / "s" / "date=2026-11-24" / "hour=08" / f"minute={minute:02d}"
        place.mkdir(parents=True)
        pl.DataFrame(rows, infer_schema_length=None).write_parquet(place / "h.data.1.parquet")
    return str(folder)


def labels_of(folder, *files):
    rows = read_stream(open_store(store_of(folder, *files)), "s")
    return rows.series.select("metric", "engine", "model_name", "labels").rows()


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        pytest.param(
            {"model_name": None, "engine": None, "metric_model_name": "m", "metric_engine": "1"},
            ("vllm:num_requests_running", "1", "m", "{}"),
            id="2.5.0 to 2.5.8 put metric_ before every attribute",
        ),
        pytest.param(
            {"engine": None},
            ("vllm:num_requests_running", "0", "m", "{}"),
            id="engine V0 has no engine label: it is engine 0",
        ),
        pytest.param(
            {"metric_name": "vllm_num_requests_running"},
            ("vllm:num_requests_running", "0", "m", "{}"),
            id="a proxy wrote underscores",
        ),
        pytest.param(
            {"metric_name": "vllm:brand_new_thing", "reason": "x", "server.address": "p"},
            ("vllm:brand_new_thing", "0", "m", '{"reason": "x"}'),
            id="an unknown family is kept, a resource's attribute is no label",
        ),
        pytest.param(
            {"k8s.namespace.name": "prod", "service.version": "1"},
            ("vllm:num_requests_running", "0", "m", '{"k8s.namespace.name": "prod"}'),
            id="but those that say where the server runs are",
        ),
        pytest.param(
            {"time_unix_nano": "2026-11-24T08:00:00.123456789"},
            ("vllm:num_requests_running", "0", "m", "{}"),
            id="times kept as text",
        ),
    ],
)
def test_columns_of_other_versions(tmp_path, columns, expected):
    assert labels_of(tmp_path, [point(**columns)]) == [expected]


def test_files_with_different_columns_are_one_stream(tmp_path):
    found = labels_of(tmp_path, [point()], [point(model_name=None, metric_model_name="m")])
    assert len(found) == 1


def test_lists_that_went_to_a_sibling_column_are_read(tmp_path):
    histogram = {
        "metric_name": "vllm:time_to_first_token_seconds",
        "metric_type": "histogram",
        "data_point_value": None,
        "data_point_count": 3.0,
        "data_point_sum": 1.5,
        "data_point_bucket_counts_list": [1, 2],
        "data_point_explicit_bounds_list": [0.5],
    }
    rows = read_stream(open_store(store_of(tmp_path, [point(**histogram)])), "s")
    assert rows.histograms.select("count", "sum", "counts").rows() == [(3.0, 1.5, [1.0, 2.0])]


def test_a_value_lost_on_the_way_is_noted_not_zero(tmp_path):
    lost = point(metric_name="vllm:num_requests_waiting", data_point_value=None)
    rows = read_stream(open_store(store_of(tmp_path, [point(), lost])), "s")
    assert rows.samples.height == 1
    assert rows.ingest_notes.select("check", "subject", "count").rows() == [
        ("coverage", "vllm:num_requests_waiting", 1)
    ]


def test_other_targets_of_the_store_are_left_out(tmp_path):
    node = {"service.instance.id": "node:9100", "service.name": "node", "model_name": None}
    dead = {"service.instance.id": "pod-2", "metric_name": "up", "data_point_value": 0.0}
    up = {"metric_name": "up", "data_point_value": 1.0}
    rows = read_stream(
        open_store(store_of(tmp_path, [point(), point(**node, **up), point(**dead)])), "s"
    )
    assert rows.series.get_column("instance").unique().sort().to_list() == ["pod-1", "pod-2"]
