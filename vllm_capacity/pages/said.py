"""A sentence as a cell's output: text that a page and JupyterLab both show as a paragraph."""

from __future__ import annotations

import html
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Said:
    """Whole sentences, a paragraph each. What telemetry put into them is escaped."""

    sentences: tuple[str, ...]

    def __repr__(self) -> str:
        return "\n".join(self.sentences)

    def _repr_mimebundle_(self, **_: object) -> dict[str, Any]:
        paragraphs = (f"<p>{html.escape(each)}</p>" for each in self.sentences)
        return {"text/html": "\n".join(paragraphs), "text/plain": repr(self)}


def said(*sentences: str) -> Said:
    """These sentences as an output; the first letter of each is made a capital."""
    return Said(tuple(f"{each[:1].upper()}{each[1:]}" for each in sentences))
