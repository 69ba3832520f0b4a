"""Whole report runs: real notebooks, real kernels, the committed windows."""

import re
import shutil
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import nbformat
import pytest
from bs4 import BeautifulSoup

import vllm_capacity as vc
from vllm_capacity.analysis import Analysis
from vllm_capacity.assumptions import Assumptions, Pricing
from vllm_capacity.errors import InputError, SourceError, WindowError
from vllm_capacity.estimate import Estimate
from vllm_capacity.facts.fleet import Rule
from vllm_capacity.render.report import vega
from vllm_capacity.render.report.files import only_writer
from vllm_capacity.render.report.metadata import page_metadata
from vllm_capacity.render.report.write import (
    EXAMPLES,
    ReportOrder,
    _parameters_of,
    write_page,
    write_report,
)
from vllm_capacity.render.sections.header import tiles_of
from vllm_capacity.resources import shipped

PYTHON = {"kernelspec": {"name": "python3", "language": "python", "display_name": "Python 3"}}
NOTEBOOK = shipped("notebooks/cost-report.ipynb")
EARLY, LATE = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 2, tzinfo=UTC)


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def reporting(folder: Path, cache: Path):
    """A run of a notebook into folder/reports; the steps of its progress in `run.steps`."""

    def run(notebook: Path, *, made_at: datetime = EARLY, **parameters: object) -> Path:
        order = ReportOrder(notebook=notebook, parameters=parameters, out=folder / "reports")
        run.steps = []
        return write_report(
            order,
            made_at=made_at,
            cache=cache,
            progress=lambda done, total: run.steps.append((done, total)),
        )

    return run


@pytest.fixture
def report(tmp_path: Path, cache: Path):
    return reporting(tmp_path, cache)


@pytest.fixture(scope="module")
def page(tmp_path_factory, cache: Path) -> Path:
    """The page of the recorded sweep."""
    return reporting(tmp_path_factory.mktemp("sweep"), cache)(NOTEBOOK)


def test_what_draws_charts_is_made_once_per_process(tmp_path, monkeypatch):
    made = vega.runtime(None)
    monkeypatch.setattr("vl_convert.javascript_bundle", None)
    assert vega.runtime(tmp_path / "cache") == made
    assert [path.read_text() for path in (tmp_path / "cache").glob("*.js")] == [made]


DECLARED = 'window: str = "here"\nusd_per_hour: "Optional[float]" = 0.5\nprice_note: str = "mine"'


def made_notebook(folder: Path, *sources: str, declared: str = DECLARED) -> Path:
    parameters = nbformat.v4.new_code_cell(declared, metadata={"tags": ["parameters"]})
    cells = [parameters, *(nbformat.v4.new_code_cell(source) for source in sources)]
    path = folder / "asked.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=PYTHON), path)
    return path


@pytest.fixture
def notebook(tmp_path: Path):
    return partial(made_notebook, tmp_path)


def written(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "reports").glob("[!.]*"))


def test_two_reports_of_a_window_differ_in_one_line(report, page):
    first = page.read_text().splitlines()
    second = report(NOTEBOOK, made_at=LATE).read_text().splitlines()
    differing = [(a, b) for a, b in zip(first, second, strict=True) if a != b]
    assert [re.sub(r"[\d:-]+", "", a) for a, _ in differing] == [
        re.sub(r"[\d:-]+", "", b) for _, b in differing
    ]
    assert len(differing) == 1


def test_page_says_what_the_answer_says(page):
    metadata = page_metadata(page)
    tiles = {tile.figure: (tile.value, tile.is_known) for tile in metadata.tiles}
    assert tiles == {
        "usd_per_request": ("$0.0171", True),
        "usd_per_million_output_tokens": ("$0.154", True),
        "tokens_per_usd": ("6,500,000", True),
        "utilization": ("61\xa0%", True),
        "slo_headroom_ratio": ("18\xa0%", True),
        "headroom_ratio": ("39\xa0%", True),
        "ttft_attainment": ("54\xa0%", True),
        "allocation_usd": ("$0.0433", True),
        "usd_per_month": ("$73.05", True),
    }


@pytest.fixture
def mapping_file(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("prices.csv").write_text("instance,gpus_per_engine,usd_per_hour\n*,2,0.25\n")


def figures_of(tiles) -> dict[str, tuple[float | None, ...]]:
    return {tile.figure: (tile.low, tile.mid, tile.high) for tile in tiles}


@pytest.fixture(scope="module")
def thin(tmp_path_factory) -> Path:
    """The report's notebook up to its tiles: no charts, no plan."""
    book = nbformat.read(NOTEBOOK, as_version=4)
    book.cells = book.cells[: 1 + [cell.id for cell in book.cells].index("tiles")]
    path = tmp_path_factory.mktemp("thin") / NOTEBOOK.name
    nbformat.write(book, path)
    return path


@pytest.mark.usefixtures("mapping_file")
@pytest.mark.parametrize(
    ("given", "price"),
    [
        pytest.param(
            {"price": 0.1, "slo": vc.Slo(2.0, 0.1), "price_note": "assumed"},
            "$0.100 per GPU-hour (assumed)",
            id="a price as a number, targets",
        ),
        pytest.param(
            {"price": "0.1 to 0.3, likely 0.15", "gpus_per_engine": 2},
            "$0.150 per GPU-hour, between $0.100 and $0.300 (as given)",
            id="an interval, no targets",
        ),
        pytest.param(
            {"price_rules": "prices.csv", "slo": "ttft 1"},
            "prices by instance, from a mapping file",
            id="a mapping file, one target",
        ),
    ],
)
def test_parameters_of_an_analysis_give_a_page_that_says_the_same(report, thin, given, price):
    analysis = vc.open("vllm-sweep").analyze(**given)
    found = page_metadata(report(thin, **_parameters_of(analysis)))
    assert figures_of(found.tiles) == figures_of(tiles_of(analysis.answer))
    assert found.line.price == price


@pytest.mark.usefixtures("mapping_file")
def test_page_of_an_analysis_says_the_same(tmp_path):
    analysis = vc.open("vllm-sweep").analyze(price_rules="prices.csv", slo="ttft 1")
    found = page_metadata(write_page(analysis, tmp_path / "pages/sweep.html", made_at=EARLY))
    assert figures_of(found.tiles) == figures_of(tiles_of(analysis.answer))
    assert [path.name for path in (tmp_path / "pages").iterdir()] == ["sweep.html"]


def test_page_of_price_rules_that_are_in_no_file_is_refused(sweep, tmp_path):
    rules = (Rule("vllm", 1.0, Estimate.exact(1.0, "given"), None, None),)
    analysis = Analysis.of(sweep, assumptions=Assumptions(Pricing(rules=rules)))
    with pytest.raises(InputError, match="the mapping file they were read from"):
        write_page(analysis, tmp_path / "sweep.html", made_at=EARLY)
    assert list(tmp_path.iterdir()) == []


def test_progress_counts_every_cell(report, notebook):
    report(notebook("1", "2"), window="there")
    assert report.steps == [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)]


def test_price_of_a_notebook_is_not_used_for_another_window(report, notebook):
    shows = notebook("print(window, usd_per_hour, [price_note])")
    pages = [
        report(shows).read_text(),
        report(shows, window="there").read_text(),
        report(shows, window="there", usd_per_hour="2").read_text(),
    ]
    shown = [re.search(r"<pre>(.*)</pre>", page)[1] for page in pages]
    assert shown == [
        "here 0.5 [&#39;mine&#39;]",
        "there None [&#39;&#39;]",
        "there 2.0 [&#39;&#39;]",
    ]


HALF = "2026-11-24T04:12:44Z"
SHOWS = """import vllm_capacity as vc
from IPython.display import display
from vllm_capacity.render.sections.header import tiles, title_line
whole = vc.open("vllm-sweep")
analysis = whole[start or None : end or None].analyze(price=usd_per_hour)
display(title_line(analysis), tiles(analysis))"""


@pytest.fixture(scope="module")
def first_half(tmp_path_factory, cache: Path) -> Path:
    """A folder with a notebook that takes a range, and its report of the sweep's first half."""
    folder = tmp_path_factory.mktemp("halves")
    declared = f'{DECLARED}\nstart: str = ""\nend: str = ""'
    reporting(folder, cache)(made_notebook(folder, SHOWS, declared=declared), end=HALF)
    return folder


@pytest.fixture(scope="module")
def both_halves(first_half, tmp_path_factory, cache: Path) -> Path:
    """The report of the second half, in a folder with that of the first."""
    folder = tmp_path_factory.mktemp("both")
    shutil.copytree(first_half / "reports", folder / "reports")
    return reporting(folder, cache)(first_half / "asked.ipynb", start=HALF)


@pytest.fixture
def second_half(first_half, report):
    """A report of the second half of the sweep, beside whatever is in the folder already."""
    return partial(report, first_half / "asked.ipynb", start=HALF)


def test_tiles_say_what_changed_since_the_report_before(both_halves):
    soup = BeautifulSoup(both_halves.read_text(), "html.parser")
    changes = [each.get_text() for each in soup.select(".tile .change")]
    assert (len(changes), changes[0]) == (
        5,  # not six: without a target, one figure is unknown
        "▼ down 63\xa0% from $0.159 since the report ending 04:12:44 UTC",
    )
    page = soup.select_one(".since a")["href"]
    assert re.fullmatch(r"vllm-sweep-asked-to-2026-11-24T04-12-44Z-[0-9a-f]{8}\.html", page)


def test_report_that_is_made_again_says_the_same(both_halves, second_half, tmp_path):
    shutil.copytree(both_halves.parent, tmp_path / "reports")
    again = second_half(made_at=LATE)
    assert again.name == both_halves.name
    assert page_metadata(again) == page_metadata(both_halves)


def test_money_is_not_compared_at_another_price(first_half, second_half, tmp_path):
    shutil.copytree(first_half / "reports", tmp_path / "reports")
    soup = BeautifulSoup(second_half(usd_per_hour=1.0).read_text(), "html.parser")
    changes = [each.get_text() for each in soup.select(".tile .change")]
    assert changes[:3] == ["not compared: a different price in the report ending 04:12:44 UTC"] * 3
    assert changes[3].startswith("▲ up from 28")


def test_report_before_is_named_after_its_page_was_replaced(both_halves, second_half, tmp_path):
    shutil.copytree(both_halves.parent, tmp_path / "reports")
    (before,) = (tmp_path / "reports").glob("vllm-sweep-asked-to-2026-11-24T04-12-44Z-*.html")
    before.unlink()
    soup = BeautifulSoup(second_half().read_text(), "html.parser")
    assert (len(soup.select(".tile .change")), soup.select(".since a")) == (5, [])


@pytest.mark.parametrize(
    ("source", "error", "output"),
    [
        pytest.param(
            "raise RuntimeError('one\\ntwo')",
            InputError,
            r"asked.ipynb stopped in cell 1: RuntimeError: one$",
            id="a failing cell, in one line",
        ),
        pytest.param(
            "raise SystemExit(3)",
            InputError,
            r"asked.ipynb stopped in cell 1: SystemExit: 3$",
            id="an exit code of failure",
        ),
        pytest.param(
            "from vllm_capacity import open_window; open_window('nowhere')",
            WindowError,
            r"No window 'nowhere'",
            id="an error of ours, as ours",
        ),
        pytest.param(
            "import os; os._exit(1)",
            InputError,
            r"its Python process died",
            id="a kernel that dies",
        ),
        pytest.param("x = 1", InputError, r"shows nothing", id="a notebook that shows nothing"),
    ],
)
def test_a_failed_run_is_reported_and_writes_nothing(
    report, notebook, tmp_path, source, error, output
):
    with pytest.raises(error, match=output):
        report(notebook(source))
    assert written(tmp_path) == []


@pytest.mark.parametrize("end", ["raise SystemExit", "raise SystemExit(0)"])
def test_a_cell_may_end_the_notebook(report, notebook, end):
    assert "as far as here" in report(notebook(f"print('as far as here')\n{end}")).read_text()


def test_failed_run_leaves_the_page_before_it(report, notebook, tmp_path):
    page = report(notebook("print('good')"))
    before = page.read_bytes()
    with pytest.raises(InputError):
        report(notebook("1 / 0"))
    assert page.read_bytes() == before


def test_wrong_parameter_stops_before_anything_runs(report, notebook, tmp_path):
    with pytest.raises(InputError, match="Did you mean window"):
        report(notebook("open('ran', 'w')"), windw="x")
    assert (report.steps, (tmp_path / "reports").exists()) == ([], False)


def test_a_second_report_is_refused_while_one_is_written(report, notebook, tmp_path):
    with only_writer(tmp_path / "reports"), pytest.raises(SourceError, match="nothing was done"):
        report(notebook("1"))


@pytest.mark.parametrize(
    ("content", "output"),
    [
        pytest.param("{", "is not a Jupyter notebook", id="no JSON"),
        pytest.param("{}", "is not a Jupyter notebook", id="JSON of something else"),
        pytest.param(None, "There is no notebook", id="no file"),
    ],
)
def test_a_file_that_is_no_notebook_is_reported(report, tmp_path, content, output):
    path = tmp_path / "x.ipynb"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=output):
        report(path)


def test_page_names_the_command_that_makes_it_again(report, notebook):
    page = report(notebook("1"), window="there", price_note="it's mine").read_text()
    command = re.search(r"<footer>.*?<code>(.*?)</code>", page, re.DOTALL)[1]
    assert command == (
        "vllm-capacity report --notebook asked.ipynb --window there "
        "-p &#39;price_note=it&#39;&#34;&#39;&#34;&#39;s mine&#39;"
    )


def test_examples_name_windows_and_parameters_there_are(examples):
    assert [(examples / str(each["window"])).is_dir() for each in EXAMPLES] == [True] * 3


def test_shipped_notebook_is_thin_and_stripped():
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    code = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    outputs = [cell for cell in cells if cell.cell_type == "code" and cell.outputs]
    heading = re.match(r"# .*\?$", cells[0].source)
    odd = re.search(r"^\s*(def |class |%|!)", code, re.MULTILINE)
    assert (bool(heading), odd, outputs, all(cell.id for cell in cells)) == (True, None, [], True)
