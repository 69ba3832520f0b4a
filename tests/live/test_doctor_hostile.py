"""The doctor against servers that answer anything at all: findings, never a crash."""

import copy
import json
import random
from datetime import UTC, datetime

import httpx
import pytest

from vllm_capacity.live.doctor import diagnosis
from vllm_capacity.live.probes import Chain, gather

NOW = datetime(2026, 11, 24, 8, 12, tzinfo=UTC)
LATELY = "2026-11-24T08:11:50"
METRICS = (
    '# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running{engine="0"} 1\n'
    "# TYPE otelcol_receiver_accepted_metric_points counter\n"
    "otelcol_receiver_accepted_metric_points_total 5\n"
    "# TYPE otelcol_exporter_queue_size gauge\n"
    'otelcol_exporter_queue_size{exporter="otlphttp"} 1\n'
)
COLUMNS = (
    *("metric_name", "metric_type", "time_unix_nano", "data_point_value", "data_point_count"),
    *("data_point_sum", "data_point_bucket_counts", "data_point_explicit_bounds", "model_name"),
    "service.instance.id",
)
ANSWERS = {
    "/metrics": METRICS,
    "/health": "ok\n",
    "/": "{}",
    "/api/v1/liveness": "",
    "/api/v1/about": {"version": "v2.9.5"},
    "/api/v1/logstream": [{"name": "s"}],
    "/api/v1/logstream/s/schema": {
        "fields": [{"name": name, "data_type": "Utf8"} for name in COLUMNS]
    },
    "/api/v1/logstream/s/info": {"latestEventAt": LATELY},
    "payloads": [{"metric_type": "gauge", "points": 4, "filled": 4}],
    "batches": [{"arrived": "2026-11-24T08:11:52", "newest": LATELY}],
    "instances": [{"instance": "vllm:8000", "tried": LATELY, "scraped": LATELY}],
}
BODIES = {
    "nothing": b"",
    "null": b"null",
    "a number": b"1",
    "a list": b"[[1], null]",
    "an object": b'{"fields": 1, "version": ["x"], "latestEventAt": {}}',
    "a page": b"<html>\x1b[31m[/red]",
    "nesting": b"[" * 100_000,
    "digits": b'{"version": "' + b"9" * 5000 + b'"}',
    "half a letter": b'"\\ud800\xff"',
    "zeros": bytes(100),
    "a queue of nobody": METRICS.replace('{exporter="otlphttp"}', "").encode(),
    "a number cut short": METRICS[:-2].encode(),
}
DATES = [
    *("garbage", "", "Mon, 01 Jan 99999 00:00:00 GMT", "Mon, 01 Jan 2026 00:00:00 -0000"),
    *("Mon, 01 Jan 2026 00:00:00 +99999999999999999999", "Mon, 01 Jan 0001 00:00:00 +2359"),
]


def route(request):
    if request.url.path != "/api/v1/query":
        return request.url.path
    query = json.loads(request.content)["query"]
    return "payloads" if "filled" in query else "batches" if "arrived" in query else "instances"


def findings(spoil, headers=None):
    """What the doctor finds where `spoil` makes bytes of each answer."""

    def answer(request):
        result = ANSWERS[route(request)]
        content = result.encode() if isinstance(result, str) else json.dumps(result).encode()
        return httpx.Response(200, content=spoil(route(request), content), headers=headers)

    chain = Chain(
        vllm=("http://vllm:8000/metrics",),
        proxy="http://proxy/health",
        collector_metrics="http://collector:8888/metrics",
        collector_health="http://collector:13133/",
        parseable="http://parseable:8000",
        stream="s",
    )
    with httpx.Client(transport=httpx.MockTransport(answer)) as client:
        reader = httpx.BasicAuth("reader", "hunter2")
        evidence = gather(client, chain, clock=lambda: NOW, pause=lambda: None, reader=reader)
    return diagnosis(evidence)


def assert_plain(found):
    output = " ".join(text for finding in found for text in finding.as_dict().values())
    assert "\x1b" not in output
    assert "hunter2" not in output


def test_the_healthy_answers_are_understood():
    found = {finding.check: finding.state for finding in findings(lambda path, content: content)}
    assert found["values-lost"] == found["stream-stale"] == found["columns-unexpected"] == "ok"
    assert found["replica-unscraped"] == "ok"


@pytest.mark.parametrize("path", ANSWERS)
@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_any_answer_makes_findings(path, body):
    assert_plain(findings(lambda at, content: body if at == path else content))


@pytest.mark.parametrize("date", DATES)
def test_any_date_makes_findings(date):
    assert_plain(findings(lambda at, content: content, {"Date": date}))


def spoilt(value, draw):
    """The value with another one at a place inside."""
    at = value = copy.deepcopy([value])
    key = 0
    while isinstance(at[key], dict | list) and at[key] and draw.random() < 0.8:
        at = at[key]
        key = draw.choice(list(at) if isinstance(at, dict) else range(len(at)))
    at[key] = draw.choice([None, True, -1, 10**30, "", "x\x1b[31m", [], {}, [None], [{}]])
    return value[0]


@pytest.mark.parametrize("seed", range(40))
def test_an_answer_that_is_damaged_somewhere_makes_findings(seed):
    draw = random.Random(seed)

    def spoil(path, content):
        result = ANSWERS[path]
        return content if isinstance(result, str) else json.dumps(spoilt(result, draw)).encode()

    assert_plain(findings(spoil))
