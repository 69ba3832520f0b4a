"""A window out of live targets, or out of saved scrapes: reserved, journalled, written whole."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vllm_capacity.errors import InputError, NoTelemetryError, SourceError
from vllm_capacity.live.access import METRICS, METRICS_SETTINGS, client, metrics_url, read_settings
from vllm_capacity.live.scrape import Journal, Progress, run, targets
from vllm_capacity.sources.exposition import provenance
from vllm_capacity.sources.http import NO_KEEPALIVE
from vllm_capacity.telemetry.rows import Rows
from vllm_capacity.telemetry.store import Place, put_window, require_free, reserved

LEAST_SECONDS = 0.01
Read = Callable[[Path], Rows]


@dataclass(frozen=True)
class Captured:
    """A window that was written, how many series it has, and how the scrapes went."""

    path: Path
    series: int
    progress: Progress | None = None


def capture(
    urls: Sequence[str],
    to: Path,
    *,
    every_seconds: float,
    for_seconds: float | None,
    environment: Mapping[str, str],
    read: Read,
    profile: Path | None = None,
    about: str | None = None,
    stop: threading.Event | None = None,
    tell: Callable[[Progress], None] = lambda progress: None,
    scraped: Callable[[], None] = lambda: None,
) -> Captured:
    """Scrape the /metrics of these servers into the window `to`, until `stop` or for so long.

    Every scrape is appended to a journal beside the window first; a run that was killed is rescued
    from it. `scraped` is called after the last scrape, before the window is made. InputError where
    the window or a journal is there already, SourceError where no scrape was answered.
    """
    if every_seconds < LEAST_SECONDS:
        raise InputError(f"A scrape every {every_seconds:g} s: {LEAST_SECONDS:g} s is the least.")
    found = targets(tuple(metrics_url(url) for url in urls))
    settings = read_settings(environment, profile, prefix=METRICS, names=METRICS_SETTINGS)
    ends = stop or threading.Event()
    require_free(to)
    journal = to.with_name(f"{to.name}.journal")
    with reserved(to) as place, _claimed(journal, to):
        with client(settings, follow_redirects=True, limits=NO_KEEPALIVE, stop=ends) as session:
            done = run(
                found,
                client=session,
                journal=Journal(journal),
                every_seconds=every_seconds,
                for_seconds=for_seconds,
                stop=ends,
                tell=tell,
            )
        scraped()
        if not done.points:
            raise SourceError("Stopped before the first scrape; nothing was written.")
        try:
            written = _written(journal, place, read, kind="scraped /metrics", about=about)
        except NoTelemetryError as error:
            journal.unlink()  # nothing is lost with it, and it would block the next run
            raise SourceError(_fruitless(error, done)) from None
        journal.unlink()
    return Captured(written.path, written.series, done)


def import_scrapes(saved: Path, to: Path, *, read: Read, about: str | None = None) -> Captured:
    """The window `to` made of saved scrapes."""
    with reserved(to) as place:
        return _written(saved, place, read, kind="saved scrapes", about=about)


def _written(saved: Path, place: Place, read: Read, *, kind: str, about: str | None) -> Captured:
    rows = read(saved)
    note = provenance(rows, kind=kind, origin=saved.name)
    put_window(place, rows, note | ({"about": about} if about else {}))
    return Captured(place.path, rows.series.height)


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
