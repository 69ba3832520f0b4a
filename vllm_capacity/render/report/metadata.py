"""The metadata that a page holds as JSON, read by the index and by the next report.

Pages of earlier releases have less, under other names; they can still be read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from vllm_capacity.billed import BilledUse
from vllm_capacity.errors import InputError
from vllm_capacity.interface import RENAMED, RENAMED_PARAMETERS
from vllm_capacity.render.numbers import days, plural
from vllm_capacity.timerange import TimeRange, parse_instant

_METADATA = re.compile(r'<script type="application/json" id="report">(.*?)</script>', re.DOTALL)
INDEX = "index.html"
_RENAMED_FIGURES = {old.split(".")[-1]: new.split(".")[-1] for old, new in RENAMED.items()}

_MODELS_NAMED = 2

Number = Annotated[float, msgspec.Meta(ge=-1e300, le=1e300)]
Rate = tuple[float, ...]
Term = Number | tuple[Rate, ...] | None
"""A condition that a figure depends on: a latency target in seconds, or the rates paid."""


class SummaryLine(Struct, frozen=True):
    """The line under the title: servers, model, time and price.

    None for what a page does not say. `start` and `end` are ISO 8601; `span` and `hours` are as
    shown. `terms` must be equal before figures that depend on them are compared.
    """

    window: str = ""
    models: tuple[str, ...] | None = None
    engines: str = ""
    span: str | None = None
    hours: str | None = None
    start: str = ""
    end: str = ""
    price: str | None = None
    is_simulated: bool | None = None
    servers: tuple[str, ...] | None = None
    terms: Mapping[str, Term] | None = None

    def term(self, name: str) -> Term:
        """A term by its name; None if there is none."""
        return (self.terms or {}).get(name)

    @property
    def time_range(self) -> TimeRange | None:
        """The window's time range; None if the page has none, or an invalid one."""
        try:
            return TimeRange(parse_instant(self.start), parse_instant(self.end))
        except InputError:
            return None

    @property
    def is_complete(self) -> bool:
        """Whether it has everything that a comparison with another needs."""
        needed = (
            *(self.models, self.servers, self.terms, self.price, self.is_simulated),
            *(self.span, self.hours, self.time_range),
        )
        return None not in needed


class Quality(Struct, frozen=True):
    """The quality of the telemetry in a word, with the shape that marks it."""

    word: str
    shape: str
    why: str = ""


class Verdict(Struct, frozen=True):
    """The answer in a few sentences; both None if a page has no verdict."""

    sentences: tuple[str, ...] | None = None
    quality: Quality | None = None

    def __post_init__(self) -> None:
        if (self.sentences is None) != (self.quality is None):
            raise ValueError("a verdict has sentences and the quality of the telemetry")


class TileChange(Struct, frozen=True):
    """The change of a figure since the previous report: an optional arrow, words, and a connective.

    `joins` connects the words to `report`, the name of the previous report.
    """

    words: str
    joins: str = ""
    arrow: str = ""
    report: str = ""


class Tile(Struct, frozen=True):
    """A figure of the first screen as it is shown, and its numbers.

    `writes` names its number format (render/numbers.py), `hangs_on` the term that must be equal for
    a comparison.
    """

    figure: str = ""
    label: str = ""
    value: str = ""
    unit: str = ""
    between: str = ""
    basis: str = ""
    reason: str = ""
    is_known: bool = True
    writes: str = ""
    hangs_on: str = ""
    low: Number | None = None
    mid: Number | None = None
    high: Number | None = None
    change: TileChange | None = None

    @property
    def has_ends(self) -> bool:
        """Whether its interval has both ends, or there is no figure."""
        return self.mid is None or None not in (self.low, self.high)


class Since(Struct, frozen=True):
    """The previous report in full: its page if it still exists, its window, and what differed."""

    page: str
    window: str
    differences: str


class Tiles(Struct, frozen=True):
    """The figures of the first screen; `since` is set if they show changes."""

    tiles: tuple[Tile, ...] = ()
    since: Since | None = None


class Metadata(Struct, frozen=True):
    """The metadata of a report; `previous` is that of the report it was compared with, if any.

    `page` is that report's file, empty if it no longer exists. `use` has the inputs of its bill;
    None in a page of an earlier release, or of a notebook that does not keep them.
    """

    line: SummaryLine
    notebook: str = ""
    title: str = ""
    page: str = ""
    verdict: Verdict | None = None
    tiles: tuple[Tile, ...] = ()
    previous: Metadata | None = None
    use: BilledUse | None = None

    @property
    def tab_title(self) -> str:
        """The page's name in tabs, bookmarks and mails: model, window and days, then its title.

        Only the title if it has none of them.
        """
        line = self.line
        models, time_range = line.models or (), line.time_range
        named = ", ".join(models) if len(models) <= _MODELS_NAMED else plural(len(models), "model")
        when = "" if time_range is None else days(time_range.start, time_range.end)
        return " · ".join(filter(None, (named, line.window, when, self.title)))

    @property
    def by_figure(self) -> dict[str, Tile]:
        """Its tiles by figure."""
        return {tile.figure: tile for tile in self.tiles}


def pages(folder: Path) -> list[Path]:
    """The HTML files of a folder except its index, by name."""
    return sorted(path for path in folder.glob("*.html") if path.name != INDEX and path.is_file())


def page_metadata(path: Path) -> Metadata | None:
    """The metadata of a page, under current names; None for a file that is no report."""
    try:
        path.name.encode()  # the index could not link to a name that is not valid text
        found = _METADATA.search(path.read_text(encoding="utf-8", errors="replace"))
        return renamed(msgspec.json.decode(found[1], type=Metadata)) if found else None
    except (OSError, ValueError, RecursionError, msgspec.MsgspecError, InputError):
        return None


def renamed(read: Metadata) -> Metadata:
    """The metadata with figures and terms under their current names."""
    terms = read.line.terms
    line = replace(read.line, terms=None if terms is None else _by_new_names(terms))
    tiles = tuple(
        replace(
            tile,
            figure=_RENAMED_FIGURES.get(tile.figure, tile.figure),
            hangs_on=RENAMED_PARAMETERS.get(tile.hangs_on, tile.hangs_on),
        )
        for tile in read.tiles
    )
    previous = None if read.previous is None else renamed(read.previous)
    return replace(read, line=line, tiles=tiles, previous=previous)


def _by_new_names(terms: Mapping[str, Term]) -> dict[str, Term]:
    return {RENAMED_PARAMETERS.get(name, name): term for name, term in terms.items()}
