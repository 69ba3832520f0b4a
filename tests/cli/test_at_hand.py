"""Lists of windows and facts, suggestions for a misspelled command, completion."""

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.cli.command_line import run
from vllm_capacity.cli import cli


def output_of(*words, **env):
    done = CliRunner().invoke(cli, words, env={"COLUMNS": "80", **env}, catch_exceptions=False)
    assert done.exit_code == 0
    return done.stdout


def test_windows_are_listed_with_their_contents(examples, tmp_path):
    shutil.copytree(examples / "vllm-sweep", tmp_path / "monday")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "window.json").write_text("{}")
    broken, monday = json.loads(output_of("windows", str(tmp_path), "--json"))
    assert (broken["name"], broken["start"]) == ("broken", None)
    assert "names no format" in broken["problem"]
    assert (monday["name"], monday["grain"], monday["problem"]) == ("monday", "scrape", None)
    assert monday["start"] == "2026-11-24T03:59:44.493232Z"
    shown = output_of("windows", str(tmp_path))
    assert "monday" in shown
    assert "names no format" in shown


def test_windows_without_a_folder_are_those_that_names_open():
    names = {each["name"] for each in json.loads(output_of("windows", "--json"))}
    assert {"vllm-sweep", "fleet-two-models"} <= names


def test_an_empty_list_of_windows_says_how_to_get_one(tmp_path):
    assert "scrape --help" in output_of("windows", str(tmp_path))


@pytest.mark.parametrize("table", ["gpus", "models", "prices"])
def test_every_fact_table_has_a_command_of_its_name(table):
    assert output_of(table) == output_of("facts", table)


@pytest.mark.parametrize(
    ("words", "near"),
    [
        pytest.param(["figurs"], "'figures'", id="a verb"),
        pytest.param(["stack", "initt"], "Did you mean 'init'?", id="a verb of a group"),
        pytest.param(["figures", "--prise", "2"], "Did you mean '--price'?", id="an option"),
    ],
)
def test_a_misspelled_name_gets_a_suggestion(monkeypatch, capsys, words, near):
    code, _, error = run(monkeypatch, capsys, *words)
    assert (code, near in error) == (2, True), error


@pytest.mark.parametrize(
    ("shell", "place"),
    [
        ("bash", ".local/share/bash-completion/completions/vllm-capacity"),
        ("zsh", ".zfunc/_vllm-capacity"),
        ("fish", ".config/fish/completions/vllm-capacity.fish"),
    ],
)
def test_completion_is_installed_where_the_shell_looks(tmp_path, shell, place):
    home = {"HOME": str(tmp_path), "XDG_DATA_HOME": "", "XDG_CONFIG_HOME": ""}
    assert str(tmp_path / place) in output_of("completion", shell, "--install", **home)
    assert (tmp_path / place).read_text() == output_of("completion", shell)


def test_bash_completes_a_verb():
    program = shlex.quote(str(Path(sys.executable).with_name("vllm-capacity")))
    script = output_of("completion", "bash").replace("$1)", f"{program})")
    typed = "COMP_WORDS=(vllm-capacity fig); COMP_CWORD=1; _vllm_capacity_completion vllm-capacity"
    done = subprocess.run(
        ["bash", "-c", f"{script}\n{typed}; echo ${{COMPREPLY[@]}}"],
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == ["figures"], done.stderr
