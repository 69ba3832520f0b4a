"""`rollup`: precompute the data that figures of long ranges read, with several workers."""

from __future__ import annotations

import os
import re
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import click

from vllm_capacity.cli.options import progress_bar

if TYPE_CHECKING:
    from vllm_capacity.figures.rolled_up import RolledUp
    from vllm_capacity.telemetry.window import Window
    from vllm_capacity.telemetry.workers import Workers


def _place(_: click.Context, option: click.Parameter, value: str) -> str:
    if value not in ("local", "ray") and not re.fullmatch(r"ray://[^\s/@]+:\d{1,5}", value):
        raise click.BadParameter(f"{value!r} must be local, ray or ray://HOST:PORT.", param=option)
    return value


@click.command(short_help="Precompute hourly summaries of a long window.")
@click.argument("source")
@click.option("--to", "target", help="s3://BUCKET/FOLDER: copy the window and its rollup there.")
@click.option(
    "--on",
    "place",
    default="local",
    show_default=True,
    callback=_place,
    help="Where to run: local (processes on this machine), ray, or ray://HOST:PORT.",
)
@click.option(
    "--workers",
    type=click.IntRange(1, 10_000),
    help="Number of parallel workers; default: the number of processors.",
)
def rollup(source: str, target: str | None, place: str, workers: int | None) -> None:
    """Precompute hourly summaries of the window SOURCE, for figures, cost and report.

    SOURCE is a path, a name, or s3://BUCKET/FOLDER.

    Figures of ranges over six hours are computed from summaries of each hour. The first command
    that needs them computes them one hour after another; this command uses several workers.
    Summaries are stored: a killed run continues where it stopped, and after late rows only the
    hours with such rows are computed again.

    On Ray (the extra `ray`), `ray` means the cluster in RAY_ADDRESS, or a new one on this
    machine. Its workers need this version of vllm-capacity, and SOURCE at the same path.

    Credentials for S3 come from AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_ENDPOINT_URL, or a
    profile of AWS.
    """
    from vllm_capacity.figures.rolled_up import entries_of, roll_up
    from vllm_capacity.telemetry.mirror import publish, require_target
    from vllm_capacity.telemetry.window import open_window

    if target is not None:
        require_target(source, target)
    window = open_window(source)
    with _workers(window, place, workers) as those, progress_bar(window.name) as progress:
        done = roll_up(window, those, progress=progress)
    if target is not None:
        publish(window.manifest, entries_of(window), target)
    click.echo(_summary(window, done) + (f" Copied to {target}." if target else ""))


def _workers(
    window: Window, place: str, count: int | None
) -> AbstractContextManager[Workers | None]:
    """The workers of that place; None for this process alone.

    On this machine, at most as many as fit into its memory together, each with its share of it.
    """
    from vllm_capacity.figures.rolled_up import most_workers
    from vllm_capacity.telemetry.memory import MEMORY_LIMIT, limit_bytes
    from vllm_capacity.telemetry.on_ray import ray_workers
    from vllm_capacity.telemetry.workers import processes

    if place != "local":
        address = None if place == "ray" else place
        return ray_workers(address, count, {})
    here = min(count or os.cpu_count() or 1, most_workers(window))
    if here == 1:
        return nullcontext()
    return processes(here, {MEMORY_LIMIT: f"{limit_bytes() // here}B"})


def _summary(window: Window, done: RolledUp) -> str:
    if not done.pieces:
        return (
            f"{window.name}: nothing to precompute; windows of up to six hours, and windows of "
            "minutes, are read directly."
        )
    pieces = "1 piece" if done.pieces == 1 else f"{done.pieces:,} pieces"
    hours = f"{window.extent.hours:,.0f} hours"
    return f"{window.name}: {hours} in {pieces}, {done.made:,} of them new."
