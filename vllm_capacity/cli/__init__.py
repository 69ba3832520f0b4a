"""The command line: one module per verb group, loaded only when its verb is used.

The only place that reads the clock, the environment and argv. Results go to stdout, everything else
to stderr. Exit codes: 0 done, 1 an alert or check fired, 2 bad input, 3 a source failed.
"""

from __future__ import annotations

import importlib
import sys
from typing import NoReturn

import click

from vllm_capacity.errors import CapacityError

_MODULES = {
    "alerts": "alerts",
    "cost": "figures",
    "doctor": "doctor",
    "figures": "figures",
    "fit": "fit",
    "forecast": "forecast",
    "model": "model",
    "plan": "plan",
    "proxy": "proxy",
    "pull": "pull",
    "report": "report",
    "scrape": "scrape",
    "simulate": "simulate",
    "sql": "sql",
    "stack": "stack",
    "traces": "sql",
    "whatif": "whatif",
}


class _LazyGroup(click.Group):
    """A group that imports a verb's module only when that verb is asked for: a fast start."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_MODULES)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in _MODULES:
            return None
        module = importlib.import_module(f"vllm_capacity.cli.{_MODULES[name]}")
        command = getattr(module, name)
        assert isinstance(command, click.Command)
        return command


@click.group(cls=_LazyGroup)
@click.version_option(package_name="vllm-capacity")
def cli() -> None:
    """Capacity and cost planning for self-hosted LLM inference on vLLM."""


def main() -> None:
    """Run the command line; an error ends it with one clear line and its exit code."""
    try:
        cli(prog_name="vllm-capacity", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(2)
    except click.ClickException as error:
        _complain(error.format_message() + _help_hint(error), 2)
    except click.Abort:
        sys.exit(130)
    except CapacityError as error:
        _complain(str(error), error.exit_code)
    except OSError as error:  # a file that a verb could not read or write
        _complain(f"{error.filename or 'Failed'}: {error.strerror or error}.", 2)


def _help_hint(error: click.ClickException) -> str:
    context = error.ctx if isinstance(error, click.UsageError) else None
    stop = "" if error.format_message().endswith((".", "?")) else "."
    return f"{stop} Try '{context.command_path} --help'." if context else stop


def _complain(message: str, exit_code: int) -> NoReturn:
    """One line, whatever the message holds."""
    click.echo(f"vllm-capacity: {' '.join(message.split())}", err=True)
    sys.exit(exit_code)
