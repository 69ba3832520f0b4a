"""One deadline around an exchange, and answers whole and bounded: on real loopback sockets."""

import gzip
import threading
import zlib

import httpx
import pytest

from tests.standin.raw import CHUNKED, chunk, dripping, good, raw_server, saying
from vllm_capacity.sources.http import client, wire_bytes

TEXT = b"# TYPE a gauge\na 1\n" * 20
ZIPPED = gzip.compress(TEXT)
GZIP = b"Content-Encoding: gzip"
_flushing = zlib.compressobj(wbits=31)
BEGUN = _flushing.compress(b"") + _flushing.flush(zlib.Z_FULL_FLUSH)
NOTHING = b"\x00\x00\x00\xff\xff"  # a block of deflate that holds nothing
REST = _flushing.compress(TEXT) + _flushing.flush()


def answered(url, **settings):
    with client(**settings) as asking:
        return asking.get(url)


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(dripping(b"HTTP/1.1 200 OK\r\n", b"X: y\r\n", good(TEXT)[17:]), id="headers"),
        pytest.param(
            dripping(b"HTTP/1.1 200 OK\r\nContent-Length: 40\r\n\r\n", b"#", b""), id="a body"
        ),
        pytest.param(
            dripping(CHUNKED + b"\r\n", chunk(b"# a\n"), chunk(b"")), id="a body in chunks"
        ),
        pytest.param(
            dripping(
                CHUNKED + GZIP + b"\r\n\r\n" + chunk(BEGUN),
                chunk(NOTHING),
                chunk(REST) + chunk(b""),
            ),
            id="gzip blocks that hold nothing",
        ),
        pytest.param(
            dripping(b"", b"HTTP/1.1 100 Continue\r\n\r\n", good(TEXT)), id="answers to wait for"
        ),
    ],
)
def test_a_dripping_answer_is_cut_at_the_deadline(script):
    with raw_server(script) as url, pytest.raises(httpx.ReadTimeout):
        answered(url, timeout=0.3)


def test_a_deadline_holds_over_redirects():
    answer = b"HTTP/1.1 302 x\r\nLocation: /again\r\nContent-Length: 0\r\n\r\n"
    with (
        raw_server(saying(answer)) as url,
        client(timeout=0.3, follow_redirects=True) as asking,
    ):
        asking.max_redirects = 1_000_000
        with pytest.raises(httpx.TimeoutException):
            asking.get(url)


def test_waiting_can_be_stopped():
    stop, asked = threading.Event(), threading.Event()

    def silent(connection):
        asked.set()
        stop.wait(60)
        threading.Event().wait(60)

    def tell():
        asked.wait(60)
        stop.set()

    threading.Thread(target=tell, daemon=True).start()
    with raw_server(silent) as url, pytest.raises(httpx.ReadError, match="stopped"):
        answered(url, timeout=50.0, stop=stop)


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(good(TEXT), id="plain"),
        pytest.param(good(ZIPPED, GZIP), id="gzip"),
        pytest.param(good(gzip.compress(TEXT[:9]) + gzip.compress(TEXT[9:]), GZIP), id="members"),
        pytest.param(CHUNKED + b"\r\n" + chunk(TEXT) + chunk(b""), id="chunks"),
        pytest.param(good(TEXT, b"Content-Type: text/plain; charset=rot13"), id="an odd charset"),
        pytest.param(good(TEXT, b"Set-Cookie: =;;a; expires=never"), id="an odd cookie"),
    ],
)
def test_a_complete_answer_is_accepted(answer):
    with raw_server(saying(answer)) as url:
        found = answered(url)
    assert (found.content, found.text) == (TEXT, TEXT.decode())


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        pytest.param(good(ZIPPED[:-8], GZIP), "gzip stream is cut", id="gzip without its checksum"),
        pytest.param(good(ZIPPED[:-20], GZIP), "gzip stream is cut", id="gzip cut short"),
        pytest.param(good(ZIPPED[:-8] + bytes(8), GZIP), "gzip stream is dam", id="a checksum off"),
        pytest.param(good(ZIPPED + b"rest", GZIP), "gzip stream is dam", id="bytes behind gzip"),
        pytest.param(good(TEXT, GZIP), "gzip stream is damaged", id="no gzip at all"),
        pytest.param(
            good(gzip.compress(ZIPPED), GZIP + b", gzip"), "was not asked for", id="gzip in gzip"
        ),
        pytest.param(good(TEXT)[:-5], "without sending complete", id="shorter than its length"),
        pytest.param(CHUNKED + b"\r\n" + chunk(TEXT), "without sending comp", id="no last chunk"),
        pytest.param(good(gzip.compress(bytes(9_000_000)), GZIP), "larger than", id="a bomb"),
        pytest.param(good(b"a" * 5_000_000), "larger than", id="a large body"),
        pytest.param(b"SSH-2.0\r\n\r\n", "illegal status line", id="another protocol"),
    ],
)
def test_an_answer_that_is_not_whole_is_an_error(answer, says):
    with (
        raw_server(saying(answer)) as url,
        pytest.raises(httpx.TransportError, match=says),
    ):
        answered(url, most_bytes=4_000_000)


@pytest.mark.parametrize("follow", [True, False], ids=["followed", "not followed"])
@pytest.mark.parametrize(
    "target", ["http://xn--/", "javascript:alert(1)", "http://[::1", "file:///etc/passwd"]
)
def test_a_redirect_to_an_invalid_url_is_an_error(target, follow):
    answer = f"HTTP/1.1 302 x\r\nLocation: {target}\r\nContent-Length: 0\r\n\r\n".encode()
    with (
        raw_server(saying(answer)) as url,
        pytest.raises(httpx.RemoteProtocolError, match="redirects to something that is not a URL"),
    ):
        answered(url, follow_redirects=follow)


def test_a_redirect_to_an_invalid_host_is_an_error():
    answer = b"HTTP/1.1 302 x\r\nLocation: http://.../\r\nContent-Length: 0\r\n\r\n"
    with (
        raw_server(saying(answer)) as url,
        pytest.raises(httpx.ConnectError, match="no such host"),
    ):
        answered(url, follow_redirects=True)


def test_the_bytes_of_the_wire_are_counted_as_they_came():
    with raw_server(saying(good(ZIPPED, GZIP))) as url:
        assert wire_bytes(answered(url)) == len(ZIPPED)


def test_the_proxy_of_the_environment_is_used(monkeypatch):
    def forwarding(connection):
        connection.sendall(good(b"by the proxy\n"))

    with raw_server(forwarding) as url:
        monkeypatch.setenv("http_proxy", url)
        monkeypatch.setenv("no_proxy", "elsewhere.test")
        assert answered("http://vllm.test/metrics").text == "by the proxy\n"
