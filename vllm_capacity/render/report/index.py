"""The page over a folder's reports: what each one found, newest window first.

Everything it says is read back from the reports themselves, so it can be made again at any time.
Whatever else lies in the folder, and a report that was tampered with, is left out.
"""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from vllm_capacity.render.report import page as html
from vllm_capacity.render.report.files import write_whole

if TYPE_CHECKING:
    from jsonschema import Draft202012Validator

_METADATA = re.compile(r'<script type="application/json" id="report">(.*?)</script>', re.DOTALL)
INDEX = "index.html"
_TEXT: Final = {"type": "string"}
_TEXTS: Final = {"type": "array", "items": _TEXT}
_NUMBER: Final = {"type": ["number", "null"], "minimum": -1e300, "maximum": 1e300}
_SHAPE: Final = {
    "type": "object",
    "required": ["line"],
    "properties": {
        "notebook": _TEXT,
        "title": _TEXT,
        "page": _TEXT,
        "line": {
            "type": "object",
            "properties": {
                **{name: _TEXT for name in ("window", "span", "hours", "price", "start", "end")},
                "models": _TEXTS,
                "servers": _TEXTS,
                "is_simulated": {"type": "boolean"},
                "terms": {"type": "object"},
            },
        },
        "verdict": {
            "type": "object",
            "dependentRequired": {"sentences": ["quality"], "quality": ["sentences"]},
            "properties": {
                "sentences": _TEXTS,
                "quality": {
                    "type": "object",
                    "required": ["shape", "word"],
                    "properties": {"shape": _TEXT, "word": _TEXT},
                },
            },
        },
        "tiles": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    **{name: _TEXT for name in ("label", "value", "unit", "figure")},
                    **{name: _NUMBER for name in ("low", "mid", "high")},
                    "change": {"type": "object"},
                },
            },
        },
        "previous": {"anyOf": [{"type": "null"}, {"$ref": "#"}]},
    },
}
"""What a report says of itself, as far as it is read back; older reports say less."""


def write_index(folder: Path) -> Path:
    """Write `index.html` over the reports of a folder and return its path."""
    rows = [(path.name, found) for path in reports(folder) if (found := report_metadata(path))]
    rows.sort(key=lambda row: (str(row[1]["line"].get("start", "")), row[0]), reverse=True)
    path = folder / INDEX
    write_whole(path, html.index_html(rows))
    return path


def reports(folder: Path) -> list[Path]:
    """The HTML files of a folder beside its index, by name."""
    return sorted(path for path in folder.glob("*.html") if path.name != INDEX and path.is_file())


def report_metadata(path: Path) -> dict[str, Any] | None:
    """What a report says of itself; None for a file that is no report of ours."""
    try:
        path.name.encode()  # the index could not link to a name that is no text
        found = _METADATA.search(path.read_text(encoding="utf-8", errors="replace"))
        metadata = json.loads(found[1]) if found else None
        is_ours = _shape().is_valid(metadata)
    except (OSError, ValueError, RecursionError):
        return None
    return metadata if is_ours else None


@cache
def _shape() -> Draft202012Validator:
    from jsonschema import Draft202012Validator  # a start of the command line need not wait for it

    return Draft202012Validator(_SHAPE)
