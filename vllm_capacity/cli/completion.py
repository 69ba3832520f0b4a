"""`completion`: shell completion of commands and options."""

from __future__ import annotations

import os
from pathlib import Path

import click
from click.shell_completion import get_completion_class

from vllm_capacity.cli import PROGRAM, cli
from vllm_capacity.render.report.files import write_whole

_SHELLS = ("bash", "zsh", "fish")


@click.command(short_help="Shell completion for bash, zsh or fish.")
@click.argument("shell", type=click.Choice(_SHELLS))
@click.option("--install", is_flag=True, help="Install it for the current user.")
def completion(shell: str, install: bool) -> None:
    """Print the completion script for SHELL, or --install it."""
    variable = f"_{PROGRAM.replace('-', '_').upper()}_COMPLETE"
    kind = get_completion_class(shell)
    assert kind is not None, shell
    script = kind(cli, {}, PROGRAM, variable).source()
    if not install:
        click.echo(script, nl=False)
        return
    path = _place(shell)
    write_whole(path, script)
    click.echo(f"Wrote {path}. {_NEEDS[shell]}")


_NEEDS = {
    "bash": "New shells load it if the package bash-completion is installed.",
    "zsh": "New shells load it if ~/.zshrc has: fpath+=~/.zfunc; autoload -Uz compinit; compinit",
    "fish": "New shells load it.",
}


def _place(shell: str) -> Path:
    """The shell's folder for one user's completions."""
    home = Path.home()
    if shell == "zsh":
        return home / ".zfunc" / f"_{PROGRAM}"
    if shell == "fish":
        own = Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config")
        return own / "fish" / "completions" / f"{PROGRAM}.fish"
    own = Path(os.environ.get("XDG_DATA_HOME") or home / ".local" / "share")
    return own / "bash-completion" / "completions" / PROGRAM
