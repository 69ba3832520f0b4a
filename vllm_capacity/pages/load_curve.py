"""One engine under load: its points and its fitted curve, for every chart against load.

One engine has one curve. Several engines are not one bigger engine: a curve through their sums
would bend where none of them does. So the one nearest to its limit is drawn, alone and named.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from vllm_capacity.figures.steps import engine_steps
from vllm_capacity.figures.traffic import PREEMPTIONS, counter_increases, total
from vllm_capacity.telemetry.window import Window
from vllm_capacity.timerange import TimeRange
from vllm_capacity.verdicts import regimes
from vllm_capacity.verdicts.saturation import SaturationFit, engine_fits
from vllm_capacity.verdicts.slo import slo_capacity

_SEED = 0
_NAMES = {
    "ts": "start",
    "is_gap": "has_gap",
    "is_restart": "has_restart",
    "running": "running_mean",
    "waiting": "waiting_mean",
    "kv_cache_ratio_mean": "kv_ratio_mean",
    "kv_cache_ratio_max": "kv_ratio_max",
    "output_tokens_per_second": "output_tokens_per_second",
    "preemptions": "preemptions",
    "ttft_p95_seconds": "ttft_p95_seconds",
    "itl_p95_seconds": "itl_p95_seconds",
}


@dataclass(frozen=True)
class LoadCurve:
    """One engine's points and fitted curve, and what that engine alone can do and did.

    `curve` has running_requests, low, mid, high (output tokens/s, band of 90 %), from the lightest
    load to where it reaches the capacity: beyond, the law goes on to rise and output does not. It
    has no row where the loads seen let no capacity be told. `points` is that engine over time, at
    most 150 rows: the columns of figures/series.py that charts against load draw. `steps` are those
    it was judged by, `left_out` of them have a gap or a restart and were not fitted. `engines` is
    how many the window has.
    """

    engine: str
    engines: int
    curve: pl.DataFrame
    points: pl.DataFrame
    steps: pl.DataFrame
    capacity_kind: str
    capacity: Mapping[str, Any]
    capacity_running: Mapping[str, Any]
    preemptions: float | None
    left_out: int

    def told(
        self,
        answer: Mapping[str, Any],
        ttft_slo_seconds: float | None = None,
        itl_slo_seconds: float | None = None,
    ) -> dict[str, Any]:
        """The answer with this engine's own figures in the place of the whole window's."""
        own = {
            "capacity_kind": self.capacity_kind,
            "capacity_output_tokens_per_second": self.capacity,
            "capacity_running_requests": self.capacity_running,
        }
        held = slo_capacity(self.steps, ttft_slo_seconds, itl_slo_seconds).as_dict()
        fullest = {"max": self.points["kv_cache_ratio_max"].max()}
        return {
            **answer,
            "saturation": {**answer["saturation"], **own},
            "slo": {**answer["slo"], "capacity_output_tokens_per_second": held},
            "preemptions": self.preemptions,
            "kv_cache_ratio": {**answer["kv_cache_ratio"], **fullest},
        }


def load_curve(window: Window, *, part: TimeRange, step_seconds: float) -> LoadCurve | None:
    """The points and the curve of the engine nearest to its limit; None where there is no engine.

    Nearest is the most limiting regime, then the heaviest load. An engine that cannot be fitted is
    chosen only where none can, and has no curve. `step_seconds` is the grain of its points.
    """
    judged = engine_steps(window, part=part)
    fits = engine_fits(judged)
    if not fits:
        return None
    fit, curve = _nearest(fits)
    points = engine_steps(window, part=part, step_seconds=step_seconds)
    steps = _own(judged, fit.engine)
    return LoadCurve(
        engine=fit.engine,
        engines=len(fits),
        curve=curve,
        points=_own(points, fit.engine).select(**_NAMES),
        steps=steps,
        capacity_kind=fit.kind,
        capacity=fit.capacity.as_dict(),
        capacity_running=fit.capacity_running.as_dict(),
        preemptions=_preemptions(window, part, steps),
        left_out=fit.left_out,
    )


def _nearest(fits: Sequence[SaturationFit]) -> tuple[SaturationFit, pl.DataFrame]:
    """The engine nearest to its limit, with its curve; of those with a curve if there are any."""
    ordered = _nearest_first([fit for fit in fits if len(fit.levels.loads)])
    for fit in ordered:
        curve = _up_to_capacity(fit)
        if not curve.is_empty():
            return fit, curve
    fit = _nearest_first(fits)[0]
    return fit, _up_to_capacity(fit)


def _up_to_capacity(fit: SaturationFit) -> pl.DataFrame:
    """The fitted curve as far as the capacity; no row where that is not known."""
    curve, capacity = fit.curve_frame(seed=_SEED), fit.capacity.mid
    if capacity is None:
        return curve.clear()
    is_beyond = (curve["mid"] > capacity).to_list()
    return curve.head(is_beyond.index(True) + 1) if True in is_beyond else curve


def _nearest_first(fits: Sequence[SaturationFit]) -> list[SaturationFit]:
    worst = regimes.worst([fit.regime for fit in fits])

    def nearness(fit: SaturationFit) -> tuple[bool, float]:
        loads = fit.levels.loads
        if len(loads):
            return fit.regime == worst, loads.heaviest
        return fit.regime == worst, max(j.step["running_max"] or 0.0 for j in fit.judged)

    return sorted(fits, key=nearness, reverse=True)


def _own(steps: pl.DataFrame, engine: str) -> pl.DataFrame:
    return pl.DataFrame(regimes.engine_rows(steps)[engine], schema=steps.schema)


def _preemptions(window: Window, part: TimeRange, steps: pl.DataFrame) -> float | None:
    """The exact growth of the engine's counter over the part; None where it has none."""
    increases = counter_increases(window, [PREEMPTIONS], part=part)
    engine = ["instance", "engine"]
    own = increases.join(steps.head(1).select(engine), on=engine, how="semi", nulls_equal=True)
    return total(own, PREEMPTIONS)
