"""Charts of waiting: how long users waited, and how many were waiting."""

from __future__ import annotations

import altair as alt
import polars as pl

from vllm_capacity.render.charts import theme
from vllm_capacity.render.charts.base import (
    Answer,
    Column,
    Tip,
    has_values,
    nothing,
    table_of,
    titled,
)
from vllm_capacity.render.charts.time import START, Limit, Line, over_time
from vllm_capacity.render.numbers import number, seconds
from vllm_capacity.render.prose import verdict as words

_QUESTIONS = {
    "ttft": "How long until the first token?",
    "itl": "How long between one token and the next?",
    "e2e": "How long until the whole answer?",
}
_MILLISECONDS = "format(datum.value * 1000, ',')"


def first_token(
    steps: pl.DataFrame, answer: Answer, slo_seconds: float | None = None
) -> alt.TopLevelMixin:
    """Time to first token over time: median and p95, its bounds as a band, the SLO as a rule.

    The truth lies inside the band: a histogram knows no more than the edges of its buckets.
    Columns used: ts, ttft_p50_seconds, ttft_p95_seconds and its _lower and _upper.
    """
    return _latency(steps, answer, "ttft", slo_seconds)


def between_tokens(
    steps: pl.DataFrame, answer: Answer, slo_seconds: float | None = None
) -> alt.TopLevelMixin:
    """Inter-token latency over time: median and p95, its bounds as a band, the SLO as a rule.

    Columns used: ts, itl_p50_seconds, itl_p95_seconds and its _lower and _upper.
    """
    return _latency(steps, answer, "itl", slo_seconds)


def whole_answer(steps: pl.DataFrame, answer: Answer) -> alt.TopLevelMixin:
    """End-to-end latency over time: median and p95, its bounds as a band.

    Columns used: ts, e2e_p50_seconds, e2e_p95_seconds and its _lower and _upper.
    """
    return _latency(steps, answer, "e2e", None)


def queue(steps: pl.DataFrame, answer: Answer) -> alt.TopLevelMixin:
    """Requests running and waiting over time, summed over engines.

    Read it for the moment when running stands still and waiting begins: that is the ceiling.
    Columns used: ts, running, waiting.
    """
    question = "Did requests queue?"
    if not has_values(steps, "running", "waiting"):
        reason = "The server did not say how many requests ran or waited."
        return nothing(question=question, reason=reason, definition="queue")
    layers = over_time(
        steps,
        answer,
        [
            Line("running", "running", theme.LOAD),
            Line("waiting", "waiting", theme.LIMIT, dash=(4, 3)),
        ],
        unit="requests",
        tips=[Tip("running", ",.1f", "running"), Tip("waiting", ",.1f", "waiting")],
    )
    columns = [START, Column("running", "running", number), Column("waiting", "waiting", number)]
    return titled(
        layers,
        question=question,
        found=words.queue_found(answer),
        definition="queue",
        table=table_of(steps, columns),
    )


def _latency(
    steps: pl.DataFrame, answer: Answer, family: str, slo_seconds: float | None
) -> alt.TopLevelMixin:
    p50, p95 = f"{family}_p50_seconds", f"{family}_p95_seconds"
    question, definition = _QUESTIONS[family], f"{family}_seconds"
    if not has_values(steps, p50, p95, f"{p95}_lower"):
        reason = "Nothing was observed: no histogram of it grew in this window."
        return nothing(question=question, reason=reason, definition=definition)
    named = {
        p50: "half under",
        p95: "95 % under",
        f"{p95}_lower": "95 %: at least",
        f"{p95}_upper": "95 %: at most",
    }
    # Tokens are tens of milliseconds apart: in seconds their axis would read 0.0 throughout.
    in_ms = family == "itl"
    layers = over_time(
        steps,
        answer,
        [
            Line(p95, "95 % under", theme.LOAD, band=True),
            Line(p50, "half under", theme.SOFT),
        ],
        unit="milliseconds" if in_ms else "seconds",
        axis=alt.Axis(labelExpr=_MILLISECONDS) if in_ms else None,
        tips=[Tip(column, ",.3f", f"{name} (s)") for column, name in named.items()],
        limits=[Limit(slo_seconds, f"target {seconds(slo_seconds)}")] if slo_seconds else [],
    )
    return titled(
        layers,
        question=question,
        found=words.latency_found(answer, definition, write=seconds),
        definition=definition,
        table=table_of(steps, [START, *(Column(c, name, seconds) for c, name in named.items())]),
    )
