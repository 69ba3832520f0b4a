"""The alert rules, and which of them an answer fires: latency, KV cache, queue, failures, no data.

"No data" is never read as 0: a rule whose figure is unknown is `unknown`, neither quiet nor fired,
and when there are no samples at all the rule for that fires. The rules are data; Parseable, which
can evaluate three of them itself, is given the same thresholds (live/provision.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from vllm_capacity.errors import InputError

if TYPE_CHECKING:  # what asks for help names the rules, and needs no answer
    from vllm_capacity.answer import Answer

AlertState = Literal["fired", "quiet", "unknown"]


@dataclass(frozen=True)
class Observed:
    """What an answer says of a figure: its value, or what it exceeds, or neither and why."""

    value: float | None
    exceeds: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class AlertRule:
    """A rule: it fires when its figure is above the threshold."""

    name: str
    title: str
    unit: str
    above: float
    observe: Callable[[Answer], Observed]


@dataclass(frozen=True)
class Alert:
    """A rule's outcome on one answer."""

    rule: AlertRule
    state: AlertState
    observed: Observed

    @property
    def sentence(self) -> str:
        """The outcome in words, with its number and its threshold."""
        rule, observed = self.rule, self.observed
        limit = f"{rule.above:g} {rule.unit}".rstrip()
        if self.state == "unknown":
            return f"{rule.title}: unknown ({observed.reason}); threshold {limit}"
        if observed.value is None:
            return f"{rule.title}: more than {observed.exceeds:g} {rule.unit}; threshold {limit}"
        return f"{rule.title}: {observed.value:g} {rule.unit}".rstrip() + f"; threshold {limit}"

    def as_dict(self) -> dict[str, Any]:
        """The keys of `vllm-capacity alerts --json`; null where unknown."""
        return {
            "alert": self.rule.name,
            "state": self.state,
            "value": self.observed.value,
            "exceeds": self.observed.exceeds,
            "above": self.rule.above,
            "unit": self.rule.unit,
            "sentence": self.sentence,
        }


def _quantile(metric: str, quantile: str) -> Callable[[Answer], Observed]:
    def observe(answer: Answer) -> Observed:
        figure = getattr(getattr(answer.latency, metric), quantile)
        value, lower = figure.value, figure.lower
        if value is not None or lower is None:
            return Observed(value, reason="nothing was observed")
        return Observed(None, lower, f"beyond the last bucket's edge, {lower:g} s")

    return observe


def _mean(gauge: str) -> Callable[[Answer], Observed]:
    def observe(answer: Answer) -> Observed:
        return Observed(getattr(answer, gauge).mean, reason="no samples")

    return observe


def _failures(answer: Answer) -> Observed:
    """Requests that certainly failed: engine errors, rejections, and those lost in restarts.

    HTTP 5xx answers are known as a share only, and may be some of these: alone they exceed 0. Where
    none is known, but a process ended, it is unknown: no scrape saw what failed in it by then.
    """
    requests, seen = answer.requests, answer.failures
    if requests.finished is None:
        return Observed(None, reason="the server exports no finished requests")
    errors = requests.by_reason.get("error", 0.0)
    total = float(errors + (seen.rejected.mid or 0.0) + (requests.lost.low or 0.0))
    if not total and (seen.http_5xx_ratio.mid or 0.0) > 0:
        return Observed(None, exceeds=0.0)
    if not total and any(one.check in ("restart", "outage") for one in answer.quality):
        return Observed(
            None,
            reason="a server ended, and what failed in it after its last scrape is not counted",
        )
    return Observed(total)


def _silence(answer: Answer) -> Observed:
    """Servers that no longer answer, or 1 where there is no sample of a running engine at all.

    Never unknown. A single scrape that failed at the end does not count (an `info` finding).
    """
    if answer.running.mean is None:
        return Observed(1.0)
    down = [one for one in answer.quality if one.check == "outage" and one.severity != "info"]
    return Observed(float(len(down)))


RULES = (
    AlertRule("e2e-p99", "p99 E2E latency", "s", 10.0, _quantile("e2e_seconds", "p99")),
    AlertRule("ttft-p95", "p95 TTFT", "s", 5.0, _quantile("ttft_seconds", "p95")),
    AlertRule("kv-cache", "mean KV cache usage", "", 0.9, _mean("kv_cache_ratio")),
    AlertRule("waiting", "mean requests waiting", "requests", 50.0, _mean("waiting")),
    AlertRule("failures", "failed requests", "requests", 0.0, _failures),
    AlertRule("no-data", "no data", "", 0.0, _silence),
)


def alerts(answer: Answer, rules: Sequence[AlertRule] = RULES) -> list[Alert]:
    """Every rule's outcome on the answer, in the order of the rules."""
    observations = [(rule, rule.observe(answer)) for rule in rules]
    return [Alert(rule, _state(rule, seen), seen) for rule, seen in observations]


def _state(rule: AlertRule, observed: Observed) -> AlertState:
    """Fired also where the value is not known but is known to exceed the threshold."""
    if observed.value is not None:
        return "fired" if observed.value > rule.above else "quiet"
    if observed.exceeds is not None and observed.exceeds >= rule.above:
        return "fired"
    return "unknown"


def with_thresholds(
    thresholds: Mapping[str, float], rules: Sequence[AlertRule] = RULES
) -> list[AlertRule]:
    """The rules with some thresholds replaced; InputError for a rule that there is not."""
    unknown = sorted(set(thresholds) - {rule.name for rule in rules})
    if unknown:
        raise InputError(
            f"No alert is called {unknown[0]!r}; there are {', '.join(r.name for r in rules)}."
        )
    return [
        AlertRule(r.name, r.title, r.unit, thresholds.get(r.name, r.above), r.observe)
        for r in rules
    ]
