"""Back-test of the demand forecast on simulated weeks: error against two naives, and coverage.

Run it from the repository root: `python bench/forecast_backtest.py`. Each kind of demand is five
weeks of requests per hour whose law is known: a sine over the day, weekends quieter by `dip`,
log-normal noise that lasts a few hours, and what the kind adds. Forecast a day and a week ahead
from several hours of the week; the errors are summed over origins before they are divided.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from vllm_capacity.verdicts.demand.forecast import forecast_demand

HOUR, DAY, WEEK = 3600.0, 24, 168
WEEKS = 5
ORIGINS = (0, 31, 62, 100, 131)  # hours into the sixth week
SEEDS = range(2)
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Kind:
    """The features of one kind of demand; `growth` is per week, `steps` the drift per day."""

    name: str
    dip: float = 0.4
    noise: float = 0.1
    growth: float = 0.0
    missing: float = 0.0
    holidays: int = 0
    steps: float = 0.0


KINDS = (
    Kind("weekends 20 % quieter", dip=0.2),
    Kind("weekends 40 % quieter"),
    Kind("weekends 70 % quieter", dip=0.7),
    Kind("40 %, hardly any noise", noise=0.03),
    Kind("40 %, much noise", noise=0.25),
    Kind("40 %, growing 10 % a week", growth=0.1),
    Kind("40 %, a tenth missing", missing=0.1),
    Kind("40 %, two holidays", holidays=2),
    Kind("40 %, level wanders", steps=0.1),
    Kind("no weekly pattern", dip=0.0),
    Kind("no pattern, level wanders", dip=0.0, steps=0.15),
)


def simulated(kind: Kind, seed: int) -> tuple[Floats, Floats]:
    """Requests per hour as recorded (NaN: missing) and true, for two weeks after the five."""
    random = np.random.default_rng(seed)
    hours = np.arange((WEEKS + 2) * WEEK)
    weekday, days = hours % WEEK // DAY, hours // DAY
    off = random.choice(WEEKS * 7, kind.holidays, replace=False)
    is_quiet = (weekday >= 5) | np.isin(days, off)
    level = 1000 * (1 + kind.growth) ** (hours / WEEK)
    level = level * np.exp(random.normal(0, kind.steps, days[-1] + 1).cumsum())[days]
    mean = level * (1 + 0.6 * np.sin(2 * np.pi * (hours - 9) / DAY))
    mean = mean * np.where(is_quiet, 1 - kind.dip, 1.0)
    log_error = np.zeros(len(hours))
    for hour in hours[1:]:
        log_error[hour] = 0.5 * log_error[hour - 1] + random.normal(0, np.sqrt(0.75))
    truth = random.poisson(mean * np.exp(kind.noise * log_error)).astype(float)
    return np.where(random.random(len(hours)) < kind.missing, np.nan, truth), truth


def repeated(history: Floats, period: int, horizon: int) -> Floats:
    """The last `period` hours over again; a missing one from a period before."""
    known = history.copy()
    for hour in np.flatnonzero(~np.isfinite(known)):
        known[hour] = known[hour - period] if hour >= period else np.nanmean(history)
    return np.resize(known[-period:], horizon)


def tried(kind: Kind, horizon: int) -> Sequence[float]:
    """Error over the weekly and the daily naive's, share inside, share stated, mean width ratio."""
    errors, shares = [], []
    for seed in SEEDS:
        seen, truth = simulated(kind, seed)
        for origin in (WEEKS * WEEK + hours for hours in ORIGINS):
            ahead = truth[origin : origin + horizon]
            history = seen[origin - WEEKS * WEEK : origin]
            starts = np.arange(len(history)) * HOUR
            rows = pl.DataFrame({"ts_seconds": starts, "requests": history})
            found = forecast_demand(
                rows.with_columns(pl.col("requests").fill_nan(None)), horizon_seconds=horizon * HOUR
            )
            low, mid, high = (found.frame[end].to_numpy() for end in ("low", "mid", "high"))
            extrapolated = (mid, *(repeated(history, period, horizon) for period in (WEEK, DAY)))
            errors.append([np.abs(each - ahead).mean() for each in extrapolated])
            inside = ((low <= ahead) & (ahead <= high)).mean()
            shares.append([inside, found.coverage_measured, found.width_ratio])
    ours, weekly, daily = np.sum(errors, axis=0)
    return [ours / weekly, ours / daily, *np.mean(shares, axis=0)]


def main() -> None:
    """One line per kind and horizon."""
    for horizon in (DAY, WEEK):
        for kind in KINDS:
            weekly, daily, inside, stated, width = tried(kind, horizon)
            print(
                f"{horizon:3} h ahead, {kind.name:26} error {weekly:.2f} of the weekly naive's, "
                f"{daily:.2f} of the daily naive's; held {inside:.0%}, said {stated:.0%}, "
                f"width {width:.0%} of the mean"
            )


if __name__ == "__main__":
    main()
