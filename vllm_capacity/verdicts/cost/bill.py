"""What a window cost: the bill divided by what it delivered, each figure with its basis.

Definitions. *GPU-hours* = billed hours × GPUs per engine. *Allocation* = GPU-hours × price: the
bill, idle time included. Every per-request and per-million figure charges the whole allocation to
the requests or tokens it names, so `usd_per_million_output_tokens` and
`usd_per_million_total_tokens` are two readings of one bill and are never added. The two `_split`
figures divide the allocation between input and output, and do add up to it. *Usage cost* =
allocation × utilization; the rest is idle. Compare allocation with API prices, never usage cost.

Why prices are an `Estimate`: a price chosen by a rule is a range, one given by the user is exact,
and a price that changed within the window is a mean over its hours. All three are handled alike.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

from msgspec import Struct
from msgspec.structs import replace

from vllm_capacity.errors import InputError
from vllm_capacity.estimate import Estimate, Figures, Kind, listed, total
from vllm_capacity.facts.prices import NO_PRICE
from vllm_capacity.verdicts.utilization import NOT_REACHED, headroom, utilization

OUTPUT_TOKEN_WEIGHT = 4.0
"""The weight of an output token relative to an input token (1:4) if engine time is unknown."""
_FALLING = (  # as more is served
    "idle_usd",
    "usd_per_request",
    "usd_per_million_output_tokens",
    "usd_per_million_total_tokens",
    "usd_per_million_input_tokens_split",
    "usd_per_million_output_tokens_split",
)
_RISING = ("tokens_per_usd", "utilization")


class Costs(Figures, frozen=True):
    """The cost figures of one group of engines, or of all, each with its basis or reason.

    USD, USD per request or per million tokens, tokens per USD; `utilization` is a ratio, 0..1.
    """

    renamed: ClassVar[Mapping[str, str]] = {"utilisation": "utilization"}

    allocation_usd: Estimate
    usd_per_request: Estimate
    usd_per_million_output_tokens: Estimate
    usd_per_million_total_tokens: Estimate
    tokens_per_usd: Estimate
    utilization: Estimate
    usd_per_million_input_tokens_split: Estimate
    usd_per_million_output_tokens_split: Estimate
    idle_usd: Estimate
    usd_per_request_at_knee: Estimate
    usd_per_million_output_tokens_at_knee: Estimate

    @property
    def per_request(self) -> Estimate:
        """USD per successful request."""
        return self.usd_per_request

    @property
    def total(self) -> Estimate:
        """The whole bill, USD."""
        return self.allocation_usd

    @property
    def idle_ratio(self) -> Estimate:
        """The share of the bill for unused capacity: 1 − utilization."""
        return headroom(self.utilization)


FIGURES = Costs.__struct_fields__


class Usage(Struct, frozen=True):
    """What one group of engines was billed for and what it delivered in a window.

    `billed_hours` are summed over the group's engines; `prefill_time_ratio` is the share of engine
    time that prompts took (engine_time.py), None if unknown. A count is None if its series does not
    exist, 0 if nothing happened. `output_tokens_per_second` is the rate to compare with the group's
    capacity: both are means over the same time, so those of engines add up.
    """

    billed_hours: float
    successful_requests: float | None
    prompt_tokens: float | None
    generation_tokens: float | None
    prefill_time_ratio: Estimate | None = None
    output_tokens_per_second: float | None = None
    gpus_per_engine: float = 1.0

    def __post_init__(self) -> None:
        """InputError for impossible counts."""
        numbers = (
            self.billed_hours,
            self.successful_requests,
            self.prompt_tokens,
            self.generation_tokens,
            self.output_tokens_per_second,
        )
        if any(n is not None and not (math.isfinite(n) and n >= 0) for n in numbers):
            raise InputError(f"What was used cannot be negative or infinite: {self}.")
        if not (math.isfinite(self.gpus_per_engine) and self.gpus_per_engine > 0):
            raise InputError(f"GPUs per engine must be above 0, found {self.gpus_per_engine}.")

    @property
    def gpu_hours(self) -> float:
        """Billed hours × GPUs per engine."""
        return self.billed_hours * self.gpus_per_engine

    def part(self, ratio: float) -> Usage:
        """The given share of this usage (0..1), at the same rates."""
        counts = (self.successful_requests, self.prompt_tokens, self.generation_tokens)
        requests, prompts, outputs = (None if n is None else n * ratio for n in counts)
        return replace(
            self,
            billed_hours=self.billed_hours * ratio,
            successful_requests=requests,
            prompt_tokens=prompts,
            generation_tokens=outputs,
        )

    @property
    def is_idle(self) -> bool:
        """Whether it is certain that nothing was generated."""
        return self.generation_tokens == 0


class CostShare(Struct, frozen=True):
    """One group of a bill: its usage, its price per GPU-hour, and its capacity."""

    usage: Usage
    usd_per_gpu_hour: Estimate
    capacity_output_tokens_per_second: Estimate

    @property
    def usd_per_engine_hour(self) -> Estimate:
        """The cost of one engine per hour: its GPUs × the price of one."""
        return self.usd_per_gpu_hour.scaled(self.usage.gpus_per_engine)


class Bill(Struct, frozen=True):
    """The figures of every part and of the whole; `whole.allocation_usd` is the parts' sum.

    `usage` and `capacity` are those of the whole.
    """

    parts: dict[str, Costs]
    whole: Costs
    usage: Usage
    capacity: Estimate


def costs(usage: Usage, *, usd_per_gpu_hour: Estimate | None, capacity: Estimate) -> Costs:
    """Every cost figure of the usage: known with its basis, or unknown with the reason.

    `capacity` is the group's output tokens per second at the knee. Without a price every money
    figure is unknown for that reason, but utilization is still given. An idle window has no cost
    per token or request; its idle dollars are its whole allocation.
    """
    allocation = allocation_usd(usage, usd_per_gpu_hour)
    return _figures(usage, allocation, _used(usage, capacity))


def allocation_usd(usage: Usage, usd_per_gpu_hour: Estimate | None) -> Estimate:
    """GPU-hours × price, in USD: the bill, idle time included."""
    if usd_per_gpu_hour is None:
        return Estimate.unknown(NO_PRICE)
    if not usd_per_gpu_hour.is_known:
        return usd_per_gpu_hour
    if usd_per_gpu_hour.low is not None and usd_per_gpu_hour.low < 0:
        raise InputError(f"A price cannot be negative: {usd_per_gpu_hour.sources}.")
    gpus = f"{usage.gpus_per_engine:g} GPU{'' if usage.gpus_per_engine == 1 else 's'} per engine"
    basis = f"{usage.billed_hours:.4g} billed hours × {gpus}"
    return usd_per_gpu_hour.scaled(usage.gpu_hours, basis)


def bill(parts: Mapping[str, CostShare], *, noun: str = "engines") -> Bill:
    """The cost of every part and of the whole, reconciled: money is added, never computed twice.

    The whole's allocation and idle dollars are the sums over its parts (up to the rounding of one
    addition), and so are its counts. A sum with an unknown part is a lower bound, or unknown, and
    names the part. Without parts: an empty bill of unknown figures. `noun` names the parts in
    reasons.
    """
    found = {
        name: costs(
            part.usage,
            usd_per_gpu_hour=part.usd_per_gpu_hour,
            capacity=part.capacity_output_tokens_per_second,
        )
        for name, part in parts.items()
    }
    if not found:
        nothing = Estimate.unknown("no engine was billed in this window")
        return Bill({}, Costs(*(nothing for _ in FIGURES)), _added([]), nothing)
    allocation = _sum({name: each.allocation_usd for name, each in found.items()})
    idle = _sum({name: each.idle_usd for name, each in found.items()})
    usage = _added([part.usage for part in parts.values()])
    capacity = _capacity(parts, usage.gpu_hours, noun)
    whole = _figures(usage, allocation, _used(usage, capacity))
    if idle.is_bound and whole.utilization.is_bound:
        idle = replace(idle, reason=whole.utilization.reason)  # the same: it is shown once
    return Bill(found, replace(whole, idle_usd=idle), usage, capacity)


def at_most(found: Bill, reason: str) -> Bill:
    """The bill if more was served than was counted, by an unbounded amount.

    Costs per unit and idle dollars become upper bounds, utilization and tokens per dollar lower
    bounds. The cost of a unit at capacity depends on the rate, not on the count, and is unchanged.
    """
    parts = {name: _at_most(each, reason) for name, each in found.parts.items()}
    return replace(found, parts=parts, whole=_at_most(found.whole, reason))


def _at_most(costs: Costs, reason: str) -> Costs:
    upper = {name: _upper(getattr(costs, name), reason) for name in _FALLING}
    lower = {name: _lower(getattr(costs, name), reason) for name in _RISING}
    return replace(costs, **upper, **lower)


def _upper(found: Estimate, reason: str) -> Estimate:
    """The upper bound alone; unknown if there is none."""
    if found.is_unknown:
        return found
    if found.high is None:
        return Estimate.unknown(reason, *found.basis)
    return Estimate.at_most(found.high, *found.basis, reason=reason)


def _lower(found: Estimate, reason: str) -> Estimate:
    """The lower bound alone; unknown if there is none."""
    if found.is_unknown:
        return found
    if found.low is None:
        return Estimate.unknown(reason, *found.basis)
    return Estimate.at_least(found.low, *found.basis, reason=reason)


def _capacity(parts: Mapping[str, CostShare], gpu_hours: float, noun: str) -> Estimate:
    """The capacity of all parts, output tokens/s; parts that generated nothing may lack one.

    Parts without one count by their GPU-hours, at the mean of the others, so that utilization
    remains the used share of the paid capacity.
    """
    known_parts = {
        name: part
        for name, part in parts.items()
        if not (part.usage.is_idle and part.capacity_output_tokens_per_second.is_unknown)
    }
    capacities = {
        name: part.capacity_output_tokens_per_second for name, part in known_parts.items()
    }
    known = _sum(capacities, lacking=f"{NOT_REACHED} {noun}")
    known_hours = math.fsum(part.usage.gpu_hours for part in known_parts.values())
    if len(known_parts) == len(parts) or not known_hours:
        return known
    idle = listed([name for name in parts if name not in known_parts])
    basis = f"{idle}: nothing was generated, counted by GPU-hours"
    return known.scaled(gpu_hours / known_hours, basis)


def _used(usage: Usage, capacity: Estimate) -> Estimate:
    """The utilization: exactly 0 if nothing was generated, even if the rate is unknown."""
    return utilization(0.0 if usage.is_idle else usage.output_tokens_per_second, capacity)


def shared_engine(whole: Usage, shares: Mapping[str, Usage]) -> dict[str, Usage]:
    """The shares of one engine's usage with its billed hours split among them; the hours add up.

    For groups that share an engine (any label of its counters). The split follows tokens, weighted
    by the engine time of prompts and output, else at 1:4; without tokens, successful requests. If
    nothing was used the hours are split evenly, because an idle engine is paid for, too.
    """
    weights = _weights(whole, shares)
    all_weights = math.fsum(weights.values())
    names = list(shares)
    hours = {
        name: whole.billed_hours * (weights[name] / all_weights if all_weights else 1 / len(names))
        for name in names
    }
    if names:
        rest = math.fsum(hours[name] for name in names[:-1])
        hours[names[-1]] = max(whole.billed_hours - rest, 0.0)
    return {
        name: replace(share, billed_hours=hours[name], gpus_per_engine=whole.gpus_per_engine)
        for name, share in shares.items()
    }


def _figures(usage: Usage, allocation: Estimate, used: Estimate) -> Costs:
    total_tokens = _plus(usage.prompt_tokens, usage.generation_tokens)
    per_request = _per(allocation, usage.successful_requests, "successful requests")
    per_output = _per_million(allocation, usage.generation_tokens, "output tokens")
    input_split, output_split = _split(usage, allocation)
    return Costs(
        allocation_usd=allocation,
        usd_per_request=per_request,
        usd_per_million_output_tokens=per_output,
        usd_per_million_total_tokens=_per_million(
            allocation, total_tokens, "input and output tokens"
        ),
        tokens_per_usd=_tokens_per_usd(usage.generation_tokens, allocation),
        utilization=used,
        usd_per_million_input_tokens_split=input_split,
        usd_per_million_output_tokens_split=output_split,
        idle_usd=_idle(allocation, used),
        usd_per_request_at_knee=per_request.times(used, "× utilization"),
        usd_per_million_output_tokens_at_knee=per_output.times(used, "× utilization"),
    )


def _per(allocation: Estimate, count: float | None, what: str) -> Estimate:
    if allocation.is_unknown:
        return allocation
    if count is None:
        return Estimate.unknown(
            f"{what} were not counted in this window, or not by this label", *allocation.basis
        )
    if count == 0:
        return Estimate.unknown(
            f"no {what} in this window, so there is nothing to divide the cost by",
            *allocation.basis,
        )
    return allocation.map(lambda usd: usd / count, f"{count:,.0f} {what}")


def _per_million(allocation: Estimate, tokens: float | None, what: str) -> Estimate:
    return _per(allocation, tokens, what).scaled(1e6)


def _tokens_per_usd(tokens: float | None, allocation: Estimate) -> Estimate:
    each = _per(allocation, tokens, "output tokens")
    if each.is_unknown:
        return each
    if each.low == 0:
        return Estimate.unknown("the allocation may be 0 USD: tokens per dollar have no bound")
    return each.inverse()


def split_usd(usage: Usage, allocation: Estimate) -> tuple[Estimate, Estimate]:
    """The allocation divided between input and output, USD; the two middles add up to it.

    By the share of engine time that prompts took, else by tokens at 1:4, which is an assumption:
    only the bound `most_for_prompts` is certain. Unknown without either.
    """
    share = prefill_share(usage)
    if share.is_unknown:
        return (allocation, allocation) if allocation.is_unknown else (share, share)
    rest = share.map(lambda ratio: 1 - ratio, is_decreasing=True)
    return allocation.times(share), allocation.times(rest)


def prefill_share(usage: Usage) -> Estimate:
    """The share of the cost charged to prompts, 0..1 (`split_usd`)."""
    if usage.prefill_time_ratio is not None:
        return usage.prefill_time_ratio
    if usage.prompt_tokens is None or usage.generation_tokens is None:
        return Estimate.unknown("neither the time of prompts nor tokens were counted")
    weighted = usage.prompt_tokens + OUTPUT_TOKEN_WEIGHT * usage.generation_tokens
    share = usage.prompt_tokens / weighted if weighted else 0.0
    most = most_for_prompts(usage.prompt_tokens, usage.generation_tokens)
    how = f"split by assumed weights: 1 output token counts as {OUTPUT_TOKEN_WEIGHT:g} input tokens"
    return Estimate.known(0.0, share, most, how, kind=Kind.ASSUMED, confidence=None)


def most_for_prompts(prompt_tokens: float, output_tokens: float) -> float:
    """The largest possible share of engine time for prompts: their share of all tokens, 0..1.

    Reading a token takes no longer than writing one: both multiply by the same matrices, and a step
    that writes reads all weights and the KV cache for few tokens. 1 without tokens.
    """
    both = prompt_tokens + output_tokens
    return prompt_tokens / both if both else 1.0


def _split(usage: Usage, allocation: Estimate) -> tuple[Estimate, Estimate]:
    """USD per million input and output tokens if the allocation is divided between the two."""
    inputs, outputs = split_usd(usage, allocation)
    return (
        _per_million(inputs, usage.prompt_tokens, "input tokens"),
        _per_million(outputs, usage.generation_tokens, "output tokens"),
    )


def _idle(allocation: Estimate, used: Estimate) -> Estimate:
    """The bill × the unused share; a lower bound if the utilization is an upper bound."""
    unused = used.map(lambda share: 1 - share, is_decreasing=True)
    return allocation.times(unused, "× (1 − utilization)")


def _sum(parts: Mapping[str, Estimate], *, lacking: str = "") -> Estimate:
    if len(parts) == 1:
        return next(iter(parts.values()))
    return total(parts, f"sum of {len(parts)} parts", lacking=lacking)


def _added(usages: list[Usage]) -> Usage:
    """The usage of all parts together; a count that any part lacks is None."""
    hours = math.fsum(usage.billed_hours for usage in usages)
    gpu_hours = math.fsum(usage.gpu_hours for usage in usages)
    return Usage(
        billed_hours=hours,
        successful_requests=_plus(*(usage.successful_requests for usage in usages)),
        prompt_tokens=_plus(*(usage.prompt_tokens for usage in usages)),
        generation_tokens=_plus(*(usage.generation_tokens for usage in usages)),
        prefill_time_ratio=_mean_share(usages),
        output_tokens_per_second=_plus(*(usage.output_tokens_per_second for usage in usages)),
        gpus_per_engine=gpu_hours / hours if hours else 1.0,
    )


def _plus(*numbers: float | None) -> float | None:
    known = [number for number in numbers if number is not None]
    return math.fsum(known) if len(known) == len(numbers) else None


def _mean_share(usages: list[Usage]) -> Estimate | None:
    """The share of prompts over all parts, weighted by GPU-hours; None if no part has one.

    At one price, the parts' input dollars, each by its own share, then add up to the whole's.
    """
    with_tokens = [usage for usage in usages if usage.generation_tokens or usage.prompt_tokens]
    if not any(usage.prefill_time_ratio is not None for usage in with_tokens):
        return None
    hours = math.fsum(usage.gpu_hours for usage in with_tokens)
    if not hours:
        return None
    shares = {
        str(i): prefill_share(each).scaled(each.gpu_hours / hours)
        for i, each in enumerate(with_tokens)
    }
    found = total(shares)
    return found if found.is_known else None


def _weights(whole: Usage, shares: Mapping[str, Usage]) -> dict[str, float]:
    """The weight of each share of an engine: its part of prompts and output, by engine time."""
    prompt, output = (
        math.fsum(getattr(share, name) or 0.0 for share in shares.values())
        for name in ("prompt_tokens", "generation_tokens")
    )
    ratio = prefill_share(replace(whole, prompt_tokens=prompt, generation_tokens=output)).mid or 0.0
    tokens = {
        name: (ratio * (share.prompt_tokens or 0.0) / prompt if prompt else 0.0)
        + ((1 - ratio) * (share.generation_tokens or 0.0) / output if output else 0.0)
        for name, share in shares.items()
    }
    if any(tokens.values()):
        return tokens
    return {name: share.successful_requests or 0.0 for name, share in shares.items()}
