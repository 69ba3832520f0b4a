"""A recorded vLLM in a process of its own, which can be killed and started again, its port kept.

Its pages are turned by the clock, and it writes down each one before it is served: so what it had
counted when it was killed is known, whether or not anybody read it. It says that it started when
it did.
"""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.integration.real_collector import eventually, free_port

_STARTED = re.compile(r"^process_start_time_seconds .*$", re.MULTILINE)


@dataclass
class KilledVllm:
    """A server in `folder` that plays `recording`, a page per `pace_seconds`."""

    folder: Path
    recording: Path
    pace_seconds: float
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None
    lives: list[Path] = field(default_factory=list)

    def __post_init__(self) -> None:
        with gzip.open(self.recording, "rt") as lines:
            self.texts = [json.loads(line)["text"] for line in lines]

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self, first: int) -> None:
        """A new process, whose first page is that of the recording."""
        self.lives.append(self.folder / f"pages-{len(self.lives)}")
        numbers = [str(each) for each in (self.port, first, self.pace_seconds)]
        command = [sys.executable, "-m", __name__, str(self.recording), *numbers]
        self.process = subprocess.Popen([*command, str(self.lives[-1])])
        eventually(self.lives[-1].exists, within=30, what="a vLLM that serves its first page")

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait(timeout=10)
        self.process = None

    def counted(self, metric: str, life: int, *, at: float | None = None) -> float:
        """What the process of that life had counted by then (Unix time), or in total."""
        turned = self.turned(life)
        page = max((page for ts, page in turned.items() if at is None or ts <= at), default=None)
        if page is None:
            return 0.0
        return self._value(metric, page)

    def turned(self, life: int) -> dict[float, int]:
        """The pages that process served, by the Unix time from which it did."""
        lines = self.lives[life].read_text().splitlines()
        return {float(ts): int(page) for ts, page in (line.split() for line in lines)}

    def _value(self, metric: str, page: int) -> float:
        values = re.findall(rf"^{metric}(?:\{{[^}}]*\}})? (\S+)$", self.texts[page], re.MULTILINE)
        return sum(map(float, values))


@contextmanager
def killed_vllm(folder: Path, recording: Path, *, pace_seconds: float) -> Iterator[KilledVllm]:
    """The server, started; ended at the end."""
    vllm = KilledVllm(folder, recording, pace_seconds)
    try:
        vllm.start(0)
        yield vllm
    finally:
        vllm.kill()


class _Pages:
    """The page of the moment, each written down before it can be read."""

    def __init__(self, texts: list[str], pace_seconds: float, diary: Path) -> None:
        started = f"process_start_time_seconds {time.time()}"
        self._texts = [_STARTED.sub(started, text) for text in texts]
        self._pace_seconds, self._diary = pace_seconds, diary
        self.text = ""

    def turn(self, first: int) -> None:
        """Go through the pages from the first on; the last one stays."""
        began = time.monotonic()
        with self._diary.open("a") as diary:
            for page in range(first, len(self._texts)):
                diary.write(f"{time.time()} {page}\n")
                diary.flush()
                self.text = self._texts[page]
                behind = began + (page - first + 1) * self._pace_seconds - time.monotonic()
                time.sleep(max(0.0, behind))


def _serve(recording: Path, port: int, first: int, pace_seconds: float, diary: Path) -> None:
    with gzip.open(recording, "rt") as lines:
        texts = [json.loads(line)["text"] for line in lines]
    pages = _Pages(texts, pace_seconds, diary)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = pages.text.encode()
            self.send_response(200 if body else 503)
            self.send_header("Content-Type", "text/plain; version=1.0.0; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    threading.Thread(target=pages.turn, args=(first,), daemon=True).start()
    server.serve_forever()


if __name__ == "__main__":
    _recording, _port, _first, _pace, _diary = sys.argv[1:]
    _serve(Path(_recording), int(_port), int(_first), float(_pace), Path(_diary))
