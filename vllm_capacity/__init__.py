"""Capacity and cost planning for self-hosted LLM inference on vLLM.

    >>> import vllm_capacity as vc
    >>> a = vc.open("vllm-sweep").analyze(price=1.64, slo=vc.Slo(ttft_p95_seconds=2.0))
    >>> a.saturation.bottleneck
    'kv-bound'

Each name is loaded when it is first used, so that the command line starts fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vllm_capacity.alerts import alerts
    from vllm_capacity.answer import Answer
    from vllm_capacity.api import (
        Analysis,
        Window,
        compare,
        fit,
        fit_at,
        forecast,
        next_loads,
        open,
        pull,
        read_usage,
        reprice,
        scrape,
        use_facts,
        what_if,
    )
    from vllm_capacity.assumptions import Pricing, Slo
    from vllm_capacity.errors import CapacityError, InputError, SourceError
    from vllm_capacity.estimate import Estimate
    from vllm_capacity.figures.histogram import bucket_quantile
    from vllm_capacity.plan import Plan
    from vllm_capacity.render import charts
    from vllm_capacity.render import sections as tables
    from vllm_capacity.resources import shipped
    from vllm_capacity.verdicts.hardware.other_gpus import gpu_interactivity, gpu_options
    from vllm_capacity.verdicts.hardware.serving import Calibration
    from vllm_capacity.verdicts.saturation.curve import Prior
    from vllm_capacity.verdicts.sizing import Policy

__all__ = [
    "Analysis",
    "Answer",
    "Calibration",
    "CapacityError",
    "Estimate",
    "InputError",
    "Plan",
    "Policy",
    "Pricing",
    "Prior",
    "Slo",
    "SourceError",
    "Window",
    "alerts",
    "bucket_quantile",
    "charts",
    "compare",
    "fit",
    "fit_at",
    "forecast",
    "gpu_interactivity",
    "gpu_options",
    "next_loads",
    "open",
    "pull",
    "read_usage",
    "reprice",
    "scrape",
    "shipped",
    "tables",
    "use_facts",
    "what_if",
]

_HOMES = {
    "alerts": ("alerts",),
    "answer": ("Answer",),
    "api": (
        *("Analysis", "Window", "compare", "fit", "fit_at", "forecast"),
        *("next_loads", "open", "pull", "read_usage", "reprice", "scrape", "use_facts", "what_if"),
    ),
    "assumptions": ("Pricing", "Slo"),
    "errors": ("CapacityError", "InputError", "SourceError"),
    "estimate": ("Estimate",),
    "figures.histogram": ("bucket_quantile",),
    "plan": ("Plan",),
    "verdicts.hardware.other_gpus": ("gpu_interactivity", "gpu_options"),
    "resources": ("shipped",),
    "verdicts.saturation.curve": ("Prior",),
    "verdicts.hardware.serving": ("Calibration",),
    "verdicts.sizing": ("Policy",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
_MODULES = {"charts": "render.charts", "tables": "render.sections"}
_RENAMED = {"open_window": "open"}  # kept for one release


def __getattr__(name: str) -> object:
    """The exported name, imported on first use and kept."""
    if name in _RENAMED:
        from vllm_capacity.record import deprecated

        deprecated(f"vllm_capacity.{name}", f"vllm_capacity.{_RENAMED[name]}")
        from vllm_capacity.telemetry.window import open_window

        return open_window
    if name in _MODULES:
        from vllm_capacity.errors import needing_extra

        with needing_extra("report"):
            found: object = importlib.import_module(f"{__name__}.{_MODULES[name]}")
        globals()[name] = found
        return found
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return __all__
