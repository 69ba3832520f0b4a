"""Every GPU type and price row as an option for a measured window: the table people choose from.

An option keeps the window's model, lengths, GPU count and SLO capacity, and `what_if` estimates
that capacity on its GPU. If some measured loads meet the latency targets and some miss them, the
whole curve is scaled and read at the targets (`elsewhere`). Otherwise the capacity within an SLO is
assumed to scale like saturation; the basis says so. A GPU that cannot serve, or has no price, stays
in the table with its reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from msgspec import Struct
from msgspec.structs import replace

from vllm_capacity.estimate import Estimate, Figures
from vllm_capacity.facts.gpus import GpuSpan
from vllm_capacity.facts.throughput import Measurement
from vllm_capacity.verdicts.hardware.elsewhere import slo_gain
from vllm_capacity.verdicts.hardware.question import Question
from vllm_capacity.verdicts.hardware.what_if import GpuUtilization, WhatIf, what_if
from vllm_capacity.verdicts.saturation.slo import SloLoad
from vllm_capacity.verdicts.sizing import Policy, month_usd, replicas


class Candidate(Struct, frozen=True):
    """A GPU type at a weight type and a price; `price_row` is the price's display name."""

    gpu: GpuSpan
    dtype: str
    price_row: str
    usd_per_gpu_hour: Estimate


class Option(Figures, frozen=True):
    """One row of the table. `reason` says why an option is not available, empty if it is.

    `throughput_ratio` is its output over that of the measured GPU. `label` says how near a
    published case is (`WhatIf`); empty if nothing is known.
    """

    gpu: str
    dtype: str
    price_row: str
    usd_per_gpu_hour: Estimate
    throughput_ratio: Estimate
    slo_output_tokens_per_second: Estimate
    tokens_per_usd: Estimate
    usd_per_request: Estimate
    replicas: Estimate
    usd_per_month: Estimate
    reason: str
    label: str = ""

    @property
    def is_comparable(self) -> bool:
        """Whether its tokens per dollar are known."""
        return self.tokens_per_usd.is_known

    def may_equal(self, other: Option) -> bool:
        """Whether the intervals of their tokens per dollar overlap."""
        one, two = self.tokens_per_usd, other.tokens_per_usd
        if one.low is None or one.high is None or two.low is None or two.high is None:
            return False
        return one.low <= two.high and two.low <= one.high


def whatif_table(
    measured: Question,
    candidates: Sequence[Candidate],
    *,
    slo_capacity: Estimate,
    demand: Estimate,
    policy: Policy,
    published: Sequence[Measurement] = (),
    prefer: Mapping[str, Sequence[str]] | None = None,
    busy: GpuUtilization | None = None,
    loads: Sequence[SloLoad] = (),
) -> tuple[Option, ...]:
    """The options, best tokens per dollar first, rejected ones last; ties by name.

    `measured` holds the window's rate and lengths; `slo_capacity` and `demand` are output tokens
    per second, of one replica and of all. `prefer` gives the usual form factors by GPU, `busy` the
    engine's own utilization figures, `loads` the measured loads, with their latencies over the
    targets.
    """
    ask = partial(what_if, published=tuple(published), prefer=prefer)
    options = []
    for candidate in candidates:
        asked = replace(measured, to_gpu=candidate.gpu, to_dtype=candidate.dtype)
        there = ask(asked, busy=busy)
        gain = slo_gain(asked, loads, ask) if loads and there.is_known else None
        options.append(
            _option(
                asked,
                candidate,
                _within_targets(there, gain, asked),
                slo_capacity=slo_capacity,
                demand=demand,
                policy=policy,
            )
        )
    return tuple(sorted(options, key=_order))


def _within_targets(there: WhatIf, gain: float | None, asked: Question) -> WhatIf:
    """The other GPU's throughput within the targets, if moving the measured curve shows it."""
    found = there.output_tokens_per_second
    if gain is None or found.mid is None:
        return there
    rate = asked.output_tokens_per_second * gain
    words = f"{gain:.2f} × within the latency targets, from the measured curve scaled load by load"
    return replace(there, output_tokens_per_second=found.scaled(rate / found.mid, words))


def _option(
    wanted: Question,
    candidate: Candidate,
    there: WhatIf,
    *,
    slo_capacity: Estimate,
    demand: Estimate,
    policy: Policy,
) -> Option:
    ratio = there.output_tokens_per_second.scaled(1 / wanted.output_tokens_per_second)
    capacity = _scaled(slo_capacity, ratio)
    gpus = replicas(demand, capacity, policy).scaled(wanted.gpus)
    hourly = candidate.usd_per_gpu_hour.scaled(wanted.gpus)
    per_token = hourly.divided_by(capacity.scaled(3600))
    reason = next(
        (part.reason for part in (ratio, slo_capacity, candidate.usd_per_gpu_hour) if part.reason),
        "",
    )
    return Option(
        gpu=candidate.gpu.label,
        dtype=candidate.dtype,
        price_row=candidate.price_row,
        usd_per_gpu_hour=candidate.usd_per_gpu_hour,
        throughput_ratio=ratio,
        slo_output_tokens_per_second=capacity,
        tokens_per_usd=_inverse(per_token),
        usd_per_request=per_token.scaled(wanted.output_tokens),
        replicas=replicas(demand, capacity, policy),
        usd_per_month=month_usd(gpus, candidate.usd_per_gpu_hour),
        reason=reason,
        label=there.label,
    )


def _scaled(capacity: Estimate, ratio: Estimate) -> Estimate:
    """The capacity times the other GPU's gain; unknown if either is only a bound."""
    unknown = next((part for part in (ratio, capacity) if not part.is_known), None)
    return unknown or capacity.times(ratio)


def _inverse(per_token: Estimate) -> Estimate:
    if per_token.low is None:
        return per_token
    if per_token.low <= 0:
        return Estimate.unknown("the price may be 0 USD: tokens per dollar have no bound")
    return per_token.inverse()


def _order(option: Option) -> tuple[bool, float, str, str]:
    worth = option.tokens_per_usd.mid
    return (worth is None, -(worth or 0.0), option.gpu, option.price_row)
