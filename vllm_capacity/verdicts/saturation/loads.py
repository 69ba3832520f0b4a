"""Steps as points of a curve: which of them count, and which loads they form."""

from __future__ import annotations

import math

import numpy as np
from msgspec import Struct

from vllm_capacity.verdicts.saturation import regimes
from vllm_capacity.verdicts.saturation.arrays import (
    Floats,
    Indices,
    Mask,
    group_middles,
    group_order,
    is_seen,
    numbered,
    or_zero,
    sums_around,
)
from vllm_capacity.verdicts.saturation.curve import LoadPoints
from vllm_capacity.verdicts.saturation.regimes import Cause, EngineSteps

MINUTE_SCATTER = 0.10
"""The scatter of minutes at one load on recorded servers, as a share of the mean."""
_LOAD_BAND = 1.25
_LONG_STEP_SECONDS = 45.0
_MIN_RUNNING, _MIN_EXACT_RUNNING = 0.5, 0.1
_ENOUGH_SCRAPES = 3
_CORRELATION = 1.5
_OF_PEAK = 0.95
_PLATEAU_SPAN, _PLATEAU_LOADS = 1.4, 3
_MIN_SPAN, _FLAT_GROWTH = 1.1, 0.3


class LoadLevels(Struct, frozen=True):
    """Loads formed from steps: `loads`, the KV ratio at each (nan: unobserved), and step counts."""

    loads: LoadPoints
    kv_ratio: Floats
    steps: tuple[int, ...]


def curve_steps(steps: EngineSteps) -> Mask:
    """The usable steps with running requests and output tokens: the points of the curve.

    Steps with a poorly known load are left out: a curve over such loads comes out too flat
    (regression dilution) and would show a bend where there is none. A load by Little's law is
    exact. A load from gauges is not, and a step of one or two scrapes is judged together with its
    neighbors. The neighbors of a stalled step are left out too: the stall extends into them.
    """
    is_stalled = steps.cause == Cause.STALLED
    is_near_stall = is_stalled.copy()
    is_near_stall[1:] |= is_stalled[:-1]
    is_near_stall[:-1] |= is_stalled[1:]
    return np.asarray(
        steps.is_usable
        & ~is_near_stall
        & ~steps.is_in(regimes.IDLE)
        & _is_load_known(steps)
        & (steps.output_tokens_per_second > 0)
    )


def _is_load_known(steps: EngineSteps) -> Mask:
    is_clear = _load_noise_ratios(steps) <= regimes.MAX_RUNNING_NOISE
    is_exact = steps.is_running_exact
    least = np.where(is_exact, _MIN_EXACT_RUNNING, _MIN_RUNNING)
    return (steps.running >= least) & (is_exact | is_clear)


def _load_noise_ratios(steps: EngineSteps) -> Floats:
    """`running_noise_ratio` of each step; with few scrapes, over the step and its neighbors."""
    mean, most, scrapes = steps.running_mean, steps.running_max, steps.scrapes
    is_thin = scrapes < _ENOUGH_SCRAPES
    if is_thin.any():
        seen = is_seen(mean)
        near = sums_around(np.where(seen, scrapes, 0), 1)
        weighted = sums_around(or_zero(mean) * scrapes, 1)
        pooled = np.divide(weighted, near, out=np.full(len(mean), math.nan), where=near > 0)
        peaks = np.pad(np.where(seen, most, math.nan), 1, constant_values=math.nan)
        peaks = np.fmax(np.fmax(peaks[:-2], peaks[1:-1]), peaks[2:])
        mean, most = np.where(is_thin, pooled, mean), np.where(is_thin, peaks, most)
        scrapes = np.where(is_thin, near, scrapes)
    return regimes.running_noise_ratio(mean, most, scrapes)


def load_bands(steps: EngineSteps, which: Mask) -> list[Indices]:
    """The given steps grouped by load (running within 1.25 ×), the lightest first.

    A band of a single step is left out if others have more, unless that step is long: it is a
    change of load, not a load.
    """
    picks = np.flatnonzero(which)
    own, counts, is_load = _banded(steps.running[picks], steps.seconds[picks])
    bands = np.split(picks[group_order(own)], np.cumsum(counts)[:-1])
    return [band for band, is_one in zip(bands, is_load, strict=False) if is_one]


def _banded(running: Floats, seconds: Floats) -> tuple[Indices, Indices, Mask]:
    """The band of each step; each band's step count and whether it is a load, lightest first."""
    _, own, counts = numbered(np.floor(np.log(running) / math.log(_LOAD_BAND)))
    longest = np.zeros(len(counts))
    np.maximum.at(longest, own, seconds)
    least = min(2, int(counts.max(initial=0)))
    return own, counts, (counts >= least) | (longest >= _LONG_STEP_SECONDS)


class StepColumns(Struct, frozen=True):
    """The columns that make up levels, one value per step (`kv_ratio` nan: not observed)."""

    running: Floats
    output: Floats
    kv_ratio: Floats
    seconds: Floats

    @classmethod
    def of(cls, steps: EngineSteps, which: Mask) -> StepColumns:
        """The columns of the points of a curve."""
        columns = (
            steps.running,
            steps.output_tokens_per_second,
            steps.kv_cache_ratio_mean,
            steps.seconds,
        )
        return cls(*(column[which] for column in columns))

    def at(self, picks: Indices) -> StepColumns:
        """The columns of the picked steps."""
        return StepColumns(
            self.running[picks], self.output[picks], self.kv_ratio[picks], self.seconds[picks]
        )


def load_levels(steps: StepColumns) -> LoadLevels:
    """Each band of steps (`load_bands`) as one load: medians, and the median output's error."""
    own, counts, kept = _banded(steps.running, steps.seconds)
    running, output, kv_ratio = (
        _medians(column, own, len(counts))
        for column in (steps.running, steps.output, steps.kv_ratio)
    )
    errors = _relative_errors(steps.output, own, counts, output)
    loads = LoadPoints.of(running[kept], output[kept], errors[kept])
    return LoadLevels(loads, kv_ratio[kept], tuple(int(count) for count in counts[kept]))


def on_plateau(loads: LoadPoints) -> Mask | None:
    """Which loads are on a plateau, within 5 % of the highest output; None if there is none.

    There is a plateau if its lightest load and the heaviest of all loads are 1.4 × apart: from
    there on, output no longer grows, even if heavier loads lower it. Otherwise it takes three
    loads, 10 % apart, over which output grows more slowly than load to the power of 0.3.
    """
    is_near = loads.output >= _OF_PEAK * float(loads.output.max())
    running, output = loads.running[is_near], loads.output[is_near]
    if loads.heaviest >= _PLATEAU_SPAN * running[0]:
        return is_near
    if len(running) < _PLATEAU_LOADS or running[-1] < _MIN_SPAN * running[0]:
        return None
    growth = np.polyfit(np.log(running), np.log(output), 1)[0]
    return is_near if growth <= _FLAT_GROWTH else None


def _medians(values: Floats, own: Indices, groups: int) -> Floats:
    """The median of the observed values of each group; nan without any."""
    lower, upper = group_middles(values, own, groups)
    return (lower + upper) / 2


def _relative_errors(output: Floats, own: Indices, counts: Indices, medians: Floats) -> Floats:
    """Relative error of a load's output: scatter ÷ √steps, × 1.5 because neighbors are correlated.

    `medians` are those of each load's output.
    """
    groups = len(counts)
    mean = np.bincount(own, weights=output, minlength=groups) / counts
    squares = np.bincount(own, weights=(output - mean[own]) ** 2, minlength=groups)
    scatter = np.sqrt(squares / np.maximum(counts - 1, 1)) / medians
    error = np.minimum(0.5, _CORRELATION * scatter / np.sqrt(counts))
    return np.where(counts < 2, MINUTE_SCATTER, error)
