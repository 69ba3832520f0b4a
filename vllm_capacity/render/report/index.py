"""The page over a folder's reports: what each one found, newest window first.

Everything it says is read back from the reports themselves, so it can be made again at any time.
Whatever else lies in the folder, and a report that was tampered with, is left out.
"""

from __future__ import annotations

from pathlib import Path

from vllm_capacity.render.report import page as html
from vllm_capacity.render.report.files import write_whole
from vllm_capacity.render.report.metadata import INDEX, page_metadata, pages


def write_index(folder: Path) -> Path:
    """Write `index.html` over the reports of a folder and return its path."""
    rows = [(path.name, found) for path in pages(folder) if (found := page_metadata(path))]
    rows.sort(key=lambda row: (row[1].line.start, row[0]), reverse=True)
    path = folder / INDEX
    write_whole(path, html.index_html(rows))
    return path
