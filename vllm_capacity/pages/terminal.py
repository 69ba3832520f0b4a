"""The terminal's face: verdict, tiles and ledger of an answer, a plan, a bill, as lines of text.

The same sentences and tiles as the page, in its order. What telemetry named (a model, an instance)
is stripped of control characters, so that no label can move the reader's cursor.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from io import StringIO
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from vllm_capacity.pages import words
from vllm_capacity.pages.elements import tile_contents
from vllm_capacity.pages.numbers import (
    Write,
    between,
    count,
    hours,
    number,
    percent,
    seconds,
    span,
    usd,
    usd_per_thousand,
)

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]+")
_NOT_KNOWN = "not known"
_SAME = "for the same reason"
_HOURS_SHOWN = 24
_BILL: tuple[tuple[str, str, Write], ...] = (
    ("bill", "allocation_usd", usd),
    ("of it idle", "idle_usd", usd),
    ("used", "utilisation", percent),
    ("1,000 requests", "usd_per_request", usd_per_thousand),
    ("M output tokens", "usd_per_million_output_tokens", usd),
)
_PLAN: tuple[tuple[str, str, str, Write], ...] = (
    ("Demand", "demand_requests_per_second", "requests/s", number),
    ("", "demand_output_tokens_per_second", "output tokens/s", number),
    ("One engine holds", "capacity_output_tokens_per_second", "output tokens/s", number),
    ("Replicas", "replicas", "with spares", count),
    ("GPUs", "gpus", "", count),
    ("Dollars", "usd_per_month", "a month", usd),
)


@dataclass(frozen=True)
class _Paper:
    """Lines up to a width, gathered in order; headings are bold where colour is allowed."""

    width: int
    is_colourful: bool
    _out: StringIO = field(default_factory=StringIO)

    def line(self, text: str, *, indent: str = "", style: str = "") -> None:
        """A paragraph, wrapped; its further lines stand under `indent`."""
        wrapped = textwrap.wrap(
            _plain(text), self.width, subsequent_indent=indent, break_on_hyphens=False
        )
        for each in wrapped or [""]:
            self._print(Text(each, style=style))

    def heading(self, text: str) -> None:
        """An empty line and a bold one."""
        self._print(Text(""))
        self.line(text, style="bold")

    def table(
        self,
        heads: Sequence[str],
        rows: Iterable[Sequence[str]],
        *,
        numeric: Sequence[int] = (),
        whole: Sequence[int] = (0,),
    ) -> None:
        """A table without rules; `numeric` columns stand at the right, `whole` ones never wrap."""
        made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="underline")
        made.show_header = any(heads)
        for index, head in enumerate(heads):
            made.add_column(
                Text(_plain(head)),
                justify="right" if index in numeric else "left",
                no_wrap=index in whole,
                overflow="fold",
            )
        for row in rows:
            made.add_row(*(Text(_plain(cell)) for cell in row))
        self._print(made)

    @property
    def text(self) -> str:
        """All of it, no line with spaces at its end."""
        return "\n".join(line.rstrip(" ") for line in self._out.getvalue().split("\n"))

    def _print(self, shown: Text | Table) -> None:
        # Everything is said here, so that the console asks the environment for nothing.
        console = Console(
            file=self._out,
            width=self.width,
            height=100,
            color_system="standard" if self.is_colourful else None,
            force_terminal=self.is_colourful,
            force_jupyter=False,
            force_interactive=False,
            no_color=not self.is_colourful,
            legacy_windows=False,
        )
        console.print(shown, markup=False, highlight=False, emoji=False)


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
    paper = _Paper(width, is_colourful)
    window = answer["window"]
    _title(paper, window_name, window)
    paper.line(f"Price: {price_note or _price(answer['cost']['allocation_usd'])}")
    paper.line("")
    for sentence in words.verdict(answer, is_simulated=is_simulated):
        paper.line(sentence)
    paper.line("")
    tiles = tile_contents(answer)
    paper.table(["figure", "value", "between"], _once([_tile_row(tile) for tile in tiles]))
    word, why = words.quality_word(answer)
    paper.heading(f"Can I trust this? {words.SHAPES[word]} {word}: {why}")
    for found in answer["quality"]:
        times = f" ({count(found['count'])})" if found["count"] > 1 else ""
        paper.line(
            f"{_severity_shape(found['severity'])} {found['check']}{times}: {found['effect']}",
            indent="  ",
        )
    return paper.text


def plan_text(
    told: Mapping[str, Any],
    *,
    window_name: str = "",
    is_simulated: bool = False,
    width: int = 80,
    is_colourful: bool = False,
) -> str:
    """A plan (planning.py) as text: what is needed, under which doubts, on which GPUs, for when."""
    paper = _Paper(width, is_colourful)
    _title(paper, window_name, told["window"])
    if is_simulated:
        paper.line(words.SIMULATED)
    paper.line("")
    rows = [_figure_row(label, told[key], unit, write) for label, key, unit, write in _PLAN]
    paper.table(["", "", ""], _once(rows))
    held = told["capacity_output_tokens_per_second"]["basis"]
    if held:
        paper.line("")
        paper.line(f"What one engine holds rests on: {held}.")
    _queue(paper, told["queue_check"])
    paper.heading("What if?")
    _cases(paper, told["sensitivity"])
    paper.heading("Which GPUs?")
    _options(paper, told)
    paper.heading("For how long is it enough?")
    _forecast(paper, told["forecast"])
    return paper.text


def cost_text(
    told: Mapping[str, Any],
    *,
    window_name: str = "",
    is_simulated: bool = False,
    width: int = 80,
    is_colourful: bool = False,
) -> str:
    """A bill (`cost_by` of answers.py) as text: a row a part, then the whole they add up to."""
    paper = _Paper(width, is_colourful)
    if window_name:
        paper.line(window_name, style="bold")
    if is_simulated:
        paper.line(words.SIMULATED)
    parts = {**told["parts"], "whole": told["whole"]}
    rows = [
        [name, *(_mid(figures.get(key), write) for _, key, write in _BILL)]
        for name, figures in parts.items()
    ]
    heads = [str(told["by"]), *(head for head, _, _ in _BILL)]
    paper.table(heads, rows, numeric=range(1, len(heads)), whole=range(1, len(heads)))
    for head, key, write in _BILL:
        figure = told["whole"].get(key)
        if figure is None:
            continue
        if figure["mid"] is None:
            paper.line(f"{head}: {_NOT_KNOWN}: {figure['reason']}", indent="  ")
        elif between(figure, write):
            paper.line(f"{head}, of the whole: {between(figure, write)}", indent="  ")
    return paper.text


def _title(paper: _Paper, name: str, window: Mapping[str, Any]) -> None:
    if name:
        paper.line(name, style="bold")
    when = span(window["start"], window["end"])
    engines = words.plural(window["engines"], "engine")
    paper.line(f"{when} ({hours(window['hours'])}), {engines}")


def _price(bill: Mapping[str, Any]) -> str:
    return f"{_NOT_KNOWN}: {bill['reason']}" if bill["mid"] is None else str(bill["basis"])


def _tile_row(tile: Mapping[str, Any]) -> list[str]:
    value = f"{tile['value']} {tile['unit']}".strip()
    return [tile["label"], value, tile["between"] if tile["is_known"] else tile["reason"]]


def _once(rows: list[list[str]]) -> list[list[str]]:
    """The rows with a reason that the row above gave already told as such."""
    above = ""
    for row in rows:
        reason = row[-1] if row[-2] == _NOT_KNOWN else ""
        if reason and reason == above:
            row[-1] = _SAME
        above = reason
    return rows


def _severity_shape(severity: str) -> str:
    for word, levels in (("poor", words.POOR), ("usable", words.USABLE)):
        if severity in levels:
            return words.SHAPES[word]
    return words.SHAPES["good"]


def _figure_row(label: str, figure: Mapping[str, Any], unit: str, write: Write) -> list[str]:
    if figure["mid"] is None:
        return [label, _NOT_KNOWN, str(figure["reason"])]
    return [label, f"{write(figure['mid'])} {unit}".strip(), between(figure, write)]


def _queue(paper: _Paper, check: Mapping[str, Any] | None) -> None:
    if check is None:
        return
    limit = seconds(check["wait_limit_seconds"])
    wait = check["wait_seconds"]
    waits = "never settles" if wait is None else f"keeps 95 % of requests waiting under {limit}"
    if wait is not None and not check["is_within_limit"]:
        waits = f"makes the slowest 5 % wait {seconds(wait)} or more, longer than {limit}"
    needed = check["replicas_needed"]
    takes = "no number of them does" if needed is None else f"{count(needed)} would do"
    paper.line("")
    paper.line(
        f"Without its spares the fleet is {percent(check['utilisation_ratio'])} busy and {waits}; "
        f"{takes}. Assumed: {check['assumes']}."
    )


def _cases(paper: _Paper, cases: Mapping[str, Mapping[str, Any]]) -> None:
    known = {name: figure for name, figure in cases.items() if figure["mid"] is not None}
    rows = [[name, count(each["mid"]), between(each, count)] for name, each in known.items()]
    if rows:
        paper.table(["case", "replicas", "between"], rows, numeric=(1,))
    reasons: dict[str, list[str]] = {}
    for name, figure in cases.items():
        if name not in known:
            reasons.setdefault(str(figure["reason"]), []).append(name)
    for reason, names in reasons.items():
        paper.line(f"{', '.join(names)}: {_NOT_KNOWN}: {reason}", indent="  ")


def _options(paper: _Paper, told: Mapping[str, Any]) -> None:
    if not told["options"]:
        paper.line(f"None compared: {told['options_reason']}")
        return
    known = [each for each in told["options"] if each["tokens_per_usd"]["mid"] is not None]
    rows = [
        [
            str(each["gpu"]),
            str(each["dtype"]),
            number(each["tokens_per_usd"]["mid"]),
            between(each["tokens_per_usd"], number).removeprefix("between "),
            _mid(each["replicas"], count),
            _mid(each["usd_per_month"], usd),
        ]
        for each in known
    ]
    if rows:
        paper.table(
            ["GPU", "weights", "tokens/$", "between", "replicas", "a month"],
            rows,
            numeric=(2, 3, 4, 5),
            whole=(2, 5),
        )
        paper.line(f"Price of {known[0]['gpu']}: {known[0]['price_row']}", indent="  ")
    for each in told["options"]:
        if each not in known:
            why = each["reason"] or each["tokens_per_usd"]["reason"]
            paper.line(f"✗ {each['gpu']}: {why}", indent="  ")


def _forecast(paper: _Paper, told: Mapping[str, Any]) -> None:
    rows = told["forecast"]
    if rows is None:
        paper.line(f"No forecast: {told['reason']}")
        return
    shown = [
        [each["ts"], *(count(each[key]) for key in ("low", "mid", "high"))]
        for each in rows[:_HOURS_SHOWN]
    ]
    paper.table(["hour from (UTC)", "at least", "requests", "at most"], shown, numeric=(1, 2, 3))
    if len(rows) > _HOURS_SHOWN:
        paper.line(f"and {count(len(rows) - _HOURS_SHOWN)} more")
    covered = told["coverage_measured"]
    if covered is not None:
        paper.line(f"Of past hours, {percent(covered)} lay inside such intervals.")
    paper.line(f"Method: {told['method']}")


def _mid(figure: Mapping[str, Any] | None, write: Write) -> str:
    return _NOT_KNOWN if figure is None or figure["mid"] is None else write(figure["mid"])


def _plain(text: object) -> str:
    return _CONTROL.sub(" ", str(text))
