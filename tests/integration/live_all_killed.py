"""vLLM, the Collector and Parseable are each killed (-9) and started again: every way in.

The vLLM is recorded, and knows what it had counted when it was killed (killed_vllm.py): that is the
truth. Parseable is down while the other two are killed, so that everything is held back.
Run by `make test-live`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import numpy as np
import pytest
from real_collector import Collector, collector_binary

from tests.answering import answer
from tests.integration.killed_vllm import KilledVllm, killed_vllm
from tests.integration.real_parseable import ROOT, real_parseable
from tests.integration.real_prometheus import real_prometheus
from tests.integration.ways import INTERVAL_SECONDS, pulled, scraper
from vllm_capacity.facts.metrics import GENERATION_TOKENS, REQUESTS
from vllm_capacity.figures.scrapes import restarts
from vllm_capacity.telemetry.window import Window, open_window
from vllm_capacity.timerange import TimeRange

pytestmark = [pytest.mark.live, pytest.mark.collector]

RECORDING = Path(__file__).parents[1] / "data" / "restart_raw.jsonl.gz"
FIRST_LIFE, SECOND_LIFE = 0, 143  # index of each recorded process' first page
PACE_SECONDS = 2.0  # the recording's scrape interval
WAYS = ("whole", "thinned", "files", "prometheus", "scraped")


@dataclass(frozen=True)
class Capture:
    """Results of the run: the server and its windows, of the whole run and of its later part."""

    vllm: KilledVllm
    windows: dict[str, Window]
    later: dict[str, Window]
    later_asked: datetime


@pytest.fixture(scope="module")
def capture(tmp_path_factory: pytest.TempPathFactory) -> Capture:
    folder = tmp_path_factory.mktemp("killed")
    began = datetime.now(UTC)
    with (
        real_parseable(folder) as parseable,
        killed_vllm(folder, RECORDING, pace_seconds=PACE_SECONDS) as vllm,
        real_prometheus(folder, [vllm.target]) as prometheus,
    ):
        scraping = scraper(vllm.target, folder / "scraped", seconds=185)
        settings = {
            "PARSEABLE_AUTHORIZATION": httpx.BasicAuth(*ROOT)._auth_header,
            "VLLM_SCRAPE_INTERVAL": f"{INTERVAL_SECONDS}s",
        }
        targets = f"[{vllm.target}]"
        collector = Collector(collector_binary(), folder, parseable.url, targets, settings)
        try:
            collector.start()
            time.sleep(40)
            parseable.kill()
            time.sleep(15)
            collector.kill()
            time.sleep(5)
            collector.start()
            time.sleep(20)
            vllm.kill()
            time.sleep(15)
            vllm.start(SECOND_LIFE)
            time.sleep(10)
            parseable.start()
            later_asked = datetime.now(UTC) + timedelta(seconds=5)
            assert scraping.wait(timeout=240) == 0
            ended = datetime.now(UTC)
            ways = [
                pulled(parseable, prometheus, TimeRange(start, ended), folder / name)
                for name, start in (("all", began), ("later", later_asked))
            ]
        finally:
            collector.stop()
            if scraping.poll() is None:
                scraping.kill()
    windows = {**ways[0], "scraped": open_window(folder / "scraped")}
    return Capture(vllm, windows, ways[1], later_asked)


@pytest.mark.parametrize("way", WAYS)
def test_every_way_counts_what_the_server_did_within_what_may_be_lost(
    capture: Capture, way: str, record_property: Callable[[str, object], None]
) -> None:
    result = answer(capture.windows[way])["requests"]
    finished, lost = result["finished"], result["lost"]["high"]
    least, most = _done(capture, REQUESTS, way)
    record_property(
        f"all killed, {way}: requests counted + lost at most, done",
        f"{finished:.0f} + {lost:.0f}, {least:.0f}",
    )
    assert finished <= most
    assert least <= finished + lost


@pytest.mark.parametrize("way", WAYS)
def test_output_tokens_are_the_servers_within_half_a_percent(
    capture: Capture, way: str, record_property: Callable[[str, object], None]
) -> None:
    window = capture.windows[way]
    result = answer(window)["tokens"]
    counted, (least, most) = result["generation"], _done(capture, GENERATION_TOKENS, way)
    record_property(
        f"all killed, {way}: output tokens counted, made", f"{counted:.0f}, {least:.0f}"
    )
    assert counted <= most
    assert least <= counted + result["lost"]["high"]
    [restart] = restarts(window)
    unread = capture.vllm.counted(GENERATION_TOKENS, 0) - np.array(
        [capture.vllm.counted(GENERATION_TOKENS, 0, at=at) for at in _around(restart.before)]
    )
    off = np.maximum(least - unread - counted, counted - (most - unread)) / counted
    assert off.min() <= 0.005


@pytest.mark.parametrize("way", [way for way in WAYS if way != "scraped"])
def test_a_window_soon_after_the_restart_begins_where_it_was_asked_to(
    capture: Capture, way: str
) -> None:
    window, asked = capture.later[way], capture.later_asked
    begins = (window.extent.start - asked).total_seconds()
    assert -60 <= begins <= 3 * INTERVAL_SECONDS if way == "thinned" else 0 <= begins <= 6
    base = capture.vllm.counted(REQUESTS, 1, at=window.extent.start.timestamp() - PACE_SECONDS)
    requests = answer(window)["requests"]
    assert requests["finished"] <= capture.vllm.counted(REQUESTS, 1) - base
    assert requests["lost"] == {"low": 0.0, "high": 0.0, "reason": ""}


@pytest.mark.parametrize("way", WAYS)
def test_the_capacity_interval_contains_what_clients_saw(
    capture: Capture, way: str, record_property: Callable[[str, object], None]
) -> None:
    saturation = answer(capture.windows[way])["saturation"]
    capacity = saturation["capacity_output_tokens_per_second"]
    minute, moment = (_best_rate(capture.vllm, seconds=seconds) for seconds in (60, 10))
    record_property(
        f"all killed, {way}: capacity in tokens/s, best minute, best 10 s that clients saw",
        f"{capacity['low']:.0f} to {capacity['high']}, {minute:.0f}, {moment:.0f}",
    )
    assert 0 < capacity["low"] <= moment
    assert capacity["high"] is None or capacity["high"] >= minute


def test_parseables_server_and_its_files_give_the_same_answer(capture: Capture) -> None:
    over_http, from_files = (answer(capture.windows[name]) for name in ("whole", "files"))
    for one in (over_http, from_files):
        one.pop("window")  # differs by name
    assert over_http == from_files


def _done(capture: Capture, metric: str, way: str) -> tuple[float, float]:
    """What the server counted in the time of a window: by its last scrape, a page may have turned.

    Its counters began at 0 with the server, or a page before the first scrape.
    """
    vllm, extent = capture.vllm, capture.windows[way].extent
    before = vllm.counted(metric, 0, at=extent.start.timestamp() - PACE_SECONDS)
    first = vllm.counted(metric, 0) - before
    least, most = (first + vllm.counted(metric, 1, at=at) for at in _around(extent.end))
    return least, most


def _best_rate(vllm: KilledVllm, *, seconds: float) -> float:
    """The most output tokens per second that a process made over that long."""
    return max(
        (
            vllm.counted(GENERATION_TOKENS, life, at=turned + seconds)
            - vllm.counted(GENERATION_TOKENS, life, at=turned)
        )
        / seconds
        for life in range(len(vllm.lives))
        for turned in vllm.turned(life)
    )


def _around(scraped: datetime) -> tuple[float, float]:
    """The time of a scrape, a little before and after it was stamped."""
    return scraped.timestamp() - 0.1, scraped.timestamp() + 0.5
