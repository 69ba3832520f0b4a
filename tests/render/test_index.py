import json
import os
from pathlib import Path

import msgspec
import pytest
from bs4 import BeautifulSoup

from vllm_capacity.render.report import page as html
from vllm_capacity.render.report.metadata import Metadata, page_metadata
from vllm_capacity.render.report.write import write_index

HOSTILE = "<script>alert(1)</script>"


def write_page(folder: Path, name: str, start: str, *, model: str = "m") -> None:
    line = {
        "window": name,
        "models": [model],
        "engines": "1 engine",
        "span": "then",
        "start": start,
        "hours": "1 h",
        "price": "no price given",
        "is_simulated": False,
    }
    verdict = {"sentences": ["It is so."], "quality": {"word": "good", "shape": "●", "why": ""}}
    change = {"arrow": "▲", "words": "up 12 % from $0.89", "joins": " since", "report": "then"}
    tiles = [
        {"label": "Cost", "value": "$1", "unit": "each"},
        {"label": "Bill", "value": "$9", "unit": "in all", "change": change},
    ]
    output = {"title": "Q?", "line": line, "verdict": verdict, "tiles": tiles}
    metadata = msgspec.convert(output, Metadata)
    page = html.page_html(
        title="Q?", sections=[], runtime="", metadata=metadata, command="", made=""
    )
    (folder / f"{name}.html").write_text(page, encoding="utf-8")


def test_index_lists_the_newest_window_first(tmp_path: Path):
    write_page(tmp_path, "old one", "2026-01-01T00:00:00Z")
    write_page(tmp_path, "new", "2026-02-01T00:00:00Z")
    soup = BeautifulSoup(write_index(tmp_path).read_text(), "html.parser")
    assert [link["href"] for link in soup.select(".report th a")] == ["new.html", "old%20one.html"]


def test_index_says_what_a_report_found(tmp_path: Path):
    write_page(tmp_path, "one", "2026-01-01T00:00:00Z")
    soup = BeautifulSoup(write_index(tmp_path).read_text(), "html.parser")
    assert {"It is so.", "$1 each"} <= {tag.get_text() for tag in soup.select("p, .report td")}


def test_index_says_what_changed(tmp_path: Path):
    write_page(tmp_path, "one", "2026-01-01T00:00:00Z")
    soup = BeautifulSoup(write_index(tmp_path).read_text(), "html.parser")
    assert [tag.get_text() for tag in soup.select(".report td")][1:3] == [
        "$1 each",
        "$9 in all (▲ up 12 % from $0.89)",
    ]


def test_index_is_a_table_with_a_column_per_figure(tmp_path: Path):
    for name in ("one", "two"):
        write_page(tmp_path, name, "2026-01-01T00:00:00Z")
    soup = BeautifulSoup(write_index(tmp_path).read_text(), "html.parser")
    heads = [tag.get_text() for tag in soup.select("table.reports thead th")]
    assert (heads, len(soup.select(".report"))) == (["report", "time", "Cost", "Bill"], 2)


def test_index_shows_a_hostile_name_as_text(tmp_path: Path):
    write_page(tmp_path, "one", "2026-01-01T00:00:00Z", model=HOSTILE)
    soup = BeautifulSoup(write_index(tmp_path).read_text(), "html.parser")
    assert (soup("script"), HOSTILE in soup.get_text()) == ([], True)


def test_index_leaves_out_pages_that_are_no_reports(tmp_path: Path):
    (tmp_path / "notes.html").write_text("<p>mine</p>")
    (tmp_path / "odd.html").write_text('<script type="application/json" id="report">{</script>')
    soup = BeautifulSoup(write_index(tmp_path).read_text(), "html.parser")
    assert (soup.select(".report"), "no report in this folder" in soup.get_text()) == ([], True)


def damaged(metadata: object) -> str:
    text = metadata if isinstance(metadata, str) else json.dumps(metadata)
    return f'<script type="application/json" id="report">{text}</script>'


LINE = {"window": "w", "start": "2026-01-01T00:00:00Z"}


@pytest.mark.parametrize(
    "metadata",
    [
        pytest.param({"line": 5}, id="a number for a line"),
        pytest.param({"line": {"models": 5}}, id="a number for models"),
        pytest.param({"line": {"start": 5}}, id="a number for a time"),
        pytest.param({"line": LINE, "verdict": {"sentences": ["a"]}}, id="half a verdict"),
        pytest.param({"line": LINE, "verdict": [1]}, id="a list for a verdict"),
        pytest.param({"line": LINE, "tiles": 5}, id="a number for tiles"),
        pytest.param({"line": LINE, "tiles": [5]}, id="numbers for tiles"),
        pytest.param({"line": LINE, "tiles": [{"low": "x"}]}, id="text for a number"),
        pytest.param('{"line": {}, "tiles": [{"low": 1e999}]}', id="a number beyond any float"),
        pytest.param({"line": LINE, "previous": {"line": 5}}, id="a report before of that kind"),
        pytest.param([1], id="a list"),
        pytest.param("[" * 200_000, id="nested too deep"),
        pytest.param("9" * 10_000, id="a number of 10,000 digits"),
    ],
)
def test_index_leaves_out_what_is_not_of_a_reports_shape(tmp_path: Path, metadata: object):
    write_page(tmp_path, "one", "2026-01-01T00:00:00Z")
    (tmp_path / "foreign.html").write_text(damaged(metadata))
    soup = BeautifulSoup(write_index(tmp_path).read_text(), "html.parser")
    assert [link["href"] for link in soup.select(".report th a")] == ["one.html"]


def test_index_leaves_out_what_is_no_file(tmp_path: Path):
    write_page(tmp_path, "one", "2026-01-01T00:00:00Z")
    (tmp_path / "folder.html").mkdir()
    (tmp_path / "gone.html").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe.html")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.html")).write_text(damaged({"line": LINE}))
    soup = BeautifulSoup(write_index(tmp_path).read_text(), "html.parser")
    assert [link["href"] for link in soup.select(".report th a")] == ["one.html"]


def test_index_is_no_report_itself(tmp_path: Path):
    write_page(tmp_path, "one", "2026-01-01T00:00:00Z")
    write_index(tmp_path)
    soup = BeautifulSoup(write_index(tmp_path).read_text(), "html.parser")
    assert (len(soup.select(".report")), page_metadata(tmp_path / "index.html")) == (1, None)


OLD = {
    "line": {**LINE, "terms": {"rates": [[1.0, 0.1, 0.1, 0.1]], "ttft_slo_seconds": 2.0}},
    "tiles": [
        {"figure": "utilisation", "mid": 0.5},
        {"figure": "ttft_attainment", "mid": 0.9, "hangs_on": "ttft_slo_seconds"},
    ],
    "previous": {"line": LINE, "tiles": [{"figure": "utilisation", "mid": 0.4}]},
}


def test_page_of_an_earlier_release_is_read_under_today_s_names(tmp_path: Path):
    page = tmp_path / "old.html"
    page.write_text(damaged(OLD))
    found = page_metadata(page)
    assert [tile.figure for tile in found.tiles] == ["utilization", "ttft_attainment"]
    assert (found.tiles[1].hangs_on, found.line.term("ttft_p95_seconds")) == (
        "ttft_p95_seconds",
        2.0,
    )
    assert found.previous.tiles[0].figure == "utilization"


def test_page_without_verdict_and_line_is_listed_by_its_name(tmp_path: Path):
    (tmp_path / "bare.html").write_text(damaged({"line": {}, "verdict": {}, "title": "T"}))
    soup = BeautifulSoup(write_index(tmp_path).read_text(), "html.parser")
    assert [link.get_text() for link in soup.select(".report th a")] == ["bare.html"]
