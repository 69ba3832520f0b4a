"""Copies of windows with their hourly summaries: to a folder, or to S3."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from vllm_capacity.errors import InputError, WindowError
from vllm_capacity.telemetry.bucket import Bucket, is_s3
from vllm_capacity.telemetry.manifest import NOTE, Manifest, read_list
from vllm_capacity.telemetry.mirror import ROLLUP, at_hand, entry_names, put_entry, version_of
from vllm_capacity.telemetry.store import require_free, reserved


def require_target(source: str, target: str) -> None:
    """Raise InputError or WindowError if a window cannot be copied from the source to the target.

    Windows are copied between folders, and from a folder to S3 or back.
    """
    if not is_s3(target):
        require_free(Path(target))
    elif is_s3(source):
        raise InputError(
            f"{source} is in S3 already. Remove --to: the rollup is kept beside the window there."
        )
    else:
        Bucket.at(target)


def copy_window(manifest: Manifest, entries: Iterable[Path], target: str) -> None:
    """Copy a window and its hourly summaries to a path, where nothing may be, or to S3."""
    if is_s3(target):
        publish(manifest, entries, target)
        return
    at_hand(manifest, manifest.files)
    with reserved(Path(target)) as place:
        for file in (NOTE, *(file.name for file in manifest.files)):
            (place.staging / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(manifest.path / file, place.staging / file)
        for entry in entries:
            shutil.copytree(entry, place.staging / ROLLUP / entry.name)
        place.staging.replace(place.path)


def publish(manifest: Manifest, entries: Iterable[Path], url: str) -> None:
    """Copy a window and its hourly summaries to `s3://bucket/prefix`.

    `window.json` is written last, so a concurrent reader sees either the old window or this one.
    Raises WindowError for a window of format 1.
    """
    bucket = Bucket.at(url)
    if any(file.sha256 is None for file in manifest.files):
        raise WindowError(
            f"The window {manifest.path} has format 1, which does not list its files. Make it "
            "again, or add scrapes to it with --into: either turns it into format 2."
        )
    kept = set(entry_names(bucket))
    for entry in entries:
        if entry.name not in kept:
            put_entry(bucket, entry)
    there = _listed(bucket)
    left = [file for file in manifest.files if (file.name, file.sha256) not in there]
    bucket.put({file.name: manifest.path / file.name for file in left})
    bucket.put({NOTE: manifest.path / NOTE})


def _listed(bucket: Bucket) -> set[tuple[str, str | None]]:
    """The files of the window in the bucket, with their hashes; empty without a window."""
    with suppress(WindowError):
        return {(file.name, file.sha256) for file in read_list(version_of(bucket))}
    return set()
