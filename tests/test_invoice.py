"""The bill against the cloud's invoice: what was charged, and the causes of the difference."""

import json
from datetime import UTC, datetime

import polars as pl
import pytest

from tests.cli import command_line
from vllm_capacity.errors import InputError
from vllm_capacity.estimate import Estimate
from vllm_capacity.sources.invoices import INVOICE_SCHEMA, read_invoice
from vllm_capacity.timerange import TimeRange
from vllm_capacity.verdicts.cost.reconcile import reconciled


def at(day, hour=0):
    return datetime(2026, 11, day, hour, tzinfo=UTC)


TWO_DAYS = TimeRange(at(24), at(26))
BILL = Estimate.exact(96.0, "48 h at $2")


def against(*charges, billed=BILL, gpus=1):
    frame = pl.DataFrame(charges, schema=INVOICE_SCHEMA, orient="row")
    return reconciled(frame, TWO_DAYS, billed_usd=billed, engine_hours=48.0, gpu_hours=48.0 * gpus)


def parts(found):
    return tuple(
        None if part is None else pytest.approx(part)
        for part in (found.missing_usd, found.hours_usd, found.price_usd, found.unexplained_usd)
    )


@pytest.mark.parametrize(
    ("charges", "difference", "expected"),
    [
        pytest.param(
            [(at(24), at(25), 48.0, 24.0), (at(25), at(26), 48.0, 24.0)],
            0.0,
            (0.0, 0.0, 0.0, None),
            id="the same",
        ),
        pytest.param([(at(24), at(26), 120.0, 48.0)], 24.0, (0, 0, 24.0, None), id="a price"),
        pytest.param([(at(24), at(26), 120.0, 60.0)], 24.0, (0, 24.0, 0, None), id="hours"),
        pytest.param([(at(24), at(25), 48.0, 24.0)], -48.0, (-48.0, 0, 0, None), id="a day"),
        pytest.param(
            [(at(24), at(25), 60.0, None)], -36.0, (-48.0, None, None, 12.0), id="no hours"
        ),
        pytest.param(
            [(at(23), at(25), 96.0, 48.0), (at(25), at(27), 96.0, 48.0)],
            0.0,
            (0, 0, 0, None),
            id="charges over both ends count by their time",
        ),
        pytest.param(
            [(at(24), at(26), 100.0, 48.0), (at(24), at(26), -4.0, 0.0)],
            0.0,
            (0, 0, 0, None),
            id="a credit",
        ),
    ],
)
def test_the_difference_has_names_that_add_up(charges, difference, expected):
    found = against(*charges)
    assert found.difference_usd == pytest.approx(difference)
    assert parts(found) == expected
    named = (found.missing_usd, found.hours_usd, found.price_usd, found.unexplained_usd)
    assert sum(part or 0.0 for part in named) == pytest.approx(difference)


def test_missing_days_are_named():
    found = against((at(24), at(24, 12), 24.0, 12.0))
    assert found.missing_days == ("2026-11-24", "2026-11-25")
    assert found.missing_hours == 36.0


def test_hours_of_gpus_compare_with_those():
    found = against((at(24), at(26), 96.0, 384.0), gpus=8)
    assert (found.hours_of, found.billed_hours) == ("GPUs", 384.0)
    assert found.difference_usd == pytest.approx(0.0)


def test_without_a_price_only_the_charge_is_known():
    found = against((at(24), at(26), 96.0, 48.0), billed=Estimate.unknown("no price"))
    assert (found.charged_usd, found.difference_usd, found.price_usd) == (96.0, None, None)


def test_charges_of_another_time_are_an_error():
    with pytest.raises(InputError, match="No charge of the invoice is of the time from 2026-11-24"):
        against((at(1), at(2), 5.0, 24.0))


@pytest.mark.parametrize(
    ("text", "columns", "rows"),
    [
        pytest.param(
            "ChargePeriodStart,ChargePeriodEnd,BilledCost,BillingCurrency,ConsumedQuantity\n"
            "2026-11-24T00:00:00Z,2026-11-25T00:00:00Z,39.36,USD,24\n",
            "",
            [(at(24), at(25), 39.36, 24.0)],
            id="FOCUS",
        ),
        pytest.param(
            "lineItem/UsageStartDate,lineItem/UsageEndDate,lineItem/UnblendedCost\n"
            "2026-11-24T00:00:00Z,2026-11-24T01:00:00Z,1.64\n",
            "",
            [(at(24), at(24, 1), 1.64, None)],
            id="AWS",
        ),
        pytest.param(
            "Tag,Betrag\n2026-11-24,$39.36\n",
            "start=Tag,cost=Betrag",
            [(at(24), at(25), 39.36, None)],
            id="columns given; a day without an end",
        ),
    ],
)
def test_exports_of_clouds(tmp_path, text, columns, rows):
    path = tmp_path / "invoice.csv"
    path.write_text(text)
    assert read_invoice(path, columns=columns).frame.rows() == rows


@pytest.mark.parametrize(
    ("text", "says"),
    [
        pytest.param("a,b\n1,2\n", "It has: a, b. Say which", id="other columns"),
        pytest.param("date,cost,currency\n2026-11-24,5,EUR\n", "charges in EUR", id="no dollars"),
        pytest.param("date,cost\n2026-11-24,five\n", "cost 'five' is not a number", id="no number"),
        pytest.param("", "is empty", id="nothing"),
    ],
)
def test_what_is_no_invoice(tmp_path, text, says):
    path = tmp_path / "invoice.csv"
    path.write_text(text)
    with pytest.raises(InputError) as error:
        read_invoice(path)
    assert says in str(error.value)


def test_a_malformed_row_is_reported_with_its_line(tmp_path):
    path = tmp_path / "invoice.csv"
    path.write_text("date,cost\n2026-11-24,5\n2026-11-25,x\n")
    found = read_invoice(path)
    assert (found.malformed, found.examples) == (1, ("line 3: cost 'x' is not a number",))


def test_cost_names_the_difference(monkeypatch, capsys, tmp_path):
    path = tmp_path / "invoice.csv"
    path.write_text("date,hours,cost\n2026-11-24,24,48\n")
    words = ("cost", "vllm-sweep", "--usd-per-hour", "1.64", "--invoice", str(path))
    code, out, err = command_line.run(monkeypatch, capsys, *words)
    assert (code, err) == (0, "")
    assert "$2.00 per hour charged, $1.64 billed" in out
    found = json.loads(command_line.run(monkeypatch, capsys, *words, "--json")[1])["invoice"]
    assert found["price_usd"] == pytest.approx(0.36 * 26 / 60, rel=1e-3)
