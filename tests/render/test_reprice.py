"""A report's cost figures at another price, from its page alone."""

import json
import re
from datetime import UTC, datetime
from pathlib import Path

import nbformat
import pytest
from click.testing import CliRunner

import vllm_capacity as vc
from vllm_capacity.cli import cli
from vllm_capacity.errors import InputError
from vllm_capacity.render.report.write import ReportOrder, write_report
from vllm_capacity.render.sections.cost import repriced_table

WINDOW = "fleet-two-models"
PYTHON = {"kernelspec": {"name": "python3", "language": "python", "display_name": "Python 3"}}
DECLARED = f'window: str = "{WINDOW}"\nusd_per_hour: "Optional[float]" = None'
SHOWN = (
    "import vllm_capacity as vc\n"
    "a = vc.open(window).analyze(price=usd_per_hour)\nvc.tables.title_line(a)",
    "vc.tables.kept_use(a)",
)


def reported(folder: Path, *sources: str, price: float | None = 1.64) -> Path:
    cells = [nbformat.v4.new_code_cell(source) for source in (DECLARED, *sources)]
    cells[0].metadata["tags"] = ["parameters"]
    notebook = folder / "asked.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=PYTHON), notebook)
    order = ReportOrder(notebook, {"usd_per_hour": price}, folder)
    return write_report(
        order, made_at=datetime.now(UTC), cache=folder, progress=lambda done, total: None
    )


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    return reported(tmp_path_factory.mktemp("reports"), *SHOWN)


@pytest.fixture(scope="module")
def window():
    return vc.open(WINDOW)


@pytest.fixture(scope="module")
def before(window):
    """What the window of the page says at the page's price."""
    return window.analyze(price=1.64).cost.as_dict()


@pytest.mark.parametrize(
    "given",
    [
        pytest.param({"price": 2.5}, id="a number"),
        pytest.param({"price": "1.2 to 1.9, likely 1.5"}, id="an interval"),
        pytest.param({"price": "A100-80GB-PCIe RunPod secure, on-demand 2025"}, id="a row"),
        pytest.param({"price": 2.5, "gpus_per_engine": 4.0}, id="other GPUs"),
    ],
)
def test_a_repriced_page_agrees_with_its_window_at_that_price(page, window, before, given):
    found = vc.reprice(page, **given)
    assert found.before.as_dict() == before
    assert found.after.as_dict() == window.analyze(**given).cost.as_dict()


def test_a_mapping_file_prices_each_engine_at_its_time_and_leaves_capacities_alone(
    page, window, tmp_path
):
    rules = tmp_path / "fleet.csv"
    rules.write_text(
        "instance,gpus_per_engine,usd_per_hour,from,until\n"
        "chat-*,2,3,,2026-11-17\nchat-*,2,4,2026-11-17,\n*,1,1,,\n"
    )
    after = vc.reprice(page, price_rules=rules).after
    whole = window.analyze(price_rules=rules).cost
    assert (after.total, after.per_request) == (whole.total, whole.per_request)
    assert after.utilization == window.analyze().cost.utilization


def test_a_page_without_a_price_gets_one(window, tmp_path):
    found = vc.reprice(reported(tmp_path, *SHOWN, price=None), price=2.0)
    assert found.before.allocation_usd.is_unknown
    assert found.after.allocation_usd.mid == window.analyze(price=2.0).cost.total.mid


def test_the_command_shows_both(page):
    words = ["reprice", str(page), "--usd-per-hour", "3.28"]
    text = CliRunner().invoke(cli, words, catch_exceptions=False).stdout
    row = next(line for line in text.splitlines() if line.startswith("bill"))
    before, after = (float(each.replace(",", "")) for each in re.findall(r"\$([\d,.]+)", row))
    assert after == pytest.approx(2 * before, rel=0.01)
    found = json.loads(CliRunner().invoke(cli, [*words, "--json"], catch_exceptions=False).stdout)
    exact = [found[side]["allocation_usd"]["mid"] for side in ("before", "after")]
    assert exact[1] == pytest.approx(2 * exact[0])


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_has_room(page, width):
    found = vc.reprice(page, price="1.2 to 1.9, likely 1.5")
    lines = repriced_table(found).to_text(width).splitlines()
    assert max(map(len, lines)) <= width
    assert "fleet-two-models, 16 Nov 2026 08:00 to 18 Nov 2026 08:00 UTC" in lines[0]
    for label in ("cost per million output tokens at capacity", "bill, idle included"):
        (row,) = (line for line in lines if line.startswith(f"{label} "))
        assert row.count("$") == 2
    assert "was exact" in lines[4]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        pytest.param("none.html", None, "There is no report", id="no file"),
        pytest.param("page.html", "<p>hello", "is not a report", id="another page"),
        pytest.param("old.html", "", "lacks the data behind its bill", id="an old page"),
    ],
)
def test_what_keeps_no_bill_is_refused(page, tmp_path, name, content, says):
    if content is not None:
        old = re.sub(r'"use":\{.*\}(?=\}</script>)', '"use":null', page.read_text())
        (tmp_path / name).write_text(content or old)
    with pytest.raises(InputError, match=says):
        vc.reprice(tmp_path / name, price=1.0)


def test_a_price_is_needed(page):
    with pytest.raises(InputError, match="Give a price"):
        vc.reprice(page)


def test_a_mapping_file_by_labels_needs_the_window(page, tmp_path):
    rules = tmp_path / "fleet.yaml"
    rules.write_text("- match: '{team=\"a\"}'\n  usd_per_hour: 2\n")
    with pytest.raises(InputError, match="labels, which a report does not keep"):
        vc.reprice(page, price_rules=rules)
