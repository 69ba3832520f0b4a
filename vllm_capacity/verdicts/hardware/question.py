"""A what-if question: a measured rate on one GPU, its load if known, and the other GPU.

Also its limits: questions that no arithmetic should answer, each refused with its numbers.
"""

from __future__ import annotations

from msgspec import Struct, field

from vllm_capacity.errors import InputError
from vllm_capacity.facts.gpus import GIB, Gpu, GpuSpan, find_gpu, gpus
from vllm_capacity.facts.llms import Llm, find_llm, kv_scale, weight_dtype
from vllm_capacity.verdicts.hardware.serving import (
    Job,
    Machine,
    sequences_that_fit,
    tensor_tflops_range,
    uneven,
)

MOST, MAX_GPUS = 1e12, 1024
"""Upper limits: no valid rate, token count or GPU count is larger."""
MAX_SERVED = 1.1
"""The highest measured share of an open load's demand: lengths vary in a window."""

KEPT_UP_RATIO = 0.9
"""The served share of an open load's demand from which a server kept up with it."""


class Load(Struct, frozen=True):
    """The load of a measurement, if known, or of the question about the other GPU.

    Either `clients` that a load test kept busy, or the `requests_per_second` that users sent, or
    `is_capacity`: the rate is the maximum of that GPU (at an SLO, for example). None of them:
    unknown.
    """

    clients: float | None = None
    requests_per_second: float | None = None
    is_capacity: bool = False

    def __post_init__(self) -> None:
        """Refuse two loads at once, and invalid loads."""
        loads = [load for load in (self.clients, self.requests_per_second) if load is not None]
        if not all(0 < load <= MOST for load in loads):
            raise InputError(f"Clients and requests/s must be above 0; found {loads[0]:g}.")
        if self.clients is not None and self.clients < 1:
            raise InputError(f"A load test has at least one client; found {self.clients:g}.")
        if len(loads) + self.is_capacity > 1:
            raise InputError(
                "A load is either a number of clients or requests/s; found both: "
                f"{self.clients} and {self.requests_per_second}. Give one of them."
            )

    @property
    def is_known(self) -> bool:
        """Whether the load is known."""
        return self != Load()


class Question(Struct, frozen=True):
    """A measured rate on one GPU type, and the GPU type asked about.

    `gpus` is the engine's GPU count in the measurement, `to_gpus` on the other side (None: the
    same). `at` is the load on the other side (None: that of the measurement). `itl_seconds` and
    `ttft_seconds` are mean latencies measured with the rate, if known. `kv_dtype` is the type of
    the KV cache (auto: 16 bits), `to_kv_dtype` that on the other side (None: the same).
    """

    llm: Llm
    dtype: str
    to_dtype: str
    from_gpu: GpuSpan
    to_gpu: GpuSpan
    gpus: int
    output_tokens_per_second: float
    input_tokens: float
    output_tokens: float
    load: Load = field(default_factory=Load)
    at: Load | None = None
    to_gpus: int | None = None
    itl_seconds: float | None = None
    ttft_seconds: float | None = None
    kv_dtype: str = "auto"
    to_kv_dtype: str | None = None

    def __post_init__(self) -> None:
        """Refuse impossible measurements."""
        kv_scale(self.kv_dtype), kv_scale(self.kv_dtype_there)
        numbers = [self.output_tokens_per_second, self.input_tokens, self.output_tokens]
        numbers += [n for n in (self.itl_seconds, self.ttft_seconds) if n is not None]
        counts = (self.gpus, self.gpus_there)
        found = [f"{n:g}" for n in numbers]
        if not all(1 <= n <= MAX_GPUS for n in counts) or not all(0 < n <= MOST for n in numbers):
            raise InputError(
                f"There must be 1 to {MAX_GPUS} GPUs, and the output rate, both token counts and "
                f"latencies must be above 0; found {', '.join([*map(str, counts), *found])}."
            )
        offered = self.offered_tokens_per_second
        if offered is not None and self.output_tokens_per_second > MAX_SERVED * offered:
            raise InputError(
                f"{self.load.requests_per_second:g} requests/s of {self.output_tokens:g} output "
                f"tokens are {offered:.4g} tokens/s, but {self.output_tokens_per_second:.6g} were "
                "measured: no server produces more than is requested. Check both figures."
            )

    @property
    def gpus_there(self) -> int:
        """GPUs per engine on the other side."""
        return self.gpus if self.to_gpus is None else self.to_gpus

    @property
    def kv_dtype_there(self) -> str:
        """The type of the KV cache on the other side."""
        return self.kv_dtype if self.to_kv_dtype is None else self.to_kv_dtype

    @property
    def is_alike(self) -> bool:
        """Whether both sides have one load, number of GPUs and type of KV cache."""
        here, there = self.llm.with_kv_cache(self.kv_dtype), self.job_there.llm
        return self.at is None and self.gpus_there == self.gpus and here == there

    @property
    def load_there(self) -> Load:
        """The load on the other side: the one asked about, else that of the measurement."""
        return self.load if self.at is None else self.at

    @property
    def is_same_setup(self) -> bool:
        """Whether both sides have the same GPU type and count, weight and KV-cache types."""
        return (self.from_gpu, self.job_here) == (self.to_gpu, self.job_there)

    @property
    def offered_tokens_per_second(self) -> float | None:
        """Output tokens per second that an open load demands; None for any other load."""
        return self.offered_by(self.load)

    def offered_by(self, load: Load) -> float | None:
        """Output tokens per second that a load demands; None if it is not an open one."""
        rate = load.requests_per_second
        return None if rate is None else rate * self.output_tokens

    @property
    def is_kept_up(self) -> bool:
        """Whether about all demand of an open load was served; False for any other load."""
        offered = self.offered_tokens_per_second
        return offered is not None and self.output_tokens_per_second >= KEPT_UP_RATIO * offered

    @property
    def job_here(self) -> Job:
        """The work on the measured side."""
        llm = self.llm.with_kv_cache(self.kv_dtype)
        return Job(llm, self.dtype, self.gpus, self.input_tokens, self.output_tokens)

    @property
    def job_there(self) -> Job:
        """The work on the other side."""
        return self.job_as(self.to_dtype)

    def job_as(self, dtype: str) -> Job:
        """The work on the other side at a weight type."""
        llm = self.llm.with_kv_cache(self.kv_dtype_there)
        return Job(llm, dtype, self.gpus_there, self.input_tokens, self.output_tokens)


def question_of(
    *,
    model: str,
    from_gpu: str,
    to_gpu: str,
    output_tokens_per_second: float,
    input_tokens: float,
    output_tokens: float,
    gpus: int = 1,
    dtype: str | None = None,
    to_dtype: str | None = None,
    clients: float | None = None,
    requests_per_second: float | None = None,
    at_clients: float | None = None,
    at_requests_per_second: float | None = None,
    itl_seconds: float | None = None,
    ttft_seconds: float | None = None,
    kv_dtype: str = "auto",
    to_kv_dtype: str | None = None,
) -> Question:
    """The question for these names and numbers.

    `dtype` None: the weights as published; `to_dtype` and `to_kv_dtype` None: the same on the other
    GPU. InputError for unknown names and impossible measurements.
    """
    llm = find_llm(model)
    measured = llm.weights_dtype if dtype is None else weight_dtype(dtype)
    at = Load(clients=at_clients, requests_per_second=at_requests_per_second)
    return Question(
        llm=llm,
        dtype=measured,
        to_dtype=measured if to_dtype is None else weight_dtype(to_dtype),
        from_gpu=find_gpu(from_gpu),
        to_gpu=find_gpu(to_gpu),
        gpus=gpus,
        output_tokens_per_second=output_tokens_per_second,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        load=Load(clients=clients, requests_per_second=requests_per_second),
        at=at if at.is_known else None,
        itl_seconds=itl_seconds,
        ttft_seconds=ttft_seconds,
        kv_dtype=kv_dtype,
        to_kv_dtype=to_kv_dtype,
    )


def refusal(question: Question) -> str:
    """Why the question cannot be answered, with numbers; empty if it can.

    On the measured side, only what is impossible is refused.
    """
    llm, context = question.llm, question.input_tokens + question.output_tokens
    if context > llm.max_context_tokens:
        return (
            f"{context:,.0f} tokens exceed the context of {llm.model} ({llm.max_context_tokens:,})"
        )
    if reason := uneven(llm, question.gpus) or uneven(llm, question.gpus_there):
        return reason
    for reasons in (
        [impossible(question.job_here, gpu) for gpu in question.from_gpu.rows],
        [
            impossible(question.job_there, gpu) or _unfit(question.job_there, gpu)
            for gpu in question.to_gpu.rows
        ],
    ):
        if all(reasons):
            return reasons[0]
    return ""


def impossible(job: Job, gpu: Gpu) -> str:
    """Why a GPU cannot run a job at all, with numbers; empty if it may."""
    try:
        architecture = gpu.architecture
    except InputError as unknown:  # one option's reason, rather than an error for the whole table
        return str(unknown).rstrip(".")
    is_narrow_float = job.dtype in ("fp8", "mxfp4", "nvfp4")
    if is_narrow_float and not architecture.runs_fp8_and_fp4_weights:
        return f"{gpu.name} cannot run {job.dtype} weights: vLLM has no kernel before Ampere"
    if tensor_tflops_range(gpu, gpus()) is None:
        return f"no TFLOPS of {gpu.name} or of its architecture {gpu.family} in gpu_specs.csv"
    weights = job.llm.weights_bytes(job.dtype) / job.gpus
    if weights > gpu.memory_bytes:
        return _too_heavy(job, gpu)
    return ""


def _unfit(job: Job, gpu: Gpu) -> str:
    """Why it certainly does not fit, even if vLLM reserves only half of what is calculated."""
    machine, tokens = Machine(gpu, 1.0), job.input_tokens + job.output_tokens
    fit = sequences_that_fit(job, machine, tokens=tokens, reserve_share=0.5)
    if fit <= 0:
        return _too_heavy(job, gpu)
    if fit < 1:
        weights = job.llm.weights_bytes(job.dtype) / job.gpus / GIB
        return (
            f"{weights:.1f} GiB of {job.dtype} weights per GPU leave {job.gpus} × {gpu.name} KV "
            f"cache for only {fit:.2f} of one sequence of {tokens:,.0f} tokens"
        )
    return ""


def _too_heavy(job: Job, gpu: Gpu) -> str:
    weights = job.llm.weights_bytes(job.dtype) / job.gpus / GIB
    return (
        f"the {job.dtype} weights, {weights:.1f} GiB per GPU, do not fit on {job.gpus} × "
        f"{gpu.name} with {gpu.memory_gib:g} GiB each"
    )
