"""Whether a server changed between two times, at the same load and mix, by more than noise.

Two windows are never under the same load, so their means say little. What is compared is what a
step of one engine (10 to 60 s) did *at the load and the mix it had*:

1. Steps of both sides that lie in loads which both have seen are kept; others are compared with
   nothing. Load is the requests that decode at a time, by Little's law: output tokens/s × mean
   inter-token latency. Both are counted, so it has no noise of sampling, as the gauge has.
2. The logarithm of a figure is explained by load (a curve of straight pieces), by how long prompts
   are for each output token, by how long outputs are, all three for each model by itself, and by
   the side: ordinary least squares. The coefficient of the side is the change, at the same load and
   mix. An engine that is on both sides has a level of its own (its steps are taken from its mean):
   which of several is busy changes nothing. Others have that of their model.
3. Minutes are correlated, so steps do not count as so many observations. Each side's time is cut
   into blocks, all engines together, and the variance is that of the blocks' sums (the sandwich of
   cluster-robust errors; Cameron and Miller, "A Practitioner's Guide to Cluster-Robust Inference",
   J. Human Resources 50 (2015), doi:10.3368/jhr.50.2.317). Of several block lengths the one that
   gives the widest interval counts, with Student's t of as many blocks. A server whose speed drifts
   for hours makes neighboring blocks alike, which takes variance from their sums: how long it
   remembers is estimated, and that variance put back. Where it remembers for more than a twelfth of
   the time, nothing is said.
4. Five figures are looked at, and a change of any is an alarm: each is judged at 99 %, so that all
   of them together cry wolf at most once in twenty.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from vllm_capacity.estimate import CONFIDENCE as ESTIMATED
from vllm_capacity.estimate import Estimate, Kind
from vllm_capacity.figures.makes import ENGINE_NAME
from vllm_capacity.record import Record

CONFIDENCE = 0.99
"""Of each interval; the figures together are then held by all of theirs 19 times in 20."""
FEWEST_BLOCKS = 5
"""Per side: fewer tell nothing of how times differ."""
_BLOCKS = (8, 16, 32)  # per side; the fewest are the longest, and stand for slow changes
_BLOCK_SECONDS = 7200.0  # shorter ones are alike: what slows a server lasts for an hour or so
_KNOTS = 4
_FEWEST_STEPS = 20  # per side
_BIN_SECONDS, _FEWEST_BINS = 600.0, 24  # in which the memory of what slows a server is looked at
_FEWEST_MEMORIES = 12  # that a side must last: of fewer, how they differ is not known
_EDGE_SHARE = 0.02  # of a side's loads at each end, that the other need not have seen

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, repr=False)
class Change(Record):
    """How much a figure changed: `ratio` is B ÷ A, with its 99 % interval, or why it is not known.

    `is_more_than_noise` is None where that is not known.
    """

    ratio: Estimate

    @property
    def is_more_than_noise(self) -> bool | None:
        """Whether the interval leaves out "no change"."""
        low, high = self.ratio.low, self.ratio.high
        return None if low is None or high is None else not low <= 1 <= high

    def as_dict(self) -> dict[str, object]:
        """The ratio, and whether it is more than noise."""
        return {**super().as_dict(), "is_more_than_noise": self.is_more_than_noise}


def comparable_steps(steps: pl.DataFrame, models: Mapping[str, str] | None = None) -> pl.DataFrame:
    """The steps that tell how fast an engine was: one row per engine and step, in order of time.

    `models`: what each engine (`instance/engine`) serves; without it all serve the same. Columns:
    engine, model (empty where not named), start, load, prompt_per_output, output_per_request (null
    where no request ended), itl_seconds, ttft_seconds (null where not observed). Steps with a gap
    or a restart, and those in which nothing was generated, are left out.
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

    At the same load and mix; unknown, with the reason, where the two share too few loads.
    """
    sides = [_observed(each, figure) for each in (before, after)]
    if nowhere := [side for side, each in zip("AB", sides, strict=True) if each.is_empty()]:
        return _unknown(f"nothing of it was observed in {' and '.join(nowhere)}")
    if any(each.height < _FEWEST_STEPS for each in sides):
        fewest = min(each.height for each in sides)
        return _unknown(f"only {fewest} steps observed it on one side; it takes {_FEWEST_STEPS}")
    shared = _same_loads(*sides)
    if min(each.height for each in shared) < _FEWEST_STEPS:
        return _unknown(f"the two had hardly any load in common: {_loads(sides)}")
    return _fitted(shared, figure)


def mean_change(before: pl.DataFrame, after: pl.DataFrame, column: str) -> Change:
    """The change of a throughput's mean over time, whatever the load: of all steps, zeros included.

    Unknown where a side has too few steps, or a mean of 0.
    """
    sides = [each.drop_nulls(column).sort("start") for each in (before, after)]
    if any(each.height < _FEWEST_STEPS for each in sides):
        return _unknown(f"one side has fewer than {_FEWEST_STEPS} steps")
    means = [float(each[column].mean()) for each in sides]  # type: ignore[arg-type]
    if min(means) <= 0:
        idle = [side for side, mean in zip("AB", means, strict=True) if mean <= 0]
        return _unknown(f"nothing was served in {' and '.join(idle)}")
    widest = max(_mean_error(sides, means, column, blocks) for blocks in _block_counts(*sides))
    return _known(math.log(means[1] / means[0]), widest, f"means of {column}, by blocks of time")


def ratio_of(before: Estimate, after: Estimate) -> Change:
    """The change of a figure that each side has with its own interval; bounds tell no change."""
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


@dataclass(frozen=True)
class _Log:
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
    """How many standard errors a two-sided interval reaches to each side."""
    from scipy.special import ndtri  # slow to import, and few commands get here

    return float(ndtri((1 + confidence) / 2))


def _student(confidence: float, freedom: int) -> float:
    """The same where the error itself is estimated, with so many degrees of freedom."""
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
    """The steps of both in the loads that both have seen, but for the rarest of each.

    Model by model; where the two have no model in common, as one.
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
    seconds = _shorter_seconds(*sides)
    memory = _memory_seconds(sides, np.split(scores, [sides[0].height]), seconds)
    if seconds < _FEWEST_MEMORIES * memory:
        return _unknown(
            "its speed drifts by itself, and the shorter side is too short to tell that from a "
            f"change ({seconds / 3600:.2g} h): take days on each side"
        )
    halves = []
    for blocks in _block_counts(*sides):
        half = _half(sides, scores, blocks)
        if half is not None:
            halves.append(half / math.sqrt(_kept_share(memory, seconds / blocks)))
    if not halves:
        return _unknown(f"under {FEWEST_BLOCKS} separate times at a load that both have seen")
    steps = " and ".join(f"{each.height:,}" for each in sides)
    return _known(float(found[0]), max(halves), f"{steps} steps at the same loads and lengths")


def _groups(both: pl.DataFrame, is_after: Floats) -> npt.NDArray[np.int64]:
    """The group of each step by its number: an engine that is on both sides, else a model."""
    labelled = both.select("engine", "model", is_after=pl.Series(is_after))
    is_on_both = pl.col("is_after").n_unique().over("engine") == 2
    group = pl.when(is_on_both).then(pl.concat_str(pl.lit("engine "), "engine")).otherwise("model")
    numbers: npt.NDArray[np.int64] = labelled.select(group.rank("dense")).to_series().to_numpy() - 1
    return numbers.astype(np.int64)


def _from_mean(columns: Floats, groups: npt.NDArray[np.int64]) -> Floats:
    """Each column less its mean in the group of the row: what a constant of each would explain."""
    counts = np.bincount(groups)
    means = np.column_stack([np.bincount(groups, weights=own) / counts for own in columns.T])
    found: Floats = columns - means[groups]
    return found


def _explained(both: pl.DataFrame) -> Floats:
    """The columns that load and mix are, of each model: a bent line of the load, both lengths."""
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


def _half(sides: tuple[pl.DataFrame, pl.DataFrame], scores: Floats, blocks: int) -> float | None:
    """Half of the interval of the first coefficient, each side in so many blocks of time.

    `scores` are what each step adds to its error. None where steps of a side lie in too few blocks.
    """
    numbers = [_block_numbers(each, blocks) for each in sides]
    counts = [len(np.unique(each)) for each in numbers]
    if min(counts) < FEWEST_BLOCKS:
        return None
    of_block = np.concatenate([numbers[0], numbers[1] + blocks])
    sums = np.bincount(of_block, weights=scores, minlength=2 * blocks)
    # Each side's share of the variance, made up for its few blocks.
    error = math.sqrt(
        sum(
            float(np.sum(own**2)) * count / (count - 1)
            for own, count in zip((sums[:blocks], sums[blocks:]), counts, strict=True)
        )
    )
    return _student(CONFIDENCE, min(counts) - 1) * error


def _memory_seconds(
    sides: tuple[pl.DataFrame, pl.DataFrame], scores: Sequence[Floats], seconds: float
) -> float:
    """How long what slows a server lasts, of sides of so many `seconds`.

    The integrated autocorrelation time of the errors, mean of both sides, without the bias of short
    series, whose correlation comes out 4 ÷ n too small (Marriott and Pope, Biometrika 41 (1954),
    doi:10.1093/biomet/41.3-4.390). Infinite where that is all there is.
    """
    seen = np.mean([_seen_memory_seconds(*each) for each in zip(sides, scores, strict=True)])
    left = 1 / float(seen) - 4 / max(seconds, 1.0)
    return 1 / left if left > 0 else math.inf


def _seen_memory_seconds(steps: pl.DataFrame, scores: Floats) -> float:
    """The autocorrelation of a side's errors, added up over time as long as it is above 0."""
    times = steps["start"].dt.timestamp("us").to_numpy().astype(np.float64) / 1e6
    each_seconds = min(_BIN_SECONDS, max(1.0, float(np.ptp(times)) / _FEWEST_BINS))
    bins = ((times - times.min()) // each_seconds).astype(np.int64)
    sums = np.bincount(bins, weights=scores)
    centered = sums - sums.mean()
    products = np.correlate(centered, centered, "full")[len(sums) - 1 :]
    above = 0.0
    for each in products[1 : len(sums) // 2 + 1]:
        if each <= 0:
            break
        above += float(each / products[0])
    return (0.5 + above) * each_seconds


def _kept_share(memory_seconds: float, block_seconds: float) -> float:
    """The share of the long-run variance that sums of blocks show, of a process that forgets.

    Of an Ornstein-Uhlenbeck process that forgets in `memory`: 1 − m (1 − exp(−1/m)), where m is
    memory ÷ block.
    """
    ratio = memory_seconds / block_seconds
    return 1 - ratio * (1 - math.exp(-1 / ratio))


def _block_counts(*sides: pl.DataFrame) -> list[int]:
    """In how many blocks each side is cut, one after another; few where the time is short."""
    seconds = _shorter_seconds(*sides)
    return [each for each in _BLOCKS if seconds >= each * _BLOCK_SECONDS] or [FEWEST_BLOCKS]


def _shorter_seconds(*sides: pl.DataFrame) -> float:
    """How long the shorter of the sides lasts."""
    return min(
        float((each["start"].max() - each["start"].min()).total_seconds())  # type: ignore[operator, union-attr]
        for each in sides
    )


def _block_numbers(steps: pl.DataFrame, blocks: int) -> npt.NDArray[np.int64]:
    """The block of each step: its side's time in so many even parts."""
    times = steps["start"].dt.timestamp("us").to_numpy().astype(np.float64)
    share = (times - times.min()) / max(times.max() - times.min(), 1.0)
    numbers: npt.NDArray[np.int64] = np.minimum((share * blocks).astype(np.int64), blocks - 1)
    return numbers


def _mean_error(sides: list[pl.DataFrame], means: list[float], column: str, blocks: int) -> float:
    """Half of the interval of the logarithm of the ratio of both means; wide with few blocks."""
    errors, fewest = [], blocks
    for each, mean in zip(sides, means, strict=True):
        numbers = _block_numbers(each, blocks)
        sums = np.bincount(numbers, weights=each[column].to_numpy() - mean, minlength=blocks)
        count = len(np.unique(numbers))
        errors.append(math.sqrt(float(np.sum(sums**2)) * count / max(count - 1, 1)))
        errors[-1] /= each.height * mean
        fewest = min(fewest, count)
    return _student(CONFIDENCE, max(fewest - 1, 1)) * math.hypot(*errors)
