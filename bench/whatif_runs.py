"""The published runs that the what-if is fitted to and tested on, as pairs of two GPUs.

Four kinds. *Silicon*: held concurrencies of `data/silicon_vllm.csv`. *Saturated*: bursts and peaks
of sweeps of `data/published_throughput.csv`. *Light*: the loads of those sweeps under a saturating
one, and few held clients. *2024*: `whatif_pairs_2024.csv`, pairs of vLLM 0.5 on slower hosts.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import polars as pl
from msgspec.structs import replace

from vllm_capacity.facts.gpus import find_gpu
from vllm_capacity.facts.llms import find_llm
from vllm_capacity.facts.throughput import Measurement, measurements, silicon_measurements
from vllm_capacity.resources import shipped
from vllm_capacity.verdicts.hardware.question import Load
from vllm_capacity.verdicts.hardware.serving import (
    CLIENTS_OFFERED,
    Job,
    Machine,
    saturated_batch,
    sequences_that_fit,
)

PAIRS_2024 = Path(__file__).parent / "whatif_pairs_2024.csv"
HELD_BACK = Path(__file__).parents[1] / "tests" / "verdicts" / "whatif_held_back.csv"
SEQUENCES_2024 = 256
"""The default `max_num_seqs` of vLLM 0.5, on every GPU."""

NOT_STATED = "not stated"
SIXTEEN_BITS = ("0.17.0",)
"""The versions of vLLM whose silicon runs on Blackwell had a KV cache of 16 bits."""

Pair = tuple[Measurement, Measurement]


def saturated_runs() -> list[Measurement]:
    """One run for each model, type, GPU count and workload: the burst, or the sweep's peak."""
    groups: dict[tuple[object, ...], list[Measurement]] = defaultdict(list)
    for run in measurements():
        if run.clients is None:
            groups[run.model, run.dtype, run.gpu, run.gpus, run.workload].append(run)
    peaks = []
    for runs in groups.values():
        rates = [run.output_tokens_per_second for run in runs]
        rate = statistics.median(rates) if runs[0].is_burst else max(rates)
        peaks.append(replace(runs[0], output_tokens_per_second=rate))
    return peaks


def saturated_pairs(runs: list[Measurement]) -> list[Pair]:
    """Each A100 run with each H100 run of its model, GPU count and workload, types across."""
    return [
        (one, other)
        for one in runs
        for other in runs
        if one.gpu.startswith("A100")
        and other.gpu.startswith("H100")
        and (one.model, one.gpus) == (other.model, other.gpus)
        and one.workload[:12] == other.workload[:12]
    ]


def silicon_runs() -> list[Measurement]:
    """The runs of models that were measured on several GPUs.

    Of the other two, one was asked with cached prompts (tens of milliseconds to the first token of
    8,000) and one ran an eager server: neither says what a GPU does.
    """
    runs = silicon_measurements()
    return [
        run for run in runs if len({other.gpu for other in runs if other.model == run.model}) > 1
    ]


def silicon_pairs(*, is_split_alike: bool = False) -> list[Pair]:
    """Each silicon run with each of its model, type, GPU count, lengths and clients elsewhere.

    One pair for two setups: of repeats and versions the latest speaks, as far as the two sides have
    a version in common, else the latest of each. `is_split_alike`: only those that also split their
    experts over the GPUs alike (tensor or expert parallelism): 246 pairs, 492 in both directions.
    """
    groups: dict[tuple[object, ...], dict[str, list[Measurement]]] = defaultdict(
        lambda: defaultdict(list)
    )
    splits = _splits() if is_split_alike else {}
    for run in silicon_runs():
        key = (run.model, run.dtype, run.gpus, run.workload, run.clients, splits.get(run.source))
        groups[key][run.gpu].append(run)
    return [
        max(
            ((one, other) for one in sides[here] for other in sides[there]),
            key=lambda pair: (is_one_version(*pair), pair[0].date, pair[1].date),
        )
        for sides in groups.values()
        for here in sides
        for there in sides
        if here < there
    ]


def _splits() -> dict[str, tuple[int, int]]:
    """How each silicon row splits its experts, by source: tensor and expert parallelism."""
    rows = pl.read_csv(shipped("data/silicon_vllm.csv"))
    return {row["source"]: (row["moe_tp"], row["moe_ep"]) for row in rows.iter_rows(named=True)}


def sweep_ends() -> list[Pair]:
    """The lightest and the heaviest run of each silicon sweep: one setup, one version of vLLM."""
    ends = ((runs[0], runs[-1]) for runs in silicon_sweeps())
    return [(least, most) for least, most in ends if least.clients < most.clients]


def silicon_sweeps() -> Iterator[list[Measurement]]:
    """The runs of each setup and version of vLLM, lightest first."""
    sweeps: dict[tuple[object, ...], list[Measurement]] = defaultdict(list)
    for run in silicon_runs():
        setup = run.model, run.dtype, run.gpu, run.gpus, run.workload, run.engine_version
        sweeps[setup].append(run)
    for runs in sweeps.values():
        yield sorted(runs, key=lambda run: run.clients)


def is_one_version(one: Measurement, other: Measurement) -> bool:
    """Whether two runs were of one version of vLLM, as far as both say which."""
    return one.engine_version == other.engine_version != NOT_STATED


def kv_dtype(run: Measurement) -> str:
    """The type of a silicon run's KV cache, by the recipe that started it (`data/README.md`)."""
    is_blackwell = find_gpu(run.gpu).rows[0].family == "Blackwell"
    return "fp8" if is_blackwell and run.engine_version not in SIXTEEN_BITS else "auto"


def light_pairs() -> list[Pair]:
    """Each A100 run with each H100 run of its load, where that load leaves a GPU to spare."""
    groups: dict[tuple[object, ...], list[Measurement]] = defaultdict(list)
    for run in measurements():
        if run.clients is not None or run.offered_requests_per_second <= 10:
            groups[run.model, run.dtype, run.gpus, run.workload, run.load].append(run)
    found = []
    for runs in groups.values():
        sides = [[run for run in runs if run.gpu.startswith(card)] for card in ("A100", "H100")]
        if all(sides):
            rates = [statistics.median(r.output_tokens_per_second for r in side) for side in sides]
            one, other = (
                replace(side[0], output_tokens_per_second=rate)
                for side, rate in zip(sides, rates, strict=True)
            )
            found.append((one, other))
    return found


def table_pairs(path: Path) -> Iterator[Pair]:
    """The pairs of a table of them, a row each."""
    for row in pl.read_csv(path).iter_rows(named=True):
        one, other = (
            Measurement(
                model=find_llm(row["model"]).model,
                dtype=row["dtype"],
                gpu=row[f"{side}_gpu"],
                gpus=row["gpus"],
                engine_version="",
                workload=f"{row['input_tokens']}/{row['output_tokens']}",
                input_tokens=float(row["input_tokens"]),
                output_tokens=float(row["output_tokens"]),
                load=row["load"],
                clients=row["clients"],
                offered_requests_per_second=row["offered_requests_per_second"] or math.inf,
                output_tokens_per_second=float(row[f"{side}_output_tok_per_s"]),
                source=row["source"],
                date="",
                note="",
            )
            for side in ("one", "other")
        )
        yield one, other


def load_of(run: Measurement) -> Load:
    """The load as a question tells it: what came per second, or what was held or sent at once."""
    if math.isfinite(run.offered_requests_per_second):
        return Load(requests_per_second=run.offered_requests_per_second)
    return Load(clients=run.clients) if run.clients else Load(is_capacity=True)


def source(run: Measurement) -> str:
    """Whose measurement it is: the first word of its source, a repository."""
    return run.source.split()[0]


def is_2024(run: Measurement) -> bool:
    return "vLLM 0.5" in run.load or "vLLM of 2024" in run.load


@dataclass(frozen=True)
class Run:
    """A published run as the fit needs it. `pair` is what it shares with its other side."""

    job: Job
    machine: Machine
    batch: float
    tokens_per_step: float
    output_tokens_per_second: float
    kind: str
    version: str
    source: str
    setup: str
    pair: object


def every_run() -> Iterator[Run]:
    """The runs that the what-if is fitted to: silicon, saturated ones and those of 2024."""
    for run in silicon_runs():
        key = (run.model, run.dtype, run.gpus, run.workload, run.clients)
        yield _run(run, "silicon", key)
    tables = {
        "2025": saturated_pairs(saturated_runs()),
        "2024": list(table_pairs(PAIRS_2024)),
    }
    for kind, pairs in tables.items():
        for place, pair in enumerate(pairs):
            for run in pair:
                yield _run(run, kind, (kind, place))


def machine_of(run: Measurement) -> Machine:
    """The GPU of a run, SXM if its form factor is not stated."""
    span = find_gpu(run.gpu)
    gpu = next((row for row in span.rows if row.form_factor == "SXM"), span.rows[0])
    return Machine(gpu, gpu.tensor_tflops)


def _run(run: Measurement, kind: str, pair: object) -> Run:
    machine = machine_of(run)
    job = Job(find_llm(run.model), run.dtype, run.gpus, run.input_tokens, run.output_tokens)
    return Run(
        job=job,
        machine=machine,
        batch=batch_of(run, job, machine, offered=float(run.clients or CLIENTS_OFFERED)),
        tokens_per_step=float(machine.tokens_per_step),
        output_tokens_per_second=run.output_tokens_per_second,
        kind=kind,
        version=run.engine_version,
        source=source(run),
        setup=f"{run.gpu} {run.dtype}",
        pair=pair,
    )


def batch_of(run: Measurement, job: Job, machine: Machine, *, offered: float) -> float:
    """Sequences that ran: as many as the run held, or as its load and the memory let run."""
    if "held sequences" in run.load:
        return float(run.clients)
    if is_2024(run):
        tokens = run.input_tokens + run.output_tokens / 2
        fit = sequences_that_fit(job, machine, tokens=tokens)
        return max(1.0, min(0.92 * SEQUENCES_2024, fit))
    return saturated_batch(job, machine, offered=offered)
