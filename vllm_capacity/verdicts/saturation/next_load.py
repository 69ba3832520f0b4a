"""Which load to test next: the one that would narrow the interval of the capacity most.

The algorithm:

1. Until a bend can be seen, loads are spread widely: 12 × the heaviest one so far, or the most that
   may be tried.
2. Then each candidate is simulated. The location of the peak is unknown: it may be at the low end,
   the middle or the high end of its interval. In each case the load would give what the curve
   predicts, but no more than that peak. The table with that row is fitted again; the candidate with
   the narrowest intervals on average wins, or the lightest that does about as well.
3. A second load is found the same way, as if the first had given its expected output.

A load far beyond the limit does no harm: its clients wait, and a row with waiting requests proves
the plateau.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import polars as pl
from msgspec import Struct
from msgspec.structs import replace

from vllm_capacity.estimate import Estimate
from vllm_capacity.verdicts.saturation.curve import LoadPoints, expected_output, extrapolated_peak
from vllm_capacity.verdicts.saturation.load_test import LoadTest, saturation_of

GOOD_ENOUGH = 1.15
"""High ÷ low of a capacity that needs no further load test."""
_FIRST, _SPREAD = 8.0, 12.0
_FEW_LOADS = 3
_AWAY = (1.5, 2.0, 3.0, 4.0, 6.0, 8.0)
_CASES = (0.25, 0.5, 0.25)
"""Probabilities that the peak is at the low end, the middle and the high end of its interval."""
_ABOUT_AS_WELL = 1.02
_WORTH = 0.97
"""A load is worth testing if it would shrink the interval to this share or less."""
_UNKNOWN_WIDTH = 4.0
_PAST_LIMIT = 1.25
_SEPARATE = 1.15


class NextLoad(Struct, frozen=True):
    """A load to test: `clients` requests in flight all the time.

    `high_over_low` is the expected width of the capacity's interval afterwards, high ÷ low; None if
    it cannot be predicted yet.
    """

    clients: int
    high_over_low: float | None


def next_loads(
    points: pl.DataFrame, *, most_clients: float | None = None, count: int = 2
) -> tuple[NextLoad, ...]:
    """Up to `count` loads to test next, best first, for a frame of loads (`fit_points`).

    No heavier than `most_clients`, if given. Empty if the capacity is known well enough
    (`GOOD_ENOUGH`), or no remaining load would be informative.
    """
    return next_loads_of(LoadTest.of(points), most_clients=most_clients, count=count)


def next_loads_of(
    test: LoadTest, *, most_clients: float | None = None, count: int = 2
) -> tuple[NextLoad, ...]:
    """`next_loads` for a load test, or for a window's loads treated as one."""
    found: list[NextLoad] = []
    for _ in range(count):
        best = _next(test, most_clients)
        if best is None:
            break
        found.append(best)
        test = _with(test, best.clients, _expected(test, best.clients)[1])
    return tuple(found)


def _next(test: LoadTest, most: float | None) -> NextLoad | None:
    loads = test.loads
    if len(loads) < _FEW_LOADS:
        first = _FIRST if not len(loads) else _SPREAD * loads.heaviest
        clients = round(first if most is None else min(first, most))
        is_new = not len(loads) or clients > _SEPARATE * loads.heaviest
        return NextLoad(clients, None) if is_new else _between(test)
    capacity = saturation_of(test).capacity
    if _width(capacity) <= GOOD_ENOUGH:
        return None
    candidates = _candidates(test, most)
    if not candidates:
        return _between(test)
    widths = {clients: _expected_width(test, clients) for clients in candidates}
    least = min(widths.values())
    clients = min(each for each, width in widths.items() if width <= _ABOUT_AS_WELL * least)
    return NextLoad(clients, widths[clients]) if least < _WORTH * _width(capacity) else None


def _between(test: LoadTest) -> NextLoad | None:
    """The load in the middle of the widest gap; None if no gap is wide."""
    running = test.loads.running
    if len(running) < 2:
        return None
    gaps = running[1:] / running[:-1]
    widest = int(np.argmax(gaps))
    clients = round(math.sqrt(running[widest] * running[widest + 1]))
    is_new = all(max(clients / n, n / clients) > _SEPARATE for n in running)
    width = _expected_width(test, clients)
    is_worth = is_new and width < _WORTH * _width(saturation_of(test).capacity)
    return NextLoad(clients, width) if is_worth else None


def _candidates(test: LoadTest, most: float | None) -> list[int]:
    """Loads beyond the heaviest one, and in the middle of the gaps around the highest output."""
    loads = test.loads
    limits = [limit * _PAST_LIMIT for limit in (test.kv_limit, test.most_running) if limit]
    farthest = min([*limits, *([] if most is None else [most])], default=math.inf)
    tried = [min(away * loads.heaviest, farthest) for away in _AWAY]
    top = int(np.argmax(loads.output))
    near = loads.running[max(0, top - 1) : top + 2]
    tried += [math.sqrt(one * other) for one, other in pairwise(near)]
    whole = {round(each) for each in tried if each >= 1}
    return sorted(c for c in whole if all(max(c / n, n / c) > _SEPARATE for n in loads.running))


def _expected_width(test: LoadTest, clients: int) -> float:
    """High ÷ low of the capacity expected after testing that load (geometric mean)."""
    logs = [
        math.log(_width(saturation_of(_with(test, clients, output)).capacity))
        for output in _expected(test, clients)
    ]
    return math.exp(sum(share * log for share, log in zip(_CASES, logs, strict=True)))


def _expected(test: LoadTest, clients: float) -> Sequence[float]:
    """The expected output of a load, for each possible position of the peak (`_CASES`)."""
    loads = test.loads
    expected = expected_output(loads, clients) if len(loads) else None
    if expected is None:
        linear = clients * float(loads.output[-1]) / loads.heaviest if len(loads) else clients
        return (linear, linear, linear)
    peak = extrapolated_peak(loads, test.kv_limit, prior=test.prior)
    if peak is None:
        return expected
    seen = float(loads.output.max())
    return [
        min(expected[1], max(seen, end)) if clients > loads.heaviest else expected[1]
        for end in (peak.low, peak.mid, peak.high)
    ]


def _with(test: LoadTest, clients: float, output: float) -> LoadTest:
    """The load test with one more load, which is not known to be at the limit."""
    loads = test.loads
    place = int(np.searchsorted(loads.running, clients))
    error = float(np.median(loads.error)) if len(loads) else 0.0
    return replace(
        test,
        loads=LoadPoints(
            np.insert(loads.running, place, clients),
            np.insert(loads.output, place, output),
            np.insert(loads.error, place, error),
        ),
        kv_ratio=np.insert(test.kv_ratio, place, np.nan),
        limits=(*test.limits[:place], None, *test.limits[place:]),
    )


def _width(capacity: Estimate) -> float:
    """High ÷ low; for an unknown capacity, wider than any known one."""
    if capacity.low is None or capacity.high is None:
        return _UNKNOWN_WIDTH
    return capacity.high / capacity.low
