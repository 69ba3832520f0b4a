"""The terminal's face of the smaller verbs: a fit, a what-if, a model, a forecast, alerts.

What they take is the object that `--json` prints, alerts excepted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from vllm_capacity.alerts import Alert
from vllm_capacity.estimate import Estimate
from vllm_capacity.facts.gpus import GIB
from vllm_capacity.facts.llms import Llm
from vllm_capacity.render.numbers import count, number, percent, seconds
from vllm_capacity.render.paper import Paper, figure_row
from vllm_capacity.render.prose.verdict import LIMITS

_FIT: tuple[tuple[str, str, str], ...] = (
    ("Capacity", "capacity_output_tokens_per_second", "output tokens/s"),
    ("reached at", "capacity_running_requests", "running requests"),
)


def fit_text(told: Mapping[str, Any], *, width: int = 80) -> str:
    """The capacity a table of loads shows or lets foresee, and what it rests on."""
    paper = Paper(width)
    paper.estimates(figure_row(label, told[key], number, unit) for label, key, unit in _FIT)
    if told["first_limit"] in LIMITS:
        paper.line(f"What limits it first is {LIMITS[told['first_limit']]}.")
    _basis(paper, told["capacity_output_tokens_per_second"]["basis"])
    return paper.text


def whatif_text(told: Mapping[str, Any], *, where: str, width: int = 80) -> str:
    """Output tokens a second of a model on another GPU, `where`; or why they are not known."""
    paper = Paper(width)
    paper.line(where)
    paper.estimates([figure_row("Output", told, number, "tokens/s")])
    _basis(paper, told["basis"])
    return paper.text


def model_text(told: Mapping[str, Any], llm: Llm, *, width: int = 80) -> str:
    """What a model takes in memory, and how many users fit, of what context on which GPU."""
    paper = Paper(width)
    paper.line(told["model"], style="bold")
    rows = [
        [f"Weights as {told['dtype']}", f"{number(told['weights_bytes'] / GIB)} GiB", ""],
        ["KV cache", f"{count(told['kv_bytes_per_token'])} B a token", "of context"],
    ]
    fixed = told["kv_fixed_bytes_per_sequence"]
    if fixed:
        what = "the state of its linear layers"
        if llm.attention == "mixed":
            what = f"its sliding windows, full from {count(llm.sliding_window_tokens or 0)} tokens"
        rows.append(["", f"+ {count(fixed)} B a request", f"for {what}"])
    users = told["users"] or Estimate.unknown(told["reason"]).as_dict()
    paper.estimates([*rows, figure_row("Users at once", users, count)])
    _basis(paper, told["users_basis"])
    paper.line(f"Shape from {told['source']}", indent="  ")
    return paper.text


def forecast_text(told: Mapping[str, Any], *, title: str, width: int = 80) -> str:
    """The demand ahead, a row a step, with what its intervals have held before."""
    paper = Paper(width)
    paper.line(title, style="bold")
    rows = told["forecast"]
    if rows is None:
        paper.line(f"No forecast: {told['reason']}.")
        return paper.text
    head, times = _times([row["ts"] for row in rows])
    cells = [
        [time, *(number(row[end], like=row["mid"]) for end in ("low", "mid", "high"))]
        for time, row in zip(times, rows, strict=True)
    ]
    paper.table([head, "at least", "most likely", "at most"], cells, numeric=(1, 2, 3))
    covered = told["coverage_measured"]
    held = "unknown" if covered is None else f"{percent(covered)} of points inside"
    wide = told["width_ratio"]
    width_told = "" if wide is None else f" Mean width: {percent(wide)} of the mean forecast."
    paper.line("")
    paper.line(f"90 % intervals; coverage expected from the back-test: {held}.{width_told}")
    paper.line(f"Method: {told['method']}")
    return paper.text


def alerts_text(found: Sequence[Alert], *, width: int = 80) -> str:
    """Every rule with its state, what was found, and the threshold."""
    paper = Paper(width)
    rows = [
        [
            one.state.upper() if one.state == "fired" else one.state,
            one.rule.title,
            _observed(one),
            f"{one.rule.above:,g} {one.rule.unit}".rstrip(),
        ]
        for one in found
    ]
    paper.table(["state", "alert", "found", "fires above"], rows, whole=(0, 1, 3))
    return paper.text


def _observed(one: Alert) -> str:
    seen, unit = one.observed, one.rule.unit
    if one.state == "unknown":
        return f"not known: {seen.reason}"
    if seen.value is not None:
        return _with_unit(seen.value, unit)
    return f"more than {_with_unit(seen.exceeds or 0.0, unit)}"


def _with_unit(value: float, unit: str) -> str:
    return seconds(value) if unit == "s" else f"{number(value)} {unit}".rstrip()


def _times(stamps: list[Any]) -> tuple[str, list[str]]:
    """The head of a column of times, and its cells: numbers stay as the file counts them."""
    if not isinstance(stamps[0], str):
        return "from, as the file counts", [f"{stamp:,}" for stamp in stamps]
    moments = [datetime.fromisoformat(stamp) for stamp in stamps]
    form = "%-d %b %Y %H:%M:%S" if any(each.second for each in moments) else "%-d %b %Y %H:%M"
    zone = moments[0].tzname()
    head = f"from ({zone})" if zone else "from"
    return head, [f"{each:{form}}" for each in moments]


def _basis(paper: Paper, basis: str) -> None:
    if basis:
        paper.line("")
        paper.line(f"This rests on: {basis}")
