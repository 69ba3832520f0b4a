"""`pull`: telemetry out of Parseable, its files, or Prometheus, into a window."""

from __future__ import annotations

import os
import stat
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click
import httpx
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from vllm_capacity.cli.reading import checked_url
from vllm_capacity.errors import InputError
from vllm_capacity.live.pull import pull_files, pull_prometheus, pull_server
from vllm_capacity.sources.parseable import Parseable
from vllm_capacity.sources.parseable_pull import Request, Step
from vllm_capacity.sources.prometheus import Prometheus
from vllm_capacity.sources.wire import client
from vllm_capacity.timerange import TimeRange, last, parse_duration_seconds, parse_instant

_THINNED_FROM = timedelta(hours=3)
# Parseable gives a query 300 s; the rest is for its answer to come over the wire.
_TIMEOUT = httpx.Timeout(600.0, connect=10.0)
_MOST_BYTES = 2 * 1024**3  # of one answer: an hour of every sample of a large fleet
_KEPT = httpx.Limits(max_keepalive_connections=1)
_SETTINGS = ("url", "user", "password", "api_key")


@click.command(short_help="Telemetry out of Parseable or Prometheus into a window.")
@click.option("--from", "origin", help="URL of a server, path or s3:// of a store's root.")
@click.option("--stream", help="Parseable's stream; leave it out for Prometheus.")
@click.option("--start", help="First sample time, ISO 8601 (UTC unless it says otherwise).")
@click.option("--end", help="Sample time to stop before.")
@click.option("--last", "duration", help="Instead of --start and --end: the last 24h, 90m, 7d.")
@click.option("--to", "target", required=True, type=click.Path(path_type=Path), help="The window.")
@click.option(
    "--full/--thinned",
    "is_full",
    default=None,
    help="Every sample, or first and last states a minute. From 3 h on: thinned.",
)
@click.option("--late", default="2h", show_default=True, help="How late samples may have arrived.")
@click.option("--profile", type=click.Path(path_type=Path), help="Settings file of mode 0600.")
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
    part = asked_range(start, end, duration, now=datetime.now(UTC))
    delay = timedelta(seconds=parse_duration_seconds(late))
    if not origin.startswith(("http://", "https://")):
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
            pull_server(Parseable(asking), request, target, progress=progress)
    click.echo(str(target))


def asked_range(
    start: str | None, end: str | None, duration: str | None, *, now: datetime
) -> TimeRange | None:
    """The range that the options name, None where they name none; InputError if they disagree."""
    if duration is not None:
        if start or end:
            raise InputError("Give either --last, or --start and --end.")
        try:
            return last(duration, now=now)
        except OverflowError:
            raise InputError(f"--last {duration} goes back before all calendars.") from None
    if start is None and end is None:
        return None
    if start is None or end is None:
        raise InputError("Give --start and --end together (or --last).")
    return TimeRange(parse_instant(start), parse_instant(end))


def read_settings(environment: Mapping[str, str], profile: Path | None) -> dict[str, str]:
    """URL and credentials: the profile's, over which the environment's `PARSEABLE_…` win.

    A profile is TOML with url, user, password, api_key, readable by its owner alone; InputError
    otherwise.
    """
    found = _read_profile(profile) if profile else {}
    for name in _SETTINGS:
        value = environment.get(f"PARSEABLE_{name.upper()}")
        if value:
            found[name] = value
    return found


def _read_profile(path: Path) -> dict[str, str]:
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & 0o077:
            raise InputError(
                f"{path} holds a password and others can read it (mode {mode:04o}): chmod 600 it."
            )
        content = tomllib.loads(path.read_text())
    except OSError as error:
        raise InputError(f"Cannot read the profile {path}: {error.strerror}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError):
        raise InputError(f"The profile {path} is not TOML: expected lines like user = …") from None
    unknown = sorted(set(content) - set(_SETTINGS))
    if unknown:
        raise InputError(
            f"The profile {path} has {', '.join(unknown)}; it may hold {', '.join(_SETTINGS)}."
        )
    return {name: str(value) for name, value in content.items()}


@contextmanager
def http_client(url: str, settings: Mapping[str, str]) -> Iterator[httpx.Client]:
    """A client for a Parseable server; InputError where the URL holds a password or none is set."""
    _refuse_password_in(url, "PARSEABLE")
    key = settings.get("api_key")
    user, password = settings.get("user"), settings.get("password")
    if not key and not (user and password):
        raise InputError(
            f"No credentials for {url}. Set PARSEABLE_USER and PARSEABLE_PASSWORD, or "
            "PARSEABLE_API_KEY, or write a --profile of mode 0600."
        )
    auth = None if key or not user or not password else httpx.BasicAuth(user, password)
    headers = {"X-API-KEY": key} if key else {}
    with _asking(url, auth, headers) as asking:
        yield asking


@contextmanager
def prometheus_client(url: str, environment: Mapping[str, str]) -> Iterator[httpx.Client]:
    """A client for a Prometheus, with the credentials of the environment if there are any."""
    _refuse_password_in(url, "PROMETHEUS")
    user, password = (environment.get(f"PROMETHEUS_{name}") for name in ("USER", "PASSWORD"))
    token = environment.get("PROMETHEUS_TOKEN")
    auth = httpx.BasicAuth(user, password) if user and password else None
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    with _asking(url, auth, headers) as asking:
        yield asking


def _asking(url: str, auth: httpx.Auth | None, headers: Mapping[str, str]) -> httpx.Client:
    return client(
        base_url=url,
        auth=auth,
        headers=headers,
        timeout=_TIMEOUT,
        most_bytes=_MOST_BYTES,
        limits=_KEPT,
    )


def _refuse_password_in(url: str, prefix: str) -> None:
    if httpx.URL(checked_url(url)).userinfo:
        raise InputError(
            f"A URL with a password is seen by everyone on this machine. Set {prefix}_USER and "
            f"{prefix}_PASSWORD instead."
        )


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
