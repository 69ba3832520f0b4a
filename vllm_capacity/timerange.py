"""Time: aware UTC datetimes, half-open ranges, and parsing of user input."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from msgspec import Struct

from vllm_capacity.errors import InputError

HOURS_PER_MONTH = 730.5  # 365.25 days × 24 h ÷ 12, for every dollar figure per month

_UNITS_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_LONGEST_SECONDS = 36525 * 86400.0
# Within these years, no UTC offset or look back or ahead goes beyond the calendar.
_YEARS = range(1900, 2200)
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d|w)")


class TimeRange(Struct, frozen=True):
    """`[start, end)` in aware UTC: a time at `start` is inside, one at `end` is not."""

    start: datetime
    end: datetime

    def __post_init__(self) -> None:
        if self.start.tzinfo is None or self.end.tzinfo is None:
            raise ValueError("a TimeRange holds aware datetimes")
        if self.end <= self.start:
            raise InputError(
                f"The time range {iso(self.start)} … {iso(self.end)} is empty: "
                "its end must lie after its start."
            )

    @property
    def seconds(self) -> float:
        """Length in seconds."""
        return (self.end - self.start).total_seconds()

    @property
    def hours(self) -> float:
        """Length in hours."""
        return self.seconds / 3600.0

    def steps(self, seconds: float) -> int:
        """The number of even steps of that length in the range.

        A remainder under half a step belongs to the last step: on its own it would have no sample.
        """
        return max(1, int(self.seconds / seconds + 0.5))


def hours(time_range: TimeRange) -> list[TimeRange]:
    """The range split at UTC hours."""
    return split(time_range, 60)


def split(time_range: TimeRange, minutes: int) -> list[TimeRange]:
    """The range split at multiples of so many minutes of a UTC hour, at most 60."""
    parts, start = [], time_range.start
    while start < time_range.end:
        whole = start.replace(minute=start.minute // minutes * minutes, second=0, microsecond=0)
        end = min(whole + timedelta(minutes=minutes), time_range.end)
        parts.append(TimeRange(start, end))
        start = end
    return parts


def iso(instant: datetime) -> str:
    """The time as ISO 8601 with `Z`, with microseconds only if there are any."""
    return instant.astimezone(UTC).isoformat().replace("+00:00", "Z")


def parse_instant(text: str) -> datetime:
    """An aware UTC datetime from ISO 8601; UTC if it has no offset. Fractions are kept.

    InputError for an invalid time, or one outside 1900 to 2199.
    """
    try:
        instant = datetime.fromisoformat(text.strip())
    except ValueError:
        raise InputError(
            f"Cannot read {text!r} as a time. Use ISO 8601, for example 2026-11-24T08:14:00Z."
        ) from None
    if instant.year not in _YEARS:
        raise InputError(f"The time {text!r} lies outside the years {_YEARS[0]} to {_YEARS[-1]}.")
    return (instant if instant.tzinfo else instant.replace(tzinfo=UTC)).astimezone(UTC)


def named_range(text: str) -> tuple[str, str | None, str | None]:
    """The name in NAME@START..END, and the two ends as text; None for an omitted end.

    Text without a range is a name.
    """
    name, mark, times = text.rpartition("@")
    if not mark or ".." not in times:
        return text, None, None
    start, _, end = times.partition("..")
    return name, start or None, end or None


def parse_duration_seconds(text: str) -> float:
    """Seconds from "2s", "90m", "24h", "1h30m", "7d"; always positive, and at most a century."""
    bare = text.strip().lower()
    parts = _DURATION.findall(bare)
    if not parts or "".join(number + unit for number, unit in parts) != bare:
        raise InputError(f"Cannot read {text!r} as a duration. Try 2s, 10m, 1h30m or 7d.")
    seconds = sum(float(number) * _UNITS_SECONDS[unit] for number, unit in parts)
    if seconds <= 0:
        raise InputError(f"The duration {text!r} must be longer than nothing.")
    if seconds > _LONGEST_SECONDS:
        raise InputError(f"The duration {text!r} is longer than a hundred years.")
    return float(seconds)


def last(duration: str, *, now: datetime) -> TimeRange:
    """The range of that length that ends at `now`."""
    return TimeRange(now - timedelta(seconds=parse_duration_seconds(duration)), now)


def time_zone(name: str) -> ZoneInfo:
    """The time zone of that name, such as Europe/Berlin; InputError if there is none."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise InputError(
            f"No time zone {name!r}; write it as the IANA list does: UTC, Europe/Berlin."
        ) from None
