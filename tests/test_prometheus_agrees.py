"""Every counter and quantile of the recorded captures, against what a real Prometheus says of them.

`tests/truth/prometheus_answers_*.json` hold its exact (`anchored`) increases and the
`histogram_quantile` of them, per minute and whole; how they were got is in
`tests/truth/README-prometheus.md`.
"""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from vllm_capacity.facts.metrics import (
    E2E,
    GENERATION_TOKENS,
    ITL,
    PREEMPTIONS,
    PROMPT_TOKENS,
    REQUESTS,
    TTFT,
)
from vllm_capacity.figures import latency, traffic
from vllm_capacity.telemetry.window import open_window

TRUTH = Path(__file__).parent / "truth"
CAPTURES = {
    "sweep": "vllm-sweep",
    "restart": "vllm-restart",
    "two_replicas": "vllm-two-replicas",
}
COUNTERS = {
    "request_success": REQUESTS,
    "prompt_tokens": PROMPT_TOKENS,
    "generation_tokens": GENERATION_TOKENS,
    "num_preemptions": PREEMPTIONS,
}
HISTOGRAMS = {"ttft": TTFT, "itl": ITL, "e2e": E2E}


def spans():
    return list(_spans())


def _spans():
    for capture in CAPTURES:
        answers = json.loads((TRUTH / f"prometheus_answers_{capture}.json").read_text())
        for step in answers["steps"]:
            yield pytest.param(
                capture, step["end"] - 60, step, id=f"{capture}, the minute to {step['end']}"
            )
        whole = answers["whole"]
        start = whole["end"] - whole["range_seconds"]
        yield pytest.param(capture, start, whole, id=f"{capture}, whole")


def part_of(capture, examples, start, answered):
    window = open_window(examples / CAPTURES[capture])
    return window, window.clamp(
        datetime.fromtimestamp(start, UTC), datetime.fromtimestamp(answered["end"], UTC)
    )


@pytest.mark.parametrize(("capture", "start", "answered"), spans())
def test_every_counter_to_the_last_digit(examples, capture, start, answered):
    window, time_range = part_of(capture, examples, start, answered)
    increases = traffic.counter_increases(window, list(COUNTERS.values()), time_range=time_range)
    ours = {}
    for row in increases.iter_rows(named=True):
        reason = json.loads(row["labels"]).get("finished_reason", "")
        ours[row["metric"], reason, row["instance"]] = row["increase"]
    theirs = {}
    for name, metric in COUNTERS.items():
        for key, figures in answered["counters"][name].items():
            labels = [part for part in key.split(",") if part != "_"]
            instance = labels.pop() if labels and labels[-1] in ("r0", "r1") else "vllm"
            theirs[metric, labels[0] if labels else "", instance] = figures["anchored"]
    assert ours == theirs


@pytest.mark.parametrize(("capture", "start", "answered"), spans())
def test_every_quantile_to_a_millionth(examples, capture, start, answered):
    window, time_range = part_of(capture, examples, start, answered)
    increases = latency.histogram_increases(
        window, list(HISTOGRAMS.values()), time_range=time_range
    )
    for name, metric in HISTOGRAMS.items():
        for instance, figures in answered["quantiles"][name]["anchored"].items():
            own = [i for i in increases if i.metric == metric and instance in ("_", i.instance)]
            ours = latency.quantiles(latency.merged(own))
            for quantile in ("p50", "p95", "p99"):
                theirs = figures[quantile]
                expected = None if theirs == "NaN" else pytest.approx(theirs, rel=1e-6)
                assert getattr(ours, quantile).value == expected, (name, instance, quantile)


def test_the_answer_reads_the_same_figures(answer_of):
    answered = json.loads((TRUTH / "prometheus_answers_sweep.json").read_text())["whole"]
    result = answer_of("vllm-sweep")
    anchored = {k: v["anchored"] for k, v in answered["counters"]["request_success"].items()}
    assert result["requests"]["by_reason"] == anchored
    assert (
        result["tokens"]["generation"] == answered["counters"]["generation_tokens"]["_"]["anchored"]
    )


def test_gauges_agree_with_avg_and_max_over_time(answer_of):
    answered = json.loads((TRUTH / "prometheus_answers_sweep.json").read_text())["whole"]["gauges"]
    result = answer_of("vllm-sweep")
    ours = {"running": "running", "waiting": "waiting", "kv_cache_ratio": "kv_cache_usage"}
    for name, theirs in ours.items():
        assert result[name]["max"] == answered[theirs]["_"]["max"]
        # Ours weighs by time, theirs by sample; the scrapes are 2 s apart within 6 ms.
        assert result[name]["mean"] == pytest.approx(answered[theirs]["_"]["avg"], rel=1e-3)
