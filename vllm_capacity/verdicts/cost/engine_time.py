"""How the time of engine steps divides: prompts, output, fixed cost of a step, KV cache.

The algorithm:

1. A step of an engine takes F + a·N + b·P + c·K: a fixed part, a part per running request and per
   prompt token computed in it, and a part for reading the KV cache, with K of it in use.
2. The mean inter-token latency (ITL) of many stretches of time, each with its own N, P and K, is
   such a sum. On its own it seldom separates the parts, because N, P and K of one request mix vary
   together.
3. A prefill lengthens such a step: the mean of request_prefill_time_seconds is the time of a step
   with one more prompt in it. The more prompts share a step, the less weight this has.
4. Reading the whole KV cache takes about as long as reading the weights, because both fill the
   memory of the GPU: a weak prior (a factor of 2.7 either way), which better data override.

F, a, b and c are fitted together, none below 0, and again on resampled stretches with the errors of
3 and 4 drawn at random; the spread of the fits is the interval. Why not fixed weights per token: on
simulated servers they missed the cost of a tenant by more than 10 % in six of seven cases.
"""

from __future__ import annotations

import math
from itertools import chain, combinations

import numpy as np
import polars as pl
from msgspec import Struct
from numpy.typing import NDArray

from vllm_capacity.estimate import CONFIDENCE, Estimate
from vllm_capacity.figures.steps import Schema, engine_frames

Floats = NDArray[np.float64]

COMPONENTS = ("prefill", "decode", "steps", "memory")
"""Prompt tokens; output tokens; the fixed part of steps; the KV cache in use.

The fixed part is shared by the requests that ran in a step. The last is the time to read the cache,
plus the fixed part of steps in which the cache is the limit.
"""

STRETCH_SCHEMA: Schema = {
    "start": pl.Datetime("us", "UTC"),
    "end": pl.Datetime("us", "UTC"),
    "output_tokens": pl.Float64,
    "prompt_tokens": pl.Float64,
    "steps": pl.Float64,
    "itl_seconds": pl.Float64,
    "running": pl.Float64,
    "prompt_tokens_per_step": pl.Float64,
    "kv_cache_ratio": pl.Float64,
    "memory_bound_ratio": pl.Float64,
}

_STRETCH_COLUMNS = (
    *("start", "end", "is_gap", "is_restart", "preemptions"),
    *("output_tokens_per_second", "prompt_tokens_per_second", "itl_mean_seconds"),
    *("kv_cache_ratio_mean", "running_max", "running_mean", "waiting_mean"),
)
_BASIS = "engine time fitted to ITL and prefill times"
_SEED, _DRAWS = 18, 200
_STRETCH_SECONDS, _MAX_STRETCHES = 60.0, 300
_VALUES_AT_ONCE = 100_000  # of each column while drawing: 200 drawings of many stretches are large
_ROUNDING = 1e-9  # a smaller slope of the error may be rounding
_MIN_STRETCHES, _MIN_PREFILLS = 5, 30
_STRETCHES_SIGMA, _INDEPENDENT = 0.05, 15  # errors correlate: this many are independent
_PREFILL_SIGMA, _PREFILL_SIGMA_SHARED, _MAX_PREFILL_SIGMA = 0.03, 0.4, 0.3
_KV_SIGMA, _KV_SPREAD = 0.1, 1.0  # prior: of a step's time (share); of ln(c / F)
_FULL_KV_RATIO = 0.9
_STEADY = 0.5  # maximum − mean running below this: clients return, rather than arrive at random


class Prefills(Struct, frozen=True):
    """The prefills of engines: their number, their seconds, their prompt tokens.

    `computed_ratio` of the tokens were computed, the rest came from a cache.
    """

    count: float
    seconds: float
    prompt_tokens: float
    computed_ratio: float = 1.0


class EngineTime(Struct, frozen=True):
    """The shares of engine time by `COMPONENTS`: the best fit, and one row per draw of the fit.

    Every row adds up to 1. `stretches` are the fitted ones (`STRETCH_SCHEMA`).
    """

    shares: Floats
    draws: Floats
    stretches: pl.DataFrame

    @property
    def ratios(self) -> dict[str, Estimate]:
        """The share of engine time of each of `COMPONENTS`, 0..1."""
        ends = np.quantile(self.draws, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], axis=0)
        return {
            name: Estimate.known(min(low, mid), mid, max(high, mid), _BASIS)
            for name, low, mid, high in zip(COMPONENTS, ends[0], self.shares, ends[1], strict=True)
        }

    @property
    def memory_bound_ratio(self) -> float:
        """The share of engine steps that the KV cache limited, 0..1."""
        steps = self.stretches["steps"].to_numpy()
        return float(np.average(self.stretches["memory_bound_ratio"].to_numpy(), weights=steps))


def stretches(steps: pl.DataFrame) -> pl.DataFrame:
    """The steps of engines (figures/steps.py) as stretches to fit: `STRETCH_SCHEMA`.

    At least a minute each, and no more than 300 over all engines. Only steps with output and
    without gaps or restarts. Empty without any, or without ITL or KV usage.
    """
    seconds = (pl.col("end") - pl.col("start")).dt.total_microseconds() / 1e6
    good = (
        ~pl.col("is_gap")
        & ~pl.col("is_restart")
        & (pl.col("output_tokens_per_second") > 0)
        & (pl.col("itl_mean_seconds") > 0)
        & pl.col("prompt_tokens_per_second").is_not_null()
        & pl.col("kv_cache_ratio_mean").is_not_null()
    )
    whole = float(steps.select(seconds.filter(good).sum()).item())
    length = max(_STRETCH_SECONDS, whole / _MAX_STRETCHES)
    found = [
        _engine_stretches(own.select(_STRETCH_COLUMNS).filter(good), seconds, length)
        for own in engine_frames(steps).values()
    ]
    return pl.concat([pl.DataFrame(schema=STRETCH_SCHEMA), *found], rechunk=True)


def _engine_stretches(steps: pl.DataFrame, seconds: pl.Expr, length: float) -> pl.DataFrame:
    """The stretches of one engine, each of about `length` seconds: `STRETCH_SCHEMA`."""
    output = pl.col("output_tokens_per_second") * pl.col("seconds")
    # By Little's law, this many requests decode at a time. With random arrivals, an output token
    # shares its step with a random number of others: the mean of 1/N is then (1 − e^−n) / n.
    decoding = pl.col("output_tokens_per_second") * pl.col("itl_mean_seconds")
    is_steady = pl.col("running_max") - pl.col("running_mean") < _STEADY
    by_chance = (1 - (-decoding).exp()) / decoding
    share_of_step = pl.when(is_steady).then(1 / decoding.clip(lower_bound=1)).otherwise(by_chance)
    is_full = (pl.col("kv_cache_ratio_mean") >= _FULL_KV_RATIO) & (
        (pl.col("waiting_mean") > 0) | (pl.col("preemptions") > 0)
    )
    weighted = {
        "itl_seconds": pl.col("itl_mean_seconds"),
        "running": 1 / pl.col("share_of_step"),
        "prompt_tokens_per_step": pl.col("prompt_tokens_per_second")
        / (pl.col("output_tokens_per_second") * pl.col("share_of_step")),
        "kv_cache_ratio": pl.col("kv_cache_ratio_mean"),
        "memory_bound_ratio": is_full.fill_null(False).cast(pl.Float64),
    }
    return (
        steps.with_columns(seconds=seconds)
        .with_columns(output_tokens=output, share_of_step=share_of_step)
        .with_columns(
            prompt_tokens=pl.col("prompt_tokens_per_second") * pl.col("seconds"),
            steps=pl.col("output_tokens") * pl.col("share_of_step"),
            place=(pl.col("seconds").cum_sum() / length).floor(),
        )
        .group_by("place", maintain_order=True)
        .agg(
            pl.col("start").min(),
            pl.col("end").max(),
            pl.col("prompt_tokens", "steps").sum(),
            *(
                ((value * pl.col("output_tokens")).sum() / pl.col("output_tokens").sum()).alias(
                    name
                )
                for name, value in weighted.items()
            ),
            pl.col("output_tokens").sum(),
        )
        .select(list(STRETCH_SCHEMA))
    )


def engine_time(found: pl.DataFrame, prefills: Prefills | None) -> EngineTime | str:
    """How similar engines' time divides over these stretches, or a text: why it is unknown."""
    computed = 0.0 if prefills is None else prefills.prompt_tokens * prefills.computed_ratio
    if prefills is None or prefills.count < _MIN_PREFILLS or not computed:
        return "too few prefills were timed (vllm:request_prefill_time_seconds)"
    if found.height < _MIN_STRETCHES:
        few = f"{found.height} of {_MIN_STRETCHES}"
        return f"too few minutes with output to separate prompt and output time ({few})"
    prompts = ("prompt_tokens", "prompt_tokens_per_step")
    computing = found.with_columns(pl.col(prompts) * prefills.computed_ratio)
    # Values are two-dimensional: each row is one draw of the stretches.
    columns = {name: computing[name].to_numpy()[None] for name in found.columns[2:]}
    law = _fitted(columns, prefills, np.zeros((1, 2)))
    rng = np.random.default_rng(_SEED)
    at_once = max(1, _VALUES_AT_ONCE // found.height)
    draws = [
        _drawn(columns, prefills, rng, law, count=min(at_once, _DRAWS - done))
        for done in range(0, _DRAWS, at_once)
    ]
    return EngineTime(_shares(columns, law)[0], np.concatenate(draws), found)


def _drawn(
    columns: dict[str, Floats],
    prefills: Prefills,
    rng: np.random.Generator,
    law: Floats,
    *,
    count: int,
) -> Floats:
    """The shares from `count` draws, each with resampled stretches and noise."""
    stretches = columns["steps"].size
    some, noise = np.empty((count, stretches), np.int64), np.empty((count, 2))
    for each in range(count):
        some[each] = rng.integers(0, stretches, stretches)
        noise[each] = rng.normal(size=2)
    resampled = {name: values[0, some] for name, values in columns.items()}
    return _shares(columns, _fitted(resampled, prefills, noise, like=law[0]))


def _fitted(
    columns: dict[str, Floats], prefills: Prefills, noise: Floats, *, like: Floats | None = None
) -> Floats:
    """F, a, b and c of each draw, by least squares of relative errors, none below 0.

    With `like`, the result of a similar fit, its unknowns above 0 are tried first: the result is
    the same, only found sooner.
    """
    itl, running = columns["itl_seconds"], columns["running"]
    prompts, kv = columns["prompt_tokens_per_step"], columns["kv_cache_ratio"]
    output = columns["output_tokens"]
    draws, stretches = itl.shape
    sure = math.sqrt(min(1.0, _INDEPENDENT / stretches)) / _STRETCHES_SIGMA
    weights = sure * np.sqrt(output / output.mean(axis=1, keepdims=True))
    rows = np.stack([np.ones_like(itl), running, prompts, kv], axis=2)
    rows = rows / itl[:, :, None] * weights[:, :, None]
    prefill, target = _prefill_rows(columns, prefills, noise[:, 0])
    by_output = output / output.sum(axis=1, keepdims=True)
    typical_kv, typical = np.vecdot(by_output, kv), np.vecdot(by_output, itl)
    ratio = np.array([math.exp(_KV_SPREAD * each) for each in noise[:, 1]])
    none = np.zeros(draws)
    prior = np.stack([-ratio * typical_kv, none, none, typical_kv], axis=1)
    prior = prior / typical[:, None] / _KV_SIGMA
    matrix = np.concatenate([rows, prefill[:, None], prior[:, None]], axis=1)
    wanted = np.concatenate([weights, target[:, None], none[:, None]], axis=1)
    scale = np.abs(matrix).max(axis=1)
    scale[scale == 0] = 1.0
    # The same problem in four rows.
    orthogonal, reduced = np.linalg.qr(matrix / scale[:, None])
    aim = (orthogonal.transpose(0, 2, 1) @ wanted[:, :, None])[:, :, 0]
    likely = () if like is None else tuple(np.flatnonzero(like).tolist())
    found = [_least_squares(*each, likely) for each in zip(reduced, aim, strict=True)]
    return np.asarray(np.stack(found) / scale, dtype=np.float64)


def _least_squares(matrix: Floats, wanted: Floats, likely: tuple[int, ...] = ()) -> Floats:
    """Exact non-negative least squares: the best of the solutions for all subsets of unknowns.

    The optimum is the unconstrained solution for the unknowns that are not 0 in it, and four
    unknowns have only 15 subsets. The `likely` subset is tried first. A solution is the only
    optimum, and ends the search, if raising any unknown that is 0 in it would raise the error. Why
    not scipy's `nnls`: every bill needs this, and the import would take as long as the rest of the
    bill.
    """
    unknowns = matrix.shape[1]
    best, least = np.zeros(unknowns), math.inf
    sizes = range(unknowns, 0, -1)
    subsets = (own for count in sizes for own in combinations(range(unknowns), count))
    for own in chain((likely,) if likely else (), subsets):
        part = matrix[:, own]
        found = np.linalg.lstsq(part, wanted, rcond=None)[0]
        error = part @ found - wanted
        missed = float((error**2).sum())
        if missed < least and found.min() >= 0:
            best, least = np.zeros(unknowns), missed
            best[list(own)] = found
            if (error @ matrix)[best == 0].min(initial=math.inf) > _ROUNDING:
                break
            if own is likely:
                least = math.inf  # among equally good subsets, the first in order wins
    return best


def _prefill_rows(
    columns: dict[str, Floats], prefills: Prefills, noise: Floats
) -> tuple[Floats, Floats]:
    """The mean prefill of each draw, as a step with one more prompt in it."""
    by_prompt = columns["prompt_tokens"] / columns["prompt_tokens"].sum(axis=1, keepdims=True)
    own = prefills.prompt_tokens * prefills.computed_ratio / prefills.count
    others = np.vecdot(by_prompt, columns["prompt_tokens_per_step"])
    sigma = np.minimum(_PREFILL_SIGMA + _PREFILL_SIGMA_SHARED * others / own, _MAX_PREFILL_SIGMA)
    spread = np.array([math.exp(each) for each in sigma * noise])
    mean = prefills.seconds / prefills.count * spread
    step = [
        np.ones_like(others),
        np.vecdot(by_prompt, columns["running"]),
        own + others,
        np.vecdot(by_prompt, columns["kv_cache_ratio"]),
    ]
    return np.stack(step, axis=1) / mean[:, None] / sigma[:, None], 1 / sigma


def _shares(columns: dict[str, Floats], law: Floats) -> Floats:
    """The shares of `COMPONENTS` in the time of all stretches, for each draw."""
    steps, full = columns["steps"], columns["memory_bound_ratio"]
    fixed = law[:, :1] * steps
    parts = [
        law[:, 2] * columns["prompt_tokens"].sum(axis=1),
        law[:, 1] * columns["output_tokens"].sum(axis=1),
        (fixed * (1 - full)).sum(axis=1),
        (fixed * full).sum(axis=1) + law[:, 3] * (columns["kv_cache_ratio"] * steps).sum(axis=1),
    ]
    found = np.stack(parts, axis=1)
    return np.asarray(found / found.sum(axis=1, keepdims=True), dtype=np.float64)
