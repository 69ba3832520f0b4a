"""`vllm-capacity scrape`: live targets, or saved scrapes, into a window."""

from __future__ import annotations

import signal
import threading
from pathlib import Path

import click
from rich.console import Console
from rich.status import Status
from rich.text import Text

from vllm_capacity.cli.reading import checked_url
from vllm_capacity.errors import InputError, WindowError, plain
from vllm_capacity.live.scrape import Journal, Progress, run, targets
from vllm_capacity.sources.asking import UNKEPT
from vllm_capacity.sources.exposition import DAMAGED, provenance, read_scrapes
from vllm_capacity.sources.wire import client
from vllm_capacity.telemetry.late import extend_window
from vllm_capacity.telemetry.rows import Rows
from vllm_capacity.telemetry.store import write_window
from vllm_capacity.telemetry.window import open_window
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
    if to.exists():
        raise WindowError(f"{to} exists already. Choose another name, or remove it first.")
    if saved is not None:
        _import(saved, to, kind="saved scrapes", about=about)
        return
    journal = to.with_name(f"{to.name}.journal")
    if journal.exists():
        raise InputError(
            f"{journal} is left from a run that was cut. Rescue it with "
            f"`vllm-capacity scrape --from {journal} --to {to}`, or remove it."
        )
    to.parent.mkdir(parents=True, exist_ok=True)
    _scrape_live(urls, every, duration, journal)
    _import(journal, to, kind="scraped /metrics", about=about)
    journal.unlink()


def _scrape_live(urls: tuple[str, ...], every: str, duration: str | None, journal: Path) -> None:
    stop = threading.Event()
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in numbers}
    console = Console(stderr=True)
    with (
        client(follow_redirects=True, limits=UNKEPT, stop=stop) as asking,
        console.status("scraping") as status,
    ):
        done = run(
            targets(tuple(checked_url(url) for url in urls)),
            client=asking,
            journal=Journal(journal),
            every_seconds=parse_duration_seconds(every),
            for_seconds=parse_duration_seconds(duration) if duration else None,
            stop=stop,
            tell=lambda progress: _tell(status, progress),
        )
    for number, handler in before.items():  # what follows can be ended, too
        signal.signal(number, handler)
    click.echo(f"{done.good} good and {done.failed} failed scrapes.", err=True)


def _tell(status: Status, progress: Progress) -> None:
    error = f"; last error: {progress.last_error}" if progress.last_error else ""
    # A Text: what a server sent is no markup.
    status.update(Text(plain(f"{progress.good} good, {progress.failed} failed{error}")))


def _add(saved: Path | None, into: Path, to: Path | None) -> None:
    if saved is None or to is not None:
        raise InputError("--into goes with --from, and without --to.")
    changed = extend_window(open_window(into).path, _read(saved))
    click.echo(f"Added to {into}; hours that changed: {', '.join(changed) or 'none'}.", err=True)


def _import(saved: Path, to: Path, *, kind: str, about: str | None) -> None:
    rows = _read(saved)
    note = provenance(rows, kind=kind, origin=saved.name)
    write_window(to, rows, note | ({"about": about} if about else {}))
    click.echo(f"Wrote {to}: {rows.series.height} series.", err=True)


def _read(saved: Path) -> Rows:
    """The rows of saved scrapes; what is damaged in the file is told on stderr, too."""
    rows = read_scrapes(saved)
    for subject, detail in rows.intake.select("subject", "detail").iter_rows():
        if subject == DAMAGED:
            click.echo(f"vllm-capacity: {detail}", err=True)
    return rows
