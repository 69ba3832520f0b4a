"""The bill compared with the cloud's invoice, a row per part of the difference."""

from __future__ import annotations

from pathlib import Path

from msgspec.structs import replace

from vllm_capacity.analysis import Analysis
from vllm_capacity.errors import NoTelemetryError
from vllm_capacity.estimate import listed
from vllm_capacity.render.numbers import number, plural, usd
from vllm_capacity.render.tables import Cell, Column, Table, Text, Value, table, text
from vllm_capacity.sources.invoices import Invoice, read_invoice
from vllm_capacity.verdicts.cost.reconcile import Reconciliation

_MIN_USD = 1e-4


def invoice_table(found: Reconciliation, invoice: Invoice) -> Table:
    """The amounts charged and billed, their difference, and its causes."""
    columns = (
        Column("", "what"),
        Column("USD", "usd", _money, is_numeric=True),
        Column("", "note", is_note=True),
    )
    billed = found.billed_usd
    rows: list[tuple[Value | Cell, ...]] = [
        ("charged", found.charged_usd, _charged(found, invoice)),
        ("billed here", Cell("") if billed.is_unknown else billed, billed.reason),
    ]
    parts = (
        ("difference", found.difference_usd, ""),
        ("time not charged", found.missing_usd, _missing(found)),
        ("other hours", found.hours_usd, _hours(found)),
        ("another price", found.price_usd, _price(found)),
        ("not explained", found.unexplained_usd, "the charges have no hours"),
    )
    rows += [(name, cost, why) for name, cost, why in parts if cost is not None]
    return table(columns, rows)


def invoice_by_file(analysis: Analysis, invoice: str, *, columns: str = "") -> Table | Text:
    """The same table for a page, with the charges from a file; `columns` maps its column names.

    A sentence if no charge falls into the analysis's time.
    """
    charges = read_invoice(Path(invoice), columns=columns)
    try:
        found = analysis.reconciled(charges)
    except NoTelemetryError as error:
        return text(str(error))
    return replace(invoice_table(found, charges), caption=f"The cloud's invoice ({charges.name}).")


def _money(value: float, like: float | None = None) -> str:
    """Dollars with a leading minus; less than a hundredth of a cent is shown as zero."""
    value = value if abs(value) >= _MIN_USD else 0.0
    return f"−{usd(-value, like)}" if value < 0 else usd(value, like)


def _charged(found: Reconciliation, invoice: Invoice) -> str:
    notes = [f"{_money(found.outside_usd)} more is for other times"] if found.outside_usd else []
    if invoice.malformed:
        lines = "; ".join(invoice.examples)
        notes.append(f"{plural(invoice.malformed, 'row')} could not be read ({lines})")
    return "; ".join(notes)


def _missing(found: Reconciliation) -> str:
    if not found.missing_days:
        return ""
    return f"{number(found.missing_hours)} h: {listed(found.missing_days)}"


def _hours(found: Reconciliation) -> str:
    charged = 0.0 if found.charged_hours is None else found.charged_hours
    return f"{number(charged)} h of {found.hours_of} charged, {number(found.billed_hours)} h billed"


def _price(found: Reconciliation) -> str:
    prices = found.charged_usd_per_hour, found.billed_usd_per_hour
    if prices[0] is None or prices[1] is None:
        return ""
    return f"{_money(prices[0])} per hour charged, {_money(prices[1])} billed"
