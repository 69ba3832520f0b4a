"""What a cell shows besides charts and tables: sentences, and elements with a template of theirs.

An element is data, not markup: the page's template writes its HTML, with everything escaped, so
that a model's name can hold anything. In JupyterLab the same template is shown as HTML.
"""

from __future__ import annotations

import html
from dataclasses import dataclass
from typing import Any

from vllm_capacity.render.report.contract import PIECE_MIME

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
        from vllm_capacity.render.report.page import piece_html  # the template engine, only here

        return piece_html({"kind": self.kind, "content": self.content})

    def _repr_mimebundle_(self, **_: object) -> Bundle:
        shown = {PIECE_MIME: {"kind": self.kind, "content": self.content}}
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


def text(*sentences: str) -> Text:
    """These sentences as an output; the first letter of each is made a capital."""
    return Text(tuple(f"{each[:1].upper()}{each[1:]}" for each in sentences))
