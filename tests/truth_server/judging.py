"""The package's figures for a simulated window, compared with the truth.

A two-sided answer is right where its interval holds the truth; "at least" and "at most" where the
truth is on that side. Some servers give less past a peak (they thrash their cache, say): a constant
number of clients can get the peak, and open arrivals no more than an overload gets, since a queue
that formed once never clears. Either is a capacity, and an answer is right where it holds one of
the two or what lies between. `held` is the best minute of output, at most the capacity: when a
burst drains, answers of prompts that were read before come faster than any load sustains (a half
faster, where prompts are long). The throughput within latency targets has two truths, too, by
Poisson arrivals (no more than an overload gets) and by a constant number of clients; where the
package judges by moments, an end may be a tenth beside them.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from tests.truth_server.cases import Case, Targets
from tests.truth_server.windows import Served
from vllm_capacity.analysis import Analysis
from vllm_capacity.answer import Requests
from vllm_capacity.assumptions import Assumptions, Slo, pricing
from vllm_capacity.estimate import Estimate
from vllm_capacity.plan import PlanRequest, plan
from vllm_capacity.telemetry.window import open_window

USD_PER_HOUR = 2.0
FIGURES = ("capacity", "slo_throughput", "headroom", "utilization", "idle_usd", "replicas")
_ROUNDING, _HELD_SLACK, _FALLEN = 1e-9, 1.02, 0.97
_SLACK = {"slo_throughput": 0.1}
Row = dict[str, Any]


@dataclass(frozen=True)
class Found:
    """The package's answers about one window: estimates by name, and what was counted.

    `allocation_usd` and `demand` (output tokens/s) are the plain numbers that truths rest on.
    """

    estimates: Mapping[str, Estimate]
    requests: Requests
    allocation_usd: float | None
    demand: float | None


def written(made: Case, folder: Path) -> tuple[Path, Served]:
    """The window of a case, made on first use, and what its servers served."""
    path, note = folder / made.name, folder / f"{made.name}.json"
    if path.exists() and note.exists():
        return path, Served(**json.loads(note.read_text()))
    shutil.rmtree(path, ignore_errors=True)
    served = made.write(path)
    note.write_text(json.dumps(asdict(served)))
    return path, served


def answers(path: Path, targets: Targets, *, with_plan: bool = True) -> Found:
    """The package's answers about one window."""
    priced = Assumptions(pricing(USD_PER_HOUR), Slo(targets.ttft_seconds, targets.itl_seconds))
    analysis = Analysis.of(open_window(path), assumptions=priced)
    result = analysis.answer
    found = {
        "capacity": result.saturation.capacity,
        "slo_throughput": result.slo.throughput,
        "headroom": result.saturation.headroom_ratio,
        "utilization": result.cost.utilization,
        "idle_usd": result.cost.idle_usd,
    }
    demand = None
    if with_plan:
        planned = plan(replace(analysis, assumptions=replace(priced, slo=Slo())))
        found["replicas"] = planned.replicas
        demand = planned.demand_output_tokens_per_second.mid
    return Found(found, result.requests, result.cost.allocation_usd.mid, demand)


def row(made: Case, served: Served, found: Found | None) -> Row:
    """One case: its truth, the answers (None: it failed), and whether each is right."""
    rate = served.output_tokens / served.seconds
    most = made.fleet_capacity
    least = min(most, made.truth.saturated_output * made.engines)
    allocation, demand = (found.allocation_usd, found.demand) if found else (None, None)
    used, used_at_most = rate / most, rate / least
    truth: dict[str, tuple[float | None, float | None]] = {
        "capacity": (most, least),
        "slo_throughput": (
            min(least, made.fleet_within(is_closed=False)),
            made.fleet_within(is_closed=True),
        ),
        "headroom": (1 - min(1.0, used), 1 - min(1.0, used_at_most)),
        "utilization": (min(1.0, used), min(1.0, used_at_most)),
        "idle_usd": (_idle(allocation, used), _idle(allocation, used_at_most)),
        "replicas": (
            _replicas(demand, most / made.engines),
            _replicas(demand, least / made.engines),
        ),
    }
    result: Row = {
        "name": made.name,
        "kind": made.kind,
        "shape": made.shape,
        "server": made.server,
        "mix": made.mix,
        "hours": made.seconds / 3600,
        "scrape_seconds": made.scraping.interval,
        "missed": made.scraping.missed,
        "output_rate": rate,
        "used": used,
        "held": min(served.best_minute_fleet, most),
        "held_share": served.best_minute_fleet / most,
        "capacity_least": least,
        "falls": made.truth.saturated_output < _FALLEN * made.truth.capacity,
        "running_mean": served.running_mean,
        "running_at_95": made.truth.running_at_95,
    }
    estimates = found.estimates if found else {}
    for name in FIGURES:
        result |= _judged(name, estimates.get(name), *truth[name])
    result["miscounted"] = _miscount(found.requests, served) if found else ""
    result["contradicted"] = _contradiction(estimates, min(served.best_minute_fleet, least))
    capacity = estimates.get("capacity")
    return {
        **result,
        "basis": capacity.sources if capacity else "",
        "reason": capacity.reason if capacity else "",
    }


def _judged(name: str, found: Estimate | None, truth: float | None, other: float | None) -> Row:
    low, mid, high = (found.low, found.mid, found.high) if found else (None, None, None)
    return {
        f"{name}_truth": truth,
        f"{name}_low": low,
        f"{name}_mid": mid,
        f"{name}_high": high,
        f"{name}_form": form(low, mid, high),
        f"{name}_right": is_right(low, high, truth, other, slack_ratio=_SLACK.get(name, _ROUNDING)),
    }


def _miscount(counted: Requests, served: Served) -> str:
    """Requests that are neither counted nor within what may be lost; empty where all are."""
    if served.counted_requests is None:
        return ""
    lost, missing = counted.lost, served.counted_requests - (counted.finished or 0.0)
    is_within = lost.low <= missing <= lost.high
    return "" if is_within else f"{missing:+,.0f} requests, lost {lost.low} to {lost.high}"


def _contradiction(found: Mapping[str, Estimate], held: float) -> str:
    """What the window itself says against its capacity; empty where nothing does."""
    capacity, within_targets = found.get("capacity"), found.get("slo_throughput")
    if capacity is None or capacity.high is None:
        return ""
    if held > _HELD_SLACK * capacity.high:
        return f"a minute of {held:.4g} was held"
    within = (within_targets.mid or within_targets.low) if within_targets else None
    is_above = within is not None and within > _HELD_SLACK * capacity.high
    return f"{within:.4g} is within targets" if is_above else ""


def form(low: float | None, mid: float | None, high: float | None) -> str:
    """The form of an answer: two-sided, at least, at most, or unknown."""
    if low is not None and high is not None:
        return "two-sided"
    if low is None and high is None:
        return "unknown" if mid is None else "point"
    return "at least" if high is None else "at most"


def is_right(
    low: float | None,
    high: float | None,
    truth: float | None,
    other: float | None = None,
    *,
    slack_ratio: float = _ROUNDING,
) -> bool | None:
    """Whether the truth is on the side of the ends that are given; None if it is unknown.

    Where there is an `other` truth, what lies between the two will do.
    """
    if truth is None or (low is None and high is None):
        return None
    least, most = sorted((truth, truth if other is None else other))
    is_above = low is None or low <= most + slack_ratio * abs(most)
    is_below = high is None or high >= least - slack_ratio * abs(least)
    return is_above and is_below


def _idle(allocation: float | None, used: float) -> float | None:
    return None if allocation is None else allocation * max(0.0, 1 - used)


def _replicas(demand: float | None, capacity: float) -> float | None:
    """Replicas for the demand the plan found, by the true capacity, under the usual policy."""
    if demand is None:
        return None
    policy = PlanRequest().policy
    each = capacity * (1 - policy.headroom_ratio)
    return math.ceil(demand * policy.lead_factor / each) + policy.spare_replicas
