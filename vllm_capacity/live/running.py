"""A window that is still being scraped, read up to now: its journal holds all that there is."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from pathlib import Path

from vllm_capacity.live.scrape import JOURNAL, import_scrapes
from vllm_capacity.sources.exposition import scrapes_in_parts
from vllm_capacity.telemetry.window import Window, open_window, window_folders


def open_recorded(name_or_path: str | Path, *, verify: bool = False) -> Window:
    """The window of that name or path; where a scrape still makes it, what it has by now.

    That is a copy, made of the journal (which can be named itself, too) in a temporary folder that
    goes with this process. Otherwise as `open_window`.
    """
    journal = _journal(Path(name_or_path))
    if journal is None:
        return open_window(name_or_path, verify=verify)
    folder = Path(tempfile.mkdtemp(prefix="vllm-capacity-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    to = folder / journal.name.removesuffix(JOURNAL)
    return open_window(import_scrapes(journal, to, read=scrapes_in_parts).path)


def _journal(path: Path) -> Path | None:
    """The journal of that window, where there is one, and no window yet."""
    if path.exists():
        return path if path.is_file() and path.name.endswith(JOURNAL) else None
    places = [path] if path.name != str(path) else [path, *(f / path for f in window_folders())]
    if any(place.exists() for place in places):
        return None
    journals = [place.with_name(f"{place.name}{JOURNAL}") for place in places]
    return next((journal for journal in journals if journal.is_file()), None)
