"""The answer for one window: every figure and verdict, typed. Renderers show only what is here.

`answers.schema.json`, the schema of its JSON, is made from these types (`schema`).
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from inspect import cleandoc
from typing import Any, ClassVar

from msgspec import Struct

from vllm_capacity.assumptions import TARGETS
from vllm_capacity.estimate import Estimate, Figures
from vllm_capacity.figures.gauges import Gauge
from vllm_capacity.figures.latency import Latency
from vllm_capacity.figures.losses import Lost
from vllm_capacity.figures.traffic import Failures
from vllm_capacity.record import SCHEMA_VERSION, Record
from vllm_capacity.timerange import HOURS_PER_MONTH
from vllm_capacity.verdicts.cost.bill import Costs
from vllm_capacity.verdicts.hardware.unloaded import ByArithmetic
from vllm_capacity.verdicts.quality.evidence import Finding
from vllm_capacity.verdicts.saturation.advice import Advice
from vllm_capacity.verdicts.saturation.fit import Saturation
from vllm_capacity.verdicts.utilization import headroom, utilization

ATTAINMENT_GOAL = 0.95
"""The share of observations that must meet a target, because targets are for the p95."""


class WindowExtent(Record, frozen=True):
    """The time range that was analyzed, and its engines.

    `mean_engines` is the average number of engines: each counts for the share of the billed time in
    which it was present. `resolution` is what figures are made from: each `scrape`, the `minute`s
    of a downsampled pull, or the `hour` summaries of a long range (exact except for means of
    gauges; steps are minutes).
    """

    start: datetime
    end: datetime
    hours: float
    engines: int
    mean_engines: float
    resolution: str = "scrape"


class Requests(Record, frozen=True):
    """Finished requests, in total and by vLLM's reason; None where vLLM does not count them.

    `successful` requests ended normally (stop, length or repetition). `lost` bounds the requests
    that no scrape saw.
    """

    finished: float | None
    successful: float | None
    by_reason: Mapping[str, float]
    lost: Lost

    @property
    def lost_ratio(self) -> float | None:
        """The maximum missing amount ÷ the count; None if either is unknown or the count is 0."""
        high = self.lost.high
        return high / self.finished if self.finished and high is not None else None


class Tokens(Record, frozen=True):
    """Prompt tokens (all, and those not read from a cache) and output tokens; None if not counted.

    `lost` bounds the prompt and output tokens together that no scrape saw.
    """

    prompt: float | None
    prompt_computed: float | None
    generation: float | None
    lost: Lost

    @property
    def total(self) -> float | None:
        """Prompt and output tokens; None if either is not counted."""
        known = self.prompt is not None and self.generation is not None
        return (self.prompt or 0) + (self.generation or 0) if known else None

    @property
    def lost_ratio(self) -> float | None:
        """The maximum missing amount ÷ the count; None if either is unknown or the count is 0."""
        high = self.lost.high
        return high / self.total if self.total and high is not None else None


class Throughput(Record, frozen=True):
    """Mean rates over the window; None if not counted."""

    output_tokens_per_second: float | None
    requests_per_second: float | None

    @property
    def requests_per_hour(self) -> float | None:
        """Finished requests per hour, at this rate."""
        return None if self.requests_per_second is None else self.requests_per_second * 3600

    @property
    def requests_per_day(self) -> Estimate:
        """Finished requests per day, if this rate lasted all day."""
        if self.requests_per_second is None:
            return Estimate.unknown("finished requests were not counted in this window")
        basis = "the mean rate of this window, all day long"
        return Estimate.exact(self.requests_per_second * 86_400, basis)


class Amount(Struct, frozen=True):
    """An amount of traffic: in total, per second, and per finished request; None if not counted.

    For requests themselves, `per_request` is None.
    """

    total: float | None
    per_second: float | None
    per_request: float | None


class SloVerdict(Figures, frozen=True):
    """SLO attainment, and the throughput that meets the latency targets.

    The attainment of a target of `Slo` is the share of observations that met it, 0..1.
    """

    renamed: ClassVar[Mapping[str, str]] = {
        "capacity_output_tokens_per_second": "throughput_output_tokens_per_second"
    }

    ttft_attainment: Estimate
    itl_attainment: Estimate
    throughput_output_tokens_per_second: Estimate

    @property
    def throughput(self) -> Estimate:
        """The maximum output tokens per second at which every target is met."""
        return self.throughput_output_tokens_per_second

    @property
    def attainments(self) -> dict[str, Estimate]:
        """The attainment of each target, by the name of the target (a field of `Slo`)."""
        return {name: getattr(self, target.attainment) for name, target in TARGETS.items()}

    @property
    def missed(self) -> dict[str, Estimate]:
        """The attainments below the goal, by the name of their target; empty without a target."""
        return {
            name: share
            for name, share in self.attainments.items()
            if share.mid is not None and share.mid < ATTAINMENT_GOAL
        }


class Answer(Record, frozen=True):
    """All figures and verdicts of a window, or of a part of it.

    Every field is always present. Where a figure is unknown, a plain number is None and an estimate
    gives the reason.
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
    by_arithmetic: ByArithmetic
    cost: Costs
    advice: tuple[Advice, ...]
    quality: tuple[Finding, ...]
    schema_version: int = SCHEMA_VERSION

    @property
    def prompt_tokens_per_request(self) -> Estimate:
        """Prompt tokens ÷ finished requests; unknown if none finished."""
        return self._per_request("prompt", self.tokens.prompt)

    @property
    def output_tokens_per_request(self) -> Estimate:
        """Output tokens ÷ finished requests; unknown if none finished."""
        return self._per_request("generation", self.tokens.generation)

    @property
    def usd_per_month(self) -> Estimate:
        """What the engines cost in a month of 730.5 hours, if billed as in this window."""
        if not self.window.hours:
            return Estimate.unknown("the window has no length")
        bill = f"the bill of {self.window.hours:.4g} h × {HOURS_PER_MONTH} h per month"
        return self.cost.allocation_usd.scaled(HOURS_PER_MONTH / self.window.hours, bill)

    @property
    def slo_headroom_ratio(self) -> Estimate:
        """The share of the throughput within the latency targets that is left, 0..1."""
        served = self.throughput.output_tokens_per_second
        return headroom(utilization(served, self.slo.throughput))

    @property
    def traffic(self) -> dict[str, Amount]:
        """Finished requests, prompt tokens and output tokens, by these names."""
        rate = self.throughput.requests_per_second
        found = {"finished requests": Amount(self.requests.finished, rate, None)}
        for name, total, each in (
            ("prompt tokens", self.tokens.prompt, self.prompt_tokens_per_request.mid),
            ("output tokens", self.tokens.generation, self.output_tokens_per_request.mid),
        ):
            per_second = None if each is None or rate is None else each * rate
            found[name] = Amount(total, per_second, each)
        return found

    def findings(self, check: str) -> int:
        """How often a check of the quality report found something; 0 if never."""
        return sum(each.count for each in self.quality if each.check == check)

    def max_effect(self, figure: str) -> float:
        """The maximum total effect of all findings on a figure (`running.mean`), in its unit."""
        return sum(each.max_effect.get(figure, 0.0) for each in self.quality)

    def _per_request(self, kind: str, tokens: float | None) -> Estimate:
        finished = self.requests.finished
        if not finished or tokens is None:
            return Estimate.unknown("no request finished in this window")
        basis = f"{tokens:,.0f} {kind} tokens ÷ {finished:,.0f} finished requests"
        return Estimate.exact(tokens / finished, basis)


def schema() -> dict[str, Any]:
    """The JSON Schema of the answer, made from its types: the content of `answers.schema.json`."""
    import msgspec  # only the schema needs it

    made = msgspec.json.schema(Answer)
    for one in made["$defs"].values():
        one["description"] = cleandoc(one.get("description", ""))
        if "properties" in one:
            one["required"] = list(one["properties"])  # fields with a default are written, too
    title = "The answer of vllm-capacity for one window"
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": title, **made}
