"""Whole report runs: real notebooks, real kernels, the committed windows."""

import re
import shutil
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import nbformat
import pytest
from bs4 import BeautifulSoup

from vllm_capacity.errors import InputError, SourceError, WindowError
from vllm_capacity.render.report.files import only_writer
from vllm_capacity.render.report.index import report_metadata
from vllm_capacity.render.report.write import EXAMPLES, Order, write_report
from vllm_capacity.resources import shipped

PYTHON = {"kernelspec": {"name": "python3", "language": "python", "display_name": "Python 3"}}
NOTEBOOK = shipped("notebooks/cost-report.ipynb")
EARLY, LATE = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 2, tzinfo=UTC)


@dataclass
class Runs:
    """Runs of notebooks into one folder; `steps` is the progress that the newest one told."""

    out: Path
    cache: Path
    steps: list[tuple[int, int]] = field(default_factory=list)

    def __call__(self, notebook: Path, *, made_at: datetime = EARLY, **parameters: object) -> Path:
        self.steps.clear()
        return write_report(
            Order(notebook=notebook, parameters=parameters, out=self.out),
            made_at=made_at,
            cache=self.cache,
            progress=lambda done, total: self.steps.append((done, total)),
        )


def notebook_in(folder: Path, *sources: str, more: str = "") -> Path:
    """A notebook of these cells after its parameters."""
    parameters = nbformat.v4.new_code_cell(
        'window: str = "here"\nusd_per_hour: "Optional[float]" = 0.5\nprice_note: str = "mine"'
        + more,
        metadata={"tags": ["parameters"]},
    )
    cells = [parameters, *(nbformat.v4.new_code_cell(source) for source in sources)]
    path = folder / "asked.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=PYTHON), path)
    return path


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def report(tmp_path: Path, cache: Path) -> Runs:
    return Runs(tmp_path / "reports", cache)


@pytest.fixture
def notebook(tmp_path: Path):
    return partial(notebook_in, tmp_path)


def written(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "reports").glob("[!.]*"))


@pytest.fixture(scope="module")
def twice(tmp_path_factory, cache):
    """The page of the shipped notebook, made early and made late, and what the first one says."""
    report = Runs(tmp_path_factory.mktemp("twice"), cache)
    page = report(NOTEBOOK, made_at=EARLY)
    early, said = page.read_text(), report_metadata(page)
    return early, report(NOTEBOOK, made_at=LATE).read_text(), said


def test_two_reports_of_a_window_differ_in_one_line(twice):
    first, second = (page.splitlines() for page in twice[:2])
    differing = [(a, b) for a, b in zip(first, second, strict=True) if a != b]
    assert [re.sub(r"[\d:-]+", "", a) for a, _ in differing] == [
        re.sub(r"[\d:-]+", "", b) for _, b in differing
    ]
    assert len(differing) == 1


def test_page_says_what_the_answer_says(twice):
    tiles = {tile["figure"]: (tile["value"], tile["is_known"]) for tile in twice[2]["tiles"]}
    assert tiles == {
        "usd_per_request": ("$0.0171", True),
        "usd_per_million_output_tokens": ("$0.154", True),
        "tokens_per_usd": ("6,500,000", True),
        "utilisation": ("61\xa0%", True),
        "headroom_ratio": ("39\xa0%", True),
        "ttft_attainment": ("54\xa0%", True),
    }


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
SHOWS = """from vllm_capacity import study, tiles, title_line
from IPython.display import display
asked = study("vllm-sweep", start=start, end=end, usd_per_hour=usd_per_hour)
display(title_line(asked), tiles(asked))"""


@pytest.fixture(scope="module")
def reported(tmp_path_factory, cache):
    """A notebook's folder with reports of both halves of the sweep; the second page's name."""
    folder = tmp_path_factory.mktemp("halves")
    path = notebook_in(folder, SHOWS, more='\nstart: str = ""\nend: str = ""')
    report = Runs(folder / "reports", cache)
    report(path, end=HALF)
    return folder, report(path, start=HALF).name


@pytest.fixture
def halves(reported, report, tmp_path):
    """A copy of both, in which the second half can be run again; the page there is of it."""
    folder, name = reported
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    return partial(report, tmp_path / "asked.ipynb", start=HALF), tmp_path / "reports" / name


def changes(page: Path) -> list[str]:
    soup = BeautifulSoup(page.read_text(), "html.parser")
    return [each.get_text() for each in soup.select(".tile .change")]


def before(page: Path) -> list[str]:
    """The page that changes are counted from, where it is named."""
    soup = BeautifulSoup(page.read_text(), "html.parser")
    return [each["href"] for each in soup.select(".since a")]


def test_tiles_say_what_changed_since_the_report_before(halves):
    _, page = halves
    told = changes(page)
    assert (len(told), told[0]) == (
        5,  # no target was given, so a sixth figure is not known
        "▼ down 63\xa0% from $0.159 since the report to 04:12:44 UTC",
    )
    [named] = before(page)
    assert re.fullmatch(r"vllm-sweep-asked-to-2026-11-24T04-12-44Z-[0-9a-f]{8}\.html", named)


def test_report_that_is_made_again_says_the_same(halves):
    again, page = halves
    first = report_metadata(page)
    assert report_metadata(again(made_at=LATE)) == first


def test_money_is_not_compared_at_another_price(halves):
    again, _ = halves
    told = changes(again(usd_per_hour=1.0))
    assert told[:3] == ["not compared: another price in the report to 04:12:44 UTC"] * 3
    assert told[3].startswith("▲ up from 28")


def test_report_before_is_named_after_its_page_was_replaced(halves):
    again, page = halves
    page.with_name(before(page)[0]).unlink()
    made = again()
    assert (len(changes(made)), before(made)) == (5, [])


@pytest.mark.parametrize(
    ("source", "error", "said"),
    [
        pytest.param(
            "raise RuntimeError('one\\ntwo')",
            InputError,
            r"asked.ipynb stopped in cell 1: RuntimeError: one$",
            id="a failing cell, in one line",
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
def test_failed_run_is_told_and_writes_nothing(report, notebook, tmp_path, source, error, said):
    with pytest.raises(error, match=said):
        report(notebook(source))
    assert written(tmp_path) == []


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


def test_report_being_written_turns_another_away(report, notebook, tmp_path):
    with only_writer(tmp_path / "reports"), pytest.raises(SourceError, match="nothing was done"):
        report(notebook("1"))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        pytest.param("{", "is not a Jupyter notebook", id="no JSON"),
        pytest.param("{}", "is not a Jupyter notebook", id="JSON of something else"),
        pytest.param(None, "There is no notebook", id="no file"),
    ],
)
def test_what_is_no_notebook_is_told(report, tmp_path, content, said):
    path = tmp_path / "x.ipynb"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=said):
        report(path)


def test_page_names_the_command_that_makes_it_again(report, notebook):
    page = report(notebook("1"), window="there", price_note="it's mine").read_text()
    command = re.search(r"<footer>.*?<code>(.*?)</code>", page, re.DOTALL)[1]
    assert command == (
        "vllm-capacity report --notebook asked.ipynb --window there "
        "-p &#39;price_note=it&#39;&#34;&#39;&#34;&#39;s mine&#39;"
    )


def test_examples_name_windows_and_parameters_there_are(examples):
    assert [(examples / str(each["window"])).is_dir() for each in EXAMPLES] == [True, True]


def test_shipped_notebook_is_thin_and_stripped():
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    code = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    outputs = [cell for cell in cells if cell.cell_type == "code" and cell.outputs]
    heading = re.match(r"# .*\?$", cells[0].source)
    odd = re.search(r"^\s*(def |class |%|!)", code, re.MULTILINE)
    assert (bool(heading), odd, outputs, all(cell.id for cell in cells)) == (True, None, [], True)
