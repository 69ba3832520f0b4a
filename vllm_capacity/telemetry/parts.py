"""Canonical rows in parts, so that rows that exceed memory can wait on disk until finalized."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path

import polars as pl
from msgspec import Struct, field
from msgspec.structs import replace

from vllm_capacity.telemetry.rows import Rows
from vllm_capacity.telemetry.stamps import Correction

Tables = tuple[pl.DataFrame, pl.DataFrame]
"""Samples and histograms."""


class RowsInParts(Struct, frozen=True):
    """Like `Rows`, but with samples and histograms in parts, in order of arrival.

    Each call of a part reads it again.
    """

    series: pl.DataFrame
    parts: Sequence[Callable[[], Tables]]
    ingest_notes: pl.DataFrame
    begin: datetime | None = None

    @classmethod
    def of(cls, rows: Rows) -> RowsInParts:
        """In-memory rows as one part."""
        return cls(
            rows.series, [lambda: (rows.samples, rows.histograms)], rows.ingest_notes, rows.begin
        )

    def whole(self) -> Rows:
        """All rows in memory."""
        samples, histograms = zip(*(part() for part in self.parts), strict=True)
        return Rows(
            self.series, pl.concat(samples), pl.concat(histograms), self.ingest_notes, self.begin
        )

    def corrected(self, change: Correction) -> RowsInParts:
        """The rows with corrected stamps and notes about them; parts are corrected when read."""
        samples, histograms = (frame.clear() for frame in self.parts[0]())
        head = Rows(self.series, samples, histograms, self.ingest_notes)
        parts = [partial(_corrected, part, change) for part in self.parts]
        return replace(self, parts=parts, ingest_notes=change.corrected(head).ingest_notes)


def _corrected(part: Callable[[], Tables], change: Correction) -> Tables:
    samples, histograms = part()
    return change.applied(samples), change.applied(histograms)


class Held(Struct):
    """Tables kept in memory, in the order in which they were added."""

    _tables: list[Tables] = field(default_factory=list)

    @property
    def parts(self) -> Sequence[Callable[[], Tables]]:
        """The added tables, as functions that read them."""
        return [partial(_same, tables) for tables in self._tables]

    def add(self, samples: pl.DataFrame, histograms: pl.DataFrame) -> None:
        """Append two tables, of which either may be empty."""
        self._tables.append((samples, histograms))


class Spool(Struct):
    """Tables kept in a folder, in the order in which they were added."""

    folder: Path
    _parts: list[Callable[[], Tables]] = field(default_factory=list)

    @property
    def parts(self) -> Sequence[Callable[[], Tables]]:
        """The added tables, as functions that read them."""
        return tuple(self._parts)

    def add(self, samples: pl.DataFrame, histograms: pl.DataFrame) -> None:
        """Append two tables, of which either may be empty."""
        self.folder.mkdir(parents=True, exist_ok=True)
        paths = [self.folder / f"{len(self._parts)}.{name}" for name in ("samples", "histograms")]
        for frame, path in zip((samples, histograms), paths, strict=True):
            frame.write_ipc(path, compression="lz4")
        self._parts.append(lambda: (_read(paths[0]), _read(paths[1])))


def _same(tables: Tables) -> Tables:
    return tables


def _read(path: Path) -> pl.DataFrame:
    return pl.read_ipc(path.read_bytes())  # as bytes: polars could read the path as a pattern
