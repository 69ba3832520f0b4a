"""A page as a PDF: the browser that prints it, and the error if it cannot."""

from pathlib import Path

import pytest

from vllm_capacity.errors import InputError, SourceError
from vllm_capacity.render.report.pdf import find_browser, print_pdf


def program(path: Path, script: str) -> Path:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def test_browser_is_found_by_its_name(tmp_path: Path):
    chromium = program(tmp_path / "chromium", "exit 0")
    assert find_browser(str(tmp_path)) == chromium


def test_without_a_browser_one_line_says_what_to_do(tmp_path: Path):
    with pytest.raises(InputError, match=r"none was found .*chromium.*remove --pdf"):
        find_browser(str(tmp_path))


PRINTS = 'for o in "$@"; do case $o in --print-to-pdf=*) echo %PDF-1.4 > "${o#*=}";; esac; done'


def test_pdf_stands_beside_its_page(tmp_path: Path):
    page = tmp_path / "a b.html"
    page.write_text("<p>")
    made = print_pdf(page, program(tmp_path / "chromium", PRINTS))
    assert (made, made.read_text()) == (tmp_path / "a b.pdf", "%PDF-1.4\n")


@pytest.mark.parametrize(
    "script",
    [
        pytest.param("exit 1", id="it fails"),
        pytest.param("exit 0", id="it prints nothing"),
    ],
)
def test_browser_that_makes_no_pdf_is_an_error_and_the_old_one_stays(tmp_path: Path, script):
    page, old = tmp_path / "page.html", tmp_path / "page.pdf"
    page.write_text("<p>")
    old.write_text("old")
    with pytest.raises(SourceError, match="print it from any browser"):
        print_pdf(page, program(tmp_path / "chromium", script))
    assert old.read_text() == "old"
