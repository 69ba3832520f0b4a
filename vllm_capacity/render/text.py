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
        paragraphs = "\n".join(f"<p>{html.escape(each)}</p>" for each in self.sentences)
        # Lab would typeset what stands between two dollar signs.
        shown = f'<div class="mathjax_ignore tex2jax_ignore">{paragraphs}</div>'
        return {"text/html": shown, "text/plain": repr(self)}


def said(*sentences: str) -> Said:
    """These sentences as an output; the first letter of each is made a capital."""
    return Said(tuple(f"{each[:1].upper()}{each[1:]}" for each in sentences))
