"""Traffic charts: requests, tokens, and how requests ended."""

from __future__ import annotations

from collections.abc import Mapping

import altair as alt
import polars as pl
from msgspec import Struct

from vllm_capacity.analysis import Analysis
from vllm_capacity.render.charts import theme
from vllm_capacity.render.charts.base import (
    Chart,
    DataColumn,
    Panel,
    Tip,
    has_values,
    is_all_zero,
    pointer,
    rounded,
    table_of,
    tips_of,
)
from vllm_capacity.render.charts.time import (
    START,
    Line,
    over_gaps,
    over_time,
    restarts,
    time_axis,
    time_tooltip,
    timed,
    unscraped,
    whole_window,
    with_milliseconds,
    without_lost,
)
from vllm_capacity.render.numbers import count, number
from vllm_capacity.render.prose import captions
from vllm_capacity.timerange import TimeRange


class _Share(Struct, frozen=True):
    """One part of a stack: its name in the legend, its color."""

    name: str
    color: str


_NONE_FINISHED = "No request finished in this window."
_TOKENS = {
    "prompt_tokens_per_second": _Share("prompt", theme.SECOND),
    "output_tokens_per_second": _Share("output", theme.LOAD),
}
_REASONS = {
    "finished_stop": _Share("stop", theme.LOAD),
    "finished_length": _Share("length limit", theme.SECOND),
    "finished_repetition": _Share("repetition", theme.SOFT),
    "finished_abort": _Share("aborted", theme.PREFILL),
    "finished_error": _Share("error", theme.LIMIT),
}

_REQUEST_RATE = DataColumn("requests_per_second", "requests/s", number, ",.2f")


def throughput(analysis: Analysis) -> Chart:
    """Output tokens per second over time.

    The server is full where the line stays flat while the queue grows.
    Columns used: start, end, output_tokens_per_second, requests_per_second.
    """
    panel = Panel("Throughput over time", "throughput")
    if not has_values(analysis.series, "output_tokens_per_second"):
        return panel.empty("No generated tokens were counted.")
    if is_all_zero(analysis.series, "output_tokens_per_second"):
        return panel.empty("Not one token was generated in this window.")
    steps = without_lost(analysis.series, "output_tokens_per_second", "requests_per_second")
    columns = [
        START,
        DataColumn("output_tokens_per_second", "output tokens/s", number, ",.1f"),
        _REQUEST_RATE,
    ]
    layers = over_time(
        steps,
        analysis.time_range,
        [Line("output_tokens_per_second", "output", theme.LOAD)],
        unit="output tokens/s",
        tips=tips_of(columns),
    )
    return panel.chart(
        layers,
        caption=f"{captions.throughput_found(analysis.answer)}{over_gaps(steps)}",
        table=table_of(steps, columns),
    )


def request_rate(analysis: Analysis) -> Chart:
    """Requests finished per second over time.

    Columns used: start, end, requests_per_second.
    """
    panel = Panel("Finished requests over time", "throughput")
    if not has_values(analysis.series, "requests_per_second"):
        return panel.empty("No finished requests were counted.")
    if is_all_zero(analysis.series, "requests_per_second"):
        return panel.empty(_NONE_FINISHED)
    steps = without_lost(analysis.series, "requests_per_second")
    layers = over_time(
        steps,
        analysis.time_range,
        [Line("requests_per_second", "requests", theme.LOAD)],
        unit="requests/s",
        tips=tips_of([_REQUEST_RATE]),
    )
    return panel.chart(
        layers,
        caption=f"{captions.requests_found(analysis.answer)}{over_gaps(steps)}",
        table=table_of(steps, [START, _REQUEST_RATE]),
    )


def tokens(analysis: Analysis) -> Chart:
    """Prompt and output tokens per second, stacked.

    It shows the mix: prompts cost prefill, output costs decode steps.
    Columns used: start, end, prompt_tokens_per_second, output_tokens_per_second.
    """
    panel = Panel("How many prompt and output tokens?", "tokens")
    if not has_values(analysis.series, *_TOKENS):
        return panel.empty("No tokens were counted.")
    if is_all_zero(analysis.series, *_TOKENS):
        return panel.empty("Not one token was read or generated in this window.")
    steps = without_lost(analysis.series, *_TOKENS)
    columns = [
        START,
        *(DataColumn(name, f"{share.name} tokens/s", number) for name, share in _TOKENS.items()),
    ]
    return panel.chart(
        _stacked(steps, analysis.time_range, _TOKENS, unit="tokens/s"),
        caption=f"{captions.tokens_found(analysis.answer)}{over_gaps(steps)}",
        table=table_of(steps, columns),
    )


def outcomes(analysis: Analysis) -> Chart:
    """Finished requests per step by finish reason, stacked; failures in the color of limits.

    vLLM does not count requests whose client disconnected or that it refused, so they are missing.
    Columns used: start, end, finished_stop, finished_length, finished_repetition, finished_abort,
    finished_error.
    """
    panel = Panel("How did requests end, and how many failed?", "requests")
    if not has_values(analysis.series, *_REASONS):
        return panel.empty("No finished requests were counted.")
    if is_all_zero(analysis.series, *_REASONS):
        return panel.empty(_NONE_FINISHED)
    shares = {name: share for name, share in _REASONS.items() if analysis.series[name].sum() > 0}
    steps = without_lost(analysis.series, *shares)
    columns = [START, *(DataColumn(name, share.name, count) for name, share in shares.items())]
    return panel.chart(
        _stacked(steps, analysis.time_range, shares, unit="requests per step"),
        caption=f"{captions.outcomes_found(analysis.answer)}{over_gaps(steps)}",
        table=table_of(steps, columns),
    )


def _stacked(
    steps: pl.DataFrame, time_range: TimeRange, shares: Mapping[str, _Share], *, unit: str
) -> list[alt.Chart]:
    """Stacked areas over time, `shares` by column, the lowest first."""
    frame = rounded(with_milliseconds(steps).select("t", *shares))
    names = {column: share.name for column, share in shares.items()}
    order = {column: place for place, column in enumerate(shares)}
    long = frame.unpivot(on=list(shares), index="t", variable_name="column").select(
        "t",
        "value",
        kind=pl.col("column").replace_strict(names),
        order=pl.col("column").replace_strict(order),
    )
    x = time_axis(time_range)
    colors = alt.Scale(
        domain=[share.name for share in shares.values()],
        range=[share.color for share in shares.values()],
    )
    stack = (
        alt.Chart(long)
        .mark_area(interpolate="step-after", opacity=0.85)
        .encode(
            x=x,
            y=alt.Y("value:Q", title=unit, stack="zero"),
            color=alt.Color("kind:N", title=None, scale=colors),
            order=alt.Order("order:Q"),
        )
    )
    tips = [time_tooltip(), *(Tip(column, ",.3~r", name).tooltip for column, name in names.items())]
    rules = alt.Chart(frame).mark_rule(color=theme.INK).encode(x=x)
    return [
        whole_window(time_range, x),
        *unscraped(steps, x),
        stack,
        *restarts(steps, x),
        pointer(timed(rules), tips, key="t", shown=0.5),
    ]
