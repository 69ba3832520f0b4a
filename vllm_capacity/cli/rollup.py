"""`rollup`: what figures of long ranges read, made ahead by several workers."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from vllm_capacity.figures.rolled_up import RolledUp
    from vllm_capacity.telemetry.window import Window
    from vllm_capacity.telemetry.workers import Workers


@click.command(short_help="Make ahead what figures of a long window read.")
@click.argument("source")
@click.option(
    "--workers",
    type=click.IntRange(1, 10_000),
    help="How many work side by side; as many as there are processors without it.",
)
def rollup(source: str, workers: int | None) -> None:
    """Make ahead what figures, cost and report of the window SOURCE read.

    Every hour leaves behind what figures of ranges over six hours are made of. The first command
    that needs it makes it, one hour after another; this one makes it by several workers, each an
    hour at a time. What was made is kept: a run that was killed goes on where it ended, and after
    rows came late only the hours are made that they touch.

    Examples: vllm-capacity rollup data/windows/july --workers 8
    """
    from vllm_capacity.figures.rolled_up import most_workers, roll_up
    from vllm_capacity.telemetry.window import open_window

    window = open_window(source)
    count = min(workers or os.cpu_count() or 1, most_workers(window))
    with _workers(count) as those, _progress(window) as progress:
        done = roll_up(window, those, progress=progress)
    click.echo(_told(window, done))


def _workers(count: int) -> AbstractContextManager[Workers | None]:
    """So many processes, each with its share of the memory; None for this one alone."""
    from vllm_capacity.telemetry.memory import MEMORY_LIMIT, limit_bytes
    from vllm_capacity.telemetry.workers import processes

    if count == 1:
        return nullcontext()
    return processes(count, {MEMORY_LIMIT: f"{limit_bytes() // count}B"})


def _told(window: Window, done: RolledUp) -> str:
    if not done.pieces:
        return (
            f"{window.name}: nothing to make; figures of a window of up to six hours, or of "
            "minutes, are read from its rows."
        )
    pieces = "1 piece" if done.pieces == 1 else f"{done.pieces:,} pieces"
    hours = f"{window.extent.hours:,.0f} hours"
    return f"{window.name}: {hours} in {pieces}, {done.made:,} of them made now."


@contextmanager
def _progress(window: Window) -> Iterator[Callable[[int, int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    console = Console(stderr=True)
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task(window.name, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
