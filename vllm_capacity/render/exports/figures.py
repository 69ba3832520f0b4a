"""All figures of an analysis as rows: one per figure, for the fleet and each model and engine.

For spreadsheets, warehouses and scripts. Nothing is computed: the rows are the answer's fields and
the bill's parts, under their own names (`cost.usd_per_request`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from msgspec.structs import replace

from vllm_capacity.analysis import Analysis
from vllm_capacity.errors import InputError
from vllm_capacity.estimate import Estimate, unit_of
from vllm_capacity.figures.latency import Quantile
from vllm_capacity.record import Record
from vllm_capacity.render.exports.currency import Currency
from vllm_capacity.render.tables import Column, Table, Value, table
from vllm_capacity.timerange import iso

_COLUMNS = tuple(
    Column(name, name)
    for name in (
        *("window", "start", "end", "group_by", "group", "figure"),
        *("value", "bound", "kind", "confidence", "basis", "reason"),
    )
)
_BUCKET = "the edges of the histogram's bucket"
_MONEY = "USD"


def figure_table(analysis: Analysis, currency: Currency) -> Table:
    """One row per figure and group: the fleet, each model, each engine.

    Columns: window, start, end, group_by, group, figure, value with its low, high and unit, bound
    ("at least", "at most", or empty), kind, confidence, basis, reason (why it is unknown). Unknown
    values are empty, never 0.
    """
    head = (analysis.window.name, analysis.time_range.start, analysis.time_range.end)
    rows = [
        (*head, *group, *_cells(name, found, currency)) for *group, name, found in _found(analysis)
    ]
    return table(_COLUMNS, rows)


def to_csv(analysis: Analysis, currency: Currency) -> str:
    """The figures as CSV, numbers at full precision."""
    return figure_table(analysis, currency).to_csv()


def to_parquet(analysis: Analysis, currency: Currency) -> bytes:
    """The figures as a Parquet file."""
    return figure_table(analysis, currency).to_parquet()


def to_json(analysis: Analysis, currency: Currency) -> str:
    """The figures as one JSON object: the window, the currency, and a list of rows."""
    body = {
        "window": analysis.window.name,
        "start": iso(analysis.time_range.start),
        "end": iso(analysis.time_range.end),
        "is_simulated": analysis.window.is_simulated,
        "currency": currency.code,
        "currency_rate": currency.note,
        "figures": figure_table(analysis, currency).frame.drop("window", "start", "end").to_dicts(),
    }
    return json.dumps(body, allow_nan=False, indent=2) + "\n"


def _found(analysis: Analysis) -> Iterator[tuple[str, str, str, Estimate]]:
    """(group_by, group, figure, estimate) of every figure."""
    for name, found in _flat(analysis.answer, ""):
        yield "fleet", "all", name, found
    for group_by in ("model", "engine"):
        try:
            parts = analysis.bill_by(group_by).parts
        except InputError:  # telemetry that names no model
            continue
        for group, costs in parts.items():
            for name, found in _flat(costs, "cost."):
                yield group_by, group, name, found


def _flat(record: Record, prefix: str) -> Iterator[tuple[str, Estimate]]:
    """The numbers of a result and its nested results, by dotted name."""
    for field in record.__struct_fields__:
        name, value = f"{prefix}{field}", getattr(record, field)
        if isinstance(value, Estimate):
            yield name, value
        elif isinstance(value, Quantile):
            yield name, _quantile(value)
        elif isinstance(value, Record):
            yield from _flat(value, f"{name}.")
        elif (value is None or isinstance(value, int | float)) and field != "schema_version":
            yield name, _counted(field, value)


def _quantile(found: Quantile) -> Estimate:
    low, mid, high = found.lower, found.estimate, found.upper
    if low is None:
        return Estimate.unknown("nothing was observed")
    if mid is None or high is None:
        beyond = "it lies beyond the last edge of the histogram"
        return replace(Estimate.at_least(low, _BUCKET, reason=beyond), unit="s")
    return replace(Estimate.between(low, mid, high, _BUCKET), unit="s")


def _counted(name: str, value: float | None) -> Estimate:
    if value is None:
        return Estimate.unknown("not counted, or nothing was observed")
    return replace(Estimate.exact(value), unit=unit_of(name))


def _cells(name: str, found: Estimate, currency: Currency) -> tuple[Value, ...]:
    """The figure's own cells, in the currency."""
    if found.unit.startswith(_MONEY):
        found = currency.of(found)
    elif found.unit.endswith(_MONEY):
        found = currency.per(found)
    shown = replace(found, unit=currency.renamed(unit_of(name.rpartition(".")[2]) or found.unit))
    bound = "" if not found.is_bound else "at most" if found.low is None else "at least"
    kind = None if found.kind is None else str(found.kind)
    text = (bound, kind, found.confidence, found.sources, found.reason)
    return (currency.renamed(name), shown, *text)
