"""The engines of a fleet beside each other: what each cost, served and was limited by."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vllm_capacity.estimate import Estimate
from vllm_capacity.figures.latency import Quantile
from vllm_capacity.verdicts.cost.bill import Bill, CostShare
from vllm_capacity.verdicts.saturation.fit import SaturationFit
from vllm_capacity.verdicts.saturation.regimes import BY_SEVERITY, LIMITS, UNKNOWN


@dataclass(frozen=True)
class EngineRow:
    """One engine of a fleet.

    `token_share_ratio` is its part of the tokens that all generated, 0..1, None where one was not
    counted or none came. `limit` is the regime that limited it at its peak, else that of most of
    its time.
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


def engine_rows(
    bill: Bill,
    parts: Mapping[str, CostShare],
    fits: Sequence[SaturationFit],
    ttft_p95: Mapping[str, Quantile],
) -> tuple[EngineRow, ...]:
    """The engines of a bill, worst first: those at a limit, then by what idle time cost.

    `parts` are those of the bill, `ttft_p95` is by engine. Empty for no engine.
    """
    limits = {fit.engine: fit.bottleneck or fit.regime for fit in fits}
    tokens = {name: part.usage.generation_tokens for name, part in parts.items()}
    counted = [each for each in tokens.values() if each is not None]
    whole = math.fsum(counted) if len(counted) == len(tokens) else 0.0
    rows = [
        EngineRow(
            engine=name,
            allocation_usd=costs.allocation_usd,
            idle_usd=costs.idle_usd,
            token_share_ratio=(tokens[name] or 0.0) / whole if whole else None,
            utilization=costs.utilization,
            ttft_p95=ttft_p95.get(name, Quantile()),
            limit=limits.get(name, UNKNOWN),
        )
        for name, costs in bill.parts.items()
    ]
    return tuple(sorted(rows, key=_badness, reverse=True))


def _badness(row: EngineRow) -> tuple[int, float, str]:
    """What puts one engine before another: the more severe limit, then the dollars idle."""
    severity = BY_SEVERITY.index(row.limit) if row.is_limited else 0
    idle = next((end for end in (row.idle_usd.mid, row.idle_usd.low) if end is not None), 0.0)
    return severity, idle, row.engine
