"""Tables that stand beside the charts: the ledger, and the same window under other prices."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from vllm_capacity.facts.prices import Price, offers
from vllm_capacity.render.numbers import Write, between, count, percent, usd, usd_per_thousand
from vllm_capacity.render.prose import verdict as words
from vllm_capacity.render.prose.estimates import is_unknown, value
from vllm_capacity.render.sections.elements import Piece, table
from vllm_capacity.render.study import Study
from vllm_capacity.verdicts.cost import bill

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

    Empty, saying why, where the price is no row of the price list: only a row says which GPU it is.
    """
    row = asked.price_row
    if row is None:
        return table(
            ["price"],
            [],
            empty="No other price is compared: that takes a GPU named by a row of the price list "
            "(the parameter price).",
        )
    others = {each.key: each for each in (*offers(f"{row.gpu}-{row.form_factor}"), row)}
    ordered = sorted(others.values(), key=lambda each: (each.usd_per_gpu_hour, each.key))
    return table(
        ["price list row", "date", "a GPU-hour", "1,000 requests", "a million output tokens"],
        [_priced(asked, each) for each in ordered],
        numeric=(1, 2, 3, 4),
    )


def first_changes(asked: Study) -> Piece:
    """What to change first, before buying a GPU: the setting, its evidence, its bounded effect."""
    rows = [
        [
            str(one["setting"]),
            str(one["engine"]),
            _written(one["effect"], percent, reason=True),
            str(one["evidence"]),
        ]
        for one in asked.answer["advice"]
    ]
    return table(
        ["change", "engine", "gain", "evidence"],
        rows,
        empty="No setting of the server held anything back in this window.",
    )


def failures(asked: Study) -> Piece:
    """What can be known of failures, each with its blind spot; what cannot, with the reason."""
    kinds = {
        "http_5xx_ratio": ("answers with HTTP 5xx", percent),
        "http_4xx_ratio": ("answers with HTTP 4xx", percent),
        "error_ratio": ("finished with an engine error", percent),
        "rejected": ("requests rejected at admission", count),
        "abandoned": ("requests that clients left", count),
    }
    found = asked.answer["failures"]
    rows = [
        [title, _written(found[name], write), found[name]["basis"] or found[name]["reason"]]
        for name, (title, write) in kinds.items()
    ]
    return table(["failure", "share or count", "what it rests on"], rows)


def _priced(asked: Study, row: Price) -> list[str]:
    parts = asked.bill_parts.items()
    cost = bill({name: replace(part, usd_per_gpu_hour=row.usd) for name, part in parts}).whole
    source = "this page" if row == asked.price_row else row.source
    return [
        f"{row.offer} ({source})",
        row.date,
        usd(row.usd_per_gpu_hour),
        _written(cost["usd_per_request"].as_dict(), usd_per_thousand),
        _written(cost["usd_per_million_output_tokens"].as_dict(), usd),
    ]


def _written(estimate: Mapping[str, Any], write: Write, *, reason: bool = False) -> str:
    if is_unknown(estimate):
        return f"not known: {estimate['reason']}" if reason else "not known"
    interval = between(estimate, write)
    return f"{value(estimate, write)}{f', {interval}' if interval else ''}"


def _when(text: str | None) -> str:
    """The times of a finding, at most two of them, without date markers and fractions."""
    readable = re.sub(r"(?<=\d)T(?=\d)", " ", re.sub(r"\.\d+(?=Z)", "", text or ""))
    spells = readable.split("; ")
    shown = "; ".join(spells[:_SPELLS_SHOWN])
    more = len(spells) - _SPELLS_SHOWN
    return f"{shown} and {more} more" if more > 0 else shown
