"""What an Alertmanager gets: firing and ended alerts, and nothing about unknown ones."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from serving import serving

from vllm_capacity.alerts import RULES, Alert, Observed
from vllm_capacity.errors import CapacityError, InputError, SourceError
from vllm_capacity.live.alertmanager import send_to_alertmanager

NOW = datetime(2026, 11, 27, 6, tzinfo=UTC)
END = datetime(2026, 11, 27, tzinfo=UTC)
OUTCOMES = [
    Alert(RULES[0], "fired", Observed(12.0)),
    Alert(RULES[2], "quiet", Observed(0.1)),
    Alert(RULES[3], "unknown", Observed(None, reason="no samples")),
]


@contextmanager
def alertmanager(*statuses: int, firing: tuple[str, ...] = ()) -> Iterator[tuple[str, list]]:
    """A server that answers with these, one after the other; its URL and what it received."""
    left, received = list(statuses), []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            own = {"service": "vllm-capacity", "cluster": "a"}
            body = json.dumps([{"labels": {"alertname": name, **own}} for name in firing]).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            received.append((self.path, self.headers.get("Authorization"), json.loads(body)))
            self.send_response(left.pop(0))
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            return

    with serving(ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as url:
        yield url, received


def send(url: str, environment: dict[str, str] | None = None) -> None:
    send_to_alertmanager(
        url,
        OUTCOMES,
        labels={"cluster": "a"},
        seen_at=END,
        now=NOW,
        lasts=timedelta(hours=25),
        environment=environment or {},
        pause=lambda seconds: None,
    )


def test_a_quiet_alert_that_never_fired_is_not_sent():
    with alertmanager(200) as (url, received):
        send(url)
    assert [one["labels"]["alertname"] for one in received[0][2]] == ["e2e-p99"]


def test_firing_alerts_last_quiet_ones_end_and_unknown_ones_are_not_sent():
    with alertmanager(200, firing=("kv-cache", "waiting")) as (url, received):
        send(url)
    [(path, _, body)] = received
    assert path == "/api/v2/alerts"
    assert [(one["labels"]["alertname"], one["startsAt"], one["endsAt"]) for one in body] == [
        ("e2e-p99", "2026-11-27T00:00:00Z", "2026-11-28T07:00:00Z"),
        ("kv-cache", "2026-11-27T00:00:00Z", "2026-11-27T06:00:00Z"),
    ]
    assert {one["labels"]["cluster"] for one in body} == {"a"}
    assert body[0]["annotations"]["summary"] == "p99 E2E latency: 12 s; fires above 10 s"


def test_credentials_come_from_the_environment_alone():
    with alertmanager(200) as (url, received):
        send(url, {"ALERTMANAGER_TOKEN": "secret"})
    assert received[0][1] == "Bearer secret"
    assert "secret" not in json.dumps(received[0][2])
    with pytest.raises(InputError, match="ALERTMANAGER_USER"):
        send(url.replace("http://", "http://u:p@"))


def test_a_busy_receiver_is_retried():
    with alertmanager(503, 503, 200) as (url, received):
        send(url)
    assert len(received) == 3


@pytest.mark.parametrize(
    ("status", "says"),
    [
        pytest.param(401, "ALERTMANAGER_TOKEN", id="credentials are wanted"),
        pytest.param(400, "Is it Alertmanager", id="it does not understand"),
    ],
)
def test_a_refusal_is_an_error_of_the_source(status, says):
    with alertmanager(status) as (url, _), pytest.raises(CapacityError, match=says) as received:
        send(url)
    assert type(received.value) is SourceError
