"""Each key's share of engine cost: each part of engine time is divided by usage of that part.

*Which cost.* The cost at the window's own concurrency: the time of each engine step is divided
among the requests that ran in it. So the shares add up to the bill, and (on simulated servers) each
is what would be saved without that key at the same number of concurrent requests. The cost of a key
served alone, or in a full batch, is another question, and such costs do not add up.

Prefill time is divided by prompt tokens computed, decode time by output tokens, the fixed part of
steps by concurrency (a request that runs alone pays for all of it), and memory by KV cache used:
tokens of context × output tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import polars as pl
from msgspec import Struct
from numpy.typing import NDArray

from vllm_capacity.estimate import CONFIDENCE, Estimate, Kind
from vllm_capacity.verdicts.cost.bill import OUTPUT_TOKEN_WEIGHT, most_for_prompts
from vllm_capacity.verdicts.cost.engine_time import EngineTime

Floats = NDArray[np.float64]

_SEED = 19
_MODEL_ERROR = 0.05  # of a share: measured on simulated servers that follow other laws
_MEMORY_ERROR = 0.12  # the same if KV memory limits: recomputed work is not counted
_INSTANT_SECONDS = 60.0  # assumed duration of rows with only one time
_SPREAD = 2.0  # sum of the beta parameters of a key's cached part, if not logged: the widest
_FITTED = "each step's time shared among the requests that ran in it, at the window's concurrency"
_RULE = f"assumed: 1 output token counts as {OUTPUT_TOKEN_WEIGHT:g} input tokens"


class Counted(Struct, frozen=True):
    """The engines' counts: prompt tokens, computed ones (None if unknown), output tokens."""

    prompt_tokens: float
    computed_tokens: float | None
    output_tokens: float


class AlikeEngines(Struct, frozen=True):
    """Engines of one make: their part of the pool's cost; engine time, or why it is unknown."""

    weight: float
    time: EngineTime | str


class Shares(Struct, frozen=True):
    """The share of each key in a pool's cost, and the share of usage that no row explains.

    `best` and each row of `draws` add up to 1 over keys and `unmatched`, which is last. `bounds`
    are the lowest and highest shares that any weights could give, for the `assumed` part of the
    cost.
    """

    keys: tuple[str, ...]
    best: Floats
    draws: Floats
    bounds: tuple[Floats, Floats]
    assumed: float
    reason: str


def pool_shares(rows: pl.DataFrame, counted: Counted, engines: Sequence[AlikeEngines]) -> Shares:
    """The shares of the keys of `rows` (sources/usage.py; only those of the pool and time range).

    Each row counts only for its part inside the time range (`part`, 0..1).
    """
    rows = rows.with_columns(
        *(pl.col(f"{name}_tokens") * pl.col("part") for name in ("prompt", "cached", "output")),
        context=pl.col("prompt_tokens") / pl.col("requests")
        + pl.col("output_tokens") / pl.col("requests") / 2,
    )
    use = _Use(rows, counted)
    rng = np.random.default_rng(_SEED)
    whole = math.fsum(each.weight for each in engines) or 1.0
    count = len(use.keys) + 1
    best, low, high = np.zeros(count), np.zeros(count), np.zeros(count)
    draws: Floats | float = 0.0
    assumed, reasons = 0.0, []
    for each in engines:
        weight = each.weight / whole
        if isinstance(each.time, str):
            assumed += weight
            reasons.append(each.time)
            ends = use.by_any_weights(use.parts(_Sharing.of_log(rows)))
            best += weight * use.by_rule()
            low += weight * ends.min(axis=1)
            high += weight * ends.max(axis=1)
        else:
            parts = use.parts(_Sharing.of_stretches(each.time.stretches))
            best += weight * (parts @ each.time.shares)
            draws = draws + weight * use.drawn(parts, each.time, rng)
    if isinstance(draws, float):
        draws = np.zeros((1, count))
    return Shares(use.keys, best, draws, (low, high), assumed, "; ".join(dict.fromkeys(reasons)))


def estimates(pools: Sequence[tuple[float, Shares]]) -> dict[str, Estimate]:
    """The share of each key in the weighted cost of all pools; "" is unmatched usage."""
    names = dict.fromkeys(key for _, each in pools for key in (*each.keys, ""))
    place = {name: index for index, name in enumerate(names)}
    whole = math.fsum(weight for weight, _ in pools) or 1.0
    best, low, high = np.zeros(len(names)), np.zeros(len(names)), np.zeros(len(names))
    draws = np.zeros((max(len(each.draws) for _, each in pools), len(names)))
    assumed = 0.0
    for weight, each in pools:
        at = [place[key] for key in (*each.keys, "")]
        part = weight / whole
        best[at] += part * each.best
        draws[:, at] += part * each.draws  # one row of zeros if nothing was measured
        low[at] += part * each.bounds[0]
        high[at] += part * each.bounds[1]
        assumed += part * each.assumed
    ends = (1 - CONFIDENCE) / 2
    drawn = np.quantile(draws, [ends, 1 - ends], axis=0)
    low = np.minimum((low + drawn[0]) * (1 - _MODEL_ERROR), best)
    high = np.maximum((high + drawn[1]) * (1 + _MODEL_ERROR), best)
    basis: tuple[str, ...] = (_FITTED,)
    kind, confidence = Kind.ESTIMATED, CONFIDENCE
    if assumed > 0.01:
        reason = "; ".join(dict.fromkeys(each.reason for _, each in pools if each.reason))
        basis = (_RULE, f"bounds: any weights ({reason})")
        kind = Kind.ASSUMED
    return {
        name: Estimate.known(
            max(0.0, low[i]), best[i], min(1.0, high[i]), *basis, kind=kind, confidence=confidence
        )
        for name, i in place.items()
    }


class _Use:
    """The usage of each key as arrays: keys in order, then usage that no row explains."""

    def __init__(self, rows: pl.DataFrame, counted: Counted) -> None:
        self._rows, self._counted = rows, counted
        known = pl.col("prompt_tokens") - pl.col("cached_tokens")
        unsure = pl.when(pl.col("cached_tokens").is_null()).then("prompt_tokens").otherwise(0.0)
        by_key = (
            rows.group_by("key", maintain_order=True)
            .agg(
                computed=known.fill_null(0.0).sum(),
                unsure=unsure.sum(),
                prompt=pl.col("prompt_tokens").sum(),
                output=pl.col("output_tokens").sum(),
                context=(pl.col("context") * pl.col("output_tokens")).sum(),
            )
            .sort("key")
        )
        self.keys = tuple(by_key["key"])
        self._by_key = by_key
        self._output = self._with_rest(by_key["output"].to_numpy(), counted.output_tokens)
        self._context = self._like_output(by_key["context"].to_numpy())
        self._computed = by_key["computed"].to_numpy()
        self._unsure = by_key["unsure"].to_numpy()

    @property
    def _unsure_ratio(self) -> float:
        """The computed share of prompts whose cached tokens were not logged, by the counters."""
        unsure, computed = float(self._unsure.sum()), self._counted.computed_tokens
        if not unsure or computed is None:
            return 1.0
        cached = self._counted.prompt_tokens - computed
        known = float(self._by_key["prompt"].sum()) - unsure - float(self._computed.sum())
        outside = max(0.0, self._counted.prompt_tokens - float(self._by_key["prompt"].sum()))
        return 1 - min(1.0, max(0.0, cached - known) / (unsure + outside))

    def _with_rest(self, used: Floats, counted: float) -> Floats:
        """Each key's part of the sum; the last is the part that no row explains."""
        rest = max(0.0, counted - float(used.sum()))
        return _scaled(np.append(used, rest))

    def _like_output(self, used: Floats) -> Floats:
        """Each key's part, with the unexplained part equal to that of output."""
        rest = self._output[-1]
        return np.append(_scaled(used) * (1 - rest), rest)

    def _prompts(self, ratios: Floats | float) -> Floats:
        computed = self._counted.computed_tokens
        whole = self._counted.prompt_tokens if computed is None else computed
        return self._with_rest(self._computed + ratios * self._unsure, whole)

    def parts(self, shared: _Sharing) -> Floats:
        """Each key's part of each component of engine time (`COMPONENTS`): a row per key."""
        steps = self._like_output(self._steps(shared))
        prompts = self._prompts(self._unsure_ratio)
        return np.stack([prompts, self._output, steps, self._context], axis=1)

    def _steps(self, shared: _Sharing) -> Floats:
        """The engine steps of each key: its output tokens × their mean share of a step."""
        rows = self._rows.select(
            "key",
            steps=pl.Series(shared.mean(_seconds(self._rows["start"]), _seconds(self._rows["end"])))
            * self._rows["output_tokens"],
        )
        by_key = rows.group_by("key").agg(pl.col("steps").sum()).sort("key")
        return by_key["steps"].to_numpy()

    def by_rule(self) -> Floats:
        """The shares by tokens, with `OUTPUT_TOKEN_WEIGHT` as the weight of an output token."""
        computed = self._counted.computed_tokens
        prompt = self._counted.prompt_tokens if computed is None else computed
        weights = np.array([prompt, OUTPUT_TOKEN_WEIGHT * self._counted.output_tokens])
        both = np.stack([self._prompts(self._unsure_ratio), self._output], axis=1)
        return np.asarray(both @ _scaled(weights))

    def by_any_weights(self, parts: Floats) -> Floats:
        """The shares at each extreme of how engine time may divide: a row per key.

        Any division is possible, except that prompts take no more than `most_for_prompts`.
        """
        computed = self._counted.computed_tokens
        prompt = self._counted.prompt_tokens if computed is None else computed
        most = most_for_prompts(prompt, self._counted.output_tokens)
        without = parts[:, 1:]
        return np.hstack([without, most * parts[:, :1] + (1 - most) * without])

    def drawn(self, parts: Floats, time: EngineTime, rng: np.random.Generator) -> Floats:
        """The shares for each draw of the engine-time fit; one row per draw, adding up to 1."""
        shares = np.asarray(time.draws @ parts.T)
        ratio = self._unsure_ratio
        if 0.001 < ratio < 0.999 and self._unsure.sum():
            for row, draw in zip(shares, time.draws, strict=True):
                ratios = rng.beta(_SPREAD * ratio, _SPREAD * (1 - ratio), len(self.keys))
                row += draw[0] * (self._prompts(ratios) - parts[:, 0])
        noise = rng.normal(0.0, _MEMORY_ERROR * time.memory_bound_ratio, shares.shape)
        shares = shares * np.exp(noise)
        return np.asarray(shares / shares.sum(axis=1, keepdims=True))


class _Sharing:
    """The share of an engine step per output token, over time (from a log: proportional to it)."""

    def __init__(self, edges: Floats, each: Floats) -> None:
        self._edges = edges
        self._sums = np.append(0.0, np.cumsum(each * np.diff(edges)))

    @classmethod
    def of_stretches(cls, stretches: pl.DataFrame) -> _Sharing:
        """From the engines' counters (engine_time.py)."""
        by_time = (
            stretches.group_by("start").agg(pl.col("steps", "output_tokens").sum()).sort("start")
        )
        starts = _seconds(by_time["start"])
        edges = np.append(starts, max(_seconds(stretches["end"]).max(), starts[-1] + 1e-3))
        return cls(edges, (by_time["steps"] / by_time["output_tokens"]).to_numpy())

    @classmethod
    def of_log(cls, rows: pl.DataFrame) -> _Sharing:
        """From the output tokens per second of rows at each time, as if steps took equally long.

        This overstates the difference between busy and quiet times, because steps with many
        requests take longer and a row may contain several requests: it is one extreme of what is
        possible.
        """
        starts, ends = _seconds(rows["start"]), _seconds(rows["end"])
        starts = np.where(ends > starts, starts, ends - _INSTANT_SECONDS)
        rates = rows["output_tokens"].to_numpy() / (ends - starts)
        edges, place = np.unique(np.concatenate([starts, ends]), return_inverse=True)
        changes = np.bincount(place, np.concatenate([rates, -rates]), len(edges))
        least = min(rates[rates > 0], default=1.0)  # avoids 1 / rounding error without output
        return cls(edges, 1 / np.maximum(np.cumsum(changes)[:-1], least))

    def mean(self, starts: Floats, ends: Floats) -> Floats:
        """The mean over each time range; before or after all data, the nearest value."""
        first, last = self._edges[0], self._edges[-1]
        starts = np.clip(starts, first, last - 1e-3)
        ends = np.clip(ends, starts + 1e-3, last)
        sums = (np.interp(at, self._edges, self._sums) for at in (ends, starts))
        return np.asarray((next(sums) - next(sums)) / (ends - starts))


def _seconds(times: pl.Series) -> Floats:
    return times.dt.epoch("us").to_numpy() / 1e6


def _scaled(values: Floats) -> Floats:
    whole = float(values.sum())
    return values / whole if whole else np.full(len(values), 1 / max(1, len(values)))
