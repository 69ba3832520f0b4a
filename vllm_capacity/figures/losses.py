"""What restarts may have swallowed: counted by the server after its last scrape, and never read.

Between the last good scrape before a restart and the start of the new process, the old one may have
gone on at the rate it had. Low is 0 (it may have died at once), high is that rate times that time.
Source: method.md §2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import polars as pl

from vllm_capacity.figures import traffic
from vllm_capacity.figures.scrapes import Restart
from vllm_capacity.telemetry.window import Window
from vllm_capacity.timerange import TimeRange

_TRAILING_SECONDS = (10.0, 60.0, 300.0)


@dataclass(frozen=True)
class Lost:
    """Bounds of what is in no figure, in the unit of the counter."""

    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
        """The two keys of the machine interface."""
        return {"low": self.low, "high": self.high}


def lost(
    window: Window, metrics: Sequence[str], restarts: Sequence[Restart], *, part: TimeRange
) -> Lost:
    """Bounds of what the restarts may have swallowed of these counters; 0 without a restart."""
    high = 0.0
    for restart in restarts:
        seconds = ((restart.started or restart.after) - restart.before).total_seconds()
        high += _rate_before(window, metrics, restart) * max(seconds, 0.0)
    return Lost(0.0, high)


def _rate_before(window: Window, metrics: Sequence[str], restart: Restart) -> float:
    """The highest of the trailing mean rates of the instance before its last scrape, per second."""
    start = restart.before - timedelta(seconds=max(_TRAILING_SECONDS))
    before = TimeRange(start, restart.before + timedelta(microseconds=1))
    rows = traffic.scrape_increases(window, metrics, part=before).filter(
        pl.col("instance") == restart.instance
    )
    rates = []
    for seconds in _TRAILING_SECONDS:
        recent = rows.filter(pl.col("ts") > restart.before - timedelta(seconds=seconds))
        base = recent.get_column("ts_before").min()
        if isinstance(base, datetime):  # the increases span from there, whatever the grain
            covered = (restart.before - base).total_seconds()
            rates.append(float(recent.get_column("increase").sum()) / covered)
    return max(rates, default=0.0)
