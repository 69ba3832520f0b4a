"""Where a request's time goes: waiting for a place, reading the prompt, writing the answer."""

from __future__ import annotations

from dataclasses import dataclass

from vllm_capacity.facts.metrics import DECODE, PREFILL, QUEUE
from vllm_capacity.figures import latency
from vllm_capacity.telemetry.window import Window
from vllm_capacity.timerange import TimeRange

PHASES = {"queue": QUEUE, "prefill": PREFILL, "decode": DECODE}


@dataclass(frozen=True)
class Phase:
    """One phase of the finished requests of a part, added up over them.

    `mean_seconds` is per request; `share_ratio` of all phases' time, 0..1. All three are None where
    the phase was not observed, and the share where any phase was not.
    """

    name: str
    total_seconds: float | None
    mean_seconds: float | None
    share_ratio: float | None


def phases(window: Window, *, time_range: TimeRange) -> tuple[Phase, ...]:
    """Queue, prefill and decode of the requests that finished in the part, in this order.

    Means are exact (a histogram's sum ÷ its count). What a preempted request waits again counts in
    the phase it was thrown back from: for vLLM the queue ends when a request is first scheduled.
    """
    increases = latency.histogram_increases(window, list(PHASES.values()), time_range=time_range)
    totals: dict[str, float | None] = {}
    counts: dict[str, float] = {}
    for name, metric in PHASES.items():
        own = [each for each in increases if each.metric == metric]
        counts[name] = sum(each.count for each in own)
        totals[name] = latency.sound_total(own, time_range) if counts[name] else None
    known = [total for total in totals.values() if total is not None]
    whole = sum(known) if len(known) == len(totals) else 0.0
    return tuple(
        Phase(
            name,
            total,
            None if total is None else total / counts[name],
            None if total is None or not whole else total / whole,
        )
        for name, total in totals.items()
    )
