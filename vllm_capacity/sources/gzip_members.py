"""Reads gzip files member by member, and continues after a damaged one.

A journal has one member per scrape, so damage in the middle costs only the members it hits. A
member is passed on only after its checksum was verified; if the last one is cut off, its readable
part is passed on. Whatever is left out is reported as a `Damage` in its place.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

from msgspec import Struct

_MAGIC: Final = b"\x1f\x8b\x08"  # including the only compression method, deflate
_GZIP: Final = 31  # zlib's number for a gzip header and trailer
_READ_BYTES: Final = 64 * 1024
_MAX_AT_ONCE: Final = 1024 * 1024
_KEPT_BYTES: Final = 4 * 1024 * 1024  # per member: some scrapes of a large server


class Damage(Struct, frozen=True):
    """A part of a file that cannot be read, described in words."""

    file: str
    reason: str

    def __str__(self) -> str:
        return f"{self.file}: {self.reason}"


def is_gzip(path: Path) -> bool:
    """Whether the file starts like a gzip file."""
    with path.open("rb") as file:
        return file.read(2) == _MAGIC[:2]


def pieces(path: Path) -> Iterator[bytes | Damage]:
    """The decompressed bytes in pieces, and a `Damage` wherever some are missing."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = 0
        while start < size:
            sound = _sound(file, start)
            if sound is not None:
                yield from sound.content or _content(file, start)
                start = sound.end
                continue
            following = _following(file, start + 1)
            if following is None and start + len(_MAGIC) <= size and _is_cut(file, start):
                yield from _content(file, start)
                yield Damage(path.name, f"cut short at byte {size:,}; what came after is lost")
                return
            start, begun = following or size, start
            yield Damage(
                path.name, f"bytes {begun:,} to {start:,} are damaged; the scrapes there are lost"
            )


class _Sound(Struct, frozen=True):
    """An undamaged member: where it ends, and its content unless that is over 4 MiB."""

    end: int
    content: list[bytes]


def _sound(file: BinaryIO, start: int) -> _Sound | None:
    """The member that begins here; None if it is damaged or cut off."""
    member = zlib.decompressobj(_GZIP)
    content: list[bytes] = []
    size = 0
    try:
        for piece in _decompressed(member, file, start):
            size += len(piece)
            content = [*content, piece] if size <= _KEPT_BYTES else []
    except zlib.error:
        return None
    return _Sound(file.tell() - len(member.unused_data), content) if member.eof else None


def _is_cut(file: BinaryIO, start: int) -> bool:
    """Whether a member begins here and is undamaged up to the end of the file."""
    try:
        for _ in _decompressed(zlib.decompressobj(_GZIP), file, start):
            pass
    except zlib.error:
        return False
    return True


def _content(file: BinaryIO, start: int) -> Iterator[bytes]:
    return _decompressed(zlib.decompressobj(_GZIP), file, start)


def _decompressed(member: zlib._Decompress, file: BinaryIO, start: int) -> Iterator[bytes]:
    """The content of a member in pieces; zlib.error if it is damaged."""
    file.seek(start)
    while not member.eof:
        data = file.read(_READ_BYTES)
        if not data:
            return
        while data and not member.eof:
            yield member.decompress(data, _MAX_AT_ONCE)
            data = member.unconsumed_tail


def _following(file: BinaryIO, start: int) -> int | None:
    """Where the next complete member begins, at `start` or later; None if there is none."""
    kept = b""
    while True:
        file.seek(start + len(kept))
        data = file.read(_READ_BYTES)
        if not data:
            return None
        block = kept + data
        at = block.find(_MAGIC)
        while at >= 0:
            if _sound(file, start + at) is not None:
                return start + at
            at = block.find(_MAGIC, at + 1)
        kept = block[-(len(_MAGIC) - 1) :]
        start += len(block) - len(kept)
