"""Terminal output for the fact tables: the list of tables, a list of rows, one row in full."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from vllm_capacity.facts.catalog import CATALOGS, FactRow
from vllm_capacity.render.tables import Column, table, wrapped

_WIDTH = 80
_APART = ("source", "date", "note")


def overview_text(found: Mapping[str, tuple[int, Path | None]], *, width: int = _WIDTH) -> str:
    """The tables, the number of rows of each, and the user's own file."""
    columns = (
        Column("table", "table"),
        Column("rows", "rows", is_numeric=True),
        Column("your own rows", "own"),
    )
    rows = [
        (name, f"{count:,}", "none" if own is None else str(own))
        for name, (count, own) in found.items()
    ]
    return table(columns, rows).to_text(width)


def rows_text(name: str, rows: Sequence[FactRow], *, width: int = _WIDTH) -> str:
    """Rows of a table, one per line: name, main values, age, and whether it is the user's own."""
    shown = CATALOGS[name].shown
    columns = (
        Column(name.removesuffix("s"), "name"),
        *(Column(title, each, is_numeric=_is_numeric(rows, each)) for each, title in shown),
        Column("date", "date"),
        Column("", "own"),
    )
    lines = [
        (
            row.name,
            *(_value(row.values[each]) for each, _ in shown),
            row.date or None,
            "yours" if row.is_own else "",
        )
        for row in rows
    ]
    return table(columns, lines).to_text(width)


def row_text(row: FactRow, *, width: int = _WIDTH) -> str:
    """Every value of a row and their source; an empty value is unknown."""
    columns = (Column("value of", "column"), Column("value", "value"))
    lines = [(name, _value(cell)) for name, cell in row.values.items() if name not in _APART]
    dated = f" ({row.date})" if row.date else ""
    text = table(columns, lines, caption=row.name).to_text(width)
    text += wrapped(f"All of these: {row.source}{dated}", width, indent=2)
    return text + (wrapped(f"Note: {row.note}", width, indent=2) if row.note else "")


def _is_numeric(rows: Sequence[FactRow], column: str) -> bool:
    return all(isinstance(row.values[column], int | float | None) for row in rows)


def _value(cell: object) -> str | None:
    """A cell as text; None for an empty one, which is unknown."""
    if cell is None or cell == "":
        return None
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, tuple):
        return " ".join(map(str, cell)) or None
    return f"{cell:,.6g}" if isinstance(cell, float) else str(cell)
