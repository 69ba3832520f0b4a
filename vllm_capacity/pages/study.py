"""One window, asked once: what a notebook's cells look at.

A notebook stays thin because everything that is the same for each of its cells is fetched here: the
opened window, its answer, and the small frames its charts draw.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import polars as pl

from vllm_capacity.answers import answer
from vllm_capacity.bills import Terms
from vllm_capacity.errors import InputError
from vllm_capacity.estimate import Estimate
from vllm_capacity.facts.prices import Price, find_price, given_price
from vllm_capacity.figures.series import per_step
from vllm_capacity.pages.hourly import costs_by_part
from vllm_capacity.pages.timeline import readable_step_seconds
from vllm_capacity.telemetry.window import Window, open_window
from vllm_capacity.timerange import TimeRange, parse_instant


@dataclass(frozen=True)
class Study:
    """A window's part with its terms (price, GPUs, targets), and everything asked of it."""

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
    def costs(self) -> pl.DataFrame:
        """What each hour of the part cost (hourly.py)."""
        return costs_by_part(self.opened, part=self.part, terms=self.terms)

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
    price_row: str = "",
    gpus_per_engine: float = 1.0,
    ttft_slo_seconds: float | None = None,
    itl_slo_seconds: float | None = None,
) -> Study:
    """The window of that name or path, or its part [start, end), under these terms.

    The price of a GPU-hour is `usd_per_hour`, with `price_note` saying whose that is, or a row of
    gpu_prices.csv named by words of it; with neither, money stays unknown. An empty `start` or
    `end` is the capture's own.
    """
    row = _price_row(price_row, usd_per_hour)
    opened = open_window(window)
    part = opened.clamp(
        parse_instant(start) if start else None, parse_instant(end) if end else None
    )
    terms = Terms(
        usd_per_gpu_hour=_price(row, usd_per_hour),
        gpus_per_engine=gpus_per_engine,
        ttft_slo_seconds=ttft_slo_seconds,
        itl_slo_seconds=itl_slo_seconds,
    )
    return Study(opened, part, terms, row.key if row else price_note, row)


def _price(row: Price | None, usd_per_hour: float | None) -> Estimate | None:
    if row is not None:
        return row.usd
    return None if usd_per_hour is None else given_price(usd_per_hour)


def _price_row(name: str, usd_per_hour: float | None) -> Price | None:
    if not name:
        return None
    if usd_per_hour is not None:
        raise InputError(
            f"A price is given twice: usd_per_hour={usd_per_hour:g} and price_row={name!r}."
        )
    return find_price(name)
