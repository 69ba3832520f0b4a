"""One engine under load: its points and fitted curve, for all charts against load.

Each engine has its own curve. Several engines do not behave like one bigger engine: a curve through
their sums would bend where none of them does. So only the engine nearest to its limit is drawn,
with its name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import polars as pl
from msgspec import Struct
from msgspec.structs import replace

from vllm_capacity.answer import Answer
from vllm_capacity.assumptions import Slo
from vllm_capacity.facts.metrics import PREEMPTIONS
from vllm_capacity.figures.steps import engine_frames
from vllm_capacity.figures.traffic import total
from vllm_capacity.verdicts.saturation import regimes
from vllm_capacity.verdicts.saturation.arrays import highest
from vllm_capacity.verdicts.saturation.fit import CURVE_SCHEMA, SaturationFit
from vllm_capacity.verdicts.saturation.slo import slo_throughput

_SEED = 0


class LoadCurve(Struct, frozen=True):
    """One engine's points and fitted curve, and its own capacity and use.

    `curve` has running_requests, low, mid, high (output tokens/s, 90 % band), from the lightest
    load to where it reaches the capacity: beyond that the law keeps rising, but output does not. It
    is empty if the observed loads do not determine the capacity. `points` are the engine's steps at
    the charts' resolution, at most 150 rows: `STEP_SCHEMA` of verdicts/saturation/fit.py and
    preemptions_per_minute. `steps` are those of the fit, which does not use the `left_out` ones
    with a gap or a restart. `engines` is the number of engines in the window.
    """

    fit: SaturationFit
    engines: int
    curve: pl.DataFrame
    points: pl.DataFrame
    steps: pl.DataFrame
    preemptions: float | None

    @property
    def engine(self) -> str:
        """The engine's name."""
        return self.fit.engine

    @property
    def left_out(self) -> int:
        """The number of its steps with a gap or a restart."""
        return self.fit.left_out

    def of(self, answer: Answer, slo: Slo) -> Answer:
        """The answer with this engine's own figures instead of the whole window's."""
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
    """The points and curve of the engine nearest to its limit; None if there is no engine.

    Nearest means the most limiting regime, then the heaviest load. An engine without a fit is
    chosen only if none has one, and then has no curve. `judged` are the steps behind `fits`;
    `points` gives an engine's steps by its name, at the charts' resolution; `counters` are the
    increases of figures/traffic.py.
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
    """The engine nearest to its limit, and its curve; engines with a curve come first."""
    ordered = _nearest_first([fit for fit in fits if len(fit.levels.loads)])
    for fit in ordered:
        curve = _up_to_capacity(fit)
        if not curve.is_empty():
            return fit, curve
    fit = _nearest_first(fits)[0]
    return fit, _up_to_capacity(fit)


def _up_to_capacity(fit: SaturationFit) -> pl.DataFrame:
    """The fitted curve up to the capacity; empty if that is unknown."""
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
    return engine_frames(steps)[engine]


def _minutes() -> pl.Expr:
    """The length of each step in minutes."""
    return (pl.col("end") - pl.col("start")).dt.total_microseconds() / 60e6


def _preemptions(increases: pl.DataFrame, steps: pl.DataFrame) -> float | None:
    """The exact growth of the engine's counter; None if it has none."""
    engine = ["instance", "engine"]
    own = increases.join(steps.head(1).select(engine), on=engine, how="semi", nulls_equal=True)
    return total(own, PREEMPTIONS)
