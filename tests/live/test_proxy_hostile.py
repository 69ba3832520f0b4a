"""The proxy between upstreams and clients that misbehave: it shows no secret, and it ends."""

import gzip
import socket
import threading
from contextlib import contextmanager

import pytest
from serving import serving

from tests.standin.raw import CHUNKED, chunk, dripping, good, raw_server, saying
from vllm_capacity.live.proxy import ProxyServer, Upstream
from vllm_capacity.sources.http import client

TEXT = b"# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running 3.0\n"
GET = b"GET /metrics HTTP/1.1\r\nHost: x\r\n"
BODY = b"GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n"
NEXT = b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


@contextmanager
def proxying(url, *, seconds=30.0, most=64):
    with client(timeout=seconds) as asking:
        server = ProxyServer(("127.0.0.1", 0), Upstream(asking, url), most_clients=most)
        with serving(server):
            yield server.server_address


def output(address, request):
    """Everything that comes back until the proxy hangs up."""
    with socket.create_connection(address, timeout=60) as connection:
        connection.sendall(request)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def asked(address, path=b"/metrics"):
    return output(address, b"GET %b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" % path)


@pytest.mark.parametrize("path", [b"/metrics", b"/health"])
@pytest.mark.parametrize(
    "upstream",
    [
        pytest.param(saying(b"HTTP/1.1 500 x\r\nContent-Length: 0\r\n\r\n"), id="it fails"),
        pytest.param(saying(b""), id="it hangs up"),
        pytest.param(saying(b"nonsense\r\n\r\n"), id="it is not HTTP"),
        pytest.param(saying(good(b"<html>")), id="no metrics"),
    ],
)
def test_no_client_sees_the_upstreams_password(upstream, path):
    with raw_server(upstream) as url:
        secret = url.replace("http://", "http://me:hunter2@") + "/metrics?token=hunter3"
        with proxying(secret) as address:
            answer = asked(address, path)
    assert b"hunter" not in answer


@pytest.mark.parametrize(
    ("request_bytes", "statuses"),
    [
        pytest.param(
            GET + b"Content-Length: %d\r\n\r\n%b" % (len(BODY), BODY) + NEXT,
            [b"200", b"200"],
            id="a body that looks like a request",
        ),
        pytest.param(
            GET + b"Transfer-Encoding: chunked\r\n\r\n" + chunk(b"GET /health HTTP/1.1\r\n\r\n"),
            [b"400"],
            id="a body in chunks",
        ),
        pytest.param(GET + b"Content-Length: -1\r\n\r\n", [b"400"], id="a negative length"),
        pytest.param(
            GET + b"Content-Length: 0\r\nContent-Length: 5\r\n\r\n", [b"400"], id="two lengths"
        ),
        pytest.param(GET + b"Content-Length: 99999999\r\n\r\n", [b"400"], id="a body too long"),
        pytest.param(
            GET + b"\r\n" + NEXT,
            [b"200", b"200"],
            id="two requests at once",
        ),
    ],
)
def test_one_answer_for_each_request(request_bytes, statuses):
    with raw_server(saying(good(TEXT))) as url, proxying(url) as address:
        answer = output(address, request_bytes)
    assert [part[:3] for part in answer.split(b"HTTP/1.1 ")[1:]] == statuses


def test_connections_are_bounded_before_anything_is_read():
    with raw_server(saying(good(TEXT))) as url, proxying(url, most=2) as address:
        idle = [socket.create_connection(address, timeout=60) for _ in range(2)]
        for connection in idle:  # each gets an answer and keeps its connection
            connection.sendall(GET + b"\r\n")
            assert connection.recv(12) == b"HTTP/1.1 200"
        before = threading.active_count()
        refused = [asked(address) for _ in range(5)]
        assert threading.active_count() <= before  # threads of an earlier test may end meanwhile
        for connection in idle:
            connection.close()
    assert [answer[9:12] for answer in refused] == [b"503"] * 5


@pytest.mark.parametrize(
    "upstream",
    [
        pytest.param(
            dripping(b"HTTP/1.1 200 OK\r\n", b"X: y\r\n", good(TEXT)[17:]), id="headers that drip"
        ),
        pytest.param(
            dripping(
                CHUNKED
                + b"Content-Encoding: gzip\r\n\r\n"
                + chunk(b"\x1f\x8b\x08\0\0\0\0\0\0\xff"),
                chunk(b"\0\0\0\xff\xff"),
                b"",
            ),
            id="gzip of nothing",
        ),
    ],
)
def test_an_upstream_that_drips_is_cut_at_the_deadline(upstream):
    with raw_server(upstream) as url, proxying(url, seconds=0.4) as address:
        answer = asked(address)
    assert (answer[9:12], b"timed out" in answer) == (b"502", True)


def test_an_odd_content_type_of_the_upstream_breaks_no_answer():
    odd = good(TEXT, "Content-Type: text/plain; charset=☃".encode())
    with raw_server(saying(odd)) as url, proxying(url) as address:
        answer = asked(address)
    assert (answer[9:12], b"vllm_num_requests_running 3.0" in answer) == (b"200", True)


def test_a_gzip_stream_cut_by_the_upstream_is_no_whole_answer():
    cut = good(gzip.compress(TEXT * 50)[:-8], b"Content-Encoding: gzip")
    with raw_server(saying(cut)) as url, proxying(url) as address:
        answer = asked(address)
    assert not answer.endswith(b"0\r\n\r\n")


def test_a_client_that_resets_leaves_no_traceback(capfd):
    with raw_server(saying(good(TEXT))) as url, proxying(url) as address:
        for _ in range(3):
            connection = socket.create_connection(address, timeout=60)
            connection.sendall(GET)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            connection.close()
        assert asked(address)[9:12] == b"200"
    assert "Traceback" not in capfd.readouterr().err
