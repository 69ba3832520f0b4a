"""Windows in S3: the files that are read are first copied to a private folder on this machine.

`window.json` is fetched on every opening; its hash is the version of the copy, so a copy never
changes under a reader. Small files (series, intake) are copied right away, hour files when their
rows are read, and hourly summaries (`.rollup/`, one object each) when figures read them. So figures
of a long range transfer only summaries, no rows.

    s3://bucket/prefix/window.json, series.parquet, samples/2026-11-24T08.parquet, …
    s3://bucket/prefix/.rollup/2026-11-24T08.….tar
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from msgspec.structs import replace

from vllm_capacity.errors import InputError, SourceError, WindowError
from vllm_capacity.holding import alone, private_folder
from vllm_capacity.telemetry.bucket import Bucket
from vllm_capacity.telemetry.manifest import (
    NOTE,
    SINGLE,
    File,
    Manifest,
    digest,
    read_list,
)

ROLLUP = ".rollup"
_ENTRY = ".tar"
_HASH_DIGITS = 16


def mirrored(url: str) -> Path:
    """The local folder of the window at `s3://bucket/prefix`, with its small files.

    Raises WindowError if there is no window or one of format 1, which does not list its files;
    SourceError if S3 fails.
    """
    bucket = Bucket.at(url)
    folder = version_of(bucket)
    with _unchanged(bucket):
        _fetch(bucket, folder, (file for file in read_list(folder) if file.table in SINGLE))
    return folder


def at_hand(manifest: Manifest, files: Iterable[File]) -> None:
    """Make files of a window readable: fetches them if the window is in S3."""
    if manifest.origin is not None:
        bucket = Bucket.at(manifest.origin)
        with _unchanged(bucket):
            _fetch(bucket, manifest.path, files)


def at_this_machine(manifest: Manifest) -> Manifest:
    """The manifest for this machine, with all files readable; it may come from another machine."""
    if manifest.origin is None:
        return manifest
    found = replace(manifest, path=mirrored(manifest.origin))
    at_hand(found, found.files)
    return found


# --- hourly summaries, one object each ----------------------------------------------------------


def entry_names(bucket: Bucket) -> list[str]:
    """The names of the hourly summaries in the bucket."""
    found = bucket.names(ROLLUP)
    return [name.removesuffix(_ENTRY) for name in found if name.endswith(_ENTRY)]


def put_entry(bucket: Bucket, entry: Path) -> None:
    """Store an hourly summary in the bucket; it is one object, so the write is atomic."""
    with tempfile.TemporaryDirectory() as folder:
        packed = Path(folder) / "entry"
        with tarfile.open(packed, "w") as out:
            for file in sorted(entry.iterdir()):
                out.add(file, file.name, filter=_plain)
        bucket.put({f"{ROLLUP}/{entry.name}{_ENTRY}": packed})


def fetch_entries(bucket: Bucket, names: Iterable[str], folder: Path) -> None:
    """Unpack hourly summaries into the folder, under their names; skips those that are gone."""
    wanted = list(names)
    with tempfile.TemporaryDirectory(prefix=".fetched.", suffix=".partial", dir=folder) as partial:
        packed = {f"{ROLLUP}/{name}{_ENTRY}": Path(partial) / f"{name}{_ENTRY}" for name in wanted}
        with suppress(FileNotFoundError):
            bucket.fetch(packed)
        for name, path in zip(wanted, packed.values(), strict=True):
            with suppress(OSError, tarfile.TarError):  # damaged ones are computed again
                with tarfile.open(path) as found:
                    found.extractall(Path(partial) / name, filter="data")
                (Path(partial) / name).rename(folder / name)


def _plain(info: tarfile.TarInfo) -> tarfile.TarInfo:
    """Drop times and owners, so that equal entries are equal bytes."""
    return info.replace(mtime=0, mode=0o644, uid=0, gid=0, uname="", gname="", deep=False)


# --- copies -------------------------------------------------------------------------------------


@contextmanager
def _unchanged(bucket: Bucket) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise SourceError(
            f"The window {bucket.url} was changed while it was read, or is incomplete: "
            f"{error.filename or error}. Try again."
        ) from None


def version_of(bucket: Bucket) -> Path:
    """The local folder for the current version of the window, with its `window.json`."""
    try:
        note = bucket.read(NOTE)
    except FileNotFoundError:
        missing = NOTE if bucket.has_bucket else "such bucket"
        raise WindowError(f"No window at {bucket.url}: there is no {missing}.") from None
    kept = private_folder("vllm-capacity-mirror")
    if kept is None:
        raise InputError(
            f"To read the window {bucket.url}, parts of it are copied to {tempfile.gettempdir()}, "
            "which is not writable. Set TMPDIR to a writable folder."
        )
    endpoint = os.environ.get("AWS_ENDPOINT_URL", "")
    versions = kept / hashlib.sha256(f"{endpoint} {bucket.url}".encode()).hexdigest()[:_HASH_DIGITS]
    folder = versions / hashlib.sha256(note).hexdigest()[:_HASH_DIGITS] / bucket.name
    (versions / ROLLUP).mkdir(parents=True, exist_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        (folder / ROLLUP).symlink_to(versions / ROLLUP)  # valid for every version: names are hashes
    if not (folder / NOTE).exists():
        _written(folder / NOTE, note)
        _check_list(folder, bucket)
        _take_over(folder, versions)
    return folder


def _check_list(folder: Path, bucket: Bucket) -> None:
    """Raise WindowError for a window that does not list its files."""
    try:
        files = read_list(folder)
    except WindowError:
        files = []
    if not files or any(file.sha256 is None for file in files):
        (folder / NOTE).unlink()
        raise WindowError(
            f"{bucket.url} has no list of its files: it is not a window, or it has format 1 (S3 "
            "needs format 2). Upload one with: vllm-capacity rollup WINDOW --to s3://…"
        )


def _take_over(folder: Path, versions: Path) -> None:
    """Link unchanged files from copies of other versions, and remove unused old copies."""
    wanted = {(file.name, file.sha256) for file in read_list(folder)}
    for other in versions.glob(f"[!.]*/{folder.name}"):
        if other == folder:
            continue
        with suppress(OSError, WindowError):
            for file in read_list(other):
                if (file.name, file.sha256) in wanted and (other / file.name).exists():
                    (folder / file.name).parent.mkdir(exist_ok=True)
                    with suppress(FileExistsError):
                        (folder / file.name).hardlink_to(other / file.name)
            with alone(other) as is_unused:
                if is_unused:
                    shutil.rmtree(other.parent)


def _fetch(bucket: Bucket, folder: Path, files: Iterable[File]) -> None:
    """Copy missing files, each atomically; raises WindowError if a hash does not match."""
    missing = [file for file in files if not (folder / file.name).exists()]
    if not missing:
        return
    with tempfile.TemporaryDirectory(prefix=".fetched.", suffix=".partial", dir=folder) as partial:
        copies = {file.name: Path(partial) / str(n) for n, file in enumerate(missing)}
        bucket.fetch(copies)
        for file in missing:
            if digest(copies[file.name]) != file.sha256:
                raise WindowError(
                    f"The window {bucket.url} was changed while it was read, or is damaged: "
                    f"{file.name} differs from what was written. Try again, or upload it again."
                )
            (folder / file.name).parent.mkdir(exist_ok=True)
            copies[file.name].replace(folder / file.name)


def _written(path: Path, content: bytes) -> None:
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as out:
        out.write(content)
    Path(out.name).replace(path)
