"""Traffic, latency and failures: tables beside the charts, and a verdict."""

from __future__ import annotations

from vllm_capacity.analysis import Analysis
from vllm_capacity.assumptions import TARGETS
from vllm_capacity.figures.latency import LATENCIES
from vllm_capacity.render.numbers import Write, count, number, percent, seconds, sure, why
from vllm_capacity.render.tables import (
    Column,
    Figure,
    Table,
    Text,
    figures_table,
    interval,
    table,
    text,
    written,
)

_PHASES = {
    "queue": "queue: waiting for a place among the running requests",
    "prefill": "prefill: processing the prompt, up to the first token",
    "decode": "decode: generating, from the first token to the last",
}
_FAILURES: tuple[tuple[str, str, Write], ...] = (
    ("http_5xx_ratio", "answers with HTTP 5xx", percent),
    ("http_4xx_ratio", "answers with HTTP 4xx", percent),
    ("error_ratio", "finished with an engine error", percent),
    ("rejected", "requests rejected at admission", count),
    ("abandoned", "requests that clients abandoned", count),
)


def traffic_table(analysis: Analysis) -> Table:
    """Requests and tokens: totals, per second, and per request; exact counts."""
    columns = (
        Column("quantity", "quantity"),
        Column("in all", "total", count, is_numeric=True),
        Column("per second", "per_second", number, is_numeric=True),
        Column("per request, on average", "per_request", number, is_numeric=True),
    )
    rows = [
        (name, each.total, each.per_second, each.per_request)
        for name, each in analysis.answer.traffic.items()
    ]
    return table(columns, rows)


def latency_table(analysis: Analysis) -> Table:
    """p50, p95 and p99 of each latency: the best estimate, its bounds, and PromQL's value."""
    columns = (
        Column("latency", "latency"),
        Column("quantile", "quantile"),
        Column("best estimate", "estimate_seconds", is_numeric=True),
        Column("at least", "low_seconds", is_numeric=True),
        Column("at most", "high_seconds", is_numeric=True),
        Column("by PromQL", "promql_seconds", is_numeric=True),
    )
    rows = []
    for name, latency in LATENCIES.items():
        found = getattr(analysis.answer.latency, f"{name}_seconds")
        for quantile in ("p50", "p95", "p99"):
            each = getattr(found, quantile)
            like = each.value or each.lower
            shown = (each.estimate, each.lower, each.upper, each.value)
            rows.append((latency.title, quantile, *(written(one, seconds, like) for one in shown)))
    return table(columns, rows)


def latency_breakdown(analysis: Analysis) -> Table:
    """Mean time of a finished request by phase: queue, prefill, decode."""
    columns = (
        Column("phase", "phase"),
        Column("per request, on average", "mean_seconds", seconds, is_numeric=True),
        Column("share of all time", "share_ratio", percent, is_numeric=True),
    )
    phases = analysis.phases
    rows = [
        (label, phases[name].mean_seconds, phases[name].share_ratio)
        for name, label in _PHASES.items()
    ]
    return table(columns, rows)


def slo_table(analysis: Analysis) -> Table:
    """SLO attainment: the share within target of each latency that can have one."""
    columns = (
        Column("latency", "latency"),
        Column("target", "target_seconds", seconds, is_numeric=True),
        Column("within target", "attainment", percent, is_numeric=True),
        Column("interval"),
        Column("basis", "basis", is_note=True),
    )
    given = analysis.assumptions.slo.targets
    rows = [
        (f"p95 {TARGETS[name].label}", given.get(name), each, interval(each, percent), why(each))
        for name, each in analysis.answer.slo.attainments.items()
    ]
    return table(columns, rows)


def failure_table(analysis: Analysis) -> Table:
    """Known failure figures, each with its blind spot; unknown ones with the reason."""
    found = analysis.answer.failures
    return figures_table(Figure(label, getattr(found, name), w) for name, label, w in _FAILURES)


def latency_verdict(analysis: Analysis) -> Text:
    """How long users waited, how certain that is, and the main cause, in one sentence."""
    ttft = analysis.answer.latency.ttft
    half, most = ttft.p50, ttft.p95
    if half.estimate is None:
        return text("No first token was observed, so TTFT is not known.")
    parts = [f"half of all first tokens arrived within {seconds(half.estimate)}"]
    if most.estimate is None or most.lower is None or most.upper is None:
        parts.append(f"the slowest 5 % took more than {seconds(most.lower or 0.0)}")
    else:
        low, high = (seconds(end, most.estimate) for end in (most.lower, most.upper))
        parts.append(f"95 % within {seconds(most.estimate)} (certainly between {low} and {high})")
    met = analysis.answer.slo.ttft_attainment
    target = analysis.assumptions.slo.ttft_p95_seconds
    if met.mid is not None and target is not None:
        parts.append(f"{sure(met, percent)} met the target of {seconds(target)}")
    return text(f"{', '.join(parts)}{_cause(analysis)}.")


def _cause(analysis: Analysis) -> str:
    """The main part of the wait for a first token; empty if unknown."""
    longest = analysis.first_token_phase
    if longest is None:
        return ""
    name, share = longest
    where = "in the queue" if name == "queue" else "in prefill"
    return f"; {percent(share)} of the time to a first token was spent {where}"
