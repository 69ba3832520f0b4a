"""The engines and models of a fleet, one row each, the worst first."""

from __future__ import annotations

from msgspec.structs import replace

from vllm_capacity.analysis import Analysis
from vllm_capacity.figures.latency import Quantile
from vllm_capacity.render.engines import short_names
from vllm_capacity.render.numbers import count, percent, plural, seconds, usd
from vllm_capacity.render.prose.verdict import REGIMES
from vllm_capacity.render.tables import DASH, Cell, Column, Table, table
from vllm_capacity.verdicts.fleet import ModelRow
from vllm_capacity.verdicts.saturation.regimes import CLIENT, IDLE

_CAPTION = "Engines at a limit first, then by idle cost."
_MODELS_CAPTION = "The same by model: sums over its engines."
_MILLION = "usd_per_million_output_tokens"


def engine_table(analysis: Analysis) -> Table | None:
    """The cost, traffic and limit of each engine, the worst first; None for a single engine.

    One row per engine: its bill and idle cost, its share of all generated tokens, its utilization,
    p95 TTFT, and its limit at peak load. Without a price there are no dollars.
    """
    rows = analysis.engine_rows
    if len(rows) < 2:
        return None
    names, models = short_names(row.engine for row in rows), analysis.models_by_engine
    columns = (
        Column("engine", "engine"),
        Column("model", "model"),
        Column("bill", "allocation_usd", usd, is_numeric=True),
        Column("idle cost", "idle_usd", usd, is_numeric=True),
        Column("share of tokens", "token_share_ratio", percent, is_numeric=True),
        Column("utilization", "utilization", percent, is_numeric=True),
        Column("TTFT p95", "ttft_p95_seconds", seconds, is_numeric=True),
        Column("what limits it", "limit"),
    )
    is_priced, has_models = not analysis.cost.allocation_usd.is_unknown, len(analysis.models) > 1
    found = [
        (
            Cell(names[row.engine], row.engine),
            ", ".join(models.get(row.engine, ())) if has_models else "",
            row.allocation_usd if is_priced else Cell(""),
            row.idle_usd if is_priced else Cell(""),
            row.token_share_ratio,
            row.utilization,
            slowest(row.ttft_p95),
            Cell(_LIMITS.get(row.limit, REGIMES[row.limit]), row.limit),
        )
        for row in rows
    ]
    return replace(table(columns, found, caption=_CAPTION), is_sortable=True)


def model_table(analysis: Analysis) -> Table | None:
    """The cost and traffic of each model, all engines, the worst first; None for a single model.

    One row per model: its engines, bill and idle cost, share of all generated tokens, dollars per
    million of them, utilization, p95 TTFT, and the number of engines at a limit. Without a price
    there are no dollars.
    """
    if len(analysis.models) < 2:
        return None
    columns = (
        Column("model", "model"),
        Column("engines", "engines", count, is_numeric=True),
        Column("bill", "allocation_usd", usd, is_numeric=True),
        Column("idle cost", "idle_usd", usd, is_numeric=True),
        Column("share of tokens", "token_share_ratio", percent, is_numeric=True),
        Column("per million output tokens", _MILLION, usd, is_numeric=True),
        Column("utilization", "utilization", percent, is_numeric=True),
        Column("TTFT p95", "ttft_p95_seconds", seconds, is_numeric=True),
        Column("what limits it", "limit"),
    )
    is_priced = not analysis.cost.allocation_usd.is_unknown
    found = [
        (
            row.model,
            len(row.engines),
            row.costs.allocation_usd if is_priced else Cell(""),
            row.costs.idle_usd if is_priced else Cell(""),
            row.token_share_ratio,
            row.costs.usd_per_million_output_tokens if is_priced else Cell(""),
            row.costs.utilization,
            slowest(row.ttft_p95),
            limit_of(row),
        )
        for row in analysis.model_rows
    ]
    return replace(table(columns, found, caption=_MODELS_CAPTION), is_sortable=True)


def limit_of(row: ModelRow) -> Cell:
    """How many of its engines are at the worst limit; if none is, the state of the first."""
    if not row.engines:
        return Cell(DASH)
    worst = row.engines[0].limit
    if not row.limited:
        return Cell(_LIMITS.get(worst, REGIMES[worst]), worst)
    same = sum(each.limit == worst for each in row.limited)
    return Cell(f"{count(same)} of {plural(len(row.engines), 'engine')} {REGIMES[worst]}", worst)


_LIMITS = {IDLE: "none (idle)", CLIENT: "none (capacity to spare)"}


def slowest(p95: Quantile) -> Cell:
    """The p95 of a latency; beyond the last bucket edge, only that it is above it."""
    if p95.estimate is not None:
        return Cell(seconds(p95.estimate), p95.estimate)
    if p95.lower is None:
        return Cell(DASH)
    return Cell(f"above {seconds(p95.lower)}", order=p95.lower)
