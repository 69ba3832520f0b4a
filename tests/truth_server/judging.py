"""What the package says of a made-up window, held against its truth.

A two-sided answer is right where its interval holds the truth; "at least" and "at most" where the
truth is on that side. `held` is the best minute of output, at most the capacity: when a burst
drains, answers of prompts that were read before come faster than any load sustains (a half faster,
where prompts are long). The capacity within latency targets is judged by Poisson load of a mean
rate, where the package judges by moments: an end may be a tenth beside it.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tests.truth_server.cases import Case, Targets
from tests.truth_server.windows import Served
from vllm_capacity import open_window
from vllm_capacity.answers import answer
from vllm_capacity.bills import Terms
from vllm_capacity.estimate import Estimate
from vllm_capacity.plan import Ask, plan

USD_PER_HOUR = 2.0
FIGURES = ("capacity", "slo_capacity", "headroom", "utilization", "idle_usd", "replicas")
_ROUNDING, _HELD_SLACK, _FALLEN = 1e-9, 1.02, 0.97
_SLACK = {"slo_capacity": 0.1}
Row = dict[str, Any]


def written(made: Case, folder: Path) -> tuple[Path, Served]:
    """The window of a case, made on first use, and what its servers served."""
    path, note = folder / made.name, folder / f"{made.name}.json"
    if path.exists() and note.exists():
        return path, Served(**json.loads(note.read_text()))
    shutil.rmtree(path, ignore_errors=True)
    served = made.write(path)
    note.write_text(json.dumps(asdict(served)))
    return path, served


def estimates(path: Path, targets: Targets, *, with_plan: bool = True) -> dict[str, Row]:
    """The package's answers about one window, as estimates in dictionaries."""
    window = open_window(path)
    terms = Terms(
        usd_per_gpu_hour=Estimate.exact(USD_PER_HOUR, "given"),
        ttft_slo_seconds=targets.ttft_seconds,
        itl_slo_seconds=targets.itl_seconds,
    )
    told = answer(window, terms=terms)
    found = {
        "capacity": told["saturation"]["capacity_output_tokens_per_second"],
        "slo_capacity": told["slo"]["capacity_output_tokens_per_second"],
        "headroom": told["saturation"]["headroom_ratio"],
        "utilization": told["cost"]["utilisation"],
        "idle_usd": told["cost"]["idle_usd"],
        "counts": told["tokens"] | {"requests": told["requests"]},
        "allocation_usd": told["cost"]["allocation_usd"],
    }
    if with_plan:
        planned = plan(
            window,
            Ask(),
            terms=replace(terms, ttft_slo_seconds=None, itl_slo_seconds=None),
            told=told,
        )
        found["replicas"] = planned["replicas"]
        found["demand"] = planned["demand_output_tokens_per_second"]
    return found


def row(made: Case, served: Served, found: Mapping[str, Row]) -> Row:
    """One case: its truth, the answers, and whether each is right."""
    rate = served.output_tokens / served.seconds
    used = rate / made.fleet_capacity
    truth: dict[str, float | None] = {
        "capacity": made.fleet_capacity,
        "slo_capacity": made.fleet_slo_capacity,
        "headroom": 1 - used,
        "utilization": min(1.0, used),
        "idle_usd": _times(found.get("allocation_usd"), max(0.0, 1 - used)),
        "replicas": _replicas(found.get("demand"), made.truth.capacity),
    }
    told: Row = {
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
        "held": min(served.best_minute_fleet, made.fleet_capacity),
        "held_share": served.best_minute_fleet / made.fleet_capacity,
        "saturated_output": made.truth.saturated_output * made.engines,
        "falls": made.truth.saturated_output < _FALLEN * made.truth.capacity,
        "running_mean": served.running_mean,
        "running_at_95": made.truth.running_at_95,
    }
    for name in FIGURES:
        told |= _judged(name, found.get(name), truth[name])
    one = found.get("capacity") or {}
    told["miscounted"] = _miscount(found.get("counts"), served)
    told["contradicted"] = _contradiction(one, found.get("slo_capacity") or {}, told["held"])
    return {**told, "basis": one.get("basis", ""), "reason": one.get("reason", "")}


def _judged(name: str, found: Row | None, truth: float | None) -> Row:
    low, mid, high = (found[end] if found else None for end in ("low", "mid", "high"))
    return {
        f"{name}_truth": truth,
        f"{name}_low": low,
        f"{name}_mid": mid,
        f"{name}_high": high,
        f"{name}_form": form(low, mid, high),
        f"{name}_right": is_right(low, high, truth, slack_ratio=_SLACK.get(name, _ROUNDING)),
    }


def _miscount(counts: Row | None, served: Served) -> str:
    """Requests that are neither counted nor within what may be lost; empty where all are."""
    if counts is None or served.counted_requests is None:
        return ""
    finished, lost = counts["requests"]["finished"], counts["requests"]["lost"]
    missing = served.counted_requests - finished
    is_within = lost["high"] is None or lost["low"] <= missing <= lost["high"]
    return "" if is_within else f"{missing:+,.0f} requests, lost {lost['low']} to {lost['high']}"


def _contradiction(capacity: Row, slo_capacity: Row, held: float) -> str:
    """What the window itself says against its capacity; empty where nothing does."""
    most = capacity.get("high")
    if most is None:
        return ""
    if held > _HELD_SLACK * most:
        return f"a minute of {held:.4g} was held"
    within = slo_capacity.get("mid") or slo_capacity.get("low")
    return f"{within:.4g} is within targets" if within and within > _HELD_SLACK * most else ""


def form(low: float | None, mid: float | None, high: float | None) -> str:
    """How much an answer says: two-sided, at least, at most, or unknown."""
    if low is not None and high is not None:
        return "two-sided"
    if low is None and high is None:
        return "unknown" if mid is None else "point"
    return "at least" if high is None else "at most"


def is_right(
    low: float | None,
    high: float | None,
    truth: float | None,
    *,
    slack_ratio: float = _ROUNDING,
) -> bool | None:
    """Whether the truth is on the side of the ends that are given; None where nothing is said."""
    if truth is None or (low is None and high is None):
        return None
    slack = slack_ratio * abs(truth)
    return (low is None or low <= truth + slack) and (high is None or truth <= high + slack)


def _times(found: Row | None, share: float) -> float | None:
    return None if not found or found["mid"] is None else found["mid"] * share


def _replicas(demand: Row | None, capacity: float) -> float | None:
    """Replicas for the demand the plan found, by the true capacity, under the usual policy."""
    if not demand or demand["mid"] is None:
        return None
    policy = Ask().policy
    each = capacity * (1 - policy.headroom_ratio)
    return math.ceil(demand["mid"] * policy.lead_factor / each) + policy.spare_replicas
