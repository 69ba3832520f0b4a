"""Our notebooks: conventions, strict nbval on what is committed, and the figures they show.

The committed outputs are compared with a fresh run by nbval; so the figures asserted here are read
from them. `python tests/renew_notebooks.py` writes them anew.
"""

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import nbformat
import polars as pl
import pytest
from nbformat import NotebookNode
from renew_notebooks import STRIPPED

import vllm_capacity as vc
from vllm_capacity.render import quick_jsonschema
from vllm_capacity.render.report import ELEMENT_MIME
from vllm_capacity.render.report.run import declared_parameters
from vllm_capacity.render.report.write import ReportOrder, write_report

TESTS = Path(__file__).resolve().parent
NOTEBOOKS = TESTS.parent / "notebooks"
EVERY = sorted(NOTEBOOKS.glob("*.ipynb"))
OURS = [path for path in EVERY if path.name not in STRIPPED]
TRUTH = TESTS / "truth"
CHART_TAG = "nbval-ignore-output"
PARAMETER = re.compile(r'[a-z_]+: (int|float|str|bool|"Optional\[\w+\]") = [^=#]+  # [^=]+')
DRAWS = ("a.charts.", "b.charts.", "vc.charts.", "alt.", "base = alt.")
IMPORTS = {"vllm_capacity", "altair", "numpy", "polars"}
BY_HAND = re.compile("by-hand-.+")
MAX_BY_HAND_LINES = 12
ROW = "A100-80GB-PCIe RunPod secure, on-demand 2025"
MAX_BYTES = 300_000
MAX_LINES = 30

OF_WINDOWS = [path for path in OURS if "window:" in path.read_text(encoding="utf-8")]

every_notebook = pytest.mark.parametrize("path", EVERY, ids=lambda path: path.stem)
our_notebook = pytest.mark.parametrize("path", OURS, ids=lambda path: path.stem)


def cells(path: Path) -> list:
    return nbformat.read(path, as_version=4).cells


def code(path: Path) -> list:
    return [cell for cell in cells(path) if cell.cell_type == "code"]


def pieces(stem: str) -> dict[str, list]:
    """What the committed cells of a notebook show, by cell id: rows of tables, else text."""
    (path,) = NOTEBOOKS.glob(f"{stem}*.ipynb")
    shown = {}
    for cell in code(path):
        for output in cell.outputs:
            piece = output.data.get(ELEMENT_MIME, {})
            rows = piece.get("content", {}).get("rows")
            shown[cell.id] = output.data["text/plain"] if rows is None else rows
    return shown


def is_question(path: Path) -> bool:
    first, *others = cells(path)
    headings = [
        line
        for cell in (first, *others)
        if cell.cell_type == "markdown"
        for line in cell.source.splitlines()
        if line.startswith("# ")
    ]
    return first.cell_type == "markdown" and headings == [first.source.splitlines()[0]]


@every_notebook
def test_begins_with_its_only_first_heading(path):
    assert is_question(path)


@every_notebook
def test_parameters_come_first_one_a_line_typed_and_explained(path):
    first = code(path)[0]
    odd = [line for line in first.source.splitlines() if not PARAMETER.fullmatch(line)]
    assert (first.metadata.get("tags"), odd) == (["parameters"], [])


@every_notebook
def test_every_parameter_can_be_set_from_outside(path):
    names = [parameter.name for parameter in declared_parameters(path) if parameter.help]
    assert names == [line.partition(":")[0] for line in code(path)[0].source.splitlines()]


@every_notebook
def test_imports_stand_in_one_cell_and_nothing_is_defined(path):
    found = [
        (number, type(node).__name__)
        for number, cell in enumerate(code(path))
        for node in ast.walk(ast.parse(cell.source))
        if isinstance(
            node,
            ast.Import | ast.ImportFrom | ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef,
        )
    ]
    assert {kind for number, kind in found if number == 1} <= {"Import", "ImportFrom"}
    assert [each for each in found if each[0] != 1] == []


@every_notebook
def test_imports_are_of_the_package_itself_and_of_what_draws_and_counts(path):
    (imports,) = (ast.parse(cell.source) for cell in code(path) if cell.id == "imports")
    names = {
        name
        for node in imports.body
        for name in (
            [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module]
        )
    }
    assert names <= IMPORTS


@pytest.mark.parametrize("stem", ["02", "03", "04", "05"])
def test_headline_figures_are_made_by_hand_and_held_to(stem):
    (path,) = NOTEBOOKS.glob(f"{stem}*.ipynb")
    by_hand = [cell.source for cell in code(path) if BY_HAND.fullmatch(cell.id)]
    assert by_hand
    assert all(re.search(r"^assert ", source, re.MULTILINE) for source in by_hand)
    assert max(len(source.splitlines()) for source in by_hand) <= MAX_BY_HAND_LINES


@every_notebook
def test_no_magic_no_shell_no_path(path):
    odd = re.compile(r"^\s*[%!]|\bget_ipython\b|\bos\.|\bPath\(|[\"'](?:\.\.?/|/|~)", re.MULTILINE)
    assert [cell.id for cell in code(path) if odd.search(cell.source)] == []


@every_notebook
def test_cells_are_a_few_lines_each_under_a_name_of_their_own(path):
    long = [cell.id for cell in code(path) if len(cell.source.splitlines()) > MAX_LINES]
    names = [cell.id for cell in cells(path)]
    assert (long, len(set(names)), [n for n in names if not re.fullmatch(r"[a-z0-9-]+", n)]) == (
        [],
        len(names),
        [],
    )


@every_notebook
def test_nothing_of_the_run_is_kept_but_what_was_put_out(path):
    notebook = nbformat.read(path, as_version=4)
    kept = {name for cell in notebook.cells for name in cell.metadata}
    language = notebook.metadata["language_info"]
    assert (set(notebook.metadata), notebook.metadata.kernelspec.name, language) == (
        {"kernelspec", "language_info"},
        "python3",
        {"name": "python"},
    )
    assert kept <= {"tags"}


@our_notebook
def test_outputs_are_small_and_without_pictures(path):
    mimes = {mime for cell in code(path) for output in cell.outputs for mime in output.data}
    assert mimes <= {ELEMENT_MIME, "text/html", "text/plain"}
    assert path.stat().st_size < MAX_BYTES


@our_notebook
def test_every_cell_that_shows_something_is_compared_but_charts(path):
    numbers = [cell.execution_count for cell in code(path)]
    silent = [cell.id for cell in code(path) if not cell.outputs]
    ignored = [cell for cell in code(path) if CHART_TAG in cell.metadata.get("tags", ())]
    other = [cell.id for cell in ignored if not cell.source.startswith(DRAWS)]
    assert (numbers, silent[:2], other) == (
        list(range(1, len(numbers) + 1)),
        ["parameters", "imports"],
        [],
    )


@our_notebook
def test_charts_state_what_to_look_for_before_and_what_was_found_after(path):
    kinds = "".join(
        "p"
        if cell.cell_type == "markdown"
        else "c"
        if CHART_TAG in cell.metadata.get("tags", ())
        else "o"
        for cell in cells(path)
    )
    assert re.search(r"(?<![pc])c|c$", kinds) is None


@our_notebook
def test_last_cell_is_the_verdict_in_one_sentence(path):
    last = cells(path)[-1]
    (output,) = last.outputs
    sentence = output.data["text/plain"]
    assert (last.id, "\n" in sentence, sentence[-1]) == ("verdict-sentence", False, ".")


def in_one_kernel(notebooks: Iterable[tuple[str, NotebookNode]], folder: Path) -> Path:
    """Notebooks by name as one, for one kernel: most of a run is its start and what it imports.

    The names of each are forgotten before the next; what it changed in a module would stay.
    """
    python = {"name": "python3", "display_name": "Python 3"}
    joined = nbformat.v4.new_notebook(metadata={"kernelspec": python})
    for name, notebook in notebooks:
        own = [NotebookNode(cell, id=f"{name}-{cell.id}") for cell in notebook.cells]
        joined.cells += [nbformat.v4.new_code_cell("%reset -f", id=name), *own]
    path = folder / "joined.ipynb"
    nbformat.write(joined, path)
    return path


def nbval(notebook: Path) -> subprocess.CompletedProcess:
    """Strict nbval, in a process of its own: its plugin must not see the rest of the suite."""
    command = [sys.executable, "-m", "pytest", "-o", "addopts=", "--nbval"]
    command += ["-p", quick_jsonschema.__name__]  # before nbval, which imports jsonschema
    command += ["--nbval-sanitize-with", str(TESTS / "nbval_sanitize.cfg"), "--nbval-current-env"]
    command += ["-p", "no:xdist", "-p", "no:cacheprovider", "-q", "--color=no", "--tb=short"]
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")}
    return subprocess.run(
        [*command, str(notebook)],
        env=inherited,
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
        check=False,
    )


def altered_notebooks() -> list[tuple[str, NotebookNode]]:
    """The first cells of notebook 01, its table once as it is and once altered in each form.

    Before them the same cells as they are; after them a name that only an earlier notebook has.
    """
    notebook = nbformat.read(NOTEBOOKS / "01-data-quality.ipynb", as_version=4)
    upto = [cell.id for cell in notebook.cells].index("scrape-table")
    table = notebook.cells[upto]
    altered = []
    for number, mime in enumerate(("text/plain", "text/html", ELEMENT_MIME)):
        cell = nbformat.from_dict({**table, "id": f"altered-{number}"})
        (output,) = cell.outputs
        text = repr(output.data[mime])
        assert "183" in text
        output.data = {**output.data, mime: ast.literal_eval(text.replace("183", "184"))}
        altered.append(cell)
    whole = nbformat.from_dict({**notebook, "cells": notebook.cells[: upto + 1]})
    notebook.cells = [*whole.cells, *altered]
    nameless = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("a", id="nameless")])
    return [("as-it-is", whole), ("altered", notebook), ("nameless", nameless)]


COMMITTED = sum(len(code(path)) + 1 for path in OURS)  # with the one before each, for one kernel


@dataclass(frozen=True)
class Compared:
    """What nbval said of the cells of all our notebooks, and of some whose outputs are altered."""

    cells: int
    output: str
    passed: int
    failed: list[int]


@pytest.fixture(scope="module")
def compared(tmp_path_factory) -> Compared:
    """Notebooks that keep any outputs; that the others run, tests of the report see."""
    read = [(path.stem, nbformat.read(path, as_version=4)) for path in OURS]
    joined = in_one_kernel([*read, *altered_notebooks()], tmp_path_factory.mktemp("joined"))
    ran = nbval(joined)
    assert ran.returncode == 1, ran.stdout[-6000:] + ran.stderr[-2000:]
    failed = re.findall(r"^FAILED .*::Cell (\d+)", ran.stdout, re.MULTILINE)
    passed = int(re.search(r"(\d+) passed", ran.stdout)[1])
    return Compared(len(code(joined)), ran.stdout, passed, [*map(int, failed)])


def test_committed_outputs_are_those_of_a_fresh_run(compared):
    renew = "Renew with: python tests/renew_notebooks.py"
    differ = [number for number in compared.failed if number < COMMITTED]
    every = compared.passed + len(compared.failed) == compared.cells
    assert (differ, every) == ([], True), f"{compared.output[:6000]}\n{renew}"


def test_an_altered_output_is_caught_in_whatever_form(compared):
    beyond = [number - COMMITTED for number in compared.failed if number >= COMMITTED]
    assert beyond == [10, 11, 12, 14], compared.output[-3000:]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize("path", OF_WINDOWS, ids=lambda path: path.stem)
def test_notebook_makes_a_page_of_any_other_window(path, tmp_path, cache):
    page = page_of_two_replicas(path, tmp_path, cache, price=ROW)
    assert page.name == f"vllm-two-replicas-{path.stem}.html"


def test_a_claim_is_compared_with_another_window_only_at_a_named_price(tmp_path, cache):
    (path,) = NOTEBOOKS.glob("06*.ipynb")
    with pytest.raises(vc.InputError, match="name one by price"):
        page_of_two_replicas(path, tmp_path, cache)


def page_of_two_replicas(path, out, cache, **parameters):
    declared = {parameter.name for parameter in declared_parameters(path)}
    given = {name: value for name, value in parameters.items() if name in declared}
    return write_report(
        ReportOrder(notebook=path, parameters={"window": "vllm-two-replicas", **given}, out=out),
        made_at=datetime(2026, 1, 1, tzinfo=UTC),
        cache=cache,
        progress=lambda done, total: None,
    )


def test_restart_is_shown_as_it_was():
    """The new process began when the log of the capture says so; the scraper's pause is its own."""
    events = dict(line.split() for line in (TRUTH / "restart_events.txt").read_text().splitlines())
    began = datetime.fromtimestamp(float(events["start2"]), tz=UTC)
    rows = pieces("01")["interruption-table"]
    assert [(row[4], row[5]) for row in rows] == [
        ("not scraped", "–"),
        ("scraped 38 times, no answer; the server restarted", f"{began:%-d %b %H:%M:%S}"),
    ]


def test_loss_in_the_restart_lies_within_the_bounds_shown():
    events = dict(line.split() for line in (TRUTH / "restart_events.txt").read_text().splitlines())
    client = pl.read_parquet(TRUTH / "restart_client.parquet")
    shown = pieces("01")
    last_scrape = datetime.strptime(
        f"2026 {shown['interruption-table'][1][1]}+0000", "%Y %d %b %H:%M:%S%z"
    )
    never_read = client.filter(
        (pl.col("status") == "ok")
        & (pl.col("t_end") > last_scrape.timestamp() + 1)
        & (pl.col("t_end") < float(events["exited"]))
    )["n"].sum()
    requests = shown["loss-table"][0]
    assert 0 < never_read <= int(requests[3])


def test_quantiles_shown_enclose_what_the_clients_saw():
    ok = pl.read_parquet(TRUTH / "sweep_client.parquet").filter(pl.col("status") == "ok")
    seen = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
    outside = []
    for latency, quantile, _, lower, upper, _ in pieces("02")["latency-table"]:
        if latency == "end-to-end latency (E2E)":
            truth = ok["e2e_s"].quantile(seen[quantile])
            if not in_seconds(lower) <= truth <= in_seconds(upper):
                outside.append((quantile, truth))
    assert outside == []


def in_seconds(written: str) -> float:
    value, unit = written.replace(",", "").split()
    return float(value) / {"s": 1, "ms": 1000}[unit]


def test_work_shown_is_what_the_load_generator_did():
    ok = pl.read_parquet(TRUTH / "sweep_client.parquet").filter(pl.col("status") == "ok")
    rows = {row[0]: row for row in pieces("02")["traffic-table"]}
    assert rows["finished requests"][1] == f"{ok['n'].sum():,}"
    tokens = int(rows["output tokens"][1].replace(",", ""))
    assert tokens == pytest.approx(ok["output_tokens"].sum(), rel=0.005)


def test_query_of_an_analyst_sees_the_queue_of_the_sweep(sweep):
    most = sweep.sql(
        "select max(value) as most from samples join series using (series_id) "
        "where metric = 'vllm:num_requests_waiting'"
    )["most"][0]
    assert f"{most}" in pieces("02")["own-sql"]


PUBLISHED = {
    "hours": "3.15",
    "successful requests": "5,138",
    "requests per hour": "1,631",
    "cost per request": "0.001005",
}


def test_worked_example_says_what_was_published():
    rows = pieces("06")["claim-table"]
    assert {row[0]: row[2] for row in rows if row[4] == "yes"} == PUBLISHED


def test_worked_example_from_a_renamed_copy_of_its_window(examples, tmp_path):
    copy = shutil.copytree(examples / "a100-gpt-oss-20b", tmp_path / "another-name")
    assert figures_of(vc.open(copy).analyze(price=1.64)) == PUBLISHED


def test_worked_example_from_its_two_halves_added():
    whole = vc.open("a100-gpt-oss-20b")
    start, end = whole.time_range.start, whole.time_range.end
    middle = start + (end - start) / 2
    halves = [half.analyze(price=1.64) for half in (whole[:middle], whole[middle:])]
    assert figures_of(*halves) == PUBLISHED


def figures_of(*parts) -> dict[str, str]:
    """The four published figures of these parts of one run, added, to the published digits."""
    answers = [part.answer for part in parts]
    hours = sum(answer.window.hours for answer in answers)
    requests = sum(answer.requests.successful for answer in answers)
    bill = sum(answer.cost.allocation_usd.mid for answer in answers)
    return {
        "hours": f"{hours:.2f}",
        "successful requests": f"{requests:,}",
        "requests per hour": f"{requests / hours:,.0f}",
        "cost per request": f"{bill / requests:.6f}",
    }


def test_worked_example_is_repriced_and_called_idle():
    shown = pieces("06")
    used = {row[0]: row[1].replace("\xa0", " ") for row in shown["gpu-use-table"]}
    assert [row[0] + " " + row[4] + " " + row[5] for row in shown["price-table"]] == [
        "$1.64 0.001005 the same",
        "$2.21 0.001355 +35\xa0%",
    ]
    assert "= $1.64 per GPU-hour, which is the price of RunPod secure" in shown["implied-price"]
    assert (used["utilization"], used["requests per second, full"]) == ("1.7 %", "26.7")
    assert "58.8 times less" in shown["verdict-sentence"]


def test_worked_example_says_everywhere_that_it_is_simulated():
    shown = pieces("06")
    assert "simulat" in shown["verdict-sentence"]
    assert "kind: simulated, not measured" in shown["provenance-facts"]


def test_the_saturation_shown_is_what_the_sweep_reached():
    """297 output tokens/s at 27 running requests, by the load generator's log of its full steps."""
    rows = {row[0]: row for row in pieces("03")["capacity-table"]}
    capacity, running = rows["capacity"], rows["reached at"]
    assert number_of(capacity[1]) == pytest.approx(297, rel=0.05)
    assert number_of(running[1]) == pytest.approx(27, rel=0.05)
    assert interval_holds(capacity[2], 297)
    assert number_of(rows["throughput within targets"][1]) < number_of(capacity[1])


def test_the_sweeps_capacity_can_be_extrapolated_from_its_lighter_half():
    light, _ = pieces("03")["extrapolation-table"]
    assert number_of(light[2]) < 27
    assert interval_holds(light[4], 297)


def test_only_the_second_of_two_replicas_is_limited_by_its_cache():
    limited = {row[0] for row in pieces("03")["several-table"] if row[1] == "KV-cache-bound"}
    assert limited == {"r1/0"}


def number_of(written: str) -> float:
    return float(written.replace(",", "").replace("$", "").split()[0])


def interval_holds(written: str, truth: float) -> bool:
    low, high = (number_of(end) for end in re.split(r"\sto\s", written))
    return low <= truth <= high


def test_bill_shown_is_hours_times_price_and_its_split_adds_up_to_it(sweep):
    rows = {row[0]: number_of(row[1]) for row in pieces("04")["cost-table"] if row[1][0] == "$"}
    tokens = vc.open("vllm-sweep").analyze().answer.tokens
    bill = rows["bill, idle included"]
    split = (
        rows["cost per million input tokens, bill split"] * tokens.prompt
        + rows["cost per million output tokens, bill split"] * tokens.generation
    ) / 1e6
    assert bill == pytest.approx(sweep.extent.hours * 0.10, rel=0.005)
    assert split == pytest.approx(bill, rel=0.01)


def test_break_even_shown_costs_the_same_either_way():
    rows = {row[0]: number_of(row[1]) for row in pieces("04")["break-even-table"]}
    per_day = rows["requests per day at break-even"]
    assert per_day / 1000 * rows["1,000 requests, from the API"] == pytest.approx(2.4, rel=0.01)


def test_other_prices_shown_are_in_proportion_to_the_hour():
    costs = [number_of(row[3]) / number_of(row[2]) for row in pieces("04")["listed-table"]]
    assert costs == pytest.approx([costs[0]] * len(costs), rel=0.01)


def test_replicas_shown_carry_the_demand_with_room_and_a_spare():
    shown = pieces("05")
    rows = {row[0]: row for row in shown["sizing-table"]}
    demand = number_of(rows["demand, as output"][1])
    capacity = number_of(rows["capacity of a replica"][1])
    replicas = number_of(rows["replicas, spares included"][1])
    assert (replicas - 2) * capacity * 0.8 < demand <= (replicas - 1) * capacity * 0.8
    assert number_of(rows["cost per month"][1]) == pytest.approx(replicas * 730.5 * 0.1, rel=0.01)


def test_runway_shown_begins_where_the_sizing_says():
    shown = pieces("05")
    needed = number_of(
        {row[0]: row for row in shown["sizing-table"]}["replicas, spares included"][1]
    )
    enough = [number_of(row[0]) for row in shown["runway-table"] if number_of(row[2]) >= 1]
    assert enough[0] == needed


def test_short_window_is_not_forecast():
    assert pieces("05")["forecast-table"] == []
    assert "the data span 0.5 h, but at least 24 h are needed" in pieces("05")["verdict-sentence"]


def test_gpus_shown_are_best_first_and_rejected_ones_say_why():
    shown = pieces("05")
    per_dollar = [number_of(row[2]) for row in shown["gpu-table"]]
    reasons = [row[0] for row in shown["rejected-table"]]
    assert per_dollar == sorted(per_dollar, reverse=True)
    assert all(reasons)
    assert any("no kernel before Ampere" in why for why in reasons)


def test_verdicts_of_the_tuning_rest_on_cases_that_were_there():
    """Assertions of the notebooks over no rows would hold: here are the rows."""
    shown = pieces("07")["verdict-sentence"], pieces("08")["verdict-sentence"]
    assert "For 5 of 6 constants" in shown[0]
    assert "the median error of the expected peak is 5.3 %" in shown[0]
    assert "off by 4.6 % (median; 1.2 % where both sides" in shown[1]
