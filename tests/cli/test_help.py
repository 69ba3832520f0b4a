"""`--help` of every verb ends with lines that can be typed."""

import shlex

import click
import pytest

from vllm_capacity.cli import _VERBS, cli
from vllm_capacity.cli.options.examples import EXAMPLES

LINES = [line for lines in EXAMPLES.values() for line in lines]


def shown(*words: str) -> str:
    with pytest.raises(SystemExit):
        cli([*words, "--help"], prog_name="vllm-capacity")
    return ""


@pytest.mark.parametrize("verb", _VERBS)
def test_every_command_has_an_example(verb, capsys):
    shown(verb)
    text = capsys.readouterr().out
    assert EXAMPLES[verb]
    assert [line for line in EXAMPLES[verb] if f"  vllm-capacity {line}\n" not in text] == []
    assert "\\b" not in text


@pytest.mark.parametrize("line", LINES)
def test_examples_use_existing_options(line):
    words = shlex.split(line)
    with click.Context(cli) as context:
        command = cli.get_command(context, words[0])
        while isinstance(command, click.Group):
            words = words[1:]
            command = command.get_command(context, words[0])
        command.make_context(words[0], list(words[1:]), parent=context)
