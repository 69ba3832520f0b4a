"""What our notebooks show beside charts: typed pieces that the page places and Lab renders.

A piece is data, not markup: the page's template writes its HTML, with everything escaped, so that a
model's name can hold anything. In JupyterLab the same template's part is shown as HTML.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vllm_capacity.render.numbers import (
    Write,
    between,
    count,
    hours,
    moment,
    number,
    percent,
    span,
    usd,
    usd_per_thousand,
)
from vllm_capacity.render.prose import verdict as words
from vllm_capacity.render.prose.estimates import bound_word, is_unknown, value, why
from vllm_capacity.render.prose.targets import held_within
from vllm_capacity.render.report.contract import PIECE_MIME
from vllm_capacity.render.sections.definitions import definitions_content
from vllm_capacity.render.study import Study

_CENT_USD = 0.01


@dataclass(frozen=True)
class Piece:
    """One piece of a page: its kind (a macro of the template) and its content, plain JSON."""

    kind: str
    content: dict[str, Any]
    text: str

    def __repr__(self) -> str:
        return self.text

    def _repr_mimebundle_(self, **_: object) -> dict[str, Any]:
        from vllm_capacity.render.report.page import piece_html

        bundle: dict[str, Any] = {PIECE_MIME: {"kind": self.kind, "content": self.content}}
        return {**bundle, "text/html": piece_html(bundle[PIECE_MIME]), "text/plain": self.text}


@dataclass(frozen=True)
class _Tile:
    """A tile's place in the answer and its words.

    `hangs_on` is the term it can be compared under only where that is the same: a key of the title
    line's terms, or empty.
    """

    label: str
    part: str
    figure: str
    unit: str
    write: Write
    hangs_on: str = ""


_RATES, _TTFT_TARGET = "rates", "ttft_slo_seconds"
_TILES = (
    _Tile("Cost of a request", "cost", "usd_per_request", "a request", usd, _RATES),
    _Tile(
        "Cost of output",
        "cost",
        "usd_per_million_output_tokens",
        "per million output tokens",
        usd,
        _RATES,
    ),
    _Tile("Output for a dollar", "cost", "tokens_per_usd", "output tokens", number, _RATES),
    _Tile("Used of its capacity", "cost", "utilisation", "", percent),
    _Tile("Room before it is full", "saturation", "headroom_ratio", "", percent),
    _Tile(
        "First tokens in time",
        "slo",
        "ttft_attainment",
        "of requests within the target",
        percent,
        _TTFT_TARGET,
    ),
)


def title_line(asked: Study) -> Piece:
    """Which servers and model, which window, at what price: the line under the title.

    `servers` and `terms` are not shown: they tell which reports may be compared (previous.py).
    """
    window = asked.answer["window"]
    models = _names(asked, "model_name")
    content = {
        "window": asked.opened.name,
        "models": models,
        "engines": words.plural(window["engines"], "engine"),
        "span": span(window["start"], window["end"]),
        "start": window["start"],
        "end": window["end"],
        "hours": hours(window["hours"]),
        "price": _price(asked),
        "is_simulated": asked.opened.is_simulated,
        "servers": _names(asked, "instance"),
        "terms": {_RATES: _rates(asked), _TTFT_TARGET: asked.terms.ttft_slo_seconds},
    }
    text = (
        f"{asked.opened.name}: {', '.join(models) or 'no model named'}, {content['engines']}, "
        f"{content['span']} ({content['hours']}), {content['price']}"
    )
    return Piece("title_line", content, text)


def verdict(asked: Study) -> Piece:
    """The answer in a few sentences, with the quality of the telemetry as a word and a shape."""
    sentences = words.verdict(asked.answer, is_simulated=asked.opened.is_simulated)
    word, why = words.quality_word(asked.answer)
    content = {
        "sentences": sentences,
        "quality": {"word": word, "shape": words.SHAPES[word], "why": why},
    }
    return Piece("verdict", content, "\n".join([*sentences, f"Telemetry: {word} ({why})"]))


def tiles(asked: Study) -> Piece:
    """The six figures of the first screen, each with its interval and basis or its reason."""
    made = tile_contents(asked.answer)
    return Piece("tiles", {"tiles": made}, "\n".join(_tile_line(each) for each in made))


def definitions(asked: Study) -> Piece:
    """How each figure is computed: its definition, its queries, their rows."""
    content = definitions_content(asked)
    lines = [f"{each['title']}: {each['text']}" for each in content["definitions"]]
    return Piece("definitions", content, "\n".join(lines))


def table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    numeric: Sequence[int] = (),
    caption: str = "",
    empty: str = "No rows.",
) -> Piece:
    """A table of text cells; `numeric` are the columns to align at the right."""
    content = {
        "columns": [
            {"title": title, "numeric": index in numeric} for index, title in enumerate(columns)
        ],
        "rows": [list(row) for row in rows],
        "caption": caption,
        "empty": empty,
    }
    lines = [" | ".join(columns), *(" | ".join(row) for row in rows)]
    return Piece("table", content, "\n".join(lines if rows else [empty]))


def provenance(asked: Study) -> Piece:
    """Where the figures come from: source, rows, coverage of the window, versions."""
    window, note = asked.answer["window"], asked.opened.provenance
    facts = [
        ("window", asked.opened.name),
        ("source", _plain(note.get("source", "not recorded"))),
        ("from", moment(window["start"])),
        ("to", moment(window["end"])),
        ("length", hours(window["hours"])),
        ("price", _price(asked)),
        ("GPUs an engine", number(asked.terms.gpus_per_engine)),
        *((f"rows of {name}", count(rows)) for name, rows in sorted(note["counts"].items())),
    ]
    told = {"source", "counts", "simulated"}
    facts += [(name, _plain(value)) for name, value in sorted(note.items()) if name not in told]
    if asked.opened.is_simulated:
        facts.insert(1, ("kind", "simulated, not measured"))
    content = {"facts": [{"name": name, "value": value} for name, value in facts]}
    return Piece("facts", content, "\n".join(f"{name}: {value}" for name, value in facts))


def tile_contents(answer: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What each tile shows of an answer, in page order: for any face."""
    made = [_tile(tile, answer[tile.part][tile.figure]) for tile in _TILES]
    targets = held_within(answer)
    for tile in made:
        if targets and tile["figure"] == "headroom_ratio" and tile["is_known"]:
            tile["basis"] = f"{tile['basis']}. {targets}"
    return made


def _tile(tile: _Tile, estimate: Mapping[str, Any]) -> dict[str, Any]:
    made = {
        **{end: estimate[end] for end in ("low", "mid", "high")},
        "label": tile.label,
        "figure": tile.figure,
        "hangs_on": tile.hangs_on,
        "writes": tile.write.__name__,
        "value": "not known",
        "unit": "",
        "between": "",
        "basis": "",
        "reason": "",
        "is_known": not is_unknown(estimate),
    }
    if is_unknown(estimate):
        return {**made, "reason": str(estimate["reason"])}
    write, unit = tile.write, tile.unit
    if unit == "a request" and (estimate["mid"] or estimate["low"] or 0.0) < _CENT_USD:
        each = value(estimate, usd)
        write, unit = usd_per_thousand, f"per 1,000 requests · {each} each"
    beside = bound_word(estimate) or between(estimate, write) or "counted, no interval"
    return {
        **made,
        "writes": write.__name__,
        "value": value(estimate, write),
        "unit": unit,
        "between": beside,
        "basis": why(estimate),
    }


def _tile_line(tile: Mapping[str, Any]) -> str:
    said = tile["between"] if tile["is_known"] else tile["reason"]
    return f"{tile['label']:23} {tile['value']} {tile['unit']} ({said})".replace(" (", "  (", 1)[
        :80
    ]


def _names(asked: Study, column: str) -> list[str]:
    """What the window's series call their models or servers, sorted."""
    found = asked.opened.sql("select distinct model_name, instance from series").get_column(column)
    return [str(name) for name in found.drop_nulls().unique().sort().to_list()]


def _rates(asked: Study) -> list[list[float]]:
    """What was paid: GPUs of an engine and the price of one for an hour, each rate once.

    Rates, not a mean: of a fleet that grew at its old prices the price did not change. Empty where
    no price is known.
    """
    terms = asked.terms
    paid = [(terms.gpus_per_engine, terms.usd_per_gpu_hour)]
    if terms.fleet:
        parts = asked.bill_parts.values()
        paid = [(part.usage.gpus_per_engine, part.usd_per_gpu_hour) for part in parts]
    rates = {
        tuple(float(f"{end:.6g}") for end in (gpus, price.low, price.mid, price.high))
        for gpus, price in paid
        if price and price.low is not None and price.mid is not None and price.high is not None
    }
    return [list(rate) for rate in sorted(rates)]


def _price(asked: Study) -> str:
    price = asked.terms.usd_per_gpu_hour
    if asked.terms.fleet:
        return "prices by instance, from a mapping file"
    if price is None or price.mid is None:
        return "no price given"
    interval = between(price.as_dict(), usd)
    said = f"{usd(price.mid)} per GPU-hour{f', {interval}' if interval else ''}"
    return f"{said} ({asked.price_note or 'as given'})"


def _plain(value: object) -> str:
    """A value of the provenance note as text a person reads."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(each)}" for key, each in sorted(value.items()))
    if isinstance(value, list | tuple):
        return ", ".join(_plain(each) for each in value)
    return str(value)
