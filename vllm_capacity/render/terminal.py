"""The terminal's face of a window: verdict, tiles and ledger of an answer, and a bill, as text.

The same sentences and tiles as the page, in its order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vllm_capacity.render.numbers import (
    Write,
    between,
    count,
    hours,
    percent,
    span,
    usd,
    usd_per_thousand,
)
from vllm_capacity.render.paper import Paper, told_once
from vllm_capacity.render.prose import verdict as words
from vllm_capacity.render.prose.estimates import NOT_KNOWN, is_bound, value
from vllm_capacity.render.sections.elements import tile_contents
from vllm_capacity.timerange import TimeRange

_BILL: tuple[tuple[str, str, Write], ...] = (
    ("bill", "allocation_usd", usd),
    ("of it\nidle", "idle_usd", usd),
    ("used", "utilisation", percent),
    ("dollars per\n1,000 requests", "usd_per_request", usd_per_thousand),
    ("dollars per M\noutput tokens", "usd_per_million_output_tokens", usd),
)
_KEYS = {head.replace("\n", " "): key for head, key, _ in _BILL}
_RESTS_ON_OUTPUT = frozenset({"idle_usd", "utilisation", "usd_per_million_output_tokens"})
_OUTPUT_TOKENS = "vllm:generation_tokens_total"


def figures_text(
    answer: Mapping[str, Any],
    *,
    window_name: str,
    price_note: str = "",
    is_simulated: bool = False,
    width: int = 80,
    is_colourful: bool = False,
) -> str:
    """An answer as text: title line, verdict, tiles, the ledger; no line wider than `width`."""
    paper = Paper(width, is_colourful)
    paper.title(window_name)
    paper.line(window_line(answer["window"]))
    paper.line(f"Price: {price_note or _price(answer['cost']['allocation_usd'])}")
    paper.line("")
    for sentence in words.verdict(answer, is_simulated=is_simulated):
        paper.line(sentence)
    paper.line("")
    tiles = tile_contents(answer)
    paper.table(["figure", "value", "between"], told_once(_tile_row(tile) for tile in tiles))
    word, why = words.quality_word(answer)
    paper.heading(f"Can I trust this? {words.SHAPES[word]} {word}: {why}")
    for found in answer["quality"]:
        times = f" ({count(found['count'])})" if found["count"] > 1 else ""
        paper.line(
            f"{_severity_shape(found['severity'])} {found['check']}{times}: {found['effect']}",
            indent="  ",
        )
    return paper.text


def cost_text(
    told: Mapping[str, Any],
    *,
    part: TimeRange,
    window_name: str = "",
    is_simulated: bool = False,
    price_note: str = "",
    unlabelled: Sequence[str] = (),
    width: int = 80,
    is_colourful: bool = False,
) -> str:
    """A bill (`cost_by` of answers.py) as text: a row a part, then the whole they add up to.

    `part` is the time it is for; `unlabelled` the counters that do not have the label it is by.
    """
    paper = Paper(width, is_colourful)
    paper.title(window_name, is_simulated=is_simulated)
    paper.line(f"{span(part.start, part.end)} ({hours(part.hours)})")
    paper.line(f"Price: {price_note or _price(told['whole']['allocation_usd'])}")
    paper.line("")
    parts = {**told["parts"], "whole": told["whole"]}
    rows = [
        [name, *(value(figures[key], write) for _, key, write in _BILL)]
        for name, figures in parts.items()
    ]
    heads = [str(told["by"]), *(head for head, _, _ in _BILL)]
    paper.table(heads, rows, numeric=range(1, len(heads)), whole=range(1, len(heads)))
    paper.line("")
    _bill_notes(paper, told, unlabelled)
    return paper.text


def _bill_notes(paper: Paper, told: Mapping[str, Any], unlabelled: Sequence[str]) -> None:
    """The intervals of the whole, and a reason once for all figures that are unknown for it."""
    reasons: dict[str, list[str]] = {}
    for head, key, write in _BILL:
        figure, name = told["whole"][key], head.replace("\n", " ")
        if figure["mid"] is not None:
            interval = between(figure, write)
            if interval:
                paper.line(f"{name}, of the whole: {interval}", indent="  ")
            continue
        why = str(figure["reason"])
        if _OUTPUT_TOKENS in unlabelled and key in _RESTS_ON_OUTPUT:
            why = f"{_OUTPUT_TOKENS} is counted without the label {told['by']}"
        reasons.setdefault(why, []).append(name)
    for why, names in reasons.items():
        are_bounds = all(is_bound(told["whole"][_KEYS[name]]) for name in names)
        paper.line(
            f"{', '.join(names)}: {'only bounded' if are_bounds else NOT_KNOWN}: {why}", indent="  "
        )


def window_line(window: Mapping[str, Any]) -> str:
    """When it was, for how long, of how many engines."""
    when = span(window["start"], window["end"])
    return f"{when} ({hours(window['hours'])}), {words.plural(window['engines'], 'engine')}"


def _price(bill: Mapping[str, Any]) -> str:
    return f"{NOT_KNOWN}: {bill['reason']}" if bill["mid"] is None else str(bill["basis"])


def _tile_row(tile: Mapping[str, Any]) -> list[str]:
    value = f"{tile['value']} {tile['unit']}".strip()
    return [tile["label"], value, tile["between"] if tile["is_known"] else tile["reason"]]


def _severity_shape(severity: str) -> str:
    for word, levels in (("poor", words.POOR), ("usable", words.USABLE)):
        if severity in levels:
            return words.SHAPES[word]
    return words.SHAPES["good"]
