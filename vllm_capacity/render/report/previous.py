"""What changed since the report before: which report that is, and what each tile says of it.

Everything is read off the reports of the folder, as the index is, so it needs no store of its own.
*The report before* is found by these rules.

1. It comes from the same notebook under the same title.
2. It is of the same models and has a server in common; both are measured, or both simulated.
3. Its window ends no later than this one's starts. A twentieth of the shorter window may overlap,
   for windows that follow each other day by day meet to the second, not to the scrape.
4. Of these, the one whose window ends latest (then starts latest, then is last by name).

The page about to be replaced counts as any other; so does the report that page was itself compared
with. A run repeated over one window therefore finds what the first run found, even where the
report before had the page's own name and is gone.

A change is told where the two intervals leave no doubt of it: where they overlap, the tile says
that the change is not clear. A figure that hangs on a price is compared at the same price only,
and one that hangs on a target with the same target only: a dearer price is no worse server. Up and
down are no judgement, so they have no colour.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from vllm_capacity.render.numbers import (
    Write,
    instant,
    number,
    percent,
    usd,
    usd_per_thousand,
)
from vllm_capacity.render.prose.verdict import plural

Told = Mapping[str, Any]

UP, DOWN = "▲", "▼"
_OVERLAP_RATIO = 0.05
_WRITES: Mapping[str, Write] = {
    write.__name__: write for write in (number, percent, usd, usd_per_thousand)
}
_OTHERWISE = {"rates": "another price", "ttft_slo_seconds": "another target"}
_NUMBERS = ("low", "mid", "high")
_LINE = {"models", "servers", "terms", "price", "is_simulated", "start", "end", "span", "hours"}


@dataclass(frozen=True)
class _Candidate:
    """A report that this one may be compared with, and its file, if that still holds it."""

    report: Told
    page: str

    @property
    def order(self) -> tuple[datetime, datetime, str]:
        """Which of two comes later; of the same window, the one whose page is there."""
        start, end = _window(self.report)
        return end, start, self.page


def report_before(now: Told, reports: Mapping[str, Told], *, page: str) -> dict[str, Any] | None:
    """The report to compare with, as a record that `now` keeps: its `page`, line and tiles.

    `reports`: what each page of the folder says of itself, by file name; `page` is the name that
    `now` is going to have. None where there is no report before.
    """
    found = [_Candidate(report, "" if name == page else name) for name, report in reports.items()]
    carried = reports.get(page, {}).get("previous")
    if isinstance(carried, Mapping):
        found.append(_Candidate(carried, ""))
    before = [each for each in found if _is_comparable(now, each.report)]
    if not before:
        return None
    latest = max(before, key=lambda each: each.order)
    kept = {key: latest.report[key] for key in ("notebook", "title", "line")}
    tiles = [{key: tile[key] for key in ("figure", *_NUMBERS)} for tile in latest.report["tiles"]]
    return {**kept, "tiles": tiles, "page": latest.page}


def told_since(tiles: Told, line: Told, before: Told | None) -> dict[str, Any]:
    """The content of a tiles piece with the `change` of each tile, and `since` when they are.

    `line` is the title line of the report that is being made. Without a report before, nothing is
    added.
    """
    if before is None:
        return dict(tiles)
    then = {tile["figure"]: tile for tile in before["tiles"]}
    report = f"the report to {_when(before['line']['end'], line['end'])}"
    made = []
    for tile in tiles["tiles"]:
        told = change(tile, then.get(tile["figure"]), otherwise=_otherwise(tile, line, before))
        if told is None:
            made.append(tile)
        else:
            made.append({**tile, "change": {**told, "report": report}})
    return {**tiles, "tiles": made, "since": _since(line, before)}


def change(now: Told, then: Told | None, *, otherwise: str = "") -> dict[str, str] | None:
    """How a figure stands against the report before: an arrow or none, words, and what joins them.

    `otherwise` says what was another then, so that the two cannot be compared. `joins` leads over
    to the name of that report. None where there is nothing to say: the figure is not known now, or
    the report before did not have it.
    """
    if now.get("mid") is None or then is None:
        return None
    if then["mid"] is None:
        return _change("not known before", ", in")
    if otherwise:
        return _change("not compared", f": {otherwise} in")
    write = _WRITES[now["writes"]]
    was, is_now = write(then["mid"]), write(now["mid"])
    if was == is_now:
        return _change("about the same", " as in")
    if now["low"] <= then["high"] and then["low"] <= now["high"]:
        return _change(f"no clear change: {was} → {is_now}", " since")
    is_up = now["mid"] > then["mid"]
    how = f"{'up' if is_up else 'down'}{_by(now, then, write)} from {was}"
    return _change(how, " since", arrow=UP if is_up else DOWN)


def _change(words: str, joins: str, *, arrow: str = "") -> dict[str, str]:
    return {"arrow": arrow, "words": words, "joins": joins}


def _by(now: Told, then: Told, write: Write) -> str:
    """By how much, in percent; nothing for a share, of which a percentage would be misread."""
    if write is percent or not then["mid"]:
        return ""
    return f" {percent(abs(now['mid'] / then['mid'] - 1))}"


def _is_comparable(now: Told, then: Told) -> bool:
    if not (_is_complete(now) and _is_complete(then)):
        return False
    same = ("notebook", "title")
    same_line = ("models", "is_simulated")
    return (
        all(now[key] == then[key] for key in same)
        and all(now["line"][key] == then["line"][key] for key in same_line)
        and not set(now["line"]["servers"]).isdisjoint(then["line"]["servers"])
        and _is_before(_window(then), _window(now))
    )


def _is_complete(report: Told) -> bool:
    """Whether a report says all that a comparison takes: those of older versions do not."""
    line, tiles = report.get("line"), report.get("tiles")
    return (
        isinstance(line, Mapping)
        and set(line) >= _LINE
        and set(report) >= {"notebook", "title"}
        and isinstance(tiles, Sequence)
        and all(set(tile) >= {"figure", *_NUMBERS} and _has_ends(tile) for tile in tiles)
        and _is_time(line["start"])
        and _is_time(line["end"])
    )


def _has_ends(tile: Told) -> bool:
    return tile["mid"] is None or None not in (tile["low"], tile["high"])


def _is_time(text: str) -> bool:
    try:
        instant(text)
    except (ValueError, OverflowError):
        return False
    return True


def _is_before(then: tuple[datetime, datetime], now: tuple[datetime, datetime]) -> bool:
    shorter = min(then[1] - then[0], now[1] - now[0])
    overlap = max(then[1] - now[0], timedelta(0))
    return then[0] < now[0] and overlap <= _OVERLAP_RATIO * shorter


def _window(report: Told) -> tuple[datetime, datetime]:
    return instant(report["line"]["start"]), instant(report["line"]["end"])


def _otherwise(tile: Told, line: Told, before: Told) -> str:
    term = tile.get("hangs_on", "")
    if not term or line["terms"].get(term) == before["line"]["terms"].get(term):
        return ""
    return _OTHERWISE[term]


def _since(line: Told, before: Told) -> dict[str, str]:
    """The report before in full: its page, if there is one, its window, and what differed then."""
    then = before["line"]
    notes = [""]
    if line["terms"].get("rates") != then["terms"].get("rates"):
        notes[0] = f", at another price: {then['price']}"
    servers = set(line["servers"])
    if servers != set(then["servers"]):
        had, kept = plural(len(then["servers"]), "server"), servers & set(then["servers"])
        notes.append(f"It had {had}, this one {len(servers)}, {len(kept)} of them the same")
    said = "".join(f"{note}. " for note in notes).rstrip()
    return {"page": before["page"], "window": f"{then['span']} ({then['hours']})", "said": said}


def _when(then: str, now: str) -> str:
    """When the window before ended: the day where it was another, the year where that was."""
    at, today = instant(then), instant(now)
    if at.date() == today.date():
        return f"{at:%H:%M:%S} UTC"
    return f"{at:%-d %b %H:%M} UTC" if at.year == today.year else f"{at:%-d %b %Y %H:%M} UTC"
