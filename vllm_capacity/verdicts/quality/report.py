"""The data-quality ledger: what is wrong with the telemetry, and how much it can move which figure.

A clean window has only `info` findings.
"""

from __future__ import annotations

from collections.abc import Sequence

from vllm_capacity.figures.evidence import Evidence
from vllm_capacity.figures.gauges import Gauges
from vllm_capacity.figures.latency import Latency
from vllm_capacity.verdicts.quality import losses as quality_losses
from vllm_capacity.verdicts.quality import scrapes as quality_scrapes
from vllm_capacity.verdicts.quality import series as quality_series
from vllm_capacity.verdicts.quality import speed as quality_speed
from vllm_capacity.verdicts.quality.finding import Finding
from vllm_capacity.verdicts.saturation.fit import SaturationFit

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
    """Every finding, in the order of `CHECKS`. `gauges` and `latency` are the window's."""
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
        *quality_speed.slowed(fits),
        *quality_series.intake(evidence),
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
