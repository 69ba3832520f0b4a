"""The engines and models of a fleet side by side: cost, tokens served, and bottleneck of each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from msgspec import Struct

from vllm_capacity.estimate import Estimate
from vllm_capacity.figures.latency import Quantile
from vllm_capacity.verdicts.cost.bill import Bill, Costs, CostShare
from vllm_capacity.verdicts.saturation.fit import SaturationFit
from vllm_capacity.verdicts.saturation.regimes import BY_SEVERITY, LIMITS, UNKNOWN


class EngineRow(Struct, frozen=True):
    """One engine of a fleet.

    `token_share_ratio` is its share of all output tokens, 0..1; None if any engine's tokens were
    not counted, or there were none. `limit` is the regime that limited it at its peak, else its
    most frequent one.
    """

    engine: str
    allocation_usd: Estimate
    idle_usd: Estimate
    token_share_ratio: float | None
    utilization: Estimate
    ttft_p95: Quantile
    limit: str

    @property
    def is_limited(self) -> bool:
        """Whether the engine, not its clients, set its throughput at its peak."""
        return self.limit in LIMITS


class ModelRow(Struct, frozen=True):
    """One model of a fleet, over its engines.

    `engines` are those that counted any of its traffic, worst first. An engine that serves several
    models is listed under each, and its cost is divided among them.
    """

    model: str
    engines: tuple[EngineRow, ...]
    costs: Costs
    token_share_ratio: float | None
    ttft_p95: Quantile

    @property
    def limited(self) -> tuple[EngineRow, ...]:
        """Its engines that were at a limit at their peak."""
        return tuple(row for row in self.engines if row.is_limited)


def model_rows(
    charged: Bill,
    parts: Mapping[str, Mapping[str, CostShare]],
    engines: Mapping[str, Sequence[EngineRow]],
    ttft_p95: Mapping[str, Quantile],
) -> tuple[ModelRow, ...]:
    """The models of a fleet, worst first: by engines at a limit, then by the cost of idle time.

    `charged` is the bill by model, `parts` its shares by model and engine; `engines` and `ttft_p95`
    are by model too. Empty without parts.
    """
    shares = _token_shares({name: list(own.values()) for name, own in parts.items()})
    rows = [
        ModelRow(
            model=name,
            engines=tuple(engines.get(name, ())),
            costs=costs,
            token_share_ratio=shares[name],
            ttft_p95=ttft_p95.get(name, Quantile()),
        )
        for name, costs in charged.parts.items()
    ]
    worst = sorted(rows, key=lambda row: (-len(row.limited), -_usd(row.costs.idle_usd), row.model))
    return tuple(worst)


def engine_rows(
    charged: Bill,
    parts: Mapping[str, CostShare],
    fits: Sequence[SaturationFit],
    ttft_p95: Mapping[str, Quantile],
) -> tuple[EngineRow, ...]:
    """The engines of a bill, worst first: by their limit, then by the cost of idle time.

    `parts` are those of the bill, `ttft_p95` is by engine. Empty without engines.
    """
    limits = {fit.engine: fit.bottleneck or fit.regime for fit in fits}
    shares = _token_shares({name: [part] for name, part in parts.items()})
    rows = [
        EngineRow(
            engine=name,
            allocation_usd=costs.allocation_usd,
            idle_usd=costs.idle_usd,
            token_share_ratio=shares[name],
            utilization=costs.utilization,
            ttft_p95=ttft_p95.get(name, Quantile()),
            limit=limits.get(name, UNKNOWN),
        )
        for name, costs in charged.parts.items()
    ]
    return tuple(sorted(rows, key=_badness, reverse=True))


def _token_shares(parts: Mapping[str, Sequence[CostShare]]) -> dict[str, float | None]:
    """Each one's share of all output tokens, 0..1; None if any count is missing or all are 0."""
    tokens = {name: [one.usage.generation_tokens for one in own] for name, own in parts.items()}
    if any(each is None for own in tokens.values() for each in own):
        return dict.fromkeys(tokens)
    sums = {name: math.fsum(each or 0.0 for each in own) for name, own in tokens.items()}
    whole = math.fsum(sums.values())
    return {name: each / whole if whole else None for name, each in sums.items()}


def _badness(row: EngineRow) -> tuple[int, float, str]:
    """The sort key of an engine: the severity of its limit, then its idle dollars."""
    severity = BY_SEVERITY.index(row.limit) if row.is_limited else 0
    return severity, _usd(row.idle_usd), row.engine


def _usd(amount: Estimate) -> float:
    """The middle of the amount, else its lower bound, else 0."""
    return next((end for end in (amount.mid, amount.low) if end is not None), 0.0)
