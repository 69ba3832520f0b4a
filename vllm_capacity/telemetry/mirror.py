"""A window in S3: what is read of it is copied into a private folder of this machine first.

`window.json` is asked for each time; its hash is the version of the copy, so a copy never changes
under a reader. What is small comes along (series, intake), hour files come when their rows are
read, and what hours left behind (`.rollup/`, an object each) when figures read it. So figures of a
long range move what hours left behind, and no rows.

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
from dataclasses import replace
from pathlib import Path

from vllm_capacity.errors import InputError, SourceError, WindowError
from vllm_capacity.holding import alone, private_folder
from vllm_capacity.telemetry.bucket import Bucket, is_s3
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
    """The folder of this machine for the window at `s3://bucket/prefix`, with what is small.

    WindowError where there is none, or one of format 1, which does not list its files; SourceError
    where S3 fails.
    """
    bucket = Bucket.at(url)
    folder = _version(bucket)
    with _unchanged(bucket):
        _fetch(bucket, folder, (file for file in read_list(folder) if file.table in SINGLE))
    return folder


def at_hand(manifest: Manifest, files: Iterable[File]) -> None:
    """Make files of a window readable: nothing to do but in a copy of one in S3."""
    if manifest.origin is not None:
        bucket = Bucket.at(manifest.origin)
        with _unchanged(bucket):
            _fetch(bucket, manifest.path, files)


def at_this_machine(manifest: Manifest) -> Manifest:
    """A window's list for this machine, its files readable; it may come from another machine."""
    if manifest.origin is None:
        return manifest
    found = replace(manifest, path=mirrored(manifest.origin))
    at_hand(found, found.files)
    return found


def require_target(source: str, target: str) -> None:
    """InputError unless a window in a folder can be copied to the target."""
    if not is_s3(target):
        raise InputError(
            f"--to is {target!r}, but s3://bucket/folder was expected. Beside a window in a folder "
            "what is made is kept anyway."
        )
    if is_s3(source):
        raise InputError(
            f"{source} is in S3 already; leave --to out, and what is made is kept there."
        )
    Bucket.at(target)


def publish(manifest: Manifest, entries: Iterable[Path], url: str) -> None:
    """Copy a window, and what its hours left behind, to `s3://bucket/prefix`.

    `window.json` comes last: who reads there meanwhile reads the window of before, or this one.
    """
    bucket = Bucket.at(url)
    if any(file.sha256 is None for file in manifest.files):
        raise WindowError(
            f"The window {manifest.path} is of format 1, which does not list its files; make it "
            "again, or add scrapes to it with --into, and it is of format 2."
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
    """The files, with their hashes, of the window that is there; none without one."""
    with suppress(WindowError):
        return {(file.name, file.sha256) for file in read_list(_version(bucket))}
    return set()


# --- what hours left behind, an object each -----------------------------------------------------


def entry_names(bucket: Bucket) -> list[str]:
    """The names of what is kept there of hours."""
    found = bucket.names(ROLLUP)
    return [name.removesuffix(_ENTRY) for name in found if name.endswith(_ENTRY)]


def put_entry(bucket: Bucket, entry: Path) -> None:
    """Keep an entry there: at once or not at all, for it is one object."""
    with tempfile.TemporaryDirectory() as folder:
        packed = Path(folder) / "entry"
        with tarfile.open(packed, "w") as out:
            for file in sorted(entry.iterdir()):
                out.add(file, file.name, filter=_plain)
        bucket.put({f"{ROLLUP}/{entry.name}{_ENTRY}": packed})


def fetch_entries(bucket: Bucket, names: Iterable[str], folder: Path) -> None:
    """Unpack entries into the folder, under their names; those that are gone are left out."""
    wanted = list(names)
    with tempfile.TemporaryDirectory(prefix=".fetched.", suffix=".partial", dir=folder) as partial:
        packed = {f"{ROLLUP}/{name}{_ENTRY}": Path(partial) / f"{name}{_ENTRY}" for name in wanted}
        with suppress(FileNotFoundError):
            bucket.fetch(packed)
        for name, path in zip(wanted, packed.values(), strict=True):
            with suppress(OSError, tarfile.TarError):  # what is not whole is computed anew
                with tarfile.open(path) as found:
                    found.extractall(Path(partial) / name, filter="data")
                (Path(partial) / name).rename(folder / name)


def _plain(info: tarfile.TarInfo) -> tarfile.TarInfo:
    """Nothing of when and by whom: the same entry is the same bytes."""
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


def _version(bucket: Bucket) -> Path:
    """The folder for the window as it is there now, with its `window.json`."""
    try:
        note = bucket.read(NOTE)
    except FileNotFoundError:
        raise WindowError(f"No window at {bucket.url}: there is no {NOTE}.") from None
    kept = private_folder("vllm-capacity-mirror")
    if kept is None:
        raise InputError(
            f"The window {bucket.url} is copied in part into {tempfile.gettempdir()} to be read, "
            "and nothing can be written there. Set TMPDIR to a folder that can be."
        )
    endpoint = os.environ.get("AWS_ENDPOINT_URL", "")
    versions = kept / hashlib.sha256(f"{endpoint} {bucket.url}".encode()).hexdigest()[:_HASH_DIGITS]
    folder = versions / hashlib.sha256(note).hexdigest()[:_HASH_DIGITS] / bucket.name
    (versions / ROLLUP).mkdir(parents=True, exist_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        (folder / ROLLUP).symlink_to(versions / ROLLUP)  # by content: good for every version
    if not (folder / NOTE).exists():
        _written(folder / NOTE, note)
        _check_list(folder, bucket)
        _take_over(folder, versions)
    return folder


def _check_list(folder: Path, bucket: Bucket) -> None:
    """WindowError for a window that does not say what its files are."""
    try:
        files = read_list(folder)
    except WindowError:
        files = []
    if not files or any(file.sha256 is None for file in files):
        (folder / NOTE).unlink()
        raise WindowError(
            f"The window {bucket.url} does not list its files, or is none: windows in S3 are of "
            "format 2. Put one there with: vllm-capacity rollup WINDOW --to s3://…"
        )


def _take_over(folder: Path, versions: Path) -> None:
    """Take files that did not change from copies of other versions, and remove old copies."""
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
    """Copy files that are not there yet, whole or not at all; WindowError for other bytes."""
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
                    f"{file.name} is not as it was written. Try again, or put it there again."
                )
            (folder / file.name).parent.mkdir(exist_ok=True)
            copies[file.name].replace(folder / file.name)


def _written(path: Path, content: bytes) -> None:
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as out:
        out.write(content)
    Path(out.name).replace(path)
