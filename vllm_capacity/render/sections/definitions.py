"""How each figure is made: its definition, functions, queries and rows.

Tiles and charts link to the definitions on the page; `Analysis.explain` shows one.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from datetime import datetime
from difflib import get_close_matches
from operator import attrgetter
from pathlib import Path
from textwrap import fill, indent

import polars as pl
from msgspec import Struct

from vllm_capacity.analysis import Analysis
from vllm_capacity.errors import InputError
from vllm_capacity.record import Record, plain
from vllm_capacity.render.sections.glossary import DEFINITIONS, Definition, Function, Source
from vllm_capacity.telemetry.window import query_text
from vllm_capacity.timerange import iso

_ROWS_SHOWN = 8
_CELL_LETTERS = 80
_WIDTH = 100
_PLAN = "plan."
_FIGURES: Mapping[str, Definition] = {each.figure: each for each in DEFINITIONS}
_BY_PATH: Mapping[str, Definition] = {
    **_FIGURES,
    **{path: each for each in DEFINITIONS for path in each.paths},
}
_EXAMPLES = "cost.per_request, latency.ttft.p95 or saturation.bottleneck"


class CodePlace(Record, frozen=True):
    """The location of a function: name, file relative to the repository, line."""

    name: str
    file: str
    line: int

    @classmethod
    def of(cls, function: Function) -> CodePlace:
        """The location of a function of this package."""
        code = inspect.unwrap(function).__code__
        file = Path(code.co_filename)
        depth = function.__module__.count(".") + (2 if file.name == "__init__.py" else 1)
        return cls(function.__name__, "/".join(file.parts[-depth:]), code.co_firstlineno)

    def __str__(self) -> str:
        return f"{self.name} ({self.file}:{self.line})"


class ShownRows(Record, frozen=True):
    """The first rows of a query as text, the number of all rows, and the bound parameters."""

    query: str
    bound: Mapping[str, object]
    count: int
    columns: tuple[str, ...]
    cells: tuple[tuple[str, ...], ...]


class ShownDefinition(Record, frozen=True):
    """A definition with the locations of its functions and the rows it is made of."""

    figure: str
    title: str
    text: str
    made_by: tuple[CodePlace, ...]
    rows: tuple[ShownRows, ...]


class ShownQuery(Record, frozen=True):
    """A shipped query and its SQL."""

    name: str
    text: str


class Shown(Record, frozen=True):
    """Definitions as a page shows them. Each query appears once; definitions name it."""

    definitions: tuple[ShownDefinition, ...]
    queries: tuple[ShownQuery, ...]


class Explanation(Struct, frozen=True):
    """How one figure of an analysis is made; it displays itself in a terminal and a notebook.

    `value` is the figure in this analysis, empty if the answer does not have it. `rows` has all
    rows of each query, by its name.
    """

    path: str
    value: str
    shown: Shown
    rows: Mapping[str, pl.DataFrame]

    @property
    def definition(self) -> ShownDefinition:
        """The meaning of the figure, and the functions that make it."""
        return self.shown.definitions[0]

    @property
    def queries(self) -> dict[str, str]:
        """The SQL of each query, by its name."""
        return {query.name: query.text for query in self.shown.queries}

    def __repr__(self) -> str:
        head = f"{self.path} = {self.value}" if self.value else self.path
        parts = [head, f"\n{self.definition.title}", fill(self.definition.text, _WIDTH)]
        parts += ["\nMade by", *(f"  {place}" for place in self.definition.made_by)]
        for name, text in self.queries.items():
            frame = self.rows[name]
            parts += [f"\n{name}.sql", indent(text, "  ")]
            parts += [f"\n{frame.height:,} rows; the first:", str(frame.head(_ROWS_SHOWN))]
        return "\n".join(parts)

    def _repr_html_(self) -> str:
        from vllm_capacity.render.report.page import element_html

        return element_html({"kind": "definitions", "content": plain(self.shown)})


def definition_of(path: str) -> Definition:
    """The definition of a figure, by its path in an answer or by its name.

    `cost.per_request`, `latency.ttft.p95`, `plan.replicas`, `usd_per_request`. InputError, with the
    nearest names, if there is none.
    """
    names = path.split(".")
    for length in range(len(names), 0, -1):
        found = _BY_PATH.get(".".join(names[:length]))
        if found is not None:
            return found
    raise _no_figure(path)


def explanation(analysis: Analysis, path: str) -> Explanation:
    """How a figure of this analysis is made: definition, functions, queries and their rows.

    InputError for an unknown figure.
    """
    definition = definition_of(path)
    return Explanation(
        path=path,
        value=_value(analysis, path),
        shown=shown_definitions(analysis, [definition.figure]),
        rows={source.query: source.rows(analysis) for source in definition.sources},
    )


def shown_definitions(analysis: Analysis, figures: Sequence[str] = ()) -> Shown:
    """The definitions of these figures (all if none are given), with the rows behind them."""
    chosen = [each for each in DEFINITIONS if not figures or each.figure in figures]
    sources = dict.fromkeys(source for each in chosen for source in each.sources)
    rows = {source: _shown_rows(analysis, source) for source in sources}
    names = dict.fromkeys(source.query for source in rows)
    return Shown(
        tuple(
            ShownDefinition(
                each.figure,
                each.title,
                each.text,
                tuple(map(CodePlace.of, each.made_by)),
                tuple(rows[source] for source in each.sources),
            )
            for each in chosen
        ),
        tuple(ShownQuery(name, query_text("figures", name).strip()) for name in names),
    )


def _shown_rows(analysis: Analysis, source: Source) -> ShownRows:
    first, count = source.first_rows(analysis, _ROWS_SHOWN)
    return ShownRows(
        query=source.query,
        bound=source.bound(analysis),
        count=count,
        columns=tuple(first.columns),
        cells=tuple(tuple(map(_cell, row)) for row in first.iter_rows()),
    )


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, datetime):
        return iso(value)
    text = str(value.to_list() if isinstance(value, pl.Series) else value)
    return text if len(text) <= _CELL_LETTERS else f"{text[: _CELL_LETTERS - 3]}…"


def _value(analysis: Analysis, path: str) -> str:
    """The figure in the answer; empty if the answer does not have it or it does not fit a line."""
    if path in _FIGURES or path.startswith(_PLAN):
        return ""
    try:
        text = str(attrgetter(path)(analysis.answer))
    except AttributeError:
        raise _no_figure(path) from None
    return text if len(text) <= _WIDTH else ""


def _no_figure(path: str) -> InputError:
    last = path.split(".")[-1]
    ends = [known for known in _BY_PATH if last in known.split(".")]
    near = list(dict.fromkeys([*ends, *get_close_matches(path, _BY_PATH, n=3)]))[:3]
    hint = f"Did you mean {' or '.join(near)}?" if near else f"There are {_EXAMPLES}, for example."
    return InputError(f"There is no figure {path!r}. {hint}")
