"""The page over a folder's reports: what each one found, newest window first.

Everything it says is read back from the reports themselves, so it can be made again at any time.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from vllm_capacity.pages import html
from vllm_capacity.pages.writing import write_whole

_METADATA = re.compile(r'<script type="application/json" id="report">(.*?)</script>', re.DOTALL)
INDEX = "index.html"


def write_index(folder: Path) -> Path:
    """Write `index.html` over the reports of a folder and return its path."""
    rows = [(path.name, found) for path in reports(folder) if (found := report_metadata(path))]
    rows.sort(key=lambda row: (str(row[1]["line"].get("start", "")), row[0]), reverse=True)
    path = folder / INDEX
    write_whole(path, html.index_html(rows))
    return path


def reports(folder: Path) -> list[Path]:
    """The HTML files of a folder beside its index, by name."""
    return sorted(path for path in folder.glob("*.html") if path.name != INDEX)


def report_metadata(path: Path) -> dict[str, Any] | None:
    """What a report says of itself; None for a file that is no report of ours."""
    found = _METADATA.search(path.read_text(encoding="utf-8", errors="replace"))
    if not found:
        return None
    try:
        metadata = json.loads(found[1])
    except ValueError:
        return None
    return metadata if isinstance(metadata, dict) and "line" in metadata else None
