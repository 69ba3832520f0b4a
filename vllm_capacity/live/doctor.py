"""The walk along the chain: vLLM → proxy → Collector → Parseable → window, and where it breaks.

The order is the order of causes: what is found first explains what is found after it. A password
that is refused comes before the points dropped for it, those before the stream that stays empty.
"""

from __future__ import annotations

from vllm_capacity.live.checks_flow import (
    collector_checks,
    export_checks,
    proxy_checks,
    unscraped,
    vllm_checks,
)
from vllm_capacity.live.checks_store import (
    ingest_checks,
    server_checks,
    stream_checks,
)
from vllm_capacity.live.checks_window import window_checks
from vllm_capacity.live.finding import CheckResult
from vllm_capacity.live.probes import ChainEvidence

_WALK = (
    vllm_checks,
    proxy_checks,
    collector_checks,
    server_checks,
    ingest_checks,
    export_checks,
    stream_checks,
    unscraped,
    window_checks,
)


def diagnosis(evidence: ChainEvidence) -> list[CheckResult]:
    """Every finding, in the order of the walk. Empty where there was nothing to look at."""
    return [finding for checks in _WALK for finding in checks(evidence)]
