"""The quality report: problems of the telemetry, and how much they can change which figures.

A clean window has only `info` findings.

Also checks throughput itself: times in which a server was slowed down.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vllm_capacity.figures.gauges import Gauges
from vllm_capacity.figures.latency import Latency
from vllm_capacity.verdicts.quality import losses as quality_losses
from vllm_capacity.verdicts.quality import scrapes as quality_scrapes
from vllm_capacity.verdicts.quality import series as quality_series
from vllm_capacity.verdicts.quality.evidence import Evidence, Finding, spans
from vllm_capacity.verdicts.saturation.arrays import instant, summed, total
from vllm_capacity.verdicts.saturation.fit import SaturationFit


def slowed(fits: Sequence[SaturationFit]) -> list[Finding]:
    """One finding per engine that for a while delivered far less than it could; none for others.

    The capacity is computed without those steps.
    """
    return [_finding(fit) for fit in fits if fit.slowed.any()]


def _finding(fit: SaturationFit) -> Finding:
    slow, steps = np.flatnonzero(fit.slowed), fit.steps
    whole = summed(steps.seconds[slow])
    tokens = total(steps.output_tokens_per_second[slow], steps.seconds[slow])
    running = total(steps.running[slow], steps.seconds[slow])
    best = "" if fit.best is None else f", its best minute {fit.best.output:,.0f}"
    is_on = (np.diff(slow) == 1) & steps.is_next[slow[1:]]  # no hole before
    firsts, lasts = slow[np.append(True, ~is_on)], slow[np.append(~is_on, True)]
    ends = zip(steps.start[firsts], steps.end[lasts], strict=True)
    return Finding(
        check="slowed",
        severity="warning",
        count=len(firsts),
        effect=(
            f"{fit.engine}: for {whole:,.0f} s it gave {tokens / whole:,.0f} output tokens/s with "
            f"{running / whole:,.1f} requests running{best}: something outside slowed it, or its "
            "requests were different. The capacity leaves that time out."
        ),
        when=spans(((instant(start), instant(end)) for start, end in ends), len(firsts)),
    )


CHECKS = (
    "coverage",
    "failed",
    "jitter",
    "gap",
    "restart",
    "outage",
    "duplicate",
    "late",
    "clock",
    "series",
    "renamed",
    "missing",
    "bounds",
    "partial-step",
    "slowed",
    "stale-gauge",
    "edge-bucket",
)


def quality_report(
    evidence: Evidence, *, gauges: Gauges, latency: Latency, fits: Sequence[SaturationFit]
) -> list[Finding]:
    """All findings, in the order of `CHECKS`. `gauges` and `latency` are the window's."""
    found = [
        *quality_scrapes.coverage(evidence, gauges),
        *quality_scrapes.jitter(evidence),
        *quality_scrapes.gaps(evidence),
        *quality_losses.restarts(evidence),
        *quality_losses.outages(evidence),
        *quality_losses.contradicted(evidence),
        *quality_losses.late_targets(evidence),
        *quality_losses.doubtful_addresses(evidence),
        *quality_losses.same_processes(evidence),
        *quality_scrapes.unreached_end(evidence.attempts, evidence.asked_end),
        *quality_scrapes.lagging(evidence),
        *quality_scrapes.partial_steps(evidence),
        *quality_scrapes.stale_gauges(evidence),
        *slowed(fits),
        *quality_series.ingest_notes(evidence),
        *quality_series.relabelled(evidence),
        *quality_series.lifetimes(evidence),
        *quality_series.features(evidence),
        *quality_series.renamed(evidence),
        *quality_series.servers(evidence),
        *quality_series.jobs(evidence),
        *quality_series.missing(evidence),
        *quality_series.bounds(evidence),
        *quality_series.imbalance(evidence),
        *quality_series.edge_buckets(latency),
    ]
    return sorted(found, key=lambda finding: CHECKS.index(finding.check))
