"""Pulls telemetry out of a store or server into a window, whole or not at all.

What differs between the sources ends in `sources/`; here a window is named, fetched and written.
What a server answered so far is kept beside the target (`.NAME.writing`) until the window is there,
so that a pull that was killed goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

from vllm_capacity.figures import scrapes
from vllm_capacity.sources.parquet import LATE, open_store, read_stream
from vllm_capacity.sources.parseable import Parseable
from vllm_capacity.sources.parseable_pull import Journal, Request, Step, pull
from vllm_capacity.sources.parseable_rows import thinned_rows, whole_rows
from vllm_capacity.sources.prometheus import Prometheus, read_prometheus
from vllm_capacity.telemetry.store import put_window, reserved
from vllm_capacity.telemetry.window import open_window
from vllm_capacity.timerange import TimeRange, iso
from vllm_capacity.verdicts import quality_scrapes


def pull_files(
    location: str,
    stream: str,
    target: Path,
    time_range: TimeRange | None = None,
    *,
    late: timedelta = LATE,
) -> Path:
    """The window written at `target` from Parseable's own files; without a range, the whole stream.

    InputError for a store or stream that is not there; then no window is left.
    """
    note = {"source": "Parseable files", "origin": location, "stream": stream, "grain": "scrape"}
    with reserved(target) as place:
        rows = read_stream(open_store(location), stream, time_range, late=late)
        return put_window(place, rows, note | _asked(time_range))


def pull_server(
    server: Parseable,
    request: Request,
    target: Path,
    *,
    now: datetime,
    progress: Callable[[Step], None] = lambda step: None,
) -> Path:
    """The window written at `target` from a Parseable server, thinned or whole as requested.

    Resumes what an earlier, killed pull to the same target had asked for already. `now` tells what
    can still grow on the server, and so is asked for again.
    """
    with reserved(target) as place:
        version = server.about().version
        journal = Journal(place.answers, now)
        pulled = pull(server, request, journal=journal, progress=progress)
        note = {
            "source": "Parseable server",
            "origin": server.address,
            "stream": request.stream,
            "grain": "minute" if request.is_thinned else "scrape",
            "versions": {"parseable": version},
            **_asked(request.time_range),
        }
        if not request.is_thinned:
            return put_window(place, whole_rows(pulled), note)
        thinned = thinned_rows(pulled)
        minutes = {
            "minutes": thinned.minutes,
            "minute_histograms": thinned.minute_histograms,
        }
        return put_window(place, thinned.rows, note, minutes)


def pull_prometheus(
    server: Prometheus,
    time_range: TimeRange,
    target: Path,
    *,
    progress: Callable[[Step], None] = lambda step: None,
) -> Path:
    """The window written at `target` from a Prometheus, or what speaks its API: every sample."""
    note = {"source": "Prometheus", "origin": server.address, "grain": "scrape"}
    with reserved(target) as place:
        rows = read_prometheus(
            server, time_range, progress=lambda done, total: progress(Step(done, total, 0))
        )
        return put_window(place, rows, note | _asked(time_range))


def unreached_end(target: Path) -> str | None:
    """That the window at `target` ends well before the end it was asked for; else None."""
    window = open_window(target)
    tries = scrapes.attempts(window, end=window.extent.end)
    found = quality_scrapes.unreached_end(tries, window.asked_end)
    return found[0].effect if found else None


def _asked(time_range: TimeRange | None) -> dict[str, object]:
    if time_range is None:
        return {}
    return {"start": iso(time_range.start), "end": iso(time_range.end)}
