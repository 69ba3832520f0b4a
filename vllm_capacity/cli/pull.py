"""`pull`: telemetry out of Parseable, its files, or Prometheus, into a window."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click
import httpx
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from vllm_capacity.cli.access import checked_url, client, is_server, read_settings
from vllm_capacity.cli.reading import FILE, local_path, stream_name
from vllm_capacity.errors import InputError
from vllm_capacity.live.pull import pull_files, pull_prometheus, pull_server, unreached_end
from vllm_capacity.sources.parseable import Parseable
from vllm_capacity.sources.parseable_pull import Request, Step
from vllm_capacity.sources.prometheus import Prometheus
from vllm_capacity.timerange import TimeRange, last, parse_duration_seconds, parse_instant

_THINNED_FROM = timedelta(hours=3)
# Parseable gives a query 300 s; the rest is for its answer to come over the wire.
_TIMEOUT = httpx.Timeout(600.0, connect=10.0)
_MOST_BYTES = 2 * 1024**3  # of one answer: an hour of every sample of a large fleet
_KEPT = httpx.Limits(max_keepalive_connections=1)


@click.command(short_help="Telemetry out of Parseable or Prometheus into a window.")
@click.option("--from", "origin", help="URL of a server, path or s3:// of a store's root.")
@click.option(
    "--stream", callback=stream_name, help="Parseable's stream; leave it out for Prometheus."
)
@click.option("--start", help="First sample time, ISO 8601 (UTC unless it says otherwise).")
@click.option("--end", help="Sample time to stop before.")
@click.option("--last", "duration", help="Instead of --start and --end: the last 24h, 90m, 7d.")
@click.option(
    "--to",
    "target",
    required=True,
    type=click.Path(path_type=Path),
    callback=local_path,
    help="The window.",
)
@click.option(
    "--full/--thinned",
    "is_full",
    default=None,
    help="Every sample, or first and last states a minute. From 3 h on: thinned.",
)
@click.option("--late", default="2h", show_default=True, help="How late samples may have arrived.")
@click.option("--profile", type=FILE, help="Settings file of mode 0600.")
def pull(
    origin: str | None,
    stream: str | None,
    start: str | None,
    end: str | None,
    duration: str | None,
    target: Path,
    is_full: bool | None,
    late: str,
    profile: Path | None,
) -> None:
    """Pull telemetry into a window.

    From a Parseable server or its files (with --stream), or a Prometheus (without). Credentials
    come from PARSEABLE_USER and PARSEABLE_PASSWORD, or PARSEABLE_API_KEY, or a profile (for
    Prometheus, if it wants any, from PROMETHEUS_USER and PROMETHEUS_PASSWORD, or PROMETHEUS_TOKEN);
    never from the command line.
    """
    settings = read_settings(os.environ, profile)
    origin = origin or settings.get("url")
    if not origin:
        raise InputError(
            "Say where to pull --from: a URL, a folder, or s3://…, or set PARSEABLE_URL."
        )
    now = datetime.now(UTC)
    part = asked_range(start, end, duration, now=now)
    delay = timedelta(seconds=parse_duration_seconds(late))
    if not is_server(origin):
        if stream is None:
            raise InputError(f"Say which --stream of the store {origin} to pull.")
        pull_files(origin, stream, target, part, late=delay)
    elif part is None:
        raise InputError("Say which time: --last 24h, or --start and --end.")
    elif stream is None:
        with prometheus_client(origin, os.environ) as asking, progress_bar() as progress:
            pull_prometheus(Prometheus(asking), part, target, progress=progress)
    else:
        is_long = part.seconds >= _THINNED_FROM.total_seconds()
        request = Request(stream, part, is_long if is_full is None else not is_full, delay)
        with http_client(origin, settings) as asking, progress_bar() as progress:
            pull_server(Parseable(asking), request, target, now=now, progress=progress)
    if missing := unreached_end(target):
        click.echo(missing, err=True)
    click.echo(str(target))


def asked_range(
    start: str | None, end: str | None, duration: str | None, *, now: datetime
) -> TimeRange | None:
    """The range that the options name, None where they name none; InputError if they disagree."""
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
def http_client(url: str, settings: Mapping[str, str]) -> Iterator[httpx.Client]:
    """A client for a Parseable server; InputError where the URL holds a password or none is set."""
    checked_url(url, variables="PARSEABLE")
    if not settings.get("api_key") and not (settings.get("user") and settings.get("password")):
        raise InputError(
            f"No credentials for {url}. Set PARSEABLE_USER and PARSEABLE_PASSWORD, or "
            "PARSEABLE_API_KEY, or write a --profile of mode 0600."
        )
    with _asking(url, settings) as opened:
        yield opened


@contextmanager
def prometheus_client(url: str, environment: Mapping[str, str]) -> Iterator[httpx.Client]:
    """A client for a Prometheus, with the credentials of the environment if there are any."""
    checked_url(url, variables="PROMETHEUS")
    names = ("user", "password", "token")
    settings = read_settings(environment, None, prefix="PROMETHEUS", names=names)
    with _asking(url, settings) as opened:
        yield opened


def _asking(url: str, settings: Mapping[str, str]) -> AbstractContextManager[httpx.Client]:
    return client(settings, base_url=url, timeout=_TIMEOUT, most_bytes=_MOST_BYTES, limits=_KEPT)


@contextmanager
def progress_bar() -> Iterator[Callable[[Step], None]]:
    """A bar on stderr, gone when done; nothing where stderr is no terminal."""
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
