"""Capacity and cost planning for self-hosted LLM inference on vLLM.

The names a notebook needs. Each is loaded when it is first used, so that the command line starts
fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vllm_capacity.errors import CapacityError, InputError, SourceError
    from vllm_capacity.estimate import Estimate
    from vllm_capacity.figures.histogram import bucket_quantile
    from vllm_capacity.figures.series import per_step
    from vllm_capacity.render import charts
    from vllm_capacity.render.sections.elements import (
        definitions,
        provenance,
        table,
        tiles,
        title_line,
        verdict,
    )
    from vllm_capacity.render.sections.tables import failures, first_changes, ledger, other_prices
    from vllm_capacity.render.study import Study, study
    from vllm_capacity.telemetry.window import Window, open_window
    from vllm_capacity.timerange import TimeRange

__all__ = [
    "CapacityError",
    "Estimate",
    "InputError",
    "SourceError",
    "Study",
    "TimeRange",
    "Window",
    "bucket_quantile",
    "charts",
    "definitions",
    "failures",
    "first_changes",
    "ledger",
    "open_window",
    "other_prices",
    "per_step",
    "provenance",
    "study",
    "table",
    "tiles",
    "title_line",
    "verdict",
]

_HOMES = {
    "errors": ("CapacityError", "InputError", "SourceError"),
    "estimate": ("Estimate",),
    "figures.histogram": ("bucket_quantile",),
    "figures.series": ("per_step",),
    "pages.elements": (
        "definitions",
        "provenance",
        "table",
        "tiles",
        "title_line",
        "verdict",
    ),
    "pages.tables": ("failures", "first_changes", "ledger", "other_prices"),
    "pages.study": ("Study", "study"),
    "telemetry.window": ("Window", "open_window"),
    "timerange": ("TimeRange",),
}
_MODULES = {"charts": "pages.charts"}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> object:
    """The exported name, imported from its home now and kept."""
    if name in _MODULES:
        found: object = importlib.import_module(f"{__name__}.{_MODULES[name]}")
    elif name in _HOME_OF:
        found = getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
