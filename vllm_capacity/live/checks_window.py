"""What may be wrong with a window, read off its answer."""

from __future__ import annotations

from vllm_capacity.answer import Answer
from vllm_capacity.live.finding import CheckResult, broken, fine, unknown
from vllm_capacity.live.probes import ChainEvidence


def window_checks(evidence: ChainEvidence) -> list[CheckResult]:
    """The window's answer has engines, requests, latencies, a price, and an error-free ledger."""
    answer = evidence.answer
    if answer is None:
        return []
    if not answer.window.engines:
        remedy = (
            "Pull another time range, or the right stream: there is no vLLM series in this one."
        )
        return [broken("window", "window-empty", "the window holds no engine", remedy)]
    return [
        fine("window", "window-empty", f"it holds {_engines(answer.window.engines)}"),
        *_quality(answer),
        _latency(answer),
        _price(answer),
    ]


def _engines(count: int) -> str:
    return f"{count:,} engine{'' if count == 1 else 's'}"


def _quality(answer: Answer) -> list[CheckResult]:
    """Latency or tokens that look wrong have their reason in the ledger."""
    errors = [item for item in answer.quality if item.severity == "error"]
    if not errors:
        return [fine("window", "figures-doubtful", "the data-quality ledger has no error")]
    found = "; ".join(f"{item.check}: {item.effect}" for item in errors)
    remedy = "Figures that rest on this cannot be trusted: capture again, or another part."
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
    return fine("window", "no-price", f"cost rests on: {cost.sources}")
