"""One vLLM through the real chain and past it: four ways in, the same figures out.

A recorded vLLM, restart and all, is played to the real Collector (which sends to a real
Parseable), to the real Prometheus and to our own scraper at once. Meanwhile Parseable is stopped
and started again (after LIVE_OUTAGE_SECONDS, 60 by default) and the Collector is killed.
Run by `make test-live`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from real_collector import Collector, collector_binary
from recorded_vllm import RecordedVllm

from tests.answering import answer
from tests.integration.real_parseable import ROOT, real_parseable
from tests.integration.real_prometheus import real_prometheus
from tests.integration.ways import INTERVAL_SECONDS, pulled, scraper
from vllm_capacity.facts.metrics import E2E, GENERATION_TOKENS, ITL, PROMPT_TOKENS, REQUESTS, TTFT
from vllm_capacity.figures.latency import histogram_increases
from vllm_capacity.figures.traffic import counter_increases, scrape_increases, total
from vllm_capacity.telemetry.window import Window, open_window
from vllm_capacity.timerange import TimeRange

pytestmark = [pytest.mark.live, pytest.mark.collector]

RESTARTS = Path(__file__).parents[1] / "data" / "restart_raw.jsonl.gz"
SCRAPES = 221
OUTAGE_SECONDS = float(os.environ.get("LIVE_OUTAGE_SECONDS", "60"))
PACE_SECONDS = (OUTAGE_SECONDS + 120) / SCRAPES
COUNTERS = [REQUESTS, GENERATION_TOKENS, PROMPT_TOKENS]


@pytest.fixture(scope="module")
def windows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Window]:
    folder = tmp_path_factory.mktemp("four")
    began = datetime.now(UTC)
    with (
        real_parseable(folder) as parseable,
        RecordedVllm(recording=RESTARTS, pace_seconds=PACE_SECONDS) as vllm,
        real_prometheus(folder, [vllm.target]) as prometheus,
    ):
        seconds = SCRAPES * PACE_SECONDS
        scraping = scraper(vllm.target, folder / "scraped", seconds=seconds)
        collector = Collector(
            collector_binary(),
            folder,
            parseable.url,
            f"[{vllm.target}]",
            {
                "PARSEABLE_AUTHORIZATION": httpx.BasicAuth(*ROOT)._auth_header,
                "VLLM_SCRAPE_INTERVAL": f"{INTERVAL_SECONDS}s",
            },
        )
        try:
            collector.start()
            time.sleep(30)
            parseable.stop()
            time.sleep(OUTAGE_SECONDS / 2)
            collector.kill()
            collector.start()
            time.sleep(OUTAGE_SECONDS / 2)
            parseable.start()
            assert scraping.wait(timeout=seconds + 120) == 0
            ended = datetime.now(UTC)
            time_range = TimeRange(began, ended)
            found = pulled(parseable, prometheus, time_range, folder)
        finally:
            collector.stop()
            if scraping.poll() is None:
                scraping.kill()
    return {**found, "scraped": open_window(folder / "scraped")}


@pytest.fixture(scope="module")
def minutes(windows: dict[str, Window]) -> TimeRange:
    """The whole minutes that every window holds."""
    starts = [window.extent.start for window in windows.values()]
    ends = [window.extent.end for window in windows.values()]
    begin = max(starts).replace(second=0, microsecond=0) + timedelta(minutes=1)
    return TimeRange(begin, min(ends).replace(second=0, microsecond=0))


def test_parseables_server_and_its_files_give_the_same_answer(windows: dict[str, Window]) -> None:
    over_http, from_files = (answer(windows[name]) for name in ("whole", "files"))
    for one in (over_http, from_files):
        one.pop("window")  # differs by name
    assert over_http == from_files


def test_a_downsampled_pull_gives_whole_minutes_the_same_figures(
    windows: dict[str, Window], minutes: TimeRange
) -> None:
    whole, downsampled = (windows[name] for name in ("whole", "thinned"))
    counters = [
        counter_increases(one, COUNTERS, time_range=minutes) for one in (whole, downsampled)
    ]
    assert counters[0].height > 5
    assert counters[1].equals(counters[0])
    result = [
        histogram_increases(one, [TTFT, ITL, E2E], time_range=minutes)
        for one in (whole, downsampled)
    ]
    assert result[1] == result[0]


@pytest.mark.parametrize("other", ["prometheus", "scraped"])
def test_two_scrapers_agree_within_one_intervals_increase(
    windows: dict[str, Window], other: str, record_property: Callable[[str, object], None]
) -> None:
    for metric in (GENERATION_TOKENS, PROMPT_TOKENS):
        ours, theirs = (_increase(windows[name], metric) for name in ("whole", other))
        allowed = max(_largest_step(window, metric) for window in windows.values())
        record_property(f"{metric} by the Collector, by {other}", f"{ours:.0f}, {theirs:.0f}")
        assert abs(ours - theirs) <= allowed
        assert ours > 5 * allowed


def _increase(window: Window, metric: str) -> float:
    return total(counter_increases(window, [metric], time_range=window.extent), metric) or 0.0


def _largest_step(window: Window, metric: str) -> float:
    if window.grain == "minute":
        return 0.0
    steps = scrape_increases(window, [metric], time_range=window.extent).get_column("increase")
    return float(steps.max() or 0.0)


def test_nothing_is_lost_but_what_was_never_scraped(
    windows: dict[str, Window], record_property: Callable[[str, object], None]
) -> None:
    """Parseable's outage leaves no gap; the Collector's kill leaves one of seconds."""
    window = windows["whole"]
    attempts = window.sql(
        "select ts from samples join series using (series_id) where metric = 'up'"
    )
    steps = (
        attempts.get_column("ts").unique().sort().diff().drop_nulls().dt.total_milliseconds() / 1e3
    )
    record_property("Parseable was down, s", f"{OUTAGE_SECONDS:.0f}")
    record_property("longest time between two scrapes over it, s", f"{steps.max():.1f}")
    assert (steps > 3 * INTERVAL_SECONDS).sum() <= 1
    assert steps.max() < OUTAGE_SECONDS / 3
    quality_report = answer(window)["quality"]
    assert "restart" in {finding["check"] for finding in quality_report}
