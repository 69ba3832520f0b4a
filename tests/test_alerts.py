"""Which alerts an answer fires: table first, the ugly rows included."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from tests.long_window import FULL_TOKENS_PER_SECOND, TOKENS_PER_REQUEST, long_window
from tests.render.answer_by_hand import answer as made
from tests.render.answer_by_hand import estimate, finding, unknown
from vllm_capacity.alerts import (
    RULES,
    Observed,
    Watched,
    alerts,
    days_until_full,
    watched,
    with_thresholds,
)
from vllm_capacity.answer import Answer
from vllm_capacity.assumptions import Assumptions, Slo, pricing
from vllm_capacity.errors import InputError
from vllm_capacity.estimate import Estimate
from vllm_capacity.figures.gauges import Gauge
from vllm_capacity.figures.latency import Quantile
from vllm_capacity.figures.losses import Lost
from vllm_capacity.telemetry.window import Window, open_window
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
    assert waiting.sentence == "mean requests waiting: 61.5 requests; fires above 50 requests"


def test_a_bound_is_labelled_as_one() -> None:
    [slow] = [a for a in alerts(answer(e2e_p99=(None, 60.0))) if a.rule.name == "e2e-p99"]
    assert slow.sentence == "p99 E2E latency: more than 60 s; fires above 10 s"


def test_thresholds_can_be_moved() -> None:
    fired = alerts(answer(waiting=5.0), with_thresholds({"waiting": 4.0}))
    assert [a.rule.name for a in fired if a.state == "fired"] == ["waiting"]


def test_an_unknown_alert_lists_the_existing_ones() -> None:
    with pytest.raises(InputError, match="No alert is called 'wating'; there are e2e-p99"):
        with_thresholds({"wating": 4.0})


PARSEABLES = ("e2e-p99", "ttft-p95", "kv-cache", "waiting", "failures", "no-data")


def test_the_guides_five_and_absence() -> None:
    assert [(r.name, r.above) for r in RULES if r.name in PARSEABLES] == [
        ("e2e-p99", 10.0),
        ("ttft-p95", 5.0),
        ("kv-cache", 0.9),
        ("waiting", 50.0),
        ("failures", 0.0),
        ("no-data", 0.0),
    ]


def at_least(low: float) -> Estimate:
    return Estimate.at_least(low, reason="seen")


def states(seen: Watched, **thresholds: Any) -> dict[str, str]:
    rules = [rule for rule in with_thresholds(**thresholds) if rule.name not in PARSEABLES]
    return {one.rule.name: one.state for one in alerts(seen, rules)}


MONEY = {"above": {"cost": 2.0, "idle-cost": 48.0}, "below": {"headroom": 0.2}}


@pytest.mark.parametrize(
    ("cost", "idle", "room", "expected"),
    [
        pytest.param(estimate(1.9), estimate(1.0), estimate(0.3), ["quiet"] * 3, id="all is well"),
        pytest.param(
            estimate(2.1), estimate(2.1), estimate(0.19), ["fired"] * 3, id="beyond each threshold"
        ),
        pytest.param(
            unknown(), unknown(), unknown(), ["unknown"] * 3, id="what is not known is not quiet"
        ),
        pytest.param(
            at_least(3.0), at_least(2.5), at_least(0.5), ["fired", "fired", "quiet"], id="at least"
        ),
        pytest.param(
            Estimate.at_most(1.0, reason="seen"),
            Estimate.at_most(1.0, reason="seen"),
            Estimate.at_most(0.1, reason="seen"),
            ["quiet", "quiet", "fired"],
            id="at most",
        ),
        pytest.param(
            at_least(1.0),
            at_least(1.0),
            at_least(0.1),
            ["unknown"] * 3,
            id="bounds that do not reach the thresholds decide nothing",
        ),
    ],
)
def test_rules_on_cost_and_headroom(
    cost: Estimate, idle: Estimate, room: Estimate, expected: list[str]
) -> None:
    given = made(
        cost__usd_per_million_output_tokens=cost,
        cost__idle_usd=idle,
        saturation__headroom_ratio=room,
        window__hours=1.0,
    )
    found = states(Watched(given), **MONEY)
    assert [found["cost"], found["idle-cost"], found["headroom"]] == expected


def test_a_rule_without_a_threshold_is_not_evaluated() -> None:
    assert states(Watched(made()), above={}) == {}


def burning(*met: float | None) -> Watched:
    """Attainments of the last 1 h, 5 min, 6 h and 30 min; None where the window is shorter."""
    seconds = dict(zip((3600, 300, 21600, 1800), met, strict=True))

    def ending(stretch: float) -> Answer | None:
        share = seconds[int(stretch)]
        return None if share is None else made(slo__ttft_attainment=estimate(share))

    return Watched(made(), Slo(ttft_p95_seconds=2.0), ending)


@pytest.mark.parametrize(
    ("met", "expected"),
    [
        pytest.param((0.96, 0.96, 0.96, 0.96), ["quiet", "quiet"], id="the target is met"),
        pytest.param((0.2, 0.2, 0.9, 0.2), ["fired", "quiet"], id="an hour burns, not six"),
        pytest.param((0.2, 0.99, 0.6, 0.99), ["quiet", "quiet"], id="it is over"),
        pytest.param((0.6, 0.2, 0.6, 0.5), ["quiet", "fired"], id="slowly, for six hours"),
        pytest.param((0.2, 0.2, None, 0.2), ["fired", "unknown"], id="a window of two hours"),
    ],
)
def test_burn_rates_of_a_target_are_those_of_two_stretches(
    met: tuple[float | None, ...], expected: list[str]
) -> None:
    found = states(burning(*met), above={})
    assert list(found) == ["ttft-burn-1h", "ttft-burn-6h"], "no ITL target, no rule about it"
    assert list(found.values()) == expected


@pytest.mark.parametrize(
    ("met", "expected", "says"),
    [
        pytest.param((0.0, 0.2), "fired", "more than 16 ×", id="even the fewest misses are many"),
        pytest.param((0.2, 0.9), "unknown", "may be, between 2 and 16 ×", id="perhaps"),
        pytest.param((0.4, 0.9), "quiet", "at most 12 ×", id="even the most misses are few"),
    ],
)
def test_a_target_between_two_edges_burns_for_sure_or_perhaps(
    met: tuple[float, float], expected: str, says: str
) -> None:
    low, high = met
    share = Estimate.between(low, (low + high) / 2, high, "which lies between two bucket edges")
    given = made(slo__ttft_attainment=share)
    burning = Watched(given, Slo(ttft_p95_seconds=2.0), lambda seconds: given)
    found = next(each for each in alerts(burning) if each.rule.name == "ttft-burn-1h")
    assert (found.state, says in found.sentence) == (expected, True), found.sentence


@pytest.mark.parametrize(
    ("within", "whole", "expected"),
    [
        pytest.param(estimate(0.1), estimate(0.5), "fired", id="the targets leave less room"),
        pytest.param(unknown(), estimate(0.1), "fired", id="they cannot leave more"),
        pytest.param(unknown(), estimate(0.5), "unknown", id="how much less is not known"),
        pytest.param(unknown(), at_least(0.5), "unknown", id="nor from a bound of the whole"),
    ],
)
def test_headroom_within_targets_is_no_more_than_that_of_the_capacity(
    within: Estimate, whole: Estimate, expected: str
) -> None:
    served = made().throughput.output_tokens_per_second
    assert served is not None
    held = within if within.mid is None else estimate(served / (1 - within.mid))
    given = made(slo__throughput_output_tokens_per_second=held, saturation__headroom_ratio=whole)
    found = states(Watched(given, Slo(ttft_p95_seconds=2.0)), above={}, below={"headroom": 0.2})
    assert found["headroom"] == expected


def test_growth_is_against_the_time_before_at_the_same_load(examples: Path, sweep: Window) -> None:
    two_days = open_window(examples / "fleet-two-models")
    seen = watched(two_days, Assumptions(pricing(2.0)), over_seconds=2 * 3600)
    growth = seen.growth()
    assert growth.value is None, "it is within noise, and decides by its bounds only"
    assert growth.exceeds is not None
    assert growth.exceeds <= 1.0 <= (growth.at_most or 0.0)
    alone = watched(sweep, Assumptions(pricing(2.0)), over_seconds=0.6 * sweep.extent.seconds)
    assert "does not include" in alone.growth().reason


def test_days_until_it_is_full_are_no_more_than_those_at_the_true_growth(tmp_path: Path) -> None:
    window = long_window(tmp_path / "w", days=22, scale=0.5, weekly=1.25, every_minutes=5)
    found = watched(window, Assumptions(), over_seconds=None).days_left()
    last_peak = 0.5 * 1.25 ** (21.5 / 7) * 160 * TOKENS_PER_REQUEST / 60
    true = 7 * math.log(FULL_TOKENS_PER_SECOND / last_peak) / math.log(1.25)
    assert found.exceeds is not None
    assert found.exceeds <= true


@pytest.mark.parametrize(
    ("room", "growth", "expected"),
    [
        pytest.param(estimate(4.0), estimate(1.0), (10.5, 7.0, 14.0), id="doubled each week"),
        pytest.param(
            Estimate.known(2.0, 4.0, 8.0, "seen"),
            Estimate.known(0.0, 1.0, 3.0, "seen"),
            (10.5, 0.0, None),
            id="at the least growth, never",
        ),
        pytest.param(estimate(0.9), estimate(0.1), (0.0, 0.0, 0.0), id="it is full already"),
        pytest.param(estimate(0.9), estimate(-0.1), (0.0, 0.0, 0.0), id="full, though it falls"),
        pytest.param(estimate(4.0), estimate(-0.1), (None, None, None), id="the load falls"),
        pytest.param(at_least(4.0), estimate(1.0), (None, 7.0, None), id="room for at least that"),
        pytest.param(unknown(), estimate(1.0), (None, None, None), id="a capacity not known"),
    ],
)
def test_days_are_calculated_from_room_and_growth(
    room: Estimate, growth: Estimate, expected: tuple[float | None, ...]
) -> None:
    found = days_until_full(room, growth)
    assert (found.value, found.exceeds, found.at_most) == pytest.approx(expected)


def test_too_short_a_window_says_how_long_it_would_have_to_be(sweep: Window) -> None:
    found = watched(sweep, Assumptions(), over_seconds=None).days_left()
    assert found == Observed(None, reason=found.reason)
    assert "fewer than 21" in found.reason


def test_a_threshold_on_the_wrong_side_is_reported() -> None:
    with pytest.raises(InputError, match="'headroom' fires below its threshold: --below"):
        with_thresholds({"headroom": 0.2})
