"""Rolling up a window's hours ahead of time, with several workers.

A piece of a window depends on its base, the last rows before it, so the obvious way is one piece
after another (by_hour.py). Working in parallel takes two passes over a batch of pieces. First,
workers extract from the rows of each piece what it adds to the next piece's base, and these are
combined in order. Then the base of each piece is known, and workers compute the pieces and store
their entries. The entries are byte-for-byte the same. Entries of finished days (days.py) are made
last.

Each entry is stored as soon as it is computed, under a hash of its inputs: after a killed run, the
next one continues where it stopped, and concurrent runs produce the same entries.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from vllm_capacity.errors import InputError, SourceError
from vllm_capacity.figures.by_hour import (
    Digests,
    base_in,
    is_read_by_hour,
    keep,
    keep_day,
    kept_pieces,
    key_of,
)
from vllm_capacity.figures.days import in_days
from vllm_capacity.figures.pieces import (
    NO_BASE,
    ROWS_PER_PIECE,
    Base,
    Piece,
    base_after,
    computed,
    own_base,
    pieces_of,
)
from vllm_capacity.telemetry.manifest import SINGLE, Manifest
from vllm_capacity.telemetry.memory import limit_bytes, needed_bytes
from vllm_capacity.telemetry.shelf import Shelf
from vllm_capacity.telemetry.window import Window, part_of
from vllm_capacity.telemetry.workers import Workers

_TASKS_PER_WORKER = 8

Progress = Callable[[int, int], None]
"""Called with the number of pieces done and their total."""


class RolledUp(Struct, frozen=True):
    """How many pieces of a window have entries, and how many of these this run made."""

    pieces: int
    made: int


class _Task(Struct, frozen=True):
    """A piece of a window for a worker; `manifest` lists only the files that it needs.

    `parts` are the keys of the pieces of a day.
    """

    manifest: Manifest
    piece: Piece
    key: str = ""
    base: Base = NO_BASE
    parts: tuple[str, ...] = ()


def roll_up(
    window: Window,
    workers: Workers | None,
    *,
    progress: Progress,
    rows_per_piece: int = ROWS_PER_PIECE,
) -> RolledUp:
    """Make the entries that figures of the whole window read, unless they are stored already.

    Without `workers`, they are made in this process, one after another. Returns zero pieces if
    figures of the window are read from its rows (up to six hours, or downsampled to minutes).
    InputError if entries cannot be stored.
    """
    if not is_read_by_hour(window, window.extent):
        return RolledUp(0, 0)
    pieces = pieces_of(window, window.extent, rows_per_piece=rows_per_piece)
    made = _make_pieces(window, pieces, workers, progress)
    _make_days(window, pieces, workers)
    return RolledUp(len(pieces), made)


def entries_of(window: Window) -> list[Path]:
    """The folders of the window's stored entries: pieces in order, then days.

    Missing entries are made first. Empty if the window is not read by hour.
    """
    if not is_read_by_hour(window, window.extent):
        return []
    pieces, shelf = pieces_of(window, window.extent), Shelf.of(window.manifest)
    days = in_days(pieces, [window.extent.start])
    kept = [*kept_pieces(window, pieces, shelf), *kept_pieces(window, days, shelf)]
    found = [each.entry.frames for each in kept if isinstance(each.entry.frames, Path)]
    return list(dict.fromkeys(found))  # some pieces are in both


def most_workers(window: Window) -> int:
    """How many of the window's largest pieces fit into memory at once, at least one."""
    pieces = pieces_of(window, window.extent)
    return max(1, limit_bytes() // max(1, *(needed_bytes(**piece.rows) for piece in pieces)))


def _make_pieces(
    window: Window, pieces: Sequence[Piece], workers: Workers | None, progress: Progress
) -> int:
    """Store the missing entries of pieces and return their number."""
    shelf = Shelf.of(window.manifest, is_published=True)
    if shelf.folder is None:
        raise InputError(
            f"Hourly summaries can be kept neither in {window.path} nor among the temporary files. "
            "Make one of them writable."
        )
    if workers is not None:
        return _by_batches(window, pieces, shelf, workers, progress)
    for done, _ in enumerate(kept_pieces(window, pieces, shelf), 1):
        progress(done, len(pieces))
    return shelf.made


def _by_batches(
    window: Window, pieces: Sequence[Piece], shelf: Shelf, workers: Workers, progress: Progress
) -> int:
    """Make the missing entries and return their number; batches start at the first missing one."""
    digests = Digests(window.path)
    base: Base | str = NO_BASE  # a key: the base is in its entry
    rests_on = NO_BASE.digest
    done = made = 0
    while done < len(pieces):
        key = key_of(pieces[done], rests_on, digests)
        if (kept := shelf.base(key)) is not None:
            base, rests_on, done = key, kept, done + 1
            progress(done, len(pieces))
            continue
        batch = pieces[done : done + _TASKS_PER_WORKER * workers.count]
        tasks = [_task(window, piece) for piece in batch]
        own = dict(workers.map(_own_base, tasks))  # finished in any order
        base = _read_base(base, shelf) if isinstance(base, str) else base
        left = []
        for number, task in enumerate(tasks):
            key = key_of(task.piece, base.digest, digests)
            if shelf.base(key) is None:
                left.append(replace(task, key=key, base=base))
            base = base_after(base, own[number], window.named_sql("figures", "series"))
        done += len(batch) - len(left)
        for _ in workers.map(_make, left):
            done, made = done + 1, made + 1
            progress(done, len(pieces))
        rests_on = base.digest
    return made


def _make_days(window: Window, pieces: Sequence[Piece], workers: Workers | None) -> None:
    """Store the missing entries of finished days; those of all pieces are stored."""
    shelf, digests = Shelf.of(window.manifest, is_published=True), Digests(window.path)
    rests_on: str | None = NO_BASE.digest
    tasks = []
    for piece in in_days(pieces, [window.extent.start]):
        before, keys = rests_on, []
        for part in piece.parts or (piece,):
            if rests_on is None:  # removed by another run
                return
            keys.append(key_of(part, rests_on, digests))
            rests_on = shelf.mark_used(keys[-1]) or shelf.base(keys[-1])
        if piece.parts and before is not None:
            key = key_of(piece, before, digests)
            if shelf.base(key) is None:
                tasks.append(replace(_task(window, piece), key=key, parts=tuple(keys)))
    for _ in map(_make_day, tasks) if workers is None else workers.map(_make_day, tasks):
        pass
    if shelf.remote is None:
        shelf.tidy()


def _read_base(key: str, shelf: Shelf) -> Base:
    entry = shelf.find(key)
    if entry is None and shelf.remote is not None:
        raise SourceError(
            f"{shelf.remote.url}/.rollup/{key}… is not as it was written. Remove it and try again."
        )
    return base_in(entry)


def _task(window: Window, piece: Piece) -> _Task:
    """A piece with only the files of the window's manifest that it needs."""
    small = (file for file in window.manifest.files if file.table in SINGLE)
    return _Task(replace(window.manifest, files=(*small, *piece.files)), piece)


# --- run by workers -------------------------------------------------------------------------------


def _own_base(task: _Task) -> Base:
    return own_base(part_of(task.manifest), task.piece)


def _make(task: _Task) -> None:
    """Compute a piece and store its entry."""
    window = part_of(task.manifest)
    keep(
        computed(window, task.piece, task.base),
        Shelf.of(window.manifest, is_published=True),
        task.key,
    )


def _make_day(task: _Task) -> None:
    """Store the entry of a day, made from those of its pieces."""
    window = part_of(task.manifest)
    shelf = Shelf.of(window.manifest, is_published=True)
    shelf.fetch({part.hour for part in task.piece.parts})
    parts = [entry for key in task.parts if (entry := shelf.find(key)) is not None]
    if len(parts) == len(task.parts):  # else removed by another run
        keep_day(window, parts, shelf, task.key)
