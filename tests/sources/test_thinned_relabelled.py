"""A series continues under other labels in a downsampled pull as in a full one."""

from datetime import timedelta

import pytest

from tests.standin.exports import counter, export, gauge, histogram
from tests.standin.server import Standin
from tests.telemetry.test_relabelled import (
    A_SCRAPE,
    BEFORE,
    BUCKETS,
    COUNT,
    EVERY,
    OTHER_POD,
    SPELLED,
    T0,
    TRUE_REQUESTS,
    USUAL,
    found,
    result,
)
from vllm_capacity.facts.metrics import GENERATION_TOKENS, REQUESTS, TTFT
from vllm_capacity.live.pull import pull_server
from vllm_capacity.sources.parseable import Parseable
from vllm_capacity.sources.parseable_pull import PullRequest
from vllm_capacity.telemetry.window import open_window
from vllm_capacity.timerange import TimeRange

ASKED = TimeRange(T0, T0 + timedelta(seconds=EVERY * COUNT))


def downsampled(folder, spelled, *, born=None):
    """A window pulled by the minute; `born`: the scrape from which on a new child counts."""
    standin = Standin()
    for number in range(COUNT):
        ts, done = T0 + timedelta(seconds=EVERY * number), BEFORE + A_SCRAPE * number
        points = [
            gauge("up", ts, 1.0),
            gauge("process_start_time_seconds", ts, T0.timestamp() - 9000.0),
        ]
        answer = spelled(number)
        for one in [answer] if isinstance(answer, dict) else answer:
            labels = USUAL | one
            whose = {"model_name": labels["model"], "engine": labels["engine"]}
            whose |= dict(labels["labels"])
            points += _counted(ts, done, whose)
            if born is not None and number >= born:
                more = {**whose, "finished_reason": "length"}
                points.append(counter(REQUESTS, ts, 5.0 + number - born, **more))
        body = export(*points, instance="a:1", job="vllm")
        standin.ingest("s", "/v1/metrics", body, arrived=ts)
    with standin, standin.client() as client:
        pull_server(Parseable(client), PullRequest("s", ASKED), folder / "w", now=ASKED.end)
    return open_window(folder / "w")


def _counted(ts, done, whose):
    stopped = {**whose, "finished_reason": "stop"}
    buckets = [done, *[0] * len(BUCKETS)]
    return [
        counter(GENERATION_TOKENS, ts, 100.0 * done, **whose),
        counter(REQUESTS, ts, float(done), **stopped),
        histogram(TTFT, ts, buckets, total=0.2 * done, bounds=list(BUCKETS), **whose),
    ]


@pytest.mark.parametrize(("spelled", "severity"), SPELLED)
def test_a_series_continues_under_other_labels_by_the_minute(tmp_path, spelled, severity):
    window = downsampled(tmp_path, spelled)
    assert found(window) == (TRUE_REQUESTS, TRUE_REQUESTS)
    assert {each for each, _ in result(window)} == {severity}


@pytest.mark.parametrize("born", [30, 33], ids=["with a minute", "within one"])
def test_a_child_that_is_new_counts_from_0_by_the_minute(tmp_path, born):
    window = downsampled(tmp_path, lambda n: {}, born=born)
    assert found(window)[0] == TRUE_REQUESTS + 5 + (COUNT - 1 - born)
    assert result(window) == []


def test_a_child_that_is_new_beside_one_spelled_otherwise_counts_once(tmp_path):
    window = downsampled(tmp_path, lambda n: OTHER_POD if n == 33 else {}, born=36)
    assert found(window)[0] == TRUE_REQUESTS + 5 + (COUNT - 1 - 36)
