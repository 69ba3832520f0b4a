"""Every chart of a handmade analysis and plan, and of some in which nothing is known."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from functools import cache
from typing import Any

import numpy as np
import polars as pl
from answer_by_hand import (
    ANSWER,
    COSTS,
    ESTIMATES,
    START,
    STEPS,
    analysis,
    answer,
    emptied,
    estimate,
    unknown,
)
from msgspec.structs import replace

from vllm_capacity.analysis import Analysis
from vllm_capacity.estimate import Estimate
from vllm_capacity.figures.steps import STEP_SCHEMA
from vllm_capacity.load_curve import LoadCurve
from vllm_capacity.plan import Plan
from vllm_capacity.render.charts import charts_of
from vllm_capacity.render.charts.base import Chart
from vllm_capacity.verdicts.demand.forecast import Ahead, DemandAhead
from vllm_capacity.verdicts.hardware.compare import Option
from vllm_capacity.verdicts.hardware.interactivity import P95, GpuCurve, GpuLoad, Interactivity
from vllm_capacity.verdicts.saturation.curve import LoadPoints
from vllm_capacity.verdicts.saturation.fit import SaturationFit
from vllm_capacity.verdicts.saturation.loads import LoadLevels
from vllm_capacity.verdicts.saturation.regimes import judged_steps
from vllm_capacity.verdicts.sizing import Policy, Surplus

Spec = dict[str, Any]

PRICED = "median of 3 on-demand offers (2026-11-09), from $1.19 RunPod to $2.49 Lambda"
NO_PRICE = "no on-demand price of L40-PCIe in gpu_prices.csv"

CURVE = pl.DataFrame(
    {
        "running_requests": [float(n) for n in range(1, 28)],
        **{
            end: [most * n / (n + 9) for n in range(1, 28)]
            for end, most in {"low": 280, "mid": 300, "high": 320}.items()
        },
    }
)


def fitted(*, fit: SaturationFit | None = None, **changes: Any) -> LoadCurve:
    """The curve of an engine r1/0, whose capacity is half of the whole window's."""
    own = SaturationFit(
        engine="r1/0",
        steps=judged_steps(pl.DataFrame(schema=STEP_SCHEMA)),
        curve=np.zeros(0, bool),
        levels=LoadLevels(LoadPoints.of([], []), LoadPoints.of([], []).running, ()),
        kv_limit_running=None,
        capacity=estimate(150.0, 140.0, 160.0),
        capacity_running=estimate(13.0),
        kind="measured",
        best=None,
        slowed=np.zeros(0, bool),
        left_out=0,
    )
    of_fit = set(SaturationFit.__struct_fields__) - {"curve", "steps"}
    fit = replace(fit or own, **{name: changes.pop(name) for name in of_fit & set(changes)})
    steps = pl.DataFrame(schema=STEP_SCHEMA)
    made = {"engines": 1, "curve": CURVE, "points": STEPS, "steps": steps, "preemptions": 7.0}
    return LoadCurve(fit=fit, **made | changes)


def option(gpu: str, worth: Estimate, reason: str = "") -> Option:
    return Option(
        gpu=gpu,
        dtype="bf16",
        price_row=PRICED,
        usd_per_gpu_hour=unknown(reason) if reason else estimate(1.5, 1.2, 2.5),
        throughput_ratio=estimate(2.0, 1.5, 2.6),
        slo_output_tokens_per_second=estimate(300.0),
        tokens_per_usd=worth,
        usd_per_request=estimate(0.001),
        replicas=estimate(3.0, 2.0, 4.0),
        usd_per_month=unknown(reason) if reason else estimate(3000.0),
        reason=reason,
    )


OPTIONS = (
    option("H100-80GB-SXM", estimate(800_000.0, 600_000.0, 900_000.0)),
    option("A100-80GB-PCIe", estimate(500_000.0, 300_000.0, 700_000.0)),
    option("L4-PCIe", estimate(200_000.0, 150_000.0, 300_000.0)),
    option("L40-PCIe", unknown(NO_PRICE), NO_PRICE),
    option("T4-PCIe", unknown("no kernel"), "T4-PCIe cannot run bf16 weights"),
)
CASES = {
    "now": estimate(3.0),
    "demand doubles": estimate(5.0, 4.0, 6.0),
    "prefix caching off": unknown("no hit ratio was observed"),
}
MIDNIGHT = START.replace(hour=0)
HOURS = pl.DataFrame(
    {
        "ts": [MIDNIGHT + timedelta(hours=i) for i in range(100)],
        "requests": [1000.0 + 500 * (i % 24) for i in range(100)],
        "cost_usd": [2.0] * 100,
        "utilization_ratio": [(i % 24) / 24 for i in range(100)],
    },
    schema_overrides={"ts": pl.Datetime("us", "UTC")},
)
AHEAD = DemandAhead(
    forecast=tuple(
        Ahead(MIDNIGHT + timedelta(hours=100 + i), 900.0, 1000.0 + i, 2000.0) for i in range(24)
    ),
    method="by hand",
    coverage_measured=0.9,
    reason="",
)
NONE_AHEAD = DemandAhead(None, "", None, "the reason")
INTERACTIVITY = Interactivity(
    tuple(
        GpuCurve(
            gpu,
            P95,
            is_measured=True,
            loads=tuple(
                GpuLoad(
                    running,
                    estimate(300.0 * running),
                    estimate(itl * running, 0.9 * itl * running, 1.2 * itl * running),
                    estimate(usd / running, 0.8 * usd / running, 1.3 * usd / running),
                )
                for running in (1.0, 4.0, 16.0)
            ),
        )
        for gpu, itl, usd in (("A100-80GB-PCIe", 0.01, 3.0), ("H100-80GB-SXM", 0.005, 4.0))
    ),
    itl_target_seconds=0.1,
)
PLAN = Plan(
    window=ANSWER.window,
    policy=Policy(),
    demand_requests_per_second=estimate(2.0),
    demand_output_tokens_per_second=estimate(400.0),
    capacity_output_tokens_per_second=estimate(300.0),
    replicas=estimate(3.0),
    gpus=estimate(3.0),
    usd_per_month=estimate(3000.0),
    queue_check=None,
    replays=(),
    by_model={},
    sensitivity=CASES,
    gpu="A100-80GB-PCIe",
    model="a model",
    options=OPTIONS,
    options_reason="",
    options_basis="",
    choices=(),
    interactivity=INTERACTIVITY,
    forecast=AHEAD,
    surplus=Surplus(
        replicas=4.0,
        policy=Policy(),
        busiest_output_tokens_per_second=estimate(500.0),
        replica_output_tokens_per_second=estimate(300.0),
        needed_replicas=estimate(3.0),
        removable_replicas=estimate(1.0),
        usd_per_day=estimate(40.0),
        by_model={},
    ),
    capacity_by_arithmetic_output_tokens_per_second=unknown("the reason"),
)
FULL = analysis(load_curve=fitted(), hours=HOURS, demand_ahead=AHEAD)
NOTHING = analysis(
    answer=answer(saturation__regimes=(), **{path: unknown("the reason") for path in ESTIMATES}),
    series=emptied(STEPS),
    costs=emptied(COSTS),
    load_curve=fitted(points=emptied(STEPS), curve=CURVE.clear()),
    hours=HOURS.clear(),
    demand_ahead=NONE_AHEAD,
)
NO_PLAN = replace(
    PLAN,
    sensitivity={"now": unknown("the reason")},
    options=(),
    options_reason="the reason",
    interactivity=Interactivity((), "the reason"),
    forecast=NONE_AHEAD,
)


def _charts() -> dict[str, Callable[[Analysis, Plan], Chart]]:
    """Every chart of an analysis or a plan, on each axis that it has, by a name for it."""
    made: dict[str, Callable[[Analysis, Plan], Chart]] = {}
    for name, draw in charts_of(Analysis).items():
        made[name] = lambda of, plan, draw=draw: draw(of)
        if name in AGAINST_LOAD:
            made[f"{name}, KV"] = lambda of, plan, draw=draw: draw(of, axis="kv-usage")
    for name, draw in charts_of(Plan).items():
        made[name] = lambda of, plan, draw=draw: draw(plan)
    return made


AGAINST_LOAD = ("saturation", "latency_by_load", "preemptions_by_load")
CHARTS = _charts()


@cache
def spec_of(name: str) -> Spec:
    """The chart in which everything is known."""
    return CHARTS[name](FULL, PLAN).to_dict()


def notes_of(spec: Spec) -> Spec:
    return spec["usermeta"]["vllm_capacity"]


def rows_with(spec: Spec, *columns: str) -> list[Spec]:
    """The rows of the first data set that has these columns."""
    return next(rows for rows in spec["datasets"].values() if rows and set(columns) <= set(rows[0]))


def names(spec: Spec) -> list[str]:
    """What is written in the picture."""
    return [row["name"] for rows in spec["datasets"].values() for row in rows if "name" in row]


def marks(spec: Spec) -> list[str]:
    return [layer["mark"]["type"] for layer in spec["layer"]]


def caption(spec: Spec) -> str:
    return " ".join(spec["title"]["subtitle"])
