"""One window, asked once: what a notebook's cells look at.

A notebook stays thin because everything that is the same for each of its cells is fetched here:
the opened window, its answer, and the small frames its charts draw.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl

from vllm_capacity.answers import answer
from vllm_capacity.bills import Terms, engine_parts
from vllm_capacity.errors import InputError
from vllm_capacity.facts.fleet import load_fleet
from vllm_capacity.facts.prices import Price, find_price, given_price
from vllm_capacity.figures import scrapes
from vllm_capacity.figures.series import per_step
from vllm_capacity.hourly import hours_seen
from vllm_capacity.pages.hourly import costs_by_part
from vllm_capacity.pages.load_curve import LoadCurve, load_curve
from vllm_capacity.pages.timeline import readable_step_seconds
from vllm_capacity.telemetry.window import Window, open_window
from vllm_capacity.timerange import TimeRange, parse_instant
from vllm_capacity.verdicts.cost import Part


@dataclass(frozen=True)
class Study:
    """A window's part with its terms (price, GPUs, targets), and everything asked of it.

    `price_note` says whose price it is; `price_row` is its row of the price list, if it has one.
    """

    opened: Window
    part: TimeRange
    terms: Terms
    price_note: str = ""
    price_row: Price | None = None

    @cached_property
    def answer(self) -> dict[str, Any]:
        """The object of the machine interface (answers.py)."""
        return answer(self.opened, start=self.part.start, end=self.part.end, terms=self.terms)

    @cached_property
    def steps(self) -> pl.DataFrame:
        """The part over time, at most 150 rows (figures/series.py)."""
        seconds = readable_step_seconds(self.answer)
        return per_step(self.opened, part=self.part, step_seconds=seconds)

    @cached_property
    def curve(self) -> LoadCurve | None:
        """Points and fitted curve of the engine nearest to its limit; None without an engine."""
        seconds = readable_step_seconds(self.answer)
        return load_curve(self.opened, part=self.part, step_seconds=seconds)

    @cached_property
    def costs(self) -> pl.DataFrame:
        """What each hour of the part cost (hourly.py)."""
        return costs_by_part(self.opened, part=self.part, terms=self.terms)

    @cached_property
    def hours(self) -> pl.DataFrame:
        """What each whole hour of the clock in the part brought and cost (planning.py)."""
        return hours_seen(self.opened, part=self.part, terms=self.terms, told=self.answer)

    @cached_property
    def bill_parts(self) -> dict[str, Part]:
        """Each engine's part of the bill (bills.py), to be priced anew; capacities left out."""
        tries = scrapes.attempts(self.opened, end=self.part.end)
        engines = scrapes.engines(self.opened, part=self.part, tries=tries)
        fleet = scrapes.billed_hours(engines, tries, part=self.part)
        return engine_parts(self.opened, fleet, part=self.part, terms=self.terms, capacities={})

    @property
    def frames(self) -> Mapping[str, pl.DataFrame]:
        """The frames by the name a chart of the registry asks for."""
        return {"steps": self.steps, "costs": self.costs}


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
    row = find_price(price) if price else None
    known = given_price(usd_per_hour) if usd_per_hour is not None else row.usd if row else None
    opened = open_window(window)
    part = opened.clamp(*(parse_instant(text) if text else None for text in (start, end)))
    terms = Terms(
        usd_per_gpu_hour=known,
        gpus_per_engine=gpus_per_engine,
        ttft_slo_seconds=ttft_slo_seconds,
        itl_slo_seconds=itl_slo_seconds,
        fleet=load_fleet(Path(fleet)) if fleet else (),
    )
    return Study(opened, part, terms, row.key if row else price_note, row)
