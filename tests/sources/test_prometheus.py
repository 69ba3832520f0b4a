"""Prometheus' API: what its refusals become, and which families its metric names stand for.

That the real one's samples are those that were served is in integration/test_sources_contract.py.
"""

from datetime import UTC, datetime, timedelta

import httpx
import pytest

from vllm_capacity.errors import SourceError
from vllm_capacity.sources.prometheus import Prometheus, families, read_prometheus
from vllm_capacity.timerange import TimeRange

START = datetime(2026, 11, 24, 8, tzinfo=UTC)
PART = TimeRange(START, START + timedelta(minutes=10))


def answering(handler):
    client = httpx.Client(base_url="http://prometheus", transport=httpx.MockTransport(handler))
    return client


@pytest.mark.parametrize(
    ("response", "says"),
    [
        pytest.param(httpx.Response(401), "PROMETHEUS_USER", id="credentials are wanted"),
        pytest.param(
            httpx.Response(422, json={"error": "query processing would load too many samples"}),
            "too many samples. Ask for a shorter range",
            id="too much at once",
        ),
        pytest.param(httpx.Response(200, text="<html>"), "not answer as Prometheus", id="a page"),
        pytest.param(httpx.Response(503, text="starting"), "not ready", id="still starting"),
    ],
)
def test_a_refusal_is_one_clear_line(response, says):
    with answering(lambda request: response) as client, pytest.raises(SourceError, match=says):
        read_prometheus(Prometheus(client, pause=lambda seconds: None), PART)


@pytest.mark.parametrize(
    ("names", "scalars", "histograms"),
    [
        pytest.param(
            ["vllm:x_bucket", "vllm:x_count", "vllm:x_sum"], (), ("vllm:x",), id="a histogram"
        ),
        pytest.param(
            ["vllm:iteration_tokens_total_bucket", "vllm:iteration_tokens_total_sum"],
            (),
            ("vllm:iteration_tokens_total",),
            id="a histogram that ends in _total",
        ),
        pytest.param(["vllm:y_count"], ("vllm:y_count",), (), id="a name that ends like a part"),
        pytest.param(["go_goroutines", "vllm:z_created"], (), (), id="what no figure reads"),
    ],
)
def test_families_behind_names(names, scalars, histograms):
    found = families(names, {})
    assert (found.scalars, found.histograms) == (scalars, histograms)


def test_an_hour_boundary_sample_that_comes_twice_counts_once():
    series = {"__name__": "vllm:num_requests_running", "instance": "a", "job": "vllm"}
    values = [[(START + timedelta(seconds=s)).timestamp(), str(s)] for s in (0, 2)]

    def handler(request):
        if request.url.path.endswith("values"):
            return httpx.Response(200, json={"status": "success", "data": [series["__name__"]]})
        if request.url.path.endswith("metadata"):
            return httpx.Response(404)
        result = [{"metric": series, "values": values}]
        return httpx.Response(
            200, json={"status": "success", "data": {"resultType": "matrix", "result": result}}
        )

    with answering(handler) as client:
        rows = read_prometheus(Prometheus(client, pause=lambda seconds: None), PART)
    assert rows.samples.get_column("value").to_list() == [0.0, 2.0]
