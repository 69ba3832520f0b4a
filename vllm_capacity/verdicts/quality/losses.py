"""Quality checks on processes: those that ended with unread counts or count unreliably."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from vllm_capacity.figures.losses import Unread
from vllm_capacity.figures.scrapes import by_instance
from vllm_capacity.verdicts.quality.evidence import Evidence, Finding, amounts, span, spans

_OFTEN, _OFTEN_RATIO = 5, 0.2
_OFTEN_EFFECT = (
    "So many restarts in so few scrapes suggest that several processes answer under one address in "
    "turn, as behind a load balancer: then each switch counts a process again."
)


def restarts(evidence: Evidence) -> list[Finding]:
    """Targets that restarted from zero, and what may have been lost."""
    found = []
    good = {instance: own.good for instance, own in evidence.attempts.targets.items()}
    for instance, own in by_instance(evidence.restarts).items():
        unread = evidence.losses.of(instance, "restart")
        max_effect = _max_effect(unread)
        effect = (
            f"{instance}: its counters started again from zero. What it counted after its last "
            f"scrape is missing from all figures: {_effect(unread)}{_bound(unread, evidence)}. "
            f"{_in_flight(unread)}"
        )
        when = spans(((restart.before, restart.after) for restart in own), len(own))
        is_known, answers = instance in evidence.doubtful, good.get(instance, 0)
        is_often = not is_known and len(own) >= _OFTEN and len(own) > _OFTEN_RATIO * answers
        if is_often:
            effect = f"{effect} {_OFTEN_EFFECT}"
        severity = "error" if is_often or _is_unbounded(unread) else "warning"
        found.append(Finding("restart", severity, len(own), effect, when, max_effect))
    return found


def outages(evidence: Evidence) -> list[Finding]:
    """Targets that stopped answering, or being scraped, and did not come back in the part.

    A warning if it lasted too long for a single failed scrape.
    """
    found = []
    for outage in evidence.outages:
        unread = evidence.losses.of(outage.instance, "outage")
        max_effect = _max_effect(unread)
        silent = (evidence.time_range.end - outage.last_good).total_seconds()
        is_long = silent > max(30.0, 5.0 * outage.median_seconds)
        what = (
            f"stopped answering: its last {outage.failed} scrapes failed, over {silent:,.0f} s"
            if outage.failed
            else f"was not scraped for the last {silent:,.0f} s"
        )
        effect = (
            f"{outage.instance} {what}. What it counted after its last good scrape is missing from "
            f"all figures: {_effect(unread)}{_bound(unread, evidence)}. {_in_flight(unread)}"
        )
        severity = "warning" if is_long and outage.failed else "info"
        when = span(outage.last_good, evidence.time_range.end)
        found.append(Finding("outage", severity, max(1, outage.failed), effect, when, max_effect))
    return found


def contradicted(evidence: Evidence) -> list[Finding]:
    """Targets with scrapes that are left out of all figures, because a clock was changed."""
    found = []
    for instance, detail, scrapes in evidence.contradicted.iter_rows():
        unread = evidence.losses.of(instance, "clock")
        effect = (
            f"{instance}: {detail}. What only these scrapes counted is missing from all figures, "
            f"and so is their time: {_effect(unread)}."
        )
        found.append(Finding("clock", "error", scrapes, effect, None, _max_effect(unread)))
    already_named = set(evidence.contradicted.get_column("instance"))
    for each in evidence.losses.stretches:
        if each.why == "clock" and each.instance not in already_named:
            effect = (
                f"{each.instance}: what it counted between scrapes is missing from all figures: "
                f"{_effect([each])}."
            )
            found.append(Finding("clock", "error", 1, effect))
    return found


def late_targets(evidence: Evidence) -> list[Finding]:
    """Targets that appeared in the middle of the part and do not report when they started."""
    found = []
    for unread in evidence.losses.stretches:
        if unread.why == "late":
            max_effect, seconds = _max_effect([unread]), _seconds(unread.start, unread.end)
            effect = (
                f"{unread.instance} was first scraped {seconds:.0f} s after the start, and nothing "
                "shows that it started only then: it is counted from its first value, and what it "
                f"counted before is missing from all figures: {_effect([unread])}."
            )
            when = span(unread.start, unread.end)
            found.append(Finding("series", "warning", 1, effect, when, max_effect))
    return found


def doubtful_addresses(evidence: Evidence) -> list[Finding]:
    """Targets whose address several processes may share, in turn or in an unknown order."""
    return [
        Finding("restart", severity, 1, f"{instance}: {effect}")
        for instance, doubt in sorted(evidence.doubtful.items())
        for severity, effect in [_DOUBTS[doubt]]
    ]


_DOUBTS = {
    "in turn": (
        "error",
        "several processes answer under this address in turn (their start times come and go), as "
        "behind a load balancer. A change from one to another reads as a restart, so requests and "
        "tokens are counted several times: scrape each process under its own address.",
    ),
    "no order": (
        "warning",
        "its start time changed to one before its last scrape. Either a clock was set, and no "
        "figure is affected, or another process took over that had been running all along: then "
        "the counters jump at the change, and requests and tokens are wrong.",
    ),
}


def same_processes(evidence: Evidence) -> list[Finding]:
    """Pairs of targets that are one process under two names."""
    return [
        Finding(
            "duplicate",
            "error",
            1,
            f"{one} and {other} are one process (the same start, and one count that grows through "
            "the scrapes of both): requests, tokens, throughput and cost count it twice. Scrape it "
            "under one name.",
        )
        for one, other in evidence.same
    ]


def _is_unbounded(unread: Sequence[Unread]) -> bool:
    return any(each.requests is None or each.tokens is None for each in unread)


def _max_effect(unread: Sequence[Unread]) -> dict[str, float]:
    """The largest possible change of each figure; empty if that is unbounded."""
    if _is_unbounded(unread):
        return {}
    return {
        "requests.finished": float(sum(each.requests or 0 for each in unread)),
        "tokens": float(sum(each.tokens or 0 for each in unread)),
    }


def _effect(unread: Sequence[Unread]) -> str:
    if _is_unbounded(unread):
        reasons = "; ".join(sorted({each.reason for each in unread} - {""}))
        return f"requests.finished and tokens, without a bound ({reasons})"
    return amounts(_max_effect(unread))


def _bound(unread: Sequence[Unread], evidence: Evidence) -> str:
    """What the bound is composed of, as text; empty if there is none."""
    if _is_unbounded(unread):
        return ""
    seconds = sum(_seconds(each.start, each.end) for each in unread)
    return (
        " (an upper bound, not an estimate: the requests running and waiting at the last scrape, "
        "the most that ever finished between two scrapes, and "
        f"{seconds:.3g} s at {evidence.losses.basis})"
    )


def _in_flight(unread: Sequence[Unread]) -> str:
    running = sum(each.running or 0.0 for each in unread)
    waiting = sum(each.waiting or 0.0 for each in unread)
    return (
        f"{running:.0f} requests ran and {waiting:.0f} waited at the last scrape; those that never "
        "finished are missing from all figures, too."
    )


def _seconds(start: datetime, end: datetime) -> float:
    return max(0.0, (end - start).total_seconds())
