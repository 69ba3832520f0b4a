"""One notebook, one window, one page: run it, lay it out, write it whole."""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from vllm_capacity.errors import InputError
from vllm_capacity.render.report import page as html
from vllm_capacity.render.report import vega
from vllm_capacity.render.report.execution import Progress, executed_notebook, read_cells
from vllm_capacity.render.report.files import only_writer, write_whole
from vllm_capacity.render.report.index import report_metadata, reports, write_index
from vllm_capacity.render.report.parameters import (
    Parameter,
    declared_parameters,
    settled_parameters,
)
from vllm_capacity.render.report.previous import report_before, told_since
from vllm_capacity.resources import shipped

DEFAULT_NOTEBOOK = "cost-report.ipynb"
_LONGEST = 120

EXAMPLES: tuple[Mapping[str, object], ...] = (
    {"window": "vllm-sweep"},
    {
        "window": "a100-gpt-oss-20b",
        "price": "A100-80GB-PCIe RunPod secure, on-demand 2025",
        "gpu": "A100-80GB-PCIe",
    },
)
"""The example windows that get a page, with what telemetry cannot say of them."""


@dataclass(frozen=True)
class Order:
    """What was asked for: a notebook, its parameters as given, and where the page goes."""

    notebook: Path
    parameters: Mapping[str, object]
    out: Path


def write_report(
    order: Order, *, made_at: datetime, cache: Path | None, progress: Progress
) -> Path:
    """Run the notebook, write its page and the folder's index, and return the page's path.

    Nothing is written where anything fails: parameters are checked before the notebook runs, and
    the page is replaced only by a finished one. SourceError where another run is writing there.
    """
    read_cells(order.notebook)
    declared = declared_parameters(order.notebook)
    given = {**_without_foreign_price(declared, order.parameters), **order.parameters}
    parameters = settled_parameters(declared, given, notebook=order.notebook.name)
    with only_writer(order.out), vega.ChartsAhead() as ahead:
        ran = executed_notebook(order.notebook, parameters, progress=progress, seen=ahead.see)
        sections = html.sections_of(ran.cells, chart_of=ahead.chart_of)
        if not any(section.blocks for section in sections):
            raise InputError(f"{order.notebook.name} shows nothing: no prose, chart or table.")
        found = _metadata(order, ran.title, sections)
        part = (str(parameters.get(key) or "") for key in ("start", "end"))
        stem = page_stem(order.notebook, found["line"].get("window", ""), *part)
        path = order.out / f"{stem}.html"
        before = _before(found, path)
        sections = _with_changes(sections, before)
        metadata = {**_metadata(order, ran.title, sections), "previous": before}
        page = html.page_html(
            title=ran.title,
            sections=sections,
            runtime=vega.runtime(cache),
            metadata=metadata,
            command=_command(order),
            made=_made(made_at),
        )
        write_whole(path, page)
        write_index(order.out)
    return path


def _made(at: datetime) -> str:
    """The one line of a page that differs between two runs of the same window."""
    return f"Made {at:%Y-%m-%d %H:%M:%S} UTC by vllm-capacity {version('vllm-capacity')}."


def _without_foreign_price(
    declared: Sequence[Parameter], given: Mapping[str, object]
) -> dict[str, object]:
    """What takes the price out of a notebook whose default price is that of its default window.

    A price belongs to a machine: asked for another window, or given a price of another kind, the
    notebook's own must not be used in silence. Empty where it may stay, or has none.
    """
    defaults = {each.name: each.default.strip("\"'") for each in declared}
    is_its_own = given.get("window", defaults.get("window")) == defaults.get("window")
    if is_its_own and not (given.get("price") or given.get("fleet")):
        return {}
    cleared = {"usd_per_hour": None, "price_note": ""}
    return {name: value for name, value in cleared.items() if name in defaults}


def _metadata(order: Order, title: str, sections: Sequence[html.Section]) -> dict[str, Any]:
    """What the index and the next report read off a page: its window, verdict and tiles."""
    pieces = _pieces(sections)
    return {
        "notebook": order.notebook.name,
        "title": title,
        "line": pieces.get("title_line", {}),
        "verdict": pieces.get("verdict", {}),
        "tiles": pieces.get("tiles", {}).get("tiles", []),
    }


def _pieces(sections: Sequence[html.Section]) -> dict[str, Any]:
    """The content of the first piece of each kind."""
    return {
        block.content["kind"]: block.content["content"]
        for section in reversed(sections)
        for block in reversed(section.blocks)
        if block.kind == "piece"
    }


def _before(now: Mapping[str, Any], path: Path) -> dict[str, Any] | None:
    """The report to compare with among those in the folder of `path` (previous.py)."""
    said = {page.name: report_metadata(page) for page in reports(path.parent)}
    others = {name: metadata for name, metadata in said.items() if metadata}
    return report_before(now, others, page=path.name)


def _with_changes(
    sections: Sequence[html.Section], before: Mapping[str, Any] | None
) -> tuple[html.Section, ...]:
    """The sections with what changed since the report before on every tile."""
    line = _pieces(sections).get("title_line", {})

    def told(block: html.Block) -> html.Block:
        if block.kind != "piece" or block.content["kind"] != "tiles":
            return block
        content = told_since(block.content["content"], line, before)
        return replace(block, content={**block.content, "content": content})

    return tuple(replace(each, blocks=tuple(map(told, each.blocks))) for each in sections)


def page_stem(notebook: Path, window: str, start: str = "", end: str = "") -> str:
    """The name of a page without its suffix: window, notebook unless the report, the part's ends.

    A plain window, whole, in a shipped notebook is named by just that. Any other name says less
    than it stands for, and ends in a hash of it: no two pages share a name.
    """
    stem = "" if notebook.name == DEFAULT_NOTEBOOK else notebook.stem
    stems = {path.stem for path in shipped("notebooks").glob("*.ipynb")}
    # A part up to an instant is not one from it.
    name = "-".join(filter(None, (window, stem, start or ("to" if end else ""), end)))
    if not start and not end and stem in {"", *stems} and _is_plain(window, stems):
        return name
    slug = re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-.")[:_LONGEST].rstrip("-.")
    meant = repr((window, stem, start, end)).encode()
    return f"{slug or 'report'}-{hashlib.blake2b(meant, digest_size=4).hexdigest()}"


def _is_plain(window: str, stems: Iterable[str]) -> bool:
    """Whether the name can be a file's as it stands, and be no other page's."""
    return (
        re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", window) is not None
        and len(window) <= _LONGEST
        and window.casefold() != "index"
        and not window.endswith(tuple(f"-{stem}" for stem in stems))
        and re.search(r"-[0-9a-f]{8}$", window) is None
    )


def _command(order: Order) -> str:
    words = ["vllm-capacity", "report"]
    if order.notebook.name != DEFAULT_NOTEBOOK:
        words += ["--notebook", order.notebook.name]
    for name, value in order.parameters.items():
        words += ["--window", str(value)] if name == "window" else ["-p", f"{name}={value}"]
    return shlex.join(words)
