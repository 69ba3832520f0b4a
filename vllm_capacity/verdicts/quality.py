"""The data-quality ledger: what is wrong with the telemetry, and how much it can move which figure.

A clean window has only `info` findings. Source: method.md §9.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from vllm_capacity.figures.evidence import Evidence
from vllm_capacity.figures.losses import Lost
from vllm_capacity.verdicts import quality_scrapes, quality_series
from vllm_capacity.verdicts.finding import Finding

CHECKS = (
    "coverage",
    "failed",
    "jitter",
    "gap",
    "restart",
    "duplicate",
    "late",
    "series",
    "renamed",
    "missing",
    "bounds",
    "partial-step",
    "stale-gauge",
    "edge-bucket",
)


def ledger(
    evidence: Evidence,
    figures: Mapping[str, Any],
    *,
    lost_requests: Lost,
    lost_tokens: Lost,
) -> list[Finding]:
    """Every finding, in the order of `CHECKS`. `figures` is the answer so far (answers.py)."""
    found = [
        *quality_scrapes.coverage(evidence, figures),
        *quality_scrapes.jitter(evidence),
        *quality_scrapes.gaps(evidence),
        *quality_scrapes.restarts(evidence, lost_requests, lost_tokens),
        *quality_scrapes.lagging(evidence),
        *quality_scrapes.partial_steps(evidence),
        *quality_scrapes.stale_gauges(evidence),
        *quality_series.intake(evidence),
        *quality_series.lifetimes(evidence),
        *quality_series.features(evidence),
        *quality_series.renamed(evidence),
        *quality_series.servers(evidence),
        *quality_series.missing(evidence),
        *quality_series.bounds(evidence),
        *quality_series.imbalance(evidence),
        *quality_series.edge_buckets(figures["latency"]),
    ]
    return sorted(found, key=lambda finding: CHECKS.index(finding.check))


def word(findings: Iterable[Finding]) -> str:
    """Good, usable or poor: the ledger in a word."""
    worst = {finding.severity for finding in findings}
    return "poor" if "error" in worst else "usable" if "warning" in worst else "good"
