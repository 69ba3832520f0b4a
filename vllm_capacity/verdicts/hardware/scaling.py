"""The ratio that a what-if scales by: rate on H over rate on G, saturated, light, or as counted.

Where the question tells how many clients were held, both sides are reckoned at that many running
(`sides`), or as many of them as fit. Where it tells the requests per second that came, H is
reckoned saturated, for `whatif` to cap at what came; a G that kept up with them may have had more
to give (`spare_log`). Where it tells neither, the measured rate has to say what load it was:

A rate of under `LIGHT_LOAD` of what the arithmetic says G could do is one that the client limits:
of the published runs at saturation, their models left out of the fit, none lay lower. Then H
serves the same clients, and there are two readings: an open load (users come as they come) draws
the same rate from H; held clients (a load test) draw the more, the sooner each is served. Between
`LIGHT_LOAD` and `IDLE_LOAD` the saturated ratio fades into those, for a server may also be slow.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from vllm_capacity.facts.gpus import GpuSpan, gpus
from vllm_capacity.verdicts.hardware.question import Question
from vllm_capacity.verdicts.hardware.refusal import impossible
from vllm_capacity.verdicts.hardware.roofline import (
    OFFERED,
    Calibration,
    Job,
    Machine,
    Times,
    request_times,
    saturated_batch,
    tensor_tflops_range,
    usable_share,
)

PLAIN_SHARE = 0.15
"""How far the scaling leans on the plain ratio of data sheets: what no term above foresees."""
LIGHT_LOAD = 0.6
IDLE_LOAD = 0.1
MOST_OVER = 2.0
"""How far a measured rate may exceed the arithmetic: published ones, left out of it, did 1.7 ×."""
CLOSED_SHARE = 0.6
"""How far a light load is read as held clients: load tests hold clients, users come as they come.

The band reaches the other reading, the same rate.
"""

Forms = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Side:
    """One machine of a span at saturation, or at the clients that a question tells."""

    machine: Machine
    job: Job
    times: Times

    @property
    def rate(self) -> float:
        """Output tokens per second by the arithmetic."""
        return self.job.output_tokens / self.times.total


def sides(
    job: Job, span: GpuSpan, prefer: Forms, cal: Calibration, *, clients: float | None = None
) -> Iterator[Side]:
    """The machines a span stands for, its middle first; unfit rows are left out."""
    fit = [row for row in span.rows if not impossible(job, row)]
    order = {form: place for place, form in enumerate(prefer.get(span.rows[0].gpu, ()))}
    fit.sort(key=lambda row: (order.get(row.form_factor, len(order)), -row.mem_bw_tb_s))
    machines = []
    for row in fit:
        low, high = tensor_tflops_range(row, gpus()) or (1.0, 1.0)
        machines += [Machine(row, tflops) for tflops in sorted({math.sqrt(low * high), low, high})]
        if low != high:
            machines[-3:] = [machines[-2], machines[-3], machines[-1]]
    for machine in machines:
        yield loaded_side(job, machine, cal, clients=clients)


def loaded_side(job: Job, machine: Machine, cal: Calibration, *, clients: float | None) -> Side:
    """A machine at a job, as many sequences running as it admits, of `clients` where told."""
    batch = saturated_batch(job, machine, offered=clients or OFFERED)
    return Side(machine, job, request_times(job, machine, batch=batch, calibration=cal))


def log_ratio(question: Question, one: Side, other: Side, cal: Calibration) -> float:
    """The logarithm of the rate on H over the measured rate on G, between these two machines."""
    measured = question.output_tokens_per_second
    saturated = (1 - PLAIN_SHARE) * math.log(other.rate / one.rate)
    saturated += PLAIN_SHARE * _plain_log(one, other) + headroom_log(question, one)
    lightness = light_load_weight(question, one)
    if not lightness:
        return saturated
    closed = saturated
    if not question.load.is_known:
        clients = _clients(measured, one, cal)
        there = _rate(other, min(clients, other.times.batch), cal)
        closed = math.log(there / _rate(one, clients, cal))
    open_load = min(0.0, math.log(one.rate / measured) + saturated)
    light = CLOSED_SHARE * closed + (1 - CLOSED_SHARE) * open_load
    return lightness * light + (1 - lightness) * saturated


def light_load_weight(question: Question, one: Side) -> float:
    """How far a rate on G is read as the clients' doing: 0 from `LIGHT_LOAD`, 1 to `IDLE_LOAD`.

    0 where the question tells that G gave all it could, or that it served all that came.
    """
    if question.load.is_capacity or question.is_kept_up:
        return 0.0
    share = question.output_tokens_per_second / one.rate
    if share >= LIGHT_LOAD:
        return 0.0
    return min(math.log(LIGHT_LOAD / share) / math.log(LIGHT_LOAD / IDLE_LOAD), 1.0)


def excess(question: Question, one: Side) -> float:
    """How many times a rate on G exceeds what published runs ever exceeded the arithmetic by; 1."""
    return max(question.output_tokens_per_second / one.rate / MOST_OVER, 1.0)


def headroom_log(question: Question, one: Side) -> float:
    """The logarithm of what G could do over what it did; 0 unless it kept up with an open load."""
    if not question.is_kept_up:
        return 0.0
    return max(math.log(one.rate / question.output_tokens_per_second), 0.0)


def utilization_log(
    flops_ratio: float, bandwidth_ratio: float, one: Side, other: Side, cal: Calibration
) -> float:
    """The logarithm of the ratio where the engine says what it was busy with, at the same batch.

    Of each second on G, compute took FLOPS used ÷ usable, memory bandwidth used ÷ usable; both
    scale by the data sheets, what is left (the host) does not.
    """
    batch = one.times.batch
    here, there = (
        request_times(side.job, side.machine, batch=batch, calibration=cal) for side in (one, other)
    )
    compute = min(flops_ratio / usable_share(one.job, one.machine, cal), 1.0)
    memory = min(bandwidth_ratio / cal.bandwidth, 1.0)
    core = min(max(compute, memory), 1.0)
    scaled = max(
        compute * there.compute / here.compute,
        memory * (there.weights + there.kv) / (here.weights + here.kv),
    )
    return -math.log(scaled + (1 - core))


def _plain_log(one: Side, other: Side) -> float:
    """The logarithm of the plain ratio of data sheets: bandwidth and FLOPS at 7 to 3."""
    here, there = one.machine, other.machine
    bandwidth = math.log(there.gpu.mem_bw_tb_s / here.gpu.mem_bw_tb_s)
    return 0.7 * bandwidth + 0.3 * math.log(there.tensor_tflops / here.tensor_tflops)


def _rate(side: Side, batch: float, cal: Calibration) -> float:
    times = request_times(side.job, side.machine, batch=batch, calibration=cal)
    return side.job.output_tokens / times.total


def _clients(rate: float, side: Side, cal: Calibration) -> float:
    """How many running sequences would give that rate; 1 where even one gives more."""
    low, high = 1.0, side.times.batch
    if _rate(side, low, cal) >= rate:
        return low
    for _ in range(40):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if _rate(side, middle, cal) < rate else (low, middle)
    return high
