"""The report: a notebook run by a kernel, laid out as one page, and an index of the pages.

This module has what the kernel and the layout process share, separate from both: laying out a page
imports no chart library, and drawing imports no template engine.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

JsonObject = Mapping[str, Any]
"""Data from the kernel: a cell, an output, a chart's Vega-Lite spec, an element."""

RENDERER_VARIABLE = "VLLM_CAPACITY_RENDERER"  # set to "page" in a report's kernel
ELEMENT_MIME = "application/vnd.vllm-capacity.piece.v1+json"
CHART_MIME = "application/vnd.vegalite.v6+json"
CHART_NOTES = "vllm_capacity"  # key of a chart's `usermeta`: its table, definition and place
VEGALITE_VERSION = "6.4"
HOVER = "hover"  # name prefix of layers and parameters for the pointer; stills omit them
NOTEBOOK_WIDTH = 760  # numeric: "container" freezes a JupyterLab tab
MAX_ROWS = 200  # rows of a table on a page; terminals, Markdown and CSV have all
STILL_WIDTH = 440  # legible with two side by side on paper, and with one on a phone


def is_for_page() -> bool:
    """Whether this is a report's kernel, whose output only a page will show."""
    return os.environ.get(RENDERER_VARIABLE) == "page"
