"""Atomic writes of files, and a lock for one writer at a time."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vllm_capacity.holding import workplace

_PARTIAL = ".vllm-capacity"


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file atomically, text as UTF-8: readers see the old or the new one, never a part.

    The folder is created if it is missing. A crash leaves at most a hidden temporary file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=_PARTIAL)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)  # mkstemp makes it private; others should be able to read a report
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; SourceError at once if another run holds it.

    The operating system releases the lock when its holder ends, even by a crash, so a crash never
    blocks the next run, which removes what the crash left there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    busy = (
        f"Another report is being written into {folder}; nothing was done. "
        "Try again when it has finished."
    )
    with workplace(folder / ".report", busy=busy):
        for left in folder.glob(f".*{_PARTIAL}"):
            left.unlink(missing_ok=True)
        yield
