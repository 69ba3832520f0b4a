"""Paper for a terminal: paragraphs, tables and rows of estimates up to a width, as lines of text.

What telemetry named (a model, an instance) is stripped of control characters, so that no label can
move the reader's cursor.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from io import StringIO
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from vllm_capacity.errors import plain
from vllm_capacity.render.numbers import Write, between
from vllm_capacity.render.prose import verdict as words
from vllm_capacity.render.prose.estimates import NOT_KNOWN, is_bound, is_unknown, value

_SAME = "for the same reason"
_WITH_REASON = (NOT_KNOWN, "at least ", "at most ")


@dataclass(frozen=True)
class Paper:
    """Lines up to a width, gathered in order; headings are bold where colour is allowed."""

    width: int = 80
    is_colourful: bool = False
    _out: StringIO = field(default_factory=StringIO)

    def line(self, text: str, *, indent: str = "", style: str = "") -> None:
        """A paragraph, wrapped; its further lines stand under `indent`."""
        wrapped = textwrap.wrap(
            plain(text), self.width, subsequent_indent=indent, break_on_hyphens=False
        )
        for each in wrapped or [""]:
            self._print(Text(each, style=style))

    def heading(self, text: str) -> None:
        """An empty line and a bold one."""
        self._print(Text(""))
        self.line(text, style="bold")

    def table(
        self,
        heads: Sequence[str],
        rows: Iterable[Sequence[str]],
        *,
        numeric: Sequence[int] = (),
        whole: Sequence[int] = (0,),
    ) -> None:
        """A table without rules; `numeric` columns stand at the right, `whole` ones never wrap.

        A head may be of several lines; the last lines of all heads stand side by side.
        """
        made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="underline")
        made.show_header = any(heads)
        deepest = max((head.count("\n") for head in heads), default=0)
        for index, head in enumerate(heads):
            lines = [*[""] * (deepest - head.count("\n")), *map(plain, head.split("\n"))]
            made.add_column(
                Text("\n".join(lines)),
                justify="right" if index in numeric else "left",
                no_wrap=index in whole,
                overflow="fold",
            )
        for row in rows:
            made.add_row(*(Text(plain(cell)) for cell in row))
        self._print(made)

    def title(self, name: str, *, is_simulated: bool = False) -> None:
        """A window's name, where there is one, and that it is simulated, where it is."""
        if name:
            self.line(name, style="bold")
        if is_simulated:
            self.line(words.SIMULATED)

    def estimates(self, rows: Iterable[Sequence[str]]) -> None:
        """A table of `figure_row`s without heads; a reason that two share is told once."""
        self.table(["", "", ""], told_once(rows))

    @property
    def text(self) -> str:
        """All of it, no line with spaces at its end."""
        return "\n".join(line.rstrip(" ") for line in self._out.getvalue().split("\n"))

    def _print(self, shown: Text | Table) -> None:
        # Everything is said here, so that the console asks the environment for nothing.
        console = Console(
            file=self._out,
            width=self.width,
            height=100,
            color_system="standard" if self.is_colourful else None,
            force_terminal=self.is_colourful,
            force_jupyter=False,
            force_interactive=False,
            no_color=not self.is_colourful,
            legacy_windows=False,
        )
        console.print(shown, markup=False, highlight=False, emoji=False)


def figure_row(label: str, figure: Mapping[str, Any], write: Write, unit: str = "") -> list[str]:
    """An estimate as a row: label, value with its unit, interval; or why there is none."""
    if is_unknown(figure):
        return [label, NOT_KNOWN, str(figure["reason"])]
    beside = str(figure["reason"]) if is_bound(figure) else between(figure, write)
    return [label, f"{value(figure, write)} {unit}".strip(), beside]


def told_once(rows: Iterable[Sequence[str]]) -> list[list[str]]:
    """The rows with a reason that the row above gave already told as such."""
    above, told = "", []
    for row in map(list, rows):
        reason = row[-1] if row[-2].startswith(_WITH_REASON) else ""
        if reason and reason == above:
            row[-1] = _SAME
        above = reason
        told.append(row)
    return told
