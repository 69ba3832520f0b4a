"""One type of table for a page, a notebook, a terminal, Markdown and CSV.

A cell keeps its value beside what a reader sees of it, so that a table can be sorted and exported
as numbers. Text comes from telemetry as well, and telemetry can name a model anything: HTML is
written by the page's template, which escapes; Markdown and CSV escape here; a terminal gets no
character that moves its cursor.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from io import StringIO
from typing import Any

import polars as pl
from rich.cells import cell_len
from rich.console import Console
from rich.padding import Padding
from rich.table import Table as Grid
from rich.text import Text as Line

from vllm_capacity.errors import plain
from vllm_capacity.estimate import Estimate
from vllm_capacity.render.elements import Bundle, Element
from vllm_capacity.render.numbers import Write, between
from vllm_capacity.render.prose import estimates

Value = str | float | datetime | Estimate | None

DASH = "–"
_GAP = "  "
_INDENT = 4
_LEAST_TEXT = 12  # columns of a terminal that a column of words keeps
_MARKDOWN = re.compile(r"[\\`*_\[\]<>|~&$]|:(?=//)|(?<=www)\.")
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
    write: Callable[[Any], str] = str
    is_numeric: bool = False
    is_note: bool = False

    def cell(self, value: Value | Cell) -> Cell:
        """The value as this column writes it; a dash for None."""
        if isinstance(value, Cell):
            return value
        if value is None:
            return Cell(DASH)
        if isinstance(value, Estimate):
            return Cell(estimates.value(value, self.write), value)
        return Cell(value if isinstance(value, str) else self.write(value), value)


@dataclass(frozen=True)
class Cell:
    """What a reader sees, and the value behind it."""

    text: str
    value: Value = None


@dataclass(frozen=True, repr=False)
class Table:
    """Rows of cells under columns. `empty` is the sentence that stands in the place of no rows."""

    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    caption: str = ""
    empty: str = "No rows."

    def __post_init__(self) -> None:
        """ValueError for a row that has not one cell per column."""
        if any(len(row) != len(self.columns) for row in self.rows):
            raise ValueError(f"a row has one cell per column: {len(self.columns)} of them")

    @property
    def content(self) -> dict[str, Any]:
        """The table as the page's template takes it: plain JSON, every cell as text."""
        return {
            "columns": [{"title": each.title, "numeric": each.is_numeric} for each in self.columns],
            "rows": [[cell.text for cell in row] for row in self.rows],
            "caption": self.caption,
            "empty": self.empty,
        }

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
        caption = f"{_markdown(self.caption)}\n\n" if self.caption else ""
        if not self.rows:
            return f"{caption}{_markdown(self.empty)}\n"
        heads = [column.title for column in self.columns]
        lines = [heads, *([cell.text for cell in row] for row in self.rows)]
        head, *body = (f"| {' | '.join(map(_markdown, cells))} |" for cells in lines)
        rule = "|".join(" ---: " if column.is_numeric else " --- " for column in self.columns)
        return caption + "\n".join([head, f"|{rule}|", *body]) + "\n"

    def to_csv(self) -> str:
        """The values as CSV, numbers with all their digits, times in UTC; a head without rows.

        Text that a spreadsheet would run as a formula begins with an apostrophe.
        """
        texts = pl.col(pl.String)
        is_formula = texts.str.contains(_FORMULA.pattern)
        safe = self.frame.with_columns(
            pl.when(is_formula).then(pl.lit("'") + texts).otherwise(texts).name.keep()
        )
        return safe.write_csv(datetime_format=_CSV_TIME)

    def to_text(self, width: int = 80, *, notes: bool = True) -> str:
        """The table as lines up to `width`, without its notes if they are not asked for.

        Notes stand below their row where the table would be wider.
        """
        return _Layout(self, width, has_notes=notes).text

    def __repr__(self) -> str:
        return self.to_text().rstrip("\n")

    def _repr_mimebundle_(self, **_: object) -> Bundle:
        return Element("table", self.content, repr(self))._repr_mimebundle_()


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


def figures_table(
    figures: Iterable[Figure], *, caption: str = "", empty: str = "No rows."
) -> Table:
    """Estimates one per row: value, interval, and what each rests on or why it is not known.

    What a row shares with the one above is not told again, save in the data.
    """
    columns = (
        Column("figure", "figure"),
        Column("value", "value", is_numeric=True),
        Column("interval"),
        Column("basis", "basis", is_note=True),
    )
    rows: list[tuple[Value | Cell, ...]] = []
    above: Estimate | None = None
    for each in figures:
        found = each.estimate
        shown = estimates.value(found, each.write)
        shown = shown if found.is_unknown else f"{shown} {each.unit}".rstrip()
        basis = Cell(_since(above, found), estimates.why(found))
        rows.append((each.label, Cell(shown, found), interval(found, each.write), basis))
        above = found
    return table(columns, rows, caption=caption, empty=empty)


def interval(estimate: Estimate, write: Write) -> str:
    """The ends of a known estimate, as its own column shows them; empty where they read alike."""
    return between(estimate, write).removeprefix("between ").replace(" and ", " to ")


def with_interval(estimate: Estimate, write: Write) -> Cell:
    """An estimate in one cell: its value, its interval in brackets where it has one."""
    return Cell(estimates.sure(estimate, write), estimate)


def _since(above: Estimate | None, found: Estimate) -> str:
    """What an estimate rests on, the sources or the reason of the one above named as such."""
    if above is None:
        return estimates.why(found)
    if not found.is_known:
        is_same = not above.is_known and above.reason == found.reason
        return "for the same reason" if is_same else estimates.why(found)
    size = len(above.basis)
    for start in range(len(found.basis) - size + 1 if size and above.is_known else 0):
        if found.basis[start : start + size] == above.basis:
            return "; ".join([*found.basis[:start], "the line above", *found.basis[start + size :]])
    return found.sources


def _data(name: str, values: Sequence[Value]) -> dict[str, list[Any]]:
    if not any(isinstance(value, Estimate) for value in values):
        return {name: list(values)}
    exact = Estimate.exact
    known = [exact(value) if isinstance(value, int | float) else value for value in values]
    found = [each if isinstance(each, Estimate) else None for each in known]
    columns = {
        name: [each and each.mid for each in found],
        f"{name}_low": [each and each.low for each in found],
        f"{name}_high": [each and each.high for each in found],
        f"{name}_unit": [(each and each.unit) or None for each in found],
    }
    return columns if any(columns[f"{name}_unit"]) else dict(list(columns.items())[:3])


def _markdown(text: str) -> str:
    return _MARKDOWN.sub(r"\\\g<0>", plain(text))


@dataclass(frozen=True)
class _Layout:
    """A table set in lines: how wide each column is, and where its notes stand."""

    table: Table
    width: int
    has_notes: bool

    @property
    def text(self) -> str:
        """All lines, none with spaces at its end."""
        parts = [self.table.caption] if self.table.caption else []
        if not self.table.rows:
            return wrapped(" ".join([*parts, self.table.empty]), self.width)
        beside, below = self._places
        widths = self._widths(beside)
        columns = [self.table.columns[index] for index in beside]
        heads = _row(columns, [each.title for each in columns], widths, vertical="bottom")
        rule = _GAP.join("─" * width for width in widths)
        lines = [*map(wrapped, parts), heads, f"{rule}\n"]
        for row in self.table.rows:
            lines.append(_row(columns, [row[index].text for index in beside], widths))
            lines += [self._note(row[index].text) for index in below if row[index].text]
        return "".join(lines)

    @property
    def _places(self) -> tuple[list[int], list[int]]:
        """The columns beside each other and those below the row."""
        columns = list(enumerate(self.table.columns))
        notes = [index for index, column in columns if column.is_note and self.has_notes]
        others = [index for index, column in columns if not column.is_note]
        every = sorted([*others, *notes])
        return (
            (every, []) if self._room([self._natural(i) for i in every]) >= 0 else (others, notes)
        )

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
        return max(cell_len(plain(self.table.columns[index].title)), self._cells(index))

    def _least_head(self, index: int) -> int:
        """With its title wrapped."""
        words = plain(self.table.columns[index].title).split()
        return max([self._cells(index), *map(cell_len, words)])

    def _least(self, index: int) -> int:
        """Words wrapped as well; numbers never are."""
        least = self._least_head(index)
        return least if self.table.columns[index].is_numeric else min(least, _LEAST_TEXT)

    def _cells(self, index: int) -> int:
        return max(cell_len(plain(row[index].text)) for row in self.table.rows)

    def _note(self, text: str) -> str:
        return _printed(Padding(Line(plain(text)), (0, 0, 0, _INDENT)), self.width)


def wrapped(text: str, width: int = 80, *, indent: int = 0) -> str:
    """A paragraph as lines up to `width`; those after the first are indented."""
    if not indent:
        return _printed(Line(plain(text)), width)
    first, *rest = Line(plain(text)).wrap(_console(width), width - indent)
    again = Line(" ").join(rest) if rest else None
    lines = _printed(first, width)
    return lines if again is None else lines + _printed(Padding(again, (0, 0, 0, indent)), width)


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
    grid.add_row(*(Line(plain(cell)) for cell in cells))
    return _printed(grid, sum(widths) + len(_GAP) * len(widths))


def _printed(shown: Grid | Line | Padding, width: int) -> str:
    console = _console(width)
    with console.capture() as found:
        console.print(shown, markup=False, highlight=False, emoji=False)
    return "".join(f"{line.rstrip(' ')}\n" for line in found.get().splitlines())


def _console(width: int) -> Console:
    # Everything is said here, so that the console asks the environment for nothing.
    return Console(
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
