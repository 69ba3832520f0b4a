"""Answers of any shape: an error of ours that says so, or rows; never anything else.

The healthy answers of small servers are damaged at every place in turn, in ways drawn from a seed.
"""

import copy
import json
import random
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qs

import httpx
import pytest

from tests.standin.exports import counter, export, gauge, histogram
from tests.standin.server import Standin
from vllm_capacity.errors import CapacityError, SourceError
from vllm_capacity.live.pull import pull_prometheus, pull_server
from vllm_capacity.sources.parseable import Parseable
from vllm_capacity.sources.parseable_pull import PullRequest
from vllm_capacity.sources.prometheus import Prometheus
from vllm_capacity.sources.prometheus_pull import read_prometheus
from vllm_capacity.timerange import TimeRange

START = datetime(2026, 11, 24, 8, 10, tzinfo=UTC)
PART = TimeRange(START, START + timedelta(minutes=2))
AUTH = ("root", "root-password")
JUNK = [
    *(None, True, -1, 1.5, 10**30, 2**63, "", "x", "\x1b[31m[/red]", "NaN"),
    *([], {}, [None], [[]], [{}], {"a": None}, "9999-12-31T23:59:59+00:00"),
]
BODIES = {
    "nothing": b"",
    "null": b"null",
    "a number": b"1",
    "a list": b"[[1]]",
    "an object": b"{}",
    "a page": b"<html>",
    "nesting": b"[" * 100_000,
    "digits": b'{"version": ' + b"9" * 5000 + b"}",
    "half a letter": b'{"status": "success", "data": ["\\ud800"], "version": "\xff"}',
    "rows of another shape": b'{"fields": ["x"]}\n[{"x": 1}, 2, null]\n',
    "an instant vector": b'{"status": "success", "data": {"resultType": "vector", "result": []}}',
}


def served():
    """The exposition's samples every ten seconds, in a Parseable that answers SQL."""
    standin = Standin()
    for number in range(8):
        ts = START + timedelta(seconds=10 * number)
        labels = {"model_name": "m", "engine": "0"}
        standin.ingest(
            "s",
            "/v1/metrics",
            export(
                counter("vllm:generation_tokens_total", ts, 50.0 * number, **labels),
                gauge("vllm:num_requests_running", ts, 3.0 + number % 2, **labels),
                histogram(
                    "vllm:time_to_first_token_seconds",
                    ts,
                    [number, 2 * number],
                    total=1.5 * number,
                    bounds=[0.5],
                    **labels,
                ),
                gauge("up", ts, 1.0),
            ),
            arrived=ts + timedelta(seconds=1),
        )
    standin.now = PART.end
    return standin


def prometheus(request):
    if request.url.path.endswith("/values"):
        data = ["up", "vllm:generation_tokens_total"]
        data += [
            f"vllm:time_to_first_token_seconds_{suffix}" for suffix in ("bucket", "sum", "count")
        ]
    elif request.url.path.endswith("/metadata"):
        data = {"vllm:generation_tokens_total": [{"type": "counter", "help": "", "unit": ""}]}
    else:
        query = parse_qs(request.content.decode())["query"][0]
        edges = [{"le": "0.5"}, {"le": "+Inf"}] if "_bucket" in query else [{}]
        name = "vllm:time_to_first_token_seconds_bucket" if edges[0] else "up"
        values = [[START.timestamp() + 15 * number, str(number)] for number in range(4)]
        series = [
            {"metric": {"__name__": name, "instance": "a", "job": "v", **edge}, "values": values}
            for edge in edges
        ]
        data = {"resultType": "matrix", "result": series}
    return httpx.Response(200, json={"status": "success", "data": data})


class Sick:
    """A transport that spoils the `nth` answer of the one behind it."""

    def __init__(self, healthy, nth, spoil):
        self.healthy, self.left, self.spoil = healthy, nth, spoil

    def __call__(self, request):
        answer = self.healthy(request)
        answer.read()
        self.left -= 1
        if self.left:
            return answer
        return httpx.Response(answer.status_code, content=self.spoil(answer.content))


def places(value, path=()):
    """The ways to every value inside, three deep in a list at most."""
    yield path
    parts = value.items() if isinstance(value, dict) else ()
    parts = enumerate(value[:3]) if isinstance(value, list) else parts
    for key, inner in parts:
        yield from places(inner, (*path, key))


def spoilt(value, draw):
    value = copy.deepcopy(value)
    *way, last = draw.choice([path for path in places(value) if path] or [("",)])
    at = value
    for key in way:
        at = at[key]
    if not last and last != 0:
        return draw.choice(JUNK)
    if draw.random() < 0.25:
        del at[last]
    else:
        at[last] = draw.choice(JUNK)
    return value


def spoiling(seed):
    def spoil(content):
        draw = random.Random(seed)
        lines = [json.loads(line) for line in content.splitlines()]
        at = draw.randrange(len(lines))
        lines[at] = spoilt(lines[at], draw)
        end = "\n" if content.endswith(b"\n") else ""
        return ("\n".join(map(json.dumps, lines)) + end).encode()

    return spoil


def complaint(ask, *args, **more):
    """The error message; only errors of ours are caught."""
    try:
        ask(*args, **more)
    except CapacityError as error:
        return str(error)
    return ""


def pulled(healthy, nth, spoil, folder, *, is_downsampled):
    transport = httpx.MockTransport(Sick(healthy, nth, spoil))
    with httpx.Client(base_url="http://p", auth=AUTH, transport=transport) as client:
        server = Parseable(client, pause=lambda seconds: None)
        request = PullRequest("s", PART, is_downsampled)
        return complaint(pull_server, server, request, folder / "w", now=PART.end)


@pytest.fixture(scope="module")
def store():
    """A Parseable's answers, by question: each is asked for once."""
    answers = {}
    with served() as standin, httpx.Client(timeout=60) as client:

        def ask(request):
            key = (str(request.url), request.content)
            if key not in answers:
                url = standin.url + request.url.raw_path.decode()
                answers[key] = client.request(
                    request.method, url, content=request.content, auth=AUTH
                ).content
            return httpx.Response(200, content=answers[key])

        yield ask


def read_from_prometheus(nth, spoil, folder):
    transport = httpx.MockTransport(Sick(prometheus, nth, spoil))
    with httpx.Client(base_url="http://p", transport=transport) as client:
        server = Prometheus(client, pause=lambda seconds: None)
        return complaint(pull_prometheus, server, PART, folder / "w")


def one_line(output):
    return "\n" not in output and "\x1b" not in output


@pytest.mark.parametrize("nth", range(1, 9))
@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_a_parseable_that_answers_something_else_is_named(store, tmp_path, nth, body):
    output = pulled(store, nth, lambda content: body, tmp_path, is_downsampled=nth % 2 == 0)
    assert one_line(output)
    assert output or (tmp_path / "w").exists()


@pytest.mark.parametrize("nth", range(1, 6))
@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_a_prometheus_that_answers_something_else_is_named(tmp_path, nth, body):
    output = read_from_prometheus(nth, lambda content: body, tmp_path)
    assert one_line(output)
    assert "does not answer as Prometheus does" in output or nth == 2 or "no vLLM series" in output


@pytest.mark.parametrize("seed", range(18))
def test_an_answer_of_parseable_that_is_damaged_somewhere_is_an_error_or_rows(
    store, tmp_path, seed
):
    for nth in range(1, 9):
        output = pulled(
            store, nth, spoiling(seed), tmp_path / str(nth), is_downsampled=seed % 2 == 0
        )
        assert one_line(output)


@pytest.mark.parametrize("seed", range(18))
def test_an_answer_of_prometheus_that_is_damaged_somewhere_is_an_error_or_rows(tmp_path, seed):
    for nth in range(1, 6):
        assert one_line(read_from_prometheus(nth, spoiling(seed), tmp_path / str(nth)))


def test_warnings_of_prometheus_about_missing_data_are_in_the_quality_report():
    def warning(content):
        return json.dumps(json.loads(content) | {"warnings": ["\x1b[31m store 2 is down"]}).encode()

    transport = httpx.MockTransport(Sick(prometheus, 4, warning))
    with httpx.Client(base_url="http://p", transport=transport) as client:
        ingest_notes = read_prometheus(Prometheus(client), PART).ingest_notes
    assert ingest_notes.select("check", "subject", "detail").rows() == [
        ("coverage", "partial answer", " [31m store 2 is down")
    ]


def test_an_expired_deadline_is_not_retried():
    asked = []

    def slow(request):
        asked.append(request)
        raise httpx.ReadTimeout("timed out", request=request)

    with (
        httpx.Client(base_url="http://p", transport=httpx.MockTransport(slow)) as client,
        pytest.raises(SourceError, match="did not answer in time"),
    ):
        Parseable(client).about()
    assert len(asked) == 1
