"""The money figures of a report at another price, from data kept in its page, without telemetry."""

from __future__ import annotations

from pathlib import Path

from vllm_capacity.assumptions import Pricing
from vllm_capacity.errors import InputError
from vllm_capacity.record import SCHEMA_VERSION, Record
from vllm_capacity.render.report.metadata import page_metadata
from vllm_capacity.verdicts.cost.bill import Costs


class Repriced(Record, frozen=True):
    """The costs of a report's window as reported (`before`) and at another price (`after`).

    `start` and `end` are ISO 8601, as in the page.
    """

    window: str
    start: str
    end: str
    before: Costs
    after: Costs
    schema_version: int = SCHEMA_VERSION


def repriced(page: Path, pricing: Pricing, *, gpus_per_engine: float | None = None) -> Repriced:
    """The costs of a report's page under another pricing, as its window would give them.

    Capacities stay as reported; in the window itself, a mapping file that distinguishes GPUs may
    change them. `gpus_per_engine` None: as many as reported, or by the mapping file. InputError for
    a file that is no report or keeps no bill, and for a pricing without a price.
    """
    if not page.is_file():
        raise InputError(f"There is no report {page}. Name a page that `report` wrote.")
    found = page_metadata(page)
    if found is None:
        raise InputError(
            f"{page} is not a report, or was modified. Name a page that `report` wrote."
        )
    if found.use is None:
        raise InputError(
            f"{page} lacks the data behind its bill: it was made by an earlier release, or from "
            "another notebook. Make it again from its window: report WINDOW --price …."
        )
    if pricing.usd_per_gpu_hour is None and not pricing.rules:
        raise InputError("Give a price: --usd-per-hour, --price, or --fleet.")
    line = found.line
    return Repriced(
        line.window,
        line.start,
        line.end,
        found.use.as_paid.whole,
        found.use.bill_at(pricing, gpus_per_engine=gpus_per_engine).whole,
    )
