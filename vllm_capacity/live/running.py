"""Reads a window that is still being scraped, up to now, from its journal."""

from __future__ import annotations

import atexit
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from msgspec import Struct

from vllm_capacity.telemetry.window import Window, open_window, window_folders

if TYPE_CHECKING:  # imports httpx, a sixth of the start-up time of `figures`
    from vllm_capacity.sources.exposition import Scrape

JOURNAL = ".journal"
"""The suffix that a journal's name adds to that of its window."""
_GZIP = 31  # zlib's number for a gzip header and trailer
_READ_BYTES = 64 * 1024


def open_recorded(name_or_path: str | Path, *, verify: bool = False) -> Window:
    """The window with that name or path; if it is still being scraped, its data so far.

    In that case the window is a copy made from the journal (whose path can also be given), in a
    temporary folder that is deleted when this process ends. Otherwise the same as `open_window`.
    """
    journal = running_journal(name_or_path)
    if journal is None:
        return open_window(name_or_path, verify=verify)
    from vllm_capacity.live.scrape import import_scrapes
    from vllm_capacity.sources.exposition import scrapes_in_parts

    folder = Path(tempfile.mkdtemp(prefix="vllm-capacity-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    to = folder / journal.name.removesuffix(JOURNAL)
    return open_window(import_scrapes(journal, to, read=scrapes_in_parts).path)


def running_journal(name_or_path: str | Path) -> Path | None:
    """The journal of that window, if there is a journal but no window yet; None otherwise."""
    path = Path(name_or_path)
    if path.exists():
        return path if path.is_file() and path.name.endswith(JOURNAL) else None
    places = [path] if path.name != str(path) else [path, *(f / path for f in window_folders())]
    if any(place.exists() for place in places):
        return None
    journals = [place.with_name(f"{place.name}{JOURNAL}") for place in places]
    return next((journal for journal in journals if journal.is_file()), None)


class Follower(Struct):
    """Reads a journal as it grows: first everything in it, then what was appended since."""

    journal: Path
    _read_bytes: int = 0

    @property
    def has_ended(self) -> bool:
        """Whether scraping has ended: the journal is deleted once the window is made."""
        return not self.journal.is_file()

    def new(self) -> Iterator[Scrape]:
        """The complete scrapes that were not read before; reading stops at damaged data."""
        from vllm_capacity.sources.exposition import scrape_of

        try:
            with self.journal.open("rb") as file:
                while member := self._member(file):
                    yield scrape_of(member, self.journal, 1)
        except FileNotFoundError:
            return

    def _member(self, file: BinaryIO) -> bytes:
        """The next scrape's line; empty if there is none, or only part of one."""
        file.seek(self._read_bytes)
        member, content = zlib.decompressobj(_GZIP), b""
        try:
            while not member.eof:
                data = file.read(_READ_BYTES)
                if not data:
                    return b""
                content += member.decompress(data)
        except zlib.error:
            return b""
        self._read_bytes = file.tell() - len(member.unused_data)
        return content
