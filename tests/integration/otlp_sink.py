"""Takes OTLP/JSON as Parseable does and keeps every request as a file, so that it can be killed.

Run as a process of its own: python otlp_sink.py PORT FOLDER. A request is written down before it is
answered: what was acknowledged to the sender is on disk.
"""

from __future__ import annotations

import gzip
import json
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path


class Sink(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, port: int, folder: Path) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.folder = folder
        self.ordinal = count(len(list(folder.iterdir())))


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Sink

    def do_GET(self) -> None:
        self._answer(200)

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        is_gzip = self.headers.get("Content-Encoding") == "gzip"
        plain = gzip.decompress(raw) if is_gzip else raw
        record = {
            "t": time.time(),
            "path": self.path,
            "headers": {name.lower(): value for name, value in self.headers.items()},
            "size": len(plain),
            "body": json.loads(plain),
        }
        path = self.server.folder / f"{next(self.server.ordinal):05d}.json"
        path.with_suffix(".part").write_text(json.dumps(record))
        path.with_suffix(".part").rename(path)
        self._answer(200)

    def _answer(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        return


if __name__ == "__main__":
    Sink(int(sys.argv[1]), Path(sys.argv[2])).serve_forever()
