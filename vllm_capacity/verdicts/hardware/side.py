"""One machine of a question under a load: how many sequences run, and how fast.

Also, for two of them, the weight of the data sheets' ratio next to that of timed kernels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from msgspec import Struct

from vllm_capacity.facts.gpus import GpuSpan, gpus
from vllm_capacity.verdicts.hardware.question import impossible
from vllm_capacity.verdicts.hardware.serving import (
    CLIENTS_OFFERED,
    Calibration,
    Cycle,
    Job,
    Machine,
    Rates,
    cycle,
    peer_of,
    rates,
    saturated_batch,
    tensor_tflops_range,
)

SHEET_SHARE = 0.2
"""The weight of the data sheets' ratio next to that of timed kernels, between two architectures.

Only if published runs did not validate the kernels of that weight type on both. Of 0 to 0.3 in
tenths, the nearest to the silicon pairs, with their models left out (for B200 and H200 8.5 %
against 14.7 % without it). If runs did, and within one architecture, it makes results worse: for
the same pairs, with only their GPU count left out of the fit, 4.6 % against 3.0 % in the median,
for H100 and H200 3.3 % against 0.8 %.
"""
UNTIMED_SHEET_SHARE = 0.75
"""The same if a GPU is of Ampere or of an architecture without tables.

A100's tables only have 16-bit kernels, of an older vLLM. Of 0 to 1 in quarters, the nearest to the
pairs of A100 and H100, with their models left out (6.3 % against 14.5 % without data sheets; for
those of 2024, 10.7 % against 12.6 %).
"""
THIN_TABLES = "Ampere"
"""The architecture whose tables only have 16-bit kernels."""
QUEUED_PROMPTS = 0.28
"""The exponent with which a prompt's wait grows with the number of clients, besides the queue.

Clients that were served together arrive together again; independent ones wait less. Fitted to the
silicon rows of gpt-oss-120b, whose clients do so; those of MiniMax-M2.5 alone give 0.32.
"""

Forms = Mapping[str, Sequence[str]]
"""The form factors of each GPU, the most common first."""


class Side(Struct, frozen=True):
    """One machine of a span under a load: its batch, and the calculated cycle."""

    machine: Machine
    job: Job
    rates: Rates
    batch: float
    cycle: Cycle

    @property
    def sequence_seconds(self) -> float:
        """Seconds per output token of one sequence, including its share of prompts."""
        return self.cycle.seconds_per_token

    @property
    def seconds_per_token(self) -> float:
        """Seconds per output token of the whole engine."""
        return self.sequence_seconds / self.batch

    @property
    def rate(self) -> float:
        """Output tokens per second."""
        return 1 / self.seconds_per_token

    @property
    def prompt_ratio(self) -> float:
        """The share of the engine's time that prompts take, beyond steps that only decode, 0..1."""
        added = self.cycle.mixed_steps * (self.cycle.mixed_seconds - self.cycle.decode_seconds)
        return added / (self.sequence_seconds * self.job.output_tokens)

    @property
    def ttft_seconds(self) -> float:
        """Seconds to the first token: its prompt's steps, the current step, earlier prompts.

        As in any queue, the wait grows as 1 / (1 - utilization), here by prompts; at most as if
        those of all other clients came first.
        """
        prompt_steps = math.ceil(self.job.input_tokens / self.machine.tokens_per_step)
        own = prompt_steps * self.cycle.mixed_seconds + 0.5 * self.cycle.decode_seconds
        waits = math.pow(self.batch, QUEUED_PROMPTS) / (1 - self.prompt_ratio)
        return own * min(waits, self.batch)


def side(
    job: Job, machine: Machine, calibration: Calibration, *, clients: float | None = None
) -> Side:
    """A machine at a job, with as many running sequences as it admits, of `clients` if given."""
    batch = saturated_batch(job, machine, offered=clients or CLIENTS_OFFERED)
    return side_at(
        job, machine, rates(machine, job.llm, job.dtype, calibration), calibration, batch
    )


def side_at(
    job: Job, machine: Machine, found: Rates, calibration: Calibration, batch: float
) -> Side:
    """A machine at a job with `batch` running sequences; its rates are known."""
    steady = cycle(
        job.work,
        found.kernels,
        calibration.host,
        batch=batch,
        input_tokens=job.input_tokens,
        output_tokens=job.output_tokens,
        tokens_per_step=float(machine.tokens_per_step),
    )
    return Side(machine, job, found, batch, steady)


def machines_of(job: Job, span: GpuSpan, prefer: Forms) -> Iterator[Machine]:
    """The machines that a span covers, its middle first, without rows that cannot run the job."""
    fit = [row for row in span.rows if not impossible(job, row)]
    order = {form: place for place, form in enumerate(prefer.get(span.rows[0].gpu, ()))}
    fit.sort(key=lambda row: (order.get(row.form_factor, len(order)), -row.mem_bw_tb_s))
    for row in fit:
        low, high = tensor_tflops_range(row, gpus()) or (1.0, 1.0)
        ends = [] if low == high else [low, high]
        for tflops in (math.sqrt(low * high), *ends):
            yield Machine(row, tflops)


def sheet_share(one: Side, other: Side) -> float:
    """The weight of the data sheets' ratio between two machines, 0..1.

    0 between two counts of one GPU: timings of its kernels scale directly. Also 0 if both chips
    were timed and are of one architecture, or published runs validated their kernels.
    """
    if (one.machine.gpu, one.job.dtype) == (other.machine.gpu, other.job.dtype):
        return 0.0
    if not have_tables(one, other):
        return UNTIMED_SHEET_SHARE
    here, there = one.rates, other.rates
    is_one = one.machine.gpu.family == other.machine.gpu.family
    is_sure = is_one or (here.is_validated and there.is_validated)
    return 0.0 if here.is_timed and there.is_timed and is_sure else SHEET_SHARE


def have_tables(one: Side, other: Side) -> bool:
    """Whether kernels were timed on both architectures, not only in 16 bits."""
    found = ((each.machine.gpu, peer_of(each.machine.gpu)) for each in (one, other))
    return all(gpu.family == peer.family != THIN_TABLES for gpu, peer in found)


def kernel_words(each: Side) -> str:
    """Whose kernels stand in for a GPU without its own tables; empty if it has them."""
    gpu, found = each.machine.gpu, each.rates
    if found.peer:
        return f"{gpu.name}: scaled by data sheets from {found.peer}, whose kernels were timed"
    if found.lent:
        return f"{gpu.name}: no {each.job.dtype} kernels were timed on it"
    return ""


def side_words(each: Side, clients: float | None) -> str:
    """How many sequences run on it, what limits them, and what takes most of their time."""
    if each.batch == clients:
        limit = "clients"
    elif each.batch >= 0.92 * each.machine.max_num_seqs:
        limit = "max_num_seqs"
    elif each.batch >= CLIENTS_OFFERED:
        limit = "assumed load"
    else:
        limit = "KV cache"
    mixed = each.cycle.mixed_steps * each.cycle.mixed_seconds
    share = mixed / (each.sequence_seconds * each.job.output_tokens)
    mostly = "prefill" if share > 0.5 else "decoding"
    return (
        f"{each.machine.gpu.name}: concurrency {each.batch:.0f} (limit: {limit}), mostly {mostly}"
    )
