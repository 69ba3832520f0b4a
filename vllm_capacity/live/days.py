"""A store of daily windows: which days are due, which have changed, which are old enough to delete.

    windows/
      2026-11-27/   the window of a day, from midnight to midnight in the store's time zone
      days.json     when each day was last pulled, and whether its page was made since
      .pulling/     pulls in progress; its lock allows one run at a time on the store

Samples may arrive late, so a day is pulled again until one pull happened at least `late` after
its end. Each pull is compared with the stored window, row by row: only a day whose rows changed
is replaced. If the source has since deleted rows, the store keeps them.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, date, datetime, time, timedelta
from enum import Enum
from pathlib import Path
from zoneinfo import ZoneInfo

import msgspec
from msgspec import Struct, field
from msgspec.structs import replace

from vllm_capacity.errors import InputError, NoTelemetryError, WindowError
from vllm_capacity.holding import alone, workplace
from vllm_capacity.telemetry.manifest import Manifest, read_manifest, read_part
from vllm_capacity.timerange import TimeRange, time_zone

_BOOK = "days.json"
_WORKPLACE = ".pulling"
_ROLLUP = ".rollup"
_DAY = timedelta(days=1)


class Outcome(Enum):
    """The result of pulling a day."""

    NEW = "new"
    CHANGED = "changed"
    SAME = "same"
    EMPTY = "empty"
    IN_USE = "in use"


class Day(Struct, frozen=True):
    """The state of a day: when it was last pulled, whether it has no data, or has a page.

    `inputs` is a digest of what its page was made with beside the window; empty for nothing.
    """

    pulled: datetime
    is_empty: bool = False
    is_reported: bool = False
    inputs: str = ""


class Source(Struct, frozen=True):
    """Where a store's data comes from, and the time zone that defines its days.

    `origin`, `stream`, `match` and `tenant` are the same as in a pull.
    """

    origin: str
    stream: str | None = None
    zone: str = "UTC"
    match: str | None = None
    tenant: str | None = None


class Reach(Struct, frozen=True):
    """Which days a run considers.

    `last`: how far back from now to pull days. `late`: how late samples may arrive. `keep`: remove
    days that ended longer ago than this; None: keep all. `has_today`: include the current day, up
    to now.
    """

    last: timedelta
    late: timedelta
    keep: timedelta | None = None
    has_today: bool = False

    def __post_init__(self) -> None:
        """InputError if a day would be removed as soon as it was pulled."""
        if self.keep is not None and self.keep < max(self.last, self.late):
            raise InputError(
                "--keep is shorter than --last or --late: days would be removed as soon as they "
                "were pulled. Keep them at least that long."
            )


Pull = Callable[[TimeRange, Path], object]
"""Writes the window of a time range to a path."""


class _Book(Struct, frozen=True):
    source: Source
    days: Mapping[date, Day] = field(default_factory=dict)


class DayStore(Struct):
    """The store in a folder; while it is open, no other run can use it (`day_store`)."""

    folder: Path
    source: Source
    days: dict[date, Day]
    _zone: ZoneInfo

    def path(self, day: date) -> Path:
        """The path of a day's window, whether or not it exists."""
        return self.folder / day.isoformat()

    def time_range(self, day: date) -> TimeRange:
        """A day from midnight to midnight; 23 or 25 hours when clocks change."""
        return TimeRange(self._midnight(day), self._midnight(day + _DAY))

    def due(self, reach: Reach, now: datetime) -> list[date]:
        """The days to pull, oldest first: in reach, missed since the last run, or not yet final.

        The current day is due if the reach includes today or covers nothing but today.
        """
        today = self._day_of(now)
        first, final = self._day_of(now - reach.last), today - _DAY
        if reach.has_today or first == today:
            final = today
        if self.days:
            first = min(first, max(self.days) + _DAY)
        wanted = {first + _DAY * n for n in range((final - first).days + 1)}
        again = {day for day in self.days if day <= final and not self._is_settled(day, reach)}
        oldest = self._oldest(reach, now)
        new = {day for day in wanted if day not in self.days}
        return sorted(day for day in new | again if oldest is None or day >= oldest)

    def pull(self, day: date, pull: Pull, *, now: datetime) -> Outcome:
        """Pull a day, up to now if it is not over, and store it if it changed.

        A window that somebody is reading is left for the next run. SourceError from the source.
        """
        whole = self.time_range(day)
        coming = self.folder / _WORKPLACE / day.isoformat()
        try:
            pull(TimeRange(whole.start, min(whole.end, now)), coming)
            outcome = self._taken(coming, self.path(day))
        except NoTelemetryError:
            outcome = Outcome.SAME if self.path(day).exists() else Outcome.EMPTY
        finally:
            shutil.rmtree(coming, ignore_errors=True)
        if outcome is not Outcome.IN_USE:
            was = self.days.get(day, Day(now))
            is_reported = was.is_reported and outcome is Outcome.SAME
            self._note(day, Day(now, outcome is Outcome.EMPTY, is_reported, was.inputs))
        return outcome

    def unreported(self) -> list[date]:
        """The days that have a window but no page, oldest first."""
        return sorted(
            day for day, known in self.days.items() if not (known.is_reported or known.is_empty)
        )

    def reported(self, day: date, inputs: str = "") -> None:
        """Record that a day's page has been made, with these inputs beside its window."""
        self._note(day, replace(self.days[day], is_reported=True, inputs=inputs))

    def report_again(self, day: date) -> None:
        """Record that a day's page must be made again, if the day has a window and a page."""
        known = self.days.get(day)
        if known is not None and known.is_reported and self.path(day).exists():
            self._note(day, replace(known, is_reported=False))

    def prune(self, reach: Reach, now: datetime) -> list[date]:
        """Remove windows that are old enough and not being read; returns their days."""
        oldest = self._oldest(reach, now)
        removed: list[date] = []
        if oldest is None:
            return removed
        for left in (self.folder / _WORKPLACE).glob(".*.writing"):  # from interrupted pulls
            if left.name[1:] < oldest.isoformat():
                shutil.rmtree(left, ignore_errors=True)
        for day in sorted(self.days):
            if day < oldest and _removed(self.path(day)):
                removed.append(day)
                del self.days[day]
        if removed:
            self._write()
        return removed

    def _day_of(self, at: datetime) -> date:
        return at.astimezone(self._zone).date()

    def _midnight(self, day: date) -> datetime:
        return datetime.combine(day, time.min, self._zone).astimezone(UTC)

    def _is_settled(self, day: date, reach: Reach) -> bool:
        return self.days[day].pulled >= self.time_range(day).end + reach.late

    def _oldest(self, reach: Reach, now: datetime) -> date | None:
        return None if reach.keep is None else self._day_of(now - reach.keep)

    def _taken(self, coming: Path, there: Path) -> Outcome:
        """Replace the stored window with the pulled one if it differs."""
        if not there.exists():
            coming.rename(there)
            return Outcome.NEW
        if not _replaces(coming, there):
            return Outcome.SAME
        with alone(there) as is_unread:
            if not is_unread:
                return Outcome.IN_USE
            old = coming.with_name(f"{there.name}-before")
            if (there / _ROLLUP).is_dir():  # entries are keyed by their inputs
                (there / _ROLLUP).rename(coming / _ROLLUP)
            there.rename(old)
            coming.rename(there)
        shutil.rmtree(old)
        return Outcome.CHANGED

    def _note(self, day: date, known: Day) -> None:
        self.days[day] = known
        self._write()

    def _write(self) -> None:
        """Write the book atomically: a killed run leaves the previous one."""
        partial = self.folder / _WORKPLACE / _BOOK
        body = msgspec.json.encode(_Book(self.source, dict(sorted(self.days.items()))))
        with partial.open("wb") as out:
            out.write(msgspec.json.format(body) + b"\n")
            out.flush()
            os.fsync(out.fileno())
        partial.replace(self.folder / _BOOK)


@contextmanager
def day_store(folder: Path, source: Source) -> Iterator[DayStore]:
    """The store in a folder, locked for this run; the folder is created if missing.

    SourceError if another run holds the store, InputError if its days are from another source or
    time zone. If the book is lost, its windows count as never pulled.
    """
    zone = time_zone(source.zone)
    folder.mkdir(parents=True, exist_ok=True)
    busy = f"Another run is working on {folder}; nothing was done. Try again when it has finished."
    with workplace(folder / _WORKPLACE, busy=busy) as coming:
        known = _known_days(folder, source)
        for left in coming.glob("[!.]*"):  # from a killed run; answers are in hidden folders
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        yield DayStore(folder, source, known, zone)


def newest_day(folder: Path) -> Path | None:
    """The window of the latest day in a store's folder; None if there is none."""
    days = [day for day in _days_of(folder) if _there(folder, day)]
    return folder / max(days).isoformat() if days else None


def _known_days(folder: Path, source: Source) -> dict[date, Day]:
    book = folder / _BOOK
    if not book.exists():
        never = datetime.min.replace(tzinfo=UTC)
        return {day: Day(never) for day in _days_of(folder)}
    try:
        read = msgspec.json.decode(book.read_bytes(), type=_Book)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise InputError(
            f"{book} is damaged. Remove it: the days in {folder} are then pulled and reported "
            "again."
        ) from None
    if read.source != source:
        raise InputError(
            f"{folder} contains days of {_described(read.source)}, not of {_described(source)}. "
            "Give another folder: --windows."
        )
    return {day: known for day, known in read.days.items() if known.is_empty or _there(folder, day)}


def _described(source: Source) -> str:
    parts = {"stream": source.stream, "series": source.match, "tenant": source.tenant}
    labels = "".join(f", {name} {value}" for name, value in parts.items() if value)
    return f"{source.origin}{labels}, time zone {source.zone}"


def _days_of(folder: Path) -> list[date]:
    days = []
    for path in folder.glob("????-??-??"):
        with suppress(ValueError):
            days.append(date.fromisoformat(path.name))
    return days


def _there(folder: Path, day: date) -> bool:
    return (folder / day.isoformat()).is_dir()


def _removed(window: Path) -> bool:
    """Remove a window unless somebody is reading it; returns whether it is gone."""
    if not window.is_dir():
        return True
    with alone(window) as is_unread:
        if is_unread:
            shutil.rmtree(window)
    return not window.exists()


def _replaces(new: Path, old: Path) -> bool:
    """Whether a new window replaces the old: other rows or another end, but not fewer rows."""
    came = read_manifest(new)
    try:
        had = read_manifest(old)
    except WindowError:
        return True  # the stored window is damaged
    if _rows(came) < _rows(had):
        return False
    return came.provenance.get("end") != had.provenance.get("end") or not _is_same(came, had)


def _rows(held: Manifest) -> int:
    return sum(file.rows for file in held.files)


def _is_same(new: Manifest, old: Manifest) -> bool:
    ours, theirs = ({file.plain: file for file in held.files} for held in (new, old))
    return ours.keys() == theirs.keys() and all(
        file.sha256 == theirs[name].sha256
        or read_part(new.path, new.path / file.name).equals(
            read_part(old.path, old.path / theirs[name].name)
        )
        for name, file in ours.items()
    )
