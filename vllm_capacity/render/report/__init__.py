"""The report: a notebook that a kernel runs, laid out as one page, and an index over the pages.

What the kernel and the process that lays out agree on stands here, apart from both: laying out a
page imports no chart library, and drawing one no template engine.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

JsonObject = Mapping[str, Any]
"""What crosses from the kernel: a cell, an output, a chart's Vega-Lite spec, a piece."""

RENDERER_VARIABLE = "VLLM_CAPACITY_RENDERER"  # "page" in the environment of a report's kernel
ELEMENT_MIME = "application/vnd.vllm-capacity.piece.v1+json"
CHART_MIME = "application/vnd.vegalite.v6+json"
VEGALITE_VERSION = "6.4"
HOVER = "hover"  # layers and parameters so named serve the pointer; a still leaves them out
NOTEBOOK_WIDTH = 760  # numeric: "container" freezes a JupyterLab tab
STILL_WIDTH = 440  # two beside each other on paper are still read, and one on a phone


def is_for_page() -> bool:
    """Whether this is the kernel of a report: a page lays out what it shows, and nobody else."""
    return os.environ.get(RENDERER_VARIABLE) == "page"
