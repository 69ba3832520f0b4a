"""All charts: one function per chart, one question per function. To add a chart, write a function.

The charts are the public functions of the modules named in `_MODULES`. Each takes the analysis (or
the plan) that it draws; none of them computes a figure.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import wraps
from types import MethodType
from typing import TYPE_CHECKING

from vllm_capacity.analysis import Analysis
from vllm_capacity.plan import Plan
from vllm_capacity.render import quick_jsonschema  # noqa: F401  before altair
from vllm_capacity.render.charts import cost as _cost
from vllm_capacity.render.charts import gpus as _gpus
from vllm_capacity.render.charts import latency as _latency
from vllm_capacity.render.charts import plan as _plan
from vllm_capacity.render.charts import regimes as _regimes
from vllm_capacity.render.charts import saturation as _saturation
from vllm_capacity.render.charts import traffic as _traffic
from vllm_capacity.render.charts import weeks as _weeks
from vllm_capacity.render.charts.base import Chart
from vllm_capacity.render.charts.zone import UTC_CLOCK, Clock, drawn_by

Draw = Callable[..., Chart]

_MODULES = (_traffic, _latency, _regimes, _saturation, _cost, _weeks, _plan, _gpus)
CHARTS: Mapping[str, Draw] = {
    name: draw
    for module in _MODULES
    for name, draw in vars(module).items()
    if inspect.isfunction(draw) and draw.__module__ == module.__name__ and name[0] != "_"
}
"""All charts by name, in the order of the report."""

globals().update(CHARTS)  # `charts.saturation` is the chart; its module has the same name
if TYPE_CHECKING:

    def __getattr__(name: str) -> Draw:
        """A chart, for type checkers: the names are not listed here again."""


def charts_of(drawn: type[Analysis] | type[Plan]) -> Mapping[str, Draw]:
    """The charts whose first argument is an `Analysis`, or a `Plan`, by name."""
    first = drawn.__name__.lower()
    return {
        name: draw
        for name, draw in CHARTS.items()
        if next(iter(inspect.signature(draw).parameters)) == first
    }


class Charts:
    """The charts of one analysis or one plan as methods: `Charts(analysis).saturation()`.

    `time_zone` sets the days and hours on their axes; InputError if there is no such zone.
    """

    def __init__(self, drawn: Analysis | Plan, *, time_zone: str = UTC_CLOCK.zone) -> None:
        self._drawn = drawn
        self._clock = (
            UTC_CLOCK if isinstance(drawn, Plan) else Clock.of(time_zone, drawn.time_range)
        )

    def __getattr__(self, name: str) -> Draw:
        """The chart of that name, drawn from the analysis or plan."""
        known = charts_of(Plan if isinstance(self._drawn, Plan) else Analysis)
        if name not in known:
            raise AttributeError(f"No chart {name!r}; there are {', '.join(known)}.")
        draw: Draw = MethodType(known[name], self._drawn)
        has_zone = "time_zone" in inspect.signature(draw).parameters
        zone = {"time_zone": self._clock.zone} if has_zone else {}

        @wraps(draw)
        def drawn(*args: object, **options: object) -> Chart:
            with drawn_by(self._clock):
                return draw(*args, **(zone | options))

        return drawn

    def __dir__(self) -> list[str]:
        """The names of the charts."""
        known = charts_of(Plan if isinstance(self._drawn, Plan) else Analysis)
        return sorted([*super().__dir__(), *known])
