"""Steps as points of a curve: which count, which loads they make up, and what a plateau held.

A plateau is measured, not fitted: the mean throughput of the steps in which the server, not the
client, set the pace. Its interval is a bootstrap in blocks of a minute (steps are correlated for
as long as a request lives, so single steps would promise too much), and never narrower than
minutes were seen to scatter on recorded servers: 10 % ÷ √minutes, 3 % at least.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import numpy as np
from numpy.typing import NDArray

from vllm_capacity.estimate import Estimate
from vllm_capacity.verdicts.saturation import regimes
from vllm_capacity.verdicts.saturation.curve import Floats, LoadPoints
from vllm_capacity.verdicts.saturation.regimes import Judged, Row

Indices = NDArray[np.int64]
Mask = NDArray[np.bool_]

MIN_PLATEAU_SECONDS = 60.0
_MIN_PLATEAU_STEPS = 2
_BLOCK_SECONDS = 60.0
_MINUTE_SCATTER, _LEAST_HALF_WIDTH = 0.10, 0.03
_RESAMPLES = 1000
_LOAD_BAND = 1.25
_LONG_STEP_SECONDS = 45.0
_MIN_RUNNING, _MIN_EXACT_RUNNING = 0.5, 0.1
_ENOUGH_SCRAPES = 3
_CORRELATION = 1.5
_OF_PEAK = 0.95
_MINUTE_SECONDS, _SLOWED = 60.0, 0.75
_DENYING_SCATTERS = 2.0
_QUEUE_OF_RUNNING, _LASTING_SCRAPES = 0.1, 6
_PLATEAU_SPAN, _PLATEAU_LOADS = 1.4, 3
_LEAST_SPAN, _FLAT_GROWTH = 1.1, 0.3
_KV_FULL_RATIO, _ALWAYS = 0.9, 0.9
_LEAST_SCATTER, _MOST_SCATTER = 0.05, 0.2
_NEAR_LIMIT = 0.9
_MANY_PREEMPTED, _PREEMPTION_LOSS = 1.0, 0.10


@dataclass(frozen=True)
class LoadLevels:
    """Loads made of steps: `loads`, the KV ratio at each (nan: not observed), how many steps."""

    loads: LoadPoints
    kv_ratio: Floats
    steps: tuple[int, ...]


@dataclass(frozen=True)
class Plateau:
    """What the server held while it was the limit: output tokens/s, running requests, its steps."""

    output: Estimate
    running: Estimate
    steps: int
    seconds: float


@dataclass(frozen=True)
class BestMinute:
    """What a minute held on average, and when it ended at the latest.

    `output` is tokens/s, no more than the prompts read in that minute go with (`best_minute`);
    `peak` is that of the minute wherever it begins, `requests` how many finished in it.
    `is_limited`: requests waited in part of it, or no less came out than while they did.
    """

    output: float
    running: float
    end: datetime
    is_limited: bool
    requests: float
    peak: float

    @property
    def sure(self) -> float:
        """What the server can do at least, output tokens/s.

        Of minutes below the limit the best one is what was asked. At the limit it is the luckiest
        of many: they scatter as their requests do, one ÷ √requests, 5 % at least.
        """
        if not self.is_limited:
            return self.output
        return self.output * (1 - self.scatter)

    @property
    def scatter(self) -> float:
        """How far one minute at the limit may lie above the mean, as a share of it."""
        scatter = 1 / math.sqrt(self.requests) if self.requests else _MOST_SCATTER
        return min(_MOST_SCATTER, max(_LEAST_SCATTER, scatter))


def is_usable(step: Row, *, median_seconds: float) -> bool:
    """Whether a step is whole and clean: no gap or restart, not cut short, load and output seen."""
    seconds = (step["end"] - step["start"]).total_seconds()
    return (
        not step["is_gap"]
        and not step["is_restart"]
        and bool(step["scrapes"])
        and seconds >= median_seconds / 2
        and step["running_mean"] is not None
        and step["output_tokens_per_second"] is not None
    )


def usable_steps(judged: Sequence[Judged]) -> list[Judged]:
    """The whole and clean steps (`is_usable`), those in which nothing ran included."""
    median = median_seconds([j.step for j in judged])
    return [j for j in judged if is_usable(j.step, median_seconds=median)]


def median_seconds(rows: Sequence[Row]) -> float:
    """The median length of the steps; 0 for none."""
    lengths = sorted((row["end"] - row["start"]).total_seconds() for row in rows)
    return float(lengths[len(lengths) // 2]) if lengths else 0.0


def curve_steps(judged: Sequence[Judged]) -> list[Judged]:
    """The usable steps in which something ran and tokens came out: the points of the curve.

    Steps whose load is poorly known are left out: a curve over such loads comes out too flat
    (regression dilution), and would tell of a bend where there is none. A load by Little's law is
    exact; one of gauges is not, and a step of one or two scrapes is judged with its neighbors. The
    neighbors of a stalled step are left out with it: the stall reaches into them.
    """
    median = median_seconds([j.step for j in judged])
    stalled = {i + k for i, j in enumerate(judged) if j.cause == "stalled" for k in (-1, 0, 1)}
    return [
        j
        for i, j in enumerate(judged)
        if i not in stalled
        and is_usable(j.step, median_seconds=median)
        and j.regime != regimes.IDLE
        and _is_load_known(judged, i)
        and j.step["output_tokens_per_second"] > 0
    ]


def _is_load_known(judged: Sequence[Judged], i: int) -> bool:
    running = judged[i].running or 0.0
    if judged[i].is_running_exact:
        return running >= _MIN_EXACT_RUNNING
    is_clear = _load_noise_ratio(judged, i) <= regimes.MAX_RUNNING_NOISE
    return running >= _MIN_RUNNING and is_clear


def _load_noise_ratio(judged: Sequence[Judged], i: int) -> float:
    """`running_noise_ratio` of a step; of a thinly scraped one, of it and its neighbors."""
    step = judged[i].step
    if step["scrapes"] >= _ENOUGH_SCRAPES:
        return regimes.running_noise_ratio(step)
    near = [j.step for j in judged[max(0, i - 1) : i + 2] if j.step["running_mean"] is not None]
    scrapes = sum(other["scrapes"] for other in near)
    pooled = {
        "scrapes": scrapes,
        "running_mean": sum(other["running_mean"] * other["scrapes"] for other in near) / scrapes,
        "running_max": max(other["running_max"] for other in near),
    }
    return regimes.running_noise_ratio(pooled)


def load_bands(steps: Sequence[Judged]) -> list[list[Judged]]:
    """Steps of like load (running within 1.25 ×) together, lightest first.

    A band of a single step is left out where others have more, unless that step is long: it is a
    change of load, not a load.
    """
    running = np.asarray([point.running for point in steps], float)
    own, _, is_load = _banded(running, np.asarray([point.seconds for point in steps]))
    return [
        [point for point, group in zip(steps, own, strict=True) if group == band]
        for band in np.flatnonzero(is_load)
    ]


def _banded(running: Floats, seconds: Floats) -> tuple[Indices, Indices, NDArray[np.bool_]]:
    """The band of each step; of each band, lightest first, its steps and whether it is a load."""
    band = np.floor(np.log(running) / math.log(_LOAD_BAND))
    _, own, counts = np.unique(band, return_inverse=True, return_counts=True)
    longest = np.zeros(len(counts))
    np.maximum.at(longest, own, seconds)
    least = min(2, int(counts.max(initial=0)))
    return own, counts, (counts >= least) | (longest >= _LONG_STEP_SECONDS)


@dataclass(frozen=True)
class StepColumns:
    """What levels are made of, a value a step (`kv_ratio` nan: not observed), in order."""

    running: Floats
    output: Floats
    kv_ratio: Floats
    seconds: Floats

    @classmethod
    def of(cls, steps: Sequence[Judged]) -> StepColumns:
        """The columns of the points of a curve."""
        names = ("output_tokens_per_second", "kv_cache_ratio_mean")
        output, kv_ratio = (
            np.asarray([point.step[name] for point in steps], float) for name in names
        )
        running = np.asarray([point.running for point in steps], float)
        return cls(running, output, kv_ratio, np.asarray([point.seconds for point in steps]))

    def at(self, picks: Indices) -> StepColumns:
        """Those of the picked steps."""
        return StepColumns(
            self.running[picks], self.output[picks], self.kv_ratio[picks], self.seconds[picks]
        )


def load_levels(steps: StepColumns) -> LoadLevels:
    """Each band of steps (`load_bands`) as one load: medians, and the median output's error."""
    own, counts, kept = _banded(steps.running, steps.seconds)
    running, output, kv_ratio = (
        _medians(column, own, len(counts))[kept]
        for column in (steps.running, steps.output, steps.kv_ratio)
    )
    errors = _relative_errors(steps.output, own, counts)[kept]
    loads = LoadPoints.of(running, output, errors)
    return LoadLevels(loads, kv_ratio, tuple(int(count) for count in counts[kept]))


def plateau(
    judged: Sequence[Judged], *, best: BestMinute | None = None, seed: int = 0
) -> Plateau | None:
    """The plateau of the steps in which the server was the limit; None under a minute of them.

    Left out are steps at the ends of a stretch (`_clean_stretches`) and those in which the server
    was slower than itself (`slowed`, given its `best` minute). The high end is no less than that
    minute shows (`BestMinute.sure`), and a tenth above the mean where most requests were
    preempted: a load just short of the cache saves the work that is done twice.
    """
    is_slow = {id(step) for step in slowed(judged, best)}
    stretches = [
        [j for j in stretch if id(j) not in is_slow] for stretch in _clean_stretches(judged)
    ]
    limited = [step for stretch in stretches for step in stretch]
    seconds = sum(j.seconds for j in limited)
    if len(limited) < _MIN_PLATEAU_STEPS or seconds < MIN_PLATEAU_SECONDS:
        return _brief_plateau(judged, best)
    if not _has_queue(stretches):
        return None
    basis = (
        f"mean of {len(limited)} steps ({seconds:.0f} s) in which the server was the limit; "
        "90 % interval by block bootstrap"
    )
    output, running = (
        _with_interval(limited, name, basis, seed)
        for name in ("output_tokens_per_second", "running_mean")
    )
    return Plateau(_no_less(output, limited, best), running, len(limited), seconds)


def _no_less(output: Estimate, limited: Sequence[Judged], best: BestMinute | None) -> Estimate:
    """The plateau's output, its high end raised to what less or luckier load was seen to give."""
    mid, high = output.mid or 0.0, output.high or 0.0
    preempted = sum(j.step["preemptions"] or 0.0 for j in limited)
    if preempted >= _MANY_PREEMPTED * _total(limited, "requests_per_second"):
        high = max(high, mid * (1 + _PREEMPTION_LOSS))
    return replace(output, high=high if best is None else max(high, best.sure))


def is_denied(plateau: Plateau, best: BestMinute | None) -> bool:
    """Whether the best minute held more than a server with this plateau can, chance allowed for.

    Then the server was slower while it was the limit than before or after: by a neighbor on its
    machine, perhaps, or other requests. One scatter is in the plateau's high end; more than two
    are no luck.
    """
    if best is None or plateau.output.mid is None:
        return False
    return best.output * (1 - _DENYING_SCATTERS * best.scatter) > plateau.output.mid


def _brief_plateau(judged: Sequence[Judged], best: BestMinute | None) -> Plateau | None:
    """The best minute, where the server was the limit for a minute on end but for its edges.

    Its edges would lower a mean; of one or two minutes the best is hardly luck.
    """
    if best is None or not best.is_limited:
        return None
    spans = [judged[first:last] for first, last in _limited_spans(judged)]
    longest = max(spans, key=lambda span: sum(j.seconds for j in span), default=[])
    seconds = sum(j.seconds for j in longest)
    is_within = any(j.step["start"] < best.end <= j.step["end"] for j in longest)
    if seconds < MIN_PLATEAU_SECONDS or not is_within or not _has_queue([longest]):
        return None
    basis = f"the best minute of {seconds:.0f} s in which the server was the limit"
    spread = max(best.scatter, _MINUTE_SCATTER)
    low, high = best.output * (1 - spread), best.peak * (1 + spread)
    output = Estimate.known(low, (best.output + best.peak) / 2, high, basis)
    least, most = (best.running * (1 + sign * _MINUTE_SCATTER) for sign in (-1, 1))
    running = Estimate.known(least, best.running, most, basis)
    return Plateau(output, running, len(longest), seconds)


def _has_queue(stretches: Sequence[Sequence[Judged]]) -> bool:
    """Whether the queue was more than chance: deep, lasting, or held back by the KV cache.

    Near its limit a server has a few requests waiting now and then, while it still goes on rising.
    Deep is a tenth of what ran; lasting, in six scrapes in a row or more for half of the time.
    """
    limited = [step for stretch in stretches for step in stretch]
    waiting = sum((j.step["waiting_mean"] or 0.0) * j.seconds for j in limited)
    running = sum(j.step["running_mean"] * j.seconds for j in limited)
    sure = [j for j in limited if j.regime == regimes.KV]
    for stretch in stretches:
        if sum(j.step["scrapes"] for j in stretch) >= _LASTING_SCRAPES:
            sure += [j for j in stretch if j.regime != regimes.KV]
    is_lasting = sum(j.seconds for j in sure) >= sum(j.seconds for j in limited) / 2
    return waiting >= _QUEUE_OF_RUNNING * running or is_lasting


def slowed(judged: Sequence[Judged], best: BestMinute | None) -> list[Judged]:
    """The steps in which the server was the limit, yet gave far less than its best minute held.

    Minutes below three quarters of it, two in a row or all of a stretch, and steps below it in the
    minutes beside; one such minute, too, with a step below it beside. Something outside slowed the
    server, or it was asked for something else. Either way they do not tell what it can do.
    """
    if best is None:
        return []
    least = _SLOWED * best.peak
    found: list[Judged] = []
    for stretch in _clean_stretches(judged):
        minutes = _minutes(stretch)
        is_low = [_mean_output(minute) < least for minute in minutes]
        for k, minute in enumerate(minutes):
            is_low_beside = any(is_low[max(0, k - 1) : k] + is_low[k + 1 : k + 2])
            before, after = minutes[max(0, k - 1) : k], minutes[k + 1 : k + 2]
            around = [*(m[-1] for m in before), *(m[0] for m in after)]
            is_lasting = any(j.step["output_tokens_per_second"] < least for j in around)
            if is_low[k] and (is_low_beside or is_lasting or len(minutes) == 1):
                found += minute
            elif is_low_beside:
                found += [j for j in minute if j.step["output_tokens_per_second"] < least]
    return found


def _clean_stretches(judged: Sequence[Judged]) -> list[list[Judged]]:
    """The usable steps of each stretch in which the server was the limit throughout.

    The step at an end of a stretch is left out: requests waited in its scrapes, but not necessarily
    before the first of them or after the last. Where the observation itself begins or ends there,
    the stretch may go on, and the step stays if there is no minute without it.
    """
    median = median_seconds([j.step for j in judged])
    found = []
    for first, last in _limited_spans(judged):
        begins, ends = first + _is_beside(judged, first - 1), last - _is_beside(judged, last - 1)
        inner = judged[max(begins, first + 1) : min(ends, last - 1)]
        if sum(j.seconds for j in inner) < MIN_PLATEAU_SECONDS:
            inner = judged[begins:ends]
        found.append([j for j in inner if is_usable(j.step, median_seconds=median)])
    return [stretch for stretch in found if stretch]


def _is_beside(judged: Sequence[Judged], before: int) -> bool:
    """Whether the step after that one follows it without a hole, and both are there."""
    if not 0 <= before < len(judged) - 1:
        return False
    return bool(judged[before].step["end"] == judged[before + 1].step["start"])


def _minutes(stretch: Sequence[Judged]) -> list[list[Judged]]:
    """Consecutive steps in groups of a minute or more; what remains joins the last."""
    groups: list[list[Judged]] = [[]]
    for step in stretch:
        if sum(j.seconds for j in groups[-1]) >= _MINUTE_SECONDS:
            groups.append([])
        groups[-1].append(step)
    if len(groups) > 1 and sum(j.seconds for j in groups[-1]) < _MINUTE_SECONDS:
        rest = groups.pop()
        groups[-1] += rest
    return groups


def _mean_output(steps: Sequence[Judged]) -> float:
    return _total(steps, "output_tokens_per_second") / sum(j.seconds for j in steps)


def best_minute(judged: Sequence[Judged]) -> BestMinute | None:
    """The minute in which most was held, of steps in time order; None without a clean one.

    Output goes on for a while when prompts no longer come: answers of prompts that were read before
    come faster than any load sustains. So a minute counts for no more output than its prompts go
    with, at the window's ratio of prompt to output tokens; where no request waited, for no less
    than chance explains (prompts scatter as 2 √(2 ÷ requests)). At the limit it is a minute of
    whole steps: of all that begin anywhere the best is luck.
    """
    usable = usable_steps(judged)
    ends = [j for j in usable if j.step["best_minute_tokens_per_second"]]
    if not ends:
        return None
    prompts_per_output = _prompts_per_output(usable)
    limited = [j for j in usable if j.regime in regimes.LIMITS]
    at_limit = _mean_output(limited) if limited else math.inf
    times = [j.step["end"] for j in judged]
    minutes = []
    for last in ends:
        end = last.step["end"]
        since = end - timedelta(seconds=_MINUTE_SECONDS + last.seconds)
        minute = judged[bisect_right(times, since) : bisect_right(times, end)]
        minutes.append(_one_minute(minute, last, prompts_per_output, at_limit))
    return max(minutes, key=lambda minute: minute.output)


def _one_minute(
    minute: Sequence[Judged], last: Judged, prompts_per_output: float, at_limit: float
) -> BestMinute:
    """The minute that ends in the `last` of the steps `minute`, which are a minute or more.

    `at_limit` is the output while requests waited.

    It was at the limit where requests waited, or where no less came out than when they do; where
    far more came out, the server was slowed when they did.
    """
    output = float(last.step["best_minute_tokens_per_second"])
    seconds = sum(j.seconds for j in minute)
    requests = _total(minute, "requests_per_second") * _MINUTE_SECONDS / seconds
    is_near = _NEAR_LIMIT * at_limit <= output <= at_limit / _SLOWED
    is_limited = is_near or any(j.step["waiting_max"] for j in minute)
    chance = 2 * math.sqrt(2 / requests) if requests else math.inf
    peak = output
    if is_limited:
        minute, chance = minute[-_shortest(minute) :], 0.0
        output = min(output, _mean_output(minute))
    balance = _prompts_per_output(minute) / prompts_per_output if prompts_per_output else 1.0
    balance = min(1.0, balance * (1 + chance))
    return BestMinute(
        output=output * balance,
        peak=peak * balance,
        running=sum((j.running or 0.0) * j.seconds for j in minute)
        / sum(j.seconds for j in minute),
        end=last.step["end"],
        is_limited=is_limited,
        requests=requests,
    )


def _shortest(steps: Sequence[Judged]) -> int:
    """How many of the last steps make up a minute."""
    ends = np.cumsum([j.seconds for j in reversed(steps)])
    return 1 + int(np.searchsorted(ends[:-1], _MINUTE_SECONDS))


def _prompts_per_output(steps: Sequence[Judged]) -> float:
    """Prompt tokens for each output token over these steps; 0 where neither was observed."""
    output = _total(steps, "output_tokens_per_second")
    return _total(steps, "prompt_tokens_per_second") / output if output else 0.0


def _total(steps: Sequence[Judged], rate: str) -> float:
    """What a rate adds up to over the steps that have it."""
    return float(sum((j.step[rate] or 0.0) * j.seconds for j in steps))


def on_plateau(loads: LoadPoints) -> Mask | None:
    """Which loads are on a plateau, within 5 % of the highest output; None where there is none.

    A plateau is where the lightest of them and the heaviest load of all are 1.4 × apart: from it
    on, output no longer grows, whatever heavier loads do to it. Short of that, three loads that are
    10 % apart and over which output grows by less than the 0.3th power of load.
    """
    is_near = loads.output >= _OF_PEAK * float(loads.output.max())
    running, output = loads.running[is_near], loads.output[is_near]
    if loads.heaviest >= _PLATEAU_SPAN * running[0]:
        return is_near
    if len(running) < _PLATEAU_LOADS or running[-1] < _LEAST_SPAN * running[0]:
        return None
    growth = np.polyfit(np.log(running), np.log(output), 1)[0]
    return is_near if growth <= _FLAT_GROWTH else None


def _limited_spans(judged: Sequence[Judged]) -> list[tuple[int, int]]:
    """Where the server was the limit in every scrape: first and last + 1 of consecutive steps.

    A lone step in between, in which it was the limit in part, does not end a span.
    """
    spans: list[tuple[int, int]] = []
    for i, step in enumerate(judged):
        if not _is_limited_throughout(step):
            continue
        last = spans[-1][1] if spans else -1
        is_on = last == i or (last == i - 1 and judged[i - 1].regime in regimes.LIMITS)
        if is_on and all(_is_beside(judged, k) for k in range(last - 1, i)):
            spans[-1] = spans[-1][0], i + 1
        else:
            spans.append((i, i + 1))
    return spans


def ceiling(judged: Sequence[Judged]) -> float | None:
    """The most requests that ran where scheduler or cache held more back; None where never."""
    limits = (regimes.SCHEDULER, regimes.KV)
    limited = [j for j in judged if j.regime in limits and _is_limited_throughout(j)]
    return max((float(j.step["running_max"]) for j in limited), default=None)


def _is_limited_throughout(step: Judged) -> bool:
    """Whether the server, by whatever limit, set the pace in all of the step.

    A full cache is enough: with it, the queue flickers as requests leave.
    """
    if step.regime not in regimes.LIMITS:
        return False
    is_full = step.regime == regimes.KV and step.step["kv_cache_ratio_mean"] >= _KV_FULL_RATIO
    return is_full or (step.step["waiting_share"] or 0.0) >= _ALWAYS


def _with_interval(limited: Sequence[Judged], name: str, basis: str, seed: int) -> Estimate:
    """The mean of a column over the steps; requests that live long make fewer independent minutes.

    Blocks are as long as a request lives, a minute at least.
    """
    values = np.asarray([j.step[name] for j in limited])
    weights = np.asarray([j.seconds for j in limited])
    mean, seconds = float(np.average(values, weights=weights)), float(weights.sum())
    requests = _total(limited, "requests_per_second")
    lifetime = _total(limited, "running_mean") / requests if requests else 0.0
    block_seconds = min(seconds, max(_BLOCK_SECONDS, lifetime))
    block = max(1, math.ceil(block_seconds / float(np.median(weights))))
    low, high = block_bootstrap(values, weights, block=min(block, len(values)), seed=seed)
    scatter = _MINUTE_SCATTER / math.sqrt(seconds / block_seconds)
    least = mean * max(_LEAST_HALF_WIDTH, scatter)
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


def _medians(values: Floats, own: Indices, groups: int) -> Floats:
    """The median of the seen values of each group; nan where none was."""
    is_seen = np.isfinite(values)
    counts = np.bincount(own[is_seen], minlength=groups)
    order = np.lexsort((values[is_seen], own[is_seen]))
    ordered = np.append(values[is_seen][order], math.nan)
    starts = np.cumsum(counts) - counts
    lower, upper = starts + np.maximum(counts - 1, 0) // 2, starts + counts // 2
    middle = (
        ordered[np.where(counts > 0, lower, -1)] + ordered[np.where(counts > 0, upper, -1)]
    ) / 2
    return np.asarray(middle)


def _relative_errors(output: Floats, own: Indices, counts: Indices) -> Floats:
    """Relative error of a load's output: scatter ÷ √steps, × 1.5 since neighbors are alike."""
    groups = len(counts)
    mean = np.bincount(own, weights=output, minlength=groups) / counts
    squares = np.bincount(own, weights=(output - mean[own]) ** 2, minlength=groups)
    scatter = np.sqrt(squares / np.maximum(counts - 1, 1)) / _medians(output, own, groups)
    error = np.minimum(0.5, _CORRELATION * scatter / np.sqrt(counts))
    return np.where(counts < 2, _MINUTE_SCATTER, error)
