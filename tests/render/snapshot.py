"""What is shown, kept as text files under `snapshots/`, so that a change of wording is one diff.

To renew them after a change that is meant: `RENEW_SNAPSHOTS=1 python -m pytest tests/render`, then
read `git diff`.
"""

from __future__ import annotations

import os
from pathlib import Path

HERE = Path(__file__).parent / "snapshots"


def assert_same(name: str, text: str) -> None:
    """The text is that of the snapshot `name`; with RENEW_SNAPSHOTS set, it becomes it."""
    path, shown = HERE / f"{name}.txt", text.rstrip() + "\n"
    if os.environ.get("RENEW_SNAPSHOTS"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(shown, encoding="utf-8")
    assert shown == path.read_text(encoding="utf-8")
