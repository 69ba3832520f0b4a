"""Tables that stand beside the charts: the ledger, and the same window under other prices."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from vllm_capacity.estimate import Estimate
from vllm_capacity.facts.prices import Price, offers
from vllm_capacity.pages import words
from vllm_capacity.pages.elements import Piece, table
from vllm_capacity.pages.numbers import Write, between, count, usd, usd_per_thousand
from vllm_capacity.pages.study import Study

_SEVERITIES = {"info": "to know", "warning": "a doubt", "error": "do not trust"}
_SPELLS_SHOWN = 2


def ledger(asked: Study) -> Piece:
    """What was found about the telemetry: the finding, how often, when, what it can move."""
    word, why = words.quality_word(asked.answer)
    rows = [
        [
            _SEVERITIES[row["severity"]],
            str(row["check"]),
            count(row["count"]),
            _when(row["when"]),
            str(row["effect"]),
        ]
        for row in asked.answer["quality"]
    ]
    return table(
        ["how bad", "finding", "count", "when (UTC)", "what it can move"],
        rows,
        numeric=(2,),
        caption=f"{words.SHAPES[word]} {word}: {why}",
        empty="Nothing was found: no gap, no restart, no missing series.",
    )


def other_prices(asked: Study) -> Piece:
    """The same window under the other offers for its GPU, cheapest first, and under its own price.

    Money is in proportion to the price of a GPU-hour, so nothing is measured anew. Empty, saying
    why, where the price was given as a number: no price list then says which GPU it was.
    """
    own, row = asked.terms.usd_per_gpu_hour, asked.price_row
    if own is None or row is None or not own.mid:
        return table(
            ["price"],
            [],
            empty="No other price is compared: that takes a GPU named by a row of the price list "
            "(price_row).",
        )
    others = {each.key: each for each in (*offers(f"{row.gpu}-{row.form_factor}"), row)}
    ordered = sorted(others.values(), key=lambda each: (each.usd_per_gpu_hour, each.key))
    return table(
        ["price list row", "date", "a GPU-hour", "1,000 requests", "a million output tokens"],
        [_priced(asked.answer["cost"], each, own.mid, is_own=each == row) for each in ordered],
        numeric=(1, 2, 3, 4),
    )


def _priced(cost: Mapping[str, Any], row: Price, own_usd: float, *, is_own: bool) -> list[str]:
    factor = row.usd_per_gpu_hour / own_usd
    request, million = (
        Estimate(**cost[name]).scaled(factor).as_dict()
        for name in ("usd_per_request", "usd_per_million_output_tokens")
    )
    return [
        f"{row.provider}, {row.tier} ({'this page' if is_own else row.source})",
        row.date,
        usd(row.usd_per_gpu_hour),
        _written(request, usd_per_thousand),
        _written(million, usd),
    ]


def _written(estimate: Mapping[str, Any], write: Write) -> str:
    if estimate["mid"] is None:
        return "not known"
    interval = between(estimate, write)
    return f"{write(estimate['mid'])}{f', {interval}' if interval else ''}"


def _when(text: str | None) -> str:
    """The times of a finding, at most two of them, without date markers and fractions."""
    readable = re.sub(r"(?<=\d)T(?=\d)", " ", re.sub(r"\.\d+(?=Z)", "", text or ""))
    spells = readable.split("; ")
    shown = "; ".join(spells[:_SPELLS_SHOWN])
    more = len(spells) - _SPELLS_SHOWN
    return f"{shown} and {more} more" if more > 0 else shown
