"""A bill spread over fewer or more tokens than were generated."""

from __future__ import annotations

import polars as pl

from vllm_capacity.verdicts.cost.bill import Costs

_SCHEMA = {"utilization": pl.Float64, "usd_per_million_output_tokens": pl.Float64}
_POINTS = 60
_LIGHTEST_RATIO, _HALF_RATIO = 0.005, 0.5  # the curve begins between these


def cost_by_utilization(costs: Costs) -> pl.DataFrame:
    """The same bill spread over fewer or more tokens: its cost at full capacity ÷ utilization.

    Columns: utilization (0..1), usd_per_million_output_tokens; in geometric steps from half the
    lowest utilization that the estimate allows up to full capacity. Empty if that cost or the
    utilization is unknown, or nothing was generated.
    """
    full, lightest = costs.usd_per_million_output_tokens_at_knee.mid, costs.utilization.low
    if full is None or not costs.utilization.is_known or not lightest:
        return pl.DataFrame(schema=_SCHEMA)
    first = min(_HALF_RATIO, max(lightest / 2, _LIGHTEST_RATIO))
    ratio = (1 / first) ** (1 / (_POINTS - 1))
    used = [first * ratio**i for i in range(_POINTS)]
    rows = {"utilization": used, "usd_per_million_output_tokens": [full / each for each in used]}
    return pl.DataFrame(rows, schema=_SCHEMA)
