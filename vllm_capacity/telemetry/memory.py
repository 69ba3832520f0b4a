"""How much memory an answer may take: half of what the machine or its control group has, or less.

DuckDB keeps to the limit and writes what does not fit into a private folder among the temporary
ones, where there can be one; what of a window cannot be read within it is refused before it is
read.
"""

from __future__ import annotations

import os
import re
import weakref
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from itertools import count
from pathlib import Path

import duckdb

from vllm_capacity.errors import InputError
from vllm_capacity.holding import private_folder

MEMORY_LIMIT = "VLLM_CAPACITY_MEMORY_LIMIT"
"""The environment variable that `--memory-limit` sets."""

_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(I?)B?\s*", re.IGNORECASE)
_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}
_LEAST_BYTES = 100_000_000
_CGROUPS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
# What a row of an hour takes while it is worked on, as measured, and half as much again.
_SAMPLE_BYTES, _HISTOGRAM_BYTES = 150, 1_200


def limit_bytes() -> int:
    """The limit in bytes: the given one, else half of what there is.

    InputError where the given one is no size, or too small to do anything with.
    """
    given = os.environ.get(MEMORY_LIMIT)
    return parse_size(given) if given else _there_bytes() // 2


def parse_size(text: str) -> int:
    """Bytes of a size as people write it: `2GB`, `512 MiB`, `1500000000`."""
    found = _SIZE.fullmatch(text)
    if found is None:
        raise InputError(f"No size {text!r} for --memory-limit; write it as 4GB or 512MB.")
    number, power, binary = found.groups()
    size = int(float(number) * (1024 if binary else 1000) ** _POWERS[power.upper()])
    if size < _LEAST_BYTES:
        raise InputError(f"--memory-limit is {text!r}, but no answer takes less than 100MB.")
    return size


@dataclass(frozen=True, eq=False)
class Database:
    """Tables and views of their own in memory; all of a process keep to the limit together."""

    name: str
    _engine: duckdb.DuckDBPyConnection

    def cursor(self) -> duckdb.DuckDBPyConnection:
        """A connection to it, in UTC: for one thread at a time."""
        cursor = self._engine.cursor()
        cursor.execute(f"use {self.name}")
        return cursor


_NUMBERS = count(1)


def database() -> Database:
    """A new one; it is gone with the last reference to it."""
    spill = private_folder("vllm-capacity-spill")
    engine = _engine(limit_bytes(), str(spill / str(os.getpid())) if spill else "", os.getpid())
    name = f"own_{next(_NUMBERS)}"
    with engine.cursor() as cursor:
        cursor.execute(f"attach ':memory:' as {name}")
    made = Database(name, engine)
    weakref.finalize(made, _detach, engine, name).atexit = False
    return made


@cache
def _engine(memory_limit_bytes: int, spill: str, pid: int) -> duckdb.DuckDBPyConnection:
    """The DuckDB of a process: to start one takes as long as to read an hour, so all share it."""
    config: dict[str, str | bool | int | float | list[str]] = {
        "memory_limit": f"{memory_limit_bytes}B",
        "temp_directory": spill,
    }
    connection = duckdb.connect(":memory:", config=config)
    connection.execute("set global TimeZone = 'UTC'")
    return connection


def _detach(engine: duckdb.DuckDBPyConnection, name: str) -> None:
    with suppress(duckdb.Error), engine.cursor() as cursor:
        cursor.execute(f"detach {name}")


def require_room(what: str, *, samples: int, histograms: int) -> None:
    """InputError, with the size that would do, where so many rows cannot be read at a time."""
    needed, limit = needed_bytes(samples=samples, histograms=histograms), limit_bytes()
    if needed > limit:
        raise InputError(
            f"{what} is {samples + histograms:,} rows, which take about {needed / 1e9:.2g} GB of "
            f"memory; the limit is {limit / 1e9:.2g} GB. Give --memory-limit "
            f"{needed / 1e9 + 0.1:.1f}GB, or use a machine that has twice that."
        )


def needed_bytes(*, samples: int, histograms: int) -> int:
    """About how much memory so many rows take while they are worked on, in bytes."""
    return samples * _SAMPLE_BYTES + histograms * _HISTOGRAM_BYTES


def _there_bytes() -> int:
    """The memory of this machine, or of its control group where that is less."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for name in _CGROUPS:
        with suppress(OSError, ValueError):
            whole = min(whole, int(Path(name).read_text()))
    return whole
