"""What a page needs to draw charts with the network cut: the runtime, the data, the stills.

A chart crosses to the page in three parts. Its *data* is stored once a page, by the content hash
that Altair names it with, in columns. Its *spec* is drawn live by the runtime, with tooltips. Its
*still* is an SVG for print and for readers without scripts; it has no hover layer, whose invisible
points would make most of its size.
"""

from __future__ import annotations

import copy
import re
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from vllm_capacity.pages.contract import HOVER, NOTEBOOK_WIDTH, VEGALITE_VERSION
from vllm_capacity.pages.writing import write_whole

_ID = re.compile(r'(\bid="|url\(#|href="#)([\w-]+)')
_EXPORT = "window.vegaEmbed = vegaEmbed;"
_BUNDLE_MUST_NOT_HOLD = ("</script", "<!--")  # either would end or bend the script element


@dataclass(frozen=True)
class PageChart:
    """One chart as the page holds it. `empty` says why there is nothing to draw, else "".

    `table` is the data behind it, to read and copy: {"columns": [...], "rows": [[...]]} or None.
    """

    question: str
    found: str
    definition: str
    empty: str
    table: dict[str, Any] | None
    spec: dict[str, Any]
    data: dict[str, dict[str, list[Any]]] = field(repr=False)
    still: str = field(repr=False)


def runtime(cache: Path | None) -> str:
    """The script that draws: Vega, Vega-Lite and Vega-Embed with its expression interpreter.

    Made once by vl-convert and kept in `cache`, under the converter's version, for it takes
    seconds; without a cache folder, or where that cannot be written, made each time.
    """
    import vl_convert

    kept = None if cache is None else cache / f"vega-{version('vl-convert-python')}.js"
    if kept is not None and kept.is_file():
        return kept.read_text(encoding="utf-8")
    script = str(vl_convert.javascript_bundle(_EXPORT, VEGALITE_VERSION))
    if any(text in script for text in _BUNDLE_MUST_NOT_HOLD):
        raise ValueError("the Vega bundle of this vl-convert cannot stand inside a script element")
    if kept is not None:
        with suppress(OSError):  # a cache that cannot be written only costs time
            write_whole(kept, script)
    return script


def page_chart(spec: dict[str, Any], *, number: int) -> PageChart:
    """The parts of a Vega-Lite spec made by our charts; `number` keeps ids apart on one page."""
    spec = copy.deepcopy(spec)
    title = spec.pop("title", None) or {}
    if isinstance(title, str):
        title = {"text": title}
    notes = (spec.pop("usermeta", None) or {}).get("vllm_capacity", {})
    empty = str(notes.get("empty", ""))
    still = "" if empty else _still(spec, number)
    spec["width"] = "container"
    spec["autosize"] = {"type": "fit-x", "contains": "padding"}
    data = {name: _columns(rows) for name, rows in spec.pop("datasets", {}).items()}
    return PageChart(
        question=_one_line(title.get("text", "")),
        found=_one_line(title.get("subtitle", "")),
        definition=str(notes.get("definition", "")),
        empty=empty,
        table=notes.get("table"),
        spec=spec,
        data=data,
        still=still,
    )


def _still(spec: dict[str, Any], number: int) -> str:
    import vl_convert

    shown = _without_hover(spec)
    if not isinstance(shown.get("width"), int | float):
        shown["width"] = NOTEBOOK_WIDTH
    svg = vl_convert.vegalite_to_svg(shown, vl_version=VEGALITE_VERSION, allowed_base_urls=[])
    return _ID.sub(lambda match: f"{match[1]}s{number}-{match[2]}", str(svg))


def _without_hover(spec: dict[str, Any]) -> dict[str, Any]:
    def kept(part: dict[str, Any]) -> bool:
        return not str(part.get("name", "")).startswith(HOVER)

    shown = copy.deepcopy(spec)
    shown["params"] = [each for each in shown.get("params", []) if kept(each)]
    if "layer" in shown:
        shown["layer"] = [_without_hover(each) for each in shown["layer"] if kept(each)]
    return shown


def _columns(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def _one_line(text: object) -> str:
    return " ".join(text) if isinstance(text, list) else str(text)
