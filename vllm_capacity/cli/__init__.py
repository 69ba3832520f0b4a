"""The command line: one module per command group, loaded only when its command is used.

The only place that reads the clock, the environment and argv. Results go to stdout, everything else
to stderr. Exit codes: 0 done, 1 an alert or check fired, 2 bad input, 3 a source failed, 70 an
internal error, 130 interrupted.
"""

from __future__ import annotations

import atexit
import errno
import gc
import importlib
import io
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

import click

from vllm_capacity.cli.options.examples import EXAMPLES
from vllm_capacity.errors import CapacityError, InputError, needing_extra

PROGRAM = "vllm-capacity"
DEBUG = "VLLM_CAPACITY_DEBUG"
OWN_FACTS = "VLLM_CAPACITY_FACTS"
SETTINGS = "VLLM_CAPACITY_SETTINGS"
_BUG = 70
_OBJECTS_PER_COLLECTION = 200_000  # more than a small window takes
_LONGEST = 2_000
_SYSTEM_ERROR = re.compile(r"\(os error (\d{1,3})\)")
_CREDENTIALS = re.compile(r"(?<=\w):/{1,3}\S*@")  # paths keep one slash of a URL

_VERBS: Mapping[str, tuple[str, str]] = {
    "alerts": ("alerts", "Evaluate alert rules on a window; exit code 1 if one fires."),
    "compare": ("compare", "Show what changed from window A to B, beyond noise."),
    "completion": ("completion", "Shell completion for bash, zsh or fish."),
    "config": ("config", "Check the settings file."),
    "cost": ("figures", "Divide the bill of WINDOW by engine, model or label."),
    "dashboard": ("monitoring", "Print a Grafana dashboard of vLLM's capacity and cost."),
    "doctor": ("doctor", "Find the first broken link from vLLM to a window, and its fix."),
    "export": ("export", "Export WINDOW or REPORTS as CSV, Parquet, FOCUS and others."),
    "facts": ("facts", "List known GPUs, models, prices and metrics, with sources."),
    "figures": ("figures", "Show all figures and verdicts of a window, or of part of it."),
    "fit": ("fit", "Estimate capacity from load tests, measured or extrapolated."),
    "forecast": ("forecast", "Forecast demand from a CSV of past demand."),
    "gpus": ("facts", "List known GPUs."),
    "init": ("config", "Write vllm-capacity.toml with settings detected here."),
    "model": ("model", "Show the memory a model needs, and how many users fit."),
    "models": ("facts", "List known models."),
    "plan": ("plan", "Plan GPUs, replicas and cost per month for a window's load."),
    "prices": ("facts", "List known prices, with dates and sources."),
    "proxy": ("proxy", "Serve vLLM's metrics with underscores for colons."),
    "pull": ("pull", "Pull telemetry from Parseable or Prometheus into a window."),
    "report": ("report", "Write HTML reports of a window, or of each day of a source."),
    "reprice": ("reprice", "Recompute a report's costs at another price, without telemetry."),
    "rollup": ("rollup", "Precompute hourly summaries of a long window."),
    "rules": ("monitoring", "Print recording and alerting rules for Prometheus."),
    "schedule": (
        "schedule",
        "Schedule the nightly report: cron, systemd, Kubernetes, Jupyter.",
    ),
    "scrape": ("scrape", "Scrape vLLM's /metrics, or saved scrapes, into a window."),
    "simulate": ("simulate", "Write a simulated engine's window: example data, not telemetry."),
    "sql": ("sql", "Print a query for Parseable, or list them."),
    "stack": ("stack", "Set up Parseable: streams, users, dashboard, alerts."),
    "tenants": ("tenants", "Cost of WINDOW by tenant, from a gateway's log."),
    "traces": ("sql", "Show the slowest requests, and where their time went."),
    "watch": ("watch", "Watch live engines: load, latency and cost."),
    "whatif": ("whatif", "Estimate output tokens per second on another GPU."),
    "windows": ("windows", "List windows, and what each contains."),
}
"""Each command's module and one-line help: `--help` imports none of the modules."""


class _LazyGroup(click.Group):
    """A group that imports a command's module only when that command is used, for a fast start."""

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:  # noqa: ANN401
        with _open_output():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> object:
        with _open_output():
            return super().invoke(ctx)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_VERBS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in _VERBS:
            return None
        with needing_extra("report"):  # the packages of the other extras are always installed
            module = importlib.import_module(f"vllm_capacity.cli.{_VERBS[name][0]}")
        command = getattr(module, name)
        assert isinstance(command, click.Command)
        command.epilog = _with_examples(command.epilog, name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.exceptions.NoSuchCommand as error:
            raise click.exceptions.NoSuchCommand(
                error.command_name, possibilities=_VERBS, ctx=ctx
            ) from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, _VERBS[name][1]) for name in self.list_commands(ctx)])


def _with_examples(epilog: str | None, verb: str) -> str:
    """The end of a command's help: its examples first, one per line."""
    lines = "\n".join(f"{PROGRAM} {each}" for each in EXAMPLES[verb])
    examples = f"Examples:\n\n\b\n{lines}"
    if epilog is None or epilog.startswith(examples):
        return epilog or examples
    return f"{examples}\n\n{epilog}"


@click.group(cls=_LazyGroup)
@click.version_option(package_name="vllm-capacity")
@click.option(
    "--memory-limit",
    metavar="SIZE",
    help="Memory limit per answer, such as 4GB; default: half of the machine's memory.",
)
@click.option(
    "--facts",
    "own_facts",
    type=click.Path(path_type=Path),
    envvar=OWN_FACTS,
    help=f"Folder with your own GPUs, models and prices; or {OWN_FACTS}. See: facts --help.",
)
@click.option(
    "--settings",
    type=click.Path(path_type=Path),
    envvar=SETTINGS,
    help=f"Settings file; or {SETTINGS}; default: vllm-capacity.toml here, if it exists.",
)
@click.pass_context
def cli(
    context: click.Context, memory_limit: str | None, own_facts: Path | None, settings: Path | None
) -> None:
    """Capacity and cost planning for self-hosted LLM inference on vLLM."""
    from vllm_capacity.cli.options.settings_file import FILE_NAME, VERBS, read_settings_file

    context.obj = settings or Path(FILE_NAME)
    if context.invoked_subcommand in VERBS and (settings or context.obj.is_file()):
        found = read_settings_file(context.obj)
        found.require_sound()
        context.default_map = {verb: dict(found.values) for verb in VERBS}
    if memory_limit is not None:
        from vllm_capacity.telemetry.memory import MEMORY_LIMIT, parse_size

        parse_size(memory_limit)
        os.environ[MEMORY_LIMIT] = memory_limit  # papermill's kernel uses it, too
    folder = _own_facts(own_facts)
    if folder is not None:
        from vllm_capacity.facts.tables import use_own_rows

        use_own_rows(folder)
        os.environ[OWN_FACTS] = str(folder)  # papermill's kernel uses them, too


def _own_facts(given: Path | None) -> Path | None:
    """The given folder, else the one in this user's settings folder if it exists."""
    if given is not None:
        if not given.is_dir():
            raise InputError(f"No folder {str(given)!r} of facts (--facts, {OWN_FACTS}).")
        return given.absolute()
    usual = Path(click.get_app_dir("vllm-capacity"))
    return usual if usual.is_dir() else None


@contextmanager
def _open_output() -> Iterator[None]:
    """Turn a pipe closed by its reader into an InputError; click's exit code means an alert."""
    try:
        yield
    except BrokenPipeError:
        raise InputError("Standard output was closed before everything was written.") from None


def main() -> None:
    """Run the command line; an error ends it with a one-line message and its exit code.

    Searching for cycles among the objects of a thousand modules, while they are imported and again
    at exit, would take a seventh of a short command's time. So would the threads of OpenBLAS: the
    matrices here are too small for them, and idle ones spin.
    """
    gc.set_threshold(_OBJECTS_PER_COLLECTION)
    atexit.register(gc.freeze)
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    run(cli)


def run(command: click.Command) -> None:
    """Run a command on argv as `main` does."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        _check_encoding(sys.argv[1:])
        command(prog_name=PROGRAM, standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(2)
    except click.ClickException as error:
        _complain(error.format_message() + _help_hint(error), 2)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    except CapacityError as error:
        _complain(str(error), error.exit_code)
    except OSError as error:  # a file that a command could not read or write
        _complain(_of_the_system(error.errno, error.strerror or str(error), error.filename), 2)
    except SystemExit:
        raise
    except BaseException as error:  # a panic in a native library is not an Exception
        found = _SYSTEM_ERROR.search(str(error))
        if found:  # how Rust libraries report a full disk and the like
            _complain(_of_the_system(int(found[1]), os.strerror(int(found[1]))), 2)
        _complain(_bug(error), _BUG)


def _of_the_system(number: int | None, words: str, path: object = None) -> str:
    """The operating system's error, its path if known, and what to do if a disk is full."""
    if number in (errno.ENOSPC, errno.EDQUOT):
        where = f" {path}" if path else ""
        return f"Cannot write{where}: {words}. Free some space, then run it again."
    return f"{path or 'Failed'}: {words}."


def _check_encoding(args: Sequence[str]) -> None:
    """Refuse arguments that are not UTF-8: DuckDB, polars and URLs cannot carry them."""
    for word in args:
        try:
            word.encode()
        except UnicodeEncodeError:
            raise InputError(f"The argument {word!r} is not UTF-8.") from None


def _bug(error: BaseException) -> str:
    """How to report an unexpected error, without its message, which may contain a secret."""
    if os.environ.get(DEBUG):
        import traceback

        traceback.print_exception(error)
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = f"{trace.tb_frame.f_globals.get('__name__')}, line {trace.tb_lineno}" if trace else "?"
    return (
        f"This is a bug in vllm-capacity ({type(error).__name__} in {place}). Please report it, "
        f"with what {DEBUG}=1 shows of the same command, after removing what is private."
    )


def _help_hint(error: click.ClickException) -> str:
    context = error.ctx if isinstance(error, click.UsageError) else None
    stop = "" if error.format_message().endswith((".", "?", "?)")) else "."
    return f"{stop} Try '{context.command_path} --help'." if context else stop


def _complain(message: str, exit_code: int) -> NoReturn:
    """Print one line, whatever the message's content and length, without passwords in URLs."""
    text = _CREDENTIALS.sub("://", " ".join(message.split()))
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST // 2]} … {text[-_LONGEST // 2 :]}"
    with suppress(OSError):  # if stderr is full, only the exit code is left
        click.echo(f"vllm-capacity: {text}", err=True)
    for stream in (sys.stdout, sys.stderr):
        _let_go(stream)
    sys.exit(exit_code)


def _let_go(stream: io.TextIOBase | Any) -> None:  # noqa: ANN401
    """Drop output that a stream cannot take; the interpreter would report it on exit."""
    try:
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    except (AttributeError, ValueError):
        pass  # closed from the start
