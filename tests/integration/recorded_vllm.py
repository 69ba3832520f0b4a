"""A vLLM server's /metrics, played from a recording: each scrape gets the next recorded text."""

from __future__ import annotations

import gzip
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

RECORDING = Path(__file__).parents[1] / "data" / "collector" / "vllm_scrapes.jsonl.gz"


class RecordedVllm:
    """Serves the recording on a loopback port; when it is used up, or `is_down`, answers 503.

    `served` holds the texts that were answered completely, in order.
    """

    def __init__(self, *, scrapes: int | None = None) -> None:
        with gzip.open(RECORDING, "rt") as lines:
            self._texts = [json.loads(line)["text"] for line in lines][:scrapes]
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
        return len(self.served) >= len(self._texts)

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
                    if vllm.is_down or vllm.is_used_up:
                        status, body = 503, b"no more"
                    else:
                        status, body = 200, vllm._texts[len(vllm.served)].encode()
                    self.send_response(status)
                    # what vLLM 0.32 sends, odd version included
                    self.send_header("Content-Type", "text/plain; version=1.0.0; charset=utf-8")
                    self.send_header("Content-Length", str(len(body)))
                    self.send_header("Connection", "close")
                    self.end_headers()
                    try:
                        self.wfile.write(body)
                    except OSError:
                        return  # the scraper was killed: nothing was served
                    if status == 200:
                        vllm.served.append(body.decode())

            def log_message(self, *_: object) -> None:
                return

        return Handler
