"""The verdict on a window in Markdown that fits into one chat message."""

from __future__ import annotations

from vllm_capacity.analysis import Analysis
from vllm_capacity.estimate import Estimate
from vllm_capacity.render.exports.currency import Currency
from vllm_capacity.render.numbers import Write, number, percent, seconds, sure, why
from vllm_capacity.render.prose.verdict import LIMITS, SIMULATED, quality_word
from vllm_capacity.render.sections.header import price_text, window_line
from vllm_capacity.render.tables import markdown

MAX_CHARACTERS = 1900
"""The lowest limit for messages in common chats is 2,000."""
_MAX_REASON = 110


def to_markdown(analysis: Analysis, currency: Currency) -> str:
    """Title, figures with their intervals, bottleneck and quality: a line each.

    An unknown figure is followed by a short reason. Under 1,900 characters.
    """
    found = analysis.answer
    lines = [
        f"**{markdown(analysis.window.name)}** · {window_line(analysis)}",
        *([SIMULATED] if analysis.window.is_simulated else []),
        f"Price: {price_text(analysis)}{_rate(currency)}",
        "",
        *_figures(analysis, currency),
        _bottleneck(found.saturation.bottleneck),
        f"- Telemetry: {': '.join(quality_word(found))}",
    ]
    return message("\n".join(lines))


def message(text: str) -> str:
    """The text as one chat message, truncated if it is longer."""
    return (text if len(text) <= MAX_CHARACTERS else f"{text[:MAX_CHARACTERS]}…") + "\n"


def money_in(currency: Currency) -> Write:
    """A writer of amounts that are already in this currency."""

    def money(value: float, like: float | None = None) -> str:
        return f"{number(value, like)} {currency.code}"

    return money


def _figures(analysis: Analysis, currency: Currency) -> list[str]:
    found, money = analysis.answer, money_in(currency)
    p95 = found.latency.ttft.p95
    rows: tuple[tuple[str, Estimate, Write, str], ...] = (
        ("Cost per request", currency.of(found.cost.per_request), money, ""),
        (
            "Cost per million output tokens",
            currency.of(found.cost.usd_per_million_output_tokens),
            money,
            "",
        ),
        ("Bill", currency.of(found.cost.total), money, ""),
        ("Idle cost", currency.of(found.cost.idle_usd), money, ""),
        ("Utilization", found.cost.utilization, percent, ""),
        ("Headroom", found.saturation.headroom_ratio, percent, ""),
        ("Capacity", found.saturation.capacity, number, " output tokens/s"),
    )
    lines = [
        f"- {name}: {_shown(each, write)}{'' if each.is_unknown else unit}"
        for name, each, write, unit in rows
    ]
    ttft = p95.estimate
    shown = "not observed, or beyond the histogram" if ttft is None else seconds(ttft)
    return [*lines, f"- p95 TTFT: {shown}"]


def _shown(found: Estimate, write: Write) -> str:
    """The figure with its interval, or a short reason why it is unknown."""
    if not found.is_unknown:
        return sure(found, write)
    reason = why(found)
    short = reason if len(reason) <= _MAX_REASON else f"{reason[:_MAX_REASON].rstrip()}…"
    return f"not known ({markdown(short)})"


def _bottleneck(name: str | None) -> str:
    return f"- First bottleneck: {LIMITS.get(name or '', 'none was reached')}"


def _rate(currency: Currency) -> str:
    return f"; {currency.note}" if currency.note else ""
