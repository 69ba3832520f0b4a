"""A folder of nightly reports in the formats of others, from what its pages keep."""

import csv
import io
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import polars as pl
import pytest
from click.testing import CliRunner
from msgspec.structs import replace

import vllm_capacity as vc
from vllm_capacity.billed import BilledUse
from vllm_capacity.cli import cli
from vllm_capacity.cli.export import FORMATS as OFFERED
from vllm_capacity.errors import InputError
from vllm_capacity.render.exports.currency import Currency
from vllm_capacity.render.exports.reports import (
    FORMATS,
    are_reports,
    export_reports,
    read_reports,
)
from vllm_capacity.render.report.metadata import Metadata, SummaryLine, Tiles
from vllm_capacity.render.report.previous import previous_report, with_changes

EUROS = Currency("EUR", 0.5, datetime(2026, 11, 28, tzinfo=UTC).date())
PAGE = '<p>a page</p><script type="application/json" id="report">{}</script>'
FIRST = datetime(2026, 11, 28, tzinfo=UTC)
DAY = timedelta(days=1)


def report(price=1.64, window="vllm-two-replicas"):
    a = vc.open(window).analyze(price=price)
    return Metadata(
        line=msgspec.convert(vc.tables.title_line(a).content, SummaryLine),
        notebook="cost-report.ipynb",
        title="What?",
        tiles=msgspec.convert(vc.tables.tiles(a).content, Tiles).tiles,
        use=msgspec.convert(vc.tables.kept_use(a).content, BilledUse),
    )


def on(night, start, *, name=None, length=DAY):
    """The report as of another time: its hours are billed then, as many as there were."""
    end = start + length
    line = replace(
        night.line, window=name or f"{start:%Y-%m-%d}", start=start.isoformat(), end=end.isoformat()
    )
    use = night.use and replace(
        night.use,
        engines={k: replace(e, start=start, end=end) for k, e in night.use.engines.items()},
    )
    return replace(night, line=line, use=use)


def write(folder, night, name=None):
    folder.mkdir(exist_ok=True)
    page = f"{name or night.line.window}.html"
    (folder / page).write_text(PAGE.format(msgspec.json.encode(night).decode()))
    return folder


@pytest.fixture(scope="module")
def priced():
    return report()


@pytest.fixture
def reports(tmp_path, priced):
    """Three nights; the second cost more."""
    for n, night in enumerate((priced, report(2.0), priced)):
        write(tmp_path / "reports", on(night, FIRST + n * DAY))
    return tmp_path / "reports"


def exported(folder, to, currency=None):
    made, notes = export_reports(read_reports(folder), to, *filter(None, [currency]))
    return made, notes


def rows(folder, to="csv", currency=None):
    return list(csv.DictReader(io.StringIO(exported(folder, to, currency)[0])))


def bill(night):
    return night.use.as_paid.whole.allocation_usd.mid


def test_reports_have_the_formats_of_windows():
    assert list(FORMATS) == list(OFFERED)


def test_a_row_per_night_says_what_its_page_says(reports, priced):
    found = rows(reports)
    assert [each["window"] for each in found] == ["2026-11-28", "2026-11-29", "2026-11-30"]
    assert {each["series"] for each in found} == {"2026-11-28"}
    costs, usage = priced.use.as_paid.whole, priced.use.as_paid.usage
    assert float(found[0]["usd_per_request"]) == costs.usd_per_request.mid
    assert float(found[0]["idle_usd_high"]) == costs.idle_usd.high
    assert float(found[0]["generation_tokens"]) == usage.generation_tokens
    assert float(found[1]["allocation_usd"]) == pytest.approx(bill(priced) * 2.0 / 1.64)


def test_parquet_and_json_are_the_same_rows(reports):
    frame = pl.read_parquet(io.BytesIO(exported(reports, "parquet")[0]))
    nights = json.loads(exported(reports, "json")[0])["nights"]
    assert frame.drop("start", "end").to_dicts() == [
        {k: v for k, v in each.items() if k not in ("start", "end")} for each in nights
    ]
    assert nights[0]["start"] == "2026-11-28T00:00:00Z"


@pytest.mark.parametrize("version", ["focus", "focus-1.2"])
def test_charges_of_all_nights_add_up_to_their_bills(reports, priced, version):
    charged = sum(float(each["BilledCost"]) for each in rows(reports, version))
    assert charged == pytest.approx(bill(priced) * (2 + 2.0 / 1.64), abs=1e-9)


def test_a_night_across_two_months_is_split_by_its_hours(tmp_path, priced):
    """A night from 21 h of the 30th on: an eighth of its dollars are November's."""
    start = datetime(2026, 11, 30, 21, tzinfo=UTC)
    found = rows(write(tmp_path / "r", on(priced, start)), "focus")
    months = {each["BillingPeriodStart"]: 0.0 for each in found}
    for each in found:
        months[each["BillingPeriodStart"]] += float(each["BilledCost"])
        assert each["BillingPeriodStart"] <= each["ChargePeriodStart"]
        assert each["ChargePeriodEnd"] <= each["BillingPeriodEnd"]
        assert "split by billed hours" in each["x_Basis"]
    whole = bill(priced)
    assert list(months.values()) == pytest.approx([whole / 8, whole * 7 / 8])


@pytest.mark.parametrize(
    ("name", "start", "length", "kept"),
    [
        pytest.param("copy", FIRST, DAY, "2026-11-28", id="the same night by another notebook"),
        pytest.param("week", FIRST - 4 * DAY, 7 * DAY, "2026-11-28", id="a week that has it"),
        pytest.param("part", FIRST + DAY / 2, DAY / 8, "2026-11-28", id="an hour of it"),
    ],
)
def test_no_time_of_a_server_is_charged_twice(reports, priced, name, start, length, kept):
    before = sum(float(each["BilledCost"]) for each in rows(reports, "focus"))
    write(reports, on(priced, start, name=name, length=length))
    made, notes = exported(reports, "focus")
    assert sum(float(each["BilledCost"]) for each in csv.DictReader(io.StringIO(made))) == before
    assert any(f"{name}.html is skipped" in note and f"{kept}.html" in note for note in notes)


def test_another_server_at_the_same_time_counts(reports, priced):
    other = on(priced, FIRST, name="other")
    write(reports, replace(other, line=replace(other.line, servers=("elsewhere",))))
    assert len(rows(reports)) == 4
    assert exported(reports, "csv")[1] == ()


@pytest.mark.parametrize(
    ("to", "says"),
    [
        pytest.param("csv", "only the summary figures are included", id="a table"),
        pytest.param("focus", "left out", id="a bill"),
    ],
)
def test_a_page_of_an_earlier_release_is_reported(reports, priced, to, says):
    write(reports, replace(on(priced, FIRST - DAY), use=None))
    made, notes = exported(reports, to)
    (note,) = notes
    assert "2026-11-27.html has no stored bill" in note
    assert says in note
    if to == "csv":
        first = next(csv.DictReader(io.StringIO(made)))
        assert (first["has_bill"], first["billed_hours"]) == ("false", "")
        assert float(first["usd_per_request"]) == priced.by_figure["usd_per_request"].mid


def test_a_file_that_is_no_report_is_reported(reports):
    (reports / "notes.html").write_text("<p>hello")
    assert exported(reports, "csv")[1] == (
        "notes.html is skipped: it is not a report, or was modified.",
    )


@pytest.mark.parametrize("to", ["focus", "prometheus", "litellm"])
def test_without_any_bill_there_is_none_to_export(tmp_path, priced, to):
    folder = write(tmp_path / "old", replace(on(priced, FIRST), use=None))
    with pytest.raises(InputError, match="No report in old has the data behind its bill"):
        exported(folder, to)


def test_pages_without_figures_are_no_table(tmp_path, priced):
    folder = write(tmp_path / "old", replace(on(priced, FIRST), use=None, tiles=()))
    with pytest.raises(InputError, match="have no figures"):
        exported(folder, "csv")
    assert "This report has no figures." in exported(folder, "markdown")[0]


def test_the_newest_night_is_shown_with_its_change(tmp_path, priced):
    before = on(report(window="vllm-restart"), FIRST)
    before = replace(before, line=replace(before.line, servers=priced.line.servers))
    now = on(priced, FIRST + DAY)
    found = previous_report(now, {"2026-11-28.html": before}, page="2026-11-29.html")
    now = replace(now, tiles=with_changes(Tiles(now.tiles), now.line, found).tiles)
    folder = write(write(tmp_path / "r", before), now)
    text = exported(folder, "markdown")[0]
    assert text.startswith("**2026-11-29** · ")
    changed = [tile for tile in now.tiles if tile.change and tile.change.arrow]
    for tile in changed:
        assert f"- {tile.label}: " in text
        assert tile.change.arrow in text
    assert len(changed) >= 2
    euros = exported(folder, "markdown", EUROS)[0]
    assert "EUR" in euros
    assert "$" not in euros.split("\n", 2)[2]


def test_prometheus_has_the_newest_of_each_series(reports, priced):
    other = on(priced, FIRST, name="other")
    write(reports, replace(other, line=replace(other.line, servers=("elsewhere",))))
    text = exported(reports, "prometheus")[0]
    windows = {part.split('"')[0] for part in text.split('window="')[1:]}
    assert windows == {"2026-11-30", "other"}
    costs = [line for line in text.splitlines() if line.startswith("vllm_capacity_cost{")]
    assert [float(line.split()[-1]) for line in costs] == pytest.approx([bill(priced)] * 2)


def test_litellm_prices_add_up_to_the_newest_bill(reports, priced):
    found = json.loads(exported(reports, "litellm")[0])
    price, usage = found["hosted_vllm/tiny-random-llama"], priced.use.as_paid.usage
    spent = (
        price["input_cost_per_token"] * usage.prompt_tokens
        + price["output_cost_per_token"] * usage.generation_tokens
    )
    assert spent == pytest.approx(bill(priced), rel=1e-3)
    assert price["metadata"]["window"] == "2026-11-30"


def test_each_model_of_a_page_has_its_own_price(tmp_path):
    several = report(window="fleet-two-models")
    folder = write(tmp_path / "r", on(several, FIRST))
    assert len(json.loads(exported(folder, "litellm")[0])) == 2
    assert {each["x_ModelId"] for each in rows(folder, "focus")} == set(several.line.models)


def test_a_page_keeps_who_rents_out_its_gpus(tmp_path):
    folder = write(tmp_path / "r", on(report("lambda A100-40GB x8"), FIRST))
    assert {each["HostProviderName"] for each in rows(folder, "focus")} == {"Lambda"}


def test_an_engine_without_a_model_has_that_of_its_page(tmp_path, priced):
    engines = {name: replace(each, model=None) for name, each in priced.use.engines.items()}
    old = replace(priced, use=replace(priced.use, engines=engines))
    found = rows(write(tmp_path / "r", on(old, FIRST)), "focus")
    assert {each["x_ModelId"] for each in found} == {"tiny-random-llama"}


def test_a_window_and_an_empty_folder_are_no_reports(tmp_path):
    assert not are_reports(tmp_path)
    assert not are_reports(vc.open("vllm-sweep").path)
    assert not are_reports(Path("vllm-sweep"))


def test_the_command_tells_what_it_leaves_out(reports, priced):
    write(reports, replace(on(priced, FIRST - DAY), use=None))
    done = CliRunner().invoke(cli, ["export", str(reports), "--to", "focus"])
    assert (done.exit_code, done.stdout[:10]) == (0, "BilledCost")
    assert done.stderr.startswith("vllm-capacity: 2026-11-27.html has no stored bill")
    one = CliRunner().invoke(cli, ["export", str(reports / "2026-11-29.html"), "--to", "csv"])
    assert len(one.stdout.splitlines()) == 2


def test_another_price_is_none_of_a_report(reports):
    words = ["export", str(reports), "--to", "csv", "--usd-per-hour", "3"]
    with pytest.raises(InputError, match="remove --usd-per-hour"):
        CliRunner().invoke(cli, words, catch_exceptions=False)
