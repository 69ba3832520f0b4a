"""The memory limit of queries: the given one, else half of the machine's or control group's memory.

DuckDB keeps to the limit and spills to a private temporary folder if one can be created. Data that
cannot be read within the limit are rejected before reading.
"""

from __future__ import annotations

import ctypes
import os
import re
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache, cached_property
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct

from vllm_capacity.errors import InputError
from vllm_capacity.holding import private_folder

MEMORY_LIMIT = "VLLM_CAPACITY_MEMORY_LIMIT"
"""The environment variable that `--memory-limit` sets."""

if TYPE_CHECKING:
    import duckdb

    Connection = duckdb.DuckDBPyConnection

_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(I?)B?\s*", re.IGNORECASE)
_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}
_MIN_BYTES = 100_000_000
_CGROUPS, _OWN_CGROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
_MALLOPT_TRIM_THRESHOLD, _MALLOPT_MMAP_THRESHOLD = -1, -3  # of malloc.h
_KEPT_BYTES = 2**27
# Memory per row of an hour during processing: 1.5 times the measured values.
_SAMPLE_BYTES, _HISTOGRAM_BYTES = 150, 1_200
_EXACT_BYTES = 400  # per row of exact figures: 130 measured of an engine-day, 460 of a small fleet


def limit_bytes() -> int:
    """The limit in bytes: the given one, else half of the available memory.

    Raises InputError if the given limit is not a size, or is too small.
    """
    given = os.environ.get(MEMORY_LIMIT)
    return parse_size(given) if given else _there_bytes() // 2


def parse_size(text: str) -> int:
    """The bytes of a size such as `2GB`, `512 MiB` or `1500000000`; errors as in `limit_bytes`."""
    found = _SIZE.fullmatch(text)
    if found is None:
        raise InputError(f"No size {text!r} for --memory-limit; write it as 4GB or 512MB.")
    number, power, binary = found.groups()
    size = int(float(number) * (1024 if binary else 1000) ** _POWERS[power.upper()])
    if size < _MIN_BYTES:
        raise InputError(f"--memory-limit is {text!r}, but every answer needs at least 100MB.")
    return size


class Database(Struct, frozen=True, eq=False, dict=True, weakref=True):
    """An in-memory database, created with its first cursor and removed with its last reference.

    `prepare` is called once, with a cursor, before any other use. All databases of a process share
    one memory limit. DuckDB is imported only on first use: it is not needed for small windows.
    """

    name: str
    prepare: Callable[[Connection], None]

    def cursor(self) -> Connection:
        """A connection to the database, in UTC, for one thread at a time."""
        return _cursor(self._engine, self.name)

    @cached_property
    def _engine(self) -> Connection:
        spill = private_folder("vllm-capacity-spill")
        engine = _engine(limit_bytes(), str(spill / str(os.getpid())) if spill else "", os.getpid())
        with engine.cursor() as cursor:
            cursor.execute(f"attach ':memory:' as {self.name}")
        detach = weakref.finalize(self, _detach, engine, self.name)
        detach.atexit = False
        try:
            with _cursor(engine, self.name) as cursor:
                self.prepare(cursor)
        except BaseException:
            detach()
            raise
        return engine


_NUMBERS = count(1)


def database(prepare: Callable[[Connection], None] = lambda cursor: None) -> Database:
    """A database with what `prepare` puts into it."""
    return Database(f"own_{next(_NUMBERS)}", prepare)


def _cursor(engine: Connection, name: str) -> Connection:
    cursor = engine.cursor()
    cursor.execute(f"use {name}")
    return cursor


@cache
def _engine(memory_limit_bytes: int, spill: str, pid: int) -> Connection:
    """The only DuckDB instance of a process: starting one takes as long as reading an hour."""
    import duckdb

    config: dict[str, str | bool | int | float | list[str]] = {
        "memory_limit": f"{memory_limit_bytes}B",
        "temp_directory": spill,
    }
    connection = duckdb.connect(":memory:", config=config)
    connection.execute("set global TimeZone = 'UTC'")
    return connection


def _detach(engine: Connection, name: str) -> None:
    import duckdb

    with suppress(duckdb.Error), engine.cursor() as cursor:
        cursor.execute(f"detach {name}")


def keep_freed_memory() -> None:
    """Let the C library keep the memory of freed arrays for later ones, until the process ends.

    By default it returns memory to the system again and again: for a month of 100 engines, this
    causes a fifth of the page faults. Does nothing if the library is not glibc.
    """
    with suppress(AttributeError, OSError):
        library = ctypes.CDLL(None)
        library.mallopt(_MALLOPT_MMAP_THRESHOLD, _KEPT_BYTES // 4)
        library.mallopt(_MALLOPT_TRIM_THRESHOLD, _KEPT_BYTES)


def require_room(what: str, *, samples: int, histograms: int) -> None:
    """Raise InputError, naming a sufficient limit, if this many rows do not fit into the limit."""
    needed = needed_bytes(samples=samples, histograms=histograms)
    _require(needed, what, samples + histograms, "use a machine with twice that much memory")


def require_room_for_exact(what: str, *, rows: int) -> None:
    """Raise InputError, naming a sufficient limit, if exact figures of the rows do not fit."""
    _require(rows * _EXACT_BYTES, what, rows, "leave out --exact, or choose a shorter range")


def _require(needed: int, what: str, rows: int, otherwise: str) -> None:
    limit = limit_bytes()
    if needed > limit:
        raise InputError(
            f"{what} is {rows:,} rows, which take about {_gigabytes(needed)} GB of memory; the "
            f"limit is {_gigabytes(limit)} GB. Set --memory-limit {needed / 1e9 + 0.1:.1f}GB, or "
            f"{otherwise}."
        )


def _gigabytes(count: int) -> str:
    """Two digits, without an exponent."""
    return f"{float(f'{count / 1e9:.2g}'):,g}"


def needed_bytes(*, samples: int, histograms: int) -> int:
    """Approximate memory for processing this many rows, in bytes."""
    return samples * _SAMPLE_BYTES + histograms * _HISTOGRAM_BYTES


def _there_bytes() -> int:
    """The memory of this machine, or of its control groups if that is less, in bytes."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([whole, *_cgroup_limits()])


def _cgroup_limits() -> Iterator[int]:
    """The memory limits of the control groups that this process is in, in bytes, if any.

    Each group up to the root has its own; in version 1, that of the `memory` controller.
    """
    with suppress(OSError, ValueError):
        for line in _OWN_CGROUPS.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and "memory" not in controllers.split(","):
                continue
            root = _CGROUPS / "memory" if controllers else _CGROUPS
            name = "memory.limit_in_bytes" if controllers else "memory.max"
            own = root / path.lstrip("/")
            for group in (own, *own.parents):
                if group.is_relative_to(root):
                    with suppress(OSError, ValueError):  # `max`, or the root of a container
                        yield int((group / name).read_text())
