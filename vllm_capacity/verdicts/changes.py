"""Whether a server changed between two times, at the same load and mix, by more than noise.

Two windows never have the same load, so their means say little. Instead, the steps of engines (10
to 60 s each) are compared *at the same load and mix*:

1. Only steps at loads that occurred on both sides are kept. Load is the number of decoding
   requests, by Little's law: output tokens/s × mean inter-token latency. Both are counted, so it
   has no sampling noise, unlike the gauge.
2. The logarithm of a figure is explained by load (a piecewise linear curve), by prompt length per
   output token, by output length, all three per model, and by the side: ordinary least squares. The
   coefficient of the side is the change, at the same load and mix. An engine on both sides has its
   own level (its steps are taken relative to its mean), so it does not matter which of several
   engines is busy. Other engines share the level of their model.
3. Minutes are correlated, so steps are not independent observations: a slow hour moves a side's
   mean more than sixty minutes of independent noise. Residuals are modeled as the sum of a process
   with memory (Ornstein-Uhlenbeck) and noise. The length of its memory is unknown: all lengths from
   minutes to that of a side, and all shares of drift and noise, are weighted by their restricted
   likelihood (Harville, "Bayesian inference for variance components using only error contrasts",
   Biometrika 61 (1974), doi:10.1093/biomet/61.2.383), so the interval is wide if a drift that long
   cannot be distinguished from a change. It is never narrower than the variance of block sums
   implies without such a model (cluster-robust sandwich errors; Cameron and Miller, "A
   Practitioner's Guide to Cluster-Robust Inference", J. Human Resources 50 (2015),
   doi:10.3368/jhr.50.2.317).
4. Five figures are tested, and a change in any of them is an alarm: each is judged at 99 %, so that
   together they give at most one false alarm in twenty.
5. The width of the interval also gives the smallest change that would be found: one that moves the
   interval away from "no change" nine times in ten.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import polars as pl
from msgspec import Struct

from vllm_capacity.estimate import CONFIDENCE as ESTIMATED
from vllm_capacity.estimate import Estimate, Kind
from vllm_capacity.figures.makes import ENGINE_NAME
from vllm_capacity.record import Record

CONFIDENCE = 0.99
"""The confidence of each interval; together the figures' intervals hold 19 times in 20."""
MIN_BLOCKS = 5
"""The minimum per side: fewer blocks do not show how much they vary."""
FOUND = 0.9
"""The probability of finding a change as large as `detectable_change_ratio`."""
_BLOCKS = 8  # per side
_KNOTS = 4
_MIN_STEPS = 20  # per side
_BIN_SECONDS, _MIN_BINS, _MAX_BINS = 600.0, 24, 96  # to look for drift
_MEMORIES = 10  # correlation times tried, from a bin to a side
_SHARES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)  # shares of the variance that drift may explain
_EDGE_SHARE = 0.02  # share of a side's loads ignored at either end

Floats = npt.NDArray[np.float64]


class Change(Record, frozen=True):
    """How much a figure changed: `ratio` is B ÷ A, with its 99 % interval, or why it is unknown.

    `is_more_than_noise` is None if unknown.
    """

    ratio: Estimate

    @property
    def is_more_than_noise(self) -> bool | None:
        """Whether the interval excludes "no change"."""
        low, high = self.ratio.low, self.ratio.high
        return None if low is None or high is None else not low <= 1 <= high

    @property
    def detectable_change_ratio(self) -> float | None:
        """The smallest change, 0.05 for 5 %, that would be found nine times in ten.

        With these observations, a smaller one may go unseen. None if the change is unknown.
        """
        low, high = self.ratio.low, self.ratio.high
        if low is None or high is None:
            return None
        half = math.log(high / low) / 2
        return math.expm1(half * (1 + _normal(2 * FOUND - 1) / _normal(CONFIDENCE)))

    def as_dict(self) -> dict[str, object]:
        """The ratio, whether it is more than noise, and the smallest change that would be found."""
        return {
            **super().as_dict(),
            "is_more_than_noise": self.is_more_than_noise,
            "detectable_change_ratio": self.detectable_change_ratio,
        }


def comparable_steps(steps: pl.DataFrame, models: Mapping[str, str] | None = None) -> pl.DataFrame:
    """The steps that show how fast an engine was: one row per engine and step, in order of time.

    `models`: the model of each engine (`instance/engine`); without it, all count as one model.
    Columns: engine, model (empty if not named), start, load, prompt_per_output, output_per_request
    (null if no request ended), itl_seconds, ttft_seconds (null if not observed). Steps with a gap
    or a restart, and steps without output, are left out.
    """
    output, itl = pl.col("output_tokens_per_second"), pl.col("itl_mean_seconds")
    busy = steps.filter(~pl.col("is_gap") & ~pl.col("is_restart") & (output > 0) & (itl > 0))
    prompts = pl.col("prompt_tokens_per_second").fill_null(0.0)
    requests = pl.col("requests_per_second")
    return busy.select(
        "start",
        engine=ENGINE_NAME,
        model=ENGINE_NAME.replace_strict(models or {}, default="", return_dtype=pl.String),
        load=output * itl,
        prompt_per_output=prompts / output,
        output_per_request=pl.when(requests > 0).then(output / requests),
        itl_seconds=itl,
        ttft_seconds=pl.col("ttft_p95_seconds"),
    ).sort("start")


def change(before: pl.DataFrame, after: pl.DataFrame, figure: str) -> Change:
    """The change of `itl_seconds` or `ttft_seconds` from `before` to `after` (comparable_steps).

    Compared at the same load and mix; unknown, with the reason, if the two share too few loads.
    """
    sides = [_observed(each, figure) for each in (before, after)]
    if nowhere := [side for side, each in zip("AB", sides, strict=True) if each.is_empty()]:
        return _unknown(f"it was not observed in {' and '.join(nowhere)}")
    if any(each.height < _MIN_STEPS for each in sides):
        fewest = min(each.height for each in sides)
        return _unknown(f"each side needs {_MIN_STEPS} steps with this figure; one has {fewest}")
    shared = _same_loads(*sides)
    if min(each.height for each in shared) < _MIN_STEPS:
        return _unknown(f"the loads of the two hardly overlap: {_loads(sides)}")
    return _fitted(shared, figure)


def mean_change(before: pl.DataFrame, after: pl.DataFrame, column: str) -> Change:
    """The change in a mean throughput, whatever the load: over all steps, including zeros.

    Unknown if a side has too few steps, or a mean of 0.
    """
    sides = [each.drop_nulls(column).sort("start") for each in (before, after)]
    if any(each.height < _MIN_STEPS for each in sides):
        return _unknown(f"one side has fewer than {_MIN_STEPS} steps")
    means = [float(each[column].mean()) for each in sides]  # type: ignore[arg-type]
    if min(means) <= 0:
        idle = [side for side, mean in zip("AB", means, strict=True) if mean <= 0]
        return _unknown(f"nothing was served in {' and '.join(idle)}")
    scores = [
        (each[column].to_numpy() - mean) / (each.height * mean)
        for each, mean in zip(sides, means, strict=True)
    ]
    # Blocks only: demand mostly follows the hours of the day, which is not drift.
    half = _half_by_blocks([_sums(*each, _BLOCKS) for each in zip(sides, scores, strict=True)])
    if half is None:
        return _unknown(f"one side has fewer than {MIN_BLOCKS} separate times")
    return _known(math.log(means[1] / means[0]), half, f"means of {column}, by blocks of time")


def ratio_of(before: Estimate, after: Estimate) -> Change:
    """The change of a figure that has its own interval on each side; unknown for bounds."""
    found = []
    for side, each in (("A", before), ("B", after)):
        if each.low is None or each.mid is None or each.high is None:
            return _unknown(f"{side}: {each.reason}")
        if each.low <= 0:
            return _unknown(f"{side}: it may be 0")
        found.append(_Log(*(math.log(end) for end in (each.low, each.mid, each.high))))
    error = math.hypot(*(each.error for each in found))
    half = _normal(CONFIDENCE) * error
    return _known(found[1].mid - found[0].mid, half, "both sides' intervals")


class _Log(Struct, frozen=True):
    """The logarithm of an estimate."""

    low: float
    mid: float
    high: float

    @property
    def error(self) -> float:
        """Its standard error, from the wider side of its 90 % interval."""
        wide = max(self.high - self.mid, self.mid - self.low)
        return wide / _normal(ESTIMATED)


def _normal(confidence: float) -> float:
    """The half width of a two-sided interval, in standard errors."""
    from scipy.special import ndtri  # slow to import, and few commands get here

    return float(ndtri((1 + confidence) / 2))


def _student(confidence: float, freedom: int) -> float:
    """The half width if the error itself is estimated, with that many degrees of freedom."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, (1 + confidence) / 2))


def _unknown(reason: str) -> Change:
    return Change(Estimate.unknown(reason))


def _known(log_ratio: float, half: float, *basis: str) -> Change:
    low, mid, high = (math.exp(log_ratio + side * half) for side in (-1, 0, 1))
    return Change(
        Estimate.known(low, mid, high, *basis, kind=Kind.ESTIMATED, confidence=CONFIDENCE)
    )


def _observed(steps: pl.DataFrame, figure: str) -> pl.DataFrame:
    return steps.filter(pl.col(figure) > 0)


def _same_loads(before: pl.DataFrame, after: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The steps of both sides at loads that occurred on both, except each side's rarest loads.

    Each model separately; if the sides have no model in common, all steps count as one model.
    """
    if not set(before["model"]) & set(after["model"]):
        before, after = (each.with_columns(model=pl.lit("")) for each in (before, after))
    sides = before, after
    ends = [
        each.group_by("model").agg(
            low=pl.col("load").quantile(_EDGE_SHARE), high=pl.col("load").quantile(1 - _EDGE_SHARE)
        )
        for each in sides
    ]
    shared = (
        ends[0]
        .join(ends[1], on="model")
        .select(
            "model",
            low=pl.max_horizontal("low", "low_right"),
            high=pl.min_horizontal("high", "high_right"),
        )
    )
    before, after = (
        each.join(shared, on="model", maintain_order="left").filter(
            pl.col("load").is_between("low", "high")
        )
        for each in sides
    )
    return before, after


def _loads(sides: Sequence[pl.DataFrame]) -> str:
    spans = [each["load"].sort() for each in sides]
    return " against ".join(f"{span[0]:.2g} to {span[-1]:.2g} requests" for span in spans)


def _fitted(sides: tuple[pl.DataFrame, pl.DataFrame], figure: str) -> Change:
    both = pl.concat(sides)
    is_after = np.repeat([0.0, 1.0], [each.height for each in sides])
    groups = _groups(both, is_after)
    columns = _from_mean(np.column_stack([is_after, _explained(both)]), groups)
    values = _from_mean(np.log(both[figure].to_numpy())[:, None], groups)[:, 0]
    found, *_ = np.linalg.lstsq(columns, values, rcond=None)
    residuals = values - columns @ found
    inverse = np.linalg.pinv(columns.T @ columns)
    scores = (columns * residuals[:, None]) @ inverse[0]
    half = _half(sides, scores)
    if half is None:
        return _unknown(f"under {MIN_BLOCKS} separate times at a load seen on both sides")
    steps = " and ".join(f"{each.height:,}" for each in sides)
    return _known(float(found[0]), half, f"{steps} steps at the same loads and lengths")


def _groups(both: pl.DataFrame, is_after: Floats) -> npt.NDArray[np.int64]:
    """The group number of each step: an engine that is on both sides, else a model."""
    labelled = both.select("engine", "model", is_after=pl.Series(is_after))
    is_on_both = pl.col("is_after").n_unique().over("engine") == 2
    group = pl.when(is_on_both).then(pl.concat_str(pl.lit("engine "), "engine")).otherwise("model")
    numbers: npt.NDArray[np.int64] = labelled.select(group.rank("dense")).to_series().to_numpy() - 1
    return numbers.astype(np.int64)


def _from_mean(columns: Floats, groups: npt.NDArray[np.int64]) -> Floats:
    """Each column minus its mean in the row's group, which removes a constant per group."""
    counts = np.bincount(groups)
    means = np.column_stack([np.bincount(groups, weights=own) / counts for own in columns.T])
    found: Floats = columns - means[groups]
    return found


def _explained(both: pl.DataFrame) -> Floats:
    """The regressors for load and mix, per model: a piecewise linear load, and both lengths."""
    load = np.log(both["load"].to_numpy())
    prompts = np.log1p(both["prompt_per_output"].to_numpy())
    lengths = both["output_per_request"].log()
    usual = lengths.mean()
    outputs = lengths.fill_null(usual if isinstance(usual, float) else 0.0).to_numpy()
    columns = []
    for model in both["model"].unique().sort():
        own = (both["model"] == model).to_numpy()
        knots = np.quantile(load[own], np.linspace(0, 1, _KNOTS + 2)[1:-1])
        bends = [np.maximum(load - knot, 0.0) for knot in knots]
        columns += [np.where(own, each, 0.0) for each in (load, *bends, prompts, outputs)]
    return np.column_stack(columns)


def _half(sides: tuple[pl.DataFrame, pl.DataFrame], scores: Floats) -> float | None:
    """Half the width of the interval of a difference between two sides: the wider of two methods.

    `scores` are each step's contribution to the error of the difference. None if a side's steps lie
    in too few blocks.
    """
    own = np.split(scores, [sides[0].height])
    by_blocks = _half_by_blocks([_sums(*each, _BLOCKS) for each in zip(sides, own, strict=True)])
    if by_blocks is None:
        return None
    seconds = [_seconds(each) for each in sides]
    bins = [max(_BIN_SECONDS, each / _MAX_BINS) for each in seconds]
    bin_seconds = min(max(bins), min(seconds) / _MIN_BINS)
    counts = [max(2, round(each / bin_seconds)) for each in seconds]
    binned = [_sums(*each) for each in zip(sides, own, counts, strict=True)]
    return max(by_blocks, _half_by_drifts(binned))


def _sums(steps: pl.DataFrame, scores: Floats, count: int) -> tuple[Floats, Floats]:
    """A side's time in `count` equal parts: the indices of parts with steps, and their sums."""
    times = steps["start"].dt.timestamp("us").to_numpy().astype(np.float64)
    share = (times - times.min()) / max(float(np.ptp(times)), 1.0)
    numbers = np.minimum((share * count).astype(np.int64), count - 1)
    there = np.unique(numbers)
    return there.astype(np.float64), np.bincount(numbers, weights=scores)[there]


def _seconds(steps: pl.DataFrame) -> float:
    """The length of a side."""
    length = steps["start"].max() - steps["start"].min()  # type: ignore[operator]
    return float(length.total_seconds())  # type: ignore[union-attr]


def _half_by_blocks(sides: Sequence[tuple[Floats, Floats]]) -> float | None:
    """Half of the interval by the scatter of block sums; None if a side has under `MIN_BLOCKS`."""
    counts = [len(sums) for _, sums in sides]
    if min(counts) < MIN_BLOCKS:
        return None
    # Each side's share of the variance, corrected for its small number of blocks.
    variance = math.fsum(
        float(np.sum((sums - sums.mean()) ** 2)) * len(sums) / (len(sums) - 1) for _, sums in sides
    )
    return _student(CONFIDENCE, min(counts) - 1) * math.sqrt(variance)


def _half_by_drifts(sides: Sequence[tuple[Floats, Floats]]) -> float:
    """Half of the interval over all lengths of memory and shares of drift, weighted by likelihood.

    `sides`: the positions of equal parts of time and their sums, with parts of the same length.
    """
    longest = max(2.0, *(float(np.ptp(places)) for places, _ in sides))
    laws = [[_by_shares(*each, memory) for each in sides] for memory in _memories(longest)]
    freedom = sum(len(sums) - 1 for _, sums in sides)
    # One row per correlation time, one column per share; without drift all rows are equal.
    factors, squares, totals = (
        np.array([sum(getattr(side, name) for side in law) for law in laws])
        for name in ("log_factors", "squares", "totals")
    )
    likely = factors - freedom / 2 * np.log(squares)
    weights = np.exp(likely - likely.max())
    errors = np.sqrt(totals * squares / freedom)
    return _mixed_half(weights.ravel() / weights.sum(), errors.ravel(), freedom)


def _memories(longest: float) -> Floats:
    """The lengths of memory to consider, in parts of time, up to the longest."""
    found: Floats = np.geomspace(1.0, longest, _MEMORIES)
    return found


class _ByShares(Struct, frozen=True):
    """The likelihood terms of a side for each share of drift in `_SHARES`: one number per share.

    `log_factors`, the logarithm of the restricted likelihood without its squares term; `squares`,
    the residual sum of squares around the mean, in units of the model's variance; `totals`, the
    variance of the sum over all parts, in the same units.
    """

    log_factors: Floats
    squares: Floats
    totals: Floats


def _by_shares(places: Floats, sums: Floats, memory: float) -> _ByShares:
    values, vectors = _principal_parts(tuple(places.tolist()), memory)
    drifts = np.array(_SHARES)[:, None]
    variances = np.maximum(drifts * values + (1 - drifts), 1e-9)
    own, ones = vectors.T @ sums, vectors.sum(axis=0)
    precision = (ones**2 / variances).sum(axis=1)
    mean = (own * ones / variances).sum(axis=1) / precision
    squares = ((own - mean[:, None] * ones) ** 2 / variances).sum(axis=1)
    return _ByShares(
        -(np.log(variances).sum(axis=1) + np.log(precision)) / 2,
        np.maximum(squares, 1e-300),
        (ones**2 * variances).sum(axis=1),
    )


@lru_cache(maxsize=4 * _MEMORIES)
def _principal_parts(places: tuple[float, ...], memory: float) -> tuple[Floats, Floats]:
    """The eigenvalues and eigenvectors of a drift's correlation between these places.

    Cached, because the figures of a comparison are mostly observed in the same parts of time.
    """
    at = np.array(places)
    values, vectors = np.linalg.eigh(np.exp(-np.abs(at[:, None] - at[None, :]) / memory))
    return values, vectors


def _mixed_half(weights: Floats, errors: Floats, freedom: int) -> float:
    """The half width of a mixture of Student's t distributions with these errors and weights."""
    from scipy.special import stdtr

    low, high = 0.0, _student(CONFIDENCE, freedom) * float(errors.max())
    for _ in range(50):
        middle = (low + high) / 2
        beyond = 2 * float(weights @ stdtr(freedom, -middle / np.maximum(errors, 1e-300)))
        low, high = (middle, high) if beyond > 1 - CONFIDENCE else (low, middle)
    return high
