"""Servers of raw bytes on a loopback port: what no HTTP library would send."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

Script = Callable[[socket.socket], None]
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n"


@contextmanager
def raw_server(script: Script) -> Iterator[str]:
    """Its address; every connection is handed to the script once its request has come."""
    listening = socket.create_server(("127.0.0.1", 0), backlog=64)

    def answer(connection: socket.socket) -> None:
        with connection, suppress(OSError):  # the client may leave early
            connection.recv(65536)
            script(connection)

    def accept() -> None:
        with suppress(OSError):  # closed at the end
            while True:
                connection, _ = listening.accept()
                threading.Thread(target=answer, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()


def saying(data: bytes) -> Script:
    """Sends the bytes and hangs up."""
    return lambda connection: connection.sendall(data)


def good(body: bytes, *headers: bytes) -> bytes:
    """A whole answer."""
    lines = [b"HTTP/1.1 200 OK", b"Content-Length: %d" % len(body), *headers, b"", body]
    return b"\r\n".join(lines)


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def dripping(before: bytes, drop: bytes, after: bytes, *, drops: int = 40) -> Script:
    """Sends a drop now and then for two seconds: to whoever waits, a whole and good answer."""

    def script(connection: socket.socket) -> None:
        connection.sendall(before)
        for _ in range(drops):
            connection.sendall(drop)
            time.sleep(0.05)
        connection.sendall(after)

    return script
