"""One type of table for a page, a notebook, a terminal, Markdown and CSV.

A cell keeps its value beside what a reader sees of it, so that a table can be sorted and exported
as numbers. Text comes from telemetry as well, and telemetry can name a model anything: HTML is
written by the page's template, which escapes; Markdown and CSV escape here; a terminal gets no
character that moves its cursor.

What a cell shows besides charts and tables: sentences, and elements with a template of theirs.

An element is data, not markup: the page's template writes its HTML, with everything escaped, so
that a model's name can hold anything. In JupyterLab the same template is shown as HTML.
"""

from __future__ import annotations

import html
import re
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from io import StringIO
from itertools import pairwise
from typing import Any

import polars as pl
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text as Line

from vllm_capacity.errors import plain
from vllm_capacity.estimate import Estimate
from vllm_capacity.render import numbers
from vllm_capacity.render.numbers import Write, between
from vllm_capacity.render.report import ELEMENT_MIME, is_for_page

Bundle = dict[str, Any]


@dataclass(frozen=True, repr=False)
class Element:
    """One element of a page: its kind (a macro of the template) and its content, plain JSON."""

    kind: str
    content: dict[str, Any]
    text: str

    def __repr__(self) -> str:
        return self.text

    @property
    def html(self) -> str:
        """The element by itself, with its style, for JupyterLab."""
        from vllm_capacity.render.report.page import element_html  # the template engine, only here

        return element_html({"kind": self.kind, "content": self.content})

    def _repr_mimebundle_(self, **_: object) -> Bundle:
        shown = {ELEMENT_MIME: {"kind": self.kind, "content": self.content}}
        if is_for_page():
            return {**shown, "text/plain": self.kind}
        return {**shown, "text/html": self.html, "text/plain": self.text}


@dataclass(frozen=True, repr=False)
class Text:
    """Whole sentences, a paragraph each. What telemetry put into them is escaped."""

    sentences: tuple[str, ...]

    def __repr__(self) -> str:
        return "\n".join(self.sentences)

    def _repr_mimebundle_(self, **_: object) -> Bundle:
        paragraphs = "\n".join(f"<p>{html.escape(each)}</p>" for each in self.sentences)
        # Lab would typeset what stands between two dollar signs.
        shown = f'<div class="mathjax_ignore tex2jax_ignore">{paragraphs}</div>'
        return {"text/html": shown, "text/plain": repr(self)}


def csv_of(frame: pl.DataFrame) -> str:
    """The frame as CSV, numbers with all their digits, times in UTC; a head without rows.

    Text that a spreadsheet would run as a formula begins with an apostrophe.
    """
    texts = pl.col(pl.String)
    is_formula = texts.str.contains(_FORMULA.pattern)
    safe = frame.with_columns(
        pl.when(is_formula).then(pl.lit("'") + texts).otherwise(texts).name.keep()
    )
    return safe.write_csv(datetime_format=_CSV_TIME)


def text(*sentences: str) -> Text:
    """These sentences as an output; the first letter of each is made a capital."""
    return Text(tuple(f"{each[:1].upper()}{each[1:]}" for each in sentences))


Value = str | float | datetime | Estimate | None

ROWS_AT_MOST = 200
"""The rows of a table that a page shows; a terminal, Markdown and CSV have all of them."""

DASH = "–"
_NO_BREAK = "\N{NO-BREAK SPACE}"
_SAME = "for the same reason"
_GAP = "  "
_INDENT = 4
_LONGEST_WORD = 20  # in columns of a terminal; longer ones may be cut
_MARKDOWN = re.compile(r"[\\`*_\[\]<>|~&$]|:(?=//)|(?<=www)\.")
_BLOCK = re.compile(r"^(\s*\d*)([#+.)-])")  # what makes a heading or a list of a paragraph
_FORMULA = re.compile(r"^[=+\-@\t\r]")
_CSV_TIME = "%Y-%m-%dT%H:%M:%S%.fZ"


@dataclass(frozen=True)
class Column:
    """A column: its title, its name where the table is data, and how its values are written.

    Without a `name` it is for readers only: it says in words what another column holds. `is_note`:
    sentences, which stand below their row where there is no room beside it.
    """

    title: str
    name: str = ""
    write: Callable[..., str] = str
    is_numeric: bool = False
    is_note: bool = False

    def cell(self, value: Value | Cell) -> Cell:
        """The value as this column writes it; a dash for None."""
        if isinstance(value, Cell):
            return value
        if value is None:
            return Cell(DASH)
        if isinstance(value, Estimate):
            return Cell(numbers.value(value, self.write), value)
        return Cell(value if isinstance(value, str) else self.write(value), value)


@dataclass(frozen=True)
class Cell:
    """What a reader sees, and the value behind it; `order` is what it is sorted by without one."""

    text: str
    value: Value = None
    order: float | None = None

    @property
    def key(self) -> str | float | None:
        """What it is sorted by: a number, of an estimate the middle or its only end, or text."""
        if isinstance(self.value, Estimate):
            ends = (self.value.mid, self.value.low, self.value.high)
            return next((end for end in ends if end is not None), None)
        if isinstance(self.value, int | float):
            return self.value
        return self.order if self.text == DASH or self.order is not None else self.text


@dataclass(frozen=True, repr=False)
class Table:
    """Rows of cells under columns. `empty` is the sentence that stands in the place of no rows.

    The heads of one that `is_sortable` sort it on a page.
    """

    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    caption: str = ""
    empty: str = "No rows."
    is_sortable: bool = False

    def __post_init__(self) -> None:
        """ValueError for a row that has not one cell per column."""
        if any(len(row) != len(self.columns) for row in self.rows):
            raise ValueError(f"a row has one cell per column: {len(self.columns)} of them")

    @property
    def shown(self) -> tuple[Column, ...]:
        """The columns that a reader sees: those with any text."""
        return tuple(self.columns[index] for index in self._texted)

    @property
    def texts(self) -> list[list[str]]:
        """What a reader sees of each row, under the columns `shown`."""
        return [[row[index].text for index in self._texted] for row in self.rows]

    @property
    def content(self) -> dict[str, Any]:
        """The table as the page's template takes it: plain JSON, every cell as text.

        With what a page sorts the rows by, where it does: a number or text, None for no value.
        """
        content = {
            "columns": [{"title": each.title, "numeric": each.is_numeric} for each in self.shown],
            "rows": self.texts,
            "caption": self.caption,
            "empty": self.empty,
        }
        if self.is_sortable:
            content["keys"] = [[row[index].key for index in self._texted] for row in self.rows]
        return content

    @property
    def frame(self) -> pl.DataFrame:
        """The values: one row per row, one column per named column; null where there is none.

        An estimate has four: its middle, then `…_low`, `…_high` and, where it has one, `…_unit`.
        """
        columns: dict[str, list[Any]] = {}
        for index, column in enumerate(self.columns):
            if column.name:
                columns |= _data(column.name, [row[index].value for row in self.rows])
        return pl.DataFrame(columns, strict=False)

    def to_html(self) -> str:
        """The table as HTML with its style, everything in it escaped."""
        return Element("table", self.content, "").html

    def to_markdown(self) -> str:
        """The table in GitHub's Markdown; nothing in a cell is markup."""
        caption, empty = (_BLOCK.sub(r"\1\\\2", markdown(t)) for t in (self.caption, self.empty))
        caption = f"{caption}\n\n" if caption else ""
        if not self.rows:
            return f"{caption}{empty}\n"
        lines = [[column.title for column in self.shown], *self.texts]
        head, *body = (f"| {' | '.join(map(markdown, cells))} |" for cells in lines)
        rule = "|".join(" ---: " if column.is_numeric else " --- " for column in self.shown)
        return caption + "\n".join([head, f"|{rule}|", *body]) + "\n"

    def to_csv(self) -> str:
        """The values as CSV, numbers with all their digits, times in UTC; a head without rows.

        Text that a spreadsheet would run as a formula begins with an apostrophe.
        """
        return csv_of(self.frame)

    def to_text(self, width: int = 80, *, notes: bool = True) -> str:
        """The table as lines up to `width`, without its notes if they are not asked for.

        Notes stand below their row where the table would be wider.
        """
        caption = wrapped(self.caption, width) if self.caption else ""
        if not self.rows:
            return caption + wrapped(self.empty, width)
        return caption + _Layout(self.shown, self.texts, width, has_notes=notes).text

    def __repr__(self) -> str:
        return self.to_text().rstrip("\n")

    @property
    def _texted(self) -> list[int]:
        columns = range(len(self.columns))
        if not self.rows:
            return list(columns)
        return [index for index in columns if any(row[index].text for row in self.rows)]

    def _repr_mimebundle_(self, **_: object) -> Bundle:
        text = "" if is_for_page() else repr(self)
        return Element("table", self.content, text)._repr_mimebundle_()


def table(
    columns: Sequence[Column],
    rows: Iterable[Sequence[Value | Cell]],
    *,
    caption: str = "",
    empty: str = "No rows.",
) -> Table:
    """The rows as a table: a value is written as its column says, a `Cell` is taken as it is."""
    cells = (
        tuple(column.cell(value) for column, value in zip(columns, row, strict=True))
        for row in rows
    )
    return Table(tuple(columns), tuple(cells), caption, empty)


def table_of(frame: pl.DataFrame, columns: Sequence[Column], *, caption: str = "") -> Table:
    """The frame's columns of these names as a table; null is a dash."""
    return table(columns, frame.select([each.name for each in columns]).rows(), caption=caption)


@dataclass(frozen=True)
class Figure:
    """A row of a table of figures: an estimate under its name; `unit` is written after it."""

    label: str
    estimate: Estimate
    write: Write
    unit: str = ""


def figures_table(figures: Iterable[Figure], *, caption: str = "", empty: str = "") -> Table:
    """Estimates one per row: value, interval, and what each rests on or why it is not known.

    What a row rests on names earlier rows in the place of their sources; the data have them all.
    """
    columns = (
        Column("figure", "figure"),
        Column("value", "value", is_numeric=True),
        Column("interval"),
        Column("basis", "basis", is_note=True),
    )
    rows: list[tuple[Value | Cell, ...]] = []
    above: list[Figure] = []
    for each in figures:
        found = each.estimate
        shown = numbers.value(found, each.write)
        shown = shown if found.is_unknown else f"{shown} {each.unit}".rstrip()
        basis = Cell(_basis(found, above), numbers.why(found))
        rows.append((each.label, Cell(shown, found), interval(found, each.write), basis))
        above.append(each)
    return table(columns, rows, caption=caption, empty=empty)


def reasons_once(whole: Table) -> Table:
    """The table with a note that is the same as in the row above written as such."""
    notes = {index for index, column in enumerate(whole.columns) if column.is_note}
    rows = list(whole.rows[:1])
    for above, row in pairwise(whole.rows):
        same = {index for index in notes if row[index].text == above[index].text != ""}
        cells = (replace(c, text=_SAME) if index in same else c for index, c in enumerate(row))
        rows.append(tuple(cells))
    return replace(whole, rows=tuple(rows))


def interval(estimate: Estimate, write: Write) -> str:
    """The ends of a known estimate, as its own column shows them; empty where they read alike."""
    ends = between(estimate, write).removeprefix("between ").split(" and ")
    return f"{_NO_BREAK}to{_NO_BREAK}".join(ends)


def written(value: float | None, write: Write, like: float | None = None) -> Cell:
    """A number as `write` has it, to the places of `like`; a dash for None."""
    return Cell(DASH) if value is None else Cell(write(value, like), value)


def with_interval(estimate: Estimate, write: Write) -> Cell:
    """An estimate in one cell: its value, its interval in brackets where it has one."""
    return Cell(numbers.sure(estimate, write), estimate)


def _basis(found: Estimate, above: Sequence[Figure]) -> str:
    """What an estimate rests on, and why no more is known; rows above by their label."""
    sources = list(found.basis)
    for row in sorted(above, key=lambda row: len(row.estimate.basis), reverse=True):
        _replace(sources, row.estimate.basis, f"“{row.label}”")
    if found.is_known:
        return "; ".join(sources)
    same = next((row.label for row in above if row.estimate.reason == found.reason), "")
    if found.is_unknown:
        return f"for the same reason as “{same}”" if same else found.reason
    why = f"for the same reason as for “{same}”" if same else f"because {found.reason}"
    return "; ".join([*sources, f"no more is known, {why}"])


def _replace(sources: list[str], part: Sequence[str], name: str) -> None:
    """Put the name in the place of the part, where the sources hold it as a run."""
    size = len(part)
    for start in range(len(sources) - size + 1 if size else 0):
        if sources[start : start + size] == list(part):
            sources[start : start + size] = [name]
            return


def _data(name: str, values: Sequence[Value]) -> dict[str, list[Any]]:
    """The values as columns of data: one, or four of estimates (three where none has a unit)."""
    if not any(isinstance(value, Estimate) for value in values):
        return {name: list(values)}
    numbers = [
        Estimate.exact(value) if isinstance(value, int | float) else value for value in values
    ]
    found = [each if isinstance(each, Estimate) else None for each in numbers]
    columns: dict[str, list[Any]] = {
        f"{name}{end and '_'}{end}": [each and getattr(each, end or "mid") for each in found]
        for end in ("", "low", "high", "unit")
    }
    units = columns.pop(f"{name}_unit")
    return {**columns, f"{name}_unit": units} if any(units) else columns


def markdown(text: str) -> str:
    """The text on one line of Markdown, with nothing in it that is markup."""
    return _MARKDOWN.sub(r"\\\g<0>", plain(text))


@dataclass(frozen=True)
class _Layout:
    """A table set in lines: how wide each column is, and where its notes stand."""

    columns: tuple[Column, ...]
    rows: Sequence[Sequence[str]]
    width: int
    has_notes: bool

    @property
    def text(self) -> str:
        """Heads, a rule and the rows; no line with spaces at its end."""
        beside, below = self._places
        widths = self._widths(beside)
        columns = [self.columns[index] for index in beside]
        heads = _row(columns, [each.title for each in columns], widths, vertical="bottom")
        rule = _GAP.join("─" * width for width in widths)
        lines = [heads, f"{rule}\n"]
        for row in self.rows:
            lines.append(_row(columns, [row[index] for index in beside], widths))
            lines += [_note(row[index], self.width) for index in below if row[index]]
        return "".join(lines)

    @property
    def _places(self) -> tuple[list[int], list[int]]:
        """The columns beside each other and those below the row."""
        columns = list(enumerate(self.columns))
        notes = [index for index, column in columns if column.is_note and self.has_notes]
        others = [index for index, column in columns if not column.is_note]
        every = sorted([*others, *notes])
        is_wide = self._room([self._natural(index) for index in every]) < 0
        return (others, notes) if is_wide else (every, [])

    def _widths(self, shown: Sequence[int]) -> list[int]:
        """As wide as the cells; too wide, heads are wrapped first, then columns of words."""
        widths = [self._natural(index) for index in shown]
        heads = [self._least_head(index) for index in shown]
        words = [self._least(index) for index in shown]
        for least in (heads, words, [1] * len(shown)):
            while self._room(widths) < 0:
                spare = [width - low for width, low in zip(widths, least, strict=True)]
                if max(spare) <= 0:
                    break
                widths[spare.index(max(spare))] -= 1
        return widths

    def _room(self, widths: Sequence[int]) -> int:
        return self.width - sum(widths) - len(_GAP) * (len(widths) - 1)

    def _natural(self, index: int) -> int:
        return max(cell_len(plain(self.columns[index].title)), self._cells(index))

    def _least_head(self, index: int) -> int:
        """With its title wrapped."""
        words = plain(self.columns[index].title).split(" ")
        return max([self._cells(index), *map(cell_len, words)])

    def _least(self, index: int) -> int:
        """Words wrapped as well; numbers never are."""
        if self.columns[index].is_numeric:
            return self._least_head(index)
        texts = (self.columns[index].title, *(row[index] for row in self.rows))
        words = (word for text in texts for word in plain(text).split(" "))
        return min(max(map(cell_len, words)), _LONGEST_WORD)

    def _cells(self, index: int) -> int:
        return max(cell_len(plain(row[index])) for row in self.rows)


def wrapped(text: str, width: int = 80, *, indent: int = 0) -> str:
    """A paragraph as lines up to `width`; those after the first are indented."""
    lines = _lines(text, width, after=" " * indent)
    return "".join(f"{line}\n" for line in lines)


def _note(text: str, width: int) -> str:
    margin = " " * _INDENT
    return "".join(f"{line}\n" for line in _lines(text, width, before=margin, after=margin))


def _lines(text: str, width: int, *, before: str = "", after: str = "") -> list[str]:
    """The text wrapped between words; what a no-break space joins stays on a line, by a plain one.

    By textwrap, because rich breaks lines at no-break spaces too.
    """
    lines = textwrap.wrap(
        plain(text),
        width,
        initial_indent=before,
        subsequent_indent=after,
        break_on_hyphens=False,
    )
    return [line.replace(_NO_BREAK, " ") for line in lines] or [""]


def _row(
    columns: Sequence[Column], cells: Sequence[str], widths: Sequence[int], vertical: str = "top"
) -> str:
    grid = Grid.grid(padding=(0, len(_GAP), 0, 0), pad_edge=False)
    for column, width in zip(columns, widths, strict=True):
        grid.add_column(
            justify="right" if column.is_numeric else "left",
            width=width,
            overflow="fold",
            vertical=vertical,  # type: ignore[arg-type]
        )
    lines = [_lines(cell, width) for cell, width in zip(cells, widths, strict=True)]
    grid.add_row(*(Line("\n".join(each)) for each in lines))
    return _printed(grid, sum(widths) + len(_GAP) * len(widths))


def _printed(shown: Grid, width: int) -> str:
    # Everything is said here, so that the console asks the environment for nothing.
    console = Console(
        file=StringIO(),
        width=width,
        height=100,
        color_system=None,
        force_terminal=False,
        force_jupyter=False,
        force_interactive=False,
        no_color=True,
        legacy_windows=False,
    )
    with console.capture() as found:
        console.print(shown, markup=False, highlight=False, emoji=False)
    return "".join(f"{line.rstrip(' ')}\n" for line in found.get().split("\n")[:-1])
