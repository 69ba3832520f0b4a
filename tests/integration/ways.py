"""One capture, pulled every way there is: Parseable full, downsampled, by files; Prometheus."""

from __future__ import annotations

import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx

from tests.integration.real_parseable import ROOT, RealParseable, wait_for
from vllm_capacity.live.pull import pull_files, pull_prometheus, pull_server
from vllm_capacity.sources.parquet import open_store, read_stream
from vllm_capacity.sources.parseable import Parseable
from vllm_capacity.sources.parseable_pull import PullRequest
from vllm_capacity.sources.prometheus import Prometheus
from vllm_capacity.telemetry.window import Window, open_window
from vllm_capacity.timerange import TimeRange

STREAM = "vllm_metrics"
INTERVAL_SECONDS = 2  # the Collector's default
_LONGEST_RETRY_SECONDS = 30  # the Collector's max_interval plus its jitter of up to half


def scraper(target: str, to: Path, *, seconds: float) -> subprocess.Popen[bytes]:
    """Our own scraper, beside the Collector and at its pace."""
    command = [sys.executable, "-m", "vllm_capacity", "scrape", f"http://{target}/metrics"]
    options = ["--every", f"{INTERVAL_SECONDS}s", "--for", f"{seconds:.0f}s", "--to", str(to)]
    return subprocess.Popen([*command, *options])


def pulled(
    parseable: RealParseable, prometheus: str, time_range: TimeRange, folder: Path
) -> dict[str, Window]:
    """The windows `whole`, `thinned`, `files` and `prometheus`, once all has arrived."""
    with httpx.Client(base_url=parseable.url, auth=ROOT, timeout=120) as client:
        server = Parseable(client)
        wait_for(lambda: _has_all(server, time_range), seconds=300)
        for name, is_downsampled in (("whole", False), ("thinned", True)):
            request = PullRequest(STREAM, time_range, is_downsampled=is_downsampled)
            pull_server(server, request, folder / name, now=time_range.end)
    whole = open_window(folder / "whole")
    wait_for(lambda: _are_flushed(parseable.store, time_range, whole), seconds=240)
    pull_files(str(parseable.store), STREAM, folder / "files", time_range)
    with httpx.Client(base_url=prometheus, timeout=120) as client:
        pull_prometheus(Prometheus(client), time_range, folder / "prometheus")
    names = ("whole", "thinned", "files", "prometheus")
    return {name: open_window(folder / name) for name in names}


def _has_all(server: Parseable, time_range: TimeRange) -> bool:
    """Whether what was sampled up to the end has arrived: the newest, and no more of the older."""

    def result() -> tuple[str, int]:
        sql = f"select max(time_unix_nano) as newest, count(1) as n from {STREAM}"
        sql += f" where time_unix_nano < '{time_range.end:%Y-%m-%dT%H:%M:%S}'"
        first = server.query(sql, TimeRange(time_range.start, datetime.now(UTC)))[0]
        return str(first["newest"]), int(first["n"])

    newest, count = result()
    nearly = time_range.end - timedelta(seconds=2 * INTERVAL_SECONDS)
    if newest < f"{nearly:%Y-%m-%dT%H:%M:%S}":
        return False
    time.sleep(_LONGEST_RETRY_SECONDS)
    return result() == (newest, count)


def _are_flushed(store: Path, time_range: TimeRange, whole: Window) -> bool:
    rows = read_stream(open_store(str(store)), STREAM, time_range)
    return rows.samples.height == whole.sql("select count(*) as n from samples").item()
