from pathlib import Path

from bs4 import BeautifulSoup

from vllm_capacity.pages import html
from vllm_capacity.pages.index import report_metadata, write_index

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
    metadata = {"title": "Q?", "line": line, "verdict": verdict, "tiles": tiles}
    page = html.page_html(
        title="Q?", sections=[], runtime="", metadata=metadata, command="", made=""
    )
    (folder / f"{name}.html").write_text(page, encoding="utf-8")


def test_index_lists_the_newest_window_first(tmp_path: Path):
    write_page(tmp_path, "old one", "2026-01-01T00:00:00Z")
    write_page(tmp_path, "new", "2026-02-01T00:00:00Z")
    soup = BeautifulSoup(write_index(tmp_path).read_text(), "html.parser")
    assert [link["href"] for link in soup.select("h2 a")] == ["new.html", "old%20one.html"]


def test_index_says_what_a_report_found(tmp_path: Path):
    write_page(tmp_path, "one", "2026-01-01T00:00:00Z")
    soup = BeautifulSoup(write_index(tmp_path).read_text(), "html.parser")
    assert {"It is so.", "$1 each"} <= {tag.get_text() for tag in soup.select("p, dd")}


def test_index_says_what_changed(tmp_path: Path):
    write_page(tmp_path, "one", "2026-01-01T00:00:00Z")
    soup = BeautifulSoup(write_index(tmp_path).read_text(), "html.parser")
    assert [tag.get_text() for tag in soup.select("dd")] == [
        "$1 each",
        "$9 in all (▲ up 12 % from $0.89)",
    ]


def test_index_shows_a_hostile_name_as_text(tmp_path: Path):
    write_page(tmp_path, "one", "2026-01-01T00:00:00Z", model=HOSTILE)
    soup = BeautifulSoup(write_index(tmp_path).read_text(), "html.parser")
    assert (soup("script"), HOSTILE in soup.get_text()) == ([], True)


def test_index_leaves_out_pages_that_are_no_reports(tmp_path: Path):
    (tmp_path / "notes.html").write_text("<p>mine</p>")
    (tmp_path / "odd.html").write_text('<script type="application/json" id="report">{</script>')
    soup = BeautifulSoup(write_index(tmp_path).read_text(), "html.parser")
    assert (soup.select("article"), "no report in this folder" in soup.get_text()) == ([], True)


def test_index_is_no_report_itself(tmp_path: Path):
    write_page(tmp_path, "one", "2026-01-01T00:00:00Z")
    write_index(tmp_path)
    soup = BeautifulSoup(write_index(tmp_path).read_text(), "html.parser")
    assert (len(soup.select("article")), report_metadata(tmp_path / "index.html")) == (1, None)
