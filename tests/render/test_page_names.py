"""Every page has a name and a title of its own, and plain windows the plain one."""

from pathlib import Path

import pytest

from vllm_capacity.render.report.metadata import Metadata, SummaryLine
from vllm_capacity.render.report.write import page_stem

REPORT = Path("cost-report.ipynb")
OTHER = Path("03-saturation.ipynb")
MINE = Path("mine.ipynb")
DAY, NEXT = "2026-11-24T00:00:00Z", "2026-11-25T00:00:00Z"


@pytest.mark.parametrize(
    ("window", "notebook", "expected"),
    [
        pytest.param("vllm-sweep", REPORT, "vllm-sweep", id="a window"),
        pytest.param("a100.v2", REPORT, "a100.v2", id="a window with a point"),
        pytest.param("my_window", REPORT, "my_window", id="a window with an underscore"),
        pytest.param("vllm-sweep", OTHER, "vllm-sweep-03-saturation", id="a shipped notebook"),
    ],
)
def test_a_plain_window_names_its_page(window, notebook, expected):
    assert page_stem(notebook, window) == expected


PAGES = [
    *(
        (REPORT, window, "", "")
        for window in (
            *("a b", "a-b", "a--b", "a/b", "a", "index", "Index", "INDEX", "report", "", "-", "."),
            *("Ä", "Ö", "日本", "日本語", "..", "x" * 200, "x" * 201, "x" * 120, "\udcff", "\n"),
            *("a-03-saturation", "a-mine", "mine", f"a-{DAY}", "a-2026-11-24T00-00-00Z", "a-to"),
        )
    ),
    *((notebook, "a", "", "") for notebook in (OTHER, MINE)),
    *((MINE, window, "", "") for window in ("", "mine")),
    (REPORT, "a", DAY, ""),
    (REPORT, "a", "", DAY),
    (REPORT, "a", DAY, NEXT),
    (REPORT, "a", "2026-11-24T00:00:00+01:00", ""),
    (REPORT, "a", "2026-11-24T00:00:00-01:00", ""),
    (OTHER, "a", DAY, ""),
]


def test_no_two_pages_share_a_name_nor_take_the_index():
    names = [page_stem(*page).casefold() for page in PAGES]
    again = [page_stem(REPORT, name) for name in {page_stem(*page) for page in PAGES}]
    hashed = [name for name in again if name.casefold() not in names]
    assert len(set(names)) == len(PAGES)
    assert "index" not in names
    assert len(set(hashed)) == len(hashed)


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_a_name_is_a_file_name_everywhere(page):
    name = page_stem(*page)
    assert name.isascii()
    assert set("/\\:\n ").isdisjoint(name)
    assert 0 < len(name) < 140
    assert name[0] not in ".-"


EVENING, MORNING, WEEK = "2026-11-24T20:00:00Z", "2026-11-25T08:00:00Z", "2027-01-02T00:00:00Z"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        pytest.param(
            SummaryLine("prod", ("llama",), start=DAY, end=EVENING),
            "llama · prod · 24 Nov 2026 · What does it cost?",
            id="a day",
        ),
        pytest.param(
            SummaryLine("prod", ("llama", "qwen"), start=EVENING, end=MORNING),
            "llama, qwen · prod · 24 Nov to 25 Nov 2026 · What does it cost?",
            id="two models, over midnight",
        ),
        pytest.param(
            SummaryLine("prod", ("a", "b", "c"), start=DAY, end=WEEK),
            "3 models · prod · 24 Nov 2026 to 2 Jan 2027 · What does it cost?",
            id="many models, over the turn of the year",
        ),
        pytest.param(SummaryLine(), "What does it cost?", id="a notebook without a window"),
    ],
)
def test_title_of_a_page_says_model_window_and_days(line, expected):
    assert Metadata(line, title="What does it cost?").tab_title == expected
