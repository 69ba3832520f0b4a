"""The current state of each engine of a fleet, worst first, for a live screen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime

import polars as pl
from msgspec.structs import replace

from vllm_capacity.analysis import Analysis
from vllm_capacity.errors import InputError
from vllm_capacity.estimate import Estimate, Figures, total
from vllm_capacity.figures.latency import Quantile, latency
from vllm_capacity.figures.makes import of_engines
from vllm_capacity.record import SCHEMA_VERSION, Record
from vllm_capacity.verdicts.saturation.regimes import CLIENT, IDLE, LIMITS, UNKNOWN
from vllm_capacity.verdicts.utilization import headroom


class EngineNow(Figures, frozen=True):
    """One engine: its last step (10 s or more); latency, cost and headroom over the whole period.

    None and unknown estimates if not observed. `trouble` is why its server does not respond, empty
    if it does.
    """

    engine: str
    regime: str
    output_tokens_per_second: float | None
    running: float | None
    waiting: float | None
    kv_cache_ratio: float | None
    ttft_p95: Quantile
    itl_p95: Quantile
    usd_per_hour: Estimate
    usd_per_million_output_tokens: Estimate
    headroom_ratio: Estimate
    trouble: str = ""


class FleetNow(Record, frozen=True):
    """All engines in order, and the total: rates and counts added, KV usage and cost as a whole.

    `seconds` is the length of the period of latency and cost.
    """

    at: datetime
    seconds: float
    engines: tuple[EngineNow, ...]
    whole: EngineNow
    schema_version: int = SCHEMA_VERSION


_Key = tuple[float, ...]


def _most_first(value: float | None) -> _Key:
    """A sort key: highest first, unknown last."""
    return (float("inf") if value is None else -value,)


def _severity(row: EngineNow) -> _Key:
    """A sort key: silent servers, then those at a limit, unknown ones, and those with headroom."""
    if row.trouble:
        return (0.0,)
    ranks = {**dict.fromkeys(LIMITS, 1.0), UNKNOWN: 2.0, CLIENT: 3.0, IDLE: 4.0}
    rank = ranks.get(row.regime, 2.0)
    return rank, *_most_first(row.waiting), *_most_first(row.kv_cache_ratio)


def _least_room(row: EngineNow) -> _Key:
    room = row.headroom_ratio.mid
    return (float("inf") if room is None else room,)


ORDERS: Mapping[str, Callable[[EngineNow], _Key]] = {
    "worst": _severity,
    "name": lambda row: (),  # names are sorted before
    "tokens": lambda row: _most_first(row.output_tokens_per_second),
    "running": lambda row: _most_first(row.running),
    "waiting": lambda row: _most_first(row.waiting),
    "kv": lambda row: _most_first(row.kv_cache_ratio),
    "ttft": lambda row: _most_first(row.ttft_p95.estimate),
    "itl": lambda row: _most_first(row.itl_p95.estimate),
    "cost": lambda row: _most_first(row.usd_per_million_output_tokens.mid),
    "headroom": _least_room,
}


def engines_now(
    analysis: Analysis, *, silent: Mapping[str, str] | None = None, order: str = "worst"
) -> FleetNow:
    """The engines in the analysis' period, the last minutes, and servers that do not respond.

    `silent` is the cause by instance. InputError for an order not in `ORDERS`.
    """
    if order not in ORDERS:
        raise InputError(f"Cannot sort by {order!r}; try {', '.join(ORDERS)}.")
    lost = dict(silent or {})
    rows = [
        replace(_row(analysis, engine), trouble=lost.get(engine.rpartition("/")[0], ""))
        for engine in analysis.bill_parts
    ]
    seen = {row.engine.rpartition("/")[0] for row in rows}
    rows += [_silent(instance, why) for instance, why in lost.items() if instance not in seen]
    return _fleet(rows, analysis, order)


def _silent(instance: str, cause: str) -> EngineNow:
    unknown = Estimate.unknown(cause)
    return EngineNow(
        engine=instance,
        regime=UNKNOWN,
        output_tokens_per_second=None,
        running=None,
        waiting=None,
        kv_cache_ratio=None,
        ttft_p95=Quantile(),
        itl_p95=Quantile(),
        usd_per_hour=unknown,
        usd_per_million_output_tokens=unknown,
        headroom_ratio=unknown,
        trouble=cause,
    )


def _fleet(rows: list[EngineNow], analysis: Analysis, order: str) -> FleetNow:
    rows.sort(key=lambda row: row.engine)
    rows.sort(key=ORDERS[order])
    found = analysis.answer
    whole = EngineNow(
        engine="total",
        regime=found.saturation.regime,
        output_tokens_per_second=_sum([row.output_tokens_per_second for row in rows]),
        running=_sum([row.running for row in rows]),
        waiting=_sum([row.waiting for row in rows]),
        kv_cache_ratio=found.kv_cache_ratio.mean,
        ttft_p95=found.latency.ttft.p95,
        itl_p95=found.latency.itl.p95,
        usd_per_hour=total({row.engine: row.usd_per_hour for row in rows}),
        usd_per_million_output_tokens=found.cost.usd_per_million_output_tokens,
        headroom_ratio=found.saturation.headroom_ratio,
    )
    span = analysis.time_range
    return FleetNow(span.end, span.seconds, tuple(rows), whole)


def _row(analysis: Analysis, engine: str) -> EngineNow:
    part, costs = analysis.bill_parts[engine], analysis.bill.parts[engine]
    regimes = {fit.engine: fit.regime for fit in analysis.fits}
    own = latency(analysis.histograms_of(engine))
    last = _last_step(analysis.steps, engine)
    return EngineNow(
        engine=engine,
        regime=regimes.get(engine, UNKNOWN),
        output_tokens_per_second=last.get("output_tokens_per_second"),
        running=last.get("running_mean"),
        waiting=last.get("waiting_mean"),
        kv_cache_ratio=last.get("kv_cache_ratio_mean"),
        ttft_p95=own.ttft.p95,
        itl_p95=own.itl.p95,
        usd_per_hour=part.usd_per_engine_hour,
        usd_per_million_output_tokens=costs.usd_per_million_output_tokens,
        headroom_ratio=headroom(costs.utilization),
    )


def _last_step(steps: pl.DataFrame, engine: str) -> dict[str, float]:
    """The engine's latest step with samples; empty if there is none."""
    own = of_engines(steps, [engine]).drop_nulls("running_mean").sort("start")
    return own.tail(1).to_dicts()[0] if own.height else {}


def _sum(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None
