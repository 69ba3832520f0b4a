"""File locks: one writer at a time per place, and nothing is removed while it is being read.

Both are locks of the operating system (`flock`), which always end with their holder: a killed run
never blocks the next one, and its leftovers can be distinguished from files in use.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from vllm_capacity.errors import SourceError

_LOCK = ".lock"
_POLL_SECONDS = 0.05
_TURN_SECONDS = 0.5  # a lock that is being handed over does not count as held
_CLEANING_SECONDS = 5.0  # far longer than it takes to remove a few files
_Got = TypeVar("_Got")


@contextmanager
def workplace(
    folder: Path, *, busy: str, patience_seconds: float = _TURN_SECONDS
) -> Iterator[Path]:
    """Hold a hidden working folder, created if missing; one run at a time.

    SourceError with the message `busy` if another run still holds it after `patience_seconds`. The
    folder is removed afterwards, unless something was left in it on purpose; the next holder
    decides about leftovers of a killed run.
    """
    lock = folder / _LOCK
    handle = _patiently(lambda: _locked(lock), patience_seconds)
    if handle is None:
        raise SourceError(busy)
    try:
        yield folder
    finally:
        lock.unlink(missing_ok=True)  # while it is held: the next holder creates a new one
        with suppress(OSError):
            folder.rmdir()
        os.close(handle)


class Pin:
    """Keeps others from removing files of a folder, until it is closed or garbage-collected.

    If the file system has no locks, it does nothing.
    """

    def __init__(self, folder: Path) -> None:
        self._handle = _opened(folder)
        self.close = weakref.finalize(self, os.close, self._handle)
        with suppress(OSError):
            _patiently(lambda: _flocked(self._handle, fcntl.LOCK_SH), _CLEANING_SECONDS)

    def is_on(self, folder: Path) -> bool:
        """Whether that path is still the pinned folder."""
        return _is_at(self._handle, folder)


@contextmanager
def alone(folder: Path) -> Iterator[bool]:
    """Whether nobody has pinned the folder; within the context, nobody can."""
    handle = _opened(folder)
    try:
        has_lock = False
        with suppress(OSError):  # no locks here: cannot be determined
            has_lock = _flocked(handle, fcntl.LOCK_EX) is not None
        yield has_lock
    finally:
        os.close(handle)


@contextmanager
def scratch(prefix: str) -> Iterator[Path]:
    """A private temporary folder; those left by killed runs are removed."""
    for left in Path(tempfile.gettempdir()).glob(f"{prefix}????????"):
        _remove_if_left(left)
    folder, pin = _pinned_scratch(prefix)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        pin.close()


def private_folder(name: str) -> Path | None:
    """A temporary folder of that name for this user, created if missing.

    None if it cannot be written, or others have access to it.
    """
    folder = Path(tempfile.gettempdir()) / f"{name}-{os.getuid()}"
    with suppress(OSError):
        folder.mkdir(mode=0o700, exist_ok=True)
    return folder if is_private(folder) and os.access(folder, os.W_OK | os.X_OK) else None


def is_private(folder: Path) -> bool:
    """Whether it is a folder of this user that nobody else can read or write, and not a link."""
    try:
        found = folder.lstat()
    except OSError:
        return False
    is_own = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
    return is_own and not stat.S_IMODE(found.st_mode) & 0o077


def _pinned_scratch(prefix: str) -> tuple[Path, Pin]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix))
        with suppress(FileNotFoundError):  # another run removed it as a leftover
            pin = Pin(folder)
            if pin.is_on(folder):
                return folder, pin


def _remove_if_left(folder: Path) -> None:
    with suppress(OSError):
        if is_private(folder):
            with alone(folder) as is_left:
                if is_left:
                    shutil.rmtree(folder)


def _locked(lock: Path) -> int | None:
    """The descriptor of a lock file, now locked; None while another run holds the lock."""
    lock.parent.mkdir(exist_ok=True)
    try:
        handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except FileNotFoundError:  # its holder is removing the folder
        return None
    try:
        if _flocked(handle, fcntl.LOCK_EX) and _is_at(handle, lock):
            return handle
    except OSError:
        os.close(handle)
        raise
    os.close(handle)
    return None


def _opened(folder: Path) -> int:
    return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def _flocked(handle: int, kind: int) -> bool | None:
    """True with the lock, None if another run has it; OSError if there are no locks."""
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return None
    return True


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _patiently(attempt: Callable[[], _Got | None], seconds: float) -> _Got | None:
    """The attempt's result, retried while it is None."""
    end = time.monotonic() + seconds
    while (got := attempt()) is None and time.monotonic() < end:
        time.sleep(_POLL_SECONDS)
    return got
