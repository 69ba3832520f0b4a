"""What the two processes of a report agree on: the kernel that draws, and the run that lays out.

Apart from them, so that laying out a page imports no chart library, and drawing no template engine.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

JsonObject = Mapping[str, Any]
"""What crosses from the kernel: a cell, an output, a chart's Vega-Lite spec, a piece."""

RENDERER_VARIABLE = "VLLM_CAPACITY_RENDERER"  # "page" in the environment of a report's kernel
PIECE_MIME = "application/vnd.vllm-capacity.piece.v1+json"
CHART_MIME = "application/vnd.vegalite.v6+json"
VEGALITE_VERSION = "6.4"
HOVER = "hover"  # layers and parameters so named serve the pointer; a still leaves them out
NOTEBOOK_WIDTH = 760  # numeric: "container" freezes a JupyterLab tab
