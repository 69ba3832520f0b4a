"""The bill of a window by tenant, from a gateway's log of each request.

Engines are grouped into pools: the replicas of a model, used by the requests for that model. Within
a pool, engines of one make follow the same law of step time (verdicts/cost/engine_time.py), by
which their cost is shared (verdicts/cost/shares.py). Pools and makes are weighted by their cost.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Literal

import numpy as np
import polars as pl
from msgspec import Struct

from vllm_capacity.analysis import Analysis
from vllm_capacity.errors import InputError, NoTelemetryError
from vllm_capacity.estimate import Estimate, Figures, listed, total
from vllm_capacity.figures.makes import alike
from vllm_capacity.record import SCHEMA_VERSION, Record
from vllm_capacity.sources.usage import LogFile, UsageLog
from vllm_capacity.timerange import TimeRange, iso
from vllm_capacity.verdicts.cost.engine_time import (
    COMPONENTS,
    EngineTime,
)
from vllm_capacity.verdicts.cost.shares import (
    AlikeEngines,
    Counted,
    Shares,
    estimates,
    pool_shares,
)

IdleRule = Literal["shared", "apart"]
IDLE_RULES: Mapping[str, IdleRule] = {"shared": "shared", "apart": "apart"}
UNMATCHED = ""
_MORE_THAN_COUNTED = 1.02


class Tenant(Figures, frozen=True):
    """One key's use in the time range, by its log rows, and its part of the bill.

    `share_ratio` is its share of all use, 0..1; the shares and costs of all tenants and of use that
    no row explains add up to the whole. `cached_tokens` is None if any row lacks them.
    """

    requests: float
    prompt_tokens: float
    cached_tokens: float | None
    output_tokens: float
    share_ratio: Estimate
    cost_usd: Estimate


class ModelUse(Figures, frozen=True):
    """The counted and logged use of one model's replicas, and how their time was spent.

    `…_time_ratio` are shares of engine time: for prompts, for each output token, for the fixed part
    of steps, and for KV cache in use.
    """

    engines: int
    counted_prompt_tokens: float
    counted_output_tokens: float
    logged_prompt_tokens: float
    logged_output_tokens: float
    prefill_time_ratio: Estimate
    decode_time_ratio: Estimate
    steps_time_ratio: Estimate
    memory_time_ratio: Estimate


class LeftOut(Record, frozen=True):
    """Log rows that are not part of this window: of another time, or for models not served.

    `other_models` has the rows by model; "" are rows without a model if several are served.
    """

    before: int
    after: int
    other_models: Mapping[str, int]


class Tenants(Record, frozen=True):
    """The bill by tenant: `tenants` by key, the largest part first, and `unmatched` add up to it.

    If `idle` is "apart", `idle_usd` is separate, and added to them; else it is included in all
    costs, in proportion to use. `whole_usd` is the bill.
    """

    idle: IdleRule
    tenants: Mapping[str, Tenant]
    unmatched: Tenant
    idle_usd: Estimate
    whole_usd: Estimate
    models: Mapping[str, ModelUse]
    left_out: LeftOut
    files: tuple[LogFile, ...]
    notes: tuple[str, ...]
    schema_version: int = SCHEMA_VERSION


class _Pool(Struct, frozen=True, dict=True):
    """The replicas of a model: its engines by make, with the cost of each make."""

    model: str
    engines: tuple[str, ...]
    rows: pl.DataFrame
    counted: Counted
    makes: tuple[tuple[float, EngineTime | str], ...]

    @cached_property
    def shares(self) -> Shares:
        alike = [AlikeEngines(weight, time) for weight, time in self.makes]
        return pool_shares(self.rows, self.counted, alike)

    @property
    def weight(self) -> float:
        return math.fsum(weight for weight, _ in self.makes)


def tenants(
    analysis: Analysis,
    log: UsageLog,
    *,
    idle: IdleRule = "shared",
    aliases: Mapping[str, str] | None = None,
) -> Tenants:
    """The bill of the analysis shared among the keys of the log.

    `idle`: "shared" in proportion to use, or kept "apart". `aliases` map names in the log to served
    models. NoTelemetryError, an InputError, if no row of the log is in this time range and for a
    served model, or if the servers generated nothing.
    """
    named = _of_models(analysis, log.frame, aliases or {})
    inside = _inside(named, analysis.time_range)
    served = inside.filter(pl.col("part") > 0, pl.col("served").is_not_null())
    left_out = _left_out(named, inside, analysis.time_range)
    if not analysis.counted(list(analysis.makes)).output_tokens:
        raise NoTelemetryError(_idle(analysis))
    if served.is_empty():
        raise NoTelemetryError(_nothing(analysis, log.frame, left_out))
    pools = _pools(analysis, served, idle)
    if not any(pool.weight for pool in pools):
        raise NoTelemetryError(_idle(analysis))
    found = estimates([(pool.weight, pool.shares) for pool in pools])
    whole = analysis.cost.allocation_usd
    costs = _used(analysis, pools) if idle == "apart" else _times(found, whole)
    return Tenants(
        idle=idle,
        tenants=_by_key(served, found, costs),
        unmatched=_unmatched(pools, found[UNMATCHED], costs[UNMATCHED]),
        idle_usd=analysis.cost.idle_usd,
        whole_usd=whole,
        models={pool.model: _model_use(pool) for pool in pools},
        left_out=left_out,
        files=log.files,
        notes=tuple(_notes(pools, served)),
    )


def idle_rule(name: str) -> IdleRule:
    """The rule for idle cost of that name; InputError for an unknown one."""
    if name not in IDLE_RULES:
        raise InputError(f"Idle cost is {' or '.join(IDLE_RULES)}, not {name!r}.")
    return IDLE_RULES[name]


# --- rows ----------------------------------------------------------------------------------------


def _of_models(analysis: Analysis, rows: pl.DataFrame, aliases: Mapping[str, str]) -> pl.DataFrame:
    """The rows with their served model in `served`, null if it is not served.

    A row's model is matched by name, with or without a gateway's provider prefix, or by a LoRA
    adapter that ran.
    """
    models = analysis.models
    if unknown := sorted(set(aliases.values()) - set(models)):
        raise InputError(
            f"No model {', '.join(unknown)} is served in this window; there are "
            f"{', '.join(models) or 'none'}."
        )
    bases = adapter_bases(analysis)
    only = models[0] if len(models) == 1 else None

    def served(name: str | None) -> str | None:
        if name is None:
            return only
        bare = [name, *(name.split("/", n)[-1] for n in range(1, name.count("/") + 1))]
        known = {**{model: model for model in models}, **bases, **aliases}
        return next((known[each] for each in bare if each in known), None)

    names = rows["model"].unique().to_list()
    found = pl.DataFrame(
        {"model": names, "served": [served(name) for name in names]},
        schema={"model": pl.String, "served": pl.String},
    )
    return rows.join(found, on="model", how="left", nulls_equal=True, maintain_order="left")


def _inside(rows: pl.DataFrame, time_range: TimeRange) -> pl.DataFrame:
    """The rows with the part of each (0..1) that lies in the time range."""
    start, end = pl.lit(time_range.start), pl.lit(time_range.end)
    overlap = pl.min_horizontal("end", end) - pl.max_horizontal("start", start)
    length = pl.col("end") - pl.col("start")
    part = overlap.dt.total_microseconds() / length.dt.total_microseconds()
    is_inside = (pl.col("end") >= start) & (pl.col("end") < end)
    instant = is_inside.cast(pl.Float64)
    return rows.with_columns(
        part=pl.when(length > pl.duration()).then(part.clip(0.0, 1.0)).otherwise(instant)
    )


def _left_out(named: pl.DataFrame, inside: pl.DataFrame, time_range: TimeRange) -> LeftOut:
    outside = inside.filter(pl.col("part") <= 0)
    other = inside.filter(pl.col("part") > 0, pl.col("served").is_null())
    counts = other.group_by(pl.col("model").fill_null("")).len().sort("len", descending=True)
    before = outside.filter(pl.col("end") <= pl.lit(time_range.start)).height
    return LeftOut(before, outside.height - before, dict(counts.iter_rows()))


def _idle(analysis: Analysis) -> str:
    usd = analysis.cost.allocation_usd
    bill = f" (${usd.mid:,.2f})" if usd.mid is not None else ""
    span = analysis.time_range
    return (
        f"The servers generated no output from {iso(span.start)} to {iso(span.end)}: the whole "
        f"bill{bill} is idle cost, with no use to divide it by."
    )


def _nothing(analysis: Analysis, rows: pl.DataFrame, left_out: LeftOut) -> str:
    if left_out.other_models:
        names = listed([name or "(no model named)" for name in left_out.other_models])
        return (
            f"No row of the usage is of a model served in this window "
            f"({', '.join(analysis.models) or 'none'}); rows name {names}. Say which served model "
            "a name is: --usage-models NAME=SERVED."
        )
    span = analysis.time_range
    if rows.is_empty():
        return "The usage has no row whose tokens a server answered."
    first, last = rows["start"].min(), rows["end"].max()
    return (
        f"No row of the usage lies in the time from {iso(span.start)} to {iso(span.end)}; its rows "
        f"are from {iso(first)} to {iso(last)}."  # type: ignore[arg-type]
    )


def adapter_bases(analysis: Analysis) -> dict[str, str]:
    """The model that each LoRA adapter ran on, by the adapter's name; empty if none ran.

    Adapters of a server with several models are left out: vllm:lora_requests_info does not name the
    model.
    """
    models: dict[str, set[str]] = {}
    for engine in analysis.engines.iter_rows(named=True):
        if engine["model_name"]:
            models.setdefault(engine["instance"], set()).add(engine["model_name"])
    named = analysis.adapters.select("instance", "adapter").iter_rows()
    return {
        adapter: next(iter(models[instance]))
        for instance, adapter in named
        if len(models.get(instance, ())) == 1
    }


# --- pools ---------------------------------------------------------------------------------------


def _pools(analysis: Analysis, rows: pl.DataFrame, idle: IdleRule) -> list[_Pool]:
    by_model: dict[str, list[str]] = {}
    for engine, models in analysis.models_by_engine.items():
        if engine not in analysis.makes:
            continue  # has counters, but no billed time
        by_model.setdefault(models[0], []).append(engine)
    weights = _weights(analysis, idle)
    pools = []
    for model, engines in sorted(by_model.items()):
        own = rows.filter(pl.col("served") == model)
        makes = _makes(analysis, engines, weights)
        if own.is_empty() and not analysis.counted(engines).output_tokens:
            continue  # no output and no requests: all tenants share its cost
        pools.append(_Pool(model, tuple(engines), own, analysis.counted(engines), makes))
    return pools


def _weights(analysis: Analysis, idle: IdleRule) -> dict[str, float]:
    """The weight of each engine: its cost, or the used part of it; GPU-hours without a price."""
    costs = analysis.bill.parts
    usd = {name: each.allocation_usd.mid for name, each in costs.items()}
    if any(value is None for value in usd.values()) or not any(usd.values()):
        return {name: part.usage.gpu_hours for name, part in analysis.bill_parts.items()}
    used = {name: each.utilization.mid for name, each in costs.items()}
    are_used = idle == "apart" and all(value is not None for value in used.values())
    return {
        name: (value or 0.0) * ((used[name] or 0.0) if are_used else 1.0)
        for name, value in usd.items()
    }


def _makes(
    analysis: Analysis, engines: Sequence[str], weights: Mapping[str, float]
) -> tuple[tuple[float, EngineTime | str], ...]:
    """The engines by make: the cost of each, and how its time was spent.

    The cost of engines that generated nothing is spread over the others, like idle time.
    """
    groups = alike(engines, analysis.makes)
    busy = [own for own in groups if analysis.counted(own).output_tokens]
    whole = math.fsum(weights[engine] for engine in engines)
    own = [math.fsum(weights[engine] for engine in group) for group in busy]
    scale = whole / (math.fsum(own) or 1.0)
    times = [analysis.engine_times[group[0]] for group in busy]
    return tuple((weight * scale, time) for weight, time in zip(own, times, strict=True))


def _times(shares: Mapping[str, Estimate], whole: Estimate) -> dict[str, Estimate]:
    return {name: whole.times(share) for name, share in shares.items()}


def _used(analysis: Analysis, pools: Sequence[_Pool]) -> dict[str, Estimate]:
    """The cost of each key's use without idle time, USD: share of each pool's bill × utilization.

    Pool by pool, because a bound on the use of all engines together does not bound that of one.
    """
    parts: dict[str, dict[str, Estimate]] = {}
    for pool in pools:
        own = [analysis.bill.parts[engine] for engine in pool.engines]
        used = total(
            {str(i): each.allocation_usd.times(each.utilization) for i, each in enumerate(own)}
        )
        for name, cost in _times(estimates([(1.0, pool.shares)]), used).items():
            parts.setdefault(name, {})[pool.model] = cost
    return {name: total(own) for name, own in parts.items()}


# --- the answer ----------------------------------------------------------------------------------


def _by_key(
    rows: pl.DataFrame, shares: Mapping[str, Estimate], costs: Mapping[str, Estimate]
) -> dict[str, Tenant]:
    part = pl.col("part")
    sums = rows.group_by("key").agg(
        requests=(pl.col("requests") * part).sum(),
        prompt=(pl.col("prompt_tokens") * part).sum(),
        cached=(pl.col("cached_tokens") * part).sum(),
        is_cached_known=pl.col("cached_tokens").is_not_null().all(),
        output=(pl.col("output_tokens") * part).sum(),
    )
    found = {
        row["key"]: Tenant(
            row["requests"],
            row["prompt"],
            row["cached"] if row["is_cached_known"] else None,
            row["output"],
            shares[row["key"]],
            costs[row["key"]],
        )
        for row in sums.iter_rows(named=True)
    }
    return dict(sorted(found.items(), key=lambda item: (-(item[1].share_ratio.mid or 0), item[0])))


def _unmatched(pools: Sequence[_Pool], share: Estimate, cost: Estimate) -> Tenant:
    logged = [_logged(pool) for pool in pools]
    prompt = math.fsum(
        max(0.0, pool.counted.prompt_tokens - own[0])
        for pool, own in zip(pools, logged, strict=True)
    )
    output = math.fsum(
        max(0.0, pool.counted.output_tokens - own[1])
        for pool, own in zip(pools, logged, strict=True)
    )
    return Tenant(0.0, prompt, None, output, share, cost)


def _logged(pool: _Pool) -> tuple[float, float]:
    """Prompt and output tokens in a pool's rows, counted for their part in the time range."""
    sums = pool.rows.select(
        (pl.col("prompt_tokens") * pl.col("part")).sum(),
        (pl.col("output_tokens") * pl.col("part")).sum(),
    )
    prompt, output = sums.row(0)
    return float(prompt), float(output)


def _model_use(pool: _Pool) -> ModelUse:
    prompt, output = _logged(pool)
    known = [(weight, time) for weight, time in pool.makes if not isinstance(time, str)]
    if known:
        whole = math.fsum(weight for weight, _ in known)
        best = sum(weight / whole * time.shares for weight, time in known)
        draws = sum(weight / whole * time.draws for weight, time in known)
        pooled = EngineTime(np.asarray(best), np.asarray(draws), known[0][1].stretches)
        ratios = list(pooled.ratios.values())
    else:
        reason = next((time for _, time in pool.makes if isinstance(time, str)), "nothing ran")
        ratios = [Estimate.unknown(reason) for _ in COMPONENTS]
    return ModelUse(
        len(pool.engines),
        pool.counted.prompt_tokens,
        pool.counted.output_tokens,
        prompt,
        output,
        *ratios,
    )


def _notes(pools: Sequence[_Pool], rows: pl.DataFrame) -> list[str]:
    """What readers need to know about how reliable the shares are."""
    notes = []
    for pool in pools:
        _, output = _logged(pool)
        counted = pool.counted.output_tokens
        if output > _MORE_THAN_COUNTED * counted:
            notes.append(
                f"rows of {pool.model} have {output:,.0f} output tokens, its servers counted "
                f"{counted:,.0f}: the log includes other servers, or is in another time zone"
            )
    unsure = rows.filter(pl.col("cached_tokens").is_null())["prompt_tokens"].sum()
    if unsure and any(_has_cache(pool.counted) for pool in pools):
        notes.append(
            "prompts whose cached part is not logged are assumed to be cached like the servers' "
            "mean; the intervals allow for any share"
        )
    return notes


def _has_cache(counted: Counted) -> bool:
    return (
        counted.computed_tokens is not None
        and counted.computed_tokens < 0.999 * counted.prompt_tokens
    )
