"""A vLLM server's /metrics, played from a recording: scrape by scrape, or by the clock."""

from __future__ import annotations

import gzip
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

RECORDING = Path(__file__).parents[1] / "data" / "collector" / "vllm_scrapes.jsonl.gz"


class RecordedVllm:
    """Serves the recording on a loopback port; when it is used up, or `is_down`, answers 503.

    Each scrape gets the next text. With `pace_seconds` the clock turns the pages instead, from the
    first scrape on, so that all who scrape at one time read the same; the last text then stays. An
    empty text was a failed scrape, and is one here. `served` holds the texts that were answered
    completely, in order.
    """

    def __init__(
        self,
        *,
        scrapes: int | None = None,
        recording: Path = RECORDING,
        pace_seconds: float | None = None,
    ) -> None:
        with gzip.open(recording, "rt") as lines:
            self._texts = [json.loads(line)["text"] for line in lines][:scrapes]
        self._pace_seconds = pace_seconds
        self._began: float | None = None
        self.served: list[str] = []
        self.is_down = False
        self._turn = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self._server.server_address[1]}"

    @property
    def is_used_up(self) -> bool:
        return self._page() >= len(self._texts)

    def _page(self) -> int:
        if self._pace_seconds is None:
            return len(self.served)
        if self._began is None:
            return 0
        return int((time.monotonic() - self._began) / self._pace_seconds)

    def _text(self) -> str:
        """What a scrape finds now; empty where it fails."""
        page = self._page()
        if self._pace_seconds is not None:
            self._began = self._began or time.monotonic()
            page = min(page, len(self._texts) - 1)
        return "" if self.is_down or page >= len(self._texts) else self._texts[page]

    def __enter__(self) -> RecordedVllm:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        vllm = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 10  # an idle keep-alive connection must not hold server_close up

            def do_GET(self) -> None:
                with vllm._turn:
                    text = vllm._text()
                    status, body = (200, text.encode()) if text else (503, b"no more")
                    self.send_response(status)
                    # as vLLM 0.32 sends it, unusual version included
                    self.send_header("Content-Type", "text/plain; version=1.0.0; charset=utf-8")
                    self.send_header("Content-Length", str(len(body)))
                    self.send_header("Connection", "close")
                    self.end_headers()
                    try:
                        self.wfile.write(body)
                    except OSError:
                        return  # the scraper was killed: do not count it as served
                    if status == 200:
                        vllm.served.append(body.decode())

            def log_message(self, *_: object) -> None:
                return

        return Handler
