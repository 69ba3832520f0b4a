"""An opened window: a folder of Parquet files, queried through documented views.

`series`, `samples`, `histograms` and `intake` are the canonical tables (rows.py); `minutes` and
`minute_histograms` are the rollup (rollup.py), computed on first use.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from functools import cached_property, partial
from importlib.resources import files
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any

import polars as pl
from msgspec import Struct
from msgspec.structs import replace
from polars import selectors

from vllm_capacity.errors import InputError, WindowError
from vllm_capacity.holding import Pin
from vllm_capacity.resources import shipped
from vllm_capacity.telemetry.bucket import is_s3
from vllm_capacity.telemetry.manifest import (
    SINGLE,
    TABLES,
    File,
    Manifest,
    as_pattern,
    damaged,
    read_manifest,
    read_part,
)
from vllm_capacity.telemetry.memory import Database, database, limit_bytes
from vllm_capacity.telemetry.mirror import at_hand, at_this_machine, mirrored
from vllm_capacity.timerange import TimeRange, parse_instant

if TYPE_CHECKING:
    import duckdb

_READS_ROWS = re.compile("samples|histograms|minute", re.IGNORECASE)

_EMPTY = {
    "samples": "select 0::bigint as series_id, 0::int as run, now()::timestamptz as ts, "
    "0::double as value where false",
    "histograms": "select 0::bigint as series_id, 0::int as run, now()::timestamptz as ts, "
    "0::double as count, 0::double as sum, []::double[] as counts where false",
}


class Answers(dict[object, pl.DataFrame]):
    """Query results by key, each computed once even if several threads need it."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = RLock()  # computing one may need another

    def remembered(self, key: object, make: Callable[[], pl.DataFrame]) -> pl.DataFrame:
        """The result for that key, computed on first use."""
        with self._lock:
            if key not in self:
                self[key] = make()
            return self[key]


class Window(Struct, frozen=True, dict=True):
    """A window of telemetry; query it with `sql`, or through the package's figures."""

    manifest: Manifest
    database: Database
    pin: Pin
    answers: Answers | None = None
    """Cached answers of shipped queries and frames derived from them, if cached (`remembering`)."""

    @property
    def fields(self) -> dict[str, Any]:
        """The fields of a `Window` by name, from which its subclasses are made."""
        return {name: getattr(self, name) for name in Window.__struct_fields__}

    @property
    def path(self) -> Path:
        """The window's folder."""
        return self.manifest.path

    @property
    def address(self) -> str:
        """The address that opens it from anywhere: the folder's absolute path, or the S3 URL."""
        return self.manifest.origin or str(self.path.resolve())

    @property
    def provenance(self) -> Mapping[str, Any]:
        """The contents of `window.json` about the origin of the telemetry."""
        return self.manifest.provenance

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.name

    @property
    def grain(self) -> str:
        """`scrape` if it has every sample, `minute` if downsampled to first and last states."""
        return str(self.provenance.get("grain", "scrape"))

    @property
    def counters(self) -> str:
        """The grain of counters and histograms: pulls from Prometheus downsample only these."""
        return str(self.provenance.get("counters", self.grain))

    @property
    def resolution(self) -> str:
        """What figures are based on: `scrape`s, `minute`s of downsampled data, or `hour`s."""
        return self.counters

    @property
    def is_simulated(self) -> bool:
        """Whether a simulator made the telemetry; every display must say so."""
        return bool(self.provenance.get("simulated", False))

    def sql(self, query: str, **params: object) -> pl.DataFrame:
        """The result of a query over the views; `$name` in it is bound to the argument `name`.

        Each call has its own cursor, so threads do not interfere.
        """
        if self.manifest.origin is not None and _READS_ROWS.search(query):
            self._ensure_rows  # noqa: B018  fetches files on first use
        if "minute" in query:
            self._ensure_rollup  # noqa: B018  creates the views on first use
        return asked(self.database, query, params, window=self.name)

    def named_sql(self, package: str, name: str, **params: object) -> pl.DataFrame:
        """The result of a shipped query (`package`/sql/`name`.sql), cached if `remembering`."""
        key = (package, name, repr(sorted(params.items())))
        return self._remembered(key, partial(self.shipped_sql, package, name, params))

    def first_rows(
        self, package: str, name: str, count: int, **params: object
    ) -> tuple[pl.DataFrame, int]:
        """The first rows of `named_sql`, at most `count`, and the number of all rows."""
        found = self.named_sql(package, name, **params)
        return found.head(count), found.height

    def derived(self, package: str, name: str, make: Callable[[], pl.DataFrame]) -> pl.DataFrame:
        """The frame of that name that `make` derives from query results, cached like these."""
        return self._remembered((package, name, ""), make)

    def _remembered(
        self, key: tuple[str, str, str], make: Callable[[], pl.DataFrame]
    ) -> pl.DataFrame:
        return make() if self.answers is None else self.answers.remembered(key, make)

    def shipped_sql(self, package: str, name: str, params: Mapping[str, object]) -> pl.DataFrame:
        """The result of a shipped query, never from the cache."""
        return self.sql(query_text(package, name), **params)

    def hourly(self, name: str, *, everywhere: bool = False) -> pl.DataFrame | None:
        """An hourly summary of a long range (figures/by_hour.py), or None if rows must be read.

        With `everywhere`, of the whole window.
        """
        return None

    def hourly_parts(
        self, name: str, *, columns: Sequence[str] | None = None
    ) -> Iterator[pl.DataFrame] | None:
        """The frame of `hourly`, or some of its columns, in consecutive parts: it may be large."""
        return None

    def remembering(self) -> Window:
        """The same window, but with each shipped query run only once.

        It keeps every result for its lifetime: use it for one analysis, not for a service.
        """
        found = replace(self, answers=Answers())
        if "extent" in vars(self):
            vars(found)["extent"] = self.extent  # known already
        return found

    @property
    def begin(self) -> datetime | None:
        """The start requested from the source; earlier samples are baselines for increases."""
        return asked_instant(self.provenance, "start")

    @property
    def asked_end(self) -> datetime | None:
        """The end requested from the source, whether or not the data reach it."""
        return asked_instant(self.provenance, "end")

    @cached_property
    def extent(self) -> TimeRange:
        """The range from the first scrape attempt of any target to just after the last one.

        It never begins before the requested start.
        """
        hours: dict[str, list[File]] = {}
        for file in self.manifest.files:
            if file.table in TABLES and file.rows:
                hours.setdefault(Path(file.plain).name, []).append(file)
        ends = {*hours[min(hours)], *hours[max(hours)]}  # files are named by the hour of their rows
        at_hand(self.manifest, ends)
        paths = sorted(self.path / file.name for file in ends)
        times = pl.concat(read_part(self.path, path, columns=["ts"]) for path in paths)["ts"]
        first, end = times.min(), times.max()
        assert isinstance(first, datetime)
        assert isinstance(end, datetime)
        is_asked = self.begin is not None and first < self.begin <= end
        start = self.begin if is_asked and self.begin is not None else first
        return TimeRange(start, end + timedelta(microseconds=1))

    def clamp(self, start: datetime | None, end: datetime | None) -> TimeRange:
        """The time range [start, end); times outside the window's capture are clamped to it.

        Raises InputError if nothing of the capture is left.
        """
        whole = self.extent
        if start is not None and end is not None:
            TimeRange(start, end)  # raises if the end is not after the start
        first = whole.start if start is None else max(start, whole.start)
        last = whole.end if end is None else min(end, whole.end)
        if last <= first:
            raise InputError(
                f"The window {self.name} covers {whole.start.isoformat()} … "
                f"{whole.end.isoformat()}, which does not overlap the time range asked for. Check "
                "--start and --end (UTC)."
            )
        return TimeRange(first, last)

    @cached_property
    def _ensure_rows(self) -> bool:
        at_hand(self.manifest, self.manifest.files)
        with self.database.cursor() as cursor:
            _show(self.manifest, TABLES, cursor)
        return True

    @cached_property
    def _ensure_rollup(self) -> bool:
        from vllm_capacity.telemetry import rollup  # most windows are read without it

        with self.database.cursor() as cursor:
            rollup.make_views(self.manifest, cursor)
        return True


def asked_instant(provenance: Mapping[str, Any], name: str) -> datetime | None:
    """The requested `start` or `end` in a window's provenance; None if it has none.

    Raises WindowError if it is not a time.
    """
    text = provenance.get(name)
    if text is None:
        return None
    try:
        return parse_instant(str(text))
    except InputError as error:
        raise WindowError(f"window.json says {name}: {text!r}. {error}") from None


def asked(
    database: Database,
    query: str,
    params: Mapping[str, object],
    *,
    window: str,
) -> pl.DataFrame:
    """The result of a query over the views of a window, with times in UTC.

    Raises InputError, naming the window, if the query fails.
    """
    import duckdb  # slow to import, and small windows are read without it

    try:
        with database.cursor() as cursor:
            answer = pl.DataFrame(cursor.sql(query, params=dict(params) or None))
    except duckdb.OutOfMemoryException as error:
        raise InputError(
            f"The query on {window} needs more than {limit_bytes() / 1e9:.2g} GB of memory. Raise "
            "--memory-limit, or choose a shorter range with --start and --end."
        ) from error
    except duckdb.Error as error:
        raise InputError(f"The window {window} cannot answer that query: {error}") from error
    # DuckDB names the zone Etc/UTC, and polars compares zones by name.
    return answer.with_columns(selectors.datetime(time_zone="*").dt.convert_time_zone("UTC"))


def query_text(package: str, name: str) -> str:
    """The text of a shipped query."""
    return files(f"vllm_capacity.{package}").joinpath("sql", f"{name}.sql").read_text()


def open_window(name_or_path: str | Path, *, verify: bool = False) -> Window:
    """Open the window with that path or name; with `verify`, check the hash of every file.

    A path may be `s3://bucket/prefix`: files that are read are copied first (mirror.py). A name is
    searched for from the working folder upward in data/windows, then in data/examples, then among
    the shipped windows. Raises WindowError if there is none (with the names that exist) or if the
    window is damaged; SourceError if S3 fails.
    """
    origin = str(name_or_path).rstrip("/") if is_s3(name_or_path) else None
    path = window_path(name_or_path) if origin is None else mirrored(origin)
    pin = Pin(path)
    manifest = read_manifest(path, verify=verify and origin is None, origin=origin)
    if verify and origin is not None:  # copying checks each file
        at_hand(manifest, manifest.files)
    return _connected(manifest, pin)


def part_of(manifest: Manifest) -> Window:
    """The window of a known manifest, which may list only a part of the files."""
    here = at_this_machine(manifest)
    return _connected(here, Pin(here.path))


def _connected(manifest: Manifest, pin: Pin) -> Window:
    """The window with its views; if hour files are in S3, views of rows are created on first use.

    The first query raises WindowError if a file cannot be read.
    """
    tables = SINGLE if manifest.origin else (*SINGLE, *TABLES)
    return Window(manifest, database(partial(_show, manifest, tables)), pin)


def _show(manifest: Manifest, tables: Sequence[str], cursor: duckdb.DuckDBPyConnection) -> None:
    import duckdb

    try:
        for table in tables:
            if paths := manifest.paths(table):
                cursor.read_parquet([as_pattern(each) for each in paths]).to_view(table)
            else:
                cursor.sql(_EMPTY[table]).to_view(table)
    except duckdb.Error as error:
        raise damaged(manifest.path, str(error).splitlines()[0]) from error


def window_path(name_or_path: str | Path) -> Path:
    """The folder of the window with that path or name, found as in `open_window`."""
    return _find(str(name_or_path))


def _find(name_or_path: str) -> Path:
    path = Path(name_or_path)
    if path.is_dir():
        return path.resolve()
    candidates = [path]
    if path.name == name_or_path:
        candidates = [folder / name_or_path for folder in window_folders()]
    for candidate in candidates:
        if candidate.is_dir():
            return candidate
    names = sorted({p.parent.name for f in window_folders() for p in f.glob("*/window.json")})
    raise WindowError(
        f"No window {name_or_path!r}: there is neither a folder at that path nor a window of that "
        f"name. Windows: {', '.join(names) or 'none here'}."
    )


class KnownWindow(Struct, frozen=True):
    """A window that was found, with a summary; `problem` is why it cannot be read, else None.

    Times are those of its first and last scrape (None if it cannot be read); `source` is empty if
    its `window.json` does not name one.
    """

    name: str
    path: Path
    start: datetime | None = None
    end: datetime | None = None
    grain: str = ""
    source: str = ""
    bytes: int = 0
    is_simulated: bool = False
    problem: str | None = None


def known_windows(folders: Sequence[Path] = ()) -> list[KnownWindow]:
    """The windows in these folders, or in those searched for names (default); sorted by name.

    Of several windows with one name, only the nearest is listed: the one that the name opens. Only
    the times of the first and last hour of rows are read.
    """
    found: dict[Path | str, Path] = {}
    for folder in folders or window_folders():
        for note in sorted(folder.glob("*/window.json")):
            found.setdefault(note.parent if folders else note.parent.name, note.parent)
    return sorted(map(_known_window, found.values()), key=lambda each: each.name)


def _known_window(path: Path) -> KnownWindow:
    try:
        window = open_window(path)
        extent, source = window.extent, window.provenance.get("source", "")
    except WindowError as error:
        return KnownWindow(path.name, path, problem=str(error))
    except ValueError:  # without rows there is no extent
        return KnownWindow(path.name, path, problem=f"The window {path} has no rows.")
    size = sum(file.bytes for file in window.manifest.files)
    return KnownWindow(
        path.name,
        path,
        extent.start,
        extent.end,
        window.grain,
        str(source.get("kind", "") if isinstance(source, Mapping) else source),
        size,
        window.is_simulated,
    )


def window_folders() -> list[Path]:
    """The folders in which windows are searched for by name, nearest first."""
    here = Path.cwd()
    roots = [here, *here.parents]
    kept = [root / "data" / kind for kind in ("windows", "examples") for root in roots]
    return [folder for folder in [*kept, shipped("data") / "examples"] if folder.is_dir()]
