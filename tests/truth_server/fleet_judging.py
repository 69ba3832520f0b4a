"""The package's answers for a simulated fleet, compared with its truth and with replays.

A recommendation is "at least N of these replicas can be removed". To test it, the requests of the
window are served again by the remaining replicas, the slowest ones. It is wrong if requests wait
for seconds, or the latency target is missed, and neither was so on all replicas. `simulated` counts
recommendations for which the package's own replay (verdicts/replay.py) has a result,
`simulated_right` those whose result is what happened.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tests.truth_server.fleets import Fleet, Kept, Service, serve, write
from tests.truth_server.judging import USD_PER_HOUR, form, is_right
from vllm_capacity.analysis import Analysis
from vllm_capacity.assumptions import Assumptions, Slo, pricing
from vllm_capacity.estimate import Estimate
from vllm_capacity.telemetry.window import open_window
from vllm_capacity.verdicts import replay
from vllm_capacity.verdicts.sizing import MINUTE_SECONDS, QUARTER_SECONDS, Policy, Surplus

FIGURES = ("utilization", "idle_usd", "removable")
_SLACK = 0.005  # presence is only known to within a scrape
Row = dict[str, object]


@dataclass(frozen=True)
class Replay:
    """The requests of one model on the replicas that stay: 0 removed where none is said to go."""

    model: str
    replicas: int
    removed: int
    before: Kept
    after: Kept
    is_slo_kept: bool

    @property
    def is_right(self) -> bool:
        """Whether it went no worse than before."""
        return self.is_slo_kept and (self.before.fell_behind or not self.after.fell_behind)


def judged(made: Fleet, path: Path, *, policy: Policy | None = None) -> tuple[Row, list[Replay]]:
    """One fleet: a row of what was said and whether it is right, and the replays."""
    policy = policy or Policy()
    kept = write(path, made)
    slo = Slo(made.targets.ttft_seconds, made.targets.itl_seconds)
    analysis = Analysis.of(open_window(path), assumptions=Assumptions(pricing(USD_PER_HOUR), slo))
    surplus, cost = analysis.surplus(policy), analysis.answer.cost
    rate = sum(one.output_tokens for one in kept.values()) / made.seconds
    most, least = (
        sum(service.capacities(made.seconds)[end] for service in made.services) for end in (0, 1)
    )
    used = [min(1.0, rate / most), min(1.0, rate / least)]
    removable = [true_removable(made, kept, policy, end) for end in (0, 1)]
    row: Row = {
        "name": made.name,
        "replicas": made.replicas,
        "models": len(made.services),
        "hours": made.seconds / 3600,
        "shape": made.shape,
        "servers": ", ".join(f"{one.server} {one.mix}" for one in made.services),
        "has_slo": bool(slo.targets),
        "used": used[0],
    }
    row |= _figure("utilization", cost.utilization, *used)
    seen = _seen(made, analysis)
    row |= _figure(
        "idle_usd", cost.idle_usd, *(seen * _idle_usd(made, kept, end) for end in (0, 1))
    )
    row |= _figure("removable", surplus.removable_replicas, *removable)
    row["needed_width"] = _width(surplus.needed_replicas)
    carried_out = replays(made, kept, surplus)
    said = [one for one in carried_out if surplus.by_model[one.model].replays]
    row["simulated"] = len(said)
    row["simulated_right"] = sum(
        one.is_right == surplus.by_model[one.model].replays[-1].is_kept for one in said
    )
    return row, carried_out


def _seen(made: Fleet, analysis: Analysis) -> float:
    """The share of the time that lies between scrapes, and is billed: all but an interval or so.

    All of it where more is missing, which would be a fault of the package.
    """
    hours = analysis.answer.window.hours
    missing = made.seconds - 3600 * hours
    return 1 - missing / made.seconds if 0 <= missing <= 1.6 * made.scrape_seconds else 1.0


def _idle_usd(made: Fleet, kept: Mapping[str, Kept], end: int) -> float:
    """The bill for what was not used, of each model by its own capacity."""
    return sum(
        USD_PER_HOUR
        * service.replica_hours(made.seconds)
        * (
            1
            - min(
                1.0,
                kept[service.model].output_tokens
                / made.seconds
                / service.capacities(made.seconds)[end],
            )
        )
        for service in made.services
    )


def _figure(name: str, said: Estimate, truth: float, other: float) -> Row:
    return {
        f"{name}_truth": truth,
        f"{name}_low": said.low,
        f"{name}_high": said.high,
        f"{name}_form": form(said.low, said.mid, said.high),
        f"{name}_right": is_right(said.low, said.high, truth, other, slack_ratio=_SLACK),
        f"{name}_width": _width(said),
    }


def _width(said: Estimate) -> float | None:
    return said.high / said.low if said.low and said.high is not None else None


def true_removable(made: Fleet, kept: Mapping[str, Kept], policy: Policy, end: int) -> float:
    """By the true capacities (the most, or what overloads get) and what really was asked."""
    length = MINUTE_SECONDS if _is_brief(made) else QUARTER_SECONDS
    return sum(
        _removable(service, made, kept[service.model].asked(length), policy, end)
        for service in made.services
    )


def _is_brief(made: Fleet) -> bool:
    targets = (made.targets.ttft_seconds, made.targets.itl_seconds)
    return made.seconds < 2 * 3600 or any(one is not None for one in targets)


def _removable(service: Service, made: Fleet, asked: float, policy: Policy, end: int) -> float:
    there = [member for member in service.members if member.end == math.inf]
    each = service.capacity[end] * sum(member.speed for member in there) / len(there)
    if any(target is not None for target in (made.targets.ttft_seconds, made.targets.itl_seconds)):
        within = service.truth.within(
            made.targets.ttft_seconds, made.targets.itl_seconds, is_closed=end == 0
        )
        each = min(each, within)
    if not asked or not each:
        return max(0.0, len(there) - max(1, policy.spare_replicas)) if not asked else 0.0
    needed = math.ceil(asked / (each * (1 - policy.headroom_ratio))) + policy.spare_replicas
    return max(0.0, len(there) - max(1, needed))


def replays(made: Fleet, kept: Mapping[str, Kept], surplus: Surplus) -> list[Replay]:
    """The recommendation of each model of which at least one replica is said to go, carried out."""
    found = []
    for service in made.services:
        there = sum(member.end == math.inf for member in service.members)
        removed = int(surplus.by_model[service.model].removable_replicas.low or 0)
        if not removed:
            continue
        before = kept[service.model]
        after = serve(service.on(there - removed), made.seconds, seed=made.seed + 7)
        is_kept = after.attained(made.targets) or not before.attained(made.targets)
        found.append(Replay(service.model, there, removed, before, after, is_kept))
    return found


@dataclass(frozen=True)
class Trial:
    """The package's replay of that many replicas of a model; None without one.

    The requests of the window came `scale` times as often; `kept_up` is what happened, None where
    that was not tried.
    """

    name: str
    model: str
    models: int
    there: int
    replicas: int
    scale: float
    has_slo: bool
    said: bool | None
    kept_up: bool | None


def trials(made: Fleet, path: Path) -> list[Trial]:
    """Of each model: replicas that are too few for its busiest time, and enough, each tried."""
    kept = write(path, made)
    slo = Slo(made.targets.ttft_seconds, made.targets.itl_seconds)
    analysis = Analysis.of(open_window(path), assumptions=Assumptions(pricing(USD_PER_HOUR), slo))
    found = []
    for service in made.services:
        there = [one for one in service.members if one.end == math.inf]
        each = service.capacity[1] * min(one.speed for one in there)
        for scale in (1.0, 2.0):
            enough = math.ceil(scale * kept[service.model].asked(QUARTER_SECONDS) / each)
            for count in sorted({max(1, enough - 1), max(1, enough)}):
                if count > len(there):
                    continue
                said = _said(analysis, service.model, count, scale)
                kept_up = None
                if said is not None:
                    own = scaled(service.on(count), scale, made.seed)
                    after = serve(own, made.seconds, seed=made.seed + 7)
                    kept_up = after.attained(made.targets) and not after.fell_behind
                found.append(
                    Trial(
                        made.name, service.model, len(made.services), len(there), count, scale,
                        bool(slo.targets), said, kept_up,
                    )
                )  # fmt: skip
    return found


def _said(analysis: Analysis, model: str, count: int, scale: float) -> bool | None:
    pool = analysis.pools[model]
    if pool.served is None:
        return None
    start = pool.busiest.peak_start
    tried = replay.replays(pool.served, replicas=count, most=count, busiest=start, scale=scale)
    return tried[-1].is_kept if tried else None


def scaled(service: Service, scale: float, seed: int) -> Service:
    """The same service asked so many times as often: requests come again, some seconds apart."""
    rng = np.random.default_rng((seed, 53))
    whole, rest = divmod(scale, 1.0)
    copies = [np.arange(len(service.times))] * int(whole)
    if rest:
        copies.append(np.flatnonzero(rng.random(len(service.times)) < rest))
    places = np.concatenate(copies)
    times = service.times[places]
    later = np.arange(len(places)) >= len(service.times)
    times = np.where(later, times + rng.uniform(0, 30, len(times)), times)
    order = np.argsort(times, kind="stable")
    shuffled = np.where(later, rng.permutation(len(places)) % len(service.times), places)
    prompts, outputs = service.prompts[shuffled], service.outputs[shuffled]
    return replace(service, times=times[order], prompts=prompts[order], outputs=outputs[order])
