"""A vLLM keeps no history: a pull from one is refused, and says what to do instead."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from serving import serving

from vllm_capacity.errors import CapacityError, InputError, SourceError
from vllm_capacity.live.pull import PullOrder, pull_window
from vllm_capacity.timerange import TimeRange

NOW = datetime(2026, 11, 27, tzinfo=UTC)
METRICS = "# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running 1.0\n"
LOGIN = {"PARSEABLE_USER": "u", "PARSEABLE_PASSWORD": "p"}


@pytest.fixture
def server(request) -> Iterator[str]:
    """A server that has /metrics, of this text, and no other page."""

    class Handler(BaseHTTPRequestHandler):
        def respond(self) -> None:
            is_there = self.path == "/metrics"
            body = request.param.encode() if is_there else b"Not Found"
            self.send_response(200 if is_there else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = respond  # noqa: N815

        def log_message(self, *_: object) -> None:
            return

    with serving(ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as url:
        yield url


@pytest.mark.parametrize(
    ("server", "path", "stream", "error", "says"),
    [
        pytest.param(METRICS, "", None, InputError, "is a vLLM server", id="asked as a Prometheus"),
        pytest.param(METRICS, "/metrics", None, InputError, "scrape", id="its page of metrics"),
        pytest.param(METRICS, "", "s", InputError, "Prometheus or Parseable", id="as a Parseable"),
        pytest.param(
            "go_goroutines 1\n", "", None, SourceError, "not answer as Prom", id="another server"
        ),
    ],
    indirect=["server"],
)
def test_a_pull_from_something_that_is_no_store(tmp_path, server, path, stream, error, says):
    order = PullOrder(server + path, stream, TimeRange(NOW - timedelta(hours=1), NOW))
    with pytest.raises(CapacityError, match=says) as result:
        pull_window(order, tmp_path / "w", environment=LOGIN, now=NOW)
    assert type(result.value) is error
    assert not (tmp_path / "w").exists()
