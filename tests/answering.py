"""A window's answer, bill and plan as in JSON, for tests."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from vllm_capacity.analysis import Analysis
from vllm_capacity.assumptions import Assumptions, Pricing, Slo
from vllm_capacity.estimate import Estimate
from vllm_capacity.facts.fleet import Rule
from vllm_capacity.plan import PlanRequest
from vllm_capacity.plan import plan as plan_of
from vllm_capacity.record import plain
from vllm_capacity.telemetry.window import Window


def assumed(
    usd_per_gpu_hour: Estimate | None = None,
    gpus_per_engine: float = 1.0,
    ttft_slo_seconds: float | None = None,
    itl_slo_seconds: float | None = None,
    fleet: tuple[Rule, ...] = (),
) -> Assumptions:
    """The assumptions of a test."""
    pricing = Pricing(usd_per_gpu_hour, gpus_per_engine, fleet)
    return Assumptions(pricing, Slo(ttft_slo_seconds, itl_slo_seconds))


def answer(
    window: Window,
    *,
    start: datetime | None = None,
    end: datetime | None = None,
    terms: Assumptions | None = None,
) -> dict[str, Any]:
    """The answer of the window, or of its part."""
    return Analysis.of(window, start, end, terms).answer.as_dict()


def cost_by(
    window: Window,
    *,
    by: str,
    start: datetime | None = None,
    end: datetime | None = None,
    terms: Assumptions | None = None,
) -> dict[str, Any]:
    """The bill by a label: `whole`, and `parts` by its value."""
    bill = Analysis.of(window, start, end, terms).bill_by(by)
    found: dict[str, Any] = plain({"whole": bill.whole, "parts": bill.parts})
    return found


def plan(
    window: Window,
    request: PlanRequest,
    *,
    start: datetime | None = None,
    end: datetime | None = None,
    terms: Assumptions | None = None,
) -> dict[str, Any]:
    """The plan of the window, or of its part."""
    return plan_of(Analysis.of(window, start, end, terms), request).as_dict()
