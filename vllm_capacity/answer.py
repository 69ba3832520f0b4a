"""The answer of one window: every figure and verdict, typed. What renders shows what is here.

`answers.schema.json`, the schema of its JSON, is made from these types (`schema`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import ClassVar

from vllm_capacity.estimate import Estimate, Figures
from vllm_capacity.figures.failures import Failures
from vllm_capacity.figures.gauges import Gauge
from vllm_capacity.figures.latency import Latency
from vllm_capacity.figures.losses import Lost
from vllm_capacity.record import Record
from vllm_capacity.verdicts.advice import Advice
from vllm_capacity.verdicts.cost import Costs
from vllm_capacity.verdicts.finding import Finding
from vllm_capacity.verdicts.saturation import Saturation

SCHEMA_VERSION = 2
ATTAINMENT_GOAL = 0.95
"""The share of observations that is to be within a target: targets are of the 95th percentile."""


@dataclass(frozen=True)
class WindowExtent(Record):
    """The time that was judged, and the engines in it.

    `mean_engines` is how many were there on average: each counts for the share of the billed time
    in which it was.
    """

    start: datetime
    end: datetime
    hours: float
    engines: int
    mean_engines: float


@dataclass(frozen=True)
class Requests(Record):
    """Requests that finished, in all and by vLLM's reason; None where they are not counted.

    `successful` ended as they should: stop, length and repetition. `lost` are bounds of what no
    scrape saw.
    """

    finished: float | None
    successful: float | None
    by_reason: Mapping[str, float]
    lost: Lost


@dataclass(frozen=True)
class Tokens(Record):
    """Prompt tokens (all, and those not taken from a cache) and output tokens; None: not counted.

    `lost` are bounds of what no scrape saw, of prompt and output together.
    """

    prompt: float | None
    prompt_computed: float | None
    generation: float | None
    lost: Lost


@dataclass(frozen=True)
class Throughput(Record):
    """Mean rates over the window; None where not counted."""

    output_tokens_per_second: float | None
    requests_per_second: float | None


@dataclass(frozen=True)
class SloVerdict(Figures):
    """How well the latency targets were met, and the throughput that meets them.

    `ttft_attainment` and `itl_attainment` are the shares of observations within the target, 0..1.
    """

    renamed: ClassVar[Mapping[str, str]] = {
        "capacity_output_tokens_per_second": "throughput_output_tokens_per_second"
    }

    ttft_attainment: Estimate
    itl_attainment: Estimate
    throughput_output_tokens_per_second: Estimate

    @property
    def throughput(self) -> Estimate:
        """The most output tokens per second at which every target is met."""
        return self.throughput_output_tokens_per_second

    @property
    def missed(self) -> dict[str, Estimate]:
        """The attainments below the goal, by the name of their field; empty without a target."""
        found = {"ttft_attainment": self.ttft_attainment, "itl_attainment": self.itl_attainment}
        return {
            name: share
            for name, share in found.items()
            if share.mid is not None and share.mid < ATTAINMENT_GOAL
        }


@dataclass(frozen=True)
class Answer(Record):
    """Everything that is said of one window, or of a part of it.

    Every field is always there: plain figures are None and estimates carry a reason where unknown.
    """

    window: WindowExtent
    requests: Requests
    tokens: Tokens
    throughput: Throughput
    latency: Latency
    slo: SloVerdict
    running: Gauge
    waiting: Gauge
    kv_cache_ratio: Gauge
    preemptions: float | None
    prefix_cache_hit_ratio: float | None
    failures: Failures
    saturation: Saturation
    cost: Costs
    advice: tuple[Advice, ...]
    quality: tuple[Finding, ...]
    schema_version: int = SCHEMA_VERSION
