"""Quality checks on the scrapes: how many, how regular, where they stop or resume."""

from __future__ import annotations

from datetime import datetime, timedelta

import polars as pl

from vllm_capacity.figures import scrapes
from vllm_capacity.figures.attempts import Attempts, Target
from vllm_capacity.figures.gauges import Gauges
from vllm_capacity.telemetry.processes import PROCESS_START
from vllm_capacity.timerange import iso
from vllm_capacity.verdicts.quality.evidence import Evidence, Finding, amounts, span, spans

_GAUGES = ("running", "waiting", "kv_cache_ratio")
_COARSE_SECONDS = 5.0
_UNEVEN = 0.25


def coverage(evidence: Evidence, gauges: Gauges) -> list[Finding]:
    """Scrapes that failed or were never made, compared with an even grid of scrapes."""
    targets = evidence.attempts.targets.values()
    tried = sum(own.tried for own in targets)
    failed = tried - sum(own.good for own in targets)
    missed = sum(scrapes.missed(own) for own in targets)
    if not failed + missed:
        return []
    share = (failed + missed) / (tried + missed)
    max_effect = {}
    for name in _GAUGES:
        gauge = getattr(gauges, name)
        mean, most = gauge.mean, gauge.max
        if mean is not None and most is not None:
            max_effect[f"{name}.mean"] = share * max(most - mean, mean)
    severity = "info" if share <= 0.01 else "warning" if share <= 0.2 else "error"
    effect = (
        f"{failed + missed} of {tried + missed} scrapes missing ({share * 100:.1f} %): "
        f"{failed} failed, "
        f"{missed} never made. Counters stay exact; "
        f"{amounts(max_effect) or 'no gauge was observed'}."
    )
    return [Finding("coverage", severity, failed + missed, effect, None, max_effect)]


def jitter(evidence: Evidence) -> list[Finding]:
    """Whether scrapes are even, whether the interval changed, and what a coarse interval may miss.

    Any load that came and went between two scrapes finished there: if no request finished, nothing
    was missed.
    """
    found = []
    for instance, own in evidence.attempts.targets.items():
        if own.tried < 5 or _is_even(own):
            continue
        steps = own.step_seconds()
        low, mid, high = (float(steps.quantile(q) or 0.0) for q in (0.05, 0.5, 0.95))
        if mid > 0 and high - low > _UNEVEN * mid:
            effect = (
                f"{instance}: the scrape interval ranges from {low:.3g} to {high:.3g} s (median "
                f"{mid:.3g}). Counters stay exact; means of gauges are weighted by time."
            )
            found.append(Finding("jitter", "info", steps.len(), effect))
        unseen = evidence.finished_per_scrape.get(instance)
        if high > _COARSE_SECONDS and unseen != 0:
            max_effect = {} if unseen is None else {"running.max": unseen, "waiting.max": unseen}
            most = (
                f"{amounts(max_effect)} (the most requests that finished between two scrapes)"
                if max_effect
                else "by an unknown amount, because finished requests were not counted"
            )
            effect = (
                f"{instance}: scraped every {mid:.3g} s, so short peaks of load between scrapes "
                f"are missed. Maxima may be too low: {most}."
            )
            found.append(Finding("jitter", "info", steps.len(), effect, None, max_effect))
    return found


def _is_even(own: Target) -> bool:
    """Whether scrape intervals are certainly short and even, without unpacking them."""
    ends = own.most_steps()
    if ends is None or ends[1] > _COARSE_SECONDS:
        return False
    return ends[1] - ends[0] <= _UNEVEN * ends[0]


_UNLESS_OVERTAKEN = (
    " (unless the server, which does not report its start time, restarted in the gap and had "
    "passed its old counts by the next scrape)"
)


def gaps(evidence: Evidence) -> list[Finding]:
    """Times without a good scrape, per target."""
    found = []
    starts = evidence.lifetimes.filter(pl.col("metric") == PROCESS_START)
    result = set(starts.get_column("instance"))
    for instance, own in scrapes.by_instance(evidence.gaps).items():
        seconds = sum(gap.seconds for gap in own)
        unless = "" if instance in result else _UNLESS_OVERTAKEN
        effect = (
            f"{instance}: {seconds:.0f} s without a good scrape. Totals over the gap are "
            f"exact{unless}: the growth is counted in the minute of the next scrape. Rates and "
            "charts spread it over the gap and mark it; running.mean, waiting.mean and "
            "kv_cache_ratio.mean leave the gap out (see coverage)."
        )
        when = spans(((gap.start, gap.end) for gap in own), len(own))
        found.append(Finding("gap", "warning", len(own), effect, when))
    return found


def partial_steps(evidence: Evidence) -> list[Finding]:
    """A first or last minute that is incomplete."""
    time_range = evidence.time_range
    cut = [
        edge
        for edge in (time_range.start, time_range.end - timedelta(microseconds=1))
        if edge.second or edge.microsecond
    ]
    if not cut:
        return []
    effect = (
        "the first and last minute are incomplete, so their counts are not those of a whole "
        "minute. Totals and rates are not affected."
    )
    return [Finding("partial-step", "info", len(cut), effect, "; ".join(iso(edge) for edge in cut))]


def stale_gauges(evidence: Evidence) -> list[Finding]:
    """Requests reported as running while no tokens are generated."""
    found = []
    for row in evidence.stale.iter_rows(named=True):
        seconds = (row["end"] - row["start"]).total_seconds()
        max_effect = {"running.mean": row["value"] * seconds / evidence.time_range.seconds}
        effect = (
            f"{row['instance']}/{row['engine']}: {row['value']:.3g} requests reported as running "
            f"for {seconds:.0f} s while no tokens came: a stale gauge, not load; "
            f"{amounts(max_effect)}."
        )
        when = span(row["start"], row["end"])
        found.append(Finding("stale-gauge", "warning", 1, effect, when, max_effect))
    return found


def lagging(evidence: Evidence) -> list[Finding]:
    """Targets whose last good scrape lies well before the end, or that have none.

    Targets that are gone or down are in `outages` (losses.py); those here answered again after the
    part.
    """
    found = []
    down = {outage.instance for outage in evidence.outages}
    for instance, own in evidence.attempts.targets.items():
        if instance in down:
            continue
        last = own.last_good
        if last is None:
            effect = (
                f"{instance} never answered: its load is missing from all figures, and its hours "
                "are not billed here."
            )
            found.append(Finding("missing", "warning", own.tried, effect))
            continue
        behind = (evidence.time_range.end - last).total_seconds()
        # the median over a long time is costly, and few targets lag
        if behind > 30.0 and behind > 5.0 * own.median_seconds():
            effect = (
                f"{instance} lags: its last good scrape is {behind:.0f} s before the end, so its "
                "most recent load is missing from all figures."
            )
            found.append(Finding("coverage", "warning", 1, effect, iso(last)))
    return found


def unreached_end(attempts: pl.DataFrame | Attempts, asked_end: datetime | None) -> list[Finding]:
    """Telemetry that ends well before the end that was requested from its source.

    Empty if no end was requested.
    """
    targets = Attempts.of(attempts).targets.values() if asked_end is not None else ()
    newest = max((own.last for own in targets), default=None)
    if asked_end is None or newest is None:
        return []
    missing = (asked_end - newest).total_seconds()
    if missing <= 30.0 or missing <= 5.0 * scrapes.longest_median(targets):
        return []
    effect = (
        f"asked for until {iso(asked_end)}, but the newest scrape is from {iso(newest)}, "
        f"{missing:.0f} s earlier: what happened in between is missing from all figures. If it has "
        "arrived since, pull again; otherwise find out why nothing was stored."
    )
    return [Finding("coverage", "warning", 1, effect, span(newest, asked_end))]
