"""The time zone of the charts: local time, and the starts of local hours and days.

Only labels are local; points stay at their UTC time on the axis. So the hour that clocks repeat in
autumn is drawn once, and the hour they skip in spring leaves no hole.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime, timedelta

import polars as pl
from msgspec import Struct

from vllm_capacity.timerange import TimeRange, parse_duration_seconds, time_zone

_AROUND = timedelta(days=62)  # a forecast is drawn beyond the time range of its data
_MAX_TICKS = 8
_TICKS = (
    *("1s", "2s", "5s", "10s", "15s", "30s", "1m", "2m", "5m", "10m", "15m", "30m"),
    *("1h", "2h", "3h", "6h", "12h", "1d", "2d", "1w", "2w", "4w", "12w", "52w"),
)


class Clock(Struct, frozen=True):
    """A time zone's name and its UTC offsets, span by span.

    `offsets`: (until, milliseconds) in order; `until` in milliseconds since the epoch, None last.
    """

    zone: str = "UTC"
    offsets: tuple[tuple[int | None, int], ...] = ((None, 0),)

    @classmethod
    def of(cls, zone: str, time_range: TimeRange) -> Clock:
        """The clock of the zone around that time range; InputError if there is no such zone."""
        name = time_zone(zone).key
        if name == UTC_CLOCK.zone:
            return UTC_CLOCK
        first, last = time_range.start - _AROUND, time_range.end + _AROUND
        quarters = pl.datetime_range(  # clocks change on a quarter of an hour
            first.replace(minute=0, second=0, microsecond=0), last, "15m", eager=True
        ).dt.convert_time_zone(name)
        ahead = quarters.dt.base_utc_offset() + quarters.dt.dst_offset()
        spans = (
            pl.DataFrame({"at": quarters.dt.epoch("ms"), "ahead": ahead.dt.total_milliseconds()})
            .with_columns(run=pl.col("ahead").rle_id())
            .group_by("run", maintain_order=True)
            .agg(pl.col("at").first(), pl.col("ahead").first())
        )
        untils = [*spans["at"].to_list()[1:], None]
        return cls(name, tuple(zip(untils, spans["ahead"].to_list(), strict=True)))

    def local(self, at: str) -> str:
        """A Vega expression that converts the expression `at` from UTC to local time."""
        at = f"time({at})"  # Vega turns some times into dates, to which it cannot add
        *changes, (_, last) = self.offsets
        ahead = "".join(f"{at} < {until} ? {offset} : " for until, offset in changes) + f"{last}"
        return f"({at} + ({ahead}))"

    def wall(self, at: datetime) -> datetime:
        """The time on this clock."""
        return at.astimezone(time_zone(self.zone))

    def ticks(self, time_range: TimeRange) -> list[int]:
        """At most eight round local times in the range, in milliseconds since the epoch.

        Empty if the range contains not even a round second.
        """
        long = (each for each in _TICKS if _enough(each, time_range))
        every = next(long, _TICKS[-1])
        ends = time_range.start, time_range.end
        wall = pl.Series([self.wall(end).replace(tzinfo=None) for end in ends])
        first = wall.dt.truncate(every).item(0)
        local = pl.datetime_range(first, wall.item(1), every, eager=True)
        # If an hour is repeated, take the first; if it is skipped, none.
        there = local.dt.replace_time_zone(self.zone, ambiguous="earliest", non_existent="null")
        ticks = there.drop_nulls().dt.epoch("ms")
        start, end = (int(at.timestamp() * 1000) for at in ends)
        return ticks.filter(ticks.is_between(start, end)).to_list()


UTC_CLOCK = Clock()
_CLOCK = ContextVar("vllm_capacity_chart_clock", default=UTC_CLOCK)


def clock_of_charts() -> Clock:
    """The current clock of the charts: UTC unless `drawn_by` sets another."""
    return _CLOCK.get()


@contextmanager
def drawn_by(clock: Clock) -> Iterator[None]:
    """A context in which charts use this clock."""
    token = _CLOCK.set(clock)
    try:
        yield
    finally:
        _CLOCK.reset(token)


def _enough(every: str, time_range: TimeRange) -> bool:
    """Whether the step is long enough to give at most eight ticks in the range."""
    return time_range.seconds < _MAX_TICKS * parse_duration_seconds(every)
