"""Everything that a page needs to draw charts offline: the runtime, the data, the static SVGs.

A chart has three parts on the page. Its *data* is stored once per page in columns, by the content
hash that Altair names it with. Its *spec* is drawn live by the runtime, with tooltips. Its *still*
is an SVG for print and for readers without scripts; it has no hover layer, whose hidden points
would make up most of its size.
"""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from msgspec import Struct

from vllm_capacity.errors import SourceError
from vllm_capacity.render.report import (
    CHART_MIME,
    CHART_NOTES,
    HOVER,
    STILL_WIDTH,
    VEGALITE_VERSION,
    JsonObject,
)
from vllm_capacity.render.report.files import only_writer, write_whole

Spec = dict[str, Any]
"""A Vega-Lite specification, or a part of one."""

_ID = re.compile(r'(\bid="|url\(#|href="#)([\w-]+)')
_MARK_WORDS = re.compile(
    r' (?:role="graphics-symbol"|aria-roledescription="[^"]*"|aria-label="[^"]*")(?=[^<>]*\bd=")'
)
_FIT = {"type": "fit-x", "contains": "padding"}
_EXPORT = "window.vegaEmbed = vegaEmbed;"
_BUNDLE_MUST_NOT_HOLD = ("</script", "<!--")  # either would end or alter the script element


class PageChart(Struct, frozen=True):
    """One chart as the page holds it. `empty` says why there is nothing to draw, else "".

    `table` is the data behind it, to read and copy: {"columns": [...], "rows": [[...]]} or None. If
    there is room, a chart that `is_half` shares its row with another.
    """

    question: str
    found: str
    definition: str
    empty: str
    table: JsonObject | None
    spec: Spec
    data: dict[str, dict[str, list[object]]]
    still: str
    is_half: bool = False


ChartOf = Callable[[JsonObject, int], PageChart]


def runtime(cache: Path | None) -> str:
    """The drawing script: Vega, Vega-Lite and Vega-Embed with its expression interpreter.

    vl-convert makes it, which takes seconds, so it is made once per process, and kept for others in
    `cache` under the converter's version, unless there is no such folder or it cannot be written.
    """
    kept = None if cache is None else cache / f"vega-{version('vl-convert-python')}.js"
    if kept is not None and kept.is_file():
        return kept.read_text(encoding="utf-8")
    script = _bundle()
    if kept is not None:
        # If the cache cannot be written, or another run is writing it, only time is lost.
        with suppress(OSError, SourceError), only_writer(kept.parent):
            write_whole(kept, script)
    return script


@functools.cache
def _bundle() -> str:
    import vl_convert

    script = str(vl_convert.javascript_bundle(_EXPORT, VEGALITE_VERSION))
    if any(text in script for text in _BUNDLE_MUST_NOT_HOLD):
        raise ValueError("the Vega bundle of this vl-convert cannot stand inside a script element")
    return script


def page_chart(given: JsonObject, number: int) -> PageChart:
    """The parts of a built-in chart's Vega-Lite spec; `number` keeps ids unique on a page."""
    spec = _without_empty(copy.deepcopy(dict(given)))
    title = spec.pop("title", None) or {}
    if isinstance(title, str):
        title = {"text": title}
    notes = (spec.pop("usermeta", None) or {}).get(CHART_NOTES, {})
    empty = str(notes.get("empty", ""))
    still = "" if empty else _still(spec, number)
    if _is_single(spec):  # only such a view can fill the width of its container
        spec["width"] = "container"
        spec["autosize"] = _FIT
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
        is_half=bool(notes.get("half", False)),
    )


class ChartRenderer:
    """Prepares charts in a thread while the notebook still runs, in the order they are seen."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1)
        self._parts: list[tuple[JsonObject, Future[PageChart]]] = []

    def see(self, cell: JsonObject) -> None:
        """Start preparing the charts among a cell's outputs."""
        for output in cell.get("outputs", []):
            if CHART_MIME in output.get("data", {}):
                spec, number = output["data"][CHART_MIME], len(self._parts)
                self._parts.append((spec, self._pool.submit(page_chart, spec, number)))

    def chart_of(self, spec: JsonObject, number: int) -> PageChart:
        """The parts of the chart of that number; prepared now if `see` did not get it."""
        if number < len(self._parts) and self._parts[number][0] == spec:
            return self._parts[number][1].result()
        return page_chart(spec, number)

    def __enter__(self) -> ChartRenderer:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)


def _still(spec: Spec, number: int) -> str:
    import vl_convert

    shown = _without_hover(spec)
    if _is_single(spec):
        shown["width"] = STILL_WIDTH
        shown["autosize"] = _FIT
    svg = vl_convert.vegalite_to_svg(shown, vl_version=VEGALITE_VERSION, allowed_base_urls=[])
    # Screen-reader text of hundreds of marks is most of the size; the table has the same data.
    shorter = _MARK_WORDS.sub("", str(svg))
    return _ID.sub(lambda match: f"{match[1]}s{number}-{match[2]}", shorter)


def _without_hover(spec: Spec) -> Spec:
    def kept(part: Spec) -> bool:
        return not str(part.get("name", "")).startswith(HOVER)

    shown = copy.deepcopy(spec)
    shown["params"] = [each for each in shown.get("params", []) if kept(each)]
    for parts in ("layer", "hconcat", "vconcat", "concat"):
        if parts in shown:
            shown[parts] = [_without_hover(each) for each in shown[parts] if kept(each)]
    return shown


def _without_empty(spec: Spec) -> Spec:
    """The spec without layers that have no rows; browsers log warnings about them."""
    empty = {name for name, rows in spec.get("datasets", {}).items() if not rows}
    layers = spec.get("layer", [])
    drawn = [each for each in layers if each.get("data", {}).get("name") not in empty]
    if not drawn or len(drawn) == len(layers):
        return spec
    gone = {each.get("name") for each in layers if each not in drawn}
    params = [each for each in spec.get("params", []) if not gone & set(each.get("views", ()))]
    return {**spec, "layer": drawn, **({"params": params} if "params" in spec else {})}


def _is_single(spec: JsonObject) -> bool:
    facets = {"row", "column", "facet"} & set(spec.get("encoding", {}))
    return ("layer" in spec or "mark" in spec) and not facets


def _columns(rows: list[Spec]) -> dict[str, list[object]]:
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def _one_line(text: object) -> str:
    return " ".join(text) if isinstance(text, list) else str(text)
