"""The alert rules and their evaluation: latency, KV cache, queue, failures, silence, cost.

"No data" is never read as 0: if a figure is unknown, its rule is `unknown`, neither quiet nor
fired, and if there are no samples at all, the rule for that fires. The rules are data; Parseable,
which can evaluate three of them itself, gets the same thresholds (live/provision.py).

Burn rates (https://sre.google/workbook/alerting-on-slos/, "multiwindow, multi-burn-rate"): the
share of requests that miss a target ÷ the allowed share, over a long and a short period.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from msgspec import Struct
from msgspec.structs import replace

from vllm_capacity.errors import InputError

if TYPE_CHECKING:  # slow to import, and --help lists the rules
    from vllm_capacity.analysis import Analysis
    from vllm_capacity.answer import Answer
    from vllm_capacity.assumptions import Assumptions, Slo
    from vllm_capacity.estimate import Estimate
    from vllm_capacity.telemetry.window import Window

AlertState = Literal["fired", "quiet", "unknown"]


class Observed(Struct, frozen=True):
    """What is known of a figure: value, else bounds (`exceeds`, `at_most`), else the reason."""

    value: float | None
    exceeds: float | None = None
    reason: str = ""
    at_most: float | None = None


class Watched(Struct, frozen=True):
    """The input of rules: the answer of a period, and other data of the window for some rules.

    `ending` returns the answer for that many last seconds of the window, None if the window is
    shorter; `growth` the cost of an output token as a ratio to the preceding period, at the same
    load and mix; `days_left` the days until the load exceeds the present replicas.
    """

    answer: Answer
    slo: Slo | None = None
    ending: Callable[[float], Answer | None] = lambda seconds: None
    growth: Callable[[], Observed] = lambda: Observed(None, reason="no earlier time was given")
    days_left: Callable[[], Observed] = lambda: Observed(None, reason="no weeks were given")


class AlertRule(Struct, frozen=True):
    """A rule: it fires if its figure is above the threshold, or below it.

    It is not evaluated without a threshold, or if `observe` returns None: burn rates need a target.
    """

    name: str
    title: str
    unit: str
    threshold: float | None
    observe: Callable[[Watched], Observed | None]
    is_below: bool = False

    @property
    def above(self) -> float | None:
        """The threshold of a rule that fires above it; None for the others."""
        return None if self.is_below else self.threshold

    @property
    def limit(self) -> str:
        """The threshold in words: `above 10 s`."""
        side = "below" if self.is_below else "above"
        return f"{side} {self.threshold:,g} {self.unit}".rstrip()


class Alert(Struct, frozen=True):
    """A rule's outcome on one answer."""

    rule: AlertRule
    state: AlertState
    observed: Observed

    @property
    def sentence(self) -> str:
        """The outcome in words, with its number and its threshold."""
        rule, observed = self.rule, self.observed
        if self.state == "unknown":
            found = f"may be, {self.span}" if self.span else "unknown"
            return f"{rule.title}: {found} ({observed.reason}); fires {rule.limit}"
        return f"{rule.title}: {self.found}; fires {rule.limit}"

    @property
    def span(self) -> str:
        """The bounds of a figure whose alert may fire; empty unless both are known."""
        low, high = self.observed.exceeds, self.observed.at_most
        if low is None or high is None:
            return ""
        return f"between {low:,.4g} and {high:,.4g} {self.rule.unit}".rstrip()

    @property
    def found(self) -> str:
        """The observed value in words, or the bound that decides."""
        unit, seen = self.rule.unit, self.observed
        if seen.value is not None:
            return f"{seen.value:,.4g} {unit}".rstrip()
        is_upper = (self.state == "fired") == self.rule.is_below
        word, bound = ("at most", seen.at_most) if is_upper else ("more than", seen.exceeds)
        return f"{word} {bound:,.4g} {unit}".rstrip()

    def as_dict(self) -> dict[str, Any]:
        """The keys of `vllm-capacity alerts --json`; null where unknown."""
        return {
            "alert": self.rule.name,
            "state": self.state,
            "value": self.observed.value,
            "exceeds": self.observed.exceeds,
            "at_most": self.observed.at_most,
            "above": self.rule.above,
            "below": self.rule.threshold if self.rule.is_below else None,
            "unit": self.rule.unit,
            "sentence": self.sentence,
        }


def _quantile(metric: str, quantile: str) -> Callable[[Watched], Observed]:
    def observe(seen: Watched) -> Observed:
        figure = getattr(getattr(seen.answer.latency, metric), quantile)
        value, lower = figure.value, figure.lower
        if value is not None or lower is None:
            return Observed(value, reason="nothing was observed")
        return Observed(None, lower, f"beyond the last bucket's edge, {lower:g} s")

    return observe


def _mean(gauge: str) -> Callable[[Watched], Observed]:
    def observe(seen: Watched) -> Observed:
        return Observed(getattr(seen.answer, gauge).mean, reason="no samples")

    return observe


def _failures(watched: Watched) -> Observed:
    """Requests that certainly failed: engine errors, rejections, and those lost in restarts.

    HTTP 5xx answers are known only as a share and may overlap with these: alone they only show that
    there were more than 0. If no failure is known but a process ended, the number is unknown: no
    scrape saw what failed after the last one.
    """
    answer = watched.answer
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


def _silence(watched: Watched) -> Observed:
    """The number of servers that stopped responding, or 1 if no running engine has a sample.

    Never unknown. A single failed scrape at the end does not count (an `info` finding).
    """
    if watched.answer.running.mean is None:
        return Observed(1.0)
    down = [
        one for one in watched.answer.quality if one.check == "outage" and one.severity != "info"
    ]
    return Observed(float(len(down)))


def _of(estimate: Estimate, times: float = 1.0) -> Observed:
    """An estimate, converted by a factor to another unit."""
    ends = (estimate.mid, estimate.low, estimate.high)
    mid, low, high = (None if end is None else end * times for end in ends)
    return Observed(mid, low, estimate.reason or "it is not known", high)


def _cost(watched: Watched) -> Observed:
    return _of(watched.answer.cost.usd_per_million_output_tokens)


def _idle(watched: Watched) -> Observed:
    hours = watched.answer.window.hours
    if not hours:
        return Observed(None, reason="the stretch has only one scrape")
    return _of(watched.answer.cost.idle_usd, 24 / hours)


def _headroom(watched: Watched) -> Observed:
    """Headroom within latency targets, at most that of the capacity; the latter without targets."""
    answer = watched.answer
    whole = _of(answer.saturation.headroom_ratio)
    if watched.slo is None or not watched.slo.targets:
        return whole
    within = _of(answer.slo_headroom_ratio)
    return within if within.at_most is not None else replace(within, at_most=whole.at_most)


_OBJECTIVE = 0.95  # a target is a p95: one request in twenty may miss it


def _burn(
    target: str, attainment: str, *stretches_seconds: float
) -> Callable[..., Observed | None]:
    """The burn rate of a target: the minimum over the periods (see the module docstring).

    If a target lies between two bucket edges, only bounds of the misses are known.
    """

    def observe(watched: Watched) -> Observed | None:
        if watched.slo is None or target not in watched.slo.targets:
            return None
        rates, reason = [], ""
        for stretch in stretches_seconds:
            answer = watched.ending(stretch)
            if answer is None:
                return Observed(None, reason=f"the window is shorter than {stretch / 3600:g} h")
            met: Estimate = getattr(answer.slo, attainment)
            if met.low is None or met.high is None:
                return Observed(None, reason=met.reason or "nothing was observed")
            rates.append([(1 - end) / (1 - _OBJECTIVE) for end in (met.high, met.low)])
            reason = reason or ("" if met.low == met.high else met.basis[-1] if met.basis else "")
        low, high = (min(ends) for ends in zip(*rates, strict=True))
        return Observed(low if low == high else None, low, reason, high)

    return observe


_TTFT = partial(_burn, "ttft_p95_seconds", "ttft_attainment")
_ITL = partial(_burn, "itl_p95_seconds", "itl_attainment")

RULES = (
    AlertRule("e2e-p99", "p99 E2E latency", "s", 10.0, _quantile("e2e_seconds", "p99")),
    AlertRule("ttft-p95", "p95 TTFT", "s", 5.0, _quantile("ttft_seconds", "p95")),
    AlertRule("kv-cache", "mean KV cache usage", "", 0.9, _mean("kv_cache_ratio")),
    AlertRule("waiting", "mean requests waiting", "requests", 50.0, _mean("waiting")),
    AlertRule("failures", "failed requests", "requests", 0.0, _failures),
    AlertRule("no-data", "no data", "", 0.0, _silence),
    AlertRule("ttft-burn-1h", "TTFT SLO burn rate, 1 h and 5 min", "×", 14.4, _TTFT(3600, 300)),
    AlertRule("ttft-burn-6h", "TTFT SLO burn rate, 6 h and 30 min", "×", 6.0, _TTFT(21600, 1800)),
    AlertRule("itl-burn-1h", "ITL SLO burn rate, 1 h and 5 min", "×", 14.4, _ITL(3600, 300)),
    AlertRule("itl-burn-6h", "ITL SLO burn rate, 6 h and 30 min", "×", 6.0, _ITL(21600, 1800)),
    AlertRule("cost", "cost per million output tokens", "USD", None, _cost),
    AlertRule("cost-growth", "cost per token, relative to before", "×", None, lambda w: w.growth()),
    AlertRule("idle-cost", "idle cost per day", "USD", None, _idle),
    AlertRule("headroom", "headroom", "", None, _headroom, is_below=True),
    AlertRule(
        "days-left",
        "days until capacity is reached",
        "days",
        None,
        lambda w: w.days_left(),
        is_below=True,
    ),
)


def watched(window: Window, assumptions: Assumptions, *, over_seconds: float | None) -> Watched:
    """The input of rules for the last `over_seconds` of the window; None: for all of it."""
    from vllm_capacity.analysis import Analysis  # slow to import, and not needed for --help

    whole = window.extent

    def ending(seconds: float | None) -> Analysis:
        start = None if seconds is None else whole.end - timedelta(seconds=seconds)
        return Analysis.of(window, start, None, assumptions)

    looked_at = ending(over_seconds)
    return Watched(
        looked_at.answer,
        assumptions.slo,
        lambda seconds: ending(seconds).answer if seconds <= whole.seconds else None,
        partial(_growth, looked_at),
        partial(_days_left, Analysis.of(window, None, None, assumptions)),
    )


def _growth(after: Analysis) -> Observed:
    """The cost of a token at the same load and mix, relative to an equally long period before."""
    from vllm_capacity.comparison import compare

    length, begin = timedelta(seconds=after.time_range.seconds), after.time_range.start
    if after.window.extent.start > begin - length:
        return Observed(
            None, reason="the window does not include an equally long stretch before this one"
        )
    before = type(after).of(after.window, begin - length, begin, after.assumptions)
    change = compare(before, after).cost_at_same_load
    if change.is_more_than_noise is False:  # a bound can still be compared with the threshold
        return replace(_of(change.ratio), value=None, reason="no more than noise")
    return _of(change.ratio)


def _days_left(whole: Analysis) -> Observed:
    """Days until the load exceeds the present replicas, at the weekly growth in the window."""
    from vllm_capacity.plan import plan
    from vllm_capacity.verdicts.demand.weeks import weekly_growth, whole_days

    growth = weekly_growth(whole_days(whole.hours))
    if growth.mid is None:
        return Observed(None, reason=growth.reason)
    start = whole.time_range.end - timedelta(days=_WEEK_DAYS)
    last_week = type(whole).of(whole.window, start, None, whole.assumptions)
    replicas = last_week.answer.window.mean_engines
    held = plan(whole).capacity_output_tokens_per_second.scaled(replicas)
    return days_until_full(held.divided_by(plan(last_week).demand_output_tokens_per_second), growth)


_WEEK_DAYS = 7


def days_until_full(room: Estimate, weekly_growth: Estimate) -> Observed:
    """Days until the load is `room` times that of the last week, at a growth per week (a ratio).

    It is unknown when in that week its load was reached: at its start at the earliest.
    """
    least, usual, most = (
        _weeks_until(*ends)
        for ends in (
            (room.low, weekly_growth.high),
            (room.mid, weekly_growth.mid),
            (room.high, weekly_growth.low),
        )
    )
    return Observed(
        None if usual is None else _WEEK_DAYS * max(0.0, usual - 0.5),
        None if least is None else _WEEK_DAYS * max(0.0, least - 1),
        room.reason or "the load does not grow",
        None if most is None else _WEEK_DAYS * most,
    )


def _weeks_until(room: float | None, weekly_growth: float | None) -> float | None:
    """Weeks until full; None if unknown or never, 0 if already full."""
    if room is not None and room <= 1:
        return 0.0
    if room is None or weekly_growth is None or weekly_growth <= 0:
        return None
    return math.log(room) / math.log1p(weekly_growth)


def alerts(watched: Watched | Answer, rules: Sequence[AlertRule] = RULES) -> list[Alert]:
    """The outcome of every rule on an answer, in the order of the rules.

    An answer alone has no targets and no other period: burn rates are left out, growth is unknown.
    """
    seen = watched if isinstance(watched, Watched) else Watched(watched)
    active = [(rule, rule.observe(seen)) for rule in rules if rule.threshold is not None]
    return [Alert(rule, _state(rule, found), found) for rule, found in active if found is not None]


def _state(rule: AlertRule, observed: Observed) -> AlertState:
    """The state by the value, else by a bound that is certainly beyond the threshold."""
    assert rule.threshold is not None
    limit, value = rule.threshold, observed.value
    if value is not None:
        return "fired" if (value < limit if rule.is_below else value > limit) else "quiet"
    is_above = observed.exceeds is not None and observed.exceeds >= limit
    is_below = observed.at_most is not None and observed.at_most <= limit
    if not (is_above or is_below):
        return "unknown"
    return "fired" if is_below == rule.is_below else "quiet"


def with_thresholds(
    above: Mapping[str, float],
    rules: Sequence[AlertRule] = RULES,
    *,
    below: Mapping[str, float] | None = None,
) -> list[AlertRule]:
    """The rules with some thresholds replaced; InputError for an unknown rule.

    `above` is for rules that fire above their threshold, `below` for those that fire below it.
    """
    given = {**above, **(below or {})}
    for name in given:
        found = next((rule for rule in rules if rule.name == name), None)
        if found is None:
            raise InputError(
                f"No alert is called {name!r}; there are {', '.join(r.name for r in rules)}."
            )
        if found.is_below != (name in (below or {})):
            side = "below" if found.is_below else "above"
            raise InputError(f"The alert {name!r} fires {side} its threshold: --{side} {name}=….")
    return [replace(rule, threshold=given.get(rule.name, rule.threshold)) for rule in rules]
