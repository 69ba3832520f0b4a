"""Makes one page from one notebook and one window: runs it, lays it out, writes it atomically.

Also makes the index of a folder's reports: the findings of each, newest window first.

All its content is read from the reports, so it can be remade at any time. Other files in the
folder, and reports that were tampered with, are left out.
"""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from vllm_capacity.assumptions import Assumptions, Pricing, pricing, slo_of
from vllm_capacity.billed import BilledUse
from vllm_capacity.errors import InputError
from vllm_capacity.facts.prices import price_text
from vllm_capacity.render.report import page as html
from vllm_capacity.render.report import vega
from vllm_capacity.render.report.files import only_writer, write_whole
from vllm_capacity.render.report.metadata import (
    INDEX,
    Metadata,
    SummaryLine,
    Tiles,
    Verdict,
    page_metadata,
    pages,
    renamed,
)
from vllm_capacity.render.report.previous import previous_report, with_changes
from vllm_capacity.render.report.run import (
    Parameter,
    Progress,
    Value,
    checked_parameters,
    declared_parameters,
    executed_notebook,
    read_cells,
)
from vllm_capacity.resources import shipped
from vllm_capacity.timerange import iso, parse_instant

if TYPE_CHECKING:
    from vllm_capacity.analysis import Analysis


def write_index(folder: Path) -> Path:
    """Write `index.html` for the reports of a folder and return its path."""
    rows = [(path.name, found) for path in pages(folder) if (found := page_metadata(path))]
    rows.sort(key=lambda row: (row[1].line.start, row[0]), reverse=True)
    path = folder / INDEX
    write_whole(path, html.index_html(rows))
    return path


DEFAULT_NOTEBOOK = "cost-report.ipynb"
_LONGEST = 120
_OPTIONS = {"window": "--window", "time_zone": "--tz", "against": "--against"}
"""Parameters that have an option on the command line."""
PRICE_PARAMETERS = ("usd_per_hour", "price", "fleet", "price_rules")
"""Alternative parameters that set a price."""

EXAMPLES: tuple[Mapping[str, object], ...] = (
    {"window": "vllm-sweep"},
    {
        "window": "a100-gpt-oss-20b",
        "price": "A100-80GB-PCIe RunPod secure, on-demand 2025",
        "gpu": "A100-80GB-PCIe",
    },
    {
        "window": "fleet-two-models",
        "price": "A100-80GB-PCIe RunPod secure, on-demand 2025",
    },
)
"""The example windows that get a page, with information that telemetry does not have."""


class ReportOrder(Struct, frozen=True):
    """A requested report: a notebook, its parameters as given, and the page's folder.

    In print, the page has the answer and the charts; with `has_appendix`, everything on it.
    `has_rows`: the rows behind its charts and tables are written next to it (exports/rows.py).
    """

    notebook: Path
    parameters: Mapping[str, object]
    out: Path
    has_appendix: bool = False
    has_rows: bool = False


class _Laid(Struct, frozen=True):
    """A notebook that was run, as the sections and the metadata of a page."""

    sections: tuple[html.Section, ...]
    metadata: Metadata
    parameters: Mapping[str, Value]


def write_report(
    order: ReportOrder, *, made_at: datetime, cache: Path | None, progress: Progress
) -> Path:
    """Run the notebook, write its page and the folder's index, and return the page's path.

    Nothing is written if anything fails: parameters are checked before the notebook runs, and only
    a finished page replaces an old one. SourceError if another run is writing there.
    """
    parameters = notebook_parameters(order)
    with only_writer(order.out):
        laid = _laid_out(order.notebook, parameters, progress)
        start, end = (str(parameters.get(key) or "") for key in ("start", "end"))
        stem = page_stem(order.notebook, laid.metadata.line.window, start, end)
        path = order.out / f"{stem}.html"
        laid = _with_previous(laid, path)
        rows = _rows(parameters) if order.has_rows else None
        write_whole(path, _page(laid, order, made_at=made_at, cache=cache))
        if rows is not None:
            write_whole(rows_of(path), rows)
        write_index(order.out)
    return path


def rows_of(page: Path) -> Path:
    """The path of the rows behind a page's charts and tables, if they were requested."""
    return page.with_suffix(".csv.zip")


def write_page(
    analysis: Analysis, path: Path, *, made_at: datetime, time_zone: str = "UTC"
) -> Path:
    """Write the page of an analysis atomically to `path` with the report's notebook; its path.

    Charts and days on it are in `time_zone`.
    """
    notebook = shipped(f"notebooks/{DEFAULT_NOTEBOOK}")
    zone = {} if time_zone == "UTC" else {"time_zone": time_zone}
    order = ReportOrder(notebook, {**_parameters_of(analysis), **zone}, path.parent)
    laid = _laid_out(notebook, notebook_parameters(order), lambda done, total: None)
    write_whole(path, _page(_with_previous(laid, path), order, made_at=made_at, cache=None))
    return path


def notebook_parameters(order: ReportOrder) -> dict[str, Value]:
    """The parameters to run the notebook with; InputError for those it cannot take."""
    read_cells(order.notebook)
    declared = declared_parameters(order.notebook)
    given = {**_without_foreign_price(declared, order.parameters), **order.parameters}
    return checked_parameters(declared, given, notebook=order.notebook.name)


def _laid_out(notebook: Path, parameters: Mapping[str, Value], progress: Progress) -> _Laid:
    """Run the notebook and lay out its output; InputError if there is none."""
    with vega.ChartRenderer() as ahead:
        ran = executed_notebook(notebook, parameters, progress=progress, seen=ahead.see)
        sections = html.sections_of(ran.cells, chart_of=ahead.chart_of)
    if not any(section.blocks for section in sections):
        raise InputError(f"{notebook.name} shows nothing: no prose, chart or table.")
    pieces = _pieces(sections)
    text = Metadata(
        line=msgspec.convert(pieces.get("title_line", {}), SummaryLine),
        notebook=notebook.name,
        title=ran.title,
        verdict=msgspec.convert(pieces.get("verdict", {}), Verdict),
        tiles=msgspec.convert(pieces.get("tiles", {}), Tiles).tiles,
        use=msgspec.convert(pieces.get("kept_use"), BilledUse | None),
    )
    return _Laid(sections, renamed(text), parameters)


def _pieces(sections: Sequence[html.Section]) -> dict[str, object]:
    """The content of the first element of each kind."""
    return {
        block.content.kind: block.content.content
        for section in reversed(sections)
        for block in reversed(section.blocks)
        if isinstance(block.content, html.ElementData)
    }


def _with_previous(laid: _Laid, path: Path) -> _Laid:
    """The page with the changes since the previous report in the folder of `path`, if any."""
    found = {page.name: page_metadata(page) for page in pages(path.parent)}
    others = {name: metadata for name, metadata in found.items() if metadata}
    before = previous_report(laid.metadata, others, page=path.name)
    changed = with_changes(Tiles(laid.metadata.tiles), laid.metadata.line, before)
    metadata = replace(laid.metadata, tiles=changed.tiles, previous=before)

    def shown(block: html.Block) -> html.Block:
        if not isinstance(block.content, html.ElementData) or block.content.kind != "tiles":
            return block
        return replace(block, content=html.ElementData("tiles", changed))

    sections = tuple(
        replace(section, blocks=tuple(map(shown, section.blocks))) for section in laid.sections
    )
    return replace(laid, sections=sections, metadata=metadata)


def _page(laid: _Laid, order: ReportOrder, *, made_at: datetime, cache: Path | None) -> str:
    return html.page_html(
        title=laid.metadata.title,
        sections=laid.sections,
        runtime=vega.runtime(cache),
        metadata=laid.metadata,
        command=_command(order),
        made=_made(made_at),
        has_appendix=order.has_appendix,
    )


def _made(at: datetime) -> str:
    """The only line of a page that differs between two runs of the same window."""
    return f"Made {at:%Y-%m-%d %H:%M:%S} UTC by vllm-capacity {version('vllm-capacity')}."


def _parameters_of(analysis: Analysis) -> dict[str, object]:
    """The notebook parameters that reproduce this analysis, as text."""
    time_range, whole, slo = analysis.time_range, analysis.window.extent, analysis.assumptions.slo
    times = (
        {} if time_range == whole else {"start": iso(time_range.start), "end": iso(time_range.end)}
    )
    price = _price_of(analysis.assumptions.pricing)
    return {"window": analysis.window.address, **times, **price, "slo": slo.text}


def _rows(parameters: Mapping[str, Value]) -> bytes:
    """The rows behind the charts and tables of the page, zipped."""
    from vllm_capacity.render.exports.rows import to_zip

    return to_zip(_analysis_of(parameters))


def _analysis_of(parameters: Mapping[str, Value]) -> Analysis:
    """The analysis that the notebook makes from these parameters.

    Only the rows need one outside of the kernel; laying out a page imports none of its code.
    """
    from vllm_capacity.analysis import Analysis
    from vllm_capacity.telemetry.window import open_window

    def given(name: str) -> str | None:
        return str(found) if (found := parameters.get(name)) not in (None, "") else None

    start, end = (parse_instant(text) if (text := given(n)) else None for n in ("start", "end"))
    priced = pricing(
        given("price") or given("usd_per_hour"),
        gpus_per_engine=float(given("gpus_per_engine") or 1.0),
        price_rules=given("fleet"),
        note=given("price_note") or "",
    )
    assumptions = Assumptions(priced, slo_of(given("slo")))
    window = open_window(str(parameters["window"]))
    return Analysis.of(window, start, end, assumptions)


def _price_of(pricing: Pricing) -> dict[str, object]:
    gpus: dict[str, object] = {"gpus_per_engine": f"{pricing.gpus_per_engine!r}"}
    price = pricing.usd_per_gpu_hour
    if pricing.rules:
        if pricing.rules_path is None:
            raise InputError("A page takes price rules by the mapping file they were read from.")
        return {"fleet": str(pricing.rules_path), **gpus}
    if pricing.row is not None:
        return {"price": pricing.row.key, **gpus}
    if price is None:
        return gpus
    if price.low == price.high:
        return {"usd_per_hour": f"{price.mid!r}", "price_note": pricing.note, **gpus}
    return {"price": price_text(price), "price_note": pricing.note, **gpus}


def _without_foreign_price(
    declared: Sequence[Parameter], given: Mapping[str, object]
) -> dict[str, object]:
    """Parameters that remove the notebook's default price, which belongs to its default window.

    A price belongs to a machine: with another window or another price, the notebook's own must not
    be used silently. Empty if it may stay, or has none.
    """
    defaults = {each.name: each.default.strip("\"'") for each in declared}
    is_its_own = given.get("window", defaults.get("window")) == defaults.get("window")
    if is_its_own and not any(given.get(name) for name in PRICE_PARAMETERS):
        return {}
    return {name: "" for name in (*PRICE_PARAMETERS, "price_note") if name in defaults}


def page_stem(notebook: Path, window: str, start: str = "", end: str = "") -> str:
    """A page's file name without suffix: window, notebook unless the default, start and end.

    For a whole window with a plain name and a shipped notebook, that is all. Any other name would
    be ambiguous, so it ends in a hash of these parts: no two pages share a name.
    """
    stem = "" if notebook.name == DEFAULT_NOTEBOOK else notebook.stem
    stems = {path.stem for path in shipped("notebooks").glob("*.ipynb")}
    # A part that ends at a time and one that starts at it need different names.
    name = "-".join(filter(None, (window, stem, start or ("to" if end else ""), end)))
    if not start and not end and stem in {"", *stems} and _is_plain(window, stems):
        return name
    slug = re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-.")[:_LONGEST].rstrip("-.")
    meant = repr((window, stem, start, end)).encode()
    return f"{slug or 'report'}-{hashlib.blake2b(meant, digest_size=4).hexdigest()}"


def _is_plain(window: str, stems: Iterable[str]) -> bool:
    """Whether the name is a valid file name, and not that of another page."""
    return (
        re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", window) is not None
        and len(window) <= _LONGEST
        and window.casefold() != "index"
        and not window.endswith(tuple(f"-{stem}" for stem in stems))
        and re.search(r"-[0-9a-f]{8}$", window) is None
    )


def _command(order: ReportOrder) -> str:
    command = ["vllm-capacity", "report"]
    if order.notebook.name != DEFAULT_NOTEBOOK:
        command += ["--notebook", order.notebook.name]
    command += ["--appendix"] if order.has_appendix else []
    for name, value in order.parameters.items():
        option = _OPTIONS.get(name)
        command += [option, str(value)] if option else ["-p", f"{name}={value}"]
    return shlex.join(command)
