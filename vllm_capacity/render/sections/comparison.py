"""Two windows side by side: what changed in sentences, a table of figures, other differences."""

from __future__ import annotations

from vllm_capacity.comparison import Comparison, Side
from vllm_capacity.render.numbers import percent, reason, span, usd, value
from vllm_capacity.render.tables import Cell, Column, Table, Text, Value, table, text, wrapped
from vllm_capacity.verdicts.changes import Change

_LABELS = {
    "cost_at_same_load": "cost per output token, at the same load and mix",
    "cost_as_billed": "cost per output token, as billed",
    "itl": "mean ITL, at the same load and mix",
    "ttft": "p95 TTFT, at the same load and mix",
    "output": "output per engine, as served",
    "capacity": "capacity per engine",
}
_COSTS = ("cost_at_same_load", "cost_as_billed")
_NO_REASON = "The telemetry shows no other difference."


def comparison_text(found: Comparison, *, width: int) -> str:
    """Both sides, a row per figure with its change, and the other differences."""
    sides = "".join(
        wrapped(f"{name}: {_side(side)}", width)
        for name, side in (("A", found.before), ("B", found.after))
    )
    reasons = reason_table(found)
    differs = f"What else differs\n{reasons.to_text(width)}" if found.reasons else _NO_REASON + "\n"
    return f"{sides}\n{change_table(found).to_text(width)}\n{differs}"


def comparison_verdict(found: Comparison) -> Text:
    """Whether a token got cheaper or faster since A by more than noise; other differences."""
    others = [
        f"{_LABELS[name]} {_percent(each.ratio.mid)}"
        for name, each in found.changes.items()
        if name not in _COSTS and each.is_more_than_noise and each.ratio.mid is not None
    ]
    kinds = list(dict.fromkeys(each.kind for each in found.reasons))
    return text(
        f"Compared with A, {_side(found.before)}.",
        f"At the same load and mix, {_change_text(found.cost_at_same_load)}.",
        f"As billed, {_change_text(found.cost_as_billed)}.",
        *([f"Also beyond noise: {'; '.join(others)}."] if others else []),
        f"What else differs: {', '.join(kinds)}." if kinds else _NO_REASON,
    )


def change_table(found: Comparison) -> Table:
    """One row per figure: its change from A to B with the interval, and whether it is noise."""
    columns = (
        Column("figure", "figure"),
        Column("change", "ratio", is_numeric=True),
        Column("99 % interval", is_numeric=True),
        Column("verdict", "is_more_than_noise"),
        Column("", "detectable_change_ratio"),
        Column("note", "reason", is_note=True),
    )
    rows: list[tuple[Value | Cell, ...]] = []
    for name, change in found.changes.items():
        ratio = change.ratio
        shown = "not known" if ratio.mid is None else _percent(ratio.mid)
        ends = ""
        if ratio.low is not None and ratio.high is not None:
            ends = f"{_percent(ratio.low)} to {_percent(ratio.high)}"
        verdict = Cell(_verdict(change), str(change.is_more_than_noise))
        least = Cell("", change.detectable_change_ratio)
        note = Cell(ratio.reason or _unseen(change), ratio.reason)
        cells = (Cell(shown, ratio), Cell(ends), verdict, least, note)
        rows.append((_LABELS[name], *cells))
    return table(columns, rows)


def reason_table(found: Comparison) -> Table:
    """One row per other difference between the two: what differs, and A's and B's value."""
    columns = (Column("what", "kind"), Column("from A to B", "evidence"))
    rows = [(each.kind, each.evidence) for each in found.reasons]
    return table(columns, rows, empty="No other difference.")


def _side(side: Side) -> str:
    cost = value(side.usd_per_million_output_tokens, usd)
    engines = "1 engine" if side.engines == 1 else f"{side.engines:.3g} engines on average"
    when = span(side.start, side.end)
    return f"{side.window}, {when}, {engines}, {cost} per million output tokens"


def _change_text(change: Change) -> str:
    """Whether an output token costs more or less, or why that is unknown."""
    ratio = change.ratio
    if ratio.low is None or ratio.mid is None or ratio.high is None:
        return f"whether a token costs more or less is not known: {reason(ratio)}"
    ends = f"between {_percent(ratio.low)} and {_percent(ratio.high)}"
    if ratio.low == ratio.high:
        ends = "exactly"
    if not change.is_more_than_noise:
        unseen = "; ".join(filter(None, (ends, _unseen(change))))
        return f"the cost per output token did not change beyond noise ({unseen})"
    more = "more" if ratio.mid > 1 else "less"
    return f"an output token costs {percent(abs(ratio.mid - 1))} {more} ({ends})"


def _unseen(change: Change) -> str:
    """The smallest change that these hours can show; empty if a change was found."""
    least = change.detectable_change_ratio
    if change.is_more_than_noise is not False or not least:
        return ""
    if least >= 1:
        return "too little data to detect even a doubling"
    return f"a change under {percent(least)} could go undetected"


def _percent(ratio: float) -> str:
    change = ratio - 1
    return f"{'+' if change >= 0 else '−'}{percent(abs(change))}"


def _verdict(change: Change) -> str:
    is_change = change.is_more_than_noise
    if is_change is None:
        return ""
    return "changed" if is_change else "within noise"
