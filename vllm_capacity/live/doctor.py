"""Checks the chain vLLM → proxy → Collector → Parseable → window, and finds where it breaks.

The checks run in order of cause: earlier findings explain later ones. A refused password comes
before the points dropped because of it, and those before the stream that stays empty.

The window is checked by means of its answer.
"""

from __future__ import annotations

from vllm_capacity.answer import Answer
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
from vllm_capacity.live.probes import ChainEvidence, CheckResult, broken, fine, unknown


def window_checks(evidence: ChainEvidence) -> list[CheckResult]:
    """Check that the answer has engines, requests, latencies, a price, and no quality error."""
    answer = evidence.answer
    if answer is None:
        return []
    if not answer.window.engines:
        remedy = (
            "Pull another time range, or the right stream: there is no vLLM series in this one."
        )
        return [broken("window", "window-empty", "the window has no engine", remedy)]
    return [
        fine("window", "window-empty", f"it has {_engines(answer.window.engines)}"),
        *_quality(answer),
        _latency(answer),
        _price(answer),
    ]


def _engines(count: int) -> str:
    return f"{count:,} engine{'' if count == 1 else 's'}"


def _quality(answer: Answer) -> list[CheckResult]:
    """Check the quality report for errors, which explain wrong-looking latencies or tokens."""
    errors = [item for item in answer.quality if item.severity == "error"]
    if not errors:
        return [fine("window", "figures-doubtful", "the data-quality report has no error")]
    found = "; ".join(f"{item.check}: {item.effect}" for item in errors)
    remedy = (
        "Figures that depend on this cannot be trusted. Capture again, or choose another time "
        "range."
    )
    return [broken("window", "figures-doubtful", found, remedy)]


def _latency(answer: Answer) -> CheckResult:
    value = answer.latency.e2e.p99
    if value.value is None and value.lower is None:
        return unknown("window", "no-latency", "no request finished in this window")
    return fine("window", "no-latency", "latencies are known, with their bounds")


def _price(answer: Answer) -> CheckResult:
    cost = answer.cost.total
    if cost.mid is None:
        return unknown("window", "no-price", f"cost is unknown: {cost.reason}")
    return fine("window", "no-price", f"cost is based on: {cost.sources}")


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
    """All findings, in the order of the checks; empty if there was no evidence to check."""
    return [finding for checks in _WALK for finding in checks(evidence)]
