"""The capacity of a server that was never loaded: calculated, corrected by its own ITL.

If telemetry only gives "at least", and the GPU, the model and the weight type are known, the
step-time model gives more: the output of the same engine with as many requests as its KV cache
admits, corrected by the time per token at its own light load (`elsewhere.full_from_light`). This is
an extrapolation: its band is calibrated on silicon sweeps, from their lightest load to heavier
ones, and widened for servers in production (`PRODUCTION_HALF_WIDTH`). It is shown next to the
measured bound, never instead of it.

There is no result, with the reason, if the calculation does not apply to this server, or cannot be
validated: nothing was served; prompts came from a cache, or tokens from speculation; no kernel of
that weight type was timed on that GPU, nor validated by published runs; at its own light load the
server is much faster or slower than calculated (another GPU, count or weight type than stated, or a
host that limits); the KV cache that it reports does not fit those GPUs; or it was seen to do more.
Within latency targets (`slo_from_light`) there is also none if the light load missed them.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from functools import partial

from msgspec import Struct, field
from msgspec.structs import replace

from vllm_capacity.assumptions import Slo
from vllm_capacity.errors import InputError
from vllm_capacity.estimate import Estimate, Figures
from vllm_capacity.facts.gpus import GpuSpan
from vllm_capacity.facts.llms import Llm
from vllm_capacity.record import Record
from vllm_capacity.verdicts.hardware.band import wider
from vllm_capacity.verdicts.hardware.elsewhere import (
    MAX_TIMES,
    Ask,
    full_from_light,
    heaviest_load,
)
from vllm_capacity.verdicts.hardware.question import Load, Question
from vllm_capacity.verdicts.hardware.serving import shipped_calibration
from vllm_capacity.verdicts.hardware.side import Side, machines_of, side
from vllm_capacity.verdicts.hardware.slo_from_light import within_from_light
from vllm_capacity.verdicts.hardware.what_if import what_if
from vllm_capacity.verdicts.saturation.fit import SaturationFit
from vllm_capacity.verdicts.saturation.slo import SloLoad, load_met, slo_load_near

MAX_CACHED = 0.2
"""The largest share of prompt tokens from a prefix cache for which the calculation applies."""
FASTEST, SLOWEST = 1.3, 0.6
"""The allowed range of a server's rate at the light load, relative to the calculated one.

The silicon sweeps on which the band is calibrated gave 0.73 to 1.11 of it.
"""
PRODUCTION_HALF_WIDTH = 0.15
"""What a server in production adds to half the band, in logarithms (the root of the squares' sum).

The silicon sweeps are from one laboratory, with clients kept busy. Of six steps of another one from
a light open load to saturation (`data/published_throughput.csv`), the band contained three without
this and contains five with it. Of 22 intervals of servers simulated by another law, 17 held without
it; of 19 of other servers, 17 with it.
"""
UNTIMED_HALF_WIDTH, UNTIMED_SHARE = 0.35, 0.9
"""The same for GPUs on which no kernel of the weight type was timed, and their share of the rate.

It applies if published runs validate the kernels lent by another GPU; the share is what such a GPU
gives of the calculated rate under a heavier load. MXFP4 on A100, which widens the weights to 16
bits: 25 saturated runs of two models, one laboratory's, gave 0.65 to 1.17 of it (models left out;
median 0.88), two of four clients 0.94 and 0.99.
"""
MAX_KV = 1.1
"""The largest reported KV cache, relative to the memory beside the weights: sizes are rounded."""

_PLAIN = ("full", "mla")
"""Attention types whose KV cache holds the reported tokens: windows and states have own blocks."""


class Setup(Struct, frozen=True):
    """The hardware and model of one engine, and how fast it served.

    `kv_tokens` is the size of its KV cache; latencies are means over the window. None: unknown.
    `kv_dtype` is the type of the KV cache (auto: 16 bits).
    """

    gpu: GpuSpan
    gpus: int
    llm: Llm
    input_tokens: float
    output_tokens: float
    ttft_seconds: float | None = None
    itl_seconds: float | None = None
    cached_ratio: float = 0.0
    kv_tokens: float | None = None
    kv_dtype: str = "auto"
    is_speculating: bool = False

    @property
    def reason(self) -> str:
        """Why the calculation does not apply to this engine; empty if it does."""
        if self.is_speculating:
            return "speculative decoding is on, for which the calculation is not calibrated"
        if self.cached_ratio > MAX_CACHED:
            return (
                f"{self.cached_ratio * 100:.0f} % of the prompt tokens came from the prefix cache, "
                "for which the calculation is not calibrated"
            )
        if self.kv_tokens is None or self.llm.attention not in _PLAIN:
            return ""
        each = self.llm.kv_bytes_per_token("fp8") / self.gpus
        weights = self.llm.weights_bytes(self.llm.weights_dtype) / self.gpus
        room = max(row.memory_bytes for row in self.gpu.rows) - weights
        if self.kv_tokens * each <= MAX_KV * room:
            return ""
        return (
            f"its KV cache of {self.kv_tokens:,.0f} tokens does not fit next to the weights on "
            f"{self.gpus} × {self.gpu.label}: check the GPU, the number of GPUs and the model"
        )

    @property
    def admitted(self) -> float | None:
        """How many requests its KV cache holds with half of their output; None if unknown."""
        if self.kv_tokens is None or self.llm.attention not in _PLAIN:
            return None
        return max(self.kv_tokens / (self.input_tokens + self.output_tokens / 2), 1.0)

    def asked(self, running: float) -> Question | None:
        """The light load that was measured, as a question; None without its latencies.

        Its rate follows from its latencies (Little's law), as for the silicon rows on which the
        step times were calibrated.
        """
        ttft, itl = self.ttft_seconds, self.itl_seconds
        if not ttft or not itl:
            return None
        each = ttft + itl * max(self.output_tokens - 1, 0.0)
        return Question(
            llm=self.llm,
            dtype=self.llm.weights_dtype,
            to_dtype=self.llm.weights_dtype,
            from_gpu=self.gpu,
            to_gpu=self.gpu,
            gpus=self.gpus,
            output_tokens_per_second=running * self.output_tokens / each,
            input_tokens=self.input_tokens,
            output_tokens=self.output_tokens,
            load=Load(clients=running),
            itl_seconds=itl,
            ttft_seconds=ttft,
            kv_dtype=self.kv_dtype,
        )


class Heaviest(Struct, frozen=True):
    """One engine under the heaviest load that the calculation covers: its output tokens/s there.

    `question` is the light load that it starts from. `is_full`: the engine admits no more than
    `running` requests; otherwise the capacity is higher. Within latency targets, `loads` are those
    that it was read from, with their latencies over the targets; else empty.
    """

    question: Question
    output_tokens_per_second: Estimate
    running: float
    is_full: bool
    loads: tuple[SloLoad, ...] = ()

    @property
    def capacity(self) -> Estimate:
        """Output tokens/s that the engine can do; a lower bound if it is not full at that load."""
        found, times = self.output_tokens_per_second, f"{MAX_TIMES:.0f} ×"
        if self.is_full or found.low is None:
            return found
        seen = self.question.load.clients or 1.0
        reason = (
            f"it admits a concurrency above {self.running:.3g}, but a load of {seen:.3g} only "
            f"supports estimates up to {times} as many"
        )
        return Estimate(found.low, None, None, found.basis, reason, found.kind, found.confidence)


def heaviest(fit: SaturationFit, setup: Setup | str, known: Estimate, ask: Ask) -> Heaviest | str:
    """One engine under the heaviest load that the calculation covers; text: why there is no result.

    `known` is the known capacity: the result is raised to its low end, and not shown if its own
    middle is below that. A `setup` that is text is the reason why there is none.
    """
    if isinstance(setup, str):
        return setup
    met = load_met([fit])
    question = None if met is None else setup.asked(met[0])
    if question is None:
        return "no tokens were served, so there is no measured latency to calculate from"
    if setup.reason:
        return setup.reason
    if unlike := _unlike(question):
        return unlike
    try:
        found = full_from_light(question, ask, admitted=setup.admitted)
    except InputError as refused:
        return str(refused)
    is_timed = not _is_lent(question)
    output = _no_less(in_production(found.output_tokens_per_second, is_timed=is_timed), known)
    if not output.is_known:
        return output.reason
    *rest, words = output.basis
    weights = f"weights as {setup.llm.weights_dtype}, {found.label}"
    if not is_timed:
        weights += (
            f": no {question.dtype} kernels were timed on {setup.gpu.label}, so those of another "
            "GPU are used, which published runs confirm within a third; hence the wide band"
        )
    output = replace(output, basis=(words, weights, *rest))
    return Heaviest(question, output, *heaviest_load(question, admitted=setup.admitted))


def heaviest_within(
    fit: SaturationFit, setup: Setup, full: Heaviest, slo: Slo, known: Estimate
) -> Heaviest | str:
    """The same within latency targets; text: why there is no result.

    `known` is the known throughput within them: the result is raised to its low end, and not shown
    if its own middle is below that.
    """
    question = full.question
    seen = slo_load_near(fit, slo, question.load.clients or 1.0)
    if seen is None:
        return "no step has the latencies that the targets are for"
    light = replace(
        seen,
        running=question.load.clients or 1.0,
        output_tokens_per_second=question.output_tokens_per_second,
    )
    found = within_from_light(
        question,
        light,
        what_if,
        admitted=setup.admitted,
        widen=partial(in_production, is_timed=not _is_lent(question)),
    )
    if found is None:
        return f"even the light load missed the targets: {seen.worst:.2g} × the nearest one"
    output = _no_less(found.output_tokens_per_second, known)
    if output.is_unknown:
        return output.reason
    output = output.capped(full.capacity)
    return Heaviest(question, output, found.running, output.is_known, found.loads)


def in_production(found: Estimate, *, is_timed: bool = True) -> Estimate:
    """The calculated figure with the band of a server in production; a bound keeps its low end.

    `is_timed`: kernels of its weight type were timed on its GPU.
    """
    share, more = (1.0, PRODUCTION_HALF_WIDTH) if is_timed else (UNTIMED_SHARE, UNTIMED_HALF_WIDTH)
    return wider(found, more, share=share)


def _unlike(question: Question) -> str:
    """Why the calculation does not apply to a server with that light load; empty if it does."""
    found, gpu = _sides(question), question.from_gpu.label
    if all(each.rates.lent and not each.rates.is_validated for each in found):
        return f"no {question.dtype} kernels were timed on {gpu}, so nothing validates an estimate"
    rate = question.output_tokens_per_second
    ratio = min((rate / each.rate for each in found), key=lambda each: abs(math.log(each)))
    if SLOWEST <= ratio <= FASTEST:
        return ""
    host = "; or the host may be the limit" if ratio < 1 else ""
    return (
        f"at a concurrency of {question.load.clients or 1.0:.3g} it produced {ratio:.2f} × the "
        f"tokens calculated for {question.gpus} × {gpu}: check the GPU, the number of GPUs, the "
        f"weight type and the model{host}"
    )


def _is_lent(question: Question) -> bool:
    """Whether no kernel of the weight type was timed on the GPU."""
    return all(each.rates.lent for each in _sides(question))


def _sides(question: Question) -> list[Side]:
    """The possible machines of the GPU, at the light load."""
    job = question.job_here
    return [
        side(job, machine, shipped_calibration(), clients=question.load.clients)
        for machine in machines_of(job, question.from_gpu, {})
    ]


def _no_less(found: Estimate, known: Estimate) -> Estimate:
    """The calculated figure, its low end raised to the known one; unknown if it is below that."""
    least = known.low
    if least is None or found.low is None:
        return found
    if found.mid is not None and found.mid < least:
        return Estimate.unknown(
            f"{found.mid:,.0f} output tokens/s were calculated, but {least:,.0f} were observed: "
            "check the GPU, the weight type and the model"
        )
    return replace(found, low=max(found.low, least))


class ByArithmetic(Figures, frozen=True):
    """What the servers could do under more load by arithmetic, shown beside what was measured.

    `gpu` and `model` are its inputs, and `running_requests` and `itl_seconds` the light load that
    corrected it (for several engines, their mean). `capacity_running_requests` is the load at
    capacity. These are None if no engine needed it. The figures are unknown, with the reason, if
    the capacity was found from the telemetry or arithmetic does not apply. The `slo_…` figures, and
    with targets the number of removable replicas, keep to the latency targets.
    """

    gpu: str | None
    model: str | None
    running_requests: float | None
    itl_seconds: float | None
    capacity_running_requests: float | None
    capacity_output_tokens_per_second: Estimate
    utilization: Estimate
    headroom_ratio: Estimate
    idle_usd: Estimate
    slo_throughput_output_tokens_per_second: Estimate
    slo_headroom_ratio: Estimate
    removable_replicas: Estimate
    saved_usd_per_day: Estimate

    @property
    def capacity(self) -> Estimate:
        """The most output tokens per second that all engines could produce."""
        return self.capacity_output_tokens_per_second

    @classmethod
    def silent(cls, reason: str) -> ByArithmetic:
        """An empty result, with its reason."""
        nothing = Estimate.unknown(reason)
        return cls(None, None, None, None, None, *(nothing for _ in range(8)))


class Calculated(Record, frozen=True):
    """The capacity of each engine of a window, by name: measured, or calculated.

    `asked` are the engines for which the calculation gave a result, `reason` is the most common
    reason why it did not for others. `within`, `asked_within` and `reason_within` are the same
    within latency targets; empty without any.
    """

    capacities: Mapping[str, Estimate]
    asked: Mapping[str, Heaviest]
    reason: str
    within: Mapping[str, Estimate] = field(default_factory=dict)
    asked_within: Mapping[str, Heaviest] = field(default_factory=dict)
    reason_within: str = ""

    @property
    def running_requests(self) -> float | None:
        """The light load used for the correction: the mean over engines; None without any."""
        found = [each.question.load.clients or 1.0 for each in self.asked.values()]
        return statistics.fmean(found) if found else None

    @property
    def capacity_running_requests(self) -> float | None:
        """The running requests at that capacity: the mean over engines; None without any."""
        return (
            statistics.fmean(each.running for each in self.asked.values()) if self.asked else None
        )

    @property
    def itl_seconds(self) -> float | None:
        """The mean ITL at the light load, engines weighted by their tokens/s; None without any."""
        asked = [each.question for each in self.asked.values()]
        if not asked:
            return None
        rates = [each.output_tokens_per_second for each in asked]
        return statistics.fmean([each.itl_seconds or 0.0 for each in asked], rates)


def calculated(
    fits: Mapping[str, SaturationFit],
    setups: Mapping[str, Setup | str],
    known: Mapping[str, Estimate],
    ask: Ask,
    *,
    slo: Slo | None = None,
    within: Mapping[str, Estimate] | None = None,
) -> Calculated:
    """The capacities of engines, calculated if `known` has only a bound, or nothing.

    `within` is their known throughput within the targets of `slo`. What is known is kept if there
    is no result.
    """
    unsure = [name for name, each in known.items() if not each.is_known and name in fits]
    met = within or {}
    if not unsure:
        reason = "the capacity was found from the telemetry"
        return Calculated(known, {}, reason, met, {}, reason)
    found = {name: heaviest(fits[name], setups[name], known[name], ask) for name in unsure}
    answered, reason = _answered(found)
    capacities = {**known, **{name: each.capacity for name, each in answered.items()}}
    if slo is None or not slo.targets:
        return Calculated(capacities, answered, reason)
    found_within = {
        name: heaviest_within(fits[name], setup, full, slo, met[name])
        for name, full in answered.items()
        if not met[name].is_known and isinstance(setup := setups[name], Setup)
    }
    answered_within, reason_within = _answered(found_within)
    reached = {name: each.output_tokens_per_second for name, each in answered_within.items()}
    reason_within = reason_within or reason
    return Calculated(
        capacities, answered, reason, {**met, **reached}, answered_within, reason_within
    )


def _answered(found: Mapping[str, Heaviest | str]) -> tuple[dict[str, Heaviest], str]:
    """The engines with a calculated result, and the most common reason why others have none."""
    silent = [each for each in found.values() if isinstance(each, str)]
    answered = {name: each for name, each in found.items() if isinstance(each, Heaviest)}
    return answered, statistics.mode(silent) if silent else ""
