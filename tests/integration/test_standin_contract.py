"""The stand-in, fed every recorded export, gives the answers that the real Parseable gave."""

import gzip
import json
import math

import httpx
import pytest

from tests.standin.flatten import parse
from tests.standin.recorded import recorded_server
from tests.standin.server import RECORDED

AUTH = ("root", "root-password")
# Arrival and sender differ by nature; nanoseconds do not fit a double.
UNCOMPARED = {
    "p_timestamp",
    "p_user_agent",
    "span_start_time_unix_nano_epoch",
    "span_end_time_unix_nano_epoch",
}


def lines(name):
    with gzip.open(RECORDED / name, "rt") as file:
        return [json.loads(line) for line in file]


QUERIES = [q for q in lines("queries.jsonl.gz") if q["path"] == "/api/v1/query"]
LIMITED = [q for q in QUERIES if " limit " in q["json"]["query"]]
WHOLE = [q for q in QUERIES if q not in LIMITED]
SCHEMAS = [q for q in lines("queries.jsonl.gz") if q["path"].endswith("/schema")]


def ident(query):
    return f"{query['name']}, as {'a stream' if query['params'] else 'an array'}"


@pytest.fixture(scope="module")
def server():
    with recorded_server(exchanges=RECORDED / "exchanges.jsonl.gz") as standin:
        _replay_the_ingestors_point(standin)
        yield standin


def _replay_the_ingestors_point(standin):
    """One point came from no collector: the test of the ingestor's right to write."""
    for exchange in lines("exchanges.jsonl.gz"):
        headers = {k.lower(): v for k, v in exchange["request_headers"].items()}
        is_ingest = exchange["path"] == "/v1/metrics" and exchange["status"] == 200
        if is_ingest and headers["x-p-stream"] == "vllm_metrics":
            httpx.post(
                f"{standin.url}/v1/metrics",
                content=exchange["request"],
                headers={k: headers[k] for k in ("x-p-stream", "x-p-log-source", "content-type")},
                auth=AUTH,
            ).raise_for_status()
            batch = standin.streams["vllm_metrics"].batches
            batch.append(_arrived_with(batch.pop(), batch[0]))


def _arrived_with(late, earlier):
    """The batch as if it had arrived with another: its real arrival lies in the recorded range."""
    column = earlier.column("p_timestamp").slice(0, late.num_rows)
    return late.set_column(0, "p_timestamp", column)


def rows_of(answer, is_stream):
    if not is_stream:
        return json.loads(answer)
    head, *batches = answer.splitlines()
    assert json.loads(head)["fields"]
    return [row for batch in batches for row in json.loads(batch)]


def is_same(ours, theirs):
    """Rows are equal as sets; in which order a server adds may move the last digit of a sum."""
    return len(ours) == len(theirs) and all(
        mine.keys() == yours.keys()
        and all(
            math.isclose(mine[name], yours[name], rel_tol=1e-12)
            if name == "total"
            else mine[name] == yours[name]
            for name in mine
        )
        for mine, yours in zip(sorted(ours, key=order), sorted(theirs, key=order), strict=True)
    )


def order(row):
    return json.dumps({k: v for k, v in row.items() if k != "total"}, sort_keys=True)


def comparable(query, rows):
    """Without what cannot agree: the recorded two increases of one metric already differ.

    `http_requests_total` has labels that the recorded query does not partition by.
    """
    kept = [{k: v for k, v in row.items() if k not in UNCOMPARED} for row in rows]
    if query["name"].startswith("exact increase"):
        return [row for row in kept if row["metric_name"] != "http_requests_total"]
    return kept


def ask(server, query, sql):
    answer = httpx.post(
        f"{server.url}/api/v1/query",
        params=query["params"],
        json={**query["json"], "query": sql},
        auth=AUTH,
        timeout=60,
    )
    return rows_of(answer.raise_for_status().text, bool(query["params"]))


@pytest.mark.parametrize(
    "query", [q for q in QUERIES if "limit" not in q["json"]["query"]], ids=ident
)
def test_answers_agree_as_sets(server, query):
    ours = comparable(query, ask(server, query, query["json"]["query"]))
    theirs = comparable(query, rows_of(query["response"], bool(query.get("params"))))
    assert is_same(ours, theirs)


@pytest.mark.parametrize("query", LIMITED, ids=ident)
def test_a_limited_answer_is_a_part_of_the_whole(server, query):
    whole = ask(server, query, query["json"]["query"].split(" limit ")[0])
    theirs = comparable(query, rows_of(query["response"], bool(query.get("params"))))
    assert {order(row) for row in theirs} <= {order(row) for row in comparable(query, whole)}


@pytest.mark.parametrize("recorded", SCHEMAS, ids=lambda q: q["path"])
def test_the_schema_agrees(server, recorded):
    ours = httpx.get(server.url + recorded["path"], auth=AUTH).json()["fields"]
    theirs = json.loads(recorded["response"])["fields"]
    assert {f["name"]: f["data_type"] for f in ours} == {f["name"]: f["data_type"] for f in theirs}


@pytest.mark.parametrize(
    ("query", "status", "text"),
    [
        pytest.param("select * from nope", 400, "not found", id="an unknown stream is 400"),
        pytest.param("select nope from vllm_metrics", 400, "No field named nope", id="a column"),
        pytest.param("selec", 400, "SQL error", id="what is no SQL"),
    ],
)
def test_a_bad_query_is_refused_like_the_recorded_one(server, query, status, text):
    asked = {"query": query, "startTime": "1h", "endTime": "now"}
    answer = httpx.post(f"{server.url}/api/v1/query", json=asked, auth=AUTH)
    assert (answer.status_code, text in answer.text) == (status, True)


def test_numbers_are_read_as_parseable_reads_them():
    assert parse('{"x": 0.9024390243902439}')["x"] == 0.902439024390244
