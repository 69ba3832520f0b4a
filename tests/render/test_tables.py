"""One table, four renderers: what each shows of it, and that nothing in a cell is markup."""

import csv
import io
import re
from datetime import UTC, datetime

import mistune
import polars as pl
import pytest
from bs4 import BeautifulSoup
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from vllm_capacity.estimate import Estimate
from vllm_capacity.render.numbers import count, number, seconds, usd
from vllm_capacity.render.report import ELEMENT_MIME, RENDERER_VARIABLE
from vllm_capacity.render.tables import (
    Cell,
    Column,
    Figure,
    Table,
    figures_table,
    reasons_once,
    table,
    table_of,
    text,
    wrapped,
)

COLUMNS = (
    Column("engine", "engine"),
    Column("p95 TTFT", "ttft_p95_seconds", seconds, is_numeric=True),
    Column("since", "since", "{:%H:%M}".format),
    Column("shown only"),
    Column("evidence", "evidence", is_note=True),
)
ROWS = (
    ("r0/0", 0.5, datetime(2026, 11, 24, 8, tzinfo=UTC), "a", "none waited " * 6),
    ("r1/0", None, None, "b", ""),
)
SHOWN = table(COLUMNS, ROWS, caption="Engines.")
HOSTILE = (
    "<script>alert(1)</script>",
    "[click](http://evil.example)",
    "![x](http://evil.example/x.png)",
    "**bold** _it_ `code` ~~gone~~",
    "http://evil.example www.evil.example",
    "a | b",
    "&lt;b&gt; \\<b>",
    "# head\n- item",
    "[bold]rich[/bold] :smile:",
    "$x$ and $y$",
)
KNOWN = Estimate.known(1.0, 2.0, 4.0, "a plateau")


def sources(*names, low=1.0, mid=2.0, high=4.0):
    return Estimate.known(low, mid, high, *names)


def test_text_has_heads_a_rule_and_notes_below_their_row():
    assert SHOWN.to_text(60) == (
        "Engines.\n"
        "engine  p95 TTFT  since  shown only\n"
        "──────  ────────  ─────  ──────────\n"
        "r0/0      500 ms  08:00  a\n"
        "    none waited none waited none waited none waited none\n"
        "    waited none waited\n"
        "r1/0           –  –      b\n"
    )


def test_notes_stand_beside_where_there_is_room():
    assert SHOWN.to_text(140).splitlines()[1].split() == (
        ["engine", "p95", "TTFT", "since", "shown", "only", "evidence"]
    )


def test_notes_can_be_left_out():
    assert "waited" not in SHOWN.to_text(notes=False)


@pytest.mark.parametrize("width", [40, 60, 80, 140])
def test_no_line_is_wider_than_asked(width):
    assert max(cell_len(line) for line in SHOWN.to_text(width).split("\n")) <= width


@given(
    cells=st.lists(st.lists(st.text(max_size=40), min_size=4, max_size=4), min_size=1, max_size=3),
    width=st.integers(40, 120),
)
def test_any_text_fits_the_width_on_printable_lines(cells, width):
    columns = (Column("one", "one"), Column("two"), Column("n", is_numeric=True), COLUMNS[-1])
    text = table(columns, cells).to_text(width)
    assert max(cell_len(line) for line in text.split("\n")) <= width
    assert re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]", text) is None


def test_characters_of_two_columns_fit_the_width():
    text = table((Column("one", "one"), COLUMNS[-1]), [["", "0" * 35 + "⺀⼀𠀀"]]).to_text(40)
    assert max(cell_len(line) for line in text.split("\n")) <= 40
    assert "".join(text.split()).endswith("⺀⼀𠀀")


def test_number_and_its_unit_stay_on_a_line():
    text = table([Column("what", "what")], [["it took about 500\xa0ms"]]).to_text(16)
    assert text.endswith("it took about\n500 ms\n")


def test_head_is_wrapped_before_a_number():
    column = Column("dollars per million output tokens", "usd", usd, is_numeric=True)
    assert "$1,230,000" in table([column] * 4, [[1_230_000.0] * 4]).to_text(50)


def test_environment_variables_change_nothing(monkeypatch):
    shown = SHOWN.to_text()
    for name, value in {"FORCE_COLOR": "1", "COLUMNS": "200", "TERM": "dumb"}.items():
        monkeypatch.setenv(name, value)
    assert SHOWN.to_text() == shown


def test_markdown_is_a_table():
    assert SHOWN.to_markdown() == (
        "Engines.\n\n"
        "| engine | p95 TTFT | since | shown only | evidence |\n"
        "| --- | ---: | --- | --- | --- |\n"
        f"| r0/0 | 500\xa0ms | 08:00 | a | {'none waited ' * 6} |\n"
        "| r1/0 | – | – | b |  |\n"
    )


@pytest.mark.parametrize("text", HOSTILE)
def test_markdown_of_any_cell_is_text(text):
    render = mistune.create_markdown(plugins=["table", "strikethrough", "url"])
    shown = table([Column("a", "a"), Column("b", "b")], [[text, "2"]], caption=text).to_markdown()
    soup = BeautifulSoup(render(shown), "html.parser")
    tags = {tag.name for tag in soup.find_all(True)}
    assert tags <= {"p", "table", "thead", "tbody", "tr", "th", "td"}
    assert soup.select("td")[0].get_text() == text.replace("\n", " ")


@pytest.mark.parametrize("text", HOSTILE)
def test_html_of_any_cell_is_text(text):
    shown = table([Column(text, "a")], [[text]], caption=text)
    for made in (shown.to_html(), shown._repr_mimebundle_()["text/html"]):
        soup = BeautifulSoup(made, "html.parser")
        assert soup.select("script, a, img, b, code") == []
        assert [cell.get_text() for cell in soup.select("td, th, caption")] == [text] * 3


def test_text_of_a_cell_is_no_markup_of_the_terminal():
    assert "[bold]rich[/bold] :smile:" in table([Column("a", "a")], [[HOSTILE[8]]]).to_text()


def test_name_cannot_move_the_cursor():
    text = table([Column("a", "a")], [["evil\x1b[2J\r\u202ename"]]).to_text()
    assert text.split("\n")[2] == "evil [2J name"


def test_csv_has_the_values_of_named_columns():
    assert list(csv.reader(io.StringIO(SHOWN.to_csv()))) == [
        ["engine", "ttft_p95_seconds", "since", "evidence"],
        ["r0/0", "0.5", "2026-11-24T08:00:00Z", "none waited " * 6],
        ["r1/0", "", "", ""],
    ]


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@sum(A1)", "\t=1"])
def test_csv_holds_no_formula(text):
    shown = table([Column("a", "a")], [[text]]).to_csv()
    assert next(csv.reader(io.StringIO(shown.split("\n", 1)[1])))[0] == f"'{text}"


def test_csv_of_numbers_is_not_escaped():
    assert table([Column("a", "a", number)], [[-1.5]]).to_csv() == "a\n-1.5\n"


def test_data_of_estimates_have_their_ends_and_unit():
    column = Column("capacity", "capacity", number, is_numeric=True)
    rows = [[KNOWN], [Estimate.at_least(3.0, reason="too light")], [Estimate.unknown("no load")]]
    assert table([column], rows).frame.rows() == [
        (2.0, 1.0, 4.0),
        (None, 3.0, None),
        (None, None, None),
    ]


def test_data_can_be_sorted_by_number():
    shown = table([Column("a", "a", usd, is_numeric=True)], [[9.0], [10.0], [8.5]])
    assert shown.frame.sort("a")["a"].to_list() == [8.5, 9.0, 10.0]


def test_no_rows_are_a_sentence_in_every_form():
    empty = table(COLUMNS, [], empty="Nothing *was* found.")
    soup = BeautifulSoup(empty.to_html(), "html.parser")
    assert (empty.to_text(), empty.to_markdown(), soup.p.get_text(), empty.to_csv()) == (
        "Nothing *was* found.\n",
        "Nothing \\*was\\* found.\n",
        "Nothing *was* found.",
        "engine,ttft_p95_seconds,since,evidence\n",
    )


def test_column_without_any_text_is_not_shown():
    shown = table([Column("a", "a"), Column("why", "why", is_note=True)], [["x", ""], ["y", ""]])
    assert [each["title"] for each in shown.content["columns"]] == ["a"]
    assert shown.frame.columns == ["a", "why"]


def test_cell_crosses_to_the_page_as_text():
    bundle = SHOWN._repr_mimebundle_()
    content = bundle[ELEMENT_MIME]["content"]
    assert (bundle[ELEMENT_MIME]["kind"], content["rows"][0][:2]) == (
        "table",
        ["r0/0", "500\xa0ms"],
    )
    assert content["columns"][1] == {"title": "p95 TTFT", "numeric": True}
    assert bundle["text/plain"] == repr(SHOWN) == SHOWN.to_text().rstrip("\n")


def test_a_page_gets_only_the_cells_it_shows(monkeypatch):
    monkeypatch.setenv(RENDERER_VARIABLE, "page")
    bundle = SHOWN._repr_mimebundle_()
    assert bundle[ELEMENT_MIME]["content"] == SHOWN.content
    assert {**bundle, ELEMENT_MIME: None} == {ELEMENT_MIME: None, "text/plain": "table"}


def test_sentences_reach_a_page_as_text_and_the_lab_as_html(monkeypatch):
    said = text("one < two", "three")
    in_lab = said._repr_mimebundle_()
    assert "<p>One &lt; two</p>\n<p>Three</p>" in in_lab["text/html"]
    monkeypatch.setenv(RENDERER_VARIABLE, "page")
    element = {"kind": "text", "content": {"sentences": ["One < two", "Three"]}}
    assert said._repr_mimebundle_() == {ELEMENT_MIME: element, "text/plain": repr(said)}


def test_row_has_one_cell_per_column():
    with pytest.raises(ValueError, match="one cell per column"):
        Table(COLUMNS, ((Cell("alone"),),))


def test_frame_becomes_a_table_by_the_names_of_its_columns():
    frame = pl.DataFrame({"requests": [5138.0, None], "other": [1, 2]})
    shown = table_of(frame, [Column("requests", "requests", count, is_numeric=True)])
    assert shown.texts == [["5,138"], ["–"]]


def test_figures_have_value_interval_and_basis():
    shown = figures_table([Figure("capacity", KNOWN, number, "output tokens/s")])
    row = ["capacity", "2.00 output tokens/s", "1.00\xa0to\xa04.00", "a plateau"]
    assert shown.texts == [row]


@pytest.mark.parametrize(
    ("figures", "notes"),
    [
        pytest.param(
            [("demand", sources("p95")), ("replicas", sources("p95", "20 % headroom"))],
            ["p95", "“demand”; 20 % headroom"],
            id="a row that goes into another is named",
        ),
        pytest.param(
            [
                ("a", sources("x")),
                ("b", sources("x", "y")),
                ("b again", sources("x", "y")),
                ("c", sources("x", "y", "z")),
            ],
            ["x", "“a”; y", "“b”", "“b”; z"],
            id="the longest of several, and of equals the first",
        ),
        pytest.param(
            [("a", Estimate.unknown("no price")), ("b", Estimate.unknown("no price"))],
            ["no price", "for the same reason as “a”"],
            id="a reason is given once",
        ),
        pytest.param(
            [("a", Estimate.at_least(1.0, "seen", reason="too light"))],
            ["seen; no more is known, because too light"],
            id="a bound has both",
        ),
        pytest.param(
            [
                ("a", Estimate.at_least(1.0, "seen", reason="too light")),
                ("b", Estimate.at_least(1.0, "seen", "more", reason="too light")),
            ],
            [
                "seen; no more is known, because too light",
                "“a”; more; no more is known, for the same reason as for “a”",
            ],
            id="a bound that another bound goes into",
        ),
    ],
)
def test_basis_of_a_figure(figures, notes):
    shown = figures_table(Figure(name, each, number) for name, each in figures)
    assert [row[-1] for row in shown.texts] == notes


def test_data_of_figures_have_the_whole_basis():
    shown = figures_table(
        [Figure("a", sources("x"), number), Figure("b", sources("x", "y"), number)]
    )
    assert shown.frame["basis"].to_list() == ["x", "x; y"]


def test_only_notes_are_deduplicated():
    columns = (Column("a", "a"), Column("why", "why", is_note=True))
    shown = reasons_once(table(columns, [["x", "because"], ["x", "because"]]))
    assert shown.texts == [["x", "because"], ["x", "for the same reason"]]


def test_paragraph_is_wrapped_and_indented():
    assert wrapped("one two three four", 9, indent=2) == "one two\n  three\n  four\n"


def test_no_number_of_an_interval_is_cut_where_the_column_is_narrow():
    interval = "$0.000102\N{NO-BREAK SPACE}to\N{NO-BREAK SPACE}$0.000185"
    assert wrapped(interval, 20) == "$0.000102 to\n$0.000185\n"
    assert wrapped(interval, 22) == "$0.000102 to $0.000185\n"
