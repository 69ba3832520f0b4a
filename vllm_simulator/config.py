"""Settings of an engine, the duration of its steps, and the requests it gets."""

from __future__ import annotations

import math

from msgspec import Struct, field

from vllm_capacity.errors import InputError


class StepTime(Struct, frozen=True):
    """Duration of one engine step in seconds, linear in the work of the step.

    base + sequences x per_sequence + prefill tokens x per_prefill_token + context tokens x
    per_context_token. The base stands for reading the weights, the prefill term for compute, the
    context term for reading the KV cache. `jitter_ratio` is the sigma of a log-normal factor with
    mean 1.
    """

    base_seconds: float
    per_sequence_seconds: float
    per_prefill_token_seconds: float
    per_context_token_seconds: float = 0.0
    jitter_ratio: float = 0.0

    def seconds(self, sequences: int, prefill_tokens: int, context_tokens: int) -> float:
        """The mean duration of a step."""
        return (
            self.base_seconds
            + sequences * self.per_sequence_seconds
            + prefill_tokens * self.per_prefill_token_seconds
            + context_tokens * self.per_context_token_seconds
        )


class EngineConfig(Struct, frozen=True):
    """Settings of a vLLM engine, under vLLM's own names where it has them.

    `num_gpu_blocks` includes the null block, as vLLM reports it. `sliding_blocks` is the number of
    blocks that a long enough sequence holds for sliding-window layers, beside its growing blocks.
    `frontend_seconds` is the time that tokenizing, queues between processes and detokenizing add to
    a request's first token and to its end.
    """

    model_name: str
    num_gpu_blocks: int
    step_time: StepTime
    block_size: int = 16
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 2048
    max_model_len: int = 8192
    enable_prefix_caching: bool = True
    sliding_blocks: int = 0
    frontend_seconds: float = 0.0
    gpu_memory_utilization: float = 0.92
    engine: str = "0"

    def __post_init__(self) -> None:
        """Raise InputError if an engine could not run with these settings."""
        sizes = {
            name: getattr(self, name)
            for name in ("block_size", "max_num_seqs", "max_num_batched_tokens", "max_model_len")
        }
        for name, value in sizes.items():
            if value < 1:
                raise InputError(f"An engine needs {name} of at least 1; got {value}.")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise InputError(
                f"max_num_batched_tokens ({self.max_num_batched_tokens}) must not be below "
                f"max_num_seqs ({self.max_num_seqs}): vLLM refuses that, too."
            )
        if self.usable_blocks < 1:
            raise InputError(
                f"An engine needs 2 KV blocks or more (one is the null block); "
                f"got num_gpu_blocks={self.num_gpu_blocks}."
            )
        if not self.step_time.base_seconds > 0:
            raise InputError("A step takes time: step_time.base_seconds must be above 0.")

    @property
    def usable_blocks(self) -> int:
        """Number of blocks that requests can hold: all but the null block."""
        return self.num_gpu_blocks - 1

    def blocks_for(self, tokens: int) -> int:
        """Number of blocks that a sequence of `tokens` tokens holds, sliding-window blocks too."""
        growing = math.ceil(tokens / self.block_size)
        return growing + min(growing, self.sliding_blocks)

    @property
    def max_concurrency(self) -> float:
        """How many sequences of maximum length fit: vLLM's kv_cache_max_concurrency."""
        return self.num_gpu_blocks / self.blocks_for(self.max_model_len)

    @property
    def kv_cache_size_tokens(self) -> int:
        """Cache capacity in tokens; blocks x block size for a model without sliding layers."""
        return int(self.max_concurrency * self.max_model_len)


class Request(Struct, frozen=True):
    """A client's request, with the output length it will get.

    Requests with the same `prefix` share their first `prefix_tokens` tokens.
    A request that stops before `max_tokens` finishes with reason `stop`, else with `length`.
    """

    arrival_seconds: float
    prompt_tokens: int
    output_tokens: int
    prefix: int | None = None
    prefix_tokens: int = 0
    max_tokens: int | None = None
    cancel_after_seconds: float | None = None
    client: int | None = None

    @property
    def finish_reason(self) -> str:
        """The finish reason: `stop` or `length`."""
        is_cut = self.max_tokens is None or self.output_tokens >= self.max_tokens
        return "length" if is_cut else "stop"


def check_request(request: Request, config: EngineConfig) -> None:
    """Raise InputError if the engine would refuse the request, or could never hold it."""
    total = request.prompt_tokens + request.output_tokens
    if request.prompt_tokens < 1 or request.output_tokens < 1:
        raise InputError(
            f"A request needs 1 prompt and 1 output token or more; got {request.prompt_tokens} and "
            f"{request.output_tokens}."
        )
    if not (math.isfinite(request.arrival_seconds) and request.arrival_seconds >= 0):
        raise InputError(f"A request cannot arrive at {request.arrival_seconds} s.")
    if total > config.max_model_len:
        raise InputError(
            f"A request of {request.prompt_tokens} + {request.output_tokens} tokens is longer than "
            f"the engine's max_model_len of {config.max_model_len}."
        )
    if config.blocks_for(total) > config.usable_blocks:
        raise InputError(
            f"A request of {total} tokens needs {config.blocks_for(total)} KV blocks; the engine "
            f"has {config.usable_blocks}. Raise num_gpu_blocks or shorten the request."
        )


class EngineRequest(Struct, eq=False):
    """A request inside the engine, and its progress.

    Times are seconds on the simulation's clock.
    """

    spec: Request
    uid: int
    total: int  # prompt and generated tokens so far
    blocks: list[int] = field(default_factory=list)
    side_blocks: list[int] = field(default_factory=list)  # sliding-window layers
    computed: int = 0
    generated: int = 0
    published: int = 0  # leading blocks offered to the prefix cache
    cached_tokens: int = 0  # prompt tokens found in the cache at first scheduling
    preemptions: int = 0
    queued_at: float = 0.0
    scheduled_at: float | None = None
    first_at: float | None = None
    last_at: float = 0.0
    is_decoding: bool = False  # if so, total and generated are as of `counted_step`
    counted_step: int = 0
    admission: int = 0  # ordinal of its last admission
    life: int = 0  # incremented whenever it stops running
    is_done: bool = False
