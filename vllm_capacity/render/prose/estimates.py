"""An estimate in words, the same way in every table and sentence: value, interval, why."""

from __future__ import annotations

from vllm_capacity.estimate import Estimate
from vllm_capacity.render.numbers import Write, between

NOT_KNOWN = "not known"


def bound_word(estimate: Estimate) -> str:
    """What kind of bound it is, empty where it is none."""
    if not estimate.is_bound:
        return ""
    return "upper bound" if estimate.low is None else "lower bound"


def value(estimate: Estimate, write: Write) -> str:
    """Its middle, "at least" or "at most" its bound, or that it is not known."""
    if estimate.mid is not None:
        return write(estimate.mid)
    if estimate.low is not None:
        return f"at least {write(estimate.low)}"
    return NOT_KNOWN if estimate.high is None else f"at most {write(estimate.high)}"


def sure(estimate: Estimate, write: Write) -> str:
    """Its middle with its interval in brackets, where it has one; a bound as in `value`."""
    interval = between(estimate, write)
    return f"{value(estimate, write)}{f' ({interval})' if interval else ''}"


def why(estimate: Estimate) -> str:
    """What it rests on, or why it is not known; of a bound, both."""
    if estimate.is_bound:
        return f"{estimate.sources}; no more is known, because {estimate.reason}"
    return estimate.reason if estimate.is_unknown else estimate.sources


def reason(estimate: Estimate) -> str:
    """Why it is not known, to stand inside a sentence."""
    return (estimate.reason or "no reason was recorded").rstrip(".")


def line(name: str, estimate: Estimate, write: Write, unit: str = "") -> list[str]:
    """A row of a table: name, value with its unit, interval, why."""
    shown = value(estimate, write)
    with_unit = shown if estimate.is_unknown else f"{shown} {unit}".strip()
    return [name, with_unit, between(estimate, write), why(estimate)]
