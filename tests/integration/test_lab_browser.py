"""The notebooks in a real JupyterLab, in a real Chromium that reaches nothing but that Lab."""

import re
import shutil
from dataclasses import dataclass, field

import pytest

from tests.integration.real_lab import real_lab
from vllm_capacity.render.charts.theme import LAB_MIME
from vllm_capacity.resources import shipped

pytestmark = pytest.mark.browser

NOTEBOOKS = ("cost-report.ipynb", "02-traffic-and-latency.ipynb")
OUTSIDE = re.compile(r"^(?!(http|ws)://127\.0\.0\.1[:/]|data:|blob:)")
IS_OPEN = "() => window.jupyterapp?.shell?.currentWidget?.sessionContext"
RUN_ALL = """
() => {
  const app = window.jupyterapp;
  const run = async () => {
    await app.restored;
    await app.shell.currentWidget.sessionContext.ready;
    await app.commands.execute("notebook:run-all-cells");
    const cells = [...app.shell.currentWidget.content.model.cells].map(cell => cell.toJSON());
    return cells.filter(cell => cell.cell_type === "code");
  };
  run().then(cells => { window.ranCells = cells; });
}
"""
OUTPUTS = ".jp-OutputArea-output"
EVERY_MS = 200  # asked at every frame, as is the default, a page draws frames while cells run
DRAWN = f"""
() => [...document.querySelectorAll("{OUTPUTS} svg.marks")].map(svg => ({{
  width: svg.getBoundingClientRect().width,
  marks: svg.querySelectorAll(
    [".mark-line path", ".mark-symbol path", ".mark-area path", ".mark-rect path"].join()
  ).length,
  reason: [...svg.querySelectorAll(".mark-text.role-mark text")].map(e => e.textContent).join(),
}}))
"""
MATHS = f"() => [...document.querySelectorAll('{OUTPUTS} mjx-container')].map(e => e.innerText)"


@dataclass
class Ran:
    """A notebook as it stands in Lab after all its cells ran."""

    cells: list[dict]
    drawn: list[dict]
    maths: list[str]
    messages: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)

    def outputs(self, mime: str) -> list[str]:
        """The ids of the cells that put out something of this type."""
        return [c["id"] for c in self.cells for o in c["outputs"] if mime in o.get("data", {})]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    folder, home = tmp_path_factory.mktemp("notebooks"), tmp_path_factory.mktemp("home")
    for notebook in shipped("notebooks").glob("*.ipynb"):
        shutil.copy(notebook, folder)
    with real_lab(folder, home) as running:
        yield running


@pytest.fixture(scope="module", params=NOTEBOOKS)
def ran(lab, chromium, request) -> Ran:
    context = chromium.new_context(viewport={"width": 1400, "height": 1000})
    page, found, asked = context.new_page(), Ran([], [], []), []
    page.on("console", lambda message: found.messages.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: found.messages.append(f"error: {error}"))
    page.on("request", lambda request: asked.append(request.url))
    context.route(OUTSIDE, lambda route: route.abort())
    page.goto(lab.address(request.param))
    page.wait_for_function(IS_OPEN, timeout=120_000, polling=EVERY_MS)
    page.evaluate(RUN_ALL)
    page.wait_for_function("() => window.ranCells", timeout=240_000, polling=EVERY_MS)
    found.cells = page.evaluate("() => window.ranCells")
    charts = len(found.outputs(LAB_MIME))
    drawn = f"() => document.querySelectorAll('{OUTPUTS} svg.marks').length >= {charts}"
    page.wait_for_function(drawn, timeout=60_000, polling=EVERY_MS)
    page.wait_for_timeout(1000)  # what Lab typesets, it typesets after drawing
    found.drawn, found.maths = page.evaluate(DRAWN), page.evaluate(MATHS)
    context.close()
    found.outside = [url for url in asked if OUTSIDE.match(url)]
    return found


def test_every_cell_ran_without_an_error(ran):
    errors = [o["evalue"] for c in ran.cells for o in c["outputs"] if o["output_type"] == "error"]
    assert (errors, [c["id"] for c in ran.cells if c["execution_count"] is None]) == ([], [])


def test_every_chart_has_marks_or_a_reason(ran):
    charts = ran.outputs(LAB_MIME)
    # A chart that cannot be drawn says why, in a sentence.
    result = [svg for svg in ran.drawn if svg["marks"] or len(svg["reason"].split()) > 5]
    empty = [svg for svg in ran.drawn if svg not in result or svg["width"] <= 300]
    assert charts
    assert (len(ran.drawn), empty) == (len(charts), [])


def test_nothing_was_asked_of_the_network(ran):
    assert ran.outside == []


def test_jupyterlab_shows_no_errors(ran):
    assert [
        message for message in ran.messages if not message.startswith(("debug", "info", "log"))
    ] == []


def test_a_dollar_sign_is_not_rendered_as_a_formula(ran):
    assert ran.maths == []


def test_nothing_went_to_the_notebooks_errors_stream(ran):
    streams = [o for c in ran.cells for o in c["outputs"] if o["output_type"] == "stream"]
    assert [stream["text"] for stream in streams if stream["name"] == "stderr"] == []
