"""`scrape` against servers that do everything wrong: the others are scraped, and it ends."""

import gzip
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack

import pytest

from tests.answering import answer
from tests.standin.raw import CHUNKED, chunk, good, raw_server, saying
from vllm_capacity.telemetry.window import open_window

TEXT = b'# TYPE vllm:generation_tokens_total counter\nvllm:generation_tokens_total{engine="0"} 7\n'
GZIP = b"Content-Encoding: gzip"
NOTHING = chunk(b"\x00\x00\x00\xff\xff" * 1000)  # empty deflate blocks


def forever(before, drop, seconds=0.0):
    """Sends a drop again and again until the other side has left."""

    def script(connection):
        connection.sendall(before)
        while True:
            connection.sendall(drop)
            threading.Event().wait(seconds)

    return script


HEADERS = forever(b"HTTP/1.1 200 OK\r\n", b"X: y\r\n", 0.02)
EMPTY_GZIP = forever(CHUNKED + GZIP + b"\r\n\r\n" + chunk(gzip.compress(b"")[:10]), NOTHING, 0.001)
SICK = {
    "markup": saying(b"[/red] \x1b[31m x\r\n\r\n"),
    "markup in a status": saying(b"HTTP/1.1 [/red] x\r\n\r\n"),
    "a host that cannot be": saying(b"HTTP/1.1 302 x\r\nLocation: http://.../\r\n\r\n"),
    "no URL": saying(b"HTTP/1.1 302 x\r\nLocation: http://xn--/\r\n\r\n"),
    "headers that drip": HEADERS,
    "gzip of nothing": EMPTY_GZIP,
    "gzip cut short": saying(good(gzip.compress(TEXT)[:-8], GZIP)),
    "a number cut short": saying(good(TEXT[:-1])),
    "no text": saying(good(b"\xff\xfe\x00")),
    "nothing": saying(b""),
}


def start(*args):
    return subprocess.Popen(
        [sys.executable, "-m", "vllm_capacity", "scrape", *map(str, args)],
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(journal):
    for _ in range(1200):
        if journal.exists() and journal.stat().st_size:
            return
        time.sleep(0.05)
    pytest.fail(f"{journal} holds nothing")


def test_no_target_ends_the_scrapes_of_another(tmp_path):
    with ExitStack() as servers:
        sick = [servers.enter_context(raw_server(script)) for script in SICK.values()]
        healthy = servers.enter_context(raw_server(saying(good(TEXT))))
        process = start(*sick, healthy, "--every", "500ms", "--for", "1s", "--to", tmp_path / "w")
        _, output = process.communicate(timeout=60)
    assert (process.returncode, "Traceback" in output, "\x1b" in output) == (0, False, False), (
        output
    )
    ups = open_window(tmp_path / "w").sql(
        "select instance, max(value) as up from samples join series using (series_id) "
        "where metric = 'up' group by instance"
    )
    assert ups.filter(ups["up"] == 1.0)["instance"].to_list() == [healthy.removeprefix("http://")]
    causes = [q for q in answer(open_window(tmp_path / "w"))["quality"] if q["check"] == "failed"]
    assert causes[0]["count"] == 2 * len(SICK)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("sick", [HEADERS, EMPTY_GZIP], ids=["headers", "gzip of nothing"])
def test_a_signal_ends_it_whatever_a_server_does(tmp_path, sick, number):
    asked = threading.Event()

    def script(connection):
        asked.set()
        sick(connection)

    with raw_server(script) as url, raw_server(saying(good(TEXT))) as healthy:
        process = start(healthy, url, "--every", "1h", "--to", tmp_path / "w")
        assert asked.wait(60)
        wait_for(tmp_path / "w.journal")  # the healthy server's scrape was written
        process.send_signal(number)
        try:
            _, output = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 0, output
