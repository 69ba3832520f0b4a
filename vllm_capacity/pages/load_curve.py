"""The fitted curve of output against load that a chart draws, and whose it is.

One engine has one curve. Several engines are not one bigger engine: a curve through their sums
would bend where none of them does. So the one nearest to its limit is drawn, alone and named.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from vllm_capacity.figures.steps import engine_steps
from vllm_capacity.telemetry.window import Window
from vllm_capacity.timerange import TimeRange
from vllm_capacity.verdicts import regimes
from vllm_capacity.verdicts.saturation import SaturationFit, engine_fits

_SEED = 0


@dataclass(frozen=True)
class LoadCurve:
    """One engine's fitted curve, the points it is seen beside, and that engine's own capacity.

    `curve` has running_requests, low, mid, high (output tokens/s, band of 90 %); `points` is that
    engine over time, at most 150 rows: ts, running, waiting, output_tokens_per_second. `engines` is
    how many the window has, `left_out` the steps with a gap or a restart, which were not fitted.
    """

    engine: str
    engines: int
    curve: pl.DataFrame
    points: pl.DataFrame
    capacity: Mapping[str, Any]
    capacity_running: Mapping[str, Any]
    left_out: int

    def told(self, answer: Mapping[str, Any]) -> dict[str, Any]:
        """The answer with this engine's capacity and knee in the place of the whole window's."""
        own = {
            "capacity_output_tokens_per_second": self.capacity,
            "capacity_running_requests": self.capacity_running,
        }
        return {**answer, "saturation": {**answer["saturation"], **own}}


def load_curve(window: Window, *, part: TimeRange, step_seconds: float) -> LoadCurve | None:
    """The curve of the engine nearest to its limit; None where no engine's steps can be fitted.

    Nearest is the most limiting regime, then the heaviest load; engines that cannot be fitted are
    passed over. `step_seconds` is the grain of its points.
    """
    fits = engine_fits(engine_steps(window, part=part))
    for fit in _nearest_first(fits):
        curve = fit.curve_frame(seed=_SEED)
        if not curve.is_empty():
            points = engine_steps(window, part=part, step_seconds=step_seconds)
            return LoadCurve(
                engine=fit.engine,
                engines=len(fits),
                curve=curve,
                points=_points(points, fit.engine),
                capacity=fit.capacity.as_dict(),
                capacity_running=fit.capacity_running.as_dict(),
                left_out=fit.left_out,
            )
    return None


def _nearest_first(fits: Sequence[SaturationFit]) -> list[SaturationFit]:
    fitted = [fit for fit in fits if len(fit.levels.loads)]
    worst = regimes.worst([fit.regime for fit in fitted])

    def nearness(fit: SaturationFit) -> tuple[bool, float]:
        return fit.regime == worst, fit.levels.loads.heaviest

    return sorted(fitted, key=nearness, reverse=True)


def _points(steps: pl.DataFrame, engine: str) -> pl.DataFrame:
    own = pl.DataFrame(regimes.engine_rows(steps)[engine], schema=steps.schema)
    return own.select(
        "output_tokens_per_second",
        ts="start",
        running="running_mean",
        waiting="waiting_mean",
    )
