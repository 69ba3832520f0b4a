"""Other inputs of a page than telemetry: files of a pattern, rows of a day."""

from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest

from vllm_capacity.cli.options.extra_inputs import ExtraInputs, has_new_rows
from vllm_capacity.cli.options.settings import InvoiceSettings, UsageSettings
from vllm_capacity.timerange import TimeRange

DAY = date(2026, 11, 27)
START = datetime(2026, 11, 27, tzinfo=UTC)
WHOLE = TimeRange(START, START + timedelta(days=1))
HEAD = "key,start,end,prompt_tokens,output_tokens\n"


def logged(path: Path, *rows: str) -> Path:
    path.write_text(HEAD + "".join(f"{row},10,5\n" for row in rows))
    return path


def extra(folder: Path, *names: str, invoice: str | None = None) -> ExtraInputs:
    files = tuple(folder / name for name in names)
    return ExtraInputs(UsageSettings(files=files), InvoiceSettings(invoice and folder / invoice))


@pytest.fixture
def folder(tmp_path):
    for day in (26, 27, 28):
        logged(
            tmp_path / f"spend-2026-11-{day}.csv", f"a,2026-11-{day}T08:00Z,2026-11-{day}T08:01Z"
        )
    return tmp_path


@pytest.mark.parametrize(
    ("pattern", "day", "found"),
    [
        pytest.param("spend-{day}.csv", DAY, ["spend-2026-11-27.csv"], id="a log a day"),
        pytest.param("spend-{day}.csv", None, [26, 27, 28], id="a window of no day: all"),
        pytest.param("spend-*.csv", DAY, [26, 27, 28], id="whatever there is, in order"),
        pytest.param("spend-2026-11-26.csv", DAY, [26], id="one file"),
    ],
)
def test_a_pattern_names_files(folder, pattern, day, found):
    names = [f"spend-2026-11-{each}.csv" if isinstance(each, int) else each for each in found]
    inputs = extra(folder, pattern).of_window(day)
    assert inputs.parameters["usage"] == ";".join(str(folder / name) for name in names)
    assert inputs.missing == ()


def test_letters_of_patterns_in_a_name_that_is_there_are_letters(tmp_path):
    name = logged(tmp_path / "spend[1].csv", "a,2026-11-27T08:00Z,2026-11-27T08:01Z").name
    assert extra(tmp_path, name).of_window(DAY).missing == ()


def test_what_is_not_there_or_cannot_be_read_is_a_line_each(folder):
    (folder / "spend-broken.csv").write_text("nothing\n1\n")
    found = extra(folder, "spend-*.csv", "more-{day}.csv", invoice="none.csv").of_day(DAY, WHOLE)
    log, invoice, broken = found.missing
    assert log.startswith("There is no log of use")
    assert invoice.startswith("There is no invoice")
    assert "spend-broken.csv" in broken
    assert "spend-broken" not in str(found.parameters["usage"])
    assert "spend-2026-11-27" in str(found.parameters["usage"])
    assert "invoice" not in found.parameters


def test_without_settings_a_page_takes_nothing():
    found = ExtraInputs().of_day(DAY, WHOLE)
    assert (found.parameters, found.missing, found.digest) == ({}, (), "")


@pytest.mark.parametrize(
    ("row", "is_of_the_day"),
    [
        pytest.param(
            "b,2026-11-27T09:00Z,2026-11-27T09:01Z", True, id="another request of the day"
        ),
        pytest.param("b,2026-11-26T23:59Z,2026-11-27T00:01Z", True, id="over midnight"),
        pytest.param("b,2026-11-27T00:00Z,2026-11-27T00:00Z", True, id="at midnight"),
        pytest.param("b,2026-11-26T23:59Z,2026-11-27T00:00Z", False, id="up to midnight"),
        pytest.param("b,2026-11-28T00:00Z,2026-11-28T00:01Z", False, id="from the next on"),
    ],
)
def test_a_day_is_made_again_only_if_its_own_inputs_changed(folder, row, is_of_the_day):
    before = extra(folder, "spend-*.csv").of_day(DAY, WHOLE).digest
    logged(folder / "spend-late.csv", row)
    after = extra(folder, "spend-*.csv").of_day(DAY, WHOLE).digest
    assert has_new_rows(after, before) is is_of_the_day


def test_charges_of_the_day_before_are_not_this_ones(folder):
    invoice = folder / "invoice.csv"
    invoice.write_text("date,cost\n2026-11-27,39\n")
    before = extra(folder, invoice="invoice.csv").of_day(DAY, WHOLE).digest
    invoice.write_text("date,cost\n2026-11-26,39\n2026-11-27,39\n2026-11-28,39\n")
    assert extra(folder, invoice="invoice.csv").of_day(DAY, WHOLE).digest == before != ""


def test_a_rotated_log_removes_no_page(folder):
    before = extra(folder, "spend-*.csv").of_day(DAY, WHOLE).digest
    (folder / "spend-2026-11-27.csv").unlink()
    after = extra(folder, "spend-*.csv").of_day(DAY, WHOLE).digest
    assert after == ""
    assert not has_new_rows(after, before)
    assert not has_new_rows(before, before)


def test_the_order_of_rows_makes_no_difference_to_the_store(folder):
    rows = [f"b,2026-11-27T0{n}:00Z,2026-11-27T0{n}:01Z" for n in range(1, 5)]
    logged(folder / "spend-late.csv", *rows)
    before = extra(folder, "spend-*.csv").of_day(DAY, WHOLE).digest
    logged(folder / "spend-late.csv", *reversed(rows))
    assert extra(folder, "spend-*.csv").of_day(DAY, WHOLE).digest == before
