"""Merges consecutive steps of one regime into a row, with the numbers behind it in a sentence."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from functools import cached_property, partial

import numpy as np
import polars as pl
from msgspec import Struct
from polars.datatypes import DataTypeClass

from vllm_capacity.figures.steps import engine_frames
from vllm_capacity.verdicts.saturation.arrays import (
    Floats,
    Indices,
    group_sums,
    is_seen,
    or_zero,
)
from vllm_capacity.verdicts.saturation.regimes import (
    BY_SEVERITY,
    Cause,
    EngineSteps,
    judged_steps,
)

REGIME_SCHEMA: dict[str, DataTypeClass | pl.DataType] = {
    "start": pl.Datetime("us", "UTC"),
    "end": pl.Datetime("us", "UTC"),
    "engine": pl.String,
    "regime": pl.String,
    "evidence": pl.String,
}


def regimes(steps: pl.DataFrame) -> pl.DataFrame:
    """The regimes of a window: start, end, engine, regime, evidence; equal steps merged into a row.

    `steps` has the columns of `STEP_SCHEMA`. Ordered by engine and time; empty for no steps.
    """
    found = [
        regime_frame(engine, judged_steps(own)) for engine, own in engine_frames(steps).items()
    ]
    return pl.concat([pl.DataFrame(schema=REGIME_SCHEMA), *found])


def regime_frame(engine: str, steps: EngineSteps) -> pl.DataFrame:
    """The regimes of one engine as rows of `REGIME_SCHEMA`, in time order."""
    rows = [(*row, tell()) for *row, tell in regime_rows(engine, steps)]
    return pl.DataFrame(rows, schema=REGIME_SCHEMA, orient="row")


def stretch_frame(judged: Mapping[str, EngineSteps]) -> pl.DataFrame:
    """The rows of `regimes` without their evidence, given the judged steps of engines by name."""
    schema = {name: of for name, of in REGIME_SCHEMA.items() if name != "evidence"}
    if not judged:
        return pl.DataFrame(schema=schema)
    firsts = [_first_steps(steps) for steps in judged.values()]
    each = list(zip(judged.values(), firsts, strict=True))
    engine = np.repeat(np.arange(len(judged)), [len(own) for own in firsts])
    severity = np.concatenate([steps.severity[own] for steps, own in each])
    columns = {
        "start": np.concatenate([steps.start[own] for steps, own in each]),
        "end": np.concatenate(
            [steps.end[np.append(own, len(steps))[1:] - 1] for steps, own in each]
        ),
        "engine": pl.Series(list(judged)).gather(engine),
        "regime": pl.Series(BY_SEVERITY).gather(severity),
    }
    return pl.DataFrame(columns, schema=schema)


def regime_rows(
    engine: str, steps: EngineSteps
) -> Iterator[tuple[datetime, datetime, str, str, Callable[[], str]]]:
    """The rows of `regime_frame`, each with a function that returns its evidence.

    A long window has a hundred thousand stretches, but the sentences of only a few are shown.
    """
    evidence = _Evidence(steps, _first_steps(steps))
    spans = stretch_frame({engine: steps})
    for at, span in enumerate(spans.iter_rows()):
        yield *span, partial(evidence.of, at)


def _first_steps(steps: EngineSteps) -> Indices:
    """The first step of each stretch: consecutive steps of one regime and cause without a hole."""
    is_first = ~steps.is_next[:-1]
    is_first[1:] |= steps.cause[1:] != steps.cause[:-1]
    return np.flatnonzero(is_first)


class _Numbers(Struct, frozen=True):
    """Time-weighted means of a stretch, its peaks and its preemptions; nan if not observed."""

    running: float
    waiting: float
    output: float
    prompt: float
    kv_ratio: float
    waiting_share: float
    at_ceiling_share: float
    most_running: float
    most_kv_ratio: float
    preemptions: float

    @property
    def ran(self) -> str:
        """How many requests ran."""
        return f"{_n(self.running)} requests ran on average (at most {_n(self.most_running, 0)})"

    @property
    def cache(self) -> str:
        """How full the KV cache was."""
        if math.isnan(self.kv_ratio):
            return "KV cache usage was not observed"
        return f"KV cache usage was {_pct(self.kv_ratio)} on average"

    @property
    def queue(self) -> str:
        """How many requests waited, and how often."""
        if self.waiting == 0:
            return "none waited"
        share = _pct(self.waiting_share)
        return f"{_n(self.waiting)} requests waited on average, in {share} of the scrapes"


def _numbers(steps: EngineSteps, firsts: Indices) -> list[list[float]]:
    """The numbers of each stretch, by column, given the first step of each."""
    count = len(firsts)
    own = np.repeat(np.arange(count), np.diff(np.append(firsts, len(steps))))

    def mean(values: Floats) -> Floats:
        observed = group_sums(np.where(is_seen(values), steps.seconds, 0.0), own, count)
        whole = group_sums(or_zero(values) * steps.seconds, own, count)
        found = np.full(count, math.nan)
        np.divide(whole, observed, out=found, where=observed > 0)
        return found

    means = (
        steps.running_mean,
        steps.waiting_mean,
        steps.output_tokens_per_second,
        steps.prompt_tokens_per_second,
        steps.kv_cache_ratio_mean,
        steps.waiting_share,
        steps.at_ceiling_share,
    )
    peaks = (steps.running_max, steps.kv_cache_ratio_max)
    columns = [mean(values) for values in means]
    columns += [np.fmax.reduceat(values, firsts) for values in peaks]
    columns.append(group_sums(or_zero(steps.preemptions), own, count))
    return [column.tolist() for column in columns]


class _Evidence(Struct, frozen=True, dict=True):
    """One sentence per stretch with the numbers that explain its regime."""

    steps: EngineSteps
    firsts: Indices

    @cached_property
    def _columns(self) -> list[list[float]]:
        return _numbers(self.steps, self.firsts)

    def of(self, at: int) -> str:
        """The sentence of the stretch at that index."""
        cause = Cause(int(self.steps.cause[self.firsts[at]]))
        return _sentence(cause, _Numbers(*(column[at] for column in self._columns)))


def _sentence(cause: Cause, of: _Numbers) -> str:
    match cause:
        case Cause.UNOBSERVED:
            return "No scrape in this time shows how many requests ran."
        case Cause.IDLE:
            return "No requests ran or waited, and no tokens were generated."
        case Cause.KV:
            return (
                f"{of.cache} (at most {_pct(of.most_kv_ratio)}); {of.queue}; "
                f"{_n(of.preemptions, 0)} preemptions; {of.ran}."
            )
        case Cause.SCHEDULER:
            return (
                f"{of.queue}; running was within one of its maximum in "
                f"{_pct(of.at_ceiling_share)} of those; {of.ran}; {of.cache}."
            )
        case Cause.PREFILL:
            return (
                f"{of.queue}, while {of.cache} and running was below its maximum in "
                f"{_pct(1 - of.at_ceiling_share)} of those; {of.ran}; {_n(of.prompt)} prompt and "
                f"{_n(of.output)} output tokens/s."
            )
        case Cause.KV_UNOBSERVED:
            return (
                f"{of.queue}, but KV cache usage was not observed, so the limit is not known; "
                f"{of.ran}."
            )
        case Cause.THINNED:
            return (
                f"{_n(of.waiting)} requests waited on average, but the share of the time is not "
                f"known, because only one sample per minute was pulled; {of.ran}; {of.cache}."
            )
        case Cause.STALLED:
            return f"{of.ran}, but no tokens were generated: a frozen gauge or a hung engine."
        case Cause.DECODE:
            return (
                f"Apparently decode-compute-bound: {of.ran} and nothing waited, yet "
                f"{_n(of.output)} output tokens/s is no more than at a lighter load."
            )
        case Cause.CLIENT:
            return f"{of.ran}, giving {_n(of.output)} output tokens/s; {of.queue}; {of.cache}."


def _n(value: float, digits: int = 1) -> str:
    return "an unknown number of" if math.isnan(value) else f"{value:,.{digits}f}"


def _pct(ratio: float) -> str:
    return "an unknown share" if math.isnan(ratio) else f"{100 * ratio:.0f} %"
