"""Pulls telemetry out of a store or server into a window, whole or not at all.

What differs between the sources ends in `sources/`; here a window is named, fetched and written.
What a server answered so far is kept beside the target (`.NAME.partial`) until the window is there,
so that a pull that was killed goes on where it stopped.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

from vllm_capacity.errors import WindowError
from vllm_capacity.sources.parquet import LATE, open_store, read_stream
from vllm_capacity.sources.parseable import Parseable
from vllm_capacity.sources.parseable_pull import Journal, Request, Step, pull
from vllm_capacity.sources.parseable_rows import ThinnedRows, thinned_rows, whole_rows
from vllm_capacity.sources.prometheus import Prometheus, read_prometheus
from vllm_capacity.telemetry.store import write_window
from vllm_capacity.timerange import TimeRange, iso


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
    require_free(target)
    rows = read_stream(open_store(location), stream, time_range, late=late)
    note = {"source": "Parseable files", "origin": location, "stream": stream, "grain": "scrape"}
    return write_window(target, rows, note | _asked(time_range))


def pull_server(
    server: Parseable,
    request: Request,
    target: Path,
    *,
    progress: Callable[[Step], None] = lambda step: None,
) -> Path:
    """The window written at `target` from a Parseable server, thinned or whole as requested.

    Resumes what an earlier, killed pull to the same target had asked for already.
    """
    require_free(target)
    partial = target.with_name(f".{target.name}.partial")
    version = server.about().version
    pulled = pull(server, request, journal=Journal(partial), progress=progress)
    note = {
        "source": "Parseable server",
        "origin": server.address,
        "stream": request.stream,
        "grain": "minute" if request.is_thinned else "scrape",
        "versions": {"parseable": version},
        **_asked(request.time_range),
    }
    if request.is_thinned:
        write_thinned(target, thinned_rows(pulled), note)
    else:
        write_window(target, whole_rows(pulled), note)
    shutil.rmtree(partial, ignore_errors=True)
    return target


def pull_prometheus(
    server: Prometheus,
    time_range: TimeRange,
    target: Path,
    *,
    progress: Callable[[Step], None] = lambda step: None,
) -> Path:
    """The window written at `target` from a Prometheus, or what speaks its API: every sample."""
    require_free(target)
    rows = read_prometheus(
        server, time_range, progress=lambda done, total: progress(Step(done, total, 0))
    )
    note = {"source": "Prometheus", "origin": server.address, "grain": "scrape"}
    return write_window(target, rows, note | _asked(time_range))


def write_thinned(target: Path, thinned: ThinnedRows, note: dict[str, object]) -> Path:
    """The window of a thinned pull: its minutes lie beside the tables, as two files."""
    staging = target.with_name(f".{target.name}.pulled")
    shutil.rmtree(staging, ignore_errors=True)
    write_window(staging, thinned.rows, note)
    try:
        thinned.minutes.write_parquet(staging / "minutes.parquet", compression="zstd")
        thinned.minute_histograms.write_parquet(
            staging / "minute_histograms.parquet", compression="zstd"
        )
        return staging.rename(target)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def require_free(target: Path) -> None:
    """WindowError if there is something at `target` already: asked before anything is fetched."""
    if target.exists():
        raise WindowError(f"{target} exists already. Choose another name, or remove it first.")


def _asked(time_range: TimeRange | None) -> dict[str, object]:
    if time_range is None:
        return {}
    return {"start": iso(time_range.start), "end": iso(time_range.end)}
