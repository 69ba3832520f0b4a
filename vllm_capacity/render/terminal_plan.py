"""The terminal's face of a plan: what is needed, under which doubts, on which GPUs, for when."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vllm_capacity.render.numbers import (
    Write,
    between,
    count,
    instant,
    number,
    percent,
    seconds,
    usd,
)
from vllm_capacity.render.paper import Paper, figure_row
from vllm_capacity.render.prose.estimates import NOT_KNOWN, is_unknown, value
from vllm_capacity.render.prose.verdict import plural
from vllm_capacity.render.terminal import window_line

_HOURS_SHOWN = 24
_MILLION = 1e6
_NEEDS: tuple[tuple[str, str, str, Write], ...] = (
    ("Demand", "demand_requests_per_second", "requests/s", number),
    ("", "demand_output_tokens_per_second", "output tokens/s", number),
    ("One engine holds", "capacity_output_tokens_per_second", "output tokens/s", number),
)


_REST_ON = {
    "The demand": "demand_requests_per_second",
    "What one engine holds": "capacity_output_tokens_per_second",
}


def plan_text(
    told: Mapping[str, Any],
    *,
    window_name: str = "",
    is_simulated: bool = False,
    here: str = "",
    width: int = 80,
    is_colourful: bool = False,
) -> str:
    """A plan (planning.py) as text; `here` is the GPU the window ran on, as options name it."""
    paper = Paper(width, is_colourful)
    paper.title(window_name, is_simulated=is_simulated)
    paper.line(window_line(told["window"]))
    paper.line("")
    spares = told["policy"]["spare_replicas"]
    rows = [figure_row(label, told[key], write, unit) for label, key, unit, write in _NEEDS]
    rows.append(figure_row("Replicas", told["replicas"], count, f"({count(spares)} of them spare)"))
    rows.append(figure_row("GPUs", told["gpus"], count))
    paper.estimates([*rows, _dollars(told, here)])
    for named, key in _REST_ON.items():
        if basis := told[key]["basis"]:
            paper.line("")
            paper.line(f"{named} rests on: {basis}.")
    _queue(paper, told)
    paper.heading("What if?")
    _cases(paper, told["sensitivity"])
    paper.heading("Which GPUs?")
    _options(paper, told, here)
    paper.heading("For how long is it enough?")
    _forecast(paper, told["forecast"])
    return paper.text


def _dollars(told: Mapping[str, Any], here: str) -> list[str]:
    """The dollars a month: at the price given, else at that of the same GPU in the table below."""
    given = told["usd_per_month"]
    same = next((each for each in told["options"] if each["gpu"] == here), None)
    if given["mid"] is not None or told["gpus"]["mid"] is None or same is None:
        return figure_row("Dollars", given, usd, "a month")
    listed = same["usd_per_month"]
    if listed["mid"] is None:
        return figure_row("Dollars", given, usd, "a month")
    row = figure_row("Dollars", listed, usd, "a month")
    note = f"at the price of {_name(same)} below; your own: --usd-per-hour"
    return [*row[:2], f"{row[2]}, {note}" if row[2] else note]


def _queue(paper: Paper, told: Mapping[str, Any]) -> None:
    check = told["queue_check"]
    if check is None or told["replicas"]["mid"] is None:
        return
    limit = seconds(check["wait_limit_seconds"])
    wait = check["wait_seconds"]
    waits = "the queue would never settle"
    if wait is not None:
        waits = f"95 % of requests would wait under {limit}"
        if not check["is_within_limit"]:
            waits = f"the slowest 5 % would wait {seconds(wait)} or more, longer than {limit}"
    spares = told["policy"]["spare_replicas"]
    working = max(1, round(told["replicas"]["mid"]) - spares)
    needed = check["replicas_needed"]
    takes = (
        f"how many would keep 95 % under {limit} is past counting"
        if needed is None
        else f"{count(needed)} would be the fewest for that"
    )
    paper.line("")
    paper.line(
        f"A check by a queue: without spares, {plural(working, 'replica')} would be "
        f"{percent(check['utilisation_ratio'])} busy, and {waits}; {takes}, spares not counted. "
        f"Assumed: {check['assumes']}."
    )


def _cases(paper: Paper, cases: Mapping[str, Mapping[str, Any]]) -> None:
    known = {name: figure for name, figure in cases.items() if not is_unknown(figure)}
    rows = [[name, value(each, count), between(each, count)] for name, each in known.items()]
    if rows:
        paper.table(["case", "replicas", "between"], rows, numeric=(1,))
    unknown = {name: str(each["reason"]) for name, each in cases.items() if name not in known}
    for reason, names in _grouped(unknown).items():
        paper.line(f"{', '.join(names)}: {NOT_KNOWN}: {reason}", indent="  ")


def _options(paper: Paper, told: Mapping[str, Any], here: str) -> None:
    options = told["options"]
    if not options:
        paper.line(f"None compared: {told['options_reason']}")
        return
    known = [each for each in options if each["tokens_per_usd"]["mid"] is not None]
    if known:
        heads = ["GPU", "output\ntokens/s", "$ a GPU-\nhour", "M tokens\na dollar"]
        heads += ["between", "replicas", "dollars\na month"]
        paper.line(f"{told['model']}, weights as {known[0]['dtype']}")
        paper.table(heads, map(_option, known), numeric=(1, 2, 3, 5, 6), whole=(1, 2, 3, 4, 5, 6))
    own = [each for each in known if each["gpu"] == here]
    best = [each for each in known if each["gpu"] != here][:1]
    for each in (*own, *best):
        paper.line(f"Price of {_name(each)}: {each['price_row']}", indent="  ")
    for note, names in _grouped({_name(each): _assumed(each) for each in known}).items():
        paper.line(f"{', '.join(names)}: {note}", indent="  ")
    rejected = {_name(each): _why_not(each) for each in options if each not in known}
    for why, names in _grouped(rejected).items():
        paper.line(f"✗ {', '.join(names)}: {why}", indent="  ")


def _option(each: Mapping[str, Any]) -> list[str]:
    worth = {end: each["tokens_per_usd"][end] / _MILLION for end in ("low", "mid", "high")}
    return [
        _name(each),
        value(each["slo_output_tokens_per_second"], number),
        value(each["usd_per_gpu_hour"], usd),
        number(worth["mid"]),
        between(worth, number).removeprefix("between "),
        value(each["replicas"], count),
        value(each["usd_per_month"], usd),
    ]


def _name(option: Mapping[str, Any]) -> str:
    return str(option["gpu"]).partition(" (")[0]


def _assumed(option: Mapping[str, Any]) -> str:
    """What the GPU's label says beside its name: which form factors are assumed."""
    return str(option["gpu"]).partition(" (")[2].rstrip(")")


def _why_not(option: Mapping[str, Any]) -> str:
    """The reason without the GPU's name, so that GPUs share it."""
    name = _name(option)
    reason = str(option["reason"] or option["tokens_per_usd"]["reason"])
    return reason.removeprefix(f"{name} ").replace(f" of {name}", "")


def _grouped(notes: Mapping[str, str]) -> dict[str, list[str]]:
    """The names by their note; those without one left out."""
    groups: dict[str, list[str]] = {}
    for name, note in notes.items():
        if note:
            groups.setdefault(note, []).append(name)
    return groups


def _forecast(paper: Paper, told: Mapping[str, Any]) -> None:
    rows = told["forecast"]
    if rows is None:
        paper.line(f"No forecast: {told['reason']}")
        return
    shown = [
        [
            f"{instant(each['ts']):%-d %b %Y %H:%M}",
            *(count(each[key]) for key in ("low", "mid", "high")),
        ]
        for each in rows[:_HOURS_SHOWN]
    ]
    paper.table(["hour from (UTC)", "at least", "requests", "at most"], shown, numeric=(1, 2, 3))
    if len(rows) > _HOURS_SHOWN:
        paper.line(f"and {count(len(rows) - _HOURS_SHOWN)} more")
    covered = told["coverage_measured"]
    if covered is not None:
        paper.line(f"Coverage expected from the back-test: {percent(covered)} of hours inside.")
    paper.line(f"Method: {told['method']}")
