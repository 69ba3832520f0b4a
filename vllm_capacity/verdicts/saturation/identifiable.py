"""Whether a window can tell a capacity that it did not reach: its load varied, and output bent.

A curve can be drawn through any scatter, and at a steady load the scatter is chance. Five things
are proven before a peak is extrapolated:

1. *The load varied by cause.* Requests that arrive at a constant rate finish in numbers that
   scatter like a Poisson count. Finished requests in blocks of a minute or more scatter more than
   that: chi-square dispersion test at about 0.1 %, and the rate itself varied by a fifth or more.
2. *Each load lasted* (`is_load_lasting`), or what ran and what came out do not belong together.
3. *Throughput bent.* A token took longer at the heavy loads than at the light ones, by a seventh
   at least and by more than blocks scatter: running requests ÷ output, each summed over blocks. Of
   a lightly loaded server that ratio is flat, and it may be anywhere below its knee.
4. *It bends towards a limit*: each further request slows tokens no less than those before
   (`is_easing`).
5. *One server was seen.* Throughput is concave in load: no load gives less than lighter and
   heavier ones let expect (`dipped`), or something outside slowed the server meanwhile.

Where one fails, what was seen is a lower bound, and no more than that can be known.
Source: the index of dispersion, Cox and Lewis 1966, §6.3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vllm_capacity.verdicts.saturation.curve import Floats, LoadPoints
from vllm_capacity.verdicts.saturation.loads import Mask
from vllm_capacity.verdicts.saturation.regimes import Judged

_BLOCK_SECONDS = 60.0
_LIFETIMES = 2.0
_LEAST_COUNT = 5.0
_MIN_BLOCKS = 3
_SIGNIFICANT = 3.1
_LEAST_VARIATION = 0.2
_LEAST_CORRELATION = 0.5
_LIGHT, _EASING, _MIN_LOADS_A_PART = 1 / 3, 0.6, 3
_LEAST_BEND, _BEND_ERRORS = 1.15, 2.5
_LEAST_DIP, _DIP_ERRORS = 0.1, 1.5


@dataclass(frozen=True)
class Blocks:
    """Consecutive usable steps added up: seconds, requests that finished, running × s, tokens."""

    seconds: Floats
    requests: Floats
    running_seconds: Floats
    tokens: Floats

    def __len__(self) -> int:
        return len(self.seconds)


def blocks(steps: Sequence[Judged]) -> Blocks | None:
    """Blocks of a minute, two request lifetimes and five requests or more; None for too little.

    `steps` are usable ones of one engine, in time order; a block may span a hole.
    """
    seen = [
        step
        for step in steps
        if step.step["requests_per_second"] is not None and step.running is not None
    ]
    columns = np.asarray(
        [
            (
                one.seconds,
                one.step["requests_per_second"] * one.seconds,
                (one.running or 0.0) * one.seconds,
                one.step["output_tokens_per_second"] * one.seconds,
            )
            for one in seen
        ],
        float,
    ).reshape(len(seen), 4)
    seconds, requests, running, _ = columns.sum(0)
    if not requests:
        return None
    least = max(_BLOCK_SECONDS, _LIFETIMES * running / requests, _LEAST_COUNT * seconds / requests)
    begun = np.cumsum(columns[:, 0]) - columns[:, 0]
    _, firsts = np.unique(np.floor(begun / least), return_index=True)
    if len(firsts) < _MIN_BLOCKS:
        return None
    return Blocks(*np.add.reduceat(columns, firsts, axis=0).T)


def is_load_varied(found: Blocks) -> bool:
    """Whether requests came at rates that differ by more than chance, and by enough to matter."""
    expected = found.seconds * found.requests.sum() / found.seconds.sum()
    freedom = len(found) - 1
    dispersion = float(((found.requests - expected) ** 2 / expected).sum()) / freedom
    # Wilson and Hilferty's cube root makes a chi-square normal.
    ninth = 2 / (9 * freedom)
    score = (dispersion ** (1 / 3) - (1 - ninth)) / math.sqrt(ninth)
    variation = math.sqrt(max(0.0, dispersion - 1) / float(expected.mean()))
    return score > _SIGNIFICANT and variation >= _LEAST_VARIATION


def is_load_lasting(found: Blocks) -> bool:
    """Whether a block's rate of requests may resemble that of the block before it.

    Loads that last no longer than a block are bursts: prompts are read first and answered later,
    so that what runs and what comes out at one time do not belong together. They make any server
    look bent.
    """
    rates = found.requests / found.seconds
    off = rates - rates.mean()
    correlation = float(off[1:] @ off[:-1]) / float(off @ off)
    return correlation + 1.64 / math.sqrt(len(rates)) >= _LEAST_CORRELATION


def has_bent(found: Blocks) -> bool:
    """Whether a token took clearly longer in the most loaded blocks than in the least loaded."""
    is_busy = found.tokens > 0
    running, tokens = found.running_seconds[is_busy], found.tokens[is_busy]
    load = running / found.seconds[is_busy]
    if len(load) < _MIN_BLOCKS:
        return False
    light, heavy = load <= np.quantile(load, 0.5), load >= np.quantile(load, 0.8)
    growth = _step_time(running[heavy], tokens[heavy]) / _step_time(running[light], tokens[light])
    error = math.hypot(_scatter(running, tokens, heavy), _scatter(running, tokens, light))
    return growth >= _LEAST_BEND and growth >= 1 + _BEND_ERRORS * error * growth


def is_easing(loads: LoadPoints) -> bool:
    """Whether each further request slows tokens far less at heavy loads than it did at light ones.

    That is no approach to a limit, where it slows them as much or more. A mixture of experts does
    so until every step reads all of them, and what comes after cannot be told from there.
    """
    step_times = loads.running / loads.output
    is_light = loads.running <= loads.heaviest * _LIGHT
    is_heavy = ~is_light
    is_light[is_heavy.argmax()] = True  # the parts share the load between them
    if is_light.sum() < _MIN_LOADS_A_PART or is_heavy.sum() < _MIN_LOADS_A_PART:
        return False
    light, heavy = (
        float(np.polyfit(loads.running[part], step_times[part], 1)[0])
        for part in (is_light, is_heavy)
    )
    return heavy < _EASING * light


def dipped(loads: LoadPoints) -> float | None:
    """The load at which output falls most below what its neighbors let expect; None for none.

    Throughput is concave in load, so a load gives no less than the straight line between a lighter
    and a heavier one. By a tenth and more than it scatters, that is no scatter: something outside
    slowed the server while it had that load, and the curve is not one server's.
    """
    if len(loads) < _MIN_BLOCKS:
        return None
    running, output = _upper_hull(np.append(0, loads.running), np.append(0, loads.output))
    ratio = loads.output / np.interp(loads.running, running, output)
    short = ratio - (1 - _LEAST_DIP - _DIP_ERRORS * loads.error)
    lowest = int(np.argmin(short))
    return float(loads.running[lowest]) if short[lowest] < 0 else None


def _upper_hull(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """The points of the smallest concave curve above all of them; x ascending."""
    hull: list[tuple[float, float]] = []
    for point in zip(x.tolist(), y.tolist(), strict=True):
        while len(hull) > 1 and _is_under(hull[-2], hull[-1], point):
            hull.pop()
        hull.append(point)
    ends = np.asarray(hull)
    return ends[:, 0], ends[:, 1]


def _is_under(
    left: tuple[float, float], middle: tuple[float, float], right: tuple[float, float]
) -> bool:
    rise = (middle[1] - left[1]) * (right[0] - left[0])
    return rise <= (right[1] - left[1]) * (middle[0] - left[0])


def _step_time(running_seconds: Floats, tokens: Floats) -> float:
    """Seconds for each output token of a running request, over all blocks given."""
    return float(running_seconds.sum() / tokens.sum())


def _scatter(running_seconds: Floats, tokens: Floats, which: Mask) -> float:
    """The relative standard error of `_step_time` over the blocks; 0 for a single one."""
    each = running_seconds[which] / tokens[which]
    if len(each) < 2:
        return 0.0
    return float(each.std(ddof=1) / each.mean() / math.sqrt(len(each)))
