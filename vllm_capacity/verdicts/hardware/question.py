"""What a what-if is asked: a measured rate on one GPU, its load where known, and the other GPU."""

from __future__ import annotations

from dataclasses import dataclass, field

from vllm_capacity.errors import InputError
from vllm_capacity.facts.gpus import GpuSpan, find_gpu
from vllm_capacity.facts.llms import Llm, find_llm, weight_dtype
from vllm_capacity.verdicts.hardware.roofline import Job

MOST, MOST_GPUS = 1e12, 1024
"""Past all measure: no rate, count or replica is larger."""
MOST_SERVED = 1.1
"""Of what an open load asks for, the most that may have been measured: lengths vary in a window."""

KEPT_UP = 0.9
"""Of what an open load asks for, the served share from which a server kept up with it."""


@dataclass(frozen=True)
class Load:
    """What a rate was measured under, where that is known; the other GPU is asked under the same.

    Either `clients` that a load test held busy, or the `requests_per_second` that users sent, or
    `is_capacity`: the rate is the most that GPU gives (at an SLO, say). None of them: not known.
    """

    clients: float | None = None
    requests_per_second: float | None = None
    is_capacity: bool = False

    def __post_init__(self) -> None:
        """Refuse two loads at once, and what is no load."""
        loads = [load for load in (self.clients, self.requests_per_second) if load is not None]
        if not all(0 < load <= MOST for load in loads):
            raise InputError(f"Clients and requests/s must be above 0; found {loads[0]:g}.")
        if self.clients is not None and self.clients < 1:
            raise InputError(f"A load test holds one client or more; found {self.clients:g}.")
        if len(loads) + self.is_capacity > 1:
            raise InputError(
                "A load is clients that are held busy, or requests/s that come; found both: "
                f"{self.clients} and {self.requests_per_second}. Name one of them."
            )

    @property
    def is_known(self) -> bool:
        """Whether anything is known of it."""
        return self != Load()


@dataclass(frozen=True)
class Question:
    """A measured rate on one GPU type, and the one asked about. `gpus` counts on both sides."""

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

    def __post_init__(self) -> None:
        """Refuse what cannot have been measured."""
        numbers = (self.output_tokens_per_second, self.input_tokens, self.output_tokens)
        if not 1 <= self.gpus <= MOST_GPUS or not all(0 < n <= MOST for n in numbers):
            raise InputError(
                f"There must be 1 to {MOST_GPUS} GPUs, and the output rate and both token counts "
                f"be above 0; found {self.gpus}, {', '.join(f'{n:g}' for n in numbers)}."
            )
        offered = self.offered_tokens_per_second
        if offered is not None and self.output_tokens_per_second > MOST_SERVED * offered:
            raise InputError(
                f"{self.load.requests_per_second:g} requests/s of {self.output_tokens:g} output "
                f"tokens are {offered:g} tokens/s, but {self.output_tokens_per_second:g} were "
                "measured. Take both from the same time and over all its requests."
            )

    @property
    def offered_tokens_per_second(self) -> float | None:
        """Output tokens per second that an open load asks for; None where the load is another."""
        rate = self.load.requests_per_second
        return None if rate is None else rate * self.output_tokens

    @property
    def is_kept_up(self) -> bool:
        """Whether about all that an open load asked for was served; False for any other load."""
        offered = self.offered_tokens_per_second
        return offered is not None and self.output_tokens_per_second >= KEPT_UP * offered

    def job(self, dtype: str) -> Job:
        """The question's work at a weight type."""
        return Job(self.llm, dtype, self.gpus, self.input_tokens, self.output_tokens)


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
) -> Question:
    """The question that a person asks with these names and numbers.

    `dtype` None: the weights as published; `to_dtype` None: the same on the other GPU. InputError
    for names that are not known, and for what cannot have been measured.
    """
    llm = find_llm(model)
    measured = llm.weights_dtype if dtype is None else weight_dtype(dtype)
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
    )
