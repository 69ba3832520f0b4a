"""Terminal output for a load test: a given concurrency, and the next loads to test."""

from __future__ import annotations

from collections.abc import Sequence

from vllm_capacity.render.numbers import number, seconds
from vllm_capacity.render.tables import Figure, figures_table, wrapped
from vllm_capacity.verdicts.saturation.at_load import AtLoad
from vllm_capacity.verdicts.saturation.next_load import NextLoad

_WIDTH = 80


def at_text(found: AtLoad, *, width: int = _WIDTH) -> str:
    """Throughput and latency at a concurrency, one per row, with intervals and basis."""
    figures = (
        Figure("throughput", found.output_tokens_per_second, number, "output tokens/s"),
        Figure("requests", found.requests_per_second, number, "requests/s"),
        Figure("request latency", found.request_seconds, seconds, "mean"),
        Figure("TTFT", found.ttft_p95_seconds, seconds, "p95"),
        Figure("ITL", found.itl_p95_seconds, seconds, "p95"),
    )
    caption = f"At {found.clients:,.4g} concurrent requests"
    return figures_table(figures, caption=caption).to_text(width)


def next_text(proposed: Sequence[NextLoad], commands: Sequence[str], *, width: int = _WIDTH) -> str:
    """The next loads to test, each with the interval expected after it and the command to run."""
    if not proposed:
        return wrapped("No further load would narrow the capacity much.", width)
    lines = []
    for place, (each, command) in enumerate(zip(proposed, commands, strict=True)):
        lead = "And then: " if place else "Next load to test: "
        lines.append(wrapped(f"{lead}{each.clients:,} concurrent requests.{_left(each)}", width))
        lines.append(f"  {command}\n")
    return "".join(lines)


def _left(each: NextLoad) -> str:
    if each.high_over_low is None:
        return " Three loads are needed to see how throughput bends."
    return f" Expected to narrow the capacity's interval to high ÷ low = {each.high_over_low:.2f}."
