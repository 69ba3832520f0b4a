"""The forecast against real demand of LLM services, at rolling origins, only data before each.

The series are others' (ServeGen, Apache-2.0, Alibaba; BurstGPT, CC BY 4.0, Y. Wang et al.) and
are read where they lie, never copied. MASE: mean absolute error over the in-sample mean absolute
error of the 24 h naive; gaps are not scored.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from vllm_capacity.verdicts.demand.forecast import forecast_demand

pytestmark = pytest.mark.shared

DEMAND = Path(__file__).parents[2] / ".." / "shared" / "data" / "demand"
HOUR, DAY_HOURS = 3600.0, 24


@dataclass(frozen=True)
class Service:
    file: str
    column: str
    origins: range


SERVICES = {
    "m-large": Service("servegen_m-large_10min", "requests", range(168, 309, 7)),
    "m-small": Service("servegen_m-small_10min_d00-d10", "requests", range(168, 229, 5)),
    "burstgpt": Service("burstgpt1_hourly_d00-d45", "requests_spread", range(336, 1062, 25)),
}
NAMES = sorted(SERVICES)


@dataclass(frozen=True)
class Replay:
    """Results of rolling origins: one number per origin in `mase` and `said`, else means."""

    mase: float
    coverage: float
    stated: float
    score: float
    flat_score: float


@cache
def recorded(name):
    service = SERVICES[name]
    table = pl.read_parquet(DEMAND / f"{service.file}.parquet")
    return table.select(
        pl.col("ts_seconds").cast(pl.Float64),
        pl.col(service.column).cast(pl.Float64).alias("requests"),
    )


@cache
def hourly(name):
    """Truth by hour, NaN where the publisher suspects a gap, or half the hour is missing."""
    service = SERVICES[name]
    table = pl.read_parquet(DEMAND / f"{service.file}.parquet")
    gap = pl.col("suspect_gap") if "suspect_gap" in table.columns else pl.lit(False)
    counts = table.select(
        hour=(pl.col("ts_seconds") // 3600).cast(pl.Int64),
        count=pl.when(~gap).then(pl.col(service.column)).cast(pl.Float64),
    )
    full = counts.group_by("hour").agg(
        pl.when(pl.col("count").is_not_null().mean() >= 0.5).then(pl.col("count").mean() * pl.len())
    )
    values = np.full(full["hour"].max() + 1, np.nan)
    values[full["hour"].to_numpy()] = full["count"].fill_null(np.nan).to_numpy()
    return values


def interval_score(truth, low, high):
    """Winkler's at 90 %: the width, and twenty times what the truth lies outside by."""
    return high - low + 20 * (np.maximum(low - truth, 0) + np.maximum(truth - high, 0))


def flat_interval(history):
    """The mean of the last 24 h, with the 5 % and 95 % quantiles of its own past errors."""
    errors = [
        history[origin : origin + DAY_HOURS] - np.nanmean(history[origin - DAY_HOURS : origin])
        for origin in range(DAY_HOURS, len(history))
    ]
    low, high = np.nanquantile(np.concatenate(errors), [0.05, 0.95])
    level = np.nanmean(history[-DAY_HOURS:])
    return max(0.0, level + low), level + high


@cache
def replay(name, last_quarter=False):
    truth, series = hourly(name), recorded(name)
    rows = []
    origins = SERVICES[name].origins
    if last_quarter:
        origins = range(len(truth) * 3 // 4, len(truth) - DAY_HOURS + 1, 6)
    for origin in origins:
        result = forecast_demand(series.filter(pl.col("ts_seconds") < origin * HOUR))
        ahead = truth[origin : origin + DAY_HOURS]
        seen = np.isfinite(ahead)
        low, mid, high = (
            result.frame[c].to_numpy()[: len(ahead)][seen] for c in ("low", "mid", "high")
        )
        ahead = ahead[seen]
        naive = np.nanmean(np.abs(truth[DAY_HOURS:origin] - truth[: origin - DAY_HOURS]))
        rows.append(
            (
                np.abs(ahead - mid).mean() / naive,
                ((ahead >= low) & (ahead <= high)).mean(),
                result.coverage_measured,
                interval_score(ahead, low, high).mean(),
                interval_score(ahead, *flat_interval(truth[:origin])).mean(),
            )
        )
    return Replay(*np.mean(rows, axis=0))


def test_a_day_ahead_the_mean_error_over_three_services_is_small():
    assert np.mean([replay(name).mase for name in NAMES]) <= 1.015


@pytest.mark.parametrize(
    ("name", "most"),
    [
        pytest.param("m-large", 1.03 * 1.15, id="no daily cycle: near the mean of the last day"),
        pytest.param("m-small", 1.38 * 1.15, id="a daily cycle: near the same hour yesterday"),
        pytest.param("burstgpt", 0.79 * 1.15, id="bursts: near the mean of the last day"),
    ],
)
def test_no_service_is_much_worse_than_the_better_simple_way(name, most):
    assert replay(name).mase <= most


def test_intervals_cover_as_promised():
    found = {name: replay(name).coverage for name in NAMES}
    assert np.mean(list(found.values())) >= 0.85
    assert min(found.values()) >= 0.75


@pytest.mark.parametrize("name", NAMES)
def test_the_stated_coverage_is_the_observed_coverage(name):
    assert replay(name).stated == pytest.approx(replay(name).coverage, abs=0.10)


@pytest.mark.parametrize("name", NAMES)
def test_the_stated_coverage_is_not_far_above_that_of_the_last_quarter(name):
    found = replay(name, last_quarter=True)
    assert found.stated <= found.coverage + 0.10


def test_the_last_quarters_are_forecast_no_worse_than_before():
    assert np.mean([replay(name, last_quarter=True).mase for name in NAMES]) <= 1.04


@pytest.mark.parametrize("name", NAMES)
def test_the_interval_score_is_no_worse_than_that_of_a_flat_line(name):
    assert replay(name).score <= replay(name).flat_score


def test_one_day_of_a_reasoning_service_is_answered_and_less_is_refused():
    table = pl.read_parquet(DEMAND / "servegen_deepseek-r1_10min_1day.parquet")
    assert forecast_demand(table).is_known
    assert "24 h are needed" in forecast_demand(table.head(143)).reason


def test_ten_minute_steps_cover_too():
    series, inside = recorded("m-small"), []
    for origin in range(168, 229, 12):
        known = series.filter(pl.col("ts_seconds") < origin * HOUR)
        result = forecast_demand(known, step_seconds=600.0)
        both = result.frame.join(series, on="ts_seconds", how="inner")
        inside.append(both["requests"].is_between(both["low"], both["high"]).mean())
    assert np.mean(inside) >= 0.85
