"""The table type of pages, notebooks, terminals, Markdown and CSV.

A cell keeps its value next to its shown text, so that a table can be sorted and exported as
numbers. Text may come from telemetry, where a model can have any name: the page's template escapes
HTML; Markdown and CSV are escaped here; terminals get no characters that move the cursor.

Also the other output of cells besides charts: sentences, and elements with their own template.

An element is data, not markup: the page's template writes its HTML and escapes everything, so a
model can have any name. In JupyterLab the same template is shown as HTML.
"""

from __future__ import annotations

import html
import re
import textwrap
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from io import BytesIO, StringIO
from itertools import pairwise
from typing import Any

import polars as pl
from msgspec import Struct
from msgspec.structs import replace
from rich.cells import cell_len, chop_cells
from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text as Line

from vllm_capacity.errors import plain
from vllm_capacity.estimate import Estimate
from vllm_capacity.render import numbers
from vllm_capacity.render.numbers import Write, between
from vllm_capacity.render.report import ELEMENT_MIME, is_for_page

Bundle = dict[str, Any]


class Element(Struct, frozen=True):
    """One element of a page: its kind (a template macro) and its content, plain JSON."""

    kind: str
    content: dict[str, Any]
    text: str

    def __repr__(self) -> str:
        return self.text

    @property
    def html(self) -> str:
        """The element alone, with its style, for JupyterLab."""
        from vllm_capacity.render.report.page import element_html  # the template engine, only here

        return element_html({"kind": self.kind, "content": self.content})

    def _repr_mimebundle_(self, **_: object) -> Bundle:
        shown = {ELEMENT_MIME: {"kind": self.kind, "content": self.content}}
        if is_for_page():
            return {**shown, "text/plain": self.kind}
        return {**shown, "text/html": self.html, "text/plain": self.text}


class Text(Struct, frozen=True):
    """Whole sentences, a paragraph each. Text from telemetry in them is escaped."""

    sentences: tuple[str, ...]

    def __repr__(self) -> str:
        return "\n".join(self.sentences)

    def _repr_mimebundle_(self, **_: object) -> Bundle:
        if is_for_page():
            content = {"sentences": list(self.sentences)}
            return {ELEMENT_MIME: {"kind": "text", "content": content}, "text/plain": repr(self)}
        paragraphs = "\n".join(f"<p>{html.escape(each)}</p>" for each in self.sentences)
        # Lab would typeset text between two dollar signs as a formula.
        shown = f'<div class="mathjax_ignore tex2jax_ignore">{paragraphs}</div>'
        return {"text/html": shown, "text/plain": repr(self)}


def csv_of(frame: pl.DataFrame) -> str:
    """The frame as CSV: numbers at full precision, times in UTC; only a header if without rows.

    Text that a spreadsheet would run as a formula gets a leading apostrophe.
    """
    texts = pl.col(pl.String)
    is_formula = texts.str.contains(_FORMULA.pattern)
    safe = frame.with_columns(
        pl.when(is_formula).then(pl.lit("'") + texts).otherwise(texts).name.keep()
    )
    return safe.write_csv(datetime_format=_CSV_TIME)


def text(*sentences: str) -> Text:
    """These sentences as an output, each with a capital first letter."""
    return Text(tuple(f"{each[:1].upper()}{each[1:]}" for each in sentences))


Value = str | float | datetime | Estimate | None

DASH = "–"
_NO_BREAK = "\N{NO-BREAK SPACE}"
_SAME = "for the same reason"
_GAP = "  "
_INDENT = 4
_LONGEST_WORD = 20  # terminal columns; longer words may be cut
_MARKDOWN = re.compile(r"[\\`*_\[\]<>|~&$]|:(?=//)|(?<=www)\.")
_BLOCK = re.compile(r"^(\s*\d*)([#+.)-])")  # would make a paragraph a heading or a list
_FORMULA = re.compile(r"^[=+\-@\t\r]")
_CSV_TIME = "%Y-%m-%dT%H:%M:%S%.fZ"


class Column(Struct, frozen=True):
    """A column: its title, its name in data, and the format of its values.

    Without a `name` it is only for readers: it describes another column in words. `is_note`:
    sentences, which go below their row if there is no room beside it.
    """

    title: str
    name: str = ""
    write: Callable[..., str] = str
    is_numeric: bool = False
    is_note: bool = False

    def cell(self, value: Value | Cell) -> Cell:
        """The value in this column's format; a dash for None."""
        if isinstance(value, Cell):
            return value
        if value is None:
            return Cell(DASH)
        if isinstance(value, Estimate):
            return Cell(numbers.value(value, self.write), value)
        return Cell(value if isinstance(value, str) else self.write(value), value)


class Cell(Struct, frozen=True):
    """A shown text and the value behind it; `order` is the sort key if there is no value."""

    text: str
    value: Value = None
    order: float | None = None

    @property
    def key(self) -> str | float | None:
        """The sort key: a number (of an estimate, the middle or its only bound), or text."""
        if isinstance(self.value, Estimate):
            ends = (self.value.mid, self.value.low, self.value.high)
            return next((end for end in ends if end is not None), None)
        if isinstance(self.value, int | float):
            return self.value
        return self.order if self.text == DASH or self.order is not None else self.text


class Table(Struct, frozen=True):
    """Rows of cells under columns. `empty` is the sentence to show if there are no rows.

    If it `is_sortable`, readers of a page can sort it by clicking a header.
    """

    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    caption: str = ""
    empty: str = "No rows."
    is_sortable: bool = False

    def __post_init__(self) -> None:
        """ValueError for a row with the wrong number of cells."""
        if any(len(row) != len(self.columns) for row in self.rows):
            raise ValueError(f"a row has one cell per column: {len(self.columns)} of them")

    @property
    def shown(self) -> tuple[Column, ...]:
        """The visible columns: those with any text."""
        return tuple(self.columns[index] for index in self._texted)

    @property
    def texts(self) -> list[list[str]]:
        """The visible text of each row, under the columns `shown`."""
        return [[row[index].text for index in self._texted] for row in self.rows]

    @property
    def content(self) -> dict[str, Any]:
        """The table as input of the page's template: plain JSON, every cell as text.

        If it is sortable, it includes the sort keys: a number or text, None for no value.
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
        """The values: the same rows, one column per named column; null if there is no value.

        An estimate has four columns: its middle, then `…_low`, `…_high` and, if it has one,
        `…_unit`.
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
        """The table in GitHub's Markdown, with all markup in cells escaped."""
        caption, empty = (_BLOCK.sub(r"\1\\\2", markdown(t)) for t in (self.caption, self.empty))
        caption = f"{caption}\n\n" if caption else ""
        if not self.rows:
            return f"{caption}{empty}\n"
        lines = [[column.title for column in self.shown], *self.texts]
        head, *body = (f"| {' | '.join(map(markdown, cells))} |" for cells in lines)
        rule = "|".join(" ---: " if column.is_numeric else " --- " for column in self.shown)
        return caption + "\n".join([head, f"|{rule}|", *body]) + "\n"

    def to_csv(self) -> str:
        """The values as CSV: numbers at full precision, times in UTC; only a header for no rows.

        Text that a spreadsheet would run as a formula gets a leading apostrophe.
        """
        return csv_of(self.frame)

    def to_parquet(self) -> bytes:
        """The values as a Parquet file, with their types; only columns if there are no rows."""
        buffer = BytesIO()
        self.frame.write_parquet(buffer)
        return buffer.getvalue()

    def to_text(self, width: int = 80, *, notes: bool = True) -> str:
        """The table as lines up to `width`; `notes` can be left out.

        Notes go below their row if the table would be too wide.
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
    """The rows as a table: values are written in their column's format, a `Cell` is kept as is."""
    cells = (
        tuple(column.cell(value) for column, value in zip(columns, row, strict=True))
        for row in rows
    )
    return Table(tuple(columns), tuple(cells), caption, empty)


def table_of(frame: pl.DataFrame, columns: Sequence[Column], *, caption: str = "") -> Table:
    """The frame's columns with these names as a table; null is a dash."""
    return table(columns, frame.select([each.name for each in columns]).rows(), caption=caption)


class Figure(Struct, frozen=True):
    """A row of a table of figures: an estimate under its name, followed by its `unit`."""

    label: str
    estimate: Estimate
    write: Write
    unit: str = ""


def figures_table(figures: Iterable[Figure], *, caption: str = "", empty: str = "") -> Table:
    """Estimates one per row: value, interval, and the basis of each or why it is unknown.

    The basis refers to earlier rows by name instead of repeating their sources; the data have all.
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
    """The table with "same" in place of a note that repeats the row above."""
    notes = {index for index, column in enumerate(whole.columns) if column.is_note}
    rows = list(whole.rows[:1])
    for above, row in pairwise(whole.rows):
        same = {index for index in notes if row[index].text == above[index].text != ""}
        cells = (replace(c, text=_SAME) if index in same else c for index, c in enumerate(row))
        rows.append(tuple(cells))
    return replace(whole, rows=tuple(rows))


def interval(estimate: Estimate, write: Write) -> str:
    """The ends of a known estimate, as its own column shows them; empty if they look the same."""
    ends = between(estimate, write).removeprefix("between ").split(" and ")
    return f"{_NO_BREAK}to{_NO_BREAK}".join(ends)


def written(value: float | None, write: Write, like: float | None = None) -> Cell:
    """A number in the format `write`, with the decimal places of `like`; a dash for None."""
    return Cell(DASH) if value is None else Cell(write(value, like), value)


def with_interval(estimate: Estimate, write: Write) -> Cell:
    """An estimate in one cell: its value, and its interval, if any, in brackets."""
    return Cell(numbers.sure(estimate, write), estimate)


def _basis(found: Estimate, above: Sequence[Figure]) -> str:
    """An estimate's basis, and why no more is known; rows above are cited by label."""
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
    """Replace the part with the name where the sources contain it as a consecutive run."""
    size = len(part)
    for start in range(len(sources) - size + 1 if size else 0):
        if sources[start : start + size] == list(part):
            sources[start : start + size] = [name]
            return


def _data(name: str, values: Sequence[Value]) -> dict[str, list[Any]]:
    """The values as columns of data: one, or four for estimates (three if none has a unit)."""
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
    """The text on one line of Markdown, with all markup escaped."""
    return _MARKDOWN.sub(r"\\\g<0>", plain(text))


class _Layout(Struct, frozen=True):
    """A table as lines of text: column widths, and the place of notes."""

    columns: tuple[Column, ...]
    rows: Sequence[Sequence[str]]
    width: int
    has_notes: bool

    @property
    def text(self) -> str:
        """Headers, a rule and the rows, without trailing spaces."""
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
        """The columns side by side, and those below the row."""
        columns = list(enumerate(self.columns))
        notes = [index for index, column in columns if column.is_note and self.has_notes]
        others = [index for index, column in columns if not column.is_note]
        every = sorted([*others, *notes])
        is_wide = self._room([self._natural(index) for index in every]) < 0
        return (others, notes) if is_wide else (every, [])

    def _widths(self, shown: Sequence[int]) -> list[int]:
        """Column widths by their cells; to fit, headers are wrapped first, then text columns."""
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
        """The minimum width with a wrapped title."""
        words = plain(self.columns[index].title).split(" ")
        return max([self._cells(index), *map(cell_len, words)])

    def _least(self, index: int) -> int:
        """The minimum width with wrapped words as well; numbers are never wrapped."""
        if self.columns[index].is_numeric:
            return self._least_head(index)
        texts = (self.columns[index].title, *(row[index] for row in self.rows))
        words = (word for text in texts for word in plain(text).split(" "))
        return min(max(map(cell_len, words)), _LONGEST_WORD)

    def _cells(self, index: int) -> int:
        return max(cell_len(plain(row[index])) for row in self.rows)


def wrapped(text: str, width: int = 80, *, indent: int = 0) -> str:
    """A paragraph as lines up to `width`; lines after the first are indented."""
    lines = _lines(text, width, after=" " * indent)
    return "".join(f"{line}\n" for line in lines)


def _note(text: str, width: int) -> str:
    margin = " " * _INDENT
    return "".join(f"{line}\n" for line in _lines(text, width, before=margin, after=margin))


def _lines(text: str, width: int, *, before: str = "", after: str = "") -> list[str]:
    """The text wrapped between words; no-break spaces keep a line together, and become plain ones.

    Words longer than a line are broken at their no-break spaces first, so that no number is cut. It
    uses textwrap, because rich also breaks lines at no-break spaces.
    """
    words = plain(text).split(" ")
    lines = textwrap.wrap(
        " ".join(word.replace(_NO_BREAK, " ") if len(word) > width else word for word in words),
        width,
        initial_indent=before,
        subsequent_indent=after,
        break_on_hyphens=False,
    )
    # textwrap counts characters, of which some take two columns of a terminal.
    fitting = [cut for line in lines for cut in chop_cells(line, width)]
    return [line.replace(_NO_BREAK, " ") for line in fitting] or [""]


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
    # All options are set here, so that the console does not query the environment.
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
