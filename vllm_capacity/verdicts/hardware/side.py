"""One machine of a question under a load: how many sequences run, and the arithmetic of it.

Of two of them: how much say the ratio by data sheets has beside that of timed kernels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

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
"""How much say the data sheets' ratio has beside that of timed kernels between two architectures,
where no run bore out the kernels of that weight type on both: of 0 to 0.3 in tenths, what came
nearest to the silicon pairs, their models left out (of B200 and H200 8.5 % for 14.7 % without it).
Where runs did, and within one architecture, it only costs: of the same pairs, with but their number
of GPUs left out of the fit, 4.6 % for 3.0 % in the median, of H100 and H200 3.3 % for 0.8 %."""
UNTIMED_SHEET_SHARE = 0.75
"""The same where a GPU is of Ampere or of an architecture without tables: A100's tables hold 16-bit
kernels alone, of an older vLLM. Of 0 to 1 in quarters, what came nearest to the pairs of A100 and
H100, their models left out (6.3 % for 14.5 % without data sheets; those of 2024 10.7 % for 12.6 %).
"""
THIN_TABLES = "Ampere"
"""Whose tables hold no more than that."""
QUEUED_PROMPTS = 0.36
"""The power of the clients that a prompt's wait grows with: clients that were served together come
together again. Fitted to the silicon rows, whose clients do; independent ones wait less."""

Forms = Mapping[str, Sequence[str]]
"""The form factors of each GPU, the usual first."""


@dataclass(frozen=True)
class Side:
    """One machine of a span under a load: its batch, and the arithmetic of it."""

    machine: Machine
    job: Job
    rates: Rates
    batch: float
    cycle: Cycle

    @property
    def sequence_seconds(self) -> float:
        """Seconds per output token of one sequence, its share of prompts included."""
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
    def ttft_seconds(self) -> float:
        """Seconds to the first token: its prompt's steps, the step that runs, prompts before it."""
        prompt_steps = math.ceil(self.job.input_tokens / self.machine.tokens_per_step)
        own = prompt_steps * self.cycle.mixed_seconds + 0.5 * self.cycle.decode_seconds
        return own * math.pow(self.batch, QUEUED_PROMPTS)


def side(
    job: Job, machine: Machine, calibration: Calibration, *, clients: float | None = None
) -> Side:
    """A machine at a job, as many sequences running as it admits, of `clients` where told."""
    batch = saturated_batch(job, machine, offered=clients or CLIENTS_OFFERED)
    return side_at(
        job, machine, rates(machine, job.llm, job.dtype, calibration), calibration, batch
    )


def side_at(
    job: Job, machine: Machine, found: Rates, calibration: Calibration, batch: float
) -> Side:
    """A machine at a job, so many sequences running; its rates are known."""
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
    """The machines a span stands for, its middle first; rows that cannot run the job left out."""
    fit = [row for row in span.rows if not impossible(job, row)]
    order = {form: place for place, form in enumerate(prefer.get(span.rows[0].gpu, ()))}
    fit.sort(key=lambda row: (order.get(row.form_factor, len(order)), -row.mem_bw_tb_s))
    for row in fit:
        low, high = tensor_tflops_range(row, gpus()) or (1.0, 1.0)
        ends = [] if low == high else [low, high]
        for tflops in (math.sqrt(low * high), *ends):
            yield Machine(row, tflops)


def sheet_share(one: Side, other: Side) -> float:
    """How much say the ratio of data sheets has between two machines, 0..1.

    None between two counts of one GPU: what its kernels were timed at scales by itself. Nor where
    both chips were timed and are of one architecture, or published runs bore their kernels out.
    """
    if (one.machine.gpu, one.job.dtype) == (other.machine.gpu, other.job.dtype):
        return 0.0
    if not have_tables(one, other):
        return UNTIMED_SHEET_SHARE
    here, there = one.rates, other.rates
    is_one = one.machine.gpu.family == other.machine.gpu.family
    is_sure = is_one or (here.is_borne_out and there.is_borne_out)
    return 0.0 if here.is_timed and there.is_timed and is_sure else SHEET_SHARE


def have_tables(one: Side, other: Side) -> bool:
    """Whether kernels were timed on both architectures, in more than 16 bits."""
    found = ((each.machine.gpu, peer_of(each.machine.gpu)) for each in (one, other))
    return all(gpu.family == peer.family != THIN_TABLES for gpu, peer in found)


def kernel_words(each: Side) -> str:
    """Whose kernels speak for a GPU that has no tables of its own; empty where it has."""
    gpu, found = each.machine.gpu, each.rates
    if found.peer:
        return f"{gpu.name}: by its data sheet beside {found.peer}, whose kernels were timed"
    if found.lent:
        return f"{gpu.name}: no {each.job.dtype} kernel was timed on it"
    return ""


def side_words(each: Side, clients: float | None) -> str:
    """How many run on it, what limits them, and what takes most of their time."""
    if each.batch == clients:
        limit = "clients"
    elif each.batch >= 0.92 * each.machine.max_num_seqs:
        limit = "max_num_seqs"
    elif each.batch >= CLIENTS_OFFERED:
        limit = "assumed load"
    else:
        limit = "KV room"
    mixed = each.cycle.mixed_steps * each.cycle.mixed_seconds
    share = mixed / (each.sequence_seconds * each.job.output_tokens)
    mostly = "prompts" if share > 0.5 else "decoding"
    return f"{each.machine.gpu.name}: {each.batch:.0f} running ({limit}), mostly {mostly}"
