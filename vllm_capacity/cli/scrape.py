"""`vllm-capacity scrape`: live targets, or saved scrapes, into a window."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import click
from rich.console import Console
from rich.status import Status
from rich.text import Text

from vllm_capacity.cli.options import FILE, local_path, target_options
from vllm_capacity.errors import InputError, plain
from vllm_capacity.live.access import cause
from vllm_capacity.live.scrape import Captured, Progress, capture, import_scrapes
from vllm_capacity.live.targets import Target, label, named_targets
from vllm_capacity.sources.exposition import DAMAGED, scrapes_in_parts
from vllm_capacity.telemetry.late import extend_window
from vllm_capacity.telemetry.parts import Held, RowsInParts, Spool
from vllm_capacity.telemetry.window import window_path
from vllm_capacity.timerange import parse_duration_seconds


@click.command(short_help="Scrape vLLM's /metrics, or saved scrapes, into a window.")
@click.argument("urls", nargs=-1, metavar="[URL]...")
@click.option("--from", "saved", type=FILE, help="Import saved scrapes.")
@click.option("--every", default="2s", show_default=True, help="Scrape interval.")
@click.option("--for", "duration", help="Duration, such as 1h; default: until Ctrl-C.")
@click.option("--profile", type=FILE, help="File with user and password, or token; mode 0600.")
@target_options
@click.option("--about", help="Description to store with the window.")
@click.option(
    "--to",
    "to",
    type=click.Path(path_type=Path),
    callback=local_path,
    help="Window to write; must not exist yet.",
)
@click.option(
    "--into",
    type=click.Path(path_type=Path),
    help="With --from: add late scrapes to this existing window.",
)
def scrape(
    urls: tuple[str, ...],
    saved: Path | None,
    every: str,
    duration: str | None,
    profile: Path | None,
    labels: tuple[str, ...],
    listed: Path | None,
    about: str | None,
    to: Path | None,
    into: Path | None,
) -> None:
    """Scrape vLLM's /metrics into the window --to, or import saved scrapes into it.

    Every scrape is first appended to a journal beside the window; Ctrl-C writes the window from it.
    After a killed run, recover the window with `scrape --from WINDOW.journal --to WINDOW`.
    Credentials come from VLLM_METRICS_USER and VLLM_METRICS_PASSWORD, or VLLM_METRICS_TOKEN, or a
    profile; never from a URL.
    """
    is_live = bool(urls) or listed is not None
    if is_live == (saved is not None):
        raise InputError(
            "Give either one or more URLs to scrape (or --targets), or --from a file of saved "
            "scrapes."
        )
    if labels and not is_live:
        raise InputError(
            "--label is for targets that are scraped; saved scrapes have their own labels."
        )
    if into is not None:
        _add(saved, into, to)
        return
    if to is None:
        raise InputError("Give the window to write with --to.")
    if saved is not None:
        _say(import_scrapes(saved, to, read=_read, about=about))
        return
    found = named_targets(urls, listed, dict(label(text) for text in labels))
    done = _scrape_live(found, to, every, duration, profile, about)
    _say(done)
    if done.progress is not None:
        seen = done.progress
        click.echo(f"{seen.good} good and {seen.failed} failed scrapes.", err=True)


def _scrape_live(
    found: list[Target],
    to: Path,
    every: str,
    duration: str | None,
    profile: Path | None,
    about: str | None,
) -> Captured:
    stop = threading.Event()
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in numbers}

    def let_go() -> None:
        """Restore the signal handlers: the work after the last scrape can be stopped too."""
        for number, handler in before.items():
            signal.signal(number, handler)

    console = Console(stderr=True)
    reported: set[str] = set()

    def show(progress: Progress) -> None:
        _print_silent(progress, reported, console)
        _show(status, progress)

    def written() -> None:
        let_go()
        status.update("writing the window")

    with console.status("scraping") as status:
        return capture(
            found,
            to,
            every_seconds=parse_duration_seconds(every),
            for_seconds=None if duration is None else parse_duration_seconds(duration),
            environment=os.environ,
            read=_read,
            profile=profile,
            about=about,
            stop=stop,
            on_progress=show,
            scraped=written,
        )


def _say(done: Captured) -> None:
    click.echo(f"Wrote {done.path}: {done.series} series.", err=True)


def _show(status: Status, progress: Progress) -> None:
    error = f"; last error: {progress.last_error}" if progress.last_error else ""
    # As Text, because output of a server is not markup.
    status.update(Text(plain(f"{progress.good} good, {progress.failed} failed{error}")))


def _print_silent(progress: Progress, reported: set[str], console: Console) -> None:
    """Print one line per target that has never answered, with the reason; once per target."""
    for instance, error in progress.silent.items():
        if instance not in reported:
            reported.add(instance)
            console.print(
                Text(plain(f"vllm-capacity: {instance} does not answer: {cause(error)}")),
                soft_wrap=True,
            )


def _add(saved: Path | None, into: Path, to: Path | None) -> None:
    if saved is None or to is not None:
        raise InputError("--into goes with --from, and without --to.")
    changed = extend_window(window_path(into), _read(saved, Held()).whole())
    click.echo(f"Added to {into}; hours that changed: {', '.join(changed) or 'none'}.", err=True)


def _read(saved: Path, spool: Held | Spool) -> RowsInParts:
    """The rows of saved scrapes; damaged parts of the file are also reported on stderr."""
    rows = scrapes_in_parts(saved, spool)
    for subject, detail in rows.ingest_notes.select("subject", "detail").iter_rows():
        if subject == DAMAGED:
            click.echo(f"vllm-capacity: {detail}", err=True)
    return rows
