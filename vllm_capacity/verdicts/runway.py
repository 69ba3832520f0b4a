"""For how long a number of replicas is enough: what they carry, and when growing demand passes it.

What `n` replicas carry is (n − spares) × capacity × (1 − headroom), less what demand grows by while
a replica starts: the sizing rule of `sizing.py`, read backwards. Months are counted at a steady
growth that somebody assumes; they are arithmetic on that assumption, no forecast.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from vllm_capacity.errors import InputError
from vllm_capacity.estimate import Estimate
from vllm_capacity.verdicts.sizing import Policy


@dataclass(frozen=True)
class Runway:
    """What a number of replicas carries.

    `carried` in the unit of the capacity, `times_demand` as a multiple of today's demand, `months`
    until demand has grown to that: below 0 where it already has, unknown where nothing grows.
    """

    replicas: int
    carried: Estimate
    times_demand: Estimate
    months: Estimate


def runways(
    demand: Estimate,
    capacity: Estimate,
    *,
    policy: Policy,
    counts: Iterable[int],
    growth_ratio_per_month: float,
) -> tuple[Runway, ...]:
    """A runway of each number of replicas, spares included; demand and capacity in one unit."""
    if not growth_ratio_per_month >= 0:
        raise InputError(f"Growth per month must be 0 or more, not {growth_ratio_per_month:g}.")
    found = []
    for count in counts:
        working = count - policy.spare_replicas
        carried = _carried(capacity, working, policy)
        times = carried.divided_by(demand)
        found.append(Runway(count, carried, times, _months(times, growth_ratio_per_month)))
    return tuple(found)


def _carried(capacity: Estimate, working: int, policy: Policy) -> Estimate:
    if working < 1:
        return Estimate.exact(0.0, f"all are spares ({policy.spare_replicas})")
    share = (1 - policy.headroom_ratio) / policy.lead_factor
    return capacity.scaled(working * share, f"{working} replicas at {share:.3g} of their capacity")


def _months(times: Estimate, growth: float) -> Estimate:
    if growth == 0:
        return Estimate.unknown("demand is taken not to grow")
    if times.low is not None and times.low <= 0:
        return Estimate.unknown("they carry nothing")
    basis = f"demand growing by {growth:.0%} per month"
    return times.map(lambda ratio: math.log(ratio) / math.log1p(growth), basis)
