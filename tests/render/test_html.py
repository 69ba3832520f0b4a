import base64
import hashlib
import json
import re

import altair as alt
import polars as pl
import pytest
from answer_by_hand import STEPS
from bs4 import BeautifulSoup
from msgspec.structs import replace

from vllm_capacity.render import tables
from vllm_capacity.render.numbers import usd
from vllm_capacity.render.report import CHART_MIME, ELEMENT_MIME, HOVER, vega
from vllm_capacity.render.report import page as html
from vllm_capacity.render.report.metadata import Metadata, SummaryLine
from vllm_capacity.render.tables import Cell, Column

ROLES = {"table", "rowgroup", "row", "columnheader", "cell"}
HOSTILE = "</script><script>alert(1)</script><!-- " + "x" * 300


PIECE = {"kind": "facts", "content": {"facts": []}}


def code(*bundles):
    outputs = [{"output_type": "display_data", "data": data, "metadata": {}} for data in bundles]
    return {"cell_type": "code", "source": "secret_code()", "outputs": outputs}


def markdown(source):
    return {"cell_type": "markdown", "source": source}


def piece(kind, **content):
    return code({ELEMENT_MIME: {"kind": kind, "content": content}})


def table(heads, rows, *, numeric=(), caption=""):
    columns = [{"title": head, "numeric": i in numeric} for i, head in enumerate(heads)]
    return piece("table", columns=columns, rows=rows, caption=caption, empty="No rows.")


def chart(**notes):
    """A line with a layer for the pointer, as our charts have it."""
    base = alt.Chart(STEPS.select("start", "waiting_mean")).encode(x="start:T", y="waiting_mean:Q")
    hover = base.mark_point().properties(name=f"{HOVER}_points")
    own = {"definition": "queue", "table": None, **notes}
    return (
        alt.layer(base.mark_line(), hover)
        .properties(
            width=760,
            title=alt.TitleParams(text="Did requests queue?", subtitle="Some did"),
            usermeta={"vllm_capacity": own},
        )
        .to_dict()
    )


def page(*cells):
    return html.page_html(
        title="What?",
        sections=html.sections_of(cells),
        runtime="window.vegaEmbed = 1;",
        metadata=Metadata(SummaryLine(HOSTILE), title=HOSTILE),
        command="vllm-capacity report",
        made="Made now.",
    )


def hostile_chart(name):
    frame = pl.DataFrame({"x": [1.0, 2.0], "model": [name, name]})
    chart = alt.Chart(frame).mark_point().encode(x="x:Q", color="model:N")
    return chart.properties(width=300, title=name).to_dict()


EVERYWHERE = (
    pytest.param(table([HOSTILE], [[HOSTILE]], caption=HOSTILE), id="a table"),
    pytest.param(
        piece(
            "verdict",
            sentences=[HOSTILE],
            quality={"word": "good", "shape": "●", "why": HOSTILE},
        ),
        id="the verdict",
    ),
    pytest.param(
        piece(
            "tiles",
            tiles=[
                {
                    **dict.fromkeys(
                        ("label", "figure", "value", "unit", "between", "basis", "reason"), HOSTILE
                    ),
                    "is_known": True,
                    "change": dict.fromkeys(("arrow", "words", "joins", "report"), HOSTILE),
                }
            ],
            since=dict.fromkeys(("page", "window", "differences"), HOSTILE),
        ),
        id="tiles with their changes",
    ),
    pytest.param(piece("facts", facts=[{"name": HOSTILE, "value": HOSTILE}]), id="facts"),
    pytest.param(
        piece(
            "definitions",
            definitions=[
                {
                    **dict.fromkeys(("figure", "title", "text"), HOSTILE),
                    "made_by": [{"name": HOSTILE, "file": HOSTILE, "line": 1}],
                    "rows": [
                        {
                            "query": HOSTILE,
                            "bound": {HOSTILE: HOSTILE},
                            "count": 1,
                            "columns": [HOSTILE],
                            "cells": [[HOSTILE]],
                        }
                    ],
                }
            ],
            queries=[{"name": HOSTILE, "text": HOSTILE}],
        ),
        id="definitions",
    ),
    pytest.param(code({CHART_MIME: hostile_chart(HOSTILE)}), id="a chart"),
    pytest.param(
        code({CHART_MIME: chart(empty=HOSTILE)}),
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


STREAM = {"output_type": "stream", "name": "stdout", "text": "it"}


@pytest.mark.parametrize(
    ("tags", "shown", "headings"),
    [
        pytest.param(["optional"], [], ["Last"], id="left out where nothing is shown"),
        pytest.param(["optional"], [STREAM], ["Perhaps", "Last"], id="there where something is"),
        pytest.param([], [], ["Perhaps", "Last"], id="any other stays"),
    ],
)
def test_an_optional_section(tags, shown, headings):
    perhaps = {**markdown("## Perhaps\nprose"), "metadata": {"tags": tags}}
    cell = {"cell_type": "code", "outputs": shown}
    sections = html.sections_of([perhaps, cell, markdown("## Last")])
    assert [section.heading for section in sections] == headings


@pytest.mark.parametrize(
    ("output", "kind"),
    [
        pytest.param({"output_type": "stream", "name": "stdout", "text": "said"}, "text", id="out"),
        pytest.param({"output_type": "stream", "name": "stderr", "text": "w"}, None, id="warnings"),
        pytest.param({"output_type": "stream", "name": "stdout", "text": " \n"}, None, id="blank"),
        pytest.param({"output_type": "display_data", "data": {}}, None, id="nothing shown"),
        pytest.param(
            {"output_type": "display_data", "data": {ELEMENT_MIME: PIECE, "text/html": "x"}},
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


def test_sentences_are_paragraphs_and_cannot_be_markup():
    said = page(piece("text", sentences=["a < b & c", HOSTILE]))
    assert "<div><p>a &lt; b &amp; c</p>\n<p>" in said
    assert HOSTILE not in said


def test_table_of_an_analyst_loses_its_style_and_links():
    made = page(code({"text/html": "<style>td{}</style><table><td><a href='x'>cell</a></table>"}))
    table_html = str(BeautifulSoup(made, "html.parser").select_one(".scroll table"))
    assert ("cell" in table_html, "href" in table_html, "td{}" in made) == (True, False, False)


def test_chart_crosses_with_its_words_and_its_data_once():
    spec = chart()
    made = page(code({CHART_MIME: spec}, {CHART_MIME: spec}))
    soup = BeautifulSoup(made, "html.parser")
    held = json.loads(soup.find("script", id="charts").string)
    assert (
        len(held["specs"]),
        set(held["data"]) == set(spec["datasets"]),
        soup.select_one("figure h3").string,
        {each["width"] for each in held["specs"]},
    ) == (2, True, "Did requests queue?", {"container"})


def test_static_image_has_no_hover_layer_no_text_per_mark_and_its_own_ids():
    spec = chart()
    soup = BeautifulSoup(page(code({CHART_MIME: spec}, {CHART_MIME: spec})), "html.parser")
    ids = [tag["id"] for tag in soup.select(".still [id]")]
    hovering = soup.select(".still .hover_points_marks, .still [class*=hover]")
    words = soup.select('.still path[aria-label], .still path[role="graphics-symbol"]')
    assert (len(ids), hovering, words) == (len(set(ids)), [], [])


def test_chart_without_data_shows_its_reason_in_place():
    spec = chart(empty="Nothing ran.")
    soup = BeautifulSoup(page(code({CHART_MIME: spec})), "html.parser")
    assert (soup.select_one(".nothing").string, soup.select(".live, .still")) == (
        "Nothing ran.",
        [],
    )


@pytest.mark.parametrize(
    ("rows", "box", "message"),
    [
        pytest.param(20, ["scroll"], [], id="short: shown whole"),
        pytest.param(
            21,
            ["scroll", "tall", "capped"],
            ["21 rows: scroll the table for all of them."],
            id="long: in a labelled box",
        ),
    ],
)
def test_long_table_says_that_it_scrolls(rows, box, message):
    made = page(table(["what", "value"], [["a", "1"]] * rows))
    soup = BeautifulSoup(made, "html.parser")
    notes = [each.string for each in soup.select(".more")]
    assert (soup.select_one(".scroll")["class"], notes) == (box, message)


LEFT_OUT = "200 rows; 1,898 more are left out (report --csv writes all of them)."


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        pytest.param(200, [], id="as many as a page shows"),
        pytest.param(
            2098,
            [LEFT_OUT],
            id="more",
        ),
    ],
)
def test_page_shows_the_first_rows_of_a_long_table_and_counts_the_others(rows, message):
    soup = BeautifulSoup(page(table(["a", "b"], [["x", "1"]] * rows)), "html.parser")
    notes = [each.string for each in soup.select("p.small") if "left out" in (each.string or "")]
    assert (len(soup.select("tbody tr")), notes) == (200, message)


@pytest.mark.parametrize(
    ("left_out", "result", "message"),
    [
        pytest.param(0, "(200 rows)", [], id="all of them"),
        pytest.param(
            1898,
            "(200 rows of 2,098)",
            [LEFT_OUT],
            id="some",
        ),
    ],
)
def test_table_behind_a_chart_says_how_many_rows_it_lacks(left_out, result, message):
    columns = [{"title": "n", "numeric": True}]
    behind = {"columns": columns, "rows": [["1"]] * 200, "left_out": left_out, "caption": ""}
    soup = BeautifulSoup(page(code({CHART_MIME: chart(table=behind)})), "html.parser")
    notes = [each.string for each in soup.select("p.small") if "left out" in (each.string or "")]
    assert (result in soup.select_one(".fold summary").get_text(), notes) == (True, message)


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
    found = BeautifulSoup(page(made), "html.parser").select_one("table")
    heads = [cell.get("data-head") for cell in found.select("td")]
    assert (
        {each["role"] for each in [found, *found.select("[role]")] if each.get("role")},
        heads,
    ) == (
        roles,
        ["what", "value", "why"] if roles else [None] * 3,
    )


def test_the_reason_for_no_chart_is_given_once():
    long = "capacity was not reached on 9 of 9 engines: tokens came as fast at the heaviest load"
    again, brief = chart(empty=long), chart(empty="nobody asked")
    again["title"]["text"] = brief["title"]["text"] = "And then?"
    charts = [chart(empty=long), again, chart(empty="nobody asked"), brief]
    made = page(*(code({CHART_MIME: each}) for each in charts))
    result = [
        each.get_text(strip=True) for each in BeautifulSoup(made, "html.parser").select(".nothing")
    ]
    same = "No chart, for the same reason as under “Did requests queue?”."
    assert result == [long, same, "nobody asked", "nobody asked"]


def test_table_that_can_be_sorted_has_what_its_rows_are_sorted_by():
    rows = [("a", 2.0), ("b", None), ("c", Cell("above $10", order=10.0))]
    columns = (Column("engine", "engine"), Column("bill", "usd", usd, is_numeric=True))
    made = replace(tables.table(columns, rows), is_sortable=True)
    soup = BeautifulSoup(page(piece("table", **made.content)), "html.parser")
    keys = [cell.get("data-key") for cell in soup.select("table[data-sortable] tbody td")]
    assert keys == ["a", "2.0", "b", None, "c", "10.0"]


def test_fold_that_is_not_printed_says_so():
    columns = [{"title": "n", "numeric": True}]
    behind = {"columns": columns, "rows": [["1"]] * 100, "left_out": 0, "caption": ""}
    notes = BeautifulSoup(page(code({CHART_MIME: chart(table=behind)})), "html.parser")
    assert notes.select_one(".fold.long summary").get_text() == (
        "The numbers behind it (100 rows): not printed, too many for paper"
    )


@pytest.mark.parametrize(
    ("half", "classes"),
    [
        pytest.param(True, ["chart", "half"], id="against a load"),
        pytest.param(False, ["chart"], id="over time"),
    ],
)
def test_chart_against_a_load_takes_half_the_width(half, classes):
    made = page(code({CHART_MIME: chart(half=half)}))
    assert BeautifulSoup(made, "html.parser").select_one("figure")["class"] == classes


def test_layer_without_rows_is_not_drawn():
    points = alt.Chart(STEPS.select("waiting_mean")).mark_point().encode(x="waiting_mean:Q")
    nothing = alt.Chart(STEPS.select("start").clear()).mark_rule().encode(x="start:T")
    made = vega.page_chart(alt.layer(points, nothing).to_dict(), 0)
    assert [each["mark"]["type"] for each in made.spec["layer"]] == ["point"]


def test_json_cannot_end_its_script():
    text = str(html.inert_json({"a": "</script><!--&\u2028"}))
    assert (re.search(r"[<>&\u2028]", text), json.loads(text)) == (
        None,
        {"a": "</script><!--&\u2028"},
    )


@pytest.mark.parametrize(
    ("rows", "result"),
    [
        pytest.param(21, ["The first 10 of 21 rows; the page has them all."], id="a long one"),
        pytest.param(20, [], id="a short one is printed whole"),
    ],
)
def test_table_that_is_printed_in_part_says_so(rows, result):
    soup = BeautifulSoup(page(table(["n"], [["1"]] * rows)), "html.parser")
    assert [each.string for each in soup.select("section .unprinted")] == result
    assert len(soup.select(".capped")) == len(result)
