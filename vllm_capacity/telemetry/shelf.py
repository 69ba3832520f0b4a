"""The cache of frames computed from a window's hours: `.rollup/`, safe to delete.

An entry is a folder of Parquet files, written atomically. Its name identifies its input and has a
hash of its files, so a damaged entry is recognized.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Container, Iterable, Mapping
from contextlib import suppress
from pathlib import Path

import polars as pl
from msgspec import Struct, field

from vllm_capacity.holding import Pin, alone, private_folder
from vllm_capacity.telemetry.bucket import Bucket
from vllm_capacity.telemetry.manifest import Manifest, digest
from vllm_capacity.telemetry.mirror import entry_names, fetch_entries, put_entry

_PARTIAL = ".partial"
_HASH_DIGITS = 24


class Entry(Struct, frozen=True):
    """Frames by name, in memory or in a Parquet folder; the next hour depends on `base`."""

    frames: Mapping[str, pl.DataFrame] | Path
    base: str

    @property
    def names(self) -> list[str]:
        """The names of its frames."""
        if isinstance(self.frames, Path):
            return sorted(path.stem for path in self.frames.iterdir())
        return sorted(self.frames)

    def frame(self, name: str) -> pl.DataFrame:
        """One of its frames."""
        if isinstance(self.frames, Path):
            return pl.read_parquet(self.frames / f"{name}.parquet", glob=False)
        return self.frames[name]


class Shelf(Struct):
    """The cached entries of one window and kind; `folder` is None if nothing can be written."""

    folder: Path | None
    is_shared: bool = False
    made: int = 0
    """Number of entries that this run stored here."""
    remote: Bucket | None = None
    """For a window in S3, the bucket to search for entries that are not here."""
    is_published: bool = False
    """Whether entries missing in the bucket are uploaded to it."""
    _there: dict[str, Path] = field(default_factory=dict)
    _used: set[Path] = field(default_factory=set)
    _remote_names: dict[str, str] = field(default_factory=dict)
    _pin: Pin | None = None

    @classmethod
    def of(cls, window: Manifest, kind: str = "", *, is_published: bool = False) -> Shelf:
        """The cache beside the window, or in a private folder if that is not writable.

        It can contain several kinds of entries: a key begins with its kind, then the hour. For a
        window in S3, it includes the entries there; with `is_published`, entries that are found or
        stored are uploaded as well.
        """
        folder = _kept_folder(window.path)
        found = cls(folder, is_shared=folder is not None and folder.parent != window.path)
        if window.origin is not None and folder is not None:
            found.remote, found.is_published = Bucket.at(window.origin), is_published
            found._remote_names = {_key(Path(name)): name for name in entry_names(found.remote)}
        if folder is not None:
            found._pin = Pin(folder)
            for path in folder.iterdir():
                if path.is_dir() and re.match(rf"{kind}\d", path.name):
                    found._there[_key(path)] = path
        return found

    def find(self, key: str) -> Entry | None:
        """The entry with that key; None if there is none or it is damaged."""
        path = self._there.get(key)
        if path is None or not _is_whole(path):
            path = self._fetched(key)
        if path is None:
            return None
        self._publish(path, key)
        self._used.add(path)
        return Entry(path, path.name.split(".")[2])

    def base(self, key: str) -> str | None:
        """The `base` of the entry with that key; None if there is none.

        With `is_published`, it comes from the entry's name in S3, so nothing is copied.
        """
        if self.is_published:
            name = self._remote_names.get(key)
            return name.split(".")[2] if name else None
        entry = self.find(key)
        return entry.base if entry else None

    def mark_used(self, key: str) -> str | None:
        """The `base` of the entry with that key, which `tidy` then keeps; None if there is none.

        The entry is not read, so damage is not noticed.
        """
        path = self._there.get(key)
        if path is None:
            return None
        self._used.add(path)
        return path.name.split(".")[2]

    def fetch(self, hours: Container[str]) -> None:
        """Download the entries of these hours or dates from S3, all at once."""
        self._copy([key for key in self._remote_names if key.partition(".")[0] in hours])

    def _copy(self, keys: Iterable[str]) -> None:
        left = {key: self._remote_names[key] for key in keys if key not in self._there}
        if left and self.remote is not None and self.folder is not None:
            fetch_entries(self.remote, left.values(), self.folder)
            self._there |= {key: self.folder / name for key, name in left.items()}

    def _fetched(self, key: str) -> Path | None:
        """The folder of an entry just downloaded from S3; None if there is none."""
        if self.folder is None or key not in self._remote_names:
            return None
        shutil.rmtree(self.folder / self._remote_names[key], ignore_errors=True)  # a damaged one
        self._there.pop(key, None)
        self._copy([key])
        path = self._there[key]
        return path if _is_whole(path) else None

    def _publish(self, path: Path, key: str) -> None:
        if self.remote is not None and self.is_published and key not in self._remote_names:
            put_entry(self.remote, path)
            self._remote_names[key] = path.name

    def keep(self, key: str, base: str, frames: Mapping[str, pl.DataFrame]) -> Entry:
        """Store frames under a key (`hour.hash`), with the `base` that the next hour depends on.

        The entry stays in memory if it cannot be written to the folder.
        """
        if self.folder is None:
            return Entry(frames, base)
        made = Path(tempfile.mkdtemp(prefix=f".{key}.", suffix=_PARTIAL, dir=self.folder))
        try:
            for name, frame in frames.items():
                path = made / f"{name}.parquet"
                frame.write_parquet(path, compression="zstd", compression_level=1)
            made.chmod(0o755)
            kept = _moved(made, self.folder / f"{key}.{base}.{_hash(made)}")
        finally:
            if made.exists():
                shutil.rmtree(made, ignore_errors=True)
        if kept is None:
            return Entry(frames, base)
        self.made += 1
        self._remote_names.pop(key, None)  # the entry in S3 was damaged
        self._publish(kept, key)
        self._there[key] = kept
        self._used.add(kept)
        return Entry(kept, base)

    def tidy(self) -> None:
        """Remove leftovers of killed runs, and entries that this run did not use.

        Keeps unused entries in a folder shared by windows; does nothing while another run uses it.
        """
        self._remove(() if self.is_shared else set(self._there.values()) - self._used)

    def clean(self) -> None:
        """Remove leftovers of killed runs, unless another run is using the folder."""
        self._remove(())

    def _remove(self, entries: Iterable[Path]) -> None:
        if self.folder is None or self._pin is None:
            return
        going = [*entries, *self.folder.glob(f".*{_PARTIAL}")]
        if not going:
            return
        self._pin.close()
        with alone(self.folder) as is_unused:
            for path in going if is_unused else ():
                shutil.rmtree(path, ignore_errors=True)
        self._pin = Pin(self.folder)


def _kept_folder(window: Path) -> Path | None:
    """The folder for entries: beside the window, or a private one if that is not writable.

    None if that is not writable either, or not owned by this user alone.
    """
    beside = window / ".rollup"
    with suppress(OSError):
        beside.mkdir(exist_ok=True)
    if beside.is_dir() and os.access(beside, os.W_OK | os.X_OK):
        return beside
    return private_folder("vllm-capacity-rollup")


def _moved(made: Path, kept: Path) -> Path | None:
    """The path of an entry after moving it there (unless it exists already); None if impossible."""
    for _ in range(2):
        with suppress(OSError):
            return made.rename(kept)
        if _is_whole(kept):  # another run has just stored it
            return kept
        shutil.rmtree(kept, ignore_errors=True)
    return None


def _key(path: Path) -> str:
    return ".".join(path.name.split(".")[:2])


def _is_whole(path: Path) -> bool:
    """Whether an entry is undamaged: the hash at the end of its name matches."""
    with suppress(OSError):
        return _hash(path) == path.name.rpartition(".")[2]
    return False


def _hash(path: Path) -> str:
    """A hash of the names and bytes of an entry's files; empty if it has anything but files."""
    with os.scandir(path) as entries:
        found = sorted(entries, key=lambda entry: entry.name)
    if not all(entry.is_file() for entry in found):  # reading a pipe might never end
        return ""
    text = " ".join(f"{entry.name} {digest(Path(entry))}" for entry in found)
    return hashlib.sha256(text.encode()).hexdigest()[:_HASH_DIGITS]
