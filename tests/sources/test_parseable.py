"""What refusals and transport errors of a Parseable server become, and what is retried."""

import gzip
import json
from contextlib import ExitStack
from datetime import UTC, datetime

import httpx
import pytest

from tests.standin.exports import export, gauge
from tests.standin.server import Fault, Standin, User
from tests.standin.tables import Stream
from vllm_capacity.errors import CapacityError, InputError, NoTelemetryError, SourceError
from vllm_capacity.sources.parseable import Parseable
from vllm_capacity.sources.parseable_queries import resolve
from vllm_capacity.timerange import TimeRange

NOW = datetime(2026, 11, 24, 8, 0, 30, tzinfo=UTC)
HOUR = TimeRange(NOW.replace(minute=0, second=0), NOW.replace(hour=9, minute=0, second=0))
SQL = "select metric_name from s"


@pytest.fixture
def standin():
    users = {
        "root": User("root-password"),
        "reader": User("secret", "reader", ("s",)),
        "collector": User("secret", "ingestor", ("s",)),
    }
    with Standin(users=users, api_keys={"a-key": User("", "reader", ("s",))}) as server:
        for name in ("s", "other"):
            server.ingest(
                name,
                "/v1/metrics",
                export(gauge("vllm:num_requests_running", NOW, 1.0)),
                arrived=NOW,
            )
        yield server


@pytest.fixture
def server(standin):
    """A client of the stand-in as some user, which records the waits between attempts."""
    with ExitStack() as clients:

        def as_user(user="reader", password="secret"):
            client = standin.client(user, password, timeout=5)
            waits = []
            return Parseable(clients.enter_context(client), pause=waits.append), waits

        yield as_user


def test_a_reader_can_query(server):
    parseable, _ = server()
    assert parseable.query(SQL, HOUR) == [{"metric_name": "vllm:num_requests_running"}]
    assert parseable.streams() == ["s"]
    assert parseable.about().version == "v2.9.5"


def test_an_api_key_does_as_well(standin):
    with httpx.Client(base_url=standin.url, headers={"X-API-KEY": "a-key"}) as keyed:
        assert Parseable(keyed).streams() == ["s"]


@pytest.mark.parametrize(
    ("credentials", "sql", "error", "says"),
    [
        pytest.param(
            ("reader", "wrong"),
            SQL,
            SourceError,
            "user or the password",
            id="a wrong password: 403",
        ),
        pytest.param(
            ("collector", "secret"),
            SQL,
            SourceError,
            "use a reader's",
            id="an ingestor cannot query",
        ),
        pytest.param(
            (),
            "select metric_name from other",
            SourceError,
            "no right to the stream",
            id="no right to the stream is a 400",
        ),
        pytest.param(
            (), "select x from nope", InputError, "No such stream", id="an unknown stream is a 400"
        ),
        pytest.param(
            (), "select nope from s", SourceError, "could not run", id="an unknown column is a 400"
        ),
    ],
)
def test_a_refusal_is_one_clear_line(server, credentials, sql, error, says):
    parseable, waits = server(*credentials)
    with pytest.raises(error, match=says) as caught:
        parseable.query(sql, HOUR)
    assert "\n" not in str(caught.value)
    assert waits == []


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        pytest.param(
            {"status": 401, "text": "Invalid API key"}, "does not know", id="an unknown key is 401"
        ),
        pytest.param(
            {"status": 413, "text": "payload reached size limit"},
            "too large",
            id="too large is 413",
        ),
        pytest.param(
            {"status": 500, "text": "Execution Error: deadline has elapsed: 300s"},
            "shorter range",
            id="a query that ran out of time is 500",
        ),
        pytest.param({"status": 404}, "Is it a Parseable server", id="a page that is not there"),
    ],
)
def test_what_the_server_decided_is_not_asked_again(standin, server, fault, says):
    standin.faults.append(Fault("/api/v1/query", **fault))
    parseable, waits = server()
    with pytest.raises(SourceError, match=says):
        parseable.query(SQL, HOUR)
    assert waits == []


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param({"cut": True}, id="an answer cut in the middle"),
        pytest.param({"status": 503, "text": "Server is shutting down"}, id="a server going down"),
        pytest.param({"status": 502, "text": "bad gateway"}, id="a proxy without its server"),
    ],
)
def test_a_transport_error_is_retried(standin, server, fault):
    standin.faults.append(Fault("/api/v1/query", times=2, **fault))
    parseable, waits = server()
    assert len(parseable.query(SQL, HOUR)) == 1
    assert len(waits) == 2


@pytest.mark.parametrize(
    ("fault", "patience_seconds", "says"),
    [
        pytest.param({"cut": True}, 5, "cut its answer short", id="always cut"),
        pytest.param({"seconds": 0.4}, 0.1, "did not answer in time", id="always too slow"),
    ],
)
def test_a_persistent_transport_error_is_raised(standin, server, fault, patience_seconds, says):
    standin.faults.append(Fault("/api/v1/query", times=9, **fault))
    parseable, _ = server()
    parseable.client.timeout = patience_seconds
    with pytest.raises(SourceError, match=says):
        parseable.query(SQL, HOUR)


def test_a_line_without_its_end_is_a_cut_answer():
    text = '{"fields":["x"]}\n[{"x":1}]\n[{"x":'
    transport = httpx.MockTransport(lambda request: httpx.Response(200, text=text))
    with (
        httpx.Client(base_url="http://p", transport=transport) as cut,
        pytest.raises(SourceError, match="in the middle of a line"),
    ):
        Parseable(cut, pause=lambda seconds: None).query(SQL, HOUR)


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(httpx.Response(200, text="<html>"), id="a web page"),
        pytest.param(httpx.Response(200, json={"ok": 1}), id="another service"),
    ],
)
def test_another_server_at_the_address_is_reported(answer):
    transport = httpx.MockTransport(lambda request: answer)
    with (
        httpx.Client(base_url="http://p", transport=transport) as other,
        pytest.raises(SourceError, match="does not answer as Parseable does"),
    ):
        Parseable(other).about()


def test_an_address_without_a_server_is_reported():
    with (
        httpx.Client(base_url="http://127.0.0.1:9") as nobody,
        pytest.raises(SourceError, match=r"No usable answer from http://127\.0\.0\.1:9"),
    ):
        Parseable(nobody, pause=lambda seconds: None).about()


def test_no_message_contains_the_password():
    with (
        httpx.Client(base_url="http://me:hunter2@127.0.0.1:9") as nobody,
        pytest.raises(CapacityError) as caught,
    ):
        Parseable(nobody, pause=lambda seconds: None).about()
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "user", [("root", "root-password"), ("reader", "secret")], ids=["administrator", "reader"]
)
def test_an_unknown_stream_lists_the_existing_ones(server, user):
    parseable, _ = server(*user)
    with pytest.raises(InputError, match=r"no stream 'nope'.*Streams there: .*s"):
        parseable.columns("nope")


def test_an_empty_stream_has_no_columns(server, standin):
    parseable, _ = server("root", "root-password")
    standin.streams["new"] = Stream("otel-metrics")
    assert parseable.columns("new") == {}
    with pytest.raises(NoTelemetryError, match="'new' is empty: nothing has come in yet"):
        resolve("new", parseable.columns("new"))


def test_a_range_is_widened_to_whole_minutes(server):
    parseable, _ = server()
    found = parseable.query(SQL, TimeRange(NOW, NOW.replace(second=31)))
    assert len(found) == 1


@pytest.mark.parametrize(
    ("sql", "encoding"),
    [
        pytest.param(SQL, None, id="a short query"),
        pytest.param(SQL + " -- " + "x" * 2000, "gzip", id="a long one"),
    ],
)
def test_a_long_query_goes_compressed(sql, encoding):
    bodies = []

    def handler(request):
        coding = request.headers.get("Content-Encoding")
        bodies.append((coding, gzip.decompress(request.content) if coding else request.content))
        return httpx.Response(200, text='{"fields":[]}\n')

    with httpx.Client(base_url="http://p", transport=httpx.MockTransport(handler)) as client:
        Parseable(client).query(sql, HOUR)
    ((coding, body),) = bodies
    assert (coding, json.loads(body)["query"]) == (encoding, sql)
