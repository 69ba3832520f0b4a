"""The cost of a million output tokens at the same interactivity: a curve per GPU, load by load.

If loads were measured, each is moved to the other GPU separately (the reason is in
`elsewhere.moved_curve`); else others are calculated from the observed load. A GPU that is cheaper
when full need not be cheaper at the inter-token latency (ITL) that users are promised.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from msgspec import Struct
from msgspec.structs import replace

from vllm_capacity.estimate import Estimate, Figures
from vllm_capacity.facts.gpus import GpuSpan
from vllm_capacity.record import Record
from vllm_capacity.verdicts.hardware.elsewhere import MAX_TIMES, Ask
from vllm_capacity.verdicts.hardware.question import Load, Question
from vllm_capacity.verdicts.hardware.serving import Machine, saturated_batch

MAX_CURVES = 5
"""Maximum number of GPUs whose curves are drawn: the one in use and the best others."""
MAX_POINTS = 10
"""Maximum number of points of a curve: more add no information."""
MIN_LOADS = 3
"""Minimum number of measured loads for a curve."""
P95, MAX_P95, MEAN = "p95 ITL", "p95 ITL at most", "mean ITL"


class ItlLoad(Struct, frozen=True):
    """One measured load of an engine, with its p95 ITL."""

    running: float
    output_tokens_per_second: float
    itl_seconds: float


class GpuLoad(Figures, frozen=True):
    """The output, speed and cost of one engine of a GPU at a load."""

    running_requests: float
    output_tokens_per_second: Estimate
    itl_seconds: Estimate
    usd_per_million_output_tokens: Estimate


class GpuCurve(Record, frozen=True):
    """One GPU under loads, lightest first.

    `itl` says what the ITLs are: `P95`, `MAX_P95` (all that a histogram shows of one in its
    first bucket) or `MEAN`. `is_measured`: the loads were measured, on the GPU in use; else they
    are calculated from one.
    """

    gpu: str
    itl: str
    is_measured: bool
    loads: tuple[GpuLoad, ...]

    def cheapest(self, itl_target_seconds: float | None) -> Estimate | None:
        """The lowest cost of a million tokens at any load within the target; None without one."""
        costs = [
            load.usd_per_million_output_tokens
            for load in self.loads
            if itl_target_seconds is None or (load.itl_seconds.mid or 0.0) <= itl_target_seconds
        ]
        return min(costs, key=lambda cost: cost.mid or 0.0, default=None)


class Interactivity(Record, frozen=True):
    """Cost against ITL: the curve of each GPU, the one in use first; or why there is none.

    `reason` is empty if there is one. `itl_target_seconds` is the target for p95 ITL, None if there
    is none.
    """

    curves: tuple[GpuCurve, ...] = ()
    reason: str = ""
    itl_target_seconds: float | None = None


def gpu_curves(
    question: Question,
    priced: Sequence[tuple[GpuSpan, Estimate]],
    ask: Ask,
    *,
    loads: Sequence[ItlLoad] = (),
    itl: str = MEAN,
) -> tuple[GpuCurve, ...]:
    """The curve of each GPU, at its price per GPU-hour; none for a GPU that cannot serve.

    `question` gives model, GPUs and lengths and, if there are fewer than `MIN_LOADS` measured
    `loads`, the load that the others are calculated from, with an ITL of kind `itl`.
    """
    is_measured = len(loads) >= MIN_LOADS
    found = []
    for gpu, price in priced:
        asked = replace(question, to_gpu=gpu)
        each = _moved(asked, _downsampled(loads)) if is_measured else _calculated(asked)
        points = [_point(one, running, price, ask) for running, one in each]
        known = tuple(point for point in points if point is not None)
        if len(known) > 1:
            found.append(GpuCurve(gpu.label, P95 if is_measured else itl, is_measured, known))
    return tuple(found)


def _moved(asked: Question, loads: Sequence[ItlLoad]) -> Iterator[tuple[float, Question]]:
    for load in loads:
        yield (
            load.running,
            replace(
                asked,
                output_tokens_per_second=load.output_tokens_per_second,
                load=Load(clients=max(load.running, 1.0)),
                at=None,
                itl_seconds=load.itl_seconds,
            ),
        )


def _calculated(asked: Question) -> Iterator[tuple[float, Question]]:
    """Loads that double each time, up to what that GPU admits, within the validity of one load."""
    gpu = asked.to_gpu.rows[0]
    most = saturated_batch(asked.job_there, Machine(gpu, gpu.tensor_tflops or 1.0))
    seen = asked.load.clients
    low = max(1.0, (most if seen is None else seen) / MAX_TIMES)
    high = most if seen is None else min(most, seen * MAX_TIMES)
    for power in range(math.ceil(math.log2(low)), math.floor(math.log2(max(high, 1.0))) + 1):
        running = 2.0**power
        yield running, replace(asked, at=Load(clients=running))


def _downsampled(loads: Sequence[ItlLoad]) -> list[ItlLoad]:
    """At most `MAX_POINTS` of the loads, evenly by index, including the lightest and heaviest."""
    ordered = sorted(loads, key=lambda load: load.running)
    if len(ordered) <= MAX_POINTS:
        return ordered
    step = (len(ordered) - 1) / (MAX_POINTS - 1)
    return [ordered[round(place * step)] for place in range(MAX_POINTS)]


def _point(asked: Question, running: float, price: Estimate, ask: Ask) -> GpuLoad | None:
    found = ask(asked)
    rate, itl = found.output_tokens_per_second, found.itl_seconds
    cost = price.scaled(asked.gpus_there).divided_by(rate.scaled(3600 / 1e6))
    if not (rate.is_known and itl.is_known and cost.is_known):
        return None
    return GpuLoad(running, rate, itl, cost)
