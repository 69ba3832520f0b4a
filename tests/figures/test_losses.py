"""Unscraped counts: the truth is between the count and its bound."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from tests.telemetry.served import REQUESTS, T0, Process, process, scraped
from vllm_capacity.analysis import Analysis
from vllm_capacity.figures import losses, scrapes, traffic
from vllm_capacity.record import plain
from vllm_capacity.telemetry.store import write_window
from vllm_capacity.telemetry.window import open_window
from vllm_capacity.timerange import TimeRange

END = 1200.0


def at(seconds):
    return datetime.fromtimestamp(T0, UTC) + timedelta(seconds=seconds)


def window_of(tmp_path, addresses, grids, **settings):
    return open_window(write_window(tmp_path / "w", scraped(addresses, grids, **settings), {}))


def lost_of(window, time_range=None):
    time_range = time_range or window.extent
    attempts = scrapes.attempts(window, end=time_range.end)
    return losses.losses(
        window,
        time_range=time_range,
        attempts=attempts,
        restarts=scrapes.restarts(window, time_range=time_range),
        outages=scrapes.outages(window, time_range=time_range, attempts=attempts),
    )


def counted(window):
    rows = traffic.counter_increases(window, [REQUESTS], time_range=window.extent)
    return traffic.total(rows, REQUESTS)


def grid(rng, every, end=END, gap=(0.0, 0.0)):
    """Scrape times with jitter, none inside the gap."""
    times = np.arange(0.0, end, every) + rng.uniform(
        0.0, 0.1 * every, len(np.arange(0, end, every))
    )
    return [float(t) for t in times if not gap[0] < t < gap[1]]


def restart_in_a_gap(rng, every):
    """Fewer requests before than after, so that counters are overtaken in the gap."""
    since = float(rng.uniform(200, 500))
    until = since + float(rng.uniform(every, 10 * every))
    death = since + float(rng.uniform(0, 0.7)) * (until - since)
    pods = [
        process(rng, -100, death, float(rng.uniform(0.1, 1))),
        process(rng, death + 3, END + 100, float(rng.uniform(1, 6))),
    ]
    return {"a": pods}, {"a": grid(rng, every, gap=(since, until))}


def burst_before_a_crash(rng, every):
    death = float(rng.uniform(300, 900))
    burst = (death - float(rng.uniform(1, 30)), death, float(rng.uniform(5, 40)))
    pods = [
        process(rng, -100, death, float(rng.uniform(0.2, 2)), bursts=[burst]),
        process(rng, death + float(rng.uniform(2, 60)), END + 100, 1.0),
    ]
    return {"a": pods}, {"a": grid(rng, every)}


def restart_after_the_first_scrape(rng, every):
    death = float(rng.uniform(0.2, 0.9)) * every
    pods = [process(rng, -500, death, 3.0), process(rng, death + 2, END + 100, 3.0)]
    return {"a": pods}, {"a": grid(rng, every)}


def dead_for_good(rng, every):
    death = float(rng.uniform(300, END - 20))
    burst = (death - 20, death, float(rng.uniform(0, 20)))
    return {"a": [process(rng, -500, death, 2.0, bursts=[burst])]}, {"a": grid(rng, every)}


def replaced_by_another_pod(rng, every):
    death = float(rng.uniform(300, 900))
    old = process(rng, -500, death, float(rng.uniform(1, 5)))
    new = process(rng, death + float(rng.uniform(-30, 60)), END + 100, float(rng.uniform(1, 5)))
    grids = {
        "old": [t for t in grid(rng, every) if t < death],
        "new": [t for t in grid(rng, every) if t >= new.start + 1],
    }
    return {"old": [old], "new": [new]}, grids


def autoscaled(rng, every):
    born = float(rng.uniform(100, 1000))
    pods = {
        "a": [process(rng, -500, END + 100, 2.0)],
        "b": [process(rng, born, END + 100, float(rng.uniform(1, 6)))],
    }
    return pods, {"a": grid(rng, every), "b": [t for t in grid(rng, every) if t >= born + 1]}


def crash_loop(rng, every):
    pods, start = [], -20.0
    while start < END:
        end = start + float(rng.uniform(20, 300))
        pods.append(process(rng, start, end, 3.0))
        start = end + float(rng.uniform(2, 20))
    return {"a": pods}, {"a": grid(rng, every)}


def finished(addresses: dict[str, list[Process]], grids: dict[str, list[float]]) -> int:
    """What the servers finished in the window, read or not.

    From the first scrape of all (of a process that was there: what it had counted by its own first)
    to the last, or to its end.
    """
    begin = min(times[0] for times in grids.values())
    end = max(times[-1] for times in grids.values())
    whole = 0
    for instance, pods in addresses.items():
        for pod in pods:
            seen = [t for t in grids[instance] if pod.start + 1 <= t < pod.end]
            base = 0 if pod.start >= begin else pod.count(seen[0]) if seen else pod.count(pod.end)
            last = pod.end if pod.end <= end else seen[-1] if seen else pod.start
            whole += max(0, pod.count(last) - base)
    return whole


SCENARIOS = (
    restart_in_a_gap,
    burst_before_a_crash,
    restart_after_the_first_scrape,
    dead_for_good,
    replaced_by_another_pod,
    autoscaled,
    crash_loop,
)


@pytest.mark.parametrize("every", [5.0, 15.0, 60.0])
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda made: made.__name__.replace("_", " "))
def test_what_was_not_counted_is_within_the_bound(tmp_path, scenario, every):
    rng = np.random.default_rng([int(every), SCENARIOS.index(scenario)])
    addresses, grids = scenario(rng, every)
    window = window_of(tmp_path, addresses, grids, jitter=rng)
    missing = finished(addresses, grids) - counted(window)
    assert 0 <= missing <= lost_of(window).requests.high


def dying(tmp_path, *, grids=None):
    """A server that dies at 600 s with requests running, and one that stays."""
    rng = np.random.default_rng(1)
    pods = {
        "dies": [process(rng, -500, 600.0, 4.0)],
        "stays": [process(rng, -500, END + 100, 4.0)],
    }
    times = [float(t) for t in range(0, int(END), 15)]
    return window_of(tmp_path, pods, grids or {"dies": times, "stays": times})


def quality_report(window, check):
    return [f for f in plain(Analysis.of(window).quality) if f["check"] == check]


@pytest.fixture(scope="module")
def dead(tmp_path_factory):
    """The window of a server that dies and is still asked."""
    return dying(tmp_path_factory.mktemp("dead"))


def test_a_server_that_stays_dead_has_a_bound_and_is_named(dead):
    [outage], [stretch] = quality_report(dead, "outage"), lost_of(dead).stretches
    assert (outage["severity"], outage["count"]) == ("warning", 40)
    assert "dies stopped answering" in outage["effect"]
    assert stretch.running > 0
    assert f"{stretch.running:.0f} requests ran and 0 waited at the last" in outage["effect"]
    assert outage["max_effect"]["requests.finished"] == stretch.requests > stretch.running


def test_a_dead_server_is_not_still_scraped(dead):
    assert "still scraped" not in " ".join(f["effect"] for f in quality_report(dead, "series"))


def test_a_pod_no_longer_scraped_is_bounded_by_its_next_scrape(tmp_path):
    times = [float(t) for t in range(0, int(END), 15)]
    window = dying(tmp_path, grids={"dies": [t for t in times if t < 600], "stays": times})
    [stretch] = lost_of(window).stretches
    assert (stretch.why, stretch.start, stretch.end) == ("outage", at(585), at(585 + 2.5 * 15))
    [outage] = quality_report(window, "outage")
    assert outage["severity"] == "info"


def test_a_part_that_ends_within_a_gap_has_lost_nothing(tmp_path):
    rng = np.random.default_rng(2)
    pods = {"a": [process(rng, -500, END + 100, 4.0)]}
    times = [float(t) for t in range(0, int(END), 15) if not 300 < t < 500]
    window = window_of(tmp_path, pods, {"a": times})
    assert lost_of(window, TimeRange(at(0), at(450))).stretches == ()


def test_a_part_that_ends_within_a_restart_is_bounded_to_its_end(tmp_path):
    rng = np.random.default_rng(3)
    pods = {"a": [process(rng, -500, 305.0, 4.0), process(rng, 480.0, END + 100, 4.0)]}
    window = window_of(tmp_path, pods, {"a": [float(t) for t in range(0, int(END), 15)]})
    [stretch] = lost_of(window, TimeRange(at(0), at(400))).stretches
    assert (stretch.why, stretch.start, stretch.end) == ("outage", at(300), at(400))


def test_where_every_process_was_read_to_its_end_nothing_is_lost(tmp_path):
    rng = np.random.default_rng(4)
    pods = {"a": [process(rng, -500, END + 100, 4.0)]}
    window = window_of(tmp_path, pods, {"a": grid(rng, 15.0)})
    assert lost_of(window) == losses.Losses((), "")


def test_without_a_rate_the_quality_report_says_that_the_bound_is_none(tmp_path):
    rng = np.random.default_rng(5)
    pods = {"a": [process(rng, -500, 10.0, 4.0)]}
    window = window_of(tmp_path, pods, {"a": [0.0, 15.0, 30.0, 45.0]})
    [outage] = quality_report(window, "outage")
    assert "an unknown rate, because none was observed; more may have been lost" in outage["effect"]
