"""Hourly summaries of many engines for weeks, made from those of one engine's day.

The day (engine_day.py) is answered by the hour, and its hours are put together: engine n begins n
hours into the day, so that no two of 24 do the same at one time, and each day is lived through by
new processes. Nobody could write the rows themselves, of which there would be billions: the
window's own files hold those at the ends of hours alone, and figures of it read what is kept.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache, cached_property
from pathlib import Path

import polars as pl

from bench.engine_day import engine_day
from vllm_capacity.facts.metrics import KV_CACHE
from vllm_capacity.figures.by_hour import Digests, kept_pieces, key_of
from vllm_capacity.figures.days import in_days
from vllm_capacity.figures.pieces import NO_BASE, ROWS_PER_PIECE, pieces_of
from vllm_capacity.telemetry.manifest import SINGLE, TABLES, as_listed, write_note
from vllm_capacity.telemetry.processes import PROCESS_START
from vllm_capacity.telemetry.shelf import Shelf
from vllm_capacity.telemetry.store import write_part
from vllm_capacity.telemetry.window import Window, open_window

BEGIN = datetime(2026, 11, 1, tzinfo=UTC)
HOUR, DAY_HOURS = timedelta(hours=1), 24
_RUNS_PER_DAY = 8  # more than any day of the recording has

Frames = Mapping[str, pl.DataFrame]


@dataclass(frozen=True)
class Template:
    """The whole hours of an engine's day, each with its summary."""

    window: Window
    begins: tuple[datetime, ...]
    hours: tuple[Frames, ...]

    @cached_property
    def starts(self) -> pl.Series:
        """The series with the process start time."""
        series = self.window.sql("select * from series")
        return series.filter(pl.col("metric") == PROCESS_START)["series_id"]


@cache
def template(folder: Path) -> Template:
    """The hours of the engine-day in the folder."""
    window = open_window(engine_day(folder))
    pieces = pieces_of(window, window.extent, rows_per_piece=1)
    begins, hours = [], []
    for piece in kept_pieces(window, pieces, Shelf.of(window.manifest)):
        if piece.time_range.end - piece.time_range.start == HOUR:
            begins.append(piece.time_range.start)
            assert isinstance(piece.entry.frames, Path)
            paths = piece.entry.frames.glob("*.parquet")
            hours.append({path.stem: pl.read_parquet(path) for path in sorted(paths)})
    return Template(window, tuple(begins), tuple(hours))


def engine_month(folder: Path, engines: int, days: int) -> Path:
    """A window of that many engines and days whose hourly summaries exist."""
    known, path = template(folder), folder / f"engines-{engines}-days-{days}"
    for table in TABLES:
        (path / table).mkdir(parents=True, exist_ok=True)
    fleet = _Fleet(known, engines)
    files = []
    for table, frame in fleet.tables.items():
        frame.write_parquet(path / f"{table}.parquet")
        files.append(as_listed(path, table, f"{table}.parquet", rows=frame.height))
    for number in range(DAY_HOURS * days):
        hour = BEGIN + HOUR * number
        for table in TABLES:
            name = f"{table}/{hour:%Y-%m-%dT%H}.parquet"
            rows = fleet.stand_in(table, hour)
            write_part(path / name, rows)
            files.append(as_listed(path, table, name, rows=rows.height))
    write_note(path, {"simulated": True}, files, through=path)
    window = open_window(path)
    shelf, digests, base = Shelf.of(window.manifest), Digests(path), NO_BASE.digest
    for number, piece in enumerate(pieces_of(window, window.extent)):
        base = shelf.keep(key_of(piece, base, digests), str(number), fleet.hour(number)).base
    days = in_days(pieces_of(window, window.extent), [window.extent.start])
    for _ in kept_pieces(window, days, shelf):  # stores the days
        pass
    return path


class _Fleet:
    """Engines that repeat the hours of a template, each n hours ahead of the first."""

    def __init__(self, known: Template, engines: int) -> None:
        self.known = known
        self._cycle = len(known.hours)
        names = {ahead: range(ahead, engines, self._cycle) for ahead in range(self._cycle)}
        self._own = {ahead: own for ahead, own in names.items() if own}
        self._copies: dict[tuple[int, int], Frames] = {}
        series, intake = (known.window.sql(f"select * from {table}") for table in SINGLE)
        copies = [_renamed(series, number) for number in range(engines)]
        self.tables = {"series": pl.concat(copies), "intake": intake}

    def stand_in(self, table: str, hour: datetime) -> pl.DataFrame:
        """Rows that replace those of an hour: enough samples to make the hour its own piece."""
        step = HOUR / ROWS_PER_PIECE if table == "samples" else HOUR
        times = pl.datetime_range(hour, hour + HOUR, step, closed="left", eager=True)
        one = self._copied(0, 0)[table].head(1).drop("ts")
        return one.join(times.alias("ts").to_frame(), how="cross")

    def hour(self, number: int) -> Frames:
        """The summaries of all of them for an hour, by name."""
        parts = [self._moved(ahead, number) for ahead in self._own]
        return {name: _together(name, [part[name] for part in parts]) for name in parts[0]}

    def _moved(self, ahead: int, number: int) -> Frames:
        """The summaries of the engines of one start for an hour, at its time."""
        day, at = divmod(number + ahead, self._cycle)
        later = BEGIN + HOUR * number - self.known.begins[at]
        frames = dict(self._copied(ahead, at))
        if number == 0:  # the window starts here: no earlier rows
            before = self._copied(ahead, at - 1) if at else {}
            for table in TABLES:
                if before:
                    last = before[f"base_{table}"].group_by("series_id").last()
                    first = last.with_columns(ts=pl.lit(self.known.begins[at], last.schema["ts"]))
                    rows = [first.select(frames[table].columns), frames[table]]
                    frames[table] = pl.concat(rows).unique(["series_id", "ts"], keep="first")
        return {name: self._at(frame, day, later) for name, frame in frames.items()}

    def _at(self, frame: pl.DataFrame, day: int, later: timedelta) -> pl.DataFrame:
        times = [name for name, dtype in frame.schema.items() if isinstance(dtype, pl.Datetime)]
        moved = frame.with_columns(pl.col(times) + later)
        if "run" in frame.columns:
            moved = moved.with_columns((pl.col("run") + day * _RUNS_PER_DAY).cast(pl.Int32))
        if "value" in frame.columns:
            is_start = (pl.col("series_id") & 0xFFFFFFFF).is_in(
                (self.known.starts & 0xFFFFFFFF).implode()
            )
            seconds = pl.when(is_start).then(later.total_seconds()).otherwise(0.0)
            moved = moved.with_columns(pl.col("value") + seconds)
        return moved

    def _copied(self, ahead: int, at: int) -> Frames:
        """The summaries of the engines of one start for an hour of the day."""
        key = ahead, at
        if key not in self._copies:
            own = self._own[ahead]
            hours = self.known.hours[at]
            self._copies[key] = {name: _copies(name, frame, own) for name, frame in hours.items()}
        return self._copies[key]


def _copies(name: str, frame: pl.DataFrame, numbers: range) -> pl.DataFrame:
    if name == "requests":
        return frame.with_columns(pl.col("increase") * len(numbers))
    if name == "latency":
        each = pl.element() * len(numbers)
        return frame.with_columns(pl.col("counts").list.eval(each), pl.col("sum") * len(numbers))
    if name == "gauges":
        summed = pl.col("metric") != KV_CACHE
        times = pl.when(summed).then(len(numbers)).otherwise(1)
        return frame.with_columns(pl.col("total", "weighted", "max") * times)
    if name == "fastest_means":
        return frame
    copies = [_renamed(frame, number) for number in numbers]
    if name == "steps":  # each copy gets different values
        less = [1 - number % 1000 / 1000 for number in numbers]
        pairs = zip(copies, less, strict=True)
        copies = [copy.with_columns(pl.col(pl.Float64) * each) for copy, each in pairs]
    return pl.concat(copies)


def _renamed(frame: pl.DataFrame, number: int) -> pl.DataFrame:
    """The rows of another engine."""
    others = []
    if "series_id" in frame.columns:
        others.append(pl.col("series_id") ^ (number << 32))
    if "instance" in frame.columns:
        others.append(pl.col("instance") + f"-{number:03d}")
    return frame.with_columns(others)


_ORDER = ("series_id", "metric", "instance", "engine", "labels", "ts", "start")


def _together(name: str, parts: list[pl.DataFrame]) -> pl.DataFrame:
    """One frame of all engines, in the order that a piece has it."""
    both = pl.concat(parts)
    if name in _ADDED:
        return _added(both, _ADDED[name]).select(both.columns)
    return both.sort([each for each in _ORDER if each in both.columns], maintain_order=True)


_ADDED = {  # frames summed over engines: the columns of a group
    "requests": ["ts", "labels", "metric", "is_birth", "instance", "engine"],
    "latency": ["metric", "ts", "bounds"],
    "gauges": ["metric", "ts"],
}


def _added(both: pl.DataFrame, key: list[str]) -> pl.DataFrame:
    rest = [name for name in both.columns if name not in (*key, "counts")]
    sums = [pl.col(name).sum() for name in rest]
    if "max" in rest:  # exact for a ratio, an upper bound for sums
        is_ratio = pl.col("metric") == KV_CACHE
        sums[rest.index("max")] = (
            pl.when(is_ratio.first()).then(pl.max("max")).otherwise(pl.sum("max"))
        )
    found = both.group_by(key).agg(sums)
    if "counts" in both.columns:
        numbered = both.with_columns(at=pl.int_ranges(pl.col("counts").list.len()))
        each = numbered.select("metric", "ts", "counts", "at").explode("counts", "at")
        summed = each.group_by("metric", "ts", "at").agg(pl.col("counts").sum()).sort("at")
        lists = summed.group_by("metric", "ts", maintain_order=True).agg("counts")
        found = found.join(lists, on=["metric", "ts"])
    return found.sort(key[:2])
