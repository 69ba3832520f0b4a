"""`stack`: sets up Parseable, and serves the containers of compose-otel.yml."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from time import sleep

import click
import httpx

from vllm_capacity.cli.options import FILE, bounded, stream_name
from vllm_capacity.errors import InputError
from vllm_capacity.live.access import checked_url, client, secret
from vllm_capacity.live.provision import panels, provision_alerts, provision_dashboard
from vllm_capacity.live.stack import (
    INGEST_SECRET,
    READER_SECRET,
    Management,
    Names,
    initialise,
    newest_arrival,
    read_secret,
    writing_goes_on,
)
from vllm_capacity.sources.http import NO_KEEPALIVE

_ROOT_USER, _ROOT_PASSWORD = "PARSEABLE_ROOT_USER", "PARSEABLE_ROOT_PASSWORD"
_LOOK_SECONDS = 2.0
_URL = "http://127.0.0.1:8080"  # where compose-otel.yml publishes Parseable

_url = click.option(
    "--parseable", envvar="PARSEABLE_URL", default=_URL, show_default=True, help="Parseable's URL."
)
_stream = click.option(
    "--stream",
    envvar="PARSEABLE_STREAM",
    default="vllm_metrics",
    show_default=True,
    callback=stream_name,
    help="Parseable's stream of metrics.",
)
_env_file = click.option(
    "--env-file",
    type=FILE,
    default=Path(".env"),
    show_default=True,
    help=f"File with {_ROOT_USER} and {_ROOT_PASSWORD}, if not in the environment.",
)


@click.group()
def stack() -> None:
    """Set up Parseable: streams, users, dashboard, alerts."""


@stack.command(short_help="Create streams, a writing and a reading user, and their secrets.")
@_url
@_stream
@click.option(
    "--traces-stream",
    envvar="PARSEABLE_TRACES_STREAM",
    default="vllm_traces",
    show_default=True,
    callback=stream_name,
    help="Parseable's stream of spans.",
)
@click.option(
    "--secrets",
    type=click.Path(path_type=Path),
    default=Path("secrets"),
    show_default=True,
    help="Folder for the users' secrets.",
)
@click.option(
    "--targets",
    type=click.Path(path_type=Path),
    default=Path("targets"),
    show_default=True,
    help="Folder for files of further targets, mounted by the Collector.",
)
@click.option(
    "--retention-days", type=click.IntRange(1, 36500), help="Delete data older than this."
)
@click.option("--renew", is_flag=True, help="Give both users new passwords.")
@click.option(
    "--wait",
    type=click.FloatRange(min=0),
    default=60.0,
    callback=bounded,
    show_default=True,
    help="With --renew: seconds to wait for new data in the stream.",
)
@click.option(
    "--revoke",
    multiple=True,
    metavar="STREAM",
    help="Revoke both users' rights to another stream; repeatable.",
)
@_env_file
def init(
    parseable: str,
    stream: str,
    traces_stream: str,
    secrets: Path,
    targets: Path,
    retention_days: int | None,
    renew: bool,
    wait: float,
    revoke: tuple[str, ...],
    env_file: Path,
) -> None:
    """Create streams, the Collector's user (writes only), the notebooks' user (reads only).

    Their secrets are written to --secrets, with mode 0600. It can be run again at any time: rights
    to other streams are kept. After --renew, restart the Collector; the command waits for new data.
    """
    names = Names(metrics_stream=stream, traces_stream=traces_stream)
    with _administrator(parseable, env_file) as admin:
        before = newest_arrival(admin, stream) if renew else None
        done = initialise(
            admin, names, secrets, renew=renew, retention_days=retention_days, revoke=revoke
        )
        targets.mkdir(exist_ok=True)
        for line in [*done, f"folder {targets}: for vllm*.yaml, dcgm*.yaml, node*.yaml"]:
            click.echo(line)
        if renew:
            _explain_renewed(secrets)
            looks = math.ceil(wait / _LOOK_SECONDS)
            click.echo(
                writing_goes_on(
                    admin, stream, before=before, looks=looks, pause=lambda: sleep(_LOOK_SECONDS)
                )
            )


def _explain_renewed(secrets: Path) -> None:
    click.echo(
        f"The Collector reads {secrets / INGEST_SECRET} only when it starts: restart it now "
        "(docker compose -f compose-otel.yml restart collector). What it sends with the old "
        "password is dropped."
    )
    click.echo(
        f"The reporter reads {secrets / READER_SECRET} before each pull. Notebooks and shells with "
        "PARSEABLE_PASSWORD in their environment need the new one."
    )


@stack.command(short_help="Post the dashboard and the alert rules Parseable can evaluate.")
@_url
@_stream
@click.option(
    "--usd-per-gpu-hour",
    type=click.FloatRange(min=0),
    callback=bounded,
    help="USD per GPU-hour in the cost panel; without it, no cost is shown.",
)
@_env_file
def provision(parseable: str, stream: str, usd_per_gpu_hour: float | None, env_file: Path) -> None:
    """Post the dashboard's eight panels and the alert rules that Parseable can evaluate.

    It can be run again: existing objects are kept or updated. Rules that Parseable cannot evaluate
    are listed; `vllm-capacity alerts` evaluates all of them on a window.
    """
    board = panels(stream, usd_per_gpu_hour)
    with _administrator(parseable, env_file) as admin:
        management = Management(admin)
        click.echo(provision_dashboard(management, board, stream))
        for line in provision_alerts(management, stream):
            click.echo(line)


@stack.command(short_help="Exit 0 if every URL answers with success, else 1.")
@click.argument("urls", nargs=-1, required=True)
def healthy(urls: tuple[str, ...]) -> None:
    """Exit 0 if every URL answers with success, else 1: a health check from outside."""
    is_well = True
    checked = [checked_url(url) for url in urls]
    with client(timeout=5.0) as session:
        for url in checked:
            try:
                text = str(session.get(url).status_code)
            except httpx.HTTPError as error:
                text = str(error) or type(error).__name__
            is_well &= text.startswith("2")
            click.echo(f"{url}: {text}", err=True)
    sys.exit(0 if is_well else 1)


@stack.command(short_help="Exit 0 if every folder can be written to, else 2.")
@click.argument("folders", nargs=-1, required=True, type=click.Path(path_type=Path))
def writable(folders: tuple[Path, ...]) -> None:
    """Exit 0 if every folder is writable: checks the volumes before Parseable starts."""
    for folder in folders:
        probe = folder / ".writable"
        try:
            probe.write_text("")
            probe.unlink()
        except OSError as error:
            raise InputError(
                f"{folder} cannot be written to as user {os.getuid()} ({error.strerror}). A volume "
                "that another user made keeps its owner: remove it, or set STACK_UID to that user."
            ) from None


@contextmanager
def _administrator(url: str, env_file: Path) -> Iterator[httpx.Client]:
    """A client with the administrator's credentials, which come only from environment or file."""
    checked_url(url, variables="PARSEABLE_ROOT")
    names = (_ROOT_USER, _ROOT_PASSWORD)
    settings = {name: os.environ[name] for name in names if os.environ.get(name)}
    if len(settings) < len(names):
        settings = {**_read_env_file(env_file), **settings}
    user, password = (secret(name, settings.get(name, "")) for name in names)
    if not user or not password:
        raise InputError(
            f"Set {_ROOT_USER} and {_ROOT_PASSWORD} in the environment or in {env_file} (mode "
            "0600): the administrator that Parseable was started with."
        )
    if password == "admin":
        raise InputError(
            "Parseable's administrator has the default password. Set another one "
            f"({_ROOT_PASSWORD}), restart Parseable, then run this again."
        )
    root = {"user": user, "password": password}
    with client(root, base_url=url, timeout=30.0, limits=NO_KEEPALIVE) as admin:
        yield admin


def _read_env_file(path: Path) -> Mapping[str, str]:
    """NAME=value lines, parsed like compose: comments and quotes around a value are dropped.

    InputError if others can read the file: it has the administrator's password.
    """
    if not path.exists():
        return {}
    lines = (line.strip() for line in read_secret(path).split("\n"))
    pairs = (line.partition("=") for line in lines if "=" in line and not line.startswith("#"))
    return {name.strip(): value.strip().strip("\"'") for name, _, value in pairs}
