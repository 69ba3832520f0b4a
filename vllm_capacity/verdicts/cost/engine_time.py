"""What the time of an engine's steps went into: reading prompts, writing output, sharing a step.

Told in words:

1. A step of an engine takes F + a·N + b·P + c·K: a fixed part, so much per running request, per
   prompt token computed in it, and for reading the KV cache, K of it being used.
2. Mean inter-token latency (ITL) of many stretches of time, each with its own N, P and K, is such a
   sum. Alone it seldom tells the parts apart: loads of one mix move together.
3. What a prefill took beyond such a step does: the mean of request_prefill_time_seconds is a step
   with one prompt more in it. The more prompts share a step, the less it is relied on.
4. To read the whole KV cache takes about as long as to read the weights, both of which fill the
   memory of the GPU: a weak prior (a factor of 2.7 either way), where load tells no better.

All four are fitted together, none below 0, then again on other draws of the stretches and of what
is unsure about 3 and 4; the spread of the fits is the interval. Why not tokens at fixed weights: on
made servers such weights missed the cost of a tenant by more than 10 % in six cases of seven.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import polars as pl
from numpy.typing import NDArray

from vllm_capacity.estimate import CONFIDENCE, Estimate
from vllm_capacity.figures.steps import Schema

Floats = NDArray[np.float64]

COMPONENTS = ("prefill", "decode", "steps", "memory")
"""Time for prompt tokens; for each output token; for the fixed part of steps, shared by those that
ran in them; for the KV cache held: reading it, and all of a step where it is what limits."""

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
    *("instance", "engine", "start", "end", "is_gap", "is_restart", "preemptions"),
    *("output_tokens_per_second", "prompt_tokens_per_second", "itl_mean_seconds"),
    *("kv_cache_ratio_mean", "running_max", "running_mean", "waiting_mean"),
)
_BASIS = "engine time fitted to ITL and prefill times"
_SEED, _DRAWS = 18, 200
_STRETCH_SECONDS, _MOST_STRETCHES = 60.0, 300
_LEAST_STRETCHES, _LEAST_PREFILLS = 5, 30
_STRETCHES_SIGMA, _INDEPENDENT = 0.05, 15  # neighbors err alike: as many count as independent
_PREFILL_SIGMA, _PREFILL_SIGMA_SHARED, _PREFILL_SIGMA_MOST = 0.03, 0.4, 0.3
_KV_SIGMA, _KV_SPREAD = 0.1, 1.0  # of the prior: as a share of a step; of ln(c / F)
_FULL_KV_RATIO = 0.9
_STEADY = 0.5  # as many at a time to this: a client that comes back, no arrivals by chance


@dataclass(frozen=True)
class Prefills:
    """The prefills of engines: how many, the seconds they took, their prompt tokens.

    `computed_ratio` of the tokens were computed, the others taken from a cache.
    """

    count: float
    seconds: float
    prompt_tokens: float
    computed_ratio: float = 1.0


@dataclass(frozen=True)
class EngineTime:
    """The shares of engine time by `COMPONENTS`: the best fit, and a row per draw of the fit.

    Every row adds up to 1. `stretches` are what was fitted (`STRETCH_SCHEMA`).
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

    At least a minute each, 300 at most over all engines. Only steps in which output came and
    nothing was missed. Empty where there are none, or no ITL or KV usage.
    """
    seconds = (pl.col("end") - pl.col("start")).dt.total_microseconds() / 1e6
    needed = ["itl_mean_seconds", "prompt_tokens_per_second", "kv_cache_ratio_mean"]
    good = (
        steps.lazy()
        .select(_STRETCH_COLUMNS)
        .filter(~pl.col("is_gap"), ~pl.col("is_restart"))
        .filter(pl.col("output_tokens_per_second") > 0, pl.col("itl_mean_seconds") > 0)
        .drop_nulls(needed)
        .with_columns(seconds=seconds)
        .collect()
    )
    length = max(_STRETCH_SECONDS, float(good["seconds"].sum()) / _MOST_STRETCHES)
    output = pl.col("output_tokens_per_second") * pl.col("seconds")
    # By Little's law so many decode at a time. Where requests come by chance, an output token
    # shares its step with those who came by chance, too: 1/N is then (1 − e^−n) / n in the mean.
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
        good.with_columns(output_tokens=output, share_of_step=share_of_step)
        .with_columns(
            prompt_tokens=pl.col("prompt_tokens_per_second") * pl.col("seconds"),
            steps=pl.col("output_tokens") * pl.col("share_of_step"),
            place=(pl.col("seconds").cum_sum().over("instance", "engine") / length).floor(),
        )
        .group_by("instance", "engine", "place", maintain_order=True)
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
    """Where the time of these stretches of alike engines went; text: why that cannot be told."""
    computed = 0.0 if prefills is None else prefills.prompt_tokens * prefills.computed_ratio
    if prefills is None or prefills.count < _LEAST_PREFILLS or not computed:
        return "too few prefills were timed (vllm:request_prefill_time_seconds)"
    if found.height < _LEAST_STRETCHES:
        return f"{found.height} minutes with output are too few to tell prompts from output"
    prompts = ("prompt_tokens", "prompt_tokens_per_step")
    computing = found.with_columns(pl.col(prompts) * prefills.computed_ratio)
    columns = {name: computing[name].to_numpy() for name in found.columns[2:]}
    rng = np.random.default_rng(_SEED)
    best = _shares(columns, _fitted(columns, prefills))
    draws = [_drawn(columns, prefills, rng) for _ in range(_DRAWS)]
    return EngineTime(best, np.array(draws), found)


def _drawn(columns: dict[str, Floats], prefills: Prefills, rng: np.random.Generator) -> Floats:
    count = len(columns["steps"])
    some = rng.integers(0, count, count)
    resampled = {name: values[some] for name, values in columns.items()}
    noise = float(rng.normal()), float(rng.normal())
    return _shares(columns, _fitted(resampled, prefills, noise))


def _fitted(
    columns: dict[str, Floats], prefills: Prefills, noise: tuple[float, float] = (0.0, 0.0)
) -> Floats:
    """F, a, b and c by least squares of relative errors, none below 0."""
    itl, running = columns["itl_seconds"], columns["running"]
    prompts, kv = columns["prompt_tokens_per_step"], columns["kv_cache_ratio"]
    output = columns["output_tokens"]
    sure = math.sqrt(min(1.0, _INDEPENDENT / len(itl))) / _STRETCHES_SIGMA
    weights = sure * np.sqrt(output / output.mean())
    rows = np.stack([np.ones_like(itl), running, prompts, kv], axis=1)
    rows = rows / itl[:, None] * weights[:, None]
    prefill, target = _prefill_row(columns, prefills, noise[0])
    by_output = output / output.sum()
    typical_kv, typical = float(by_output @ kv), float(by_output @ itl)
    ratio = math.exp(_KV_SPREAD * noise[1])
    prior = np.array([-ratio * typical_kv, 0.0, 0.0, typical_kv]) / typical / _KV_SIGMA
    matrix = np.vstack([rows, prefill, prior])
    wanted = np.concatenate([weights, [target, 0.0]])
    scale = np.abs(matrix).max(axis=0)
    scale[scale == 0] = 1.0
    return np.asarray(_least_squares(matrix / scale, wanted) / scale, dtype=np.float64)


def _least_squares(matrix: Floats, wanted: Floats) -> Floats:
    """Least squares with no unknown below 0, exactly: the best of what any of them alone give.

    The optimum is the unbounded one of those that are not 0 in it, and four make but 15 sets. Why
    not scipy's `nnls`: every bill is split by this, and its import takes as long as all the rest.
    """
    unknowns = matrix.shape[1]
    orthogonal, reduced = np.linalg.qr(matrix)
    aim = orthogonal.T @ wanted
    best, least = np.zeros(unknowns), math.inf
    for count in range(unknowns, 0, -1):
        for own in combinations(range(unknowns), count):
            part = reduced[:, own]
            found = np.linalg.lstsq(part, aim, rcond=None)[0]
            missed = float(((part @ found - aim) ** 2).sum())
            if missed < least and found.min() >= 0:
                best, least = np.zeros(unknowns), missed
                best[list(own)] = found
        if count == unknowns and least < math.inf:
            break  # what no bound holds back, nothing beats
    return best


def _prefill_row(
    columns: dict[str, Floats], prefills: Prefills, noise: float
) -> tuple[Floats, float]:
    """The mean prefill as a step with one prompt more in it."""
    by_prompt = columns["prompt_tokens"] / columns["prompt_tokens"].sum()
    own = prefills.prompt_tokens * prefills.computed_ratio / prefills.count
    others = float(by_prompt @ columns["prompt_tokens_per_step"])
    sigma = min(_PREFILL_SIGMA + _PREFILL_SIGMA_SHARED * others / own, _PREFILL_SIGMA_MOST)
    mean = prefills.seconds / prefills.count * math.exp(sigma * noise)
    step = [
        1.0,
        float(by_prompt @ columns["running"]),
        own + others,
        float(by_prompt @ columns["kv_cache_ratio"]),
    ]
    return np.array(step) / mean / sigma, 1 / sigma


def _shares(columns: dict[str, Floats], law: Floats) -> Floats:
    """The time of all stretches by `COMPONENTS`, as shares of their sum."""
    steps, full = columns["steps"], columns["memory_bound_ratio"]
    fixed = law[0] * steps
    parts = np.array(
        [
            law[2] * columns["prompt_tokens"].sum(),
            law[1] * columns["output_tokens"].sum(),
            (fixed * (1 - full)).sum(),
            (fixed * full).sum() + law[3] * (columns["kv_cache_ratio"] * steps).sum(),
        ]
    )
    return np.asarray(parts / parts.sum(), dtype=np.float64)
