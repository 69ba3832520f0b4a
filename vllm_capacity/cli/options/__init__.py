"""Common parts of commands: options with stricter checks than click's, and the screen width."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from vllm_capacity.errors import InputError

_URL = re.compile(r"\w+:/")
_STREAM = re.compile(r"[A-Za-z0-9_-]+")
_MIN, _MAX = 1e-12, 1e12


class _File(click.Path):
    """A path that may be a file, but not a pipe or device, which may never end."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:  # noqa: ANN401  as in click
        path = Path(str(super().convert(value, param, ctx)))
        if not str(value).strip():
            self.fail("A file name must not be empty.", param, ctx)
        if path.exists() and not (path.is_file() or path.is_dir()):
            self.fail(f"{path} is a pipe, socket or device; a file was expected.", param, ctx)
        return path


FILE = _File()


def target_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--label` and `--targets` to a command that scrapes, as `labels` and `listed`."""
    label = click.option(
        "--label",
        "labels",
        multiple=True,
        metavar="NAME=VALUE",
        help="A label of these targets, for --by and mapping files, such as team=search; "
        "repeatable.",
    )
    listed = click.option(
        "--targets",
        "listed",
        type=FILE,
        help="Targets with labels of their own, from a file of Prometheus' file_sd_configs.",
    )
    return label(listed(command))


def range_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the time range to pull, as `start`, `end` and `duration`, and `late`."""
    options = (
        click.option("--start", help="Start time, ISO 8601 (UTC if it has no offset)."),
        click.option("--end", help="End time, exclusive."),
        click.option(
            "--last", "duration", help="Instead of --start and --end: the last 24h, 90m, 7d."
        ),
        click.option(
            "--late",
            default="2h",
            show_default=True,
            help="How late samples may have arrived in the store.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def local_path(_: click.Context, option: click.Parameter, value: Path | None) -> Path | None:
    """An option's path to write to, neither blank nor a URL; a click `callback`."""
    if value is not None and (not str(value).strip() or _URL.match(str(value))):
        raise click.BadParameter(
            f"{str(value)!r} is not a valid path on this machine.", param=option
        )
    return value


def file_to_write(
    context: click.Context, option: click.Parameter, value: Path | None
) -> Path | None:
    """An option's file to write, not a folder; a click `callback`."""
    path = local_path(context, option, value)
    if path is not None and path.is_dir():
        raise click.BadParameter(f"{path} is a folder; name a file in it.", param=option)
    return path


def stream_name(_: click.Context, option: click.Parameter, value: str | None) -> str | None:
    """An option's stream name, in characters that Parseable allows; a click `callback`."""
    if value is not None and not _STREAM.fullmatch(value):
        raise click.BadParameter(
            f"{value!r} is not a stream name: use letters, digits, - and _.", param=option
        )
    return value


def bounded(_: click.Context, option: click.Parameter, value: float | None) -> float | None:
    """An option's number, if it is valid and within limits; a click `callback`."""
    if value is None or value == 0 or _MIN <= abs(value) <= _MAX:
        return value
    if abs(value) < _MIN:
        raise click.BadParameter(f"{value} must be 0, or at least {_MIN:g}.", param=option)
    raise click.BadParameter(f"{value} must be a number up to {_MAX:g}.", param=option)


def listen_address(listen: str) -> tuple[str, int]:
    """The host and port of `HOST:PORT`; InputError for other text."""
    host, _, port = listen.rpartition(":")
    if not host or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise InputError(f"Cannot listen on {listen!r}: give HOST:PORT, such as 127.0.0.1:9090.")
    return host.strip("[]"), int(port)


@contextmanager
def progress_bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr that is called with (done, total); nothing if stderr is not a terminal."""
    # Under cron, a bar would be mailed. (Rich takes the output of a Jupyter kernel for a terminal.)
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


_MIN_COLUMNS, _MAX_COLUMNS = 80, 100
"""Narrower, tables would lose columns; wider, lines are hard to read."""


def columns(most: int = _MAX_COLUMNS) -> int:
    """The output width: the terminal's (or COLUMNS) within bounds; 80 without one."""
    return min(max(shutil.get_terminal_size().columns, _MIN_COLUMNS), most)
