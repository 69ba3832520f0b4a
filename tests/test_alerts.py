"""Which alerts an answer fires: table first, the ugly rows included."""

from __future__ import annotations

from typing import Any

import pytest

from tests.render.answer_by_hand import answer as made
from tests.render.answer_by_hand import estimate, finding, unknown
from vllm_capacity.alerts import RULES, alerts, with_thresholds
from vllm_capacity.answer import Answer
from vllm_capacity.errors import InputError
from vllm_capacity.figures.gauges import Gauge
from vllm_capacity.figures.latency import Quantile
from vllm_capacity.figures.losses import Lost
from vllm_capacity.verdicts.quality.evidence import Finding


def answer(**changes: Any) -> Answer:
    """A healthy answer, but for what is changed; `e2e_p99` and `ttft_p95` are (value, lower)."""
    rejected, http_5xx = changes.get("rejected", 0.0), changes.get("http_5xx", 0.0)
    return made(
        latency__e2e_seconds__p99=Quantile(*changes.get("e2e_p99", (4.0, 2.5))),
        latency__ttft_seconds__p95=Quantile(*changes.get("ttft_p95", (1.2, 1.0))),
        kv_cache_ratio=Gauge(changes.get("kv", 0.4), 1.0),
        waiting=Gauge(changes.get("waiting", 0.0), 45.0),
        running=Gauge(changes.get("running", 3.0), 40.0),
        requests__finished=changes.get("finished", 100),
        requests__by_reason=changes.get("by_reason", {"stop": 100}),
        requests__lost=Lost(changes.get("lost", 0), 7),
        failures__rejected=unknown() if rejected is None else estimate(rejected),
        failures__http_5xx_ratio=unknown() if http_5xx is None else estimate(http_5xx),
        quality=changes.get("quality", ()),
    )


def noted(check: str, severity: str = "warning") -> tuple[Finding, ...]:
    return (finding(check, severity),)


SILENT = answer(
    e2e_p99=(None, None), ttft_p95=(None, None), kv=None, waiting=None, running=None, finished=None
)


@pytest.mark.parametrize(
    ("given", "fired", "unknown"),
    [
        pytest.param(answer(), [], [], id="all is well"),
        pytest.param(answer(e2e_p99=(10.5, 10.0)), ["e2e-p99"], [], id="slow at p99"),
        pytest.param(answer(e2e_p99=(10.0, 5.0)), [], [], id="exactly the threshold is not above"),
        pytest.param(
            answer(e2e_p99=(None, 7680.0)), ["e2e-p99"], [], id="overflow bucket: slow for sure"
        ),
        pytest.param(
            answer(e2e_p99=(None, 5.0)), [], ["e2e-p99"], id="beyond a last edge below the limit"
        ),
        pytest.param(answer(ttft_p95=(5.1, 5.0)), ["ttft-p95"], [], id="slow first token"),
        pytest.param(answer(kv=0.91), ["kv-cache"], [], id="full cache"),
        pytest.param(answer(waiting=50.1), ["waiting"], [], id="long queue"),
        pytest.param(
            answer(by_reason={"stop": 9, "error": 1}), ["failures"], [], id="an engine error"
        ),
        pytest.param(
            answer(by_reason={"stop": 9, "abort": 5}),
            [],
            [],
            id="clients that left are no failures",
        ),
        pytest.param(answer(rejected=3.0), ["failures"], [], id="refused at admission"),
        pytest.param(answer(http_5xx=0.01), ["failures"], [], id="only HTTP knows of failures"),
        pytest.param(
            answer(rejected=None, http_5xx=None), [], [], id="without those series: none known"
        ),
        pytest.param(answer(lost=2), ["failures"], [], id="swallowed by a restart for certain"),
        pytest.param(
            SILENT,
            ["no-data"],
            ["e2e-p99", "ttft-p95", "kv-cache", "waiting", "failures"],
            id="silence is an alert of its own and no zero",
        ),
        pytest.param(
            answer(quality=noted("outage")),
            ["no-data"],
            ["failures"],
            id="a server that does not answer any more, beside others that do",
        ),
        pytest.param(
            answer(quality=noted("outage", "info")),
            [],
            ["failures"],
            id="the very last scrape failed, or a pod was taken away: no silence",
        ),
        pytest.param(
            answer(quality=noted("restart")),
            [],
            ["failures"],
            id="what failed in a process that ended is not known to be none",
        ),
        pytest.param(
            answer(rejected=3.0, quality=noted("restart")),
            ["failures"],
            [],
            id="some failed for sure, whatever else did",
        ),
        pytest.param(
            answer(e2e_p99=(None, None), ttft_p95=(None, None)),
            [],
            ["e2e-p99", "ttft-p95"],
            id="idle: latencies unknown, the rest quiet",
        ),
    ],
)
def test_alerts(given: Answer, fired: list[str], unknown: list[str]) -> None:
    outcomes = alerts(given)
    by_state = {
        state: [o.rule.name for o in outcomes if o.state == state] for state in ("fired", "unknown")
    }
    assert by_state == {"fired": fired, "unknown": unknown}


def test_a_sentence_has_its_number_and_its_threshold() -> None:
    [waiting] = [a for a in alerts(answer(waiting=61.5)) if a.rule.name == "waiting"]
    assert waiting.sentence == "mean requests waiting: 61.5 requests; threshold 50 requests"


def test_a_bound_is_said_to_be_one() -> None:
    [slow] = [a for a in alerts(answer(e2e_p99=(None, 60.0))) if a.rule.name == "e2e-p99"]
    assert slow.sentence == "p99 E2E latency: more than 60 s; threshold 10 s"


def test_thresholds_can_be_moved() -> None:
    fired = alerts(answer(waiting=5.0), with_thresholds({"waiting": 4.0}))
    assert [a.rule.name for a in fired if a.state == "fired"] == ["waiting"]


def test_an_unknown_alert_is_named_with_those_there_are() -> None:
    with pytest.raises(InputError, match="No alert is called 'wating'; there are e2e-p99"):
        with_thresholds({"wating": 4.0})


def test_the_guides_five_and_absence() -> None:
    assert [(r.name, r.above) for r in RULES] == [
        ("e2e-p99", 10.0),
        ("ttft-p95", 5.0),
        ("kv-cache", 0.9),
        ("waiting", 50.0),
        ("failures", 0.0),
        ("no-data", 0.0),
    ]
