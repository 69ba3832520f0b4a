"""The metrics of vLLM's API server, updated at the same moments as in vLLM.

Per step: gauges and prefix-cache counters. Per step with outputs: generated tokens, preemptions,
iteration tokens, inter-token latency. At a request's first output: time to first token and the
whole prompt. When it finishes: everything named request_*. A request that its client cancels
updates nothing when it ends.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from vllm_simulator.config import EngineConfig, EngineRequest

# Upper bounds in vLLM 0.32, in seconds or tokens; +Inf is implied.
REQUEST_LATENCY_SECONDS = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0,
    480.0, 960.0, 1920.0, 7680.0,
)  # fmt: skip
TTFT_SECONDS = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
)  # fmt: skip
ITL_SECONDS = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0,
    40.0, 80.0,
)  # fmt: skip
ITERATION_TOKENS = (
    1.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0,
)  # fmt: skip
REQUEST_N = (1.0, 2.0, 5.0, 10.0, 20.0)
PREEMPTIONS = (1.0, 2.0, 3.0, 4.0, 5.0, 10.0, 20.0)


def token_bounds(max_model_len: int) -> tuple[float, ...]:
    """Histogram bounds 1, 2, 5, 10, 20, 50 …, none above `max_model_len`."""
    decades = (10.0**power for power in range(len(str(max_model_len))))
    steps = (digit * decade for decade in decades for digit in (1, 2, 5))
    return tuple(step for step in steps if step <= max_model_len)


class Histogram:
    """Counts per bucket (not cumulative, overflow bucket last) and the sum of the values."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.total = 0.0
        self._edges = np.array(self.bounds)

    @property
    def count(self) -> int:
        """Number of observed values."""
        return sum(self.counts)

    def observe(self, value: float, times: int = 1) -> None:
        """Record one value `times` times; a value on a bound counts in that bound's bucket."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.total += value * times

    def observe_each(self, values: np.ndarray, times: int) -> None:
        """Record each of the values `times` times."""
        found = np.bincount(self._edges.searchsorted(values, side="left"))
        for bucket, more in enumerate(found.tolist()):
            self.counts[bucket] += more * times
        self.total += float(values.sum()) * times


@dataclass
class Gauges:
    """The scheduler's state after the last step; unchanged while nothing runs."""

    running: int = 0
    waiting: int = 0
    kv_usage_ratio: float = 0.0


@dataclass
class Stats:
    """All counters and histograms of one engine; they start at 0."""

    config: EngineConfig
    gauges: Gauges = field(default_factory=Gauges)
    engine_steps: int = 0  # with or without outputs; not exported by vLLM
    busy_seconds: float = 0.0  # not exported either
    generation_tokens: int = 0
    prompt_tokens: int = 0
    prompt_tokens_cached: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0
    preemptions: int = 0
    http_ok: int = 0
    finished: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Create the histograms, with the bounds that vLLM uses at this `max_model_len`."""
        tokens = token_bounds(self.config.max_model_len)
        self.ttft = Histogram(TTFT_SECONDS)
        self.itl = Histogram(ITL_SECONDS)
        self.iteration_tokens = Histogram(ITERATION_TOKENS)
        self.time_per_output_token = Histogram(ITL_SECONDS)
        self.e2e = Histogram(REQUEST_LATENCY_SECONDS)
        self.queue = Histogram(REQUEST_LATENCY_SECONDS)
        self.inference = Histogram(REQUEST_LATENCY_SECONDS)
        self.prefill = Histogram(REQUEST_LATENCY_SECONDS)
        self.decode = Histogram(REQUEST_LATENCY_SECONDS)
        self.request_prompt_tokens = Histogram(tokens)
        self.request_generation_tokens = Histogram(tokens)
        self.request_max_generation_tokens = Histogram(tokens)
        self.request_max_tokens = Histogram(tokens)
        self.request_computed_tokens = Histogram(tokens)
        self.request_n = Histogram(REQUEST_N)
        self.request_preemptions = Histogram(PREEMPTIONS)

    def admitted(self, request: EngineRequest) -> None:
        """Count prefix-cache queries and hits when a request is first scheduled."""
        if self.config.enable_prefix_caching:
            self.prefix_queries += request.spec.prompt_tokens
            self.prefix_hits += request.cached_tokens

    def first_token(self, request: EngineRequest, ttft_seconds: float) -> None:
        """Count TTFT and the whole prompt at a request's first output."""
        self.ttft.observe(ttft_seconds)
        self.prompt_tokens += request.spec.prompt_tokens
        self.prompt_tokens_cached += request.cached_tokens

    def finish(self, request: EngineRequest) -> None:
        """Update the metrics that are observed once per request, when it finishes."""
        spec, generated = request.spec, request.generated
        assert request.scheduled_at is not None
        assert request.first_at is not None
        reason = spec.finish_reason
        self.finished[reason] = self.finished.get(reason, 0) + 1
        self.http_ok += 1
        decode = request.last_at - request.first_at
        self.e2e.observe(request.last_at - spec.arrival_seconds + self.config.frontend_seconds)
        self.queue.observe(request.scheduled_at - request.queued_at)
        self.prefill.observe(request.first_at - request.scheduled_at)
        self.decode.observe(decode)
        self.inference.observe(request.last_at - request.scheduled_at)
        self.time_per_output_token.observe(decode / (generated - 1) if generated > 1 else 0.0)
        self.request_prompt_tokens.observe(spec.prompt_tokens)
        self.request_generation_tokens.observe(generated)
        self.request_max_generation_tokens.observe(generated)
        self.request_max_tokens.observe(spec.max_tokens or spec.output_tokens)
        self.request_computed_tokens.observe(spec.prompt_tokens - request.cached_tokens)
        self.request_n.observe(1)
        self.request_preemptions.observe(request.preemptions)
