"""The stand-in's tests, against a real Parseable.

Run by `make test-live`, which names a binary in PARSEABLE_BIN. The recorded exports go in as they
were recorded, so their samples are old and arrive now: later than any collector would be.
"""

import gzip
import json
from datetime import UTC, datetime, timedelta

import httpx
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from tests.integration.real_parseable import ROOT, real_parseable, rows_shown, wait_for
from tests.standin.recorded import recorded_server
from tests.standin.server import RECORDED
from vllm_capacity.errors import CapacityError, SourceError
from vllm_capacity.sources.guide_queries import GUIDE_QUERIES, guide_query
from vllm_capacity.sources.parquet import open_store, read_stream
from vllm_capacity.sources.parseable import Parseable
from vllm_capacity.sources.parseable_pull import PullRequest, pull
from vllm_capacity.sources.parseable_rows import downsampled_rows, whole_rows
from vllm_capacity.sources.traces import traces_from_files, traces_from_server
from vllm_capacity.telemetry.store import write_window
from vllm_capacity.telemetry.window import open_window
from vllm_capacity.timerange import TimeRange

pytestmark = pytest.mark.live

STREAM = "vllm_metrics"
SAMPLED = datetime(2026, 11, 24, 8, 14, tzinfo=UTC)
PART = TimeRange(SAMPLED, SAMPLED + timedelta(minutes=13))


def exports(name):
    with gzip.open(RECORDED / name, "rt") as lines:
        return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with real_parseable(tmp_path_factory.mktemp("parseable")) as real:
        for name in ("collector_exports.jsonl.gz", "traces_exports.jsonl.gz"):
            for export in exports(name):
                real.ingest(export["stream"], json.dumps(export["body"]), path=export["path"])
        yield real


@pytest.fixture(scope="module")
def late():
    """From the samples until after now: the exports are as old as the recording."""
    return datetime.now(UTC) - PART.end + timedelta(hours=1)


@pytest.fixture(scope="module")
def parseable(server):
    with httpx.Client(base_url=server.url, auth=ROOT, timeout=300) as client:
        yield Parseable(client)


@pytest.fixture(scope="module", autouse=True)
def all_there(parseable, stand_in):
    """While it writes a minute's rows to a file, a Parseable answers without them."""

    since = SAMPLED - timedelta(hours=4)
    for stream in (STREAM, "vllm_traces"):
        wanted = rows_shown(stand_in, stream, since)
        wait_for(lambda: rows_shown(parseable, stream, since) == wanted, seconds=180)  # noqa: B023


@pytest.fixture(scope="module")
def whole(parseable, late):
    return whole_rows(pull(parseable, PullRequest(STREAM, PART, is_downsampled=False, late=late)))


@pytest.fixture(scope="module")
def stand_in():
    with (
        recorded_server() as standin,
        httpx.Client(base_url=standin.url, auth=ROOT, timeout=300) as client,
    ):
        yield Parseable(client)


@pytest.fixture(scope="module")
def downsampled(parseable, late):
    return downsampled_rows(pull(parseable, PullRequest(STREAM, PART, late=late)))


@pytest.mark.parametrize("table", ["series", "samples", "histograms"])
def test_the_stand_in_gives_what_the_server_gives(whole, stand_in, table):
    theirs = whole_rows(pull(stand_in, PullRequest(STREAM, PART, is_downsampled=False)))
    assert getattr(whole, table).equals(getattr(theirs, table))


@pytest.mark.parametrize("view", ["minutes", "minute_histograms"])
def test_downsampled_minutes_are_the_rollup_of_the_whole(whole, downsampled, tmp_path, view):
    window = open_window(write_window(tmp_path / "w", whole, {}))
    theirs = window.sql(f"select * from {view} order by series_id, minute, run")
    ours = getattr(downsampled, view)
    kept = [c for c in ours.columns if (view, c) != ("minutes", "sum")]
    assert ours.select(kept).equals(theirs.select(kept))


def test_its_files_give_what_it_answers(server, whole, late, record_property):
    store = open_store(str(server.store))

    def is_flushed():
        if STREAM not in store.streams():
            return False
        try:
            found = read_stream(store, STREAM, PART, late=late)
        except CapacityError:  # no file yet, or one that is being written
            return False
        return found.samples.height == whole.samples.height

    wait_for(is_flushed, seconds=240)
    files = read_stream(store, STREAM, PART, late=late)
    record_property("samples", files.samples.height)
    record_property("histogram states", files.histograms.height)
    # Files hold the time of arrival, which the whole pull does not request.
    for result, asked in ((files.samples, whole.samples), (files.histograms, whole.histograms)):
        assert result.drop("arrival").equals(asked.drop("arrival"))
    assert files.series.equals(whole.series)


def test_its_traces_are_the_ones_in_its_files(server, parseable, late):
    ran = TimeRange(SAMPLED - timedelta(hours=4), PART.end)
    store = open_store(str(server.store))
    wait_for(lambda: "vllm_traces" in store.streams(), seconds=240)
    over_http = traces_from_server(parseable, "vllm_traces", ran, late=late)
    assert over_http.height == 26
    assert over_http.equals(traces_from_files(store, "vllm_traces", ran, late=late))


@pytest.mark.parametrize("query", GUIDE_QUERIES, ids=lambda query: query.name)
def test_the_guides_query_is_answered_as_the_stand_in_answers(parseable, stand_in, late, query):
    sql = guide_query(query.name)
    ours = pl.DataFrame(parseable.query(sql, TimeRange(PART.start, PART.end + late)))
    theirs = pl.DataFrame(stand_in.query(sql, PART))
    keys = [name for name in ours.columns if ours.schema[name] == pl.String]
    numbers = [name for name in ours.columns if name not in keys]
    ours, theirs = ours.sort(keys), theirs.select(ours.columns).sort(keys)
    assert ours.select(keys).equals(theirs.select(keys))
    assert_frame_equal(
        ours.select(numbers), theirs.select(numbers), check_dtypes=False, rel_tol=1e-9
    )


def made_user(server, name, role):
    """The password of a user with this role on the stream."""
    with httpx.Client(base_url=server.url, auth=ROOT) as admin:
        body = [{"privilege": role, "resource": {"stream": STREAM}}]
        admin.put(f"/api/v1/role/of_{name}", json=body).raise_for_status()
        return admin.post(f"/api/v1/user/{name}", json=[f"of_{name}"]).raise_for_status().text


@pytest.mark.parametrize(
    ("role", "query_says", "ingest_status"),
    [
        pytest.param("reader", None, 403, id="a reader reads and cannot write"),
        pytest.param("ingestor", "use a reader's", 200, id="an ingestor writes and cannot read"),
    ],
)
def test_roles(server, role, query_says, ingest_status):
    auth = (f"the_{role}", made_user(server, f"the_{role}", role))
    sql, hour = (
        f"select count(1) as n from {STREAM}",
        TimeRange(datetime.now(UTC) - timedelta(hours=1), datetime.now(UTC) + timedelta(minutes=1)),
    )
    empty = '{"resourceMetrics": []}'
    headers = {"X-P-Stream": STREAM, "X-P-Log-Source": "otel-metrics"}
    headers["Content-Type"] = "application/json"
    with httpx.Client(base_url=server.url, auth=auth) as client:
        status = client.post("/v1/metrics", content=empty, headers=headers).status_code
        assert status == ingest_status
        if query_says is None:
            assert Parseable(client).query(sql, hour)[0]["n"] > 50_000
        else:
            with pytest.raises(SourceError, match=query_says):
                Parseable(client).query(sql, hour)


@pytest.mark.parametrize(
    ("auth", "sql", "says"),
    [
        pytest.param(
            (ROOT[0], "wrong"), f"select 1 as x from {STREAM}", "password", id="a wrong password"
        ),
        pytest.param(ROOT, f"select nope from {STREAM}", "could not run", id="an unknown column"),
        pytest.param(ROOT, "select x from nope", "No such stream", id="an unknown stream"),
    ],
)
def test_a_refusal_is_one_clear_line(server, auth, sql, says):
    hour = TimeRange(datetime.now(UTC) - timedelta(hours=1), datetime.now(UTC))
    with (
        httpx.Client(base_url=server.url, auth=auth) as client,
        pytest.raises(CapacityError, match=says) as caught,
    ):
        Parseable(client, pause=lambda seconds: None).query(sql, hour)
    assert "\n" not in str(caught.value)


def test_its_version(parseable, record_property):
    about = parseable.about()
    record_property("Parseable", about.version)
    assert about.version.startswith("v2.")
