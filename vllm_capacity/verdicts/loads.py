"""Steps as points of a curve: which count, which loads they make up, and what a plateau held.

A plateau is measured, not fitted: the mean throughput of the steps in which the server, not the
client, set the pace. Its interval is a bootstrap in blocks of a minute (steps are correlated for
as long as a request lives, so single steps would promise too much), and never narrower than
minutes were seen to scatter on recorded servers: 10 % ÷ √minutes, 3 % at least.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vllm_capacity.estimate import Estimate
from vllm_capacity.verdicts import regimes
from vllm_capacity.verdicts.curve import Floats, Loads
from vllm_capacity.verdicts.regimes import Judged, Row

MIN_PLATEAU_SECONDS = 60.0
_MIN_PLATEAU_STEPS = 3
_EDGE_STEPS = 4
_BLOCK_SECONDS = 60.0
_MINUTE_SCATTER, _LEAST_HALF_WIDTH = 0.10, 0.03
_RESAMPLES = 1000
_LOAD_BAND = 1.25
_MIN_RUNNING = 0.5
_CORRELATION = 1.5
_OF_PEAK = 0.95
_PLATEAU_SPAN, _PLATEAU_LOADS = 1.4, 3


@dataclass(frozen=True)
class Levels:
    """Loads made of steps: `loads`, the KV ratio at each (nan: not observed), how many steps."""

    loads: Loads
    kv_ratio: Floats
    steps: tuple[int, ...]


@dataclass(frozen=True)
class Plateau:
    """What the server held while it was the limit: output tokens/s, running requests, its steps."""

    output: Estimate
    running: Estimate
    steps: int
    seconds: float


def is_usable(step: Row, *, usual_seconds: float) -> bool:
    """Whether a step is whole and clean: no gap or restart, not cut short, load and output seen."""
    seconds = (step["end"] - step["start"]).total_seconds()
    return (
        not step["has_gap"]
        and not step["has_restart"]
        and bool(step["scrapes"])
        and seconds >= usual_seconds / 2
        and step["running_mean"] is not None
        and step["output_tokens_per_second"] is not None
    )


def usual_seconds(rows: Sequence[Row]) -> float:
    """The median length of the steps; 0 for none."""
    lengths = sorted((row["end"] - row["start"]).total_seconds() for row in rows)
    return float(lengths[len(lengths) // 2]) if lengths else 0.0


def curve_steps(judged: Sequence[Judged]) -> list[Judged]:
    """The usable steps in which something ran and tokens came out: the points of the curve.

    Steps whose load is poorly known are left out: a curve over such loads comes out too flat
    (regression dilution), and would tell of a bend where there is none. The neighbours of a stalled
    step are left out with it: the stall reaches into them.
    """
    usual = usual_seconds([j.step for j in judged])
    stalled = {i + k for i, j in enumerate(judged) if j.cause == "stalled" for k in (-1, 0, 1)}
    return [
        j
        for i, j in enumerate(judged)
        if i not in stalled
        and is_usable(j.step, usual_seconds=usual)
        and j.regime != regimes.IDLE
        and j.step["running_mean"] >= _MIN_RUNNING
        and regimes.running_noise_ratio(j.step) <= regimes.MAX_RUNNING_NOISE
        and j.step["output_tokens_per_second"] > 0
    ]


def bands(rows: Sequence[Row]) -> list[list[Row]]:
    """Steps of like load (running within 1.25 ×) together, lightest first.

    A band of a single step is left out where others have more: it is a change of load, not a load.
    """
    found: dict[int, list[Row]] = {}
    for row in rows:
        band = math.floor(math.log(row["running_mean"]) / math.log(_LOAD_BAND))
        found.setdefault(band, []).append(row)
    most = max((len(band) for band in found.values()), default=0)
    return [found[band] for band in sorted(found) if len(found[band]) >= min(2, most)]


def load_levels(points: Sequence[Judged]) -> Levels:
    """Each band of steps as one load: medians, and the relative error of the median output."""
    kept = bands([point.step for point in points])
    running = [_median(rows, "running_mean") for rows in kept]
    output = [_median(rows, "output_tokens_per_second") for rows in kept]
    return Levels(
        Loads.of(running, output, [_relative_error(rows) for rows in kept]),
        np.asarray([_median(rows, "kv_ratio_mean") for rows in kept], float),
        tuple(len(rows) for rows in kept),
    )


def plateau(judged: Sequence[Judged], *, seed: int = 0) -> Plateau | None:
    """The plateau of the steps in which the server was the limit; None under a minute of them.

    The first and last step of a stretch are left out where a minute remains: load was changing in
    them.
    """
    usual = usual_seconds([j.step for j in judged])
    held: list[Judged] = []
    for stretch in _limited_stretches(judged):
        inner = stretch[1:-1] if len(stretch) >= _EDGE_STEPS else stretch
        inner = inner if sum(j.seconds for j in inner) >= MIN_PLATEAU_SECONDS else stretch
        held += [j for j in inner if is_usable(j.step, usual_seconds=usual)]
    seconds = sum(j.seconds for j in held)
    if len(held) < _MIN_PLATEAU_STEPS or seconds < MIN_PLATEAU_SECONDS:
        return None
    basis = (
        f"mean of {len(held)} steps ({seconds:.0f} s) in which the server was the limit; "
        "90 % interval by block bootstrap"
    )
    weights = np.asarray([j.seconds for j in held])
    columns = ("output_tokens_per_second", "running_mean")
    output, running = (
        _held(np.asarray([j.step[name] for j in held]), weights, basis, seed) for name in columns
    )
    return Plateau(output, running, len(held), seconds)


def points_plateau(loads: Loads) -> tuple[float, float, float] | None:
    """Lowest, mean and highest output of the loads on a plateau; None where there is none.

    A plateau is what loads hold that lie within 5 % of the highest output, where they are 1.4 ×
    apart or three: from the lightest such load on, output no longer grows, whatever heavier loads
    do to it.
    """
    peak = float(loads.output.max())
    is_near = loads.output >= _OF_PEAK * peak
    first = float(loads.running[int(np.argmax(is_near))])
    near = loads.output[is_near]
    if loads.heaviest < _PLATEAU_SPAN * first and len(near) < _PLATEAU_LOADS:
        return None
    return float(near.min()), float(near.mean()), peak


def _limited_stretches(judged: Sequence[Judged]) -> list[list[Judged]]:
    return [s for s in regimes.stretches(judged) if s[0].regime in regimes.LIMITS]


def _held(values: Floats, weights: Floats, basis: str, seed: int) -> Estimate:
    mean = float(np.average(values, weights=weights))
    block = max(1, math.ceil(_BLOCK_SECONDS / float(np.median(weights))))
    low, high = block_bootstrap(values, weights, block=min(block, len(values)), seed=seed)
    least = mean * max(
        _LEAST_HALF_WIDTH, _MINUTE_SCATTER / math.sqrt(float(weights.sum()) / _BLOCK_SECONDS)
    )
    return Estimate.known(min(low, mean - least), mean, max(high, mean + least), basis)


def block_bootstrap(
    values: Floats, weights: Floats, *, block: int, seed: int = 0
) -> tuple[float, float]:
    """The 5 and 95 % quantiles of the weighted mean under circular blocks of consecutive values."""
    count = len(values)
    blocks = math.ceil(count / block)
    starts = np.random.default_rng(seed).integers(0, count, (_RESAMPLES, blocks))
    picks = (starts[:, :, None] + np.arange(block)) % count
    picks = picks.reshape(_RESAMPLES, -1)[:, :count]
    means = (values[picks] * weights[picks]).sum(1) / weights[picks].sum(1)
    low, high = np.quantile(means, [0.05, 0.95])
    return float(low), float(high)


def _median(rows: Sequence[Row], column: str) -> float:
    seen = [row[column] for row in rows if row[column] is not None]
    return float(np.median(seen)) if seen else math.nan


def _relative_error(rows: Sequence[Row]) -> float:
    """Relative error of a load's output: scatter ÷ √steps, × 1.5 since neighbours are alike."""
    output = np.asarray([row["output_tokens_per_second"] for row in rows])
    if len(output) < 2:
        return _MINUTE_SCATTER
    scatter = float(output.std(ddof=1) / np.median(output))
    return min(0.5, _CORRELATION * scatter / math.sqrt(len(output)))
