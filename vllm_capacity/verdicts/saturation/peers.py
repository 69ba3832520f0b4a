"""Capacities that engines did not show, borrowed from their peers.

A replica that was idle, or never near its limit, can do about what another one with the same model,
GPU and settings did. Only about, because GPUs of one type differ. In five clusters with more than
18,000 GPUs, performance within a cluster varied by 8 % on average, 22 % at most (Sinha et al., "Not
All GPUs Are Created Equal", SC 2022). So a borrowed capacity is 10 % wider on either side. It is an
interval or, if no peer reached its limit either, a lower bound from the best minute of the best
peer.

Two replicas with load show whether they are alike: at the same number of running requests they give
the same output. If they clearly do not, neither borrows from the other, even if their labels match.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from vllm_capacity.estimate import Estimate, Kind, listed
from vllm_capacity.figures.makes import Make
from vllm_capacity.verdicts.saturation.capacity import best_minute_bound, easing, is_easing
from vllm_capacity.verdicts.saturation.curve import LoadPoints
from vllm_capacity.verdicts.saturation.fit import BOUNDED, EXTRAPOLATED, SaturationFit

SPREAD_RATIO = 0.10
"""How far apart the speeds of two replicas with matching labels may be."""
_CLEAR_ERRORS = 2.0
_COMPARED = 200
_SURENESS = {kind: place for place, kind in enumerate(Kind)}

Lenders = Mapping[str, Sequence[str]]
"""For each engine, the peers that it may borrow from."""


def undisputed(
    fits: Sequence[SaturationFit], makes: Mapping[str, Make]
) -> tuple[SaturationFit, ...]:
    """The fits; an extrapolated capacity becomes a bound if the loads of a peer contradict it.

    A mixture of experts bends at light loads as if its limit were near. A replica with heavier
    loads shows that it is not (`is_easing`), and what holds for one holds for its peers.
    """
    easing_fits = [
        fit
        for fit in fits
        if fit.kind == BOUNDED
        and len(fit.levels.loads)
        and is_easing(fit.levels.loads, fit.kv_limit_running)
    ]
    return tuple(
        _disputed(fit, easing_fits, makes) if fit.kind == EXTRAPOLATED else fit for fit in fits
    )


def _disputed(
    fit: SaturationFit, easing_fits: Sequence[SaturationFit], makes: Mapping[str, Make]
) -> SaturationFit:
    """The fit, with a bound as its capacity if any of those fits is of a peer."""
    against = next((other for other in easing_fits if _are_peers(fit, other, makes)), None)
    if against is None:
        return fit
    capacity, running = best_minute_bound(fit.best, easing(against.levels.loads))
    return replace(fit, capacity=capacity, capacity_running=running, kind=BOUNDED)


def lenders(fits: Sequence[SaturationFit], makes: Mapping[str, Make]) -> dict[str, tuple[str, ...]]:
    """The peers of each engine that did not show its capacity, by name; others have no entry.

    An engine that something slowed has none either, because its peers do not show what it could do.
    It is compared with at most 400 others, because comparing all pairs would take most of the time
    of an answer for a thousand engines: half are those with a known capacity or the highest bounds,
    half are spread over the rest.
    """
    ranked = sorted(fits, key=lambda fit: (not fit.capacity.is_known, -(fit.capacity.low or 0.0)))
    places = {fit.engine: place for place, fit in enumerate(fits)}

    def peers(fit: SaturationFit) -> tuple[str, ...]:
        alike = [each for each in ranked if each is not fit and _have_like_makes(fit, each, makes)]
        rest = alike[_COMPARED:]
        compared = alike[:_COMPARED] + rest[:: max(1, math.ceil(len(rest) / _COMPARED))]
        loads = fit.levels.loads
        names = (each.engine for each in compared if are_as_fast(loads, each.levels.loads))
        return tuple(sorted(names, key=places.__getitem__))

    return {
        fit.engine: peers(fit) for fit in fits if not fit.capacity.is_known and not fit.slowed.any()
    }


def unloaded(fits: Sequence[SaturationFit]) -> frozenset[str]:
    """The engines without any load to judge."""
    return frozenset(fit.engine for fit in fits if not fit.curve.any())


def _are_peers(one: SaturationFit, other: SaturationFit, makes: Mapping[str, Make]) -> bool:
    is_alike = _have_like_makes(one, other, makes)
    return is_alike and are_as_fast(one.levels.loads, other.levels.loads)


def _have_like_makes(one: SaturationFit, other: SaturationFit, makes: Mapping[str, Make]) -> bool:
    own, others = makes.get(one.engine), makes.get(other.engine)
    return own is not None and others is not None and own.is_like(others)


def are_as_fast(one: LoadPoints, other: LoadPoints) -> bool:
    """Whether two engines gave similar output at similar load, or their loads cannot show it.

    Their outputs at the loads of `one` that lie within those of `other` may differ by a tenth, plus
    the scatter of the loads.
    """
    if not len(one) or not len(other):
        return True
    is_between = (one.running >= other.running[0]) & (one.running <= other.heaviest)
    if not is_between.any():
        return True
    expected = np.interp(one.running[is_between], other.running, other.output)
    ratio = float(np.median(one.output[is_between] / expected))
    error = math.hypot(float(np.median(one.error[is_between])), float(np.median(other.error)))
    return abs(math.log(ratio)) <= SPREAD_RATIO + _CLEAR_ERRORS * error


class Loan(Struct, frozen=True):
    """What an engine can lend: its own figure, and what it would be for a slower or faster engine.

    For a capacity all three are the same. Within latency targets a slower engine loses more than
    its speed, because it misses them earlier.
    """

    own: Estimate
    slower: Estimate
    faster: Estimate

    @property
    def low(self) -> float | None:
        """The least that a peer can do."""
        least = self.slower.low
        return None if least is None else least * (1 - SPREAD_RATIO)

    @property
    def high(self) -> float | None:
        """The most that a peer can do."""
        most = self.faster.high
        return None if most is None else most * (1 + SPREAD_RATIO)

    @property
    def is_known(self) -> bool:
        """Whether it is an interval, not just a bound."""
        return self.own.is_known and self.low is not None and self.high is not None


def completed(
    own: Mapping[str, Estimate],
    lent_by: Lenders,
    *,
    idle: frozenset[str],
    slower: Mapping[str, Estimate] | None = None,
    faster: Mapping[str, Estimate] | None = None,
) -> dict[str, Estimate]:
    """The figure of each engine: its own, or what its peers suggest.

    For an engine outside `idle`, whose load was observed, only a lower bound is completed: its
    peers do not show why its figure is unknown or bounded from above.
    """
    loans = {
        name: Loan(each, (slower or own)[name], (faster or own)[name]) for name, each in own.items()
    }
    return {
        name: _completed(each, {peer: loans[peer] for peer in lent_by.get(name, ())})
        if name in idle or each.low is not None
        else each
        for name, each in own.items()
    }


def _completed(own: Estimate, loans: Mapping[str, Loan]) -> Estimate:
    """An engine's own figure if known; else its peers', but at least its own bound."""
    if own.high is not None:
        return own
    known = {name: loan for name, loan in loans.items() if loan.is_known}
    if not known:
        return _bounded(own, loans)
    best = min(_SURENESS[loan.own.kind or Kind.EXTRAPOLATED] for loan in known.values())
    surest = {
        name: loan
        for name, loan in known.items()
        if _SURENESS[loan.own.kind or Kind.EXTRAPOLATED] == best
    }
    low = min(loan.low or 0.0 for loan in surest.values())
    mid = sum(loan.own.mid or 0.0 for loan in surest.values()) / len(surest)
    high = max(loan.high or 0.0 for loan in surest.values())
    least = own.low or 0.0
    if least > high:
        return own  # it did more than its peers can: not alike
    basis = (
        f"as for {listed(list(surest))}, which {_serve(surest)} the same model, "
        f"± {SPREAD_RATIO * 100:.0f} %"
    )
    kind = max(
        Kind.ASSUMED,
        *(loan.own.kind or Kind.ASSUMED for loan in surest.values()),
        key=_SURENESS.__getitem__,
    )
    return Estimate.known(max(low, least), max(mid, least), high, basis, kind=kind)


def _bounded(own: Estimate, loans: Mapping[str, Loan]) -> Estimate:
    """At least what the best of its peers was seen to do, minus the possible difference."""
    lows = {name: loan.low for name, loan in loans.items() if loan.low}
    if not lows:
        return own
    best = max(lows, key=lambda name: lows[name] or 0.0)
    least = lows[best] or 0.0
    if own.low is not None and own.low >= least:
        return own
    basis = f"observed on {best}, which serves the same model, minus {SPREAD_RATIO * 100:.0f} %"
    return Estimate.at_least(least, basis, reason=own.reason)


def _serve(names: Mapping[str, Loan]) -> str:
    return "serves" if len(names) == 1 else "serve"
