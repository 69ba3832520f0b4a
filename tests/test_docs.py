"""The documentation: its site builds, its links lead somewhere, its examples run as they stand."""

import doctest
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from vllm_capacity.cli import cli

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
RUNS_HERE = re.compile(
    r"(?!.*--notebook).*vllm-sweep|(facts|whatif|model|sql)\b"
)  # the other commands need a server


def documented(page):
    """The `vllm-capacity` lines of a page's shell blocks, as words after the command's name."""
    blocks = re.findall(r"^```sh\n(.*?)^```", page.read_text(), re.M | re.S)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    found = [shlex.split(line, comments=True) for line in lines]
    return [words[1:] for words in found if words[:1] == ["vllm-capacity"]]


EXAMPLES = [
    pytest.param(words, id=f"{page.relative_to(ROOT)}: {' '.join(words)}")
    for page in PAGES
    for words in documented(page)
]


@pytest.mark.parametrize("words", EXAMPLES)
def test_documented_commands_parse(words):
    done = CliRunner().invoke(cli, [*words, "--help"])  # options are parsed before help is shown
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize(
    "words", [each for each in EXAMPLES if RUNS_HERE.match(" ".join(each.values[0]))]
)
def test_documented_commands_without_a_server_give_the_shown_output(words, tmp_path):
    own = [str(tmp_path) if word == "reports/" else word for word in words]
    done = CliRunner().invoke(cli, own)
    fires = words[0] == "alerts"
    assert done.exit_code in ((0, 1) if fires else (0,)), done.output


@pytest.mark.parametrize("page", PAGES[1:], ids=lambda page: page.name)
def test_the_python_that_is_shown_gives_what_is_shown(page):
    found = doctest.testfile(str(page), module_relative=False, optionflags=doctest.ELLIPSIS)
    assert found.failed == 0


def test_the_site_builds_without_a_warning_and_asks_for_nothing_from_outside(tmp_path):
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    built = subprocess.run(
        [Path(sys.executable).with_name("zensical"), "build", "--strict"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    html = "".join(page.read_text() for page in (tmp_path / "site").rglob("*.html"))
    assert "vllm_capacity.Window" in html
    assert not re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="(?:https?:)?//', html)
