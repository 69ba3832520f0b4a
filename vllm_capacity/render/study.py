"""One window, asked once: what a notebook's cells look at.

A notebook stays thin because everything that is the same for each of its cells is fetched here:
the opened window, its answer, and the small frames its charts draw.
"""

from __future__ import annotations

from dataclasses import dataclass

from vllm_capacity.analysis import Analysis
from vllm_capacity.assumptions import Assumptions, Slo, pricing
from vllm_capacity.errors import InputError
from vllm_capacity.telemetry.window import open_window
from vllm_capacity.timerange import parse_instant


@dataclass(frozen=True)
class Study(Analysis):
    @property
    def opened(self):
        return self.window

    @property
    def part(self):
        return self.time_range

    @property
    def terms(self):
        return self.assumptions

    @property
    def price_note(self):
        return self.assumptions.pricing.note

    @property
    def price_row(self):
        return self.assumptions.pricing.row

    @property
    def curve(self):
        return self.load_curve


def study(
    window: str,
    *,
    start: str = "",
    end: str = "",
    usd_per_hour: float | None = None,
    price_note: str = "",
    price: str = "",
    fleet: str = "",
    gpus_per_engine: float = 1.0,
    ttft_slo_seconds: float | None = None,
    itl_slo_seconds: float | None = None,
) -> Study:
    """The window of that name or path, or its part [start, end), under these terms.

    The price of a GPU-hour is `usd_per_hour`, with `price_note` saying whose that is, or `price`, a
    row of gpu_prices.csv by words of it, or `fleet`, the path of a mapping file; with none of them,
    money stays unknown. An empty `start` or `end` is the capture's own.
    """
    given = {"usd_per_hour": usd_per_hour is not None, "price": price, "fleet": fleet}
    ways = [name for name, is_given in given.items() if is_given]
    if len(ways) > 1:
        raise InputError(f"The price is given by {' and '.join(ways)}; give it one way.")
    given_price = price or usd_per_hour
    opened = open_window(window)
    part = opened.clamp(*(parse_instant(text) if text else None for text in (start, end)))
    p = pricing(given_price, gpus_per_engine=gpus_per_engine, price_rules=fleet, note=price_note)
    return Study(opened, part, Assumptions(p, Slo(ttft_slo_seconds, itl_slo_seconds)))
