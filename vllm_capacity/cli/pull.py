"""`pull`: telemetry from Parseable, its files, or Prometheus into a window."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from vllm_capacity.cli.options import local_path, range_options
from vllm_capacity.cli.options.settings import SourceSettings, setting_options, taken
from vllm_capacity.errors import InputError
from vllm_capacity.live.pull import pull_window, unreached_end
from vllm_capacity.sources.answers import Step
from vllm_capacity.timerange import TimeRange, last, parse_duration_seconds, parse_instant


@click.command(short_help="Pull telemetry from Parseable or Prometheus into a window.")
@setting_options(SourceSettings)
@range_options
@click.option(
    "--to",
    "target",
    required=True,
    type=click.Path(path_type=Path),
    callback=local_path,
    help="Window to write.",
)
def pull(
    start: str | None,
    end: str | None,
    duration: str | None,
    target: Path,
    late: str,
    **given: object,
) -> None:
    """Pull telemetry into a window.

    From a Parseable server or its files (with --stream), or a Prometheus (without). Credentials
    come from PARSEABLE_USER and PARSEABLE_PASSWORD, or PARSEABLE_API_KEY, or a profile (for
    Prometheus, if it wants any, from PROMETHEUS_USER and PROMETHEUS_PASSWORD, or PROMETHEUS_TOKEN);
    never from the command line. From 3 h on, a server is asked for one state per minute of each
    counter (--downsampled), unless --full.
    """
    now = datetime.now(UTC)
    source = taken(SourceSettings, given)
    order = source.pull_order(
        requested_range(start, end, duration, now=now),
        timedelta(seconds=parse_duration_seconds(late)),
        is_full=source.is_full,
    )
    with progress_bar() as progress:
        pull_window(order, target, environment=os.environ, now=now, progress=progress)
    if missing := unreached_end(target):
        click.echo(missing, err=True)
    click.echo(str(target))


def requested_range(
    start: str | None, end: str | None, duration: str | None, *, now: datetime
) -> TimeRange | None:
    """The range given by the options, None if they give none; InputError if they disagree."""
    if duration is not None:
        if start is not None or end is not None:
            raise InputError("Give either --last, or --start and --end.")
        return last(duration, now=now)
    if start is None and end is None:
        return None
    if start is None or end is None:
        raise InputError("Give --start and --end together (or --last).")
    return TimeRange(parse_instant(start), parse_instant(end))


@contextmanager
def progress_bar() -> Iterator[Callable[[Step], None]]:
    """A bar on stderr, removed when done; nothing if stderr is not a terminal."""
    console = Console(stderr=True)
    columns = (
        TextColumn("pulling"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[megabytes]:.1f} MB"),
        TimeElapsedColumn(),
    )
    is_seen = sys.stderr.isatty()
    with Progress(*columns, console=console, transient=True, disable=not is_seen) as bar:
        task = bar.add_task("pull", total=None, megabytes=0.0)

        def show(step: Step) -> None:
            bar.update(task, total=step.total, completed=step.done, megabytes=step.wire_bytes / 1e6)

        yield show
