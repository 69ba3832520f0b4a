"""`rollup`: precompute the data that figures of long ranges read, with several workers."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from vllm_capacity.cli.options import local_path, progress_bar, range_options
from vllm_capacity.cli.options.settings import SourceSettings, setting_options, taken
from vllm_capacity.errors import InputError
from vllm_capacity.telemetry.bucket import is_s3
from vllm_capacity.timerange import parse_duration_seconds

if TYPE_CHECKING:
    from vllm_capacity.figures.rolled_up import RolledUp
    from vllm_capacity.live.pull import PullOrder
    from vllm_capacity.telemetry.window import Window
    from vllm_capacity.telemetry.workers import Workers

    Pool = Callable[[int], AbstractContextManager[Workers | None]]
    """Workers, at most as many as given; None for this process alone."""

_SLICE_BYTES = 1_500_000_000  # a worker that reads a slice of a source


def _place(_: click.Context, option: click.Parameter, value: str) -> str:
    if value not in ("local", "ray") and not re.fullmatch(r"ray://[^\s/@]+:\d{1,5}", value):
        raise click.BadParameter(f"{value!r} must be local, ray or ray://HOST:PORT.", param=option)
    return value


def _path_or_s3(context: click.Context, option: click.Parameter, value: str | None) -> str | None:
    if value is not None and not is_s3(value):
        if not value.strip():
            raise click.BadParameter("A path must not be empty.", param=option)
        local_path(context, option, Path(value))
    return value


@click.command(short_help="Precompute hourly summaries of a long window.")
@click.argument("origin", metavar="SOURCE")
@click.option(
    "--to",
    "target",
    callback=_path_or_s3,
    help="PATH or s3://BUCKET/FOLDER for the window with its summaries; of a window, a copy.",
)
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
@range_options
@setting_options(SourceSettings, without="origin")
def rollup(
    origin: str,
    target: str | None,
    place: str,
    workers: int | None,
    start: str | None,
    end: str | None,
    duration: str | None,
    late: str,
    **given: object,
) -> None:
    """Precompute hourly summaries of SOURCE, for figures, cost and report.

    SOURCE is a window: a path, a name, or s3://BUCKET/FOLDER. Or it is the URL of a Prometheus, or
    the root of a Parseable store (a folder or s3://…, with --stream): workers read the time range
    from it, an hour or less per task, and --to says where the window is written.

    Figures of ranges over six hours are computed from summaries of each hour. The first command
    that needs them computes them one hour after another; this command uses several workers.
    Everything finished is stored: a killed run continues where it stopped, and after late rows only
    the hours with such rows are computed again.

    On Ray (the extra `ray`), `ray` means the cluster in RAY_ADDRESS, or a new one on this
    machine. Its workers need this version of vllm-capacity, and windows on disk at the same path.

    Credentials for S3 come from AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_ENDPOINT_URL, or a
    profile of AWS; for servers, see `vllm-capacity pull --help`. Workers on Ray use those of their
    own environment.
    """
    from vllm_capacity.cli.pull import requested_range
    from vllm_capacity.figures.rolled_up import entries_of, most_workers, roll_up
    from vllm_capacity.live.access import is_server
    from vllm_capacity.sources.http import without_credentials
    from vllm_capacity.telemetry.copies import copy_window, require_target
    from vllm_capacity.telemetry.window import open_window

    source = taken(SourceSettings, {"origin": origin, **given})
    now, order = datetime.now(UTC), None
    if is_server(origin) or source.stream is not None:
        if target is None:
            shown = without_credentials(origin)
            raise InputError(f"Give --to, where to write the window of {shown}: a path or s3://….")
        asked = requested_range(start, end, duration, now=now)
        arrived = timedelta(seconds=parse_duration_seconds(late))
        order = source.pull_order(asked, arrived, is_full=source.is_full)
    else:
        _refuse_source_options(origin)
        if target is not None:
            require_target(origin, target)
    with _pool(place, workers) as pool:
        window = open_window(origin) if order is None else _pulled(order, str(target), pool, now)
        with pool(most_workers(window)) as those, progress_bar(window.name) as progress:
            done = roll_up(window, those, progress=progress)
        if order is None and target is not None:
            copy_window(window.manifest, entries_of(window), target)
    copied = f" Copied to {target}." if order is None and target else ""
    click.echo(_summary(window, done) + copied)


def _pulled(order: PullOrder, target: str, pool: Pool, now: datetime) -> Window:
    """The window of a server or store, read by workers unless it is there already."""
    from vllm_capacity.cli.pull import progress_bar as pull_progress_bar
    from vllm_capacity.live.pulled import pulled_window
    from vllm_capacity.telemetry.memory import limit_bytes

    most = max(1, limit_bytes() // _SLICE_BYTES)
    with pool(most) as those, pull_progress_bar() as progress:
        return pulled_window(
            order, target, environment=os.environ, now=now, workers=those, progress=progress
        )


@contextmanager
def _pool(place: str, count: int | None) -> Iterator[Pool]:
    """What gives the workers of that place: on Ray always the same ones."""
    from vllm_capacity.telemetry.on_ray import ray_workers

    if place == "local":
        yield lambda most: _processes(min(count or os.cpu_count() or 1, most))
    else:
        with ray_workers(None if place == "ray" else place, count, {}) as those:
            yield lambda most: nullcontext(those)


def _processes(count: int) -> AbstractContextManager[Workers | None]:
    """Processes on this machine, each with its share of the memory; None instead of only one."""
    from vllm_capacity.telemetry.memory import MEMORY_LIMIT, limit_bytes
    from vllm_capacity.telemetry.workers import processes

    if count == 1:
        return nullcontext()
    return processes(count, {MEMORY_LIMIT: f"{limit_bytes() // count}B"})


def _refuse_source_options(origin: str) -> None:
    """InputError for options that only a server or store takes."""
    context = click.get_current_context()
    for option in context.command.params:
        name = option.name or ""
        is_typed = context.get_parameter_source(name) is ParameterSource.COMMANDLINE
        if is_typed and name not in ("origin", "target", "place", "workers"):
            raise InputError(
                f"{option.opts[0]} is for a server, or for a store with --stream, but {origin!r} "
                "is the name of a window. Remove the option, or give the server's URL."
            )


def _summary(window: Window, done: RolledUp) -> str:
    if not done.pieces:
        return (
            f"{window.name}: nothing to precompute; windows of up to six hours, and windows of "
            "minutes, are read directly."
        )
    pieces = "1 piece" if done.pieces == 1 else f"{done.pieces:,} pieces"
    hours = f"{window.extent.hours:,.0f} hours"
    return f"{window.name}: {hours} in {pieces}, {done.made:,} of them new."
