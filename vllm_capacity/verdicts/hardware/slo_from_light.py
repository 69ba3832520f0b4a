"""Calculated throughput within latency targets of a server that was never loaded.

1. At heavier loads of the same GPUs, rate and latencies are those of `what_if`, corrected by the
   measurement at the light load; each latency over its target grows like the calculated one.
2. A mean inter-token latency covers all steps. A p95 is that of steps with prompts if more than one
   in twenty has some, which need not be so under a light load: it grows like such a step, and its
   band also includes the growth of the mean.
3. Each end of the interval is read with the rate and every latency at that end of their bands:
   latencies rise slowly at first, so a small error of a latency is a large one of the load that
   meets a target.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import pairwise

from msgspec import Struct
from msgspec.structs import replace

from vllm_capacity.estimate import Estimate, Kind
from vllm_capacity.verdicts.hardware.elsewhere import (
    MAX_TIMES,
    Ask,
    heaviest_load,
    within_targets,
)
from vllm_capacity.verdicts.hardware.question import Load, Question
from vllm_capacity.verdicts.hardware.serving import shipped_calibration
from vllm_capacity.verdicts.hardware.side import Side, machines_of, side, side_at
from vllm_capacity.verdicts.saturation.slo import SloLoad

TTFT_HALF_WIDTH, TTFT_PER_LOAD = 0.12, 0.06
"""Half the band of TTFT under more load than measured, and its growth per factor e of requests.

In logarithms; e is a factor of running requests. With it, 94 % of the throughputs within a TTFT
target of silicon sweeps, calculated from their lightest rows (models left out), lie inside. Nine in
ten TTFTs are off by 0.27 or less; those of 8,192 tokens by less than those of 1,024.
"""
P95_SHARE = 0.05
"""The share of steps above a p95: if more of them carry prompts, the p95 is that of such a step."""
_LOADS = 6
"""The number of heavier loads on the curve, which is interpolated in logarithms between them."""


class Within(Struct, frozen=True):
    """Output tokens/s within latency targets, the running requests there, and their source.

    `loads` are the calculated loads that it was read from, with the measured light one first.
    """

    output_tokens_per_second: Estimate
    running: float
    loads: tuple[SloLoad, ...]


def within_from_light(
    question: Question,
    seen: SloLoad,
    ask: Ask,
    *,
    admitted: float | None = None,
    widen: Callable[[Estimate], Estimate] = lambda found: found,
    is_p95: bool = True,
) -> Within | None:
    """The most that the same GPUs do within targets; None if the light load misses them.

    `seen` is the light load of `question`, with its latencies over their targets, which are means
    unless `is_p95`. `question` has both mean latencies. `widen` adapts the band of a rate,
    `admitted` is the most requests that run, if the server reports it. A lower bound if no target
    ends it and the engine admits more requests than so light a load can predict.
    """
    if seen.worst > 1:
        return None
    return _FromLight(question, seen, ask, widen, admitted=admitted, is_p95=is_p95).found


class _FromLight(Struct, frozen=True, dict=True):
    question: Question
    seen: SloLoad
    ask: Ask
    widen: Callable[[Estimate], Estimate]
    admitted: float | None
    is_p95: bool

    @property
    def found(self) -> Within:
        heaviest, is_full = heaviest_load(self.question, admitted=self.admitted)
        ends = [self._ends(running) for running in _loads(self.seen.running, heaviest)]
        slow, middle, fast = ((self.seen, *(each[end] for each in ends)) for end in range(3))
        (low, _), (mid, is_ended), (high, is_sure) = map(_within, (slow, middle, fast))
        running = _running_at(middle, mid)
        seen = f"{self.seen.running:.3g}"
        words = (
            f"calculated for {self.question.gpus} × {self.question.from_gpu.label} at a "
            f"concurrency of {running:.3g}, corrected by the rate and latencies measured at {seen}"
        )
        if is_full or (is_ended and is_sure):
            found = Estimate.known(low, mid, high, words, kind=Kind.EXTRAPOLATED)
            return Within(found, running, middle)
        reason = (
            f"the targets may be met above a concurrency of {heaviest:.3g}, but a load of {seen} "
            f"only supports estimates up to {MAX_TIMES:.0f} × as many"
        )
        return Within(Estimate.at_least(low, words, reason=reason), running, middle)

    def _ends(self, running: float) -> tuple[SloLoad, SloLoad, SloLoad]:
        """A load at worst, most likely, and at best."""
        asked, question = replace(self._same, at=Load(clients=running)), self.question
        found = self.ask(asked)
        rate = self.widen(found.output_tokens_per_second)
        if not rate.low or rate.mid is None or rate.high is None:
            return (SloLoad(running, 0.0, math.inf),) * 3
        of_rate = math.log(rate.high / rate.low) / 2
        apart = math.log(running / self.seen.running)
        of_ttft = TTFT_HALF_WIDTH + TTFT_PER_LOAD * apart
        itls = [(found.itl_seconds.mid or math.inf) / (question.itl_seconds or 1.0)]
        if self.is_p95:
            itls.append(self._p95(running) / self._p95(self.seen.running))
        ttft = (found.ttft_seconds.mid or math.inf) / (question.ttft_seconds or 1.0)
        slow, middle, fast = (
            SloLoad(
                running,
                rate.mid * math.exp(-end * of_rate),
                _times(self.seen.itl_ratio, itl * math.exp(end * of_rate)),
                _times(self.seen.ttft_ratio, ttft * math.exp(end * of_ttft)),
            )
            for end, itl in ((1, max(itls)), (0, itls[-1]), (-1, min(itls)))
        )
        return slow, middle, fast

    @cached_property
    def _same(self) -> Question:
        asked = replace(self.question, to_kv_dtype=None)
        return replace(asked, to_gpu=asked.from_gpu, to_dtype=asked.dtype, to_gpus=asked.gpus)

    @cached_property
    def _side(self) -> Side:
        job = self.question.job_here
        machine = next(iter(machines_of(job, self.question.from_gpu, {})))
        return side(job, machine, shipped_calibration())

    def _p95(self, running: float) -> float:
        """Calculated seconds of a step in the slowest twentieth."""
        whole = self._side
        found = side_at(whole.job, whole.machine, whole.rates, shipped_calibration(), running).cycle
        has_prompts = found.mixed_steps > P95_SHARE * whole.job.output_tokens
        return found.mixed_seconds if has_prompts else found.decode_seconds


def _loads(least: float, most: float) -> Iterator[float]:
    """Running requests from above the minimum to the maximum, evenly spaced in logarithms."""
    span = math.log(most / least)
    return (least * math.exp(span * step / _LOADS) for step in range(1, _LOADS + 1) if span > 0)


def _within(loads: Sequence[SloLoad]) -> tuple[float, bool]:
    return within_targets(loads) or (loads[0].output_tokens_per_second, True)


def _running_at(loads: Sequence[SloLoad], rate: float) -> float:
    """The running requests at which a curve gives a rate, interpolated in logarithms."""
    for less, more in pairwise(loads):
        here, there = less.output_tokens_per_second, more.output_tokens_per_second
        if here <= rate < there:
            share = math.log(rate / here) / math.log(there / here)
            return less.running * math.pow(more.running / less.running, share)
    return loads[-1].running


def _times(ratio: float | None, factor: float) -> float | None:
    return None if ratio is None else ratio * factor
