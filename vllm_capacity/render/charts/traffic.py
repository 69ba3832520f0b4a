"""Charts of load: what came in, what went out, how it ended."""

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
    pointer,
    rounded,
    table_of,
    titled,
)
from vllm_capacity.render.charts.time import (
    START,
    Line,
    over_gaps,
    over_time,
    time_axis,
    time_tooltip,
    whole_window,
    with_milliseconds,
    without_lost,
)
from vllm_capacity.render.numbers import count, number
from vllm_capacity.render.prose import verdict as words

_TOKENS = {
    "prompt_tokens_per_second": ("prompt", theme.SECOND),
    "output_tokens_per_second": ("output", theme.LOAD),
}
_REASONS = {
    "finished_stop": ("stop", theme.LOAD),
    "finished_length": ("length limit", theme.SECOND),
    "finished_repetition": ("repetition", theme.SOFT),
    "finished_abort": ("aborted", theme.PREFILL),
    "finished_error": ("error", theme.LIMIT),
}


def throughput(steps: pl.DataFrame, answer: Answer) -> alt.TopLevelMixin:
    """Output tokens a second over time.

    Read it for the ceiling: where the line stays flat while the queue grows, the server is full.
    Columns used: ts, output_tokens_per_second, requests_per_second.
    """
    question, definition = "How much did the server put out?", "throughput"
    if not has_values(steps, "output_tokens_per_second"):
        reason = "No generated tokens were counted."
        return nothing(question=question, reason=reason, definition=definition)
    steps = without_lost(steps, "output_tokens_per_second", "requests_per_second")
    layers = over_time(
        steps,
        answer,
        [Line("output_tokens_per_second", "output", theme.LOAD)],
        unit="output tokens/s",
        tips=[
            Tip("output_tokens_per_second", ",.1f", "output tokens/s"),
            Tip("requests_per_second", ",.2f", "requests/s"),
        ],
    )
    columns = [
        START,
        Column("output_tokens_per_second", "output tokens/s", number),
        Column("requests_per_second", "requests/s", number),
    ]
    return titled(
        layers,
        question=question,
        found=f"{words.throughput_found(answer)}{over_gaps(steps)}",
        definition=definition,
        table=table_of(steps, columns),
    )


def request_rate(steps: pl.DataFrame, answer: Answer) -> alt.TopLevelMixin:
    """Requests finished a second over time.

    Columns used: ts, requests_per_second.
    """
    question, definition = "How many requests did it finish?", "throughput"
    if not has_values(steps, "requests_per_second"):
        reason = "No finished requests were counted."
        return nothing(question=question, reason=reason, definition=definition)
    steps = without_lost(steps, "requests_per_second")
    layers = over_time(
        steps,
        answer,
        [Line("requests_per_second", "requests", theme.LOAD)],
        unit="requests/s",
        tips=[Tip("requests_per_second", ",.2f", "requests/s")],
    )
    return titled(
        layers,
        question=question,
        found=f"{words.requests_found(answer)}{over_gaps(steps)}",
        definition=definition,
        table=table_of(steps, [START, Column("requests_per_second", "requests/s", number)]),
    )


def tokens(steps: pl.DataFrame, answer: Answer) -> alt.TopLevelMixin:
    """Prompt and output tokens a second, stacked.

    Read it for the mix: prompts cost prefill, output costs decoding steps.
    Columns used: ts, prompt_tokens_per_second, output_tokens_per_second.
    """
    question = "What were the tokens: prompts read, or output written?"
    if not has_values(steps, *_TOKENS):
        reason = "No tokens were counted."
        return nothing(question=question, reason=reason, definition="tokens")
    steps = without_lost(steps, *_TOKENS)
    columns = [
        START,
        *(Column(name, f"{kind[0]} tokens/s", number) for name, kind in _TOKENS.items()),
    ]
    return titled(
        _stacked(steps, answer, _TOKENS, unit="tokens/s"),
        question=question,
        found=f"{words.tokens_found(answer)}{over_gaps(steps)}",
        definition="tokens",
        table=table_of(steps, columns),
    )


def outcomes(steps: pl.DataFrame, answer: Answer) -> alt.TopLevelMixin:
    """Finished requests a step by how they ended, stacked; failures in the colour of limits.

    vLLM counts no request whose client went away, and none it refused: those are not here.
    Columns used: ts, finished_stop, finished_length, finished_repetition, finished_abort,
    finished_error.
    """
    question = "How did requests end, and how many failed?"
    if not has_values(steps, *_REASONS):
        reason = "No finished requests were counted."
        return nothing(question=question, reason=reason, definition="requests")
    some = {name: kind for name, kind in _REASONS.items() if steps[name].sum() > 0}
    kinds = some or {"finished_stop": _REASONS["finished_stop"]}
    steps = without_lost(steps, *kinds)
    columns = [START, *(Column(name, kind[0], count) for name, kind in kinds.items())]
    return titled(
        _stacked(steps, answer, kinds, unit="requests a step"),
        question=question,
        found=f"{words.outcomes_found(answer)}{over_gaps(steps)}",
        definition="requests",
        table=table_of(steps, columns),
    )


def _stacked(
    steps: pl.DataFrame, answer: Answer, kinds: dict[str, tuple[str, str]], *, unit: str
) -> list[alt.Chart]:
    frame = rounded(with_milliseconds(steps, answer).select("t", *kinds))
    names = {column: name for column, (name, _) in kinds.items()}
    order = {column: place for place, column in enumerate(kinds)}
    long = frame.unpivot(on=list(kinds), index="t", variable_name="column").select(
        "t",
        "value",
        kind=pl.col("column").replace_strict(names),
        order=pl.col("column").replace_strict(order),
    )
    x = time_axis(answer)
    colours = alt.Scale(domain=list(names.values()), range=[each for _, each in kinds.values()])
    stack = (
        alt.Chart(long)
        .mark_area(interpolate="step-after", opacity=0.85)
        .encode(
            x=x,
            y=alt.Y("value:Q", title=unit, stack="zero"),
            color=alt.Color("kind:N", title=None, scale=colours),
            order=alt.Order("order:Q"),
        )
    )
    tips = [time_tooltip(), *(Tip(column, ",.3~r", name).tooltip for column, name in names.items())]
    rules = alt.Chart(frame).mark_rule(color=theme.INK).encode(x=x)
    return [whole_window(answer, x), stack, pointer(rules, tips, key="t", shown=0.5)]
