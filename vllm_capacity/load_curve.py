"""One engine under load: its points and its fitted curve, for every chart against load.

One engine has one curve. Several engines are not one bigger engine: a curve through their sums
would bend where none of them does. So the one nearest to its limit is drawn, alone and named.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import polars as pl

from vllm_capacity.answer import Answer
from vllm_capacity.assumptions import Slo
from vllm_capacity.facts.metrics import PREEMPTIONS
from vllm_capacity.figures.traffic import total
from vllm_capacity.verdicts.saturation import regimes
from vllm_capacity.verdicts.saturation.arrays import highest
from vllm_capacity.verdicts.saturation.fit import CURVE_SCHEMA, SaturationFit
from vllm_capacity.verdicts.saturation.slo import slo_throughput

_SEED = 0


@dataclass(frozen=True)
class LoadCurve:
    """One engine's points and fitted curve, and what that engine alone can do and did.

    `curve` has running_requests, low, mid, high (output tokens/s, band of 90 %), from the lightest
    load to where it reaches the capacity: beyond, the law goes on to rise and output does not. It
    has no row where the loads seen let no capacity be told. `points` are that engine's steps at the
    grain of charts, at most 150 rows: `STEP_SCHEMA` of verdicts/saturation/fit.py and
    preemptions_per_minute. `steps` are those it was judged by, `left_out` of them have a gap or a
    restart and were not fitted. `engines` is how many the window has.
    """

    fit: SaturationFit
    engines: int
    curve: pl.DataFrame
    points: pl.DataFrame
    steps: pl.DataFrame
    preemptions: float | None

    @property
    def engine(self) -> str:
        """Its name."""
        return self.fit.engine

    @property
    def left_out(self) -> int:
        """Its steps with a gap or a restart."""
        return self.fit.left_out

    def of(self, answer: Answer, slo: Slo) -> Answer:
        """The answer with this engine's own figures in the place of the whole window's."""
        own = replace(
            answer.saturation,
            capacity_kind=self.fit.kind,
            capacity_output_tokens_per_second=self.fit.capacity,
            capacity_running_requests=self.fit.capacity_running,
        )
        within = slo_throughput([self.fit], slo)
        fullest: float | None = self.points["kv_cache_ratio_max"].max()  # type: ignore[assignment]
        return replace(
            answer,
            saturation=own,
            slo=replace(answer.slo, throughput_output_tokens_per_second=within),
            preemptions=self.preemptions,
            kv_cache_ratio=replace(answer.kv_cache_ratio, max=fullest),
        )


def load_curve(
    fits: Sequence[SaturationFit],
    judged: pl.DataFrame,
    points: Callable[[str], pl.DataFrame],
    counters: pl.DataFrame,
) -> LoadCurve | None:
    """The points and the curve of the engine nearest to its limit; None where there is no engine.

    Nearest is the most limiting regime, then the heaviest load. An engine that cannot be fitted is
    chosen only where none can, and has no curve. `judged` are the steps that `fits` were made of,
    `points` gives an engine's, by its name, at the grain of charts, `counters` are the increases of
    figures/traffic.py.
    """
    if not fits:
        return None
    fit, curve = _nearest(fits)
    steps = _own(judged, fit.engine)
    return LoadCurve(
        fit=fit,
        engines=len(fits),
        curve=curve,
        points=_own(points(fit.engine), fit.engine).with_columns(
            preemptions_per_minute=pl.col("preemptions") / _minutes()
        ),
        steps=steps,
        preemptions=_preemptions(counters, steps),
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
    capacity = fit.capacity.mid
    if capacity is None:
        return pl.DataFrame(schema=CURVE_SCHEMA)
    curve = fit.curve_frame(seed=_SEED)
    is_beyond = (curve["mid"] > capacity).to_list()
    return curve.head(is_beyond.index(True) + 1) if True in is_beyond else curve


def _nearest_first(fits: Sequence[SaturationFit]) -> list[SaturationFit]:
    worst = regimes.worst([fit.regime for fit in fits])

    def nearness(fit: SaturationFit) -> tuple[bool, float]:
        loads = fit.levels.loads
        if len(loads):
            return fit.regime == worst, loads.heaviest
        return fit.regime == worst, highest(fit.steps.running_max)

    return sorted(fits, key=nearness, reverse=True)


def _own(steps: pl.DataFrame, engine: str) -> pl.DataFrame:
    return regimes.engine_frames(steps)[engine]


def _minutes() -> pl.Expr:
    """The length of each step."""
    return (pl.col("end") - pl.col("start")).dt.total_microseconds() / 60e6


def _preemptions(increases: pl.DataFrame, steps: pl.DataFrame) -> float | None:
    """The exact growth of the engine's counter; None where it has none."""
    engine = ["instance", "engine"]
    own = increases.join(steps.head(1).select(engine), on=engine, how="semi", nulls_equal=True)
    return total(own, PREEMPTIONS)
