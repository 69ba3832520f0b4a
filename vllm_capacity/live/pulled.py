"""A window of a source at a path or in S3: pulled, unless it is there already."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path

from vllm_capacity.errors import InputError, WindowError
from vllm_capacity.live.access import is_server
from vllm_capacity.live.pull import PullOrder, pull_window
from vllm_capacity.selector import selector
from vllm_capacity.sources.answers import AnswerCache, Step
from vllm_capacity.sources.http import shown
from vllm_capacity.telemetry.bucket import Bucket, is_s3
from vllm_capacity.telemetry.copies import publish
from vllm_capacity.telemetry.manifest import NOTE
from vllm_capacity.telemetry.window import Window, open_window
from vllm_capacity.telemetry.workers import Workers
from vllm_capacity.timerange import iso


def pulled_window(
    order: PullOrder,
    target: str,
    *,
    environment: Mapping[str, str],
    now: datetime,
    workers: Workers | None = None,
    progress: Callable[[Step], None] = lambda step: None,
) -> Window:
    """The window of that order at a path or s3:// URL, pulled unless an earlier run has pulled it.

    A window for S3 is written to a temporary folder first; what is read of the source is kept in
    S3 until then, for a run that continues on another machine. Errors as in `pull_window`;
    WindowError if another window is there.
    """
    if not is_s3(target):
        path = Path(target)
        if not (path / NOTE).exists():
            pull_window(
                order, path, environment=environment, now=now, workers=workers, progress=progress
            )
        return _checked(open_window(path), order)
    bucket = Bucket.at(target)
    if not bucket.has_bucket:
        raise InputError(f"There is no bucket for {target}. Create it first, or check the name.")
    if NOTE not in bucket.names(""):
        with tempfile.TemporaryDirectory(prefix="vllm-capacity-") as folder:
            path = Path(folder) / bucket.name
            pull_window(
                order,
                path,
                environment=environment,
                now=now,
                workers=workers,
                kept=bucket,
                progress=progress,
            )
            publish(open_window(path).manifest, [], target)
    AnswerCache(remote=bucket).forget_remote()
    return _checked(open_window(target), order)


def _checked(window: Window, order: PullOrder) -> Window:
    """The window, if it is of that order; else WindowError."""
    span, origin = order.time_range, order.origin or ""
    asked = {
        "origin": shown(origin) if is_server(origin) else origin,
        "stream": order.stream,
        "match": str(selector(order.match)) if order.match else None,
        "start": iso(span.start) if span else None,
        "end": iso(span.end) if span else None,
    }
    there = {name: window.provenance.get(name) for name in asked}
    is_downsampled = is_server(origin) and order.is_downsampled
    if there != asked or (window.counters == "minute") != is_downsampled:
        raise WindowError(
            f"{window.address} exists already, with other telemetry: {_described(there)}. Choose "
            "another name, remove it, or give the same source and time range to continue."
        )
    return window


def _described(provenance: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in provenance.items() if value) or "imported"
