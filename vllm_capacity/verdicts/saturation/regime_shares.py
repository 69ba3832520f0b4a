"""The share of each regime in even time steps, for charts.

In a week, a lightly used server flips between idle and busy thousands of times, each too short to
be visible. A chart can show how much of an hour or two was spent in each regime.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import polars as pl
from polars.datatypes import DataTypeClass

from vllm_capacity.figures.steps import Grid
from vllm_capacity.timerange import TimeRange
from vllm_capacity.verdicts.saturation.fit import Stretch
from vllm_capacity.verdicts.saturation.regimes import BY_SEVERITY, LIMITS

MIN_LIMITED_RATIO = 0.1
"""From this share of a step on, a limit is the step's regime, whatever the rest of the step was."""

_STRETCHES: Mapping[str, DataTypeClass | pl.DataType] = {
    "first": pl.Datetime("us", "UTC"),
    "last": pl.Datetime("us", "UTC"),
    "engine": pl.String,
    "regime": pl.String,
}


def regime_shares(
    stretches: Sequence[Stretch], *, time_range: TimeRange, step_seconds: float
) -> pl.DataFrame:
    """How much of each step each engine spent in each regime.

    One row per engine, step and regime that occurred, in that order, regimes by severity: engine,
    step (its number), start, end, regime, share_ratio (0..1, of the whole step). Time that was not
    judged has no row. Empty for no stretches.
    """
    grid = Grid(time_range, step_seconds)
    rows = [(each.start, each.end, each.engine, each.regime) for each in stretches]
    frame = pl.DataFrame(rows, schema=_STRETCHES, orient="row")
    last = grid.of("last") + 1
    parts = frame.with_columns(
        step=pl.int_ranges(grid.of("first").clip(lower_bound=0), last)
    ).explode("step", empty_as_null=False)
    spent = pl.min_horizontal("last", "end") - pl.max_horizontal("first", "start")
    found = (
        grid.starts(parts)
        .with_columns(share_ratio=spent / (pl.col("end") - pl.col("start")))
        .filter(pl.col("share_ratio") > 0)
        .group_by("engine", "step", "start", "end", "regime")
        .agg(pl.col("share_ratio").sum())
    )
    return found.sort("engine", "step", severity(pl.col("regime")))


def leading_regimes(shares: pl.DataFrame) -> pl.DataFrame:
    """The main regime of each step of each engine: one row of `regime_shares` per engine and step.

    It is the longest limit if limits held for at least a tenth of the step, else the longest
    regime; the more severe if two are equal.
    """
    is_limit = pl.col("regime").is_in(LIMITS)
    limited = pl.col("share_ratio").filter(is_limit).sum().over("engine", "step")
    named = shares.filter(is_limit | (limited < MIN_LIMITED_RATIO))
    return (
        named.sort("engine", "step", "share_ratio", severity(pl.col("regime")))
        .group_by("engine", "step", maintain_order=True)
        .last()
        .select(shares.columns)
    )


def severity(regime: pl.Expr) -> pl.Expr:
    """The rank of a regime among all, the most limiting last."""
    places = {name: place for place, name in enumerate(BY_SEVERITY)}
    return regime.replace_strict(places, return_dtype=pl.Int8)
