"""Turns the outputs of a notebook into one self-contained HTML file.

The page allows only its own two scripts, by their hashes in its policy, and treats no content as
markup. Text from telemetry (operators choose model names freely) passes through Jinja's autoescape,
Markdown loses its raw HTML, and HTML from an analyst's cell keeps only its tables.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.resources import files
from typing import Literal

import mistune
import msgspec
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from msgspec import Struct
from msgspec.structs import replace

from vllm_capacity.render.report import CHART_MIME, ELEMENT_MIME, MAX_ROWS, JsonObject
from vllm_capacity.render.report.metadata import Metadata
from vllm_capacity.render.report.trends import HEIGHT, WIDTH, series_trends
from vllm_capacity.render.report.vega import ChartOf, PageChart, page_chart

_UNSAFE = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}
_TABLE_TAGS = frozenset({"table", "thead", "tbody", "tfoot", "tr", "th", "td", "caption", "p", "b"})
_LONG_REASON = 80  # letters; a shorter one is repeated, because a reference is as long
_HEADING = re.compile(r"^## +(.+)$", re.MULTILINE)
_OPTIONAL = "optional"  # a tag of cells


class ElementData(Struct, frozen=True):
    """An element as received from the kernel: its kind (a template macro) and content."""

    kind: str
    content: object


class Block(Struct, frozen=True):
    """One item on the page, in its order: prose, a chart, an element, text or a table."""

    kind: Literal["prose", "chart", "piece", "text", "table"]
    content: str | PageChart | ElementData


class Section(Struct, frozen=True):
    """The blocks under one question. The first section has no heading: it is the first screen."""

    anchor: str
    heading: str
    blocks: tuple[Block, ...]

    @property
    def is_appendix(self) -> bool:
        """Whether it says how figures are computed: printed only on request."""
        pieces = (each.content for each in self.blocks if isinstance(each.content, ElementData))
        return any(piece.kind == "definitions" for piece in pieces)


def page_html(
    *,
    title: str,
    sections: Sequence[Section],
    runtime: str,
    metadata: Metadata,
    command: str,
    made: str,
    has_appendix: bool = False,
) -> str:
    """The whole page. `made` is the only line that differs between two runs of the same window.

    In print, it has the answer and the charts; with `has_appendix` also the tables behind them and
    the definitions of the figures.
    """
    sections = _reasons_once(sections)
    contents = [block.content for section in sections for block in section.blocks]
    charts = [content for content in contents if isinstance(content, PageChart)]
    boot = _template_text("boot.js")
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            title=title,
            tab_title=metadata.tab_title,
            sections=sections,
            defined=_defined(sections),
            policy=_policy(runtime, boot),
            style=Markup(_template_text("page.css")),
            runtime=Markup(runtime),
            boot=Markup(boot),
            charts=inert_json(_payload(charts)),
            metadata=inert_json(msgspec.to_builtins(metadata)),
            command=command,
            made=made,
            has_appendix=has_appendix,
        )
    )


def _reasons_once(sections: Sequence[Section]) -> tuple[Section, ...]:
    """The sections; an empty chart with the same long reason as an earlier one refers to it."""
    first: dict[str, str] = {}

    def shown(block: Block) -> Block:
        chart = block.content
        if not isinstance(chart, PageChart) or len(chart.empty) < _LONG_REASON:
            return block
        same = first.setdefault(chart.empty, chart.question)
        if same == chart.question:
            return block
        reason = f"No chart, for the same reason as under “{same}”."
        return replace(block, content=replace(chart, empty=reason))

    return tuple(
        replace(section, blocks=tuple(shown(block) for block in section.blocks))
        for section in sections
    )


def index_html(rows: Sequence[tuple[str, Metadata]]) -> str:
    """The index over reports, each (file name, its metadata). It has no script.

    A row per report, a column per figure that any of them shows.
    """
    labelled = [
        (name, found, {tile.label: tile for tile in found.tiles if tile.label})
        for name, found in rows
    ]
    return (
        _environment()
        .get_template("index.html.j2")
        .render(
            rows=labelled,
            figures=list(dict.fromkeys(label for _, _, tiles in labelled for label in tiles)),
            series=series_trends(rows),
            width=WIDTH,
            height=HEIGHT,
            policy=_policy(),
            style=Markup(_template_text("page.css")),
        )
    )


def element_html(piece: JsonObject) -> str:
    """One element (its kind and content) as HTML with its style, for JupyterLab."""
    template = _environment().get_template("piece.html.j2")
    return template.render(
        block=Block("piece", ElementData(piece["kind"], piece["content"])),
        style=Markup(_template_text("piece.css")),
    )


def sections_of(
    cells: Sequence[JsonObject], *, chart_of: ChartOf = page_chart
) -> tuple[Section, ...]:
    """The cells' prose and outputs as sections, split at second-level headings. Code is left out.

    A section whose heading is in a cell tagged `optional` is left out if its code shows nothing.
    `chart_of` gives the parts of a chart by its spec and its number on the page.
    """
    made: list[Section] = []
    blocks: list[Block] = []
    heading, charts, is_optional = "", 0, False
    for cell in cells:
        if cell["cell_type"] == "markdown":
            first, *parts = _HEADING.split(cell["source"])
            blocks += _prose(first)
            for next_heading, prose in zip(parts[::2], parts[1::2], strict=True):
                made += _sections(heading, blocks, is_optional=is_optional)
                heading, blocks = next_heading.strip(), _prose(prose)
                is_optional = _OPTIONAL in cell.get("metadata", {}).get("tags", ())
        elif cell["cell_type"] == "code":
            for output in cell.get("outputs", []):
                block = _block(output, charts, chart_of)
                if block is not None:
                    blocks.append(block)
                    charts += block.kind == "chart"
    made += _sections(heading, blocks, is_optional=is_optional)
    return tuple(section for section in made if section.blocks or section.heading)


def inert_json(value: JsonObject) -> Markup:
    """JSON that cannot end or alter the script element that contains it; keys sorted."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return Markup(text.translate(_UNSAFE))


def markdown_html(text: str) -> str:
    """Markdown as HTML, with raw HTML escaped and without pictures."""
    return str(_markdown()(text))


def _sections(heading: str, blocks: list[Block], *, is_optional: bool) -> Iterator[Section]:
    """The section of these blocks; none if it is optional and has only prose."""
    if is_optional and all(block.kind == "prose" for block in blocks):
        return
    anchor = re.sub(r"[^a-z0-9]+", "-", heading.lower()).strip("-")
    yield Section(anchor, heading, tuple(blocks))


def _prose(source: str) -> list[Block]:
    without_title = re.sub(r"\A\s*# .*$", "", source, count=1, flags=re.MULTILINE).strip()
    return [Block("prose", Markup(markdown_html(without_title)))] if without_title else []


def _block(output: JsonObject, charts: int, chart_of: ChartOf) -> Block | None:
    """The block of a cell's output, in its richest safe form; None for no output."""
    if output["output_type"] == "stream":
        shown = output["text"].strip() if output["name"] == "stdout" else ""
        return Block("text", shown) if shown else None
    data = output.get("data", {})
    if ELEMENT_MIME in data:
        piece = data[ELEMENT_MIME]
        return Block("piece", ElementData(piece["kind"], piece["content"]))
    if CHART_MIME in data:
        return Block("chart", chart_of(data[CHART_MIME], charts))
    if "text/markdown" in data:
        return Block("prose", Markup(markdown_html(data["text/markdown"])))
    if "text/html" in data:
        return Block("table", Markup(_tables_only(data["text/html"])))
    return Block("text", data["text/plain"]) if "text/plain" in data else None


def _tables_only(html: str) -> str:
    import bleach  # type: ignore[import-untyped]  # comes with nbconvert
    from bs4 import BeautifulSoup

    soup = BeautifulSoup(html, "html.parser")
    for element in soup(["style", "script"]):
        element.decompose()
    return str(bleach.clean(str(soup), tags=_TABLE_TAGS, attributes={}, strip=True))


def _defined(sections: Sequence[Section]) -> frozenset[str]:
    """The figures whose definitions are on the page: only these are linked."""
    found = [
        msgspec.convert(block.content.content, _Definitions)
        for section in sections
        for block in section.blocks
        if isinstance(block.content, ElementData) and block.content.kind == "definitions"
    ]
    return frozenset(each.figure for piece in found for each in piece.definitions)


class _Definition(Struct, frozen=True):
    figure: str


class _Definitions(Struct, frozen=True):
    definitions: tuple[_Definition, ...]


def _payload(charts: Sequence[PageChart]) -> JsonObject:
    data = {name: columns for chart in charts for name, columns in chart.data.items()}
    return {"data": data, "specs": [None if chart.empty else chart.spec for chart in charts]}


def _policy(*scripts: str) -> str:
    hashes = " ".join(f"'sha256-{_digest(script)}'" for script in scripts) or "'none'"
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; "
        "base-uri 'none'; form-action 'none'"
    )


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


@cache
def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("vllm_capacity.render.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals["rows_at_most"] = MAX_ROWS
    return made


class _NoPictures(mistune.HTMLRenderer):
    """Markdown's HTML with pictures replaced by their text: a page loads nothing external."""

    def image(self, text: str, url: str, title: str | None = None) -> str:
        return text


@cache
def _markdown() -> mistune.Markdown:
    markdown = mistune.create_markdown(renderer=_NoPictures(escape=True), plugins=["table"])
    assert isinstance(markdown, mistune.Markdown)
    return markdown


def _template_text(name: str) -> str:
    return (files("vllm_capacity.render.report") / "templates" / name).read_text(encoding="utf-8")
