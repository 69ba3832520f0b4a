"""`vllm-capacity scrape`: live targets, or saved scrapes, into a window."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import httpx
from rich.console import Console
from rich.status import Status

from vllm_capacity.cli.reading import checked_url
from vllm_capacity.errors import InputError
from vllm_capacity.live.scrape import Journal, Progress, run, targets
from vllm_capacity.sources.asking import UNKEPT
from vllm_capacity.sources.exposition import provenance, read_scrapes
from vllm_capacity.telemetry.late import extend_window
from vllm_capacity.telemetry.store import Place, put_window, reserved
from vllm_capacity.telemetry.window import window_path
from vllm_capacity.timerange import parse_duration_seconds


@click.command(short_help="Scrape vLLM's /metrics, or saved scrapes, into a window.")
@click.argument("urls", nargs=-1, metavar="[URL]...")
@click.option("--from", "saved", type=click.Path(path_type=Path), help="Import saved scrapes.")
@click.option("--every", default="2s", show_default=True, help="Scrape interval.")
@click.option("--for", "duration", help="How long, such as 1h; without it until Ctrl-C.")
@click.option("--about", help="A sentence on what was captured, kept with the window.")
@click.option("--to", "to", type=click.Path(path_type=Path), help="The window; it must not exist.")
@click.option(
    "--into", type=click.Path(path_type=Path), help="Or, with --from: add late scrapes to this one."
)
def scrape(
    urls: tuple[str, ...],
    saved: Path | None,
    every: str,
    duration: str | None,
    about: str | None,
    to: Path | None,
    into: Path | None,
) -> None:
    """Scrape vLLM's /metrics into the window --to, or import saved scrapes into it.

    Every scrape is appended to a journal beside the window first; Ctrl-C makes the window of what
    is there. A run that was killed is rescued by `scrape --from WINDOW.journal --to WINDOW`.
    """
    if bool(urls) == (saved is not None):
        raise InputError(
            "Give either one or more URLs to scrape, or --from a file of saved scrapes."
        )
    if into is not None:
        _add(saved, into, to)
        return
    if to is None:
        raise InputError("Say with --to where the window goes.")
    if saved is not None:
        with reserved(to) as place:
            _import(saved, place, kind="saved scrapes", about=about)
        return
    journal = to.with_name(f"{to.name}.journal")
    with reserved(to) as place, _claimed(journal, to):
        _scrape_live(urls, every, duration, journal)
        _import(journal, place, kind="scraped /metrics", about=about)
        journal.unlink()


@contextmanager
def _claimed(journal: Path, to: Path) -> Iterator[None]:
    """Make the journal anew; InputError where there is one, whose run cannot be running any more.

    A journal without a single scrape rescues nothing: it goes.
    """
    _remove_empty(journal)
    try:
        journal.open("xb").close()
    except FileExistsError:
        raise InputError(
            f"{journal} is left from a run that was cut. Rescue it with "
            f"`vllm-capacity scrape --from {journal} --to {to}`, or remove it."
        ) from None
    try:
        yield
    finally:
        _remove_empty(journal)


def _remove_empty(journal: Path) -> None:
    if journal.exists() and journal.stat().st_size == 0:
        journal.unlink()


def _scrape_live(urls: tuple[str, ...], every: str, duration: str | None, journal: Path) -> None:
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    console = Console(stderr=True)
    with (
        httpx.Client(follow_redirects=True, limits=UNKEPT) as client,
        console.status("scraping") as status,
    ):
        done = run(
            targets(tuple(checked_url(url) for url in urls)),
            client=client,
            journal=Journal(journal),
            every_seconds=parse_duration_seconds(every),
            for_seconds=parse_duration_seconds(duration) if duration else None,
            stop=stop,
            tell=lambda progress: _tell(status, progress),
        )
    click.echo(f"{done.good} good and {done.failed} failed scrapes.", err=True)


def _tell(status: Status, progress: Progress) -> None:
    error = f"; last error: {progress.last_error}" if progress.last_error else ""
    status.update(f"{progress.good} good, {progress.failed} failed{error}")


def _add(saved: Path | None, into: Path, to: Path | None) -> None:
    if saved is None or to is not None:
        raise InputError("--into goes with --from, and without --to.")
    changed = extend_window(window_path(into), read_scrapes(saved))
    click.echo(f"Added to {into}; hours that changed: {', '.join(changed) or 'none'}.", err=True)


def _import(saved: Path, place: Place, *, kind: str, about: str | None) -> None:
    rows = read_scrapes(saved)
    note = provenance(rows, kind=kind, origin=saved.name)
    put_window(place, rows, note | ({"about": about} if about else {}))
    click.echo(f"Wrote {place.path}: {rows.series.height} series.", err=True)
