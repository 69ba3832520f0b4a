"""A window that is still being scraped, read up to now: its journal holds all that there is."""

from __future__ import annotations

import atexit
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from vllm_capacity.live.scrape import JOURNAL, import_scrapes
from vllm_capacity.sources.exposition import Scrape, scrape_of, scrapes_in_parts
from vllm_capacity.telemetry.window import Window, open_window, window_folders

_GZIP = 31  # zlib's number for a gzip header and trailer
_READ_BYTES = 64 * 1024


def open_recorded(name_or_path: str | Path, *, verify: bool = False) -> Window:
    """The window of that name or path; where a scrape still makes it, what it has by now.

    That is a copy, made of the journal (which can be named itself, too) in a temporary folder that
    goes with this process. Otherwise as `open_window`.
    """
    journal = running_journal(name_or_path)
    if journal is None:
        return open_window(name_or_path, verify=verify)
    folder = Path(tempfile.mkdtemp(prefix="vllm-capacity-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    to = folder / journal.name.removesuffix(JOURNAL)
    return open_window(import_scrapes(journal, to, read=scrapes_in_parts).path)


def running_journal(name_or_path: str | Path) -> Path | None:
    """The journal of that window, where there is one, and no window yet; None otherwise."""
    path = Path(name_or_path)
    if path.exists():
        return path if path.is_file() and path.name.endswith(JOURNAL) else None
    places = [path] if path.name != str(path) else [path, *(f / path for f in window_folders())]
    if any(place.exists() for place in places):
        return None
    journals = [place.with_name(f"{place.name}{JOURNAL}") for place in places]
    return next((journal for journal in journals if journal.is_file()), None)


@dataclass
class Follower:
    """Reads a journal as it grows: first all that is there, then what was appended since."""

    journal: Path
    _read_bytes: int = 0

    @property
    def has_ended(self) -> bool:
        """Whether its scrape has ended: the journal goes when the window is made."""
        return not self.journal.is_file()

    def new(self) -> Iterator[Scrape]:
        """The scrapes that are whole and were not read before; damage ends what can be read."""
        try:
            with self.journal.open("rb") as file:
                while member := self._member(file):
                    yield scrape_of(member, self.journal, 1)
        except FileNotFoundError:
            return

    def _member(self, file: BinaryIO) -> bytes:
        """The next scrape's line; empty where the file holds no further one, or half of it."""
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
