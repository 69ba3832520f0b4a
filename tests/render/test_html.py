import base64
import hashlib
import json
import re

import pytest
from answer_by_hand import ANSWER
from bs4 import BeautifulSoup

from vllm_capacity.render import charts
from vllm_capacity.render.charts.base import nothing
from vllm_capacity.render.report import page as html
from vllm_capacity.render.report.contract import CHART_MIME, PIECE_MIME
from vllm_capacity.render.sections.elements import Piece, table

ROLES = {"table", "rowgroup", "row", "columnheader", "cell"}
HOSTILE = "</script><script>alert(1)</script><!-- " + "x" * 300


def code(*bundles):
    outputs = [{"output_type": "display_data", "data": data, "metadata": {}} for data in bundles]
    return {"cell_type": "code", "source": "secret_code()", "outputs": outputs}


def markdown(source):
    return {"cell_type": "markdown", "source": source}


def piece(made: Piece):
    return code(made._repr_mimebundle_())


def page(*cells):
    return html.page_html(
        title="What?",
        sections=html.sections_of(cells),
        runtime="window.vegaEmbed = 1;",
        metadata={"title": HOSTILE},
        command="vllm-capacity report",
        made="Made now.",
    )


def hostile_chart(name):
    import altair as alt
    import polars as pl

    frame = pl.DataFrame({"x": [1.0, 2.0], "model": [name, name]})
    chart = alt.Chart(frame).mark_point().encode(x="x:Q", color="model:N")
    return chart.properties(width=300, title=name).to_dict()


EVERYWHERE = (
    pytest.param(piece(table([HOSTILE], [[HOSTILE]], caption=HOSTILE)), id="a table"),
    pytest.param(
        piece(
            Piece(
                "verdict",
                {"sentences": [HOSTILE], "quality": {"word": "good", "shape": "●", "why": HOSTILE}},
                "",
            )
        ),
        id="the verdict",
    ),
    pytest.param(
        piece(
            Piece(
                "tiles",
                {
                    "tiles": [
                        {
                            **dict.fromkeys(
                                ("label", "figure", "value", "unit", "between", "basis", "reason"),
                                HOSTILE,
                            ),
                            "is_known": True,
                            "change": dict.fromkeys(("arrow", "words", "joins", "report"), HOSTILE),
                        }
                    ],
                    "since": dict.fromkeys(("page", "window", "said"), HOSTILE),
                },
                "",
            )
        ),
        id="tiles with their changes",
    ),
    pytest.param(
        piece(Piece("facts", {"facts": [{"name": HOSTILE, "value": HOSTILE}]}, "")), id="facts"
    ),
    pytest.param(code({CHART_MIME: hostile_chart(HOSTILE)}), id="a chart"),
    pytest.param(
        code({CHART_MIME: nothing(question="?", reason=HOSTILE, definition="d").to_dict()}),
        id="a chart without data",
    ),
    pytest.param(code({"text/markdown": f"**{HOSTILE}**"}), id="a Markdown output"),
    pytest.param(code({"text/html": f"<table><td>{HOSTILE}</td></table>"}), id="an HTML output"),
    pytest.param(code({"text/plain": HOSTILE}), id="a text output"),
    pytest.param(markdown(f"## A heading {HOSTILE}\n\n{HOSTILE}"), id="prose"),
)


@pytest.mark.parametrize("cell", EVERYWHERE)
def test_name_that_is_a_script_stays_text(cell):
    soup = BeautifulSoup(page(cell), "html.parser")
    kinds = [script.get("type") for script in soup("script")]
    assert kinds == ["application/json", "application/json", None, None]


def test_policy_names_the_page_s_own_scripts_and_no_other():
    soup = BeautifulSoup(page(markdown("x")), "html.parser")
    policy = soup.find("meta", {"http-equiv": "Content-Security-Policy"})["content"]
    hashes = {
        base64.b64encode(hashlib.sha256(script.string.encode()).digest()).decode()
        for script in soup("script")
        if not script.get("type")
    }
    allowed = re.search(r"script-src ([^;]*);", policy)[1].split()
    assert (set(allowed), "default-src 'none'" in policy) == (
        {f"'sha256-{each}'" for each in hashes},
        True,
    )


def test_policy_is_the_first_thing_in_the_head():
    head = BeautifulSoup(page(markdown("x")), "html.parser").head
    metas = [tag.get("http-equiv") or tag.get("charset") for tag in head.find_all(True)[:2]]
    assert metas == ["utf-8", "Content-Security-Policy"]


def test_page_shows_no_code():
    assert "secret_code" not in page(code({"text/plain": "an output"}))


def test_sections_are_cut_at_the_questions():
    sections = html.sections_of(
        [markdown("# Title\n\nfirst"), markdown("## How so?\nprose\n## And then?"), code()]
    )
    assert [(s.anchor, s.heading, len(s.blocks)) for s in sections] == [
        ("", "", 1),
        ("how-so", "How so?", 1),
        ("and-then", "And then?", 0),
    ]


@pytest.mark.parametrize(
    ("output", "kind"),
    [
        pytest.param({"output_type": "stream", "name": "stdout", "text": "said"}, "text", id="out"),
        pytest.param({"output_type": "stream", "name": "stderr", "text": "w"}, None, id="warnings"),
        pytest.param({"output_type": "stream", "name": "stdout", "text": " \n"}, None, id="blank"),
        pytest.param({"output_type": "display_data", "data": {}}, None, id="nothing shown"),
        pytest.param(
            {"output_type": "display_data", "data": {PIECE_MIME: {}, "text/html": "x"}},
            "piece",
            id="a piece of ours before its HTML",
        ),
        pytest.param(
            {"output_type": "execute_result", "data": {"text/html": "<p>", "text/plain": "x"}},
            "table",
            id="HTML before text",
        ),
    ],
)
def test_output_is_shown_by_its_richest_safe_form(output, kind):
    cell = {"cell_type": "code", "source": "", "outputs": [output]}
    kinds = [block.kind for section in html.sections_of([cell]) for block in section.blocks]
    assert kinds == ([kind] if kind else [])


def test_table_of_an_analyst_loses_its_style_and_links():
    made = page(code({"text/html": "<style>td{}</style><table><td><a href='x'>cell</a></table>"}))
    table_html = str(BeautifulSoup(made, "html.parser").select_one(".scroll table"))
    assert ("cell" in table_html, "href" in table_html, "td{}" in made) == (True, False, False)


def test_chart_crosses_with_its_words_and_its_data_once():
    spec = charts.queue(*_queue()).to_dict()
    made = page(code({CHART_MIME: spec}, {CHART_MIME: spec}))
    soup = BeautifulSoup(made, "html.parser")
    held = json.loads(soup.find("script", id="charts").string)
    assert (
        len(held["specs"]),
        set(held["data"]) == set(spec["datasets"]),
        soup.select_one("figure h3").string,
        {each["width"] for each in held["specs"]},
    ) == (2, True, "Did requests queue?", {"container"})


def test_still_has_no_hover_layer_and_ids_of_its_own():
    spec = charts.queue(*_queue()).to_dict()
    soup = BeautifulSoup(page(code({CHART_MIME: spec}, {CHART_MIME: spec})), "html.parser")
    ids = [tag["id"] for tag in soup.select(".still [id]")]
    hovering = soup.select(".still .hover_points_marks, .still [class*=hover]")
    assert (len(ids), hovering) == (len(set(ids)), [])


def test_chart_without_data_shows_its_reason_in_place():
    spec = nothing(question="Why?", reason="Nothing ran.", definition="queue").to_dict()
    soup = BeautifulSoup(page(code({CHART_MIME: spec})), "html.parser")
    assert (soup.select_one(".nothing").string, soup.select(".live, .still")) == (
        "Nothing ran.",
        [],
    )


@pytest.mark.parametrize(
    ("rows", "box", "said"),
    [
        pytest.param(20, ["scroll"], [], id="short: shown whole"),
        pytest.param(
            21,
            ["scroll", "tall"],
            ["21 rows: scroll the table for all of them."],
            id="long: in a box that says so",
        ),
    ],
)
def test_long_table_says_that_it_scrolls(rows, box, said):
    made = page(piece(table(["what", "value"], [["a", "1"]] * rows)))
    soup = BeautifulSoup(made, "html.parser")
    notes = [each.string for each in soup.select(".more")]
    assert (soup.select_one(".scroll")["class"], notes) == (box, said)


@pytest.mark.parametrize(
    ("numeric", "roles"),
    [
        pytest.param(
            (1,), {"table", "rowgroup", "row", "columnheader", "cell"}, id="ends in words"
        ),
        pytest.param((1, 2), set(), id="ends in numbers"),
    ],
)
def test_table_that_a_phone_lays_out_row_by_row_keeps_its_roles_and_heads(numeric, roles):
    made = table(["what", "value", "why"], [["a", "1", "so"]], numeric=numeric)
    found = BeautifulSoup(page(piece(made)), "html.parser").select_one("table")
    heads = [cell.get("data-head") for cell in found.select("td")]
    assert (
        {each["role"] for each in [found, *found.select("[role]")] if each.get("role")},
        heads,
    ) == (
        roles,
        ["what", "value", "why"] if roles else [None] * 3,
    )


def test_fold_that_is_not_printed_says_so():
    notes = BeautifulSoup(
        page(code({CHART_MIME: charts.queue(*_queue()).to_dict()})), "html.parser"
    )
    assert notes.select_one(".fold.long summary").get_text() == (
        "The numbers behind it (100 rows): not printed, too many for paper"
    )


@pytest.mark.parametrize(
    ("draw", "classes"),
    [
        pytest.param(charts.saturation_curve, ["chart", "half"], id="against a load"),
        pytest.param(charts.queue, ["chart"], id="over time"),
    ],
)
def test_chart_against_a_load_takes_half_the_width(draw, classes):
    made = page(code({CHART_MIME: draw(*_queue()).to_dict()}))
    assert BeautifulSoup(made, "html.parser").select_one("figure")["class"] == classes


def test_json_cannot_end_its_script():
    text = str(html.inert_json({"a": "</script><!--&\u2028"}))
    assert (re.search(r"[<>&\u2028]", text), json.loads(text)) == (
        None,
        {"a": "</script><!--&\u2028"},
    )


def _queue():
    from answer_by_hand import STEPS

    return STEPS, ANSWER
