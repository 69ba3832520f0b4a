"""How wide the reader's screen is."""

from __future__ import annotations

import shutil

_LEAST, _MOST = 80, 100
"""Narrower, tables would lose columns; wider, lines are hard to read."""


def columns() -> int:
    """The columns to write in: the terminal's (or COLUMNS) within bounds; 80 without one."""
    return min(max(shutil.get_terminal_size().columns, _LEAST), _MOST)
