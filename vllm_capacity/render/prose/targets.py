"""What the latency targets leave of a server's capacity, and who came late, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vllm_capacity.render.numbers import number, percent
from vllm_capacity.render.prose.estimates import is_unknown, reason, sure

Answer = Mapping[str, Any]

_PROMISED_RATIO = 0.95  # targets are of the 95th percentile (verdicts/slo.py)
_ATTAINMENTS = {"ttft_attainment": "first tokens", "itl_attainment": "tokens after the first"}


def within_targets(answer: Answer) -> str:
    """What can be held within the latency targets, and who came late; empty where that is no news.

    News is a target that fewer than 95 % met, or a capacity within the targets below the one
    without. No target given: none.
    """
    late, held = missed(answer), held_within(answer)
    if not held or not late:
        return held
    shares = " and ".join(
        f"{sure(answer['slo'][name], percent)} of {_ATTAINMENTS[name]}" for name in late
    )
    return f"{held} Users waited: in time came {shares}, and a target asks for 95 %."


def held_within(answer: Answer) -> str:
    """The first sentence of `within_targets`: what can be held."""
    held, able = (
        answer[part]["capacity_output_tokens_per_second"] for part in ("slo", "saturation")
    )
    is_less = None not in (held["mid"], able["mid"]) and held["mid"] < able["mid"]
    if not is_less and not missed(answer):
        return ""
    if is_unknown(held):
        return f"What it can hold within the latency targets is not known: {reason(held)}."
    only = "only " if is_less else ""
    text = f"Within the latency targets it can hold {only}{sure(held, number)} output tokens/s"
    made = answer["throughput"]["output_tokens_per_second"]
    return f"{text}." if made is None else f"{text}, and it made {number(made)} on average."


def missed(answer: Answer) -> list[str]:
    """The targets that fewer than 95 % met, by their key in the answer's `slo`."""
    return [
        name
        for name in _ATTAINMENTS
        if (share := answer["slo"][name]["mid"]) is not None and share < _PROMISED_RATIO
    ]
