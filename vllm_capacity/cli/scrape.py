"""`vllm-capacity scrape`: live targets, or saved scrapes, into a window."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from rich.console import Console
from rich.status import Status
from rich.text import Text

from vllm_capacity.cli.access import METRICS, METRICS_SETTINGS, client, metrics_url, read_settings
from vllm_capacity.cli.reading import FILE, local_path
from vllm_capacity.errors import InputError, NoTelemetryError, SourceError, plain
from vllm_capacity.live.scrape import Journal, Progress, Target, run, targets
from vllm_capacity.sources.asking import UNKEPT
from vllm_capacity.sources.exposition import DAMAGED, provenance, read_scrapes
from vllm_capacity.telemetry.late import extend_window
from vllm_capacity.telemetry.rows import Rows
from vllm_capacity.telemetry.store import Place, put_window, require_free, reserved
from vllm_capacity.telemetry.window import window_path
from vllm_capacity.timerange import parse_duration_seconds

_LEAST_SECONDS = 0.01


@click.command(short_help="Scrape vLLM's /metrics, or saved scrapes, into a window.")
@click.argument("urls", nargs=-1, metavar="[URL]...")
@click.option("--from", "saved", type=FILE, help="Import saved scrapes.")
@click.option("--every", default="2s", show_default=True, help="Scrape interval.")
@click.option("--for", "duration", help="How long, such as 1h; without it until Ctrl-C.")
@click.option("--profile", type=FILE, help="File of mode 0600: user, password or token.")
@click.option("--about", help="A sentence on what was captured, kept with the window.")
@click.option(
    "--to",
    "to",
    type=click.Path(path_type=Path),
    callback=local_path,
    help="The window; it must not exist.",
)
@click.option(
    "--into", type=click.Path(path_type=Path), help="Or, with --from: add late scrapes to this one."
)
def scrape(
    urls: tuple[str, ...],
    saved: Path | None,
    every: str,
    duration: str | None,
    profile: Path | None,
    about: str | None,
    to: Path | None,
    into: Path | None,
) -> None:
    """Scrape vLLM's /metrics into the window --to, or import saved scrapes into it.

    Every scrape is appended to a journal beside the window first; Ctrl-C makes the window of what
    is there. A run that was killed is rescued by `scrape --from WINDOW.journal --to WINDOW`.
    Credentials come from VLLM_METRICS_USER and VLLM_METRICS_PASSWORD, or VLLM_METRICS_TOKEN, or a
    profile; never from a URL.
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
    found = targets(tuple(metrics_url(url) for url in urls))
    require_free(to)
    journal = to.with_name(f"{to.name}.journal")
    with reserved(to) as place, _claimed(journal, to):
        done = _scrape_live(found, every, duration, journal, profile)
        try:
            _import(journal, place, kind="scraped /metrics", about=about)
        except NoTelemetryError as error:
            journal.unlink()  # nothing is lost with it, and it would block the next run
            raise SourceError(_fruitless(error, done)) from None
        click.echo(f"{done.good} good and {done.failed} failed scrapes.", err=True)
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


def _fruitless(error: NoTelemetryError, done: Progress) -> str:
    if done.good:
        return f"{error} Last error: {done.last_error}" if done.last_error else str(error)
    return (
        f"No scrape was answered ({done.failed} tried): {done.last_error}. Is the server running, "
        "and is this its /metrics?"
    )


def _scrape_live(
    found: list[Target], every: str, duration: str | None, journal: Path, profile: Path | None
) -> Progress:
    every_seconds = parse_duration_seconds(every)
    if every_seconds < _LEAST_SECONDS:
        raise InputError(f"--every {every} is too short; {_LEAST_SECONDS:g}s is the least.")
    for_seconds = parse_duration_seconds(duration) if duration is not None else None
    settings = read_settings(os.environ, profile, prefix=METRICS, names=METRICS_SETTINGS)
    stop = threading.Event()
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in numbers}
    console = Console(stderr=True)
    with (
        client(settings, follow_redirects=True, limits=UNKEPT, stop=stop) as asking,
        console.status("scraping") as status,
    ):
        done = run(
            found,
            client=asking,
            journal=Journal(journal),
            every_seconds=every_seconds,
            for_seconds=for_seconds,
            stop=stop,
            tell=lambda progress: _tell(status, progress),
        )
    for number, handler in before.items():  # what follows can be ended, too
        signal.signal(number, handler)
    if not done.points:
        raise SourceError("Stopped before the first scrape; nothing was written.")
    return done


def _tell(status: Status, progress: Progress) -> None:
    error = f"; last error: {progress.last_error}" if progress.last_error else ""
    # A Text: what a server sent is no markup.
    status.update(Text(plain(f"{progress.good} good, {progress.failed} failed{error}")))


def _add(saved: Path | None, into: Path, to: Path | None) -> None:
    if saved is None or to is not None:
        raise InputError("--into goes with --from, and without --to.")
    changed = extend_window(window_path(into), _read(saved))
    click.echo(f"Added to {into}; hours that changed: {', '.join(changed) or 'none'}.", err=True)


def _import(saved: Path, place: Place, *, kind: str, about: str | None) -> None:
    rows = _read(saved)
    note = provenance(rows, kind=kind, origin=saved.name)
    put_window(place, rows, note | ({"about": about} if about else {}))
    click.echo(f"Wrote {place.path}: {rows.series.height} series.", err=True)


def _read(saved: Path) -> Rows:
    """The rows of saved scrapes; what is damaged in the file is told on stderr, too."""
    rows = read_scrapes(saved)
    for subject, detail in rows.intake.select("subject", "detail").iter_rows():
        if subject == DAMAGED:
            click.echo(f"vllm-capacity: {detail}", err=True)
    return rows
