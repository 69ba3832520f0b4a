"""A downsampled pull from a Parseable ÷ `select *` of the same rows, over HTTP and gzip.

The server is the tests' stand-in (DataFusion over the recorded exports), so seconds are those of
its SQL engine and of our parsing, and the network is a loopback.
"""

import time
from datetime import UTC, datetime
from pathlib import Path

import httpx

from bench.measure import Ratio, by_turns
from tests.standin.recorded import recorded_server
from vllm_capacity.sources.parseable import Parseable
from vllm_capacity.sources.parseable_pull import PullRequest, pull
from vllm_capacity.sources.parseable_rows import downsampled_rows
from vllm_capacity.timerange import TimeRange

STREAM = "vllm_metrics"
PART = TimeRange(
    datetime(2026, 11, 24, 8, 14, tzinfo=UTC), datetime(2026, 11, 24, 8, 19, tzinfo=UTC)
)


def measure(folder: Path, *, runs: int) -> list[Ratio]:
    with (
        recorded_server() as standin,
        httpx.Client(base_url=standin.url, auth=("root", "root-password"), timeout=60) as client,
    ):
        server = Parseable(client)

        def measured(ask) -> tuple[float, float]:
            bytes_before, begun = server.traffic.wire_bytes, time.perf_counter()
            ask()
            seconds = time.perf_counter() - begun
            return (server.traffic.wire_bytes - bytes_before) / 1000, seconds

        ours, bare = by_turns(
            lambda: measured(lambda: downsampled_rows(pull(server, PullRequest(STREAM, PART)))),
            lambda: measured(lambda: server.query(f"select * from {STREAM}", PART)),
            runs=runs,
        )
    names = ("downsampled pull of 5 minutes", "select * of their rows")
    return [
        Ratio(*names, unit, tuple(one[at] for one in ours), tuple(one[at] for one in bare))
        for at, unit in enumerate(("kB on the wire", "s"))
    ]
