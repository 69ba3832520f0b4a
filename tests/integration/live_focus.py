"""FOCUS rows checked by the FinOps Foundation's own validator.

Not among the usual tests: focus-validator 2.2.1 needs Python 3.12 and older polars, pandas and
DuckDB, so an environment of its own (with pyarrow below 19), and finds its lists only from its own
site-packages. FOCUS_VALIDATOR names its command, a script that goes there first:

    FOCUS_VALIDATOR=/path/to/focus-validator pytest tests/integration/live_focus.py
"""

import os
import re
import subprocess

import pytest

from tests.render.test_reports_export import DAY, FIRST, on, report, write
from vllm_capacity.analysis import Analysis
from vllm_capacity.assumptions import Assumptions, pricing
from vllm_capacity.render.exports import export
from vllm_capacity.render.exports.reports import export_reports, read_reports
from vllm_capacity.telemetry.window import open_window

SUPPORTED = (
    *("USAGE_MEASUREMENT_SUPPORTED", "UNIT_PRICING_SUPPORTED", "PUBLIC_PRICE_LIST_SUPPORTED"),
    *("NEGOTIATED_PRICING_SUPPORTED", "MULTIPLE_PRICING_CATEGORIES_SUPPORTED"),
    *("BILLING_BASED_ON_PROVISIONED_RESOURCES_SUPPORTED", "RESOURCE_TYPE_ASSIGNMENT_SUPPORTED"),
    "PRICING_BILLING_CURRENCY_DIFFERENCES_SUPPORTED",
)
"""What of FOCUS is there to be checked, in the validator's words."""
NO_INVOICE = {"InvoiceId-C-005-C"}
"""It says "not null when there is an invoice", and its sister C-004 "null when there is none": the
validator holds both against every row, so one of them fails whatever is written."""


@pytest.mark.parametrize("name", ["vllm-sweep", "vllm-two-replicas", "vllm-restart"])
def test_the_foundations_validator_passes(name, tmp_path):
    priced = Analysis.of(open_window(name), assumptions=Assumptions(pricing(1.64)))
    validate(export(priced, "focus-1.2"), tmp_path)


def test_it_passes_on_all_nights_of_a_folder_of_reports(tmp_path):
    """Two models, three nights, the last over the end of a month."""
    night = report(window="fleet-two-models")
    for start in (FIRST, FIRST + DAY, FIRST + 2.5 * DAY):
        write(tmp_path / "reports", on(night, start))
    validate(export_reports(read_reports(tmp_path / "reports"), "focus-1.2")[0], tmp_path)


def validate(charges, folder):
    """Check charges against the rules of FOCUS 1.2."""
    data = folder / "focus.csv"
    data.write_text(charges)
    command = [
        *(os.environ["FOCUS_VALIDATOR"], "--data-file", data, "--block-download"),
        *("--validate-version", "1.2.0.1", "--applicability-criteria", ",".join(SUPPORTED)),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    failed = set(re.findall(r"^- (\S+): violations", done.stdout, flags=re.MULTILINE))
    assert "Pass: " in done.stdout, done.stderr[-3000:]
    assert failed <= NO_INVOICE, done.stdout[-3000:]
