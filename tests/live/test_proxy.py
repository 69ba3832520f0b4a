"""The proxy on real loopback sockets, before upstreams that behave and that do not."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from serving import serving

from tests.live.certificates import self_signed
from vllm_capacity.live.proxy import ProxyServer, Upstream, renamed
from vllm_capacity.sources.http import client

EXPOSITION = b"""\
# HELP vllm:num_requests_running Number of requests: running, of vllm:all.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="a:b\\n:c"} 3.0
# HELP vllm:e2e_request_latency_seconds Seconds.
# TYPE vllm:e2e_request_latency_seconds histogram
vllm:e2e_request_latency_seconds_bucket{le="0.3"} 1.0
vllm:e2e_request_latency_seconds_bucket{le="+Inf"} 2.0
vllm:e2e_request_latency_seconds_sum 4.5
vllm:e2e_request_latency_seconds_count 2.0
# any: comment vllm:stays
# TYPE vllm:generation_tokens_total counter
vllm:generation_tokens_total 12.0
"""
RENAMED = b"""\
# HELP vllm_num_requests_running Number of requests: running, of vllm:all.
# TYPE vllm_num_requests_running gauge
vllm_num_requests_running{engine="0",model_name="a:b\\n:c"} 3.0
# HELP vllm_e2e_request_latency_seconds Seconds.
# TYPE vllm_e2e_request_latency_seconds histogram
vllm_e2e_request_latency_seconds_bucket{le="0.3"} 1.0
vllm_e2e_request_latency_seconds_bucket{le="+Inf"} 2.0
vllm_e2e_request_latency_seconds_sum 4.5
vllm_e2e_request_latency_seconds_count 2.0
# any: comment vllm:stays
# TYPE vllm_generation_tokens_total counter
vllm_generation_tokens_total 12.0
"""
TRUST = ssl.create_default_context()  # created once: the slowest part of a client
Respond = Callable[[BaseHTTPRequestHandler], None]


@contextmanager
def upstream(respond: Respond, context: ssl.SSLContext | None = None) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.close_connection = True
            respond(self)

        def log_message(self, *_: object) -> None:
            return

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 64

        def handle_error(self, *_: object) -> None:
            return  # in some of these tests the client hangs up

    server = Server(("127.0.0.1", 0), Handler)
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    with serving(server) as url:
        yield url


@contextmanager
def proxying(url: str, *, patience_seconds: float = 60.0, most: int = 64) -> Iterator[str]:
    with client(timeout=patience_seconds, verify=TRUST) as asking:
        server = ProxyServer(("127.0.0.1", 0), Upstream(asking, url), most_clients=most)
        with serving(server) as proxy_url:
            yield proxy_url


def get(url: str, timeout: float = 60.0) -> httpx.Response:
    return httpx.get(url, timeout=timeout, verify=TRUST, trust_env=False)


def plain(body: bytes, status: int = 200) -> Respond:
    def respond(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        handler.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return respond


def chunked(pieces: Callable[[], Iterator[bytes]], *, is_complete: bool = True) -> Respond:
    def respond(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "text/plain; version=0.0.4")
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        for piece in pieces():
            handler.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        if is_complete:
            handler.wfile.write(b"0\r\n\r\n")

    return respond


def five_megabytes() -> Iterator[bytes]:
    line = b'vllm:request_success_total{finished_reason="stop",model_name="some:model"} 1234567.0\n'
    for _ in range(64):
        yield line * 920


@pytest.mark.parametrize("size", [1, 2, 7, 64, 100_000])
def test_names_change_everywhere_however_the_text_is_cut(size: int) -> None:
    pieces = (EXPOSITION[at : at + size] for at in range(0, len(EXPOSITION), size))
    assert b"".join(renamed(pieces)) == RENAMED


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(b"", b"", id="nothing"),
        pytest.param(b"a:b 1", b"a_b 1", id="no newline at the end"),
        pytest.param(b"\n\na:b 1\n", b"\n\na_b 1\n", id="empty lines"),
        pytest.param(b"# EOF\n", b"# EOF\n", id="OpenMetrics' end"),
        pytest.param(b":a 1\n", b"_a 1\n", id="a leading colon"),
        pytest.param(
            b'a:b{l="' + b"x:y" * 100_000 + b'"} 1\nc:d 2\n',
            b'a_b{l="' + b"x:y" * 100_000 + b'"} 1\nc_d 2\n',
            id="a line far longer than what is held",
        ),
    ],
)
def test_renamed(text: bytes, expected: bytes) -> None:
    pieces = (text[at : at + 1000] for at in range(0, len(text), 1000))
    assert b"".join(renamed(pieces)) == expected


def test_types_survive() -> None:
    with upstream(plain(EXPOSITION)) as url, proxying(url) as proxy:
        answer = get(f"{proxy}/metrics")
    types = {f.name: f.type for f in text_string_to_metric_families(answer.text)}
    assert types == {
        "vllm_num_requests_running": "gauge",
        "vllm_e2e_request_latency_seconds": "histogram",
        "vllm_generation_tokens": "counter",
    }


def test_the_recording_comes_through_whole_but_for_the_colons() -> None:
    recorded = (
        Path(__file__).parents[1] / "data" / "live" / "metrics_vllm_0.32.0.txt"
    ).read_bytes()
    with upstream(plain(recorded)) as url, proxying(url) as proxy:
        answer = get(f"{proxy}/metrics").text
    before = list(text_string_to_metric_families(recorded.decode()))
    after = list(text_string_to_metric_families(answer))
    assert [(f.name.replace(":", "_"), f.type, f.documentation) for f in before] == [
        (f.name, f.type, f.documentation) for f in after
    ]
    assert [s.value for f in before for s in f.samples] == [
        s.value for f in after for s in f.samples
    ]


def _unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    assert isinstance(port, int)
    return port


def test_a_dead_upstream_is_502_with_the_reason_and_unhealthy() -> None:
    with proxying(f"http://127.0.0.1:{_unused_port()}/metrics") as proxy:
        answer, health = get(f"{proxy}/metrics"), get(f"{proxy}/health")
        own = get(f"{proxy}/proxy/metrics").text
    assert (answer.status_code, health.status_code) == (502, 503)
    assert "refused" in answer.text
    assert "refused" in health.text
    assert 'vllm_capacity_proxy_requests_total{outcome="upstream_failed"} 1.0' in own


@pytest.mark.parametrize(
    ("respond", "reason"),
    [
        pytest.param(plain(b"oops", 500), "answered 500", id="it fails"),
        pytest.param(plain(b"moved", 302), "answered 302", id="it redirects"),
        pytest.param(plain(b""), "empty", id="it is silent"),
        pytest.param(lambda _: time.sleep(3), "timed out", id="it hangs"),
        pytest.param(lambda h: h.wfile.write(b"SSH-2.0\r\n\r\n"), "illegal", id="it is not HTTP"),
    ],
)
def test_an_upstream_error_is_502_with_the_reason(respond: Respond, reason: str) -> None:
    with upstream(respond) as url, proxying(url, patience_seconds=1.0) as proxy:
        answer = get(f"{proxy}/metrics")
    assert (answer.status_code, reason in answer.text) == (502, True), answer.text


def test_a_body_cut_by_the_upstream_is_no_complete_answer() -> None:
    pieces = lambda: iter([EXPOSITION])  # noqa: E731
    with upstream(chunked(pieces, is_complete=False)) as url, proxying(url) as proxy:
        with pytest.raises(httpx.RemoteProtocolError):
            get(f"{proxy}/metrics")
        own = get(f"{proxy}/proxy/metrics").text
    assert 'vllm_capacity_proxy_requests_total{outcome="cut"} 1.0' in own


def test_a_slow_dripping_upstream_is_cut_at_the_deadline() -> None:
    def drip() -> Iterator[bytes]:
        for _ in range(100):
            time.sleep(0.1)
            yield b"a"

    with upstream(chunked(drip)) as url, proxying(url, patience_seconds=0.5) as proxy:
        answer = get(f"{proxy}/metrics")
    assert (answer.status_code, "timed out" in answer.text) == (502, True)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        pytest.param(EXPOSITION, 200, id="metrics"),
        pytest.param(b"<html><body>hello you</body></html>", 503, id="a page of something else"),
    ],
)
def test_health_is_about_metrics(body: bytes, status: int) -> None:
    with upstream(plain(body)) as url, proxying(url) as proxy:
        assert get(f"{proxy}/health").status_code == status


def test_twenty_clients_at_once_get_five_megabytes_each() -> None:
    expected = sum(map(len, five_megabytes()))
    with upstream(chunked(five_megabytes)) as url, proxying(url) as proxy:

        def size(_: int) -> int:
            with httpx.stream("GET", f"{proxy}/metrics", timeout=120, verify=TRUST) as answer:
                return sum(map(len, answer.iter_bytes()))

        with ThreadPoolExecutor(20) as pool:
            sizes = set(pool.map(size, range(20)))
    assert sizes == {expected}


def test_one_slow_client_does_not_hold_the_others_up() -> None:
    gate = threading.Event()

    def respond(handler: BaseHTTPRequestHandler) -> None:
        if "slow" in handler.path:
            gate.wait(60)
        plain(EXPOSITION)(handler)

    with (
        upstream(respond) as url,
        proxying(f"{url}/slow") as slow,
        proxying(url) as quick,
        ThreadPoolExecutor(1) as pool,
    ):
        waiting = pool.submit(get, f"{slow}/metrics")
        assert get(f"{quick}/metrics").status_code == 200
        assert get(f"{slow}/proxy/metrics").status_code == 200
        gate.set()
        waiting.result()


def test_clients_beyond_the_limit_get_a_retry_answer() -> None:
    gate = threading.Event()
    entered = threading.Event()

    def respond(handler: BaseHTTPRequestHandler) -> None:
        entered.set()
        gate.wait(60)
        plain(EXPOSITION)(handler)

    with upstream(respond) as url, proxying(url, most=1) as proxy, ThreadPoolExecutor(1) as pool:
        first = pool.submit(get, f"{proxy}/metrics")
        assert entered.wait(60)
        assert get(f"{proxy}/metrics").status_code == 503
        gate.set()
        first.result()


def test_http_1_0_gets_no_chunks() -> None:
    with upstream(plain(EXPOSITION)) as url, proxying(url) as proxy:
        host, port = proxy.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=5) as connection:
            connection.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answer.partition(b"\r\n\r\n")[2] == RENAMED


def test_an_unknown_path_is_404() -> None:
    with upstream(plain(EXPOSITION)) as url, proxying(url) as proxy:
        assert get(f"{proxy}/").status_code == 404


@pytest.fixture(scope="module")
def untrusted(tmp_path_factory: pytest.TempPathFactory) -> ssl.SSLContext:
    return self_signed(tmp_path_factory.mktemp("tls") / "server.pem")


def test_an_untrusted_certificate_is_refused(untrusted: ssl.SSLContext) -> None:
    with upstream(plain(EXPOSITION), untrusted) as url:
        secure = url.replace("http://", "https://")
        with proxying(secure) as proxy:
            answer = get(f"{proxy}/metrics")
    assert (answer.status_code, "certificate" in answer.text.lower()) == (502, True), answer.text
