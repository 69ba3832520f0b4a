"""What the hours of a window leave behind, made before anyone asks, by several workers.

A piece of a window rests on its base, the last rows before it, so one after another is the obvious
way (by_hour.py). Side by side it takes two passes over a batch of pieces: workers find what each
leaves by its own rows alone, these are put together in order, and with the base of each piece known
workers compute it and keep its entry. The entries are the same, to the byte.

Every entry is kept when it is made, under what it was made of: a run that was killed goes on where
it ended, and whoever runs beside it makes the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vllm_capacity.errors import InputError, SourceError
from vllm_capacity.figures.by_hour import (
    Digests,
    base_in,
    is_read_by_hour,
    keep,
    kept_pieces,
    key_of,
)
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
"""Told how many pieces are done, and of how many."""


@dataclass(frozen=True)
class RolledUp:
    """How many pieces of a window have their entries, and how many of these were made just now."""

    pieces: int
    made: int


@dataclass(frozen=True)
class _Task:
    """A piece of a window for a worker: `manifest` lists no more than it needs."""

    manifest: Manifest
    piece: Piece
    key: str = ""
    base: Base = NO_BASE


def roll_up(
    window: Window,
    workers: Workers | None,
    *,
    progress: Progress,
    rows_per_piece: int = ROWS_PER_PIECE,
) -> RolledUp:
    """Make what figures of the whole window read, as far as it is not kept yet.

    Without `workers`, here and one after another. No piece in a window whose figures are read from
    its rows: up to six hours, or downsampled to minutes. InputError where entries cannot be kept.
    """
    if not is_read_by_hour(window, window.extent):
        return RolledUp(0, 0)
    shelf = Shelf.of(window.manifest, is_published=True)
    if shelf.folder is None:
        raise InputError(
            f"What hours leave behind can be kept neither in {window.path} nor among the temporary "
            "files. Make one of them writable."
        )
    pieces = pieces_of(window, window.extent, rows_per_piece=rows_per_piece)
    if workers is None:
        for done, _ in enumerate(kept_pieces(window, pieces, shelf), 1):
            progress(done, len(pieces))
        return RolledUp(len(pieces), shelf.made)
    made = _by_batches(window, pieces, shelf, workers, progress)
    if shelf.remote is None:
        shelf.tidy()
    return RolledUp(len(pieces), made)


def entries_of(window: Window) -> list[Path]:
    """The folders of what is kept of the window's hours, in order; none where nothing is read so.

    What is not kept yet is made first.
    """
    if not is_read_by_hour(window, window.extent):
        return []
    pieces = kept_pieces(window, pieces_of(window, window.extent), Shelf.of(window.manifest))
    return [each.entry.frames for each in pieces if isinstance(each.entry.frames, Path)]


def most_workers(window: Window) -> int:
    """How many of its largest pieces fit into memory at a time, at least one."""
    pieces = pieces_of(window, window.extent)
    return max(1, limit_bytes() // max(1, *(needed_bytes(**piece.rows) for piece in pieces)))


def _by_batches(
    window: Window, pieces: Sequence[Piece], shelf: Shelf, workers: Workers, progress: Progress
) -> int:
    """Make the entries that are not there, and say how many: a batch from the first of them on."""
    digests = Digests(window.path)
    base: Base | str = NO_BASE  # or the key of the entry that holds it
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
        own = dict(workers.map(_own_base, tasks))  # in any order
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


def _read_base(key: str, shelf: Shelf) -> Base:
    entry = shelf.find(key)
    if entry is None and shelf.remote is not None:
        raise SourceError(
            f"{shelf.remote.url}/.rollup/{key}… is not as it was written. Remove it and try again."
        )
    return base_in(entry)


def _task(window: Window, piece: Piece) -> _Task:
    """A piece with the part of the window's list that it needs."""
    small = (file for file in window.manifest.files if file.table in SINGLE)
    return _Task(replace(window.manifest, files=(*small, *piece.files)), piece)


# --- what workers do ----------------------------------------------------------------------------


def _own_base(task: _Task) -> Base:
    return own_base(part_of(task.manifest), task.piece)


def _make(task: _Task) -> None:
    """Compute a piece and keep its entry."""
    window = part_of(task.manifest)
    keep(
        computed(window, task.piece, task.base),
        Shelf.of(window.manifest, is_published=True),
        task.key,
    )
