"""What a page is compared with (`--against`): a window, a day, or an earlier day by duration."""

from __future__ import annotations

import re
from datetime import date, timedelta
from pathlib import Path

from vllm_capacity.errors import InputError
from vllm_capacity.timerange import parse_duration_seconds

_DURATION = re.compile(r"(\d+(\.\d+)?(ms|[smhdw]))+")
_DAY_SECONDS = 86_400


def is_duration(text: str) -> bool:
    """Whether it is a duration back from a page's day, such as 7d; InputError for parts of days."""
    if _DURATION.fullmatch(text.strip().lower()) is None:
        return False
    seconds = parse_duration_seconds(text)
    if seconds % _DAY_SECONDS:
        raise InputError(f"--against {text} must count back whole days, as 7d does.")
    return True


def day_of(text: str) -> date | None:
    """The day in a text such as 2026-11-20; None for any other text."""
    try:
        return date.fromisoformat(text.strip())
    except ValueError:
        return None


def earlier_day(text: str, day: date) -> date | None:
    """The day to compare a day with; None if the text names a window instead."""
    if is_duration(text):
        return day - timedelta(seconds=parse_duration_seconds(text))
    return day_of(text)


def later_days(text: str, day: date, days: list[date]) -> list[date]:
    """The days whose pages are compared with this day."""
    return [each for each in days if each != day and earlier_day(text, each) == day]


def window_against(text: str, window: str, windows: Path, *, is_typed: bool) -> str | None:
    """The window to compare a window with, as a path or a name; None for no comparison.

    Days are looked for next to the window, then in the folder of daily windows (`windows`).
    InputError if there is none, or if a duration is given and the window is not named by a day;
    both give None if the text comes from the settings and not from the command line.
    """
    day = day_of(Path(window).name)
    counts_back = is_duration(text)
    if counts_back and day is None:
        if is_typed:
            raise InputError(
                f"--against {text} counts back from a day, and {window} is not named by one. "
                "Name the window to compare with."
            )
        return None
    wanted = earlier_day(text, day or date.min)
    if wanted is None:
        return text
    places = [folder / wanted.isoformat() for folder in (Path(window).parent, windows)]
    found = next((place for place in places if place.is_dir()), None)
    if found is None and is_typed:
        raise InputError(f"There is no window {places[0]} to compare with (--against {text}).")
    return None if found is None else str(found)
